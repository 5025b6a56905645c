"""Pretrained weights for an encoder: of transformers, of a codec, of an encoder alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import WavLMConfig, WavLMModel

from focalcodec import FocalCodec, hub
from focalcodec.hub.config import constructor_arguments
from focalcodec.hub.encoder import check_encoder_config
from focalcodec.wavlm import WavLM


@pytest.fixture
def folder(make_codec, tmp_path):
    """Folder of a saved tiny codec with a WavLM encoder."""
    make_codec(encoder="wavlm", factors=(2, 1, 1)).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def edit_weights(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    """Folder of a tiny WavLM of transformers with 4 layers."""
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        num_buckets=32,
        max_bucket_distance=80,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        apply_spec_augment=False,
    )
    folder = tmp_path_factory.mktemp("wavlm")
    WavLMModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(make_codec):
    """Return an encoder of 2 layers that fits ``wavlm_folder`` and ``folder``."""
    return make_codec(encoder="wavlm").encoder


def hidden_states(folder, sig):
    model = WavLMModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(sig, output_hidden_states=True).hidden_states[2]


@pytest.mark.parametrize("form", ["folder", "shards", "pickle", "file", "prefix"])
def test_encoder_takes_its_layers_of_a_transformers_model(wavlm_folder, encoder, tmp_path, form):
    source = tmp_path / "source"
    shutil.copytree(wavlm_folder, source)
    state = load_file(source / "model.safetensors")
    if form == "shards":
        (source / "model.safetensors").unlink()
        WavLMModel.from_pretrained(wavlm_folder).save_pretrained(source, max_shard_size="20KB")
        assert not (source / "model.safetensors").exists()
    elif form == "pickle":
        (source / "model.safetensors").unlink()
        torch.save(state, source / "pytorch_model.bin")
    elif form == "file":
        source = source / "model.safetensors"
    elif form == "prefix":
        save_file({f"wavlm.{k}": v for k, v in state.items()}, source / "model.safetensors")
    hub.load_encoder_weights(encoder, source)
    sig = torch.randn(1, 4000)
    with torch.no_grad():
        feats = encoder(sig)
    torch.testing.assert_close(feats, hidden_states(wavlm_folder, sig), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["folder", "json", "file", "encoder", "encoder.pt"])
def test_encoder_takes_its_layers_of_a_codec(folder, encoder, tmp_path, form):
    expected = FocalCodec.from_pretrained(folder).encoder.state_dict()
    deeper = expected | {
        k.replace("layers.1.", "layers.2."): v
        for k, v in expected.items()
        if k.startswith("encoder.layers.1.")
    }
    source = {
        "folder": folder,
        "json": folder / "config.json",
        "file": folder / "model.safetensors",
        "encoder": tmp_path / "wavlm.safetensors",
        "encoder.pt": tmp_path / "wavlm.pt",
    }[form]
    save_file({k: v.clone() for k, v in deeper.items()}, tmp_path / "wavlm.safetensors")
    torch.save(deeper, tmp_path / "wavlm.pt")
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    hub.load_encoder_weights(encoder, source)
    assert all(torch.equal(value, expected[key]) for key, value in encoder.state_dict().items())


def test_another_encoder_is_refused(make_codec, folder, encoder, tmp_path):
    make_codec().save_pretrained(tmp_path / "logmel")
    with pytest.raises(ValueError, match="encoder of .* is a LogMel, not a WavLM"):
        hub.load_encoder_weights(encoder, tmp_path / "logmel")
    with pytest.raises(ValueError, match="LogMel has no weights to load"):
        hub.load_encoder_weights(make_codec().encoder, folder)
    arguments = constructor_arguments(encoder)
    with pytest.raises(ValueError, match=r"has 2 layers, but encoder\.num_layers is 3"):
        hub.load_encoder_weights(WavLM(**arguments | {"num_layers": 3}), folder)
    with pytest.raises(ValueError, match=r"max_distance 80, but encoder\.max_distance is 90"):
        hub.load_encoder_weights(WavLM(**arguments | {"max_distance": 90}), folder)
    with pytest.raises(ValueError, match="lacks [0-9]+ of [0-9]+ weights, the first is encoder.l"):
        hub.load_encoder_weights(
            WavLM(**arguments | {"num_layers": 3}), folder / "model.safetensors"
        )


def test_encoder_weights_that_are_missing_are_named(wavlm_folder, encoder, tmp_path):
    shutil.copytree(wavlm_folder, tmp_path / "source")
    key = "encoder.layers.1.attention.k_proj.weight"
    edit_weights(tmp_path / "source", lambda state: state.pop(key))
    with pytest.raises(ValueError, match=key):
        hub.load_encoder_weights(encoder, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors or .*pytorch_model"):
        hub.load_encoder_weights(encoder, tmp_path / "source")


def test_shards_outside_the_folder_are_refused(wavlm_folder, encoder, tmp_path):
    shutil.copytree(wavlm_folder, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"encoder.x": "../model.safetensors"}}
    (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a plain file name"):
        hub.load_encoder_weights(encoder, tmp_path / "source")


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
