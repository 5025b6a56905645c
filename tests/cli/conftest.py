"""A codec that is the default of the command line."""

import pytest

from focalcodec import FocalCodec
from tests.causal_codecs import save_live_codec


@pytest.fixture
def folder(make_codec, tmp_path, monkeypatch):
    """Folder of a codec of 6 bits at 25 Hz, which is the default of the command line."""
    make_codec(factors=(2, 1, 1), code_dim=6).save_pretrained(tmp_path / "codec")
    monkeypatch.setenv("FOCALCODEC_CHECKPOINT", str(tmp_path / "codec"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "codec"


@pytest.fixture
def codec(folder):
    return FocalCodec.from_pretrained(folder)


@pytest.fixture
def live_codec(tmp_path, monkeypatch):
    """Tiny causal codec, which is the default of the command line."""
    codec = save_live_codec(tmp_path / "codec")
    monkeypatch.setenv("FOCALCODEC_CHECKPOINT", str(tmp_path / "codec"))
    monkeypatch.chdir(tmp_path)
    return codec
