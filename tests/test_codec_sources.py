"""Where adapters get packages and weights from, and one clear error where they do not."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

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
from tests.tiny_checkpoints import put_into_hub_cache
from tests.tiny_codecs import noise, write_dac, write_encodec, write_mimi

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


@pytest.fixture
def refused(hub_cache, monkeypatch):
    """Allow downloads from a network that answers nobody, and note what is asked of it."""
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network\nin tests")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the hub library's own tries
    return asked


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


def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(refused):
    with pytest.raises(FileNotFoundError, match="'hf download someone/codec'") as caught:
        find_files("someone/codec", ["config.json"])
    assert refused and "\n" not in str(caught.value)


def test_a_checkpoint_in_the_cache_of_the_hub_is_that_of_the_folder(hub_cache, refused, tmp_path):
    write_dac(tmp_path / "dac")
    put_into_hub_cache(tmp_path / "dac", hub_cache, "someone/dac")
    cached = DAC(checkpoint="someone/dac", num_codebooks=2)
    here = DAC(checkpoint=tmp_path / "dac", num_codebooks=2)
    assert (cached.model_id, here.model_id) == ("someone/dac", "dac")
    assert torch.equal(cached.sig_to_toks(noise(1, 999)), here.sig_to_toks(noise(1, 999)))
    assert refused == []


LOAD_CACHED = """
import socket, sys
asked = []
def refuse(*address, **_):
    asked.append(address)
    raise OSError("no network in tests")
socket.getaddrinfo = socket.socket.connect = refuse
from recipes.codecs.dac import DAC
from recipes.codecs.encodec import EnCodec
from recipes.codecs.mimi import Mimi
for codec in (EnCodec, DAC, Mimi):
    codec(checkpoint=f"someone/{codec.__name__}", num_codebooks=2)
sys.exit(f"the network was asked for {asked}" if asked else 0)
"""


def test_checkpoints_in_the_cache_of_the_hub_need_no_network(tmp_path, root):
    for name, write in (("EnCodec", write_encodec), ("DAC", write_dac), ("Mimi", write_mimi)):
        write(tmp_path / name)
        put_into_hub_cache(tmp_path / name, tmp_path / "home" / "hub", f"someone/{name}")
    # In a process of its own: there are questions that the hub's library asks once a process.
    hub_settings = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(hub_settings)}
    environ["HF_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-c", LOAD_CACHED]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("there", ["model.safetensors", "model.ckpt"])
def test_of_several_names_the_one_that_is_there_is_found(there, hub_cache, refused, tmp_path):
    names = ["avg/config.json", ("model.safetensors", "model.ckpt")]
    folder = write_files(tmp_path / "codec", "avg/config.json", there)
    assert find_files(folder, names) == [folder / "avg/config.json", folder / there]
    snapshot = put_into_hub_cache(folder, hub_cache, "someone/codec")
    assert find_files("someone/codec", names) == [snapshot / "avg/config.json", snapshot / there]
    assert refused == []
    (folder / there).unlink()
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors or model.ckpt; give"):
        find_files(folder, names)


def test_files_are_of_one_commit_even_if_the_branch_moves(hub_cache, tmp_path, monkeypatch):
    folder = write_files(tmp_path / "codec", "avg/config.json")
    snapshot = put_into_hub_cache(folder, hub_cache, "someone/codec")
    asked = []

    def download(repository, name, *, revision=None):
        asked.append((repository, name, revision))
        raise OSError("no network in tests")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="^avg/weights.pt of someone/codec"):
        find_files("someone/codec", ["avg/config.json", "avg/weights.pt"])
    assert asked == [("someone/codec", "avg/weights.pt", snapshot.name)]


def write_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    for checkpoint in (tmp_path / "nowhere", "no folder", "a/b/c", "a--b/c"):
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
