"""Every downstream task learns its toy problem from its real YAML, and what it writes down."""

import csv
import json
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from recipes.common.dataio import collate
from recipes.common.files import read_json
from recipes.common.shards import open_shards
from recipes.reporting.measures import MEASURES
from recipes.reporting.runs import find_runs
from tests.level_codec import LEVELS, Levels
from tests.stages import fit_one, start
from tests.tasks import build, run, write_mixtures, write_noisy, write_spoken
from tests.tiny_checkpoints import save_xvector

EPOCHS = {"number_of_epochs": 60, "valid_interval_epochs": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def spoken(folder) -> Path:
    return write_spoken(folder / "spoken")


@pytest.fixture(scope="module")
def asr_run(spoken, folder) -> Path:
    run("asr", spoken, folder / "asr", **EPOCHS)
    return folder / "asr"


@pytest.fixture(scope="module")
def separation_run(folder) -> Path:
    corpus = write_mixtures(folder / "mixtures")
    run("separation", corpus, folder / "separation", number_of_epochs=90, valid_interval_epochs=90)
    return folder / "separation"


@pytest.fixture(scope="module")
def tts_run(spoken, folder) -> Path:
    speaker_model = save_xvector(folder / "xvector")
    options = {"speaker_model": speaker_model, "num_audio_samples": 8, "top_p": 0.5}
    options |= {"number_of_epochs": 90, "valid_interval_epochs": 90}
    run("tts", spoken, folder / "tts", **options)
    return folder / "tts"


def results_of(folder: Path) -> dict:
    return read_json(folder / "metrics.json")["test"]


def toks_of(path: Path) -> Tensor:
    sig, _ = soundfile.read(path, dtype="float32")
    return Levels().sig_to_toks(torch.from_numpy(sig)[None])[0, :, 0]


def test_recognizer_makes_no_error(asr_run):
    assert results_of(asr_run)["wer"] == results_of(asr_run)["cer"] == 0
    with open(asr_run / "evaluation/utterances.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(row["hyp_text"] == row["ref_text"] != "" for row in rows)
    assert "WER 0.00" in (asr_run / "wer_test.txt").read_text()


def test_byte_pairs_of_several_codebooks_are_recognized_as_well(spoken, folder):
    options = {"unit": "bpe", "vocabulary_size": 10, "num_codebooks": 2, **EPOCHS}
    metrics = run("asr", spoken, folder / "bpe", **options)
    assert metrics["test"]["wer"] == 0
    weights = [metrics["test"][f"codebook_weight_{k}"] for k in range(2)]
    assert sum(weights) == pytest.approx(1)
    assert weights[0] > 0.55, "letters are told apart by the first codebook alone"


def test_speakers_are_identified(spoken, folder):
    test = run("speaker", spoken, folder / "speaker", **EPOCHS)["test"]
    assert test["error"] == 0
    assert test["error_of_most_frequent"] == 0.5
    evaluation = read_json(folder / "speaker/evaluation/metrics.json")
    assert evaluation["scores"]["si_error"]["mean"] == 0


def test_noise_is_removed_token_by_token(folder):
    corpus = write_noisy(folder / "noisy")
    options = {"number_of_epochs": 120, "valid_interval_epochs": 120, "num_audio_samples": 8}
    test = run("enhancement", corpus, folder / "enhancement", **options)["test"]
    assert test["accuracy"] == 1
    assert test["hyp_mel_distance"] == 0 < test["input_mel_distance"]


def test_voices_are_separated_in_the_order_of_the_targets(separation_run):
    test = results_of(separation_run)
    assert test["accuracy"] == 1
    assert test["hyp_mel_distance"] == 0 < test["input_mel_distance"]
    scores = read_json(separation_run / "evaluation/metrics.json")["scores"]
    assert scores["hyp_mel_distance"]["utterances"] == 16, "both voices of 8 mixtures"


def test_voices_are_separated_from_continuous_features(folder, separation_run):
    options = {"read": "features", "number_of_epochs": 90, "valid_interval_epochs": 90}
    corpus = folder / "mixtures"
    test = run("separation", corpus, folder / "features", **options)["test"]
    assert test["accuracy"] == 1


def test_speech_is_that_of_the_training_set_and_ends_by_itself(tts_run):
    assert results_of(tts_run)["not_ended"] == 0
    samples = sorted((tts_run / "samples/test").glob("*"))
    assert len(samples) == 8
    for sample in samples:
        toks = toks_of(sample / "hyp.wav")
        assert toks.tolist() == toks_of(sample / "ref.wav").tolist(), sample.name
    with open(tts_run / "evaluation/utterances.csv", newline="") as file:
        assert {row["length_ratio"] for row in csv.DictReader(file)} == {"1.0"}


def test_a_report_finds_the_evaluations_in_the_trainings(asr_run, separation_run, tts_run):
    found = find_runs([asr_run, separation_run, tts_run])
    assert len(found.trainings) == 3
    tasks = {evaluation.task: evaluation for evaluation in found.evaluations}
    assert set(tasks) == {"asr", "separation", "tts"}
    assert tasks["asr"].scores["asr_wer"].mean == 0
    assert tasks["asr"].dataset_name == "librispeech460"
    assert tasks["asr"].codec["bitrate"] == 50 * 4
    assert [start.command for start in tasks["asr"].starts][0].startswith("python")
    (sample, *_) = tasks["separation"].samples().values()
    assert set(sample) == {"ref", "hyp", "input"}
    steps = [json.loads(line) for line in (asr_run / "steps.jsonl").read_text().splitlines()]
    assert steps[0]["ctc"] > 1 > steps[-1]["ctc"]


def test_shards_are_all_that_is_needed_where_nothing_is_decoded(asr_run, folder):
    tokens = asr_run / "tokens"
    assert open_shards(tokens).subsets == ("train", "valid", "test")
    missing_codec = {"codec": "!include:codec/focalcodec_50hz.yaml", "tokens_folder": tokens}
    test = run("asr", None, folder / "from_shards", **missing_codec, **EPOCHS)["test"]
    assert test == results_of(asr_run), "the same tokens give the same run"


def test_loss_of_a_recognizer_is_the_mean_of_utterances_a_unit(spoken, folder):
    """As torch's own mean, which SpeechBrain takes, too; units have an utterance's own length."""
    brain, train, *_ = build("asr", spoken, folder / "loss")
    batch = collate([train.dataset[i] for i in (0, 7, 3)])
    (terms, count), log_probs = brain.loss_terms(batch), brain._log_probs(batch)
    lens = [torch.tensor([len(row) for row in rows]) for rows in (batch.units, batch.text)]
    assert (lens[0] >= lens[1]).all() and len(lens[0].unique()) > 1
    num_toks = (batch.toks.lengths * batch.toks.data.shape[1]).round().long()
    units = torch.tensor([unit for row in batch.units for unit in row])
    expected = ctc_loss(log_probs.transpose(0, 1), units, num_toks, lens[0])
    assert terms["ctc"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert count == 3


def test_a_text_is_as_long_as_its_characters(tts_run, spoken, folder):
    options = {"speaker_model": folder / "xvector", "tokens_folder": tts_run / "tokens"}
    brain, train, *_ = build("tts", spoken, folder / "prompt", **options)
    batch = collate([train.dataset[i] for i in (0, 7, 3)])
    texts = [train.dataset.data[utt_id]["row"]["text"] for utt_id in batch.id]
    expected = [len(brain.task.tokenizer.encode(text)) for text in texts]
    assert brain._prompt(batch)["num_chars"].tolist() == expected


def test_every_score_of_a_task_has_a_title_in_reports(asr_run, separation_run, tts_run):
    for run_folder in (asr_run, separation_run, tts_run):
        for name in read_json(run_folder / "evaluation/metrics.json")["scores"]:
            assert name in MEASURES or name.partition("_")[2] in MEASURES, name


def test_features_are_computed_in_full_precision(folder, separation_run, monkeypatch):
    in_half_precision = []

    def noted(codec, sig):
        in_half_precision.append(torch.is_autocast_enabled("cpu"))
        return torch.nn.functional.one_hot(codec._sig_to_toks(sig)[..., 0], LEVELS).float()

    monkeypatch.setattr(Levels, "_sig_to_feats", noted)
    options = {"read": "features", "precision": "bf16"}
    brain, train, *_ = build("separation", folder / "mixtures", folder / "half", **options)
    start(brain)
    in_half_precision.clear()
    fit_one(brain, next(iter(train)))
    brain.run_log.close()
    assert in_half_precision == [False] * 4, "each of a batch, outside of autocast"
