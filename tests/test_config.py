"""Configurations: parts survive them, published names, and what a wrong one is told."""

import functools
import json

import pytest
import torch
from torch import nn

from focalcodec import FocalCodec
from focalcodec.config import (
    PARTS,
    build_parts,
    check_encoder_config,
    constructor_arguments,
    describe_parts,
)
from focalcodec.focalnet import FocalBlock, LeakyReLU, Snake
from focalcodec.quantizers import LookupFreeQuantizer


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


def test_another_quantizer_survives(make_codec, tmp_path):
    codec = make_codec()
    codec.quantizer = LookupFreeQuantizer(6)
    codec.save_pretrained(tmp_path)
    assert isinstance(FocalCodec.from_pretrained(tmp_path).quantizer, LookupFreeQuantizer)


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
    with pytest.raises(ValueError, match="mixer is <function .*known are FocalBlock"):
        make_codec(mixer=lambda dim: FocalBlock(dim)).save_pretrained(tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("encoder_name"), "lacks the key 'encoder_name'"),
        (
            lambda c: c.update(encoder_name="os.system"),
            "encoder_name .*'os.system'; known are LogM",
        ),
        (lambda c: c.update(encoder_name=["WavLM"]), r"encoder_name .*\['WavLM'\]; known are LogM"),
        (lambda c: c.update(decoder_name="WaveNeXt"), "decoder_name .*'WaveNeXt'; known are Vocos"),
        (lambda c: c.update(extra=1), "unknown key 'extra'"),
        (lambda c: c.update(encoder_config=3), "encoder_config .* must be a JSON object, got 3"),
        (lambda c: c["encoder_config"].update(hops=3), "encoder_config .*unknown key 'hops'"),
        (lambda c: c["encoder_config"].update(num_heads=3), "does not make a WavLM: dim must be"),
        (
            lambda c: c["compressor_config"].pop("input_dim"),
            "does not make a Compressor.*input_dim",
        ),
        (lambda c: c["compressor_config"].update(causal=True), r"compressor_config\.causal .*true"),
        (
            lambda c: c["compressor_config"].update(focal=1),
            "compressor_config .*unknown key 'focal'",
        ),
        (
            lambda c: c["compressor_config"].update(mixer_name="torch.nn.Linear"),
            "mixer_name .*Focal",
        ),
        (
            lambda c: c["compressor_config"].update(mixer_name="FocalBlock", mixer_config={"k": 1}),
            "compressor_config.mixer_config .*unknown key 'k'",
        ),
        (
            lambda c: c["compressor_config"].update(mixer_name="FocalBlock", mixer_config=[]),
            r"compressor_config.mixer_config .*must be a JSON object, got \[\]",
        ),
        (lambda c: c["quantizer_config"].update(codebook_size=1000), "power of 2, got 1000"),
        (lambda c: c["quantizer_config"].update(codebook_size=True), "power of 2, got True"),
        (lambda c: c["quantizer_config"].update(mask=1), "quantizer_config .*unknown key 'mask'"),
    ],
)
def test_a_configuration_that_is_wrong_says_where(config, edit, message):
    edit(config)
    with pytest.raises(ValueError, match=message) as error:
        build_parts(config, where="there/config.json")
    assert "\n" not in str(error.value) and "there/config.json" in str(error.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"hidden_size": 32}, r"hidden_size 32, but encoder\.dim is 16; set encoder\.dim to 32"),
        ({"num_attention_heads": 4}, r"num_attention_heads 4, but encoder\.num_heads is 2"),
        ({"max_bucket_distance": 800}, r"max_bucket_distance 800, but encoder\.max_distance is 80"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, r"conv_stride .* but encoder\.strides is"),
        ({"num_hidden_layers": 1}, r"has 1 layers, but encoder\.num_layers is 2"),
        ({"model_type": "hubert"}, "model_type 'hubert' .* WavLM needs 'wavlm'"),
        ({"do_stable_layer_norm": False}, "do_stable_layer_norm False"),
        ({"feat_extract_norm": "group"}, "feat_extract_norm 'group'"),
    ],
)
def test_a_transformers_model_of_another_kind_is_refused(make_codec, edit, message):
    encoder = make_codec(encoder="wavlm").encoder
    fitting = {
        "model_type": "wavlm",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "max_bucket_distance": 80,
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
    }
    check_encoder_config(encoder, fitting, where="source")
    with pytest.raises(ValueError, match=message):
        check_encoder_config(encoder, fitting | edit, where="source")
