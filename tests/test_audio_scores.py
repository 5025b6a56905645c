"""Scores of a validation or test by prefix: names in metrics.json, and shared work."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from focalcodec.resampling import resample
from recipes.common.audio_scores import AudioScores
from recipes.common.run_log import RunLog
from recipes.common.score_models import ScoreModels, named_models
from recipes.common.scoring import MissingWeightsError
from recipes.common.transcripts import find_transcriber, load_transcriber
from tests.scores import RATE, add_noise, voice
from tests.tiny_checkpoints import save_score_models

IDS = ["a", "b"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> ScoreModels:
    return save_score_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def scores(models, tmp_path) -> AudioScores:
    run_log = RunLog(tmp_path / "run", sample_rate=RATE)
    names = ["utmos", "dwer", "sim", "sim_strict", "stft_distance"]
    scores = AudioScores(names, sample_rate=RATE, run_log=run_log, models=models)
    scores.choose("test", IDS, scored=2, written=0)
    yield scores
    run_log.close()


def _append(scores: AudioScores) -> torch.Tensor:
    sig = torch.stack([voice(2.0), add_noise(voice(2.0), snr_db=20)])
    lens = torch.tensor([1.0, 0.75])
    decoded = {"hyp": add_noise(sig, snr_db=0), "rec": add_noise(sig, snr_db=10)}
    batch = SimpleNamespace(sig=(sig, lens), id=IDS, language=["nl", "en"])
    scores.append(batch, decoded, sample_rate=RATE, subset="test", step=1, with_ref=True)
    return sig


def test_every_prefix_has_every_score(scores, models):
    _append(scores)
    summary = scores.summarize()
    assert summary.pop("not_computed") == {}
    lines = summary.pop("models")
    assert set(lines) == {"utmos", "dwer", "sim", "sim_strict", "resampler"}
    assert str(models.asr) in lines["dwer"]
    names = ["utmos", "dwer", "dcer", "sim", "sim_strict", "stft_distance"]
    assert set(summary) == {
        f"{prefix}_{name}" for prefix in ("ref", "hyp", "rec") for name in names
    }
    assert summary["ref_dwer"] == summary["ref_dcer"] == summary["ref_stft_distance"] == 0
    assert summary["ref_sim"] == pytest.approx(1) == summary["ref_sim_strict"]
    assert 0 < summary["rec_stft_distance"] < summary["hyp_stft_distance"]


def test_only_what_is_chosen_is_resampled(tmp_path):
    """Of two utterances one, to the rate of the reference."""
    run_log = RunLog(tmp_path / "run", sample_rate=RATE)
    scores = AudioScores(["stft_distance"], sample_rate=RATE, run_log=run_log)
    high = resample(voice(2.0), sample_rate=RATE, new_sample_rate=24_000).expand(2, -1)
    sig = resample(high, sample_rate=24_000, new_sample_rate=RATE)
    work = []
    for scored, written in ((1, 0), (0, 1), (2, 2), (0, 0)):
        scores.choose("valid", IDS, scored=scored, written=written)
        scores.clear()
        batch = SimpleNamespace(sig=(sig, torch.ones(2)), id=IDS, language=["en", "en"])
        options = {"sample_rate": 24_000, "subset": "valid", "step": 1, "with_ref": False}
        with FlopCounterMode(display=False) as counter:
            scores.append(batch, {"hyp": high}, **options)
        work.append(counter.flop_counts["Global"].get(torch.ops.aten.convolution, 0))
        if scored:
            assert scores.summarize()["hyp_stft_distance"] == pytest.approx(0, abs=1e-4)
    run_log.close()
    assert work[0] == work[1] > 0 and work[2:] == [2 * work[0], 0]


def test_targets_are_transcribed_once_for_all_prefixes(scores, models):
    transcriber = load_transcriber(models.asr, device="cpu")
    transcriber._remembered._results.clear()
    calls = []
    handle = transcriber.model.get_encoder().register_forward_pre_hook(lambda *_: calls.append(1))
    _append(scores)
    handle.remove()
    assert len(calls) == 2 * 3  # utterances x prefixes, the target's own among them


def test_transcripts_are_of_the_language_that_the_manifest_names(scores, models):
    transcriber = load_transcriber(models.asr, device="cpu")
    transcriber._remembered._results.clear()
    _append(scores)
    languages = [language for _, language in transcriber._remembered._results]
    assert languages == ["nl"] * 3 + ["en"] * 3


def test_misspelt_folder_stops_before_training(tmp_path, models):
    run_log = RunLog(tmp_path / "run", sample_rate=RATE)
    with pytest.raises(FileNotFoundError, match="misspelt"):
        AudioScores(
            ["dwer"],
            sample_rate=RATE,
            run_log=run_log,
            models=models._replace(asr=tmp_path / "misspelt"),
        )
    run_log.close()


def test_a_training_names_models_by_field(models, tmp_path):
    named = named_models({"asr": "/models/whisper"}, device="cuda:1")
    assert named == ScoreModels(asr="/models/whisper", device="cuda:1")
    for wrong in ({"asrr": "x"}, {"device": "cpu"}, {"asr": None}, "x", None):
        with pytest.raises(ValueError, match="utmos, asr, speaker, speaker_strict, got .*{asr: FO"):
            named_models(wrong, device="cpu")


def test_what_is_missing_names_both_options(tmp_path):
    option = "--asr_model FOLDER (in a training: --score_models '{asr: FOLDER}')"
    with pytest.raises(MissingWeightsError, match=re.escape(option)):
        find_transcriber(tmp_path)
