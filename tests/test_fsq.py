"""Finite scalar quantization: levels, tokens and gradients."""

import math

import pytest
import torch

from focalcodec.fsq import FiniteScalarQuantizer
from focalcodec.quantizers import LookupFreeQuantizer

LEVELS = [8, 5, 5, 5]


@pytest.mark.parametrize(
    "quantizer",
    [FiniteScalarQuantizer(LEVELS), FiniteScalarQuantizer([3, 4, 7]), LookupFreeQuantizer(10)],
    ids=str,
)
def test_every_token_survives_codes_and_back(quantizer):
    toks = torch.arange(quantizer.codebook_size)
    codes = quantizer.toks_to_codes(toks)
    assert codes.shape == (len(toks), quantizer.code_dim)
    assert codes.unique(dim=0).shape == codes.shape
    assert torch.equal(quantizer.codes_to_toks(codes), toks)
    assert torch.equal(quantizer.codebook, codes)


@pytest.mark.parametrize("level", [3, 4, 5, 8])
def test_each_level_is_reached_in_equal_steps_from_minus_one_up(level):
    quantizer = FiniteScalarQuantizer([level])
    codes = quantizer(torch.linspace(-50, 50, 20_001)[:, None]).codes[:, 0].unique()
    step = 1 / (level // 2)
    assert codes.tolist() == pytest.approx([-1 + step * i for i in range(level)])


def test_code_is_the_nearest_to_the_bounded_latent():
    quantizer = FiniteScalarQuantizer(LEVELS)
    lats = 2 * torch.randn(50, 4, dtype=torch.float64)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    reach, offset = (levels - 1) / 2 * 0.999, torch.tensor([0.5, 0, 0, 0]).double()
    bounded = torch.tanh(lats + torch.atanh(offset / reach)) * reach - offset
    scaled = (bounded / (levels // 2))[:, None] - quantizer.codebook.double()
    assert torch.equal(
        quantizer.lats_to_toks(lats), (scaled * (levels // 2)).norm(dim=-1).argmin(1)
    )


def test_latent_of_zero_is_the_code_of_zero():
    quantizer = FiniteScalarQuantizer([8, 5])
    assert not quantizer(torch.zeros(1, 2)).codes.any()


def test_first_entry_is_the_most_significant():
    quantizer = FiniteScalarQuantizer([3, 5])
    assert quantizer.codes_to_toks(
        torch.tensor([[-1.0, -1], [-1, 1], [0, -1], [1, 1]])
    ).tolist() == [
        0,
        4,
        5,
        14,
    ]


def test_gradient_of_codes_is_that_of_the_bounded_latents():
    quantizer = FiniteScalarQuantizer(LEVELS)
    lats, weight = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    (actual,) = torch.autograd.grad((quantizer(lats).codes * weight).sum(), lats)
    levels = torch.tensor(LEVELS)
    reach, offset = (levels - 1) / 2 * 0.999, torch.tensor([0.5, 0, 0, 0])
    shifted = lats + torch.atanh(offset / reach)
    expected = weight * (1 - shifted.tanh().square()) * reach / (levels // 2)
    assert actual.allclose(expected, atol=1e-6)


def test_training_and_inference_give_the_same_codes():
    quantizer, lats = FiniteScalarQuantizer(LEVELS), torch.randn(3, 50, 4)
    with torch.no_grad():
        expected = quantizer(lats)
    toks, codes = quantizer(lats.requires_grad_())
    assert torch.equal(codes, expected.codes) and torch.equal(toks, expected.toks)


def test_padding_gets_zeros_and_no_gradient():
    quantizer = FiniteScalarQuantizer([8, 5])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    lats = torch.randn(2, 3, 2)
    padded = lats.masked_fill(~mask[..., None], math.nan).requires_grad_()
    toks, codes = quantizer(padded, mask=mask)
    assert torch.equal(toks, quantizer(lats).toks * mask)
    assert torch.equal(codes, quantizer(lats).codes * mask[..., None])
    codes.sum().backward()
    assert not padded.grad[~mask].any() and padded.grad[mask].abs().min() > 0


def test_a_latent_that_is_no_number_gives_a_token_and_a_gradient_that_shows_it():
    quantizer = FiniteScalarQuantizer([8, 5])
    lats = torch.tensor([[math.nan, math.inf]], requires_grad=True)
    toks, codes = quantizer(lats)
    assert toks.item() == 4
    assert codes.isnan().tolist() == [[True, False]]


def test_half_precision_is_computed_in_float32():
    quantizer, lats = FiniteScalarQuantizer(LEVELS), torch.randn(20, 4).half()
    assert quantizer(lats).codes.dtype == torch.float32
    assert torch.equal(
        quantizer.half()(lats).toks, FiniteScalarQuantizer(LEVELS)(lats.float()).toks
    )


def test_nothing_is_in_the_state_dict_and_no_term_is_added_to_the_loss():
    quantizer, lats = FiniteScalarQuantizer(LEVELS), torch.randn(2, 3, 4)
    assert not quantizer.state_dict() and not list(quantizer.parameters())
    assert (quantizer.code_dim, quantizer.codebook_size) == (4, 1000)
    assert quantizer.entropy_loss(lats, mask=None, inverse_temperature=1.0) is None
    assert quantizer.commitment_loss(lats) is None
    assert torch.equal(quantizer.normalize(lats), lats)


@pytest.mark.parametrize("levels", [[], [2, 5], [8.0], [3] * 40], ids=str)
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        FiniteScalarQuantizer(levels)


@pytest.mark.parametrize("toks", [[-1], [1000]], ids=str)
def test_tokens_out_of_range_are_refused(toks):
    with pytest.raises(ValueError, match=r"\[0, 1000\) with levels=\[8, 5, 5, 5\]"):
        FiniteScalarQuantizer(LEVELS).toks_to_codes(torch.tensor(toks))
