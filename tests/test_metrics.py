"""Audio scores: known values, padding, and what cannot be computed."""

import csv
import logging
import math
import sys

import pytest
import torch
import torchaudio

from recipes.common import metrics
from recipes.common.dnsmos import dnsmos
from recipes.common.metrics import AudioMetrics, mel_distance
from recipes.common.scoring import MissingPackageError, ScoreError
from tests.scores import RATE, add_noise, skip_unless_computed, voice

INTRUSIVE = {"stoi": metrics.stoi, "pesq": metrics.pesq, "mel_distance": mel_distance}
IDENTICAL = {"stoi": 1.0, "pesq": 4.6439, "mel_distance": 0.0}


@pytest.fixture(params=INTRUSIVE)
def metric(request) -> str:
    """Name of a metric with a reference whose package is installed."""
    skip_unless_computed(request.param)
    return request.param


@pytest.fixture
def dnsmos_models():
    skip_unless_computed("dnsmos")


@pytest.fixture
def sig() -> torch.Tensor:
    return voice(3.0)


def test_identical_audio_scores_best(metric, sig):
    score = INTRUSIVE[metric](sig, sig, sample_rate=RATE)
    assert score == pytest.approx(IDENTICAL[metric], abs=1e-4)


def test_noise_makes_the_score_worse(metric, sig):
    clean, mild, strong = (
        abs(INTRUSIVE[metric](sig, hyp, sample_rate=RATE) - IDENTICAL[metric])
        for hyp in (sig, add_noise(sig, snr_db=20), add_noise(sig, snr_db=0))
    )
    assert clean < mild < strong


def test_arrays_and_half_precision_score_like_tensors(metric, sig):
    hyp = add_noise(sig, snr_db=10).bfloat16()
    score = INTRUSIVE[metric](sig, hyp.float(), sample_rate=RATE)
    assert INTRUSIVE[metric](sig.numpy(), hyp.float().numpy(), sample_rate=RATE) == score
    assert INTRUSIVE[metric](sig, hyp, sample_rate=RATE) == score


def test_other_sample_rates_are_resampled(metric):
    sig = voice(3.0, sample_rate=24_000)
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
    skip_unless_computed(name)
    with pytest.raises(ScoreError, match="at least"):
        INTRUSIVE[name](sig[-num_samples:], sig[-num_samples:], sample_rate=RATE)


def test_speech_too_short_between_silence_has_no_stoi(sig):
    skip_unless_computed("stoi")
    sig = torch.cat([torch.zeros(RATE), sig[:4000], torch.zeros(RATE)])
    with pytest.raises(ScoreError, match="0.4 s of speech"):
        metrics.stoi(sig, sig, sample_rate=RATE)


@pytest.mark.parametrize("name", ["stoi", "pesq"])
def test_silent_reference_has_no_score(name, sig):
    skip_unless_computed(name)
    with pytest.raises(ScoreError, match="silent"):
        INTRUSIVE[name](torch.zeros_like(sig), sig, sample_rate=RATE)


def test_silent_decoded_audio_has_no_pesq(sig):
    skip_unless_computed("pesq")
    with pytest.raises(ScoreError, match="silent"):
        metrics.pesq(sig, torch.zeros_like(sig), sample_rate=RATE)


def test_pesq_in_its_own_process_gives_the_same_score(monkeypatch, sig):
    skip_unless_computed("pesq")
    hyp = add_noise(sig, snr_db=10)
    score = metrics.pesq(sig, hyp, sample_rate=RATE)
    monkeypatch.setattr(metrics, "_PESQ_SAFE_SAMPLES", 0)
    assert metrics.pesq(sig, hyp, sample_rate=RATE) == score


def test_pesq_with_too_many_pauses_does_not_kill_this_process():
    skip_unless_computed("pesq")
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


def test_audio_metrics_average_the_pure_functions(sig):
    names = ["mel_distance"]
    for optional in ("stoi", "pesq"):
        if optional not in AudioMetrics(names=[optional], sample_rate=RATE).not_computed:
            names.append(optional)
    hyps = [add_noise(sig, snr_db=snr_db) for snr_db in (20, 0)]
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
    refs, hyps = [sig, sig[:20_000]], [add_noise(s, snr_db=10) for s in (sig, sig[:20_000])]
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
    sig = voice(9.5)
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
    sig = voice(1.0)
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
    skip_unless_computed("stoi")
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
    assert rows["short"]["stoi"] == ""
    # float32 noise: where the copy lies in memory decides which kernel computes its transform
    assert float(rows["short"]["mel_distance"]) == pytest.approx(0.0, abs=1e-6)
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
