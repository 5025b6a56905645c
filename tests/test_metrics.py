"""A set of scores over utterances: means, padding, ranks' rows, and what cannot be computed."""

import csv
import logging
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from recipes.common import known_metrics
from recipes.common.dnsmos import dnsmos
from recipes.common.known_metrics import WEIGHTS, why_missing
from recipes.common.metrics import AudioMetrics
from recipes.common.reference_scores import mel_distance, pesq, stft_distance, stoi
from recipes.common.score_models import DEFAULT_MODELS, ScoreModels
from recipes.common.scoring import MissingPackageError
from tests.scores import RATE, add_noise, skip_unless_computed, voice
from tests.tiny_checkpoints import save_score_models, save_utmos, save_whisper

INTRUSIVE = {
    "stoi": stoi,
    "pesq": pesq,
    "mel_distance": mel_distance,
    "stft_distance": stft_distance,
}
MODEL_BASED = ["utmos", "dwer", "sim", "sim_strict"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> ScoreModels:
    """Tiny models of all kinds."""
    return save_score_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def sig() -> torch.Tensor:
    return voice(3.0)


@pytest.fixture(params=INTRUSIVE)
def metric(request) -> str:
    """Name of a metric with a reference whose package is installed."""
    skip_unless_computed(request.param)
    return request.param


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


def test_dnsmos_scores_have_flat_names():
    skip_unless_computed("dnsmos")
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
    known_metrics._warn_once.cache_clear()
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


def test_missing_models_are_named(monkeypatch):
    skip_unless_computed("dnsmos")
    monkeypatch.setattr(sys, "path", [])
    assert "pip install speechmos" in why_missing("dnsmos", DEFAULT_MODELS)


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
    with pytest.raises(ValueError, match="1, 2, 2 and 1"):
        bundle.append(["a"], sig, sig)
    with pytest.raises(ValueError, match="a: .*same number of samples"):
        bundle.append(["a", "b"], sig, sig[:, :40])
    with pytest.raises(ValueError, match=r"lens must be \(2,\)"):
        bundle.append(["a", "b"], sig, sig, lens=torch.ones(3))
    with pytest.raises(ValueError, match="no padding"):
        bundle.append(["a", "b"], list(sig), list(sig), lens=torch.ones(2))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        bundle.append(["a"], sig[0], sig[0])
    with pytest.raises(ValueError, match="2, 2, 2 and 1"):
        bundle.append(["a", "b"], sig, sig, languages=["en"])
    assert bundle.rows == []


def test_a_target_is_perfect_against_itself(models, sig):
    bundle = AudioMetrics(names=MODEL_BASED, sample_rate=RATE, models=models)
    bundle.append(["a", "b"], [sig, sig[9000:]], [sig, sig[9000:]])
    summary = bundle.summarize()
    assert bundle.not_computed == {} and bundle.failures == []
    assert summary["dwer"] == summary["dcer"] == 0
    assert summary["sim"] == pytest.approx(1, abs=1e-12)
    assert summary["sim_strict"] == pytest.approx(1, abs=1e-12)
    assert summary["utmos"] == pytest.approx(
        3 + float((sig.square().mean() + sig[9000:].square().mean()) / 2), abs=1e-6
    )


def test_word_error_rate_is_edits_over_words_of_all_utterances(models, sig):
    bundle = AudioMetrics(names=["dwer"], sample_rate=RATE, models=models)
    refs = [sig, add_noise(sig, snr_db=10)[:30_000], torch.randn(40_000)]
    bundle.append([*"abc"], refs, [add_noise(ref, snr_db=0) for ref in refs])
    rows = bundle.rows
    assert len({row["dwer_words"] for row in rows}) > 1  # or any mean would do
    for score, weight in WEIGHTS.items():
        edits = [row[score] * row[weight] for row in rows]
        assert edits == pytest.approx([round(edit) for edit in edits], abs=1e-9) and sum(edits) > 0
        total = sum(row[weight] for row in rows)
        assert bundle.summarize()[score] == pytest.approx(sum(edits) / total, rel=1e-12)
    assert set(bundle.summarize()) == {"dwer", "dcer"}


def test_padding_and_neighbours_change_no_score_of_a_model(models, sig):
    refs, hyps = [sig, sig[:20_000]], [add_noise(s, snr_db=10) for s in (sig, sig[:20_000])]
    alone, padded = (
        AudioMetrics(names=MODEL_BASED, sample_rate=RATE, models=models) for _ in range(2)
    )
    for row in (1, 0):
        alone.append([str(row)], [refs[row]], [hyps[row]])
    batch = [torch.nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=9.0)
             for x in (refs, hyps)]  # fmt: skip
    padded.append(["0", "1"], *batch, lens=torch.tensor([1, len(refs[1]) / len(refs[0])]))
    assert alone.rows[::-1] == padded.rows


def test_other_lengths_are_compared_where_nothing_is_aligned(models, sig):
    bundle = AudioMetrics(names=MODEL_BASED, sample_rate=RATE, models=models)
    bundle.append(["a"], [sig], [sig[:30_000]])
    assert set(bundle.rows[0]) > {"utmos", "dwer", "sim", "sim_strict"}
    aligned = AudioMetrics(names=["sim", "mel_distance"], sample_rate=RATE, models=models)
    with pytest.raises(ValueError, match="same number of samples for mel_distance"):
        aligned.append(["a", "b"], [sig, sig], [sig, sig[:30_000]])
    assert aligned.rows == []
    with pytest.raises(ValueError, match="same length"):
        bundle.append(["a"], sig[None], sig[None, :30_000], lens=torch.ones(1))


def test_rows_and_table_hold_the_weights(models, sig, tmp_path):
    bundle = AudioMetrics(names=["dwer", "sim"], sample_rate=RATE, models=models)
    bundle.append(["good", "short"], [sig, sig[:900]], [sig, sig[:900]])
    good, short = bundle.rows
    assert list(good) == ["id", "dwer", "dcer", "dwer_words", "dcer_characters", "sim"]
    assert "sim" not in short
    assert [(failure.id, failure.metric) for failure in bundle.failures] == [("short", "sim")]
    bundle.rows[0]["sim"] = 99.0
    assert bundle.rows[0]["sim"] == good["sim"]
    bundle.write_csv(tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        written = [*csv.DictReader(file)]
    assert {key: float(value) for key, value in written[0].items() if key != "id"} == {
        key: value for key, value in good.items() if key != "id"
    }
    assert written[1]["sim"] == ""


def test_result_pins_models_packages_and_resampler(models):
    names = [*MODEL_BASED, "stoi", "pesq", "dnsmos", "mel_distance"]
    bundle = AudioMetrics(names=names, sample_rate=RATE, models=models)
    lines = bundle.models
    computed = set(names) - set(bundle.not_computed) - {"mel_distance"}
    assert set(lines) == computed | {"resampler"}
    for name in computed - {"stoi", "pesq"}:
        assert "sha256 " in lines[name] and "\n" not in lines[name]
    assert "normalizer.json sha256" in lines["dwer"] and "EnglishTextNormalizer" in lines["dwer"]
    assert "embedding_model.ckpt" in lines["sim_strict"]
    assert str(models.speaker) in lines["sim"] and "transformers " in lines["sim"]
    assert "sinc_interp_hann" in lines["resampler"]


def test_other_weights_have_another_hash(models, tmp_path):
    lines = [
        AudioMetrics(
            names=["utmos"], sample_rate=RATE, models=ScoreModels(utmos=save_utmos(folder, gain=g))
        ).models["utmos"].rpartition(" ")[2]
        for folder, g in ((tmp_path / "a", 1.0), (tmp_path / "b", 1.0), (tmp_path / "c", 2.0))
    ]  # fmt: skip
    assert lines[0] == lines[1] != lines[2] and len(lines[0]) == 16


def test_weights_that_do_not_load_are_named_and_the_rest_goes_on(models, sig, tmp_path, caplog):
    broken = save_whisper(tmp_path / "whisper")
    (broken / "model.safetensors").write_bytes(b"not weights")
    known_metrics._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        bundle = AudioMetrics(
            names=["dwer", "mel_distance"], sample_rate=RATE, models=models._replace(asr=broken)
        )
        bundle.append(["a", "b"], [sig, sig], [sig, sig])
    assert bundle.summarize() == {"mel_distance": 0.0}
    assert "--asr_model FOLDER" in bundle.not_computed["dwer"]
    assert "\n" not in bundle.not_computed["dwer"] and bundle.failures == []
    assert sum("dwer is not computed" in record.message for record in caplog.records) == 1
    assert "dwer" not in bundle.models
    bundle.clear()
    assert bundle.not_computed.keys() == {"dwer"}


@pytest.mark.parametrize("field", ["utmos", "asr", "speaker", "speaker_strict"])
def test_misspelt_folder_is_refused_at_once(models, field, tmp_path):
    wrong = models._replace(**{field: tmp_path / "misspelt"})
    with pytest.raises(FileNotFoundError, match=f"misspelt does not exist.*--{field}_model"):
        AudioMetrics(names=MODEL_BASED, sample_rate=RATE, models=wrong)


def test_ranks_share_models_scores_and_what_did_not_load(models, tmp_path):
    broken = save_whisper(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    arguments = (str(tmp_path / "store"), models, models._replace(asr=broken), tmp_path)
    other = torch.multiprocessing.get_context("spawn").Process(
        target=_score_on_rank, args=(1, *arguments)
    )
    other.start()
    _score_on_rank(0, *arguments)
    other.join()
    assert other.exitcode == 0


def _append_three(bundle: AudioMetrics) -> None:
    refs = [add_noise(voice(seconds), snr_db=10) for seconds in (1.0, 1.5, 2.0)]
    bundle.append([*"abc"], refs, [add_noise(ref, snr_db=0) for ref in refs])


def _score_on_rank(
    rank: int, store: str, good: ScoreModels, broken: ScoreModels, folder: Path
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    names = ["dwer", "mel_distance"]
    alone = AudioMetrics(names=names, sample_rate=RATE, models=good)
    shared = AudioMetrics(names=names, sample_rate=RATE, rank=rank, world_size=2, models=good)
    for bundle in (alone, shared):
        _append_three(bundle)
    assert len(shared.rows) == 2 - rank
    shared.gather()
    assert shared.summarize() == pytest.approx(alone.summarize(), rel=1e-6)
    assert [row["dwer_words"] for row in shared.rows] == [row["dwer_words"] for row in alone.rows]
    lacking = AudioMetrics(
        names=names, sample_rate=RATE, rank=rank, world_size=2, models=(good, broken)[rank]
    )
    _append_three(lacking)
    lacking.gather()
    assert set(lacking.summarize()) == {"mel_distance"}
    assert "broken" in lacking.not_computed["dwer"]
    assert [set(row) for row in lacking.rows] == [{"id", "mel_distance"}] * 3
    lacking.write_csv(folder / f"{rank}.csv")
    with open(folder / f"{rank}.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [*"abc"]
    torch.distributed.destroy_process_group()
