"""Configurations: parts survive them, published names, and what a wrong one is told."""

import functools
import hashlib
import inspect
import json
import re
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from focalcodec import FocalCodec
from focalcodec.activations import LeakyReLU, Snake
from focalcodec.focalnet import FocalBlock
from focalcodec.hub.config import (
    PARTS,
    build_parts,
    constructor_arguments,
    describe_parts,
    fingerprint,
)
from focalcodec.wavlm import WavLM
from tests.blocks import ABLATION
from tests.causal_codecs import CODECS, make_causal_codec
from tests.configurations import constant, set_mixer
from tests.conftest import _make_codec


@pytest.fixture
def config(make_codec):
    """Return what config.json holds for a tiny codec with a WavLM encoder of 2 layers."""
    parts = dict(make_codec(encoder="wavlm", factors=(2, 1, 1)).named_children())
    return json.loads(json.dumps(describe_parts(parts)))


def test_the_parts_that_a_configuration_builds_are_described_by_it(config):
    parts = build_parts(config, where="config.json")
    assert list(parts) == list(PARTS)
    assert describe_parts(parts) == config


@pytest.mark.parametrize(
    "parts",
    [
        {"mixer": functools.partial(FocalBlock, window=5, level=1, factor=4, post_norm=True)},
        {"mixer": FocalBlock, "activation": functools.partial(LeakyReLU, negative_slope=0.2)},
        {"mixer": functools.partial(FocalBlock, ffn_ratio=2, dropout=0.1)},
        {"activation": LeakyReLU},
        {"mixer": functools.partial(FocalBlock, normalize_modulator=True, layer_scale=None)},
    ],
    ids=["flat", "leaky_relu", "ffn_ratio", "class", "normalized"],
)
def test_what_parts_are_made_of_survives(make_codec, tmp_path, parts):
    codec = make_codec(**parts)
    codec.save_pretrained(tmp_path)
    loaded = FocalCodec.from_pretrained(tmp_path)
    for ours, theirs in zip(codec.modules(), loaded.modules(), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, FocalBlock | LeakyReLU | Snake):
            assert constructor_arguments(ours) == constructor_arguments(theirs)
    sig = torch.randn(1, 3000)
    assert torch.equal(codec.sig_to_toks(sig), loaded.sig_to_toks(sig))


@pytest.mark.parametrize("parts", ABLATION.values(), ids=ABLATION)
def test_parts_of_the_ablation_survive(make_codec, tmp_path, parts):
    codec = make_codec(**parts)
    codec.save_pretrained(tmp_path)
    loaded = FocalCodec.from_pretrained(tmp_path)
    assert loaded.fingerprint == codec.fingerprint
    described = (dict(one.named_children()) for one in (codec, loaded))
    assert len({json.dumps(describe_parts(parts)) for parts in described}) == 1
    sig = torch.randn(1, 3001)
    toks = codec.sig_to_toks(sig)
    assert torch.equal(toks, loaded.sig_to_toks(sig))
    sigs = [one.toks_to_sig(toks, num_samples=3001) for one in (codec, loaded)]
    assert sigs[0].shape == (1, 3001) and torch.equal(*sigs)


def test_saved_names_are_the_published_ones(config):
    assert [config[f"{part}_name"] for part in PARTS] == [
        "WavLM",
        "FocalEncoder",
        "BinarySphericalQuantizer",
        "FocalDecoder",
        "Vocos",
    ]
    assert config["quantizer_config"] == {"codebook_size": 64}
    assert config["compressor_config"] == {
        "input_dim": 16,
        "output_dim": 6,
        "hidden_dims": [12, 10, 8],
        "downscale_factors": [2, 1, 1],
        "dropout": 0.0,
        "focal_window": 7,
        "focal_level": 2,
        "focal_factor": 2,
        "use_post_norm": False,
        "normalize_modulator": False,
        "use_layerscale": True,
        "layerscale_init": 0.3,
        "causal": False,
    }


def test_what_has_no_name_is_not_saved(make_codec, tmp_path):
    class Own(nn.Identity):
        def __init__(self, dim):
            super().__init__()

    with pytest.raises(ValueError, match="activation is .*Own.*known are LeakyReLU, Snake"):
        make_codec(activation=Own).save_pretrained(tmp_path / "codec")
    with pytest.raises(
        ValueError, match="mixer is <function .*known are AMPBlock, ConformerBlock, FocalBlock, L"
    ):
        make_codec(mixer=lambda dim: FocalBlock(dim)).save_pretrained(tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c.pop("decoder_name"),
            "decoder_config .*unknown key 'n_fft'; known are causal",
        ),
        (
            lambda c: c.update(encoder_name="os.system"),
            "encoder_name .*'os.system'; known are LogM",
        ),
        (lambda c: c.update(encoder_name=["WavLM"]), r"encoder_name .*\['WavLM'\]; known are LogM"),
        (
            lambda c: c.update(decoder_name="BigVGAN"),
            "decoder_name .*'BigVGAN'; known are HiFiGAN, Vocos, WaveNeXt",
        ),
        (lambda c: c.update(extra=1), "unknown key 'extra'"),
        (lambda c: c.update(encoder_config=3), "encoder_config .* must be a JSON object, got 3"),
        (lambda c: c["encoder_config"].update(hops=3), "encoder_config .*unknown key 'hops'"),
        (lambda c: c["encoder_config"].update(num_heads=3), "does not make a WavLM: dim must be"),
        (lambda c: c["encoder_config"].update(num_heads="2"), r"num_heads .* 1048576, got '2'"),
        (lambda c: c["encoder_config"].update(num_heads=2.0), r"num_heads .*a whole number from 1"),
        (lambda c: c["encoder_config"].update(num_heads=True), "num_heads .*number.*, got True"),
        (lambda c: c["encoder_config"].update(num_heads=None), "num_heads .*number.*, got None"),
        (
            lambda c: c["encoder_config"].update(dim=10**9),
            r"encoder_config\.dim .*, got 1000000000",
        ),
        (lambda c: c["encoder_config"].update(dim=0), r"encoder_config\.dim .*number from 1 to"),
        (lambda c: c["encoder_config"].update(num_layers=10**4), "num_layers .*from 0 to 256, got"),
        (
            lambda c: c["encoder_config"].update(strides=5),
            "strides .*a list of at most 16, each a",
        ),
        (lambda c: c["encoder_config"].update(strides=[5, 2, 2, 2, 2, 2, "2"]), "strides .*whole"),
        (lambda c: c["encoder_config"].update(strides=[1] * 17), "strides .*at most 16, .*got"),
        (
            lambda c: c["encoder_config"].update(strides=[5, 2]),
            "does not make a WavLM: hidden_dims",
        ),
        (lambda c: c["encoder_config"].update(dropout=2), "dropout .*a number from 0 to 1, got 2"),
        (lambda c: c["encoder_config"].update(dropout=float("nan")), "dropout .*, got nan"),
        (lambda c: c["encoder_config"].update(causal="no"), "causal .*must be true or false, got"),
        (
            lambda c: c["decoder_config"].update(layerscale_init=[]),
            r"layerscale_init .*must be a number from -1048576 to 1048576 or null, got \[\]",
        ),
        (
            lambda c: c["compressor_config"].update(focal_window=10**5000),
            r"compressor_config\.focal_window .*from 1 to 1048576, got int of too many digits",
        ),
        (lambda c: c["compressor_config"].update(use_layerscale=1), "use_layerscale .*true or fal"),
        (
            lambda c: c["compressor_config"].update(focal_window=7, mixer_name="FocalBlock"),
            "compressor_config .*has both mixer_name and focal_factor; move",
        ),
        (lambda c: c["quantizer_config"].update(causal=True), "quantizer_config .*key 'causal'"),
        (
            lambda c: c["compressor_config"].update(causal=True, window_size=0),
            r"compressor_config\.window_size .*from 1 to 32768, got 0",
        ),
        (
            lambda c: c["encoder_config"].update(causal=True, window_size=3),
            "does not make a WavLM: window_size must hold a chunk of 1 .*, got 3 and 4",
        ),
        (
            lambda c: set_mixer(c, "FocalBlock", {"causal": True}),
            "does not make a Compressor: causal is False, but FocalBlock has none of what",
        ),
        (
            lambda c: set_mixer(c, "LinearBlock", {}) or c["compressor_config"].update(causal=True),
            "does not make a Compressor: causal is True, but LinearBlock has full context",
        ),
        (
            lambda c: c["compressor_config"].update(focal=1),
            "compressor_config .*unknown key 'focal'",
        ),
        (
            lambda c: set_mixer(c, "torch.nn.Linear", {}),
            "mixer_name .*'torch.nn.Linear'; known are",
        ),
        (
            lambda c: set_mixer(c, "FocalBlock", {"k": 1}),
            "compressor_config.mixer_config .*unknown key 'k'",
        ),
        (
            lambda c: set_mixer(c, "FocalBlock", {"dim": 1}),
            "compressor_config.mixer_config .*unknown key 'dim'",
        ),
        (
            lambda c: set_mixer(c, "FocalBlock", {"level": 10**6}),
            "compressor_config.mixer_config.level .*from 1 to 256, got 1000000",
        ),
        (
            lambda c: set_mixer(c, "FocalBlock", []),
            r"compressor_config.mixer_config .*must be a JSON object, got \[\]",
        ),
        (lambda c: c["quantizer_config"].update(codebook_size=1000), "power of 2, got 1000"),
        (
            lambda c: c["quantizer_config"].update(codebook_size=True),
            "codebook_size .*a whole number from 2 to",
        ),
        (lambda c: c["quantizer_config"].update(mask=1), "quantizer_config .*unknown key 'mask'"),
    ],
)
def test_a_configuration_that_is_wrong_says_where(config, edit, message):
    edit(config)
    with pytest.raises(ValueError, match=message) as error:
        build_parts(config, where="there/config.json")
    assert "\n" not in str(error.value) and "there/config.json" in str(error.value)
    assert len(str(error.value)) < 700


def test_a_missing_part_of_a_configuration_is_its_default(config):
    expected = describe_parts(build_parts(config, where="config.json"))
    for key in ("encoder_name", "compressor_name", "quantizer_name", "decompressor_name"):
        del config[key]
    del config["encoder_config"]["dropout"], config["compressor_config"]["use_post_norm"]
    assert describe_parts(build_parts(config, where="config.json")) == expected
    for missing in ({}, {"encoder_config": None}):
        config = {k: v for k, v in config.items() if k != "encoder_config"} | missing
        encoder = build_parts(config | {"decoder_name": "Vocos"}, where="x", sketch=True)["encoder"]
        assert constructor_arguments(encoder) == constructor_arguments(WavLM(num_layers=6))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2, 3, 2**20, 2**31, 2**63, 10**30, 10**400])
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["WavLM", "LogMel", "FocalBlock", "LeakyReLU", "Vocos"]),
    lambda values: (
        st.lists(values, max_size=8) | st.dictionaries(st.text(max_size=9), values, max_size=3)
    ),
    max_leaves=10,
)
TINY = [
    json.loads(json.dumps(describe_parts(dict(codec.named_children()))))
    for codec in (_make_codec(encoder="wavlm"), make_causal_codec(**CODECS["published"]))
]
PLACES = [
    *((key,) for key in TINY[0]),
    *((key, word) for key, words in TINY[0].items() if isinstance(words, dict) for word in words),
    *((key, word) for key, words in TINY[1].items() if isinstance(words, dict) for word in words),
    *(
        (f"{part}compressor_config", f"{kind}_{field}")
        for part in ("", "de")
        for kind in ("mixer", "activation")
        for field in ("name", "config")
    ),
    ("decoder_config", "input_channels"),
    ("encoder_config", "max_cached_steps"),
    ("more",),
]


@settings(max_examples=200, deadline=None)
@given(
    tiny=st.sampled_from(TINY),
    changes=st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3),
)
def test_any_change_of_a_configuration_builds_or_is_refused_in_one_line(tiny, changes):
    config = json.loads(json.dumps(tiny))
    for place, value in changes:
        node = config
        for key in place[:-1]:
            node = node[key] if isinstance(node[key], dict) else {}
        node[place[-1]] = value
    try:
        parts = build_parts(config, where="there/config.json", sketch=True)
    except ValueError as error:
        assert "there/config.json" in str(error) and "\n" not in str(error)
    else:
        assert list(parts) == list(PARTS)


# Fingerprints


def test_a_fingerprint_never_changes():
    focal = {"focal_window": 7, "focal_factor": 2, "use_layerscale": True}
    config = {
        "encoder_name": "LogMel",
        "encoder_config": {"n_mels": 16, "f_max": 7000.0},
        "compressor_name": "FocalEncoder",
        "compressor_config": focal
        | {"input_dim": 16, "output_dim": 6, "hidden_dims": [12, 8], "downscale_factors": [2, 1]},
        "quantizer_name": "BinarySphericalQuantizer",
        "quantizer_config": {"codebook_size": 64},
        "decompressor_name": "FocalDecoder",
        "decompressor_config": focal
        | {"input_dim": 6, "output_dim": 16, "hidden_dims": [8, 12], "upscale_factors": [1, 2]},
        "decoder_name": "Vocos",
        "decoder_config": {"input_dim": 16, "num_layers": 1, "dim": 8, "causal": False},
    }
    text = (
        '{"compressor":["FocalEncoder",{"downscale_factors":[2,1],"focal_factor":2,'
        '"focal_window":7,"hidden_dims":[12,8],"input_dim":16,"output_dim":6,'
        '"use_layerscale":true}],"decompressor":["FocalDecoder",{"focal_factor":2,'
        '"focal_window":7,"hidden_dims":[8,12],"input_dim":6,"output_dim":16,'
        '"upscale_factors":[1,2],"use_layerscale":true}],"encoder":["LogMel",{"f_max":7000,'
        '"n_mels":16}],"quantizer":["BinarySphericalQuantizer",{"codebook_size":64}]}'
    )
    num_weights = 6 * 8 + 6 + 8 * 6 + 8
    digest = hashlib.sha256(text.encode() + num_weights * struct.pack("<f", 0.5)).digest()
    assert fingerprint(constant(config)) == digest[:16].hex() == "ea61de1283ad13e95f12d756b570750e"


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["encoder_config"].update(num_heads=4),
        lambda c: c["encoder_config"].update(max_distance=90),
        lambda c: c["encoder_config"].update(strides=[5, 2, 2, 2, 2, 2, 1]),
        lambda c: c["encoder_config"].update(num_layers=1),
        lambda c: c.update(encoder_name="LogMel", encoder_config={"n_mels": 16}),
        lambda c: c["compressor_config"].update(downscale_factors=[1, 2, 1]),
        lambda c: c["compressor_config"].update(normalize_modulator=True),
        lambda c: c["compressor_config"].update(focal_window=9),
        lambda c: c["compressor_config"].update(activation_name="LeakyReLU"),
        lambda c: c["compressor_config"].update(
            activation_name="LeakyReLU", activation_config={"negative_slope": 0.2}
        ),
        lambda c: set_mixer(c, "FocalBlock", {"ffn_ratio": 2}),
        lambda c: c["decompressor_config"].update(use_post_norm=True),
        lambda c: c["decompressor_config"].update(use_layerscale=False),
        lambda c: c.update(quantizer_name="LookupFreeQuantizer", quantizer_config={"code_dim": 6}),
        lambda c: c["quantizer_config"].update(codebook_size=32),
    ],
)
def test_a_fingerprint_tells_arithmetics_apart(config, edit):
    before = fingerprint(constant(config))
    edit(config)
    assert fingerprint(constant(config)) != before


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["decoder_config"].update(dim=10, n_fft=1024),
        lambda c: c["encoder_config"].update(dropout=0.1, max_cached_steps=0),
        lambda c: c["compressor_config"].update(dropout=0.1, layerscale_init=1.0),
        lambda c: c["decompressor_config"].pop("causal"),
    ],
    ids=["decoder", "dropout", "initial scale", "default"],
)
def test_a_fingerprint_leaves_out_what_no_token_depends_on(config, edit):
    before = fingerprint(constant(config))
    edit(config)
    assert fingerprint(constant(config)) == before


def test_a_fingerprint_tells_trainings_apart(config):
    parts = constant(config)
    seen = {fingerprint(parts)}
    for projection in (parts["compressor"].out_proj, parts["decompressor"].in_proj):
        for weights in (projection.weight, projection.bias):
            with torch.no_grad():
                weights.flatten()[-1] += 1e-6
            seen.add(fingerprint(parts))
    assert len(seen) == 5 and all(re.fullmatch("[0-9a-f]{32}", one) for one in seen)


@pytest.mark.parametrize("encoder", ["logmel", "wavlm"])
def test_a_fingerprint_survives_saving_and_conversion(make_codec, tmp_path, encoder):
    codec = make_codec(encoder=encoder, activation=functools.partial(LeakyReLU, negative_slope=0.2))
    codec.save_pretrained(tmp_path)
    loaded = FocalCodec.from_pretrained(tmp_path)
    assert codec.fingerprint == loaded.fingerprint == loaded.double().fingerprint


def test_an_argument_that_comes_later_changes_no_fingerprint(config, monkeypatch):
    class Later(WavLM):
        """WavLM as another release could have it."""

        extra = 3

    known = inspect.signature(WavLM)
    extra = inspect.Parameter("extra", inspect.Parameter.KEYWORD_ONLY, default=3)
    Later.__signature__ = known.replace(parameters=[*known.parameters.values(), extra])
    parts = constant(config)
    before = fingerprint(parts)
    monkeypatch.setitem(PARTS["encoder"], "WavLM", Later)
    parts["encoder"].__class__ = Later
    assert describe_parts(parts)["encoder_config"]["extra"] == 3
    assert fingerprint(parts) == before
    parts["encoder"].extra = 4
    assert fingerprint(parts) != before
