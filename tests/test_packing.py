"""Packed weights: the same codec with fewer bits a weight."""

import copy

import pytest
import torch

from focalcodec.linear_map import LinearMap
from focalcodec.packing import pack
from tests.causal_codecs import make_causal_codec

SIG = 0.3 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def codec():
    return make_causal_codec(refined=3)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2e-3), ("int8", 0.1)])
def test_features_and_signals_stay_close(codec, precision, tolerance):
    packed = pack(copy.deepcopy(codec), precision=precision)
    toks = codec.sig_to_toks(SIG)
    for expected, found in (
        (codec.sig_to_feats(SIG), packed.sig_to_feats(SIG)),
        (codec.toks_to_qfeats(toks), packed.toks_to_qfeats(toks)),
        (codec.toks_to_sig(toks), packed.toks_to_sig(toks)),
    ):
        error = (found - expected).norm() / expected.norm()
        assert 0 < error < tolerance  # 11 and 8 bits a weight, and not the weights themselves


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_every_product_is_packed(codec, precision):
    packed = pack(copy.deepcopy(codec), precision=precision)
    for part in (packed.encoder, packed.compressor, packed.decompressor, packed.decoder):
        maps = [m for m in part.modules() if isinstance(m, LinearMap) and m.packable]
        assert all(module.packed is not None for module in maps)
        assert not [m for m in part.modules() if type(m) is torch.nn.Linear]
    assert packed.compressor.layers[0]["downscale"].packed is not None
    assert packed.decoder.backbone.embedding.packed is not None


def test_a_packed_stream_gives_what_the_packed_codec_gives(codec):
    packed = pack(copy.deepcopy(codec), precision="float16")
    stream = packed.open_stream(batch_size=2)
    toks = torch.cat([stream.encode(piece) for piece in SIG.split(700, dim=1)], dim=1)
    toks = torch.cat([toks, stream.flush().toks], dim=1)
    assert torch.equal(toks, packed.sig_to_toks(SIG))


def test_what_cannot_be_packed_is_refused(codec):
    with pytest.raises(ValueError, match="float16, int8, got 'int4'"):
        pack(copy.deepcopy(codec), precision="int4")
    with pytest.raises(ValueError, match="float64"):
        pack(copy.deepcopy(codec).double(), precision="int8")
