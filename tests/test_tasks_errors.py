"""What a downstream task cannot be trained on is named, or left out and counted."""

import json
from pathlib import Path

import numpy as np
import pytest
import speechbrain as sb
import torch

from recipes.common.files import read_json
from recipes.downstream.experiment import data_hash, make_dataset
from recipes.train_asr import num_steps
from tests.level_codec import Levels, write_toks
from tests.tasks import build, run, write_mixtures, write_noisy, write_spoken
from tests.tiny_checkpoints import save_whisper, save_xvector


@pytest.fixture
def spoken(tmp_path) -> Path:
    return write_spoken(tmp_path / "spoken")


@pytest.fixture
def logged(tmp_path):
    """Give what the run has logged so far."""
    return lambda: (tmp_path / "run/log.txt").read_text()


def rewrite(corpus: Path, name: str, text: str) -> None:
    (path,) = corpus.glob(f"{name}.txt")
    path.write_text(text)


# Speech recognition


def test_an_empty_transcript_is_no_transcript_and_the_run_goes_on(spoken, tmp_path, logged):
    rewrite(spoken, "train/1/1/1-1-0000", "")
    rewrite(spoken, "test/1/1/1-1-0000", "")
    metrics = run("asr", spoken, tmp_path / "run")
    assert metrics["test"]["wer"] > 0
    assert "left out 1 of 8 utterances of train: 1-1-0000: there is no transcript" in logged()


def test_a_transcript_without_words_is_learnt_as_silence_and_counts_insertions(spoken, tmp_path):
    for split in ("train", "test"):
        rewrite(spoken, f"{split}/1/1/1-1-0000", "?!")
    run("asr", spoken, tmp_path / "run", lr=0.05, number_of_epochs=3)
    evaluation = read_json(tmp_path / "run/evaluation/metrics.json")
    (failure,) = evaluation["failures"]
    assert failure["id"] == "1-1-0000" and "no words" in failure["reason"]
    assert evaluation["scores"]["asr_wer"]["utterances"] == 7


def test_ctc_that_cannot_align_is_refused_with_the_numbers(spoken, tmp_path):
    rewrite(spoken, "train/1/1/1-1-0000", 40 * "ab")
    with pytest.raises(ValueError) as error:
        build("asr", spoken, tmp_path / "run")
    for part in ("1 of 8 utterances of train", "CTC needs 81 tokens", "at 50 Hz", "--unit bpe"):
        assert part in str(error.value)
    assert not (tmp_path / "run/run.json").exists(), "the folder is free for a corrected command"


def test_the_corrected_command_has_its_own_units_of_text(spoken, tmp_path):
    rewrite(spoken, "train/1/1/1-1-0000", 40 * "ab")
    with pytest.raises(ValueError, match="--unit bpe"):
        build("asr", spoken, tmp_path / "run")
    options = {"unit": "bpe", "vocabulary_size": 11, "max_infeasible": 0.2}
    corrected = build("asr", spoken, tmp_path / "run", **options)
    assert corrected.brain.task.tokenizer.num_units == 11
    assert len(corrected.brain.task.tokenizer.encode(40 * "ab")) < 80


def test_what_ctc_cannot_align_has_errors_in_a_test_and_no_loss(spoken, tmp_path):
    rewrite(spoken, "test/1/1/1-1-0000", 40 * "ab")
    metrics = run("asr", spoken, tmp_path / "run")
    scores = read_json(tmp_path / "run/evaluation/metrics.json")["scores"]
    assert scores["asr_wer"]["utterances"] == 8
    # The same utterances but for this one, whose share of the mean would be the eighth of 0.
    valid = metrics["valid"]["ctc"]
    assert metrics["test"]["ctc"] == pytest.approx(valid, rel=0.05)


def test_a_few_utterances_that_ctc_cannot_align_may_be_left_out(spoken, tmp_path, logged):
    rewrite(spoken, "train/1/1/1-1-0000", 40 * "ab")
    _, train, *_ = build("asr", spoken, tmp_path / "run", max_infeasible=0.2)
    assert len(train.dataset) == 7
    assert "left out 1 of 8 utterances of train: 1-1-0000: CTC needs" in logged()


def test_repeated_units_need_a_blank_between_them():
    assert num_steps([]) == 0
    assert num_steps([3, 4, 3]) == 3
    assert num_steps([3, 3, 3, 4, 4]) == 8


def test_more_byte_pairs_than_the_texts_have_are_refused(spoken, tmp_path):
    with pytest.raises(ValueError, match="vocabulary_size 1000 units .*--unit char"):
        build("asr", spoken, tmp_path / "run", unit="bpe")


def test_a_corpus_without_texts_is_refused(spoken, tmp_path):
    for path in spoken.glob("train/*/*/*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="8 of 8 utterances of train: .* no transcript"):
        build("asr", spoken, tmp_path / "run")


# Classification


def test_a_label_that_was_never_trained_on_is_named(spoken, tmp_path):
    write_toks(spoken / "test/stranger/1/stranger-1-0000.wav", [1, 2, 3, 4])
    with pytest.raises(ValueError, match="test has 1 speaker label.* 'stranger' of stranger-1-000"):
        build("speaker", spoken, tmp_path / "run")


def test_a_label_that_the_corpus_has_not_is_named(spoken, tmp_path):
    with pytest.raises(ValueError, match="8 of 8 utterances of train: .* no label 'emotion'"):
        build("speaker", spoken, tmp_path / "run", label="emotion")


# Enhancement and separation


def test_one_voice_cannot_be_separated_into_two(tmp_path):
    corpus = write_noisy(tmp_path / "noisy")
    with pytest.raises(ValueError, match="it has 1 of 2 targets; choose a dataset of mixtures"):
        build("enhancement", corpus, tmp_path / "run", num_sources=2)


def test_what_can_be_read_is_said(tmp_path):
    corpus = write_mixtures(tmp_path / "mixtures")
    with pytest.raises(ValueError, match="read must be tokens or features, got 'spectrum'"):
        build("separation", corpus, tmp_path / "run", read="spectrum")
    assert not (tmp_path / "run/tokens").exists(), "nothing was tokenised for a mistake"


# Speech from text


@pytest.fixture
def speaker_model(tmp_path) -> Path:
    return save_xvector(tmp_path / "xvector")


def test_utterances_longer_than_the_model_are_left_out(spoken, speaker_model, tmp_path, logged):
    options = {"speaker_model": speaker_model, "max_positions": 34, "num_audio_samples": 8}
    metrics = run("tts", spoken, tmp_path / "run", **options)
    assert "positions, and max_positions is 34" in logged()
    trained = json.loads((tmp_path / "run/train.json").read_text())
    left = int(logged().partition("left out ")[2].split()[0])
    assert 0 < left < len(trained)
    assert metrics["test"]["cross_entropy"] > 0


def test_metrics_that_compare_samples_are_refused(spoken, speaker_model, tmp_path):
    options = {"speaker_model": speaker_model, "metrics": "[stoi]"}
    with pytest.raises(ValueError, match="stoi compare sample by sample"):
        build("tts", spoken, tmp_path / "run", **options)


def test_a_misspelt_metric_is_named(spoken, speaker_model, tmp_path):
    with pytest.raises(ValueError, match=r"unknown metrics \['utmoss'\]; known are"):
        build("tts", spoken, tmp_path / "run", speaker_model=speaker_model, metrics="[utmoss]")


def test_speaker_vectors_need_audio_or_a_folder(spoken, speaker_model, tmp_path):
    build("asr", spoken, tmp_path / "first")
    options = {"tokens_folder": tmp_path / "first/tokens", "num_audio_samples": 0}
    with pytest.raises(ValueError, match="pass --data_folder CORPUS, or --vectors_folder"):
        build("tts", None, tmp_path / "run", speaker_model=speaker_model, **options)


def test_both_protocols_are_reported(spoken, speaker_model, tmp_path):
    asr = save_whisper(tmp_path / "whisper")
    options = {
        "speaker_model": speaker_model,
        "metrics": "[sim]",
        "score_models": f"{{asr: {asr}, speaker: {speaker_model}}}",
        "paper_protocol": True,
        "max_generated_s": 0.34,
        "dataset_options": "{train_splits: [train], valid_splits: [dev], test_splits: [test], "
        "max_test_utterances: 3}",
    }
    run("tts", spoken, tmp_path / "run", **options | {"paper_protocol": False})
    assert not (tmp_path / "run/evaluation_paper").exists()
    # The paper's protocol may be asked for when the run has ended.
    run("tts", spoken, tmp_path / "run", **options)
    honest, paper = (
        read_json(tmp_path / "run" / name / "metrics.json")
        for name in ("evaluation", "evaluation_paper")
    )
    assert honest["scores"]["hyp_sim"]["utterances"] == 3
    assert paper["scores"]["hyp_sim"]["utterances"] == 3
    assert honest["settings"] != paper["settings"]
    assert honest["scores"]["hyp_sim"] != paper["scores"]["hyp_sim"]
    assert honest["scores"]["not_ended"]["mean"] > 0, "0.34 s are too short to end by itself"
    lengths = honest["scores"]["length_ratio"]
    assert lengths["mean"] < 1
    assert not {"not_ended", "length_ratio"} & paper["scores"].keys(), "of the other samples"
    written = tmp_path / "run/samples/test"
    for path in written.glob("*/*.wav"):
        if path.stem in ("hyp", "paper"):
            name = "evaluation" if path.stem == "hyp" else "evaluation_paper"
            copy = tmp_path / "run" / name / "samples" / path.parent.name / "hyp.wav"
            assert copy.read_bytes() == path.read_bytes()
    assert len(list(written.glob("*/paper.wav"))) == 2
    # A test of later weights leaves nothing of the earlier ones.
    options |= {"number_of_epochs": 2, "paper_protocol": False, "num_audio_samples": 1}
    run("tts", spoken, tmp_path / "run", **options | {"metrics": "[]"})
    assert not (tmp_path / "run/evaluation_paper").exists()
    assert len(list((tmp_path / "run/evaluation/samples").iterdir())) == 1


def test_without_a_recognizer_the_papers_protocol_is_not_computed(
    spoken, speaker_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"speaker_model": speaker_model, "metrics": "[sim]", "paper_protocol": True}
    options |= {"score_models": f"{{speaker: {speaker_model}}}", "max_generated_s": 0.1}
    run("tts", spoken, tmp_path / "run", **options)
    paper = read_json(tmp_path / "run/evaluation_paper/metrics.json")
    assert not [name for name in paper["scores"] if name.startswith("hyp_")]
    assert "fewest word errors: asr weights openai/whisper-small" in paper["not_computed"]["sim"]


# All tasks


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(ValueError, match="pass --data_folder CORPUS, or --tokens_folder"):
        build("asr", None, tmp_path / "run")


def test_scores_need_audio(spoken, tmp_path):
    corpus = write_noisy(tmp_path / "noisy")
    run("enhancement", corpus, tmp_path / "first")
    tokens = tmp_path / "first/tokens"
    with pytest.raises(ValueError, match="data_folder is null; pass --data_folder, or --metrics"):
        build("enhancement", None, tmp_path / "second", tokens_folder=tokens)
    options = {"tokens_folder": tokens, "metrics": "[]", "num_audio_samples": 0}
    assert build("enhancement", None, tmp_path / "third", **options)


def test_tokens_of_another_codec_are_refused(spoken, tmp_path):
    build("speaker", spoken, tmp_path / "one")
    options = {"tokens_folder": tmp_path / "one/tokens", "num_codebooks": 2}
    with pytest.raises(ValueError, match="Levels"):
        build("speaker", spoken, tmp_path / "two", **options)


def test_a_run_does_not_go_on_with_other_tokens(spoken, tmp_path):
    tokens = {"tokens_folder": tmp_path / "tokens"}
    build("speaker", spoken, tmp_path / "run", **tokens)
    other = write_spoken(tmp_path / "other", number=6)
    build("speaker", other, tmp_path / "elsewhere", tokens_folder=tmp_path / "other_tokens")
    changed = {"tokens_folder": tmp_path / "other_tokens"}
    with pytest.raises(ValueError, match="begun with other utterances.* --on_changed_data accept"):
        build("speaker", None, tmp_path / "run", **changed)
    begun = read_json(tmp_path / "run/run.json")
    build("speaker", None, tmp_path / "run", on_changed_data="accept", **changed)
    accepted = read_json(tmp_path / "run/run.json")
    assert accepted["data"] != begun["data"] and accepted["codec"] == begun["codec"]


def test_all_that_is_trained_on_is_part_of_the_datas_fingerprint():
    toks = np.arange(6, dtype=np.uint16).reshape(3, 2)
    row = {"duration": 1.0, "text": "a", "speaker": "s", "toks": toks, "target_toks": toks}
    row["vector"] = np.ones(3, dtype=np.float32)

    def hash_of(**changes):
        dataset = make_dataset({"one": {**row, **changes}}, items={"toks": lambda row: row["toks"]})
        return data_hash({stage: dataset for stage in sb.Stage})

    assert hash_of() == hash_of(wav="/elsewhere/one.wav", toks=toks.copy())
    changes = [{"duration": 2.0}, {"text": "b"}, {"speaker": "t"}, {"vector": 2 * row["vector"]}]
    changes += [{name: toks + 1} for name in ("toks", "target_toks")]
    changes += [{"toks": toks.reshape(2, 3)}]
    assert len({hash_of(**change) for change in [{}, *changes]}) == 8


class Drawing(Levels):
    """Its decoder draws, and gives nothing of the token 0."""

    def _toks_to_sig(self, toks):
        sig = super()._toks_to_sig(toks)
        return (sig + torch.rand(sig.shape)) / (toks.amin() > 0)


def test_what_a_decoder_draws_is_that_of_the_utterance_and_what_fails_is_listed(tmp_path):
    brain, *_ = build("enhancement", write_noisy(tmp_path / "noisy"), tmp_path / "run")
    brain.codec = Drawing()
    brain.on_stage_start(sb.Stage.VALID, 1)
    toks = torch.ones(4, 1, dtype=torch.long)
    before = torch.get_rng_state()
    first = brain.decode("one", {"hyp": toks, "other": 0 * toks}, num_samples=900)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == {"hyp"} and first["hyp"].shape == (900,)
    torch.rand(3)
    assert torch.equal(brain.decode("one", {"hyp": toks}, num_samples=900)["hyp"], first["hyp"])
    assert not torch.equal(brain.decode("two", {"hyp": toks})["hyp"][:900], first["hyp"])
    (failure,) = brain._undecoded
    assert failure["id"] == "one" and "not finite" in failure["reason"]
