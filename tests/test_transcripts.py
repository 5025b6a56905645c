"""dWER and dCER: known edits, how Whisper is asked, languages, long audio, what is missing."""

import json
import shutil
import socket
import time

import pytest
import torch
from huggingface_hub import constants

from recipes.common import score_models
from recipes.common.score_models import DEFAULT_MODELS
from recipes.common.scoring import MissingWeightsError, ScoreError
from recipes.common.transcripts import (
    Transcriber,
    describe_transcriber,
    dwer,
    find_transcriber,
    load_transcriber,
    text_errors,
)
from tests.scores import RATE, add_noise, voice
from tests.tiny_checkpoints import COMMIT, put_into_hub_cache, save_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return save_whisper(tmp_path_factory.mktemp("asr") / "whisper")


@pytest.fixture(scope="module")
def english_folder(tmp_path_factory):
    torch.manual_seed(1)
    return save_whisper(tmp_path_factory.mktemp("asr") / "english", multilingual=False)


@pytest.fixture
def transcriber(folder) -> Transcriber:
    return load_transcriber(folder, device="cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty cache of the Hugging Face hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(score_models, "_refused", {})
    return tmp_path / "cache"


@pytest.fixture
def prompts(transcriber):
    """Token ids that the decoder starts from, of each transcription."""
    seen = []

    def note(module, arguments, options):
        ids = options["input_ids"][0].tolist()
        if len(ids) > 1:
            seen.append(transcriber.tokenizer.convert_ids_to_tokens(ids))

    decoder = transcriber.model.get_decoder()
    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    ("ref", "hyp", "edits", "characters"),
    [
        ("a cat sat", "a cat sat", 0, 0),
        ("a cat sat", "a bat sat", 1, 1),
        ("a cat sat", "a sat", 1, 4),
        ("a cat sat", "the cat sat on", 2, 6),
        ("a cat sat", "", 3, 9),
    ],
)
def test_known_edits(ref, hyp, edits, characters):
    errors = text_errors(ref, hyp)
    assert (errors.words, errors.characters) == (3, 9)
    assert errors.dwer == pytest.approx(edits / 3)
    assert errors.dcer == pytest.approx(characters / 9)


@pytest.mark.parametrize("empty", ["", "  "])
def test_target_without_words_has_no_error_rate(empty):
    with pytest.raises(ScoreError, match="no words"):
        text_errors(empty, "a cat")


def test_silent_model_is_a_failure_of_the_utterance(tmp_path):
    mute = load_transcriber(save_whisper(tmp_path / "mute", says=""), device="cpu")
    sig = voice(1.0)
    assert mute(sig) == ""
    with pytest.raises(ScoreError, match="transcript of the target has no words"):
        dwer(sig, sig, sample_rate=RATE, transcriber=mute)


def test_same_audio_has_no_errors_and_other_audio_has(transcriber):
    sig = voice(2.0)
    same = dwer(sig, sig.clone(), sample_rate=RATE, transcriber=transcriber)
    assert same.dwer == same.dcer == 0 and same.words >= 1 and same.characters > same.words
    other = dwer(sig, add_noise(sig, snr_db=0), sample_rate=RATE, transcriber=transcriber)
    assert other.dcer > 0
    assert (other.words, other.characters) == (same.words, same.characters)


def test_transcripts_are_deterministic_and_made_once(folder, transcriber):
    sig = add_noise(voice(2.0), snr_db=5)
    again = load_transcriber.__wrapped__(folder, device="cpu")
    calls = []
    again.model.get_encoder().register_forward_pre_hook(lambda *_: calls.append(1))
    assert again(sig) == transcriber(sig)
    assert again(sig.clone()) == again(sig) and len(calls) == 1
    again(sig, language="de")
    assert len(calls) == 2


def test_model_is_told_language_and_task(transcriber, prompts):
    for language in ("en", "nl", "pt"):
        transcriber(voice(1.1), language=language)
    assert prompts == [
        ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
        for language in ("en", "nl", "pt")
    ]


def test_model_is_frozen_in_float32(transcriber):
    assert not transcriber.model.training
    parameters = list(transcriber.model.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters)


@pytest.mark.parametrize("kind", ["folder", "english_folder"])
def test_checkpoint_cannot_ask_for_more_than_greedy_decoding(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "generation_config.json").read_text())
    config |= {
        "num_beams": 3,
        "compression_ratio_threshold": 1.0,
        "logprob_threshold": 9.0,
        "no_speech_threshold": 0.0,
        "condition_on_prev_tokens": True,
        "repetition_penalty": 50.0,
        "no_repeat_ngram_size": 1,
        "max_length": 6,
        "forced_decoder_ids": [[1, 70], [2, 71]],
    }
    (other / "generation_config.json").write_text(json.dumps(config))
    architecture = json.loads((other / "config.json").read_text())
    architecture |= {key: config[key] for key in ("forced_decoder_ids", "repetition_penalty")}
    (other / "config.json").write_text(json.dumps(architecture))
    sig = add_noise(voice(1.5), snr_db=5)
    texts = [load_transcriber(source, device="cpu")(sig) for source in (folder, other)]
    assert texts[0] == texts[1]


def test_suppressed_tokens_of_the_checkpoint_are_never_said(folder, transcriber, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "generation_config.json").read_text())
    sig = add_noise(voice(1.5), snr_db=5)
    said = transcriber(sig).replace(" ", "")[0]
    config["suppress_tokens"] = [transcriber.tokenizer.convert_tokens_to_ids(said)]
    (other / "generation_config.json").write_text(json.dumps(config))
    assert said not in load_transcriber(other, device="cpu")(sig)


def test_unknown_language_is_a_failure_of_the_utterance(transcriber, english_folder):
    with pytest.raises(ScoreError, match="does not know the language 'xx'"):
        transcriber(voice(1.0), language="xx")
    english = load_transcriber(english_folder, device="cpu")
    with pytest.raises(ScoreError, match="does not know the language 'de'"):
        english(voice(1.0), language="de")


def test_model_of_english_alone_is_not_asked_for_a_language(english_folder):
    english = load_transcriber(english_folder, device="cpu")
    assert not english.is_multilingual
    sig = voice(1.0)
    assert dwer(sig, sig, sample_rate=RATE, transcriber=english).dwer == 0


@pytest.mark.parametrize("seconds", [30.0, 31.0, 61.0])
def test_long_audio_is_cut_into_equal_pieces(transcriber, prompts, seconds):
    sig = add_noise(voice(seconds), snr_db=10)
    number = -(-len(sig) // (30 * RATE))
    pieces = sig.tensor_split(number)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    text = transcriber(sig)
    assert len(prompts) == number
    assert text.split() == " ".join(transcriber(piece) for piece in pieces).split()


def test_english_is_normalised_as_whisper_does(transcriber):
    assert transcriber.normalize("Mr. Colour's  two, um cats!", language="en") == (
        "mister color is 2 cats"
    )
    assert transcriber.normalize("Über, zwei Colour!", language="de") == "über zwei colour"
    assert transcriber.normalize("你好", language="zh") == "你 好"


def test_other_rates_are_resampled(transcriber):
    sig = voice(1.0, sample_rate=24_000)
    errors = dwer(sig, sig, sample_rate=24_000, transcriber=transcriber)
    assert errors.dwer == 0
    with pytest.raises(ScoreError, match="empty"):
        dwer(sig, sig[:0], sample_rate=24_000, transcriber=transcriber)


def test_cached_checkpoint_is_used_without_the_network(folder, cache, monkeypatch):
    put_into_hub_cache(folder, cache, "openai/whisper-small")

    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = find_transcriber("openai/whisper-small")
    assert found.revision == COMMIT and found.folder.name == COMMIT
    assert f"openai/whisper-small, revision {COMMIT}, model.safe" in describe_transcriber(
        "openai/whisper-small"
    )
    sig = voice(1.0)
    loaded = load_transcriber(f"openai/whisper-small@{COMMIT}", device="cpu")
    assert loaded(sig) == load_transcriber(folder, device="cpu")(sig)


def test_offline_never_asks_the_network(cache, monkeypatch):
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingWeightsError, match="forbidden; fetch them with `hf download open"):
        find_transcriber(DEFAULT_MODELS.asr)
    assert asked == []


def test_incomplete_cache_is_missing_weights(folder, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot = put_into_hub_cache(folder, cache, "openai/whisper-small")
    (snapshot / "generation_config.json").unlink()
    with pytest.raises(MissingWeightsError, match="hf download openai/whisper-small"):
        find_transcriber("openai/whisper-small")


def test_unreachable_hub_is_named(cache, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's attempts
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    counts = []
    for _ in range(2):
        with pytest.raises(MissingWeightsError, match="cannot be fetched .*; fetch them with"):
            find_transcriber(DEFAULT_MODELS.asr)
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0  # no answer is waited for once a process


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors or pytorch"),
        (lambda f: (f / "normalizer.json").unlink(), "copy that of openai/whisper-small"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "holds no Whisper that loads"),
        (lambda f: (f / "config.json").write_text("{}"), "holds no Whisper that loads"),
    ],
    ids=["no weights", "no normaliser", "broken tokenizer", "other model"],
)
def test_wrong_folder_is_named_in_one_line(folder, tmp_path, change, reason):
    other = shutil.copytree(folder, tmp_path / "other")
    change(other)
    with pytest.raises(MissingWeightsError, match=reason) as caught:
        load_transcriber(other, device="cpu")
    assert "\n" not in str(caught.value) and str(other) in str(caught.value)


def test_outdated_generation_config_is_named(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "generation_config.json").read_text())
    del config["lang_to_id"]
    (other / "generation_config.json").write_text(json.dumps(config))
    with pytest.raises(MissingWeightsError, match="no lang_to_id"):
        load_transcriber(other, device="cpu")
