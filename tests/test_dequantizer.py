"""Compressor and decompressor of the baseline: padding, sizes, and the codec that they make."""

import math
from functools import partial

import pytest
import torch

from focalcodec import FocalCodec
from focalcodec.dequantizer import ConformerDecompressor, IdentityCompressor
from focalcodec.hifigan import HiFiGAN
from focalcodec.hub.config import build_parts, describe_parts
from focalcodec.kmeans import KMeansQuantizer
from focalcodec.logmel import LogMel
from focalcodec.masking import lengths_to_mask
from focalcodec.wavlm import WavLM
from tests.test_focalnet import randomize

small = partial(ConformerDecompressor, dim=8, num_layers=2, num_heads=2, ffn_dim=12, kernel_size=5)


def baseline(encoder=None) -> FocalCodec:
    """Codec of the baseline's parts at toy size, with random weights."""
    encoder = encoder or LogMel(n_mels=16)
    return FocalCodec(
        encoder,
        IdentityCompressor(encoder.dim),
        KMeansQuantizer(20, encoder.dim),
        small(encoder.dim, encoder.dim, dropout=0.1),
        HiFiGAN(encoder.dim, dim=16, resblock_kernel_sizes=[3]),
    ).eval()


def test_padding_never_changes_a_result():
    decompressor = randomize(small(6, 5))
    lengths = torch.tensor([12, 7, 1])
    mask = lengths_to_mask(lengths, 12)
    codes = torch.randn(3, 12, 6).masked_fill(~mask[..., None], math.nan)
    qfeats = decompressor(codes, mask=mask)
    assert qfeats.shape == (3, 12, 5) and not qfeats[~mask].any()
    for row, length in enumerate(lengths.tolist()):
        alone = decompressor(codes[row : row + 1, :length])[0]
        assert torch.allclose(qfeats[row, :length], alone, atol=1e-5)  # float32, two layers


def test_padding_gets_no_gradient():
    decompressor = randomize(small(6, 6)).train()
    mask = lengths_to_mask(torch.tensor([9, 4]), 9)
    codes = torch.randn(2, 9, 6).masked_fill(~mask[..., None], math.nan).requires_grad_()
    decompressor(codes, mask=mask).square().sum().backward()
    assert not codes.grad[~mask].any() and codes.grad[mask].abs().sum(dim=-1).min() > 0
    assert all(parameter.grad.isfinite().all() for parameter in decompressor.parameters())


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        decompressor = small(6, 6, dropout=0.3).train()
        decompressor.recomputes = recomputes
        decompressor(torch.randn(2, 9, 6)).square().sum().backward()
        gradients.append([parameter.grad for parameter in decompressor.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_acts_in_training_alone():
    decompressor, codes = small(6, 6, dropout=0.5), torch.randn(1, 9, 6)
    assert not torch.equal(decompressor.train()(codes), decompressor(codes))
    assert torch.equal(decompressor.eval()(codes), decompressor(codes))


def test_one_frame_is_enough():
    assert small(6, 5)(torch.randn(2, 1, 6)).shape == (2, 1, 5)


def test_identity_gives_feats_back_without_padding():
    compressor, feats = IdentityCompressor(4), torch.randn(2, 3, 4)
    assert torch.equal(compressor(feats), feats)
    mask = lengths_to_mask(torch.tensor([3, 1]), 3)
    filled = feats.masked_fill(~mask[..., None], math.nan)
    assert torch.equal(compressor(filled, mask=mask), feats * mask[..., None])


@pytest.mark.parametrize("module", [IdentityCompressor(4), small(4, 4)], ids=["identity", "conf"])
def test_wrong_shapes_are_refused(module):
    with pytest.raises(ValueError, match=r"at least 1 frame, 4 channels\), got \(2, 3, 5\)"):
        module(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="mask must be bool"):
        module(torch.zeros(2, 3, 4), mask=torch.ones(2, 4, dtype=torch.bool))


def test_full_size_has_the_papers_number_of_parameters():
    """127 million, Table 1."""
    with torch.device("meta"):
        parts = [
            WavLM(num_layers=6),
            KMeansQuantizer(512, 1024),
            ConformerDecompressor(1024, 1024),
            HiFiGAN(1024),
        ]
    total = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert round(total / 1e6) == 127


def test_codec_survives_saving(tmp_path):
    codec = baseline()
    codec.save_pretrained(tmp_path)
    loaded = FocalCodec.from_pretrained(tmp_path)
    assert loaded.fingerprint == codec.fingerprint == loaded.double().fingerprint
    loaded.float()
    described = [describe_parts(dict(one.named_children())) for one in (codec, loaded)]
    assert described[0] == described[1]
    sig = torch.randn(1, 3001)
    toks = codec.sig_to_toks(sig)
    assert torch.equal(toks, loaded.sig_to_toks(sig)) and toks.shape == (1, 10)
    sigs = [one.toks_to_sig(toks, num_samples=3001) for one in (codec, loaded)]
    assert sigs[0].shape == (1, 3001) and torch.equal(*sigs)
    assert codec.bitrate == pytest.approx(50 * math.log2(20))
    assert torch.equal(codec.codebook, codec.quantizer.centroids)


def test_a_row_of_a_batch_gives_what_it_gives_alone():
    codec, sig = baseline(), torch.randn(2, 4000)
    sig[1, 2600:] = 9.0  # padding
    both = codec(sig, lens=torch.tensor([1.0, 2600 / 4000]))
    alone = codec(sig[1:, :2600])
    assert torch.equal(both.toks[1, :9], alone.toks[0]) and not both.toks[1, 9:].any()
    assert torch.allclose(both.rec_sig[1, :2600], alone.rec_sig[0], atol=1e-5)  # float32


def test_fingerprint_sees_centroids_and_the_first_projection():
    codec = baseline()
    seen = {codec.fingerprint}
    for weights in (codec.quantizer.centroids, codec.decompressor.in_proj.bias):
        with torch.no_grad():
            weights.flatten()[-1] += 1e-4
        seen.add(codec.fingerprint)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("quantizer", {"codebook_size": 1}, "codebook_size .*from 2 to"),
        ("quantizer", {"codebook_size": 2**61, "code_dim": 2**20}, "does not make a KMeansQuant"),
        ("quantizer", {"centroids": [1]}, "unknown key 'centroids'"),
        ("compressor", {"dim": 0}, "compressor_config.dim .*from 1 to"),
        ("decompressor", {"num_layers": 10**4}, "num_layers .*from 0 to 256"),
        ("decompressor", {"kernel_size": 4}, "does not make a ConformerDecompressor: dim must be"),
        ("decompressor", {"num_heads": 3}, "does not make a ConformerDecompressor: dim must be"),
    ],
    ids=str,
)
def test_a_configuration_that_is_wrong_says_where(part, change, message):
    config = describe_parts(dict(baseline().named_children()))
    config[f"{part}_config"] |= change
    with pytest.raises(ValueError, match=message) as error:
        build_parts(config, where="there/config.json", sketch=True)
    assert "there/config.json" in str(error.value) and "\n" not in str(error.value)
