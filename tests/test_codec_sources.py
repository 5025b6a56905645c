"""Where adapters get packages and weights from, and one clear error where they do not."""

import importlib.util
import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.codecs.bigcodec import BigCodec
from recipes.codecs.dac import DAC
from recipes.codecs.encodec import EnCodec
from recipes.codecs.focalcodec import FocalCodec
from recipes.codecs.mimi import Mimi
from recipes.codecs.semanticodec import SemantiCodec
from recipes.codecs.sources import find_files, load_tensors
from recipes.codecs.speechtokenizer import SpeechTokenizer
from recipes.codecs.stablecodec import StableCodec
from recipes.codecs.wavtokenizer import WavTokenizer
from recipes.common.scoring import MissingPackageError
from tests.tiny_codecs import noise, write_dac, write_encodec

THROUGH_TRANSFORMERS = [EnCodec, DAC, Mimi]
OTHERS = {
    "speechtokenizer": partial(SpeechTokenizer, subfolder="avg", num_codebooks=2),
    "semanticodec": SemantiCodec,
    "wavtokenizer": partial(
        WavTokenizer, weights="w.ckpt", config_checkpoint="someone/else", config="c.yaml"
    ),
    "bigcodec": partial(BigCodec, weights="bigcodec.pt"),
    "stable_codec": partial(StableCodec, num_codebooks=2),
}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Empty cache of the hub; downloads are forbidden."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("package", OTHERS)
def test_a_missing_package_is_named_with_the_line_that_installs_it(package, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingPackageError, match=f"^{package} cannot be loaded .*; pip install"):
        OTHERS[package](checkpoint=tmp_path)


@pytest.mark.parametrize("codec", THROUGH_TRANSFORMERS)
def test_a_folder_without_files_is_named_with_what_it_lacks(codec, tmp_path):
    message = f"{tmp_path} holds no config.json, model.safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        codec(checkpoint=tmp_path, num_codebooks=2)


@pytest.mark.parametrize("codec", THROUGH_TRANSFORMERS)
def test_offline_a_hub_id_that_is_not_here_says_how_to_fetch_it(codec, hub_cache):
    message = "offline.*'hf download someone/codec'.* or give a local folder"
    with pytest.raises(FileNotFoundError, match=message):
        codec(checkpoint="someone/codec", num_codebooks=2)


def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(hub_cache, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def refuse(*_, **__):
        raise OSError("no network\nin tests")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the hub library's own tries
    with pytest.raises(FileNotFoundError, match="'hf download someone/codec'") as caught:
        find_files("someone/codec", ["config.json"])
    assert "\n" not in str(caught.value)


def test_a_checkpoint_in_the_cache_of_the_hub_needs_no_network(hub_cache, tmp_path):
    write_dac(tmp_path / "dac")
    repository, commit = hub_cache / "models--someone--dac", "0" * 40
    shutil.copytree(tmp_path / "dac", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    codec = DAC(checkpoint="someone/dac", num_codebooks=2)
    assert codec.model_id == "someone/dac"
    here = DAC(checkpoint=tmp_path / "dac", num_codebooks=2)
    assert here.model_id == "dac"
    assert torch.equal(codec.sig_to_toks(noise(1, 999)), here.sig_to_toks(noise(1, 999)))


def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    for checkpoint in (tmp_path / "nowhere", "no folder", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no folder on this machine and no hub id"):
            DAC(checkpoint=checkpoint, num_codebooks=2)


def test_focalcodec_without_files_is_refused(tmp_path, hub_cache):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        FocalCodec(checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match="someone/codec"):
        FocalCodec(checkpoint="someone/codec")


def test_weights_that_a_checkpoint_lacks_are_not_made_up(tmp_path):
    write_encodec(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = sorted(weights)[3]
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no checkpoint of EncodecModel: 1 weights are missing"):
        EnCodec(checkpoint=tmp_path, num_codebooks=2)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    write_dac(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} is no checkpoint of EncodecModel"):
        EnCodec(checkpoint=tmp_path, num_codebooks=2)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    write_dac(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=f"{tmp_path} is no checkpoint of DacModel"):
        DAC(checkpoint=tmp_path, num_codebooks=2)


def test_half_precision_is_loaded_as_float32(tmp_path):
    write_dac(tmp_path).half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    codec = DAC(checkpoint=tmp_path, num_codebooks=2)
    assert {weight.dtype for weight in codec.parameters()} == {torch.float32}


class _Stranger:
    """Something that is no tensor."""


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "tensors.pt")
    assert load_tensors(tmp_path / "tensors.pt")["weight"].sum() == 2
    torch.save({"weight": _Stranger()}, tmp_path / "objects.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "tensors.pt").read_bytes()[:100])
    for name in ("objects.pt", "cut.pt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read without running code"):
            load_tensors(tmp_path / name)
