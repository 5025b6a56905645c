"""Configurations of causal codecs: parts survive them, and what changes a fingerprint."""

import functools
import json

import pytest
import torch

from focalcodec import FocalCodec
from focalcodec.hub.config import build_parts, describe_parts, fingerprint
from focalcodec.mixers import LinearBlock
from tests.causal_codecs import CODECS, make_causal_codec, noise
from tests.configurations import constant, set_mixer


@pytest.fixture
def config():
    """Return what config.json holds for a tiny causal codec."""
    parts = dict(make_causal_codec(**CODECS["published"]).named_children())
    return json.loads(json.dumps(describe_parts(parts)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["encoder_config"].update(window_size=11),
        lambda c: c["encoder_config"].update(lookahead_size=2),
        lambda c: c["encoder_config"].update(causal=False),
        lambda c: c["compressor_config"].update(window_size=8),
        lambda c: c["decompressor_config"].update(window_size=8),
        lambda c: c["decompressor_config"].update(last_window_size=5),
        lambda c: c["decompressor_config"].update(lookahead_size=0),
        lambda c: c["decompressor_config"].update(lookahead_size=1),
    ],
)
def test_a_fingerprint_tells_causal_arithmetics_apart(config, edit):
    before = fingerprint(constant(config))
    edit(config)
    assert fingerprint(constant(config)) != before


def test_a_fingerprint_leaves_out_where_a_causal_training_began(config):
    before = fingerprint(constant(config))
    for part in ("compressor", "decompressor"):
        config[f"{part}_config"]["tanhscale_init"] = 0.7
    config["decoder_config"]["causal"] = False
    assert fingerprint(constant(config)) == before


@pytest.mark.parametrize("name", CODECS)
def test_causal_parts_survive(tmp_path, name):
    codec = make_causal_codec(**CODECS[name])
    codec.save_pretrained(tmp_path)
    loaded = FocalCodec.from_pretrained(tmp_path)
    described = [describe_parts(dict(one.named_children())) for one in (codec, loaded)]
    assert described[0] == described[1] == json.loads((tmp_path / "config.json").read_text())
    assert loaded.fingerprint == codec.fingerprint and loaded.causal
    assert loaded.sample_rate_output == codec.sample_rate_output
    sig = noise(2, 300)
    for ours, theirs in zip(codec(sig), loaded(sig), strict=True):
        assert torch.equal(ours, theirs)


def test_causal_mixers_beyond_the_published_layout_survive(config):
    settings = {"causal": True, "pool_size": 7, "ffn_ratio": 2}
    set_mixer(config, "FocalBlock", settings)
    with pytest.raises(ValueError, match="compressor_config .*both mixer_name and tanhscale_init"):
        build_parts(config, where="config.json")
    for word in ("tanhscale_init", "window_size"):
        del config["compressor_config"][word]
    parts = build_parts(config, where="config.json")
    described = describe_parts(parts)
    mixer = described["compressor_config"]["mixer_config"]
    assert settings.items() <= mixer.items() and "dim" not in mixer
    assert describe_parts(build_parts(described, where="config.json")) == described


def test_what_causal_parts_have_no_words_for_is_not_saved(tmp_path):
    codec = make_causal_codec()
    for last_mixer in (LinearBlock, functools.partial(codec.decompressor.last_mixer, window=5)):
        codec.decompressor.last_mixer = last_mixer
        with pytest.raises(ValueError, match="last_mixer may differ .* in its pool_size only"):
            codec.save_pretrained(tmp_path / "codec")
    codec.decompressor.mixer = functools.partial(codec.decompressor.mixer, ffn_ratio=2)
    with pytest.raises(ValueError, match="last_mixer has no name in checkpoints but"):
        codec.save_pretrained(tmp_path / "codec")
    assert not (tmp_path / "codec").exists()
