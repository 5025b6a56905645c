"""UTMOS through a stand-in for its repository: loading, the clash of names, the network."""

import importlib
import os
import shutil
import socket
import sys

import pytest
import torch

from recipes.common import utmos as utmos_module
from recipes.common.dnsmos import models_folder
from recipes.common.score_models import DEFAULT_MODELS
from recipes.common.scoring import MissingWeightsError, ScoreError, to_16k
from recipes.common.utmos import describe_utmos, find_utmos, load_utmos, utmos
from tests.scores import RATE, skip_unless_computed, voice
from tests.tiny_checkpoints import UTMOS_WEIGHTS, save_utmos


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Empty folder of torch.hub."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(utmos_module, "_refused", {})
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch):
    """Fail a test that opens a connection, whoever would catch the error."""
    opened = []

    def refuse(*arguments, **options):
        opened.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield opened
    assert opened == []


def test_model_gets_one_utterance_at_16_khz(tmp_path):
    model = load_utmos(save_utmos(tmp_path / "clone"), device="cpu")
    sig = voice(1.0, sample_rate=24_000)
    expected = 3 + float(to_16k(sig, sample_rate=24_000).square().mean())
    assert utmos(sig, sample_rate=24_000, model=model) == pytest.approx(expected, abs=1e-6)
    assert utmos(torch.zeros(RATE), sample_rate=RATE, model=model) == 3


@pytest.mark.parametrize(
    ("sig", "reason"),
    [
        (torch.zeros(0), "empty"),
        (torch.ones(399), "25 ms"),
        (torch.full((RATE,), torch.nan), "not finite"),
    ],
    ids=["empty", "short", "nan"],
)
def test_audio_without_a_score(sig, reason, tmp_path):
    model = load_utmos(save_utmos(tmp_path / "clone"), device="cpu")
    with pytest.raises(ScoreError, match=reason):
        utmos(sig, sample_rate=RATE, model=model)


@pytest.mark.parametrize("place", ["inside", "beside", "cache", "file"])
def test_weights_are_found_where_people_put_them(place, tmp_path, hub, no_network):
    clone = save_utmos(tmp_path / "clone", gain=5.0)
    source, expected = clone, clone / UTMOS_WEIGHTS
    if place == "file":
        source = expected = (clone / UTMOS_WEIGHTS).rename(clone / "mine.pt")
    elif place != "inside":
        folder = tmp_path if place == "beside" else hub / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        expected = (clone / UTMOS_WEIGHTS).rename(folder / UTMOS_WEIGHTS)
    assert find_utmos(source).weights == (expected,)
    assert float(load_utmos(source, device="cpu").gain) == 5
    assert expected.name in describe_utmos(source)


def test_cached_repository_is_used_without_the_network(hub, no_network, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # the network may be asked, and is not
    save_utmos(hub / "tarepan_SpeechMOS_v1.2.0", gain=2.0)
    (hub / "checkpoints").mkdir()
    shutil.move(hub / "tarepan_SpeechMOS_v1.2.0" / UTMOS_WEIGHTS, hub / "checkpoints")
    load_utmos.cache_clear()
    assert float(load_utmos(DEFAULT_MODELS.utmos, device="cpu").gain) == 2
    assert "tarepan/SpeechMOS:v1.2.0, utmos22" in describe_utmos(DEFAULT_MODELS.utmos)
    load_utmos.cache_clear()


def test_offline_never_asks_the_network(hub, no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingWeightsError, match="downloads are forbidden.*clone https://github"):
        find_utmos(DEFAULT_MODELS.utmos)
    clone = save_utmos(tmp_path / "x" / "clone")
    (clone / UTMOS_WEIGHTS).unlink()
    with pytest.raises(MissingWeightsError, match=f"forbidden.*{UTMOS_WEIGHTS} into the clone"):
        find_utmos(clone)


def test_unreachable_repository_is_asked_once(hub, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for _ in range(2):
        with pytest.raises(MissingWeightsError, match="no network in this test.*--utmos_model"):
            find_utmos(DEFAULT_MODELS.utmos)
    assert len(asked) == 1


def test_weights_are_fetched_when_the_network_may_be_asked(tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    clone = save_utmos(tmp_path / "x" / "clone", gain=7.0)
    (tmp_path / "web").mkdir()
    published = (clone / UTMOS_WEIGHTS).rename(tmp_path / "web" / UTMOS_WEIGHTS)
    monkeypatch.setattr(utmos_module, "WEIGHTS_URL", published.as_uri())
    assert float(load_utmos(clone, device="cpu").gain) == 7
    assert (hub / "checkpoints" / UTMOS_WEIGHTS).is_file()


class _RunsWhenRead:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def test_weights_that_are_code_are_not_run(tmp_path):
    clone = save_utmos(tmp_path / "clone")
    torch.save({"gain": _RunsWhenRead(tmp_path / "was_run")}, clone / UTMOS_WEIGHTS)
    with pytest.raises(MissingWeightsError, match="holds no utmos22_strong that loads"):
        load_utmos(clone, device="cpu")
    assert not (tmp_path / "was_run").exists()


def test_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match="holds no hubconf.py"):
        find_utmos(tmp_path)
    clone = save_utmos(tmp_path / "clone")
    torch.save({"other": torch.ones(3)}, clone / UTMOS_WEIGHTS)
    with pytest.raises(MissingWeightsError, match="holds no utmos22_strong that loads"):
        load_utmos(clone, device="cpu")


@pytest.mark.parametrize("first", ["utmos", "dnsmos"])
def test_package_of_the_same_name_does_not_disturb(first, tmp_path, monkeypatch):
    """The wheel with the models of DNSMOS and UTMOS' repository both have a package speechmos."""
    skip_unless_computed("dnsmos")
    clone = save_utmos(tmp_path / "clone", gain=3.0)
    wheel = tmp_path / "wheel" / "speechmos"
    wheel.mkdir(parents=True)
    (wheel / "__init__.py").write_text("IS_WHEEL = True\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechmos"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(wheel.parent))
    before = importlib.import_module("speechmos") if first == "dnsmos" else None
    assert float(load_utmos(clone, device="cpu").gain) == 3
    after = importlib.import_module("speechmos")
    assert after.IS_WHEEL and before in (None, after)
    assert "speechmos.utmos22" not in sys.modules and str(clone) not in sys.path
    monkeypatch.delitem(sys.modules, "speechmos")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(wheel.parent)])
    assert (models_folder() / "sig_bak_ovr.onnx").is_file()
