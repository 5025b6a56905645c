"""Audio scores and code statistics: known values, padding, what cannot be computed, two ranks."""

import csv
import importlib.machinery
import logging
import math
import sys
import types
from datetime import timedelta

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from recipes.common import metrics
from recipes.common.metrics import (
    AudioMetrics,
    CodeUsage,
    MissingPackageError,
    ScoreError,
    bitrate,
    dnsmos,
    mel_distance,
)

RATE = 16_000
INTRUSIVE = {"stoi": metrics.stoi, "pesq": metrics.pesq, "mel_distance": mel_distance}
IDENTICAL = {"stoi": 1.0, "pesq": 4.6439, "mel_distance": 0.0}


@pytest.fixture(params=INTRUSIVE)
def metric(request) -> str:
    """Name of a metric with a reference whose package is installed."""
    _skip_unless_computed(request.param)
    return request.param


@pytest.fixture
def dnsmos_models():
    _skip_unless_computed("dnsmos")


@pytest.fixture
def sig() -> torch.Tensor:
    return _voice(3.0)


def _skip_unless_computed(name: str) -> None:
    if reason := AudioMetrics(names=[name], sample_rate=RATE).not_computed.get(name):
        pytest.skip(reason)


def _voice(seconds: float, *, sample_rate: int = RATE) -> torch.Tensor:
    """(T,) harmonics of 120 Hz in syllables, the same on every machine: no random numbers."""
    time = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    pitch = 2 * torch.pi * (120 * time + 3 * torch.sin(2 * torch.pi * 0.7 * time))
    harmonics = sum(torch.sin(k * pitch) / k for k in range(1, 30))
    syllables = torch.sin(2 * torch.pi * 2 * time).clamp_min(0.001)
    return (0.2 * harmonics * syllables).float()


def _add_noise(sig: torch.Tensor, *, snr_db: float) -> torch.Tensor:
    noise = torch.randn(sig.shape, generator=torch.Generator().manual_seed(0))
    return sig + noise * sig.square().mean().sqrt() / noise.square().mean().sqrt() / 10 ** (
        snr_db / 20
    )


def test_identical_audio_scores_best(metric, sig):
    score = INTRUSIVE[metric](sig, sig, sample_rate=RATE)
    assert score == pytest.approx(IDENTICAL[metric], abs=1e-4)


def test_noise_makes_the_score_worse(metric, sig):
    clean, mild, strong = (
        abs(INTRUSIVE[metric](sig, hyp, sample_rate=RATE) - IDENTICAL[metric])
        for hyp in (sig, _add_noise(sig, snr_db=20), _add_noise(sig, snr_db=0))
    )
    assert clean < mild < strong


def test_arrays_and_half_precision_score_like_tensors(metric, sig):
    hyp = _add_noise(sig, snr_db=10).bfloat16()
    score = INTRUSIVE[metric](sig, hyp.float(), sample_rate=RATE)
    assert INTRUSIVE[metric](sig.numpy(), hyp.float().numpy(), sample_rate=RATE) == score
    assert INTRUSIVE[metric](sig, hyp, sample_rate=RATE) == score


def test_other_sample_rates_are_resampled(metric):
    sig = _voice(3.0, sample_rate=24_000)
    assert INTRUSIVE[metric](sig, sig, sample_rate=24_000) == pytest.approx(
        IDENTICAL[metric], abs=1e-4
    )
    hyp = 0.5 * sig + 0.1
    resampled = [torchaudio.functional.resample(x, 24_000, RATE) for x in (sig, hyp)]
    assert INTRUSIVE[metric](sig, hyp, sample_rate=24_000) == pytest.approx(
        INTRUSIVE[metric](*resampled, sample_rate=RATE), abs=1e-5
    )


def test_samples_beyond_unity_are_scored(metric, sig):
    assert math.isfinite(INTRUSIVE[metric](sig, 9 * sig, sample_rate=RATE))


@pytest.mark.parametrize(
    ("ref", "hyp"),
    [
        pytest.param(torch.zeros(0), torch.zeros(0), id="empty"),
        pytest.param(torch.ones(RATE), torch.full((RATE,), torch.nan), id="nan"),
        pytest.param(torch.full((RATE,), torch.inf), torch.ones(RATE), id="inf"),
    ],
)
def test_empty_or_not_finite_audio_has_no_score(metric, ref, hyp):
    with pytest.raises(ScoreError, match="empty|not finite"):
        INTRUSIVE[metric](ref, hyp, sample_rate=RATE)


@pytest.mark.parametrize("name", ["stoi", "pesq"])
@pytest.mark.parametrize("num_samples", [1, 300, 500, 3000])
def test_too_short_audio_has_no_score(name, num_samples, sig):
    _skip_unless_computed(name)
    with pytest.raises(ScoreError, match="at least"):
        INTRUSIVE[name](sig[-num_samples:], sig[-num_samples:], sample_rate=RATE)


def test_speech_too_short_between_silence_has_no_stoi(sig):
    _skip_unless_computed("stoi")
    sig = torch.cat([torch.zeros(RATE), sig[:4000], torch.zeros(RATE)])
    with pytest.raises(ScoreError, match="0.4 s of speech"):
        metrics.stoi(sig, sig, sample_rate=RATE)


@pytest.mark.parametrize("name", ["stoi", "pesq"])
def test_silent_reference_has_no_score(name, sig):
    _skip_unless_computed(name)
    with pytest.raises(ScoreError, match="silent"):
        INTRUSIVE[name](torch.zeros_like(sig), sig, sample_rate=RATE)


def test_silent_decoded_audio_has_no_pesq(sig):
    _skip_unless_computed("pesq")
    with pytest.raises(ScoreError, match="silent"):
        metrics.pesq(sig, torch.zeros_like(sig), sample_rate=RATE)


def test_pesq_in_its_own_process_gives_the_same_score(monkeypatch, sig):
    _skip_unless_computed("pesq")
    hyp = _add_noise(sig, snr_db=10)
    score = metrics.pesq(sig, hyp, sample_rate=RATE)
    monkeypatch.setattr(metrics, "_PESQ_SAFE_SAMPLES", 0)
    assert metrics.pesq(sig, hyp, sample_rate=RATE) == score


def test_pesq_with_too_many_pauses_does_not_kill_this_process():
    _skip_unless_computed("pesq")
    burst = torch.cat([0.1 * torch.randn(4800), torch.zeros(4000)])
    sig = burst.repeat(60)  # the package has room for 50 and checks nothing
    try:
        assert 1 <= metrics.pesq(sig, sig, sample_rate=RATE) <= 4.65
    except ScoreError as error:
        assert "crashed" in str(error)


def test_shapes_and_integers_are_refused(metric, sig):
    with pytest.raises(ValueError, match="same shape"):
        INTRUSIVE[metric](sig, sig[1:], sample_rate=RATE)
    with pytest.raises(ValueError, match=r"one utterance.*\(1, 48000\)"):
        INTRUSIVE[metric](sig[None], sig[None], sample_rate=RATE)
    with pytest.raises(ValueError, match="floating point.*int16"):
        INTRUSIVE[metric](sig.short(), sig.short(), sample_rate=RATE)


def test_mel_distance_of_a_gain_is_its_logarithm():
    sig = 0.1 * torch.randn(RATE)  # noise: no band at the floor
    assert mel_distance(sig, 2 * sig, sample_rate=RATE) == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("num_samples", [1, 319, 1025])
def test_mel_distance_takes_any_length(num_samples):
    sig = torch.ones(num_samples)
    assert mel_distance(sig, sig, sample_rate=RATE) == 0


def test_mel_filters_equal_torchaudio_where_n_fft_is_even():
    oracle = torchaudio.functional.melscale_fbanks(
        513, 0.0, 8000.0, 80, RATE, norm="slaney", mel_scale="slaney"
    )
    # float32 frequencies in torchaudio's
    torch.testing.assert_close(metrics._mel_filters(1024, 80), oracle, atol=1e-6, rtol=0)


def test_mel_filters_peak_at_the_tones_frequency_for_odd_n_fft():
    filters = metrics._mel_filters(321, 120)
    centres = (torch.arange(161)[:, None] * RATE / 321 * filters).sum(0) / filters.sum(0)
    wide = metrics._mel_filters(4096, 120)  # the same bands, finely sampled
    expected = (torch.arange(2049)[:, None] * RATE / 4096 * wide).sum(0) / wide.sum(0)
    torch.testing.assert_close(centres[90:], expected[90:], rtol=0.005, atol=0)  # bands of > 3 bins


def test_dnsmos_equals_the_published_script(dnsmos_models):
    # speechmos 0.0.1.1 run(), librosa 0.11.0, onnxruntime 1.31.1, on the same samples
    published = {"sig": 2.334315, "bak": 3.737563, "ovrl": 2.060379, "p808": 2.443696}
    scores = dnsmos(_voice(9.5), sample_rate=RATE)
    assert scores._asdict() == pytest.approx(published, abs=1e-3)


def test_dnsmos_repeats_a_short_clip(dnsmos_models):
    sig = _voice(5.0)
    assert dnsmos(sig, sample_rate=RATE) == dnsmos(sig.repeat(2), sample_rate=RATE)


@pytest.mark.parametrize(
    ("num_samples", "num_windows"),
    [(1, 7), (5 * RATE, 1), (9 * RATE, 7), (144_160, 1), (11 * RATE - 1, 1), (11 * RATE, 2)]
    + [(20 * RATE, 7), (34 * RATE, 8)],
)
def test_dnsmos_takes_the_published_scripts_windows(num_samples, num_windows):
    windows = metrics._dnsmos_windows(np.arange(num_samples, dtype=np.float32))
    assert [window.shape for window in windows] == [(144_160,)] * num_windows
    if num_samples >= 144_160:
        assert [window[0] / RATE for window in windows[:7]] == list(range(len(windows)))[:7]


def test_dnsmos_scores_odd_audio_or_says_why_not(dnsmos_models):
    loud = 1.5 * _voice(9.5) / _voice(9.5).abs().max()
    assert all(1 <= score <= 5 for score in dnsmos(loud, sample_rate=RATE))
    with pytest.raises(ScoreError, match="empty"):
        dnsmos(torch.zeros(0), sample_rate=RATE)
    with pytest.raises(ScoreError, match="not finite"):
        dnsmos(torch.full((RATE,), torch.nan), sample_rate=RATE)


def test_dnsmos_finds_its_models_beside_a_module_of_the_same_name(dnsmos_models, monkeypatch):
    hub_package = types.ModuleType("speechmos")  # what UTMOS' hub repository leaves behind
    hub_package.__spec__ = importlib.machinery.ModuleSpec("speechmos", None, origin="hub")
    monkeypatch.setitem(sys.modules, "speechmos", hub_package)
    assert (metrics._dnsmos_folder() / "model_v8.onnx").is_file()


def test_dnsmos_prefers_cleaner_speech(dnsmos_models, shared):
    files = sorted((shared / "data/speech/test-other").rglob("*.flac"))
    speech = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files[:2]])
    sig = torch.from_numpy(speech[: int(9.5 * RATE)])
    assert sig.numel() >= 9.01 * RATE
    clean, mild, strong = (
        dnsmos(hyp, sample_rate=RATE)
        for hyp in (sig, _add_noise(sig, snr_db=10), _add_noise(sig, snr_db=0))
    )
    for name in clean._fields:
        assert getattr(clean, name) > getattr(mild, name) > getattr(strong, name), name


def test_audio_metrics_average_the_pure_functions(sig):
    names = ["mel_distance"]
    for optional in ("stoi", "pesq"):
        if optional not in AudioMetrics(names=[optional], sample_rate=RATE).not_computed:
            names.append(optional)
    hyps = [_add_noise(sig, snr_db=snr_db) for snr_db in (20, 0)]
    bundle = AudioMetrics(names=names, sample_rate=RATE)
    bundle.append(["a", "b"], torch.stack([sig, sig]), torch.stack(hyps))
    summary = bundle.summarize()
    assert set(summary) == set(names)
    for name in names:
        each = [INTRUSIVE[name](sig, hyp, sample_rate=RATE) for hyp in hyps]
        assert summary[name] == pytest.approx(sum(each) / 2, rel=1e-12)
    assert bundle.stats["mel_distance"].summarize("max_id") == "b"
    assert bundle.not_computed == {} and bundle.failures == []


def test_padding_never_changes_a_score(metric, sig):
    refs, hyps = [sig, sig[:20_000]], [_add_noise(s, snr_db=10) for s in (sig, sig[:20_000])]
    alone = AudioMetrics(names=[metric], sample_rate=RATE)
    alone.append(["a", "b"], refs, hyps)
    padded = AudioMetrics(names=[metric], sample_rate=RATE)
    noise = torch.randn(2, sig.numel() + 777)  # padding that would show
    ref_sig, hyp_sig = noise.clone(), -noise
    for row, (ref, hyp) in enumerate(zip(refs, hyps, strict=True)):
        ref_sig[row, : len(ref)], hyp_sig[row, : len(hyp)] = ref, hyp
    lens = torch.tensor([len(ref) for ref in refs]) / noise.shape[1]
    padded.append(["a", "b"], ref_sig, hyp_sig, lens=lens)
    assert alone.stats[metric].scores == padded.stats[metric].scores


def test_dnsmos_scores_have_flat_names(dnsmos_models):
    bundle = AudioMetrics(names=["dnsmos"], sample_rate=RATE)
    sig = _voice(9.5)
    bundle.append(["a"], sig[None], sig[None])
    expected = {f"dnsmos_{k}": v for k, v in dnsmos(sig, sample_rate=RATE)._asdict().items()}
    assert bundle.summarize() == pytest.approx(expected, rel=1e-12)
    assert all(1 <= score <= 5 for score in expected.values())


@pytest.mark.parametrize(
    ("name", "package", "pip"),
    [
        ("stoi", "pystoi", "pip install pystoi"),
        ("pesq", "pesq", "pip install pesq==0.0.4"),
        ("dnsmos", "onnxruntime", "pip install onnxruntime"),
    ],
)
def test_missing_package_is_named_and_the_rest_goes_on(name, package, pip, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, package, None)  # import now raises ModuleNotFoundError
    metrics._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        bundles = [AudioMetrics(names=[name, "mel_distance"], sample_rate=RATE) for _ in range(2)]
    assert [pip in record.message for record in caplog.records] == [True]  # once, not per bundle
    sig = _voice(1.0)
    bundles[0].append(["a"], sig[None], sig[None])
    assert bundles[0].summarize() == {"mel_distance": 0.0}
    (missing,) = bundles[0].not_computed.items()
    assert missing[0] == name and pip in missing[1] and "\n" not in missing[1]
    assert bundles[0].failures == []
    if name != "dnsmos":
        with pytest.raises(MissingPackageError, match=pip):
            INTRUSIVE[name](sig, sig, sample_rate=RATE)


def test_missing_models_are_named(dnsmos_models, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert "pip install speechmos" in metrics._why_missing("dnsmos")


def test_failed_utterances_are_counted_and_left_out_of_the_mean(sig, tmp_path):
    _skip_unless_computed("stoi")
    bundle = AudioMetrics(names=["stoi", "mel_distance"], sample_rate=RATE)
    nan = torch.full_like(sig, torch.nan)
    bundle.append(["good", "short", "nan"], [sig, sig[:900], sig], [sig, sig[:900], nan])
    assert bundle.summarize() == pytest.approx({"stoi": 1.0, "mel_distance": 0.0}, abs=1e-6)
    assert [(failure.id, failure.metric) for failure in bundle.failures] == [
        ("short", "stoi"),
        ("nan", "stoi"),
        ("nan", "mel_distance"),
    ]
    assert bundle.not_computed == {}
    bundle.write_csv(tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert float(rows["good"]["stoi"]) == pytest.approx(1.0)
    assert rows["short"] == {"id": "short", "stoi": "", "mel_distance": "0.0"}
    assert rows["nan"] == {"id": "nan", "stoi": "", "mel_distance": ""}


def test_metric_that_failed_on_every_utterance_is_not_computed():
    bundle = AudioMetrics(names=["mel_distance"], sample_rate=RATE)
    bundle.append(["a"], torch.zeros(1, 9), torch.full((1, 9), torch.nan))
    assert bundle.summarize() == {}
    assert "none of 1 utterances" in bundle.not_computed["mel_distance"]
    assert "a: " in bundle.not_computed["mel_distance"]


def test_nothing_appended_or_cleared_summarizes_to_nothing(sig):
    bundle = AudioMetrics(names=["mel_distance"], sample_rate=RATE)
    assert bundle.summarize() == {} and bundle.not_computed == {}
    bundle.append(["a"], sig[None], sig[None])
    assert bundle.summarize() == {"mel_distance": 0.0}
    bundle.clear()
    assert bundle.summarize() == {} and bundle.not_computed == {} and bundle.failures == []


def test_unknown_metric_names_the_known_ones():
    with pytest.raises(ValueError, match=r"\['stoy'\].*dnsmos.*mel_distance.*pesq.*stoi"):
        AudioMetrics(names=["stoi", "stoy"], sample_rate=RATE)


def test_batches_that_do_not_match_are_refused():
    bundle = AudioMetrics(names=["mel_distance"], sample_rate=RATE)
    sig = torch.zeros(2, 50)
    with pytest.raises(ValueError, match="1, 2 and 2"):
        bundle.append(["a"], sig, sig)
    with pytest.raises(ValueError, match="a: .*same number of samples"):
        bundle.append(["a", "b"], sig, sig[:, :40])
    with pytest.raises(ValueError, match=r"lens must be \(2,\)"):
        bundle.append(["a", "b"], sig, sig, lens=torch.ones(3))
    with pytest.raises(ValueError, match="no padding"):
        bundle.append(["a", "b"], list(sig), list(sig), lens=torch.ones(2))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        bundle.append(["a"], sig[0], sig[0])


def test_code_usage_by_hand():
    usage = CodeUsage(8)
    usage.append(torch.tensor([[0, 0, 1, 7]]))
    usage.append(torch.tensor([[0, 1, 5, 5]]), mask=torch.tensor([[True, True, False, False]]))
    probs = [3 / 6, 2 / 6, 1 / 6]
    entropy = -sum(p * math.log2(p) for p in probs)
    assert usage.summarize() == pytest.approx(
        {
            "code_usage": 3 / 8,
            "used_codes": 3,
            "normalised_entropy": entropy / 3,
            "normalised_entropy_used": entropy / math.log2(3),
            "num_tokens": 6,
        }
    )


@pytest.mark.parametrize("codebook_size", [2, 13, 8192])
def test_entropy_is_one_for_uniform_and_zero_for_one_code(codebook_size):
    usage = CodeUsage(codebook_size)
    usage.append(torch.arange(codebook_size).repeat(3)[None])
    summary = usage.summarize()
    assert summary["code_usage"] == 1
    assert summary["normalised_entropy"] == pytest.approx(1)
    assert summary["normalised_entropy_used"] == pytest.approx(1)
    usage.clear()
    usage.append(torch.full((2, 5), codebook_size - 1))
    summary = usage.summarize()
    assert summary["used_codes"] == 1 and summary["num_tokens"] == 10
    assert summary["normalised_entropy"] == summary["normalised_entropy_used"] == 0


def test_entropy_stays_between_zero_and_one():
    for size in (2, 7, 64):
        usage = CodeUsage(size)
        usage.append((torch.rand(3, 50) ** 3 * size).long())
        summary = usage.summarize()
        assert 0 <= summary["normalised_entropy"] <= summary["normalised_entropy_used"] <= 1 + 1e-12


def test_code_usage_refuses_what_it_cannot_count():
    usage = CodeUsage(4)
    with pytest.raises(RuntimeError, match="no token"):
        usage.summarize()
    usage.append(torch.tensor([[9]]), mask=torch.tensor([[False]]))  # padding may hold anything
    with pytest.raises(RuntimeError, match="no token"):
        usage.summarize()
    with pytest.raises(ValueError, match=r"\[0, 4\), got 0 to 4"):
        usage.append(torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match="-1"):
        usage.append(torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="shape of toks"):
        usage.append(torch.zeros(1, 4, dtype=torch.long), mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 2"):
        CodeUsage(1)


def test_code_usage_counts_the_tokens_of_all_ranks(tmp_path):
    store = str(tmp_path / "store")
    other = torch.multiprocessing.get_context("spawn").Process(
        target=_count_on_rank, args=(1, store)
    )
    other.start()
    _count_on_rank(0, store)
    other.join()
    assert other.exitcode == 0


def _count_on_rank(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    usage = CodeUsage(4)
    if rank == 1:  # and none on rank 0
        usage.append(torch.tensor([[0, 0, 1]]))
    for _ in range(2):  # asking twice does not count twice
        summary = usage.summarize()
        assert (summary["num_tokens"], summary["used_codes"]) == (3, 2)
    usage.append(torch.tensor([[3]]))
    summary = usage.summarize()
    assert (summary["num_tokens"], summary["used_codes"]) == (5, 3)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("token_rate", "codebook_size", "expected"),
    [(50, 8192, 650), (25, 8192, 325), (12.5, 8192, 162.5), (50, 1024, 500), (50, 65_536, 800)],
)
def test_bitrate_in_bits_per_second(token_rate, codebook_size, expected):
    assert bitrate(token_rate, codebook_size) == pytest.approx(expected)


def test_bitrate_refuses_what_is_no_stream():
    with pytest.raises(ValueError, match="token_rate"):
        bitrate(0, 8192)
    with pytest.raises(ValueError, match="codebook_size"):
        bitrate(50, 1)
