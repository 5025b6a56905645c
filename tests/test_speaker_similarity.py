"""Speaker similarity of both kinds of models: bounds, lengths, and how weights are read."""

import shutil
import socket
import warnings

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from speechbrain.lobes.features import Fbank
from transformers import AutoModelForAudioXVector

from recipes.common import score_models
from recipes.common.score_models import DEFAULT_MODELS
from recipes.common.scoring import MissingWeightsError, ScoreError
from recipes.common.speaker_similarity import (
    SpeakerModel,
    describe_speaker_model,
    find_speaker_model,
    load_speaker_model,
    speaker_similarity,
)
from tests.scores import RATE, add_noise, voice
from tests.tiny_checkpoints import (
    COMMIT,
    put_into_hub_cache,
    save_ecapa,
    save_whisper,
    save_xvector,
    tiny_ecapa,
)

SAVE = {"speaker": save_xvector, "speaker_strict": save_ecapa}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("speaker")
    return {field: save(folder / field) for field, save in SAVE.items()}


@pytest.fixture(params=SAVE)
def field(request) -> str:
    return request.param


@pytest.fixture
def model(folders, field) -> SpeakerModel:
    return load_speaker_model(folders[field], field=field, device="cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty cache of the Hugging Face hub, on a machine that must not ask the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(score_models, "_refused", {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "cache"


def test_a_voice_is_itself_and_nothing_is_beyond(model):
    sig = voice(1.0)
    assert speaker_similarity(sig, sig.clone(), sample_rate=RATE, model=model) == pytest.approx(
        1, abs=1e-12
    )
    for other in (add_noise(sig, snr_db=0), torch.randn(RATE), torch.zeros(RATE), voice(0.7)):
        score = speaker_similarity(sig, other, sample_rate=RATE, model=model)
        assert -1 <= score < 1 - 1e-9
        reverse = speaker_similarity(other, sig, sample_rate=RATE, model=model)
        assert score == pytest.approx(reverse, abs=1e-12)


def test_similarity_is_the_cosine_of_embeddings(model):
    sig, other = voice(1.0), add_noise(voice(1.0), snr_db=3)
    a, b = model(sig), model(other)
    expected = float(a @ b / a.norm() / b.norm())
    assert speaker_similarity(sig, other, sample_rate=RATE, model=model) == pytest.approx(expected)


def test_shortest_audio_has_a_score_and_less_has_none(model):
    sig = add_noise(voice(1.0), snr_db=10)
    shortest = sig[: model.min_samples]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(shortest).isfinite().all()
    with pytest.raises(ScoreError, match="needs 0.* s of audio"):
        speaker_similarity(sig, shortest[1:], sample_rate=RATE, model=model)
    # One sample less is one frame too few, so the bound is not merely careful.
    with pytest.raises((RuntimeError, UserWarning)), warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed(shortest[1:][None])


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.full((RATE,), torch.nan)])
def test_audio_without_a_score(model, bad):
    with pytest.raises(ScoreError, match="empty|not finite"):
        speaker_similarity(voice(1.0), bad, sample_rate=RATE, model=model)


def test_an_embedding_is_made_once(model):
    calls = []
    handle = model.embed.register_forward_pre_hook(lambda *_: calls.append(1))
    sig = add_noise(voice(0.8), snr_db=7)
    for other in (0.5, 0.6):
        speaker_similarity(sig, voice(other), sample_rate=RATE, model=model)
    handle.remove()
    assert len(calls) == 3


def test_weights_are_frozen_in_float32(model):
    assert not any(module.training for module in model.embed.modules())
    assert {p.dtype for p in model.embed.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.embed.parameters())


def test_ecapa_is_speechbrain_s_arithmetic(tmp_path):
    network = tiny_ecapa()
    for module in network.modules():  # statistics of training, which a mean over a batch is not
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    folder = save_ecapa(tmp_path / "ecapa", network)
    loaded = load_speaker_model(folder, field="speaker_strict", device="cpu")
    sig = voice(1.0)
    feats = Fbank(n_mels=80)(sig[None])
    with torch.no_grad():
        expected = network(feats - feats.mean(1, keepdim=True))[0, 0]
    assert torch.equal(loaded(sig).float(), expected)


def test_yaml_of_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_speaker_model(save_ecapa(tmp_path / "ecapa"), field="speaker_strict", device="cpu")
    assert not (tmp_path / "was_run").exists()


def test_old_pickled_xvector_weights_are_read(folders, tmp_path):
    """The published file: pytorch_model.bin with weight norm by its former names."""
    old = shutil.copytree(folders["speaker"], tmp_path / "old")
    state = load_file(old / "model.safetensors")
    (old / "model.safetensors").unlink()
    names = {"parametrizations.weight.original0": "weight_g",
             "parametrizations.weight.original1": "weight_v"}  # fmt: skip
    for new, former in names.items():
        state = {key.replace(new, former): value for key, value in state.items()}
    assert any("weight_g" in key for key in state)
    del state["objective.weight"], state["classifier.weight"]  # only training needs them
    torch.save(state, old / "pytorch_model.bin")
    sig = voice(1.0)
    new, read = (
        load_speaker_model(folder, field="speaker", device="cpu")
        for folder in (folders["speaker"], old)
    )
    # float32 noise: where weights lie in memory decides which kernel multiplies them
    torch.testing.assert_close(new(sig), read(sig), atol=1e-8, rtol=1e-3)
    assert "pytorch_model.bin sha256" in describe_speaker_model(old, field="speaker")


def test_xvector_is_transformers_arithmetic(folders):
    model = AutoModelForAudioXVector.from_pretrained(folders["speaker"]).eval()
    sig = voice(1.0)
    normal = (sig - sig.mean()) / torch.sqrt(sig.var(correction=0) + 1e-7)  # do_normalize is set
    with torch.no_grad():
        expected = model(normal[None]).embeddings[0]
    loaded = load_speaker_model(folders["speaker"], field="speaker", device="cpu")
    torch.testing.assert_close(loaded(sig).float(), expected, atol=1e-5, rtol=1e-4)


def test_default_models_are_used_from_the_cache(folders, field, cache):
    name = getattr(DEFAULT_MODELS, field)
    with pytest.raises(MissingWeightsError, match=f"forbidden; fetch .*{name}`.*--{field}_model"):
        find_speaker_model(name, field=field)
    put_into_hub_cache(folders[field], cache, name)
    found = find_speaker_model(name, field=field)
    assert found.revision == COMMIT
    sig = voice(1.0)
    loaded = load_speaker_model.__wrapped__(name, field=field, device="cpu")
    here = load_speaker_model(folders[field], field=field, device="cpu")
    torch.testing.assert_close(loaded(sig), here(sig), atol=1e-8, rtol=1e-3)  # as above


def test_folder_of_something_else_is_named(field, tmp_path):
    with pytest.raises(MissingWeightsError, match=f"holds no .*--{field}_model FOLDER"):
        load_speaker_model(tmp_path, field=field, device="cpu")
    other = save_whisper(tmp_path / "whisper")
    with pytest.raises(MissingWeightsError, match="holds no speaker model that loads"):
        load_speaker_model(other, field=field, device="cpu")
    ecapa = save_ecapa(tmp_path / "ecapa")
    torch.save({"x": torch.ones(1)}, ecapa / "embedding_model.ckpt")
    with pytest.raises(MissingWeightsError, match="holds no speaker model that loads"):
        load_speaker_model(ecapa, field=field, device="cpu")
