"""Vectors of tokens and of features: where they start, how codebooks share, padding."""

import math

import pytest
import torch

from focalcodec.masking import lengths_to_mask
from recipes.downstream.embedding import FeatureEmbedding, TokenEmbedding


def test_tokens_start_as_the_mean_of_the_codecs_vectors():
    codebooks = torch.randn(3, 7, 5)
    embedding = TokenEmbedding(codebooks, dim=4)
    assert torch.allclose(embedding.codebook_weights, torch.full((3,), 1 / 3))
    toks = torch.randint(7, (2, 6, 3))
    vectors = codebooks[torch.arange(3), toks]  # (2, 6, 3, 5)
    expected = embedding.proj(vectors.mean(dim=2))
    assert torch.allclose(embedding(toks), expected, atol=1e-6)  # float32, a sum of 3


def test_weights_shift_to_the_codebook_that_matters():
    codebooks = torch.randn(2, 7, 5)
    embedding = TokenEmbedding(codebooks, dim=5)
    embedding.proj.requires_grad_(False).weight.copy_(torch.eye(5))
    embedding.tables.requires_grad_(False)
    optimizer = torch.optim.Adam([embedding.scores], lr=0.3)
    toks = torch.randint(7, (4, 10, 2))
    for _ in range(30):
        optimizer.zero_grad()
        wanted = codebooks[1][toks[..., 1]] + embedding.proj.bias
        (embedding(toks) - wanted).square().mean().backward()
        optimizer.step()
    assert embedding.codebook_weights[1] > 0.95
    assert embedding.codebook_weights.sum().item() == pytest.approx(1)


def test_the_codecs_own_vectors_are_not_trained():
    codebooks = torch.randn(1, 7, 5)
    before = codebooks.clone()
    embedding = TokenEmbedding(codebooks, dim=4)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=1.0)
    embedding(torch.tensor([[[3]]])).square().sum().backward()
    optimizer.step()
    assert torch.equal(codebooks, before) and not codebooks.requires_grad
    changed = (embedding.tables[0].weight != before[0]).any(dim=1)
    assert changed.tolist() == [False, False, False, True, False, False, False]


def test_tokens_in_the_padding_enter_nothing():
    embedding = TokenEmbedding(torch.randn(2, 7, 5), dim=4)
    mask = lengths_to_mask(torch.tensor([6, 2, 0]), 6)
    toks = torch.randint(7, (3, 6, 2))
    embedded = embedding(toks.masked_fill(~mask[..., None], -(2**40)), mask=mask)
    assert torch.equal(embedded[mask], embedding(toks)[mask])
    assert not embedded[~mask].any()


@pytest.mark.parametrize("frames_per_tok", [1, 2, 4])
def test_features_in_the_padding_enter_nothing(frames_per_tok):
    embedding = FeatureEmbedding(5, dim=4, frames_per_tok=frames_per_tok)
    lengths = torch.tensor([11, 6, 5, 1])
    mask = lengths_to_mask(lengths, 11)
    feats = torch.randn(4, 11, 5).masked_fill(~mask[..., None], math.nan).requires_grad_()
    embedded = embedding(feats, mask=mask)
    assert embedded.shape == (4, math.ceil(11 / frames_per_tok), 4)
    for row, length in enumerate(lengths.tolist()):
        alone = embedding(feats[row : row + 1, :length])[0]
        assert torch.allclose(embedded[row, : len(alone)], alone, atol=1e-6)  # float32, one layer
        assert not embedded[row, len(alone) :].any()
    embedded.square().sum().backward()
    assert not feats.grad[~mask].any() and feats.grad[mask].any(dim=1).all()
    assert all(weight.grad.isfinite().all() for weight in embedding.parameters())


def test_every_frame_of_a_token_counts_in_its_place():
    embedding = FeatureEmbedding(5, dim=4, frames_per_tok=2)
    feats = torch.randn(1, 6, 5)
    swapped = feats[:, [0, 1, 3, 2, 4, 5]]
    changed = (embedding(swapped) - embedding(feats))[0].abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [False, True, False]
    louder = 7 * feats + 3
    assert torch.allclose(embedding(louder), embedding(feats), atol=1e-4)  # layer-normed


@pytest.mark.parametrize(
    "toks",
    [torch.zeros(2, 5).long(), torch.zeros(2, 5, 3).long(), torch.zeros(2, 5, 2)],
    ids=["no codebooks", "another number", "float"],
)
def test_tokens_that_do_not_fit_are_refused(toks):
    embedding = TokenEmbedding(torch.randn(2, 7, 5), dim=4)
    with pytest.raises(ValueError, match=r"toks must be \(B, L, 2\) int64, .*got torch\."):
        embedding(toks)


def test_other_misfits_are_refused():
    with pytest.raises(ValueError, match=r"codebooks must be .*codec.embeddings\(\).*\(7, 5\)"):
        TokenEmbedding(torch.randn(7, 5), dim=4)
    embedding = TokenEmbedding(torch.randn(2, 7, 5), dim=4)
    toks = torch.zeros(2, 5, 2).long()
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 5\) like toks"):
        embedding(toks, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(IndexError):
        embedding(toks + 7)
    with pytest.raises(ValueError, match="frames_per_tok must be at least 1, got 0"):
        FeatureEmbedding(5, dim=4, frames_per_tok=0)
    with pytest.raises(ValueError, match="feats must be .*5 channels"):
        FeatureEmbedding(5, dim=4)(torch.zeros(2, 3, 6))
