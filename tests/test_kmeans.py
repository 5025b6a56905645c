"""Quantization to the nearest centroid."""

import math

import pytest
import torch

import focalcodec.kmeans
from focalcodec.kmeans import KMeansQuantizer


def test_every_token_survives_codes_and_back():
    quantizer = KMeansQuantizer(512, 24)
    toks = torch.arange(512)
    codes = quantizer.toks_to_codes(toks)
    assert torch.equal(codes, quantizer.centroids) and torch.equal(quantizer.codebook, codes)
    assert torch.equal(quantizer.codes_to_toks(codes), toks)
    assert torch.equal(quantizer.codes_to_toks(codes.view(8, 64, 24)), toks.view(8, 64))


@pytest.mark.parametrize("offset", [0.0, 300.0], ids=["centered", "far from zero"])
def test_token_is_that_of_the_nearest_centroid(offset, monkeypatch):
    """Also where the squares of the entries take the digits that tell centroids apart."""
    monkeypatch.setattr(focalcodec.kmeans, "_BLOCK_ENTRIES", 70 * 7)  # 7 frames, the last fewer
    quantizer = KMeansQuantizer(70, 16)
    quantizer.centroids += offset * torch.linspace(-1, 1, 16)
    lats = torch.randn(3, 40, 16) + offset * torch.linspace(-1, 1, 16)
    distances = lats.double()[:, :, None] - quantizer.centroids.double()
    expected = distances.square().sum(dim=-1).argmin(dim=-1)
    toks, codes = quantizer(lats)
    assert torch.equal(toks, expected) and torch.equal(quantizer.lats_to_toks(lats), expected)
    assert torch.equal(codes, quantizer.toks_to_codes(toks))
    assert torch.equal(codes, quantizer.lats_to_codes(lats))


def test_of_equally_near_centroids_the_first_is_taken():
    quantizer = KMeansQuantizer(4, 2)
    quantizer.centroids.copy_(torch.tensor([[9.0, 9], [1, 0], [-1, 0], [1, 0]]))
    assert quantizer(torch.tensor([[0.0, 5], [1, 0]])).toks.tolist() == [1, 1]


def test_padding_gets_zeros_whatever_it_holds():
    quantizer = KMeansQuantizer(9, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    lats = torch.randn(2, 3, 3)
    toks, codes = quantizer(lats.masked_fill(~mask[..., None], math.nan), mask=mask)
    assert torch.equal(toks, quantizer(lats).toks * mask)
    assert torch.equal(codes, quantizer(lats).codes * mask[..., None])


def test_gradient_of_codes_is_that_of_the_latents_and_centroids_get_none():
    quantizer, weight = KMeansQuantizer(9, 3), torch.randn(5, 3)
    lats = torch.randn(5, 3, requires_grad=True)
    (actual,) = torch.autograd.grad((quantizer(lats).codes * weight).sum(), lats)
    assert torch.equal(actual, weight)
    assert not quantizer.centroids.requires_grad


def test_a_latent_that_is_no_number_gives_a_token():
    assert KMeansQuantizer(9, 3)(torch.full((1, 3), math.nan)).toks.item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    quantizer, lats = KMeansQuantizer(64, 16), torch.randn(50, 16)
    with torch.autocast("cpu", dtype=dtype):
        within = quantizer(lats)
    assert torch.equal(within.toks, quantizer(lats).toks)
    assert torch.equal(within.codes, quantizer(lats).codes)
    codes = quantizer.to(dtype)(lats.to(dtype)).codes
    assert codes.dtype == quantizer.codebook.dtype == torch.float32


def test_centroids_are_weights_and_no_term_is_added_to_the_loss():
    quantizer, lats = KMeansQuantizer(8, 3), torch.randn(2, 4, 3)
    assert list(quantizer.state_dict()) == ["centroids"]
    assert sum(parameter.numel() for parameter in quantizer.parameters()) == 24
    assert quantizer.entropy_loss(lats) is None and quantizer.commitment_loss(lats) is None
    assert torch.equal(quantizer.normalize(lats), lats)


@pytest.mark.parametrize("sizes", [(1, 3), (8, 0), (8.0, 3), (True, 3)], ids=str)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="is a whole number of at least"):
        KMeansQuantizer(*sizes)


@pytest.mark.parametrize("toks", [[-1], [8]], ids=str)
def test_tokens_out_of_range_are_refused(toks):
    with pytest.raises(ValueError, match=r"\[0, 8\) with codebook_size=8, code_dim=3"):
        KMeansQuantizer(8, 3).toks_to_codes(torch.tensor(toks))


def test_latents_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"lats must be \(..., 3\), code_dim last"):
        KMeansQuantizer(8, 3)(torch.zeros(2, 4))
