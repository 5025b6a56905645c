"""Enhancement and separation on tokens: padding, permutations, toy problems learnt by heart."""

import math
from itertools import permutations

import pytest
import torch
from torch.nn.functional import cross_entropy

from focalcodec.masking import lengths_to_mask
from recipes.downstream.separator import Separator
from recipes.downstream.token_losses import permutation_invariant, token_cross_entropy
from tests.test_focalnet import randomize

CODEBOOK_SIZE, FEATS_DIM = 11, 6
LENGTHS = torch.tensor([9, 6, 1])
MASK = lengths_to_mask(LENGTHS, 9)


def make_separator(num_codebooks=1, **changes):
    sizes = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 24, "kernel_size": 5}
    return Separator(torch.randn(num_codebooks, CODEBOOK_SIZE, 5), **sizes | changes)


def random_toks(*shape):
    return torch.randint(CODEBOOK_SIZE, shape)


def filled(x, mask, value):
    """With ``value`` where (B, L, ...) is padding."""
    return x.masked_fill(~mask.view(*mask.shape, *[1] * (x.ndim - 2)), value)


def test_padding_of_tokens_never_changes_a_result():
    separator = randomize(make_separator(2, num_sources=3))
    toks = filled(random_toks(3, 9, 2), MASK, -1)
    logits = separator(toks, mask=MASK)
    assert logits.shape == (3, 3, 9, 2, CODEBOOK_SIZE) and logits.isfinite().all()
    for row, length in enumerate(LENGTHS.tolist()):
        alone = separator(toks[row : row + 1, :length])[0]
        assert torch.allclose(logits[row, :, :length], alone, atol=1e-4)  # float32, 2 layers


@pytest.mark.parametrize("frames_per_tok", [1, 2, 4])
def test_padding_of_features_never_changes_a_result(frames_per_tok):
    options = {"feats_dim": FEATS_DIM, "frames_per_tok": frames_per_tok}
    separator = randomize(make_separator(num_sources=2, **options))
    feats = filled(torch.randn(3, 9, FEATS_DIM), MASK, math.nan)
    logits = separator(feats, mask=MASK)
    assert logits.shape == (3, 2, math.ceil(9 / frames_per_tok), 1, CODEBOOK_SIZE)
    assert logits.isfinite().all()
    for row, length in enumerate(LENGTHS.tolist()):
        alone = separator(feats[row : row + 1, :length])[0]
        assert torch.allclose(logits[row, :, : alone.shape[1]], alone, atol=1e-4)  # as above


def test_dropout_is_for_training():
    separator, toks = make_separator(dropout=0.5), random_toks(3, 9, 1)
    assert not torch.equal(separator(toks), separator(toks))
    separator.eval()
    assert torch.equal(separator(toks), separator(toks))


def test_loss_equals_the_mean_over_real_tokens():
    logits, toks = torch.randn(3, 9, 2, CODEBOOK_SIZE), random_toks(3, 9, 2)
    expected = cross_entropy(logits[MASK].flatten(0, 1), toks[MASK].flatten())
    logits = filled(logits, MASK, math.nan).requires_grad_()
    loss = token_cross_entropy(logits, filled(toks, MASK, -1), mask=MASK[..., None])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert not logits.grad[~MASK].any() and logits.grad[MASK].any(dim=-1).all()


@pytest.mark.parametrize("num_sources", [1, 2, 3])
def test_permutation_invariant_loss_equals_brute_force(num_sources):
    logits = 3 * torch.randn(3, num_sources, 9, 2, CODEBOOK_SIZE)
    toks = random_toks(3, num_sources, 9, 2)
    total, orders = 0.0, []
    for row, length in enumerate(LENGTHS.tolist()):
        means = {
            order: cross_entropy(
                logits[row, list(order), :length].flatten(0, 2), toks[row, :, :length].flatten()
            ).item()
            for order in permutations(range(num_sources))
        }
        orders.append(list(min(means, key=means.get)))
        total += length * min(means.values())
    padding = ~MASK[:, None, :, None]
    found = permutation_invariant(
        logits.masked_fill(padding[..., None], math.nan), toks.masked_fill(padding, -1), mask=MASK
    )
    assert found.loss.item() == pytest.approx(total / int(LENGTHS.sum()), rel=1e-5)
    assert found.order.tolist() == orders


def test_loss_of_half_precision_is_computed_in_float32():
    separator, mixture = make_separator(2, num_sources=2), random_toks(3, 9, 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = separator(mixture, mask=MASK)
        found = permutation_invariant(logits, random_toks(3, 2, 9, 2), mask=MASK)
    assert logits.dtype == torch.bfloat16 and found.loss.dtype == torch.float32
    found.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in separator.parameters())


def test_each_utterance_has_its_own_order():
    toks = random_toks(3, 3, 9, 1)
    order = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 0, 2]])
    logits = torch.empty(3, 3, 9, 1, CODEBOOK_SIZE)
    for row in range(3):  # the output that stands for each reference says it clearly
        logits[row, order[row]] = 20 * torch.nn.functional.one_hot(toks[row], CODEBOOK_SIZE).float()
    mask = torch.ones(3, 9, dtype=torch.bool)
    found = permutation_invariant(logits, toks, mask=mask)
    assert torch.equal(found.order, order) and found.loss < 1e-6
    ordered = logits.argmax(dim=-1)[torch.arange(3)[:, None], found.order]
    assert torch.equal(ordered, toks)


def test_gradient_is_that_of_the_chosen_order():
    padding = ~MASK[:, None, :, None, None]
    logits = torch.randn(3, 2, 9, 2, CODEBOOK_SIZE).masked_fill(padding, math.nan).requires_grad_()
    toks = random_toks(3, 2, 9, 2)
    found = permutation_invariant(logits, toks, mask=MASK)
    assert len(found.order.unique(dim=0)) == 2
    ordered = logits[torch.arange(3)[:, None], found.order]
    loss = token_cross_entropy(ordered, toks, mask=MASK[:, None, :, None])
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found.loss, logits)
    (expected,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient, expected, atol=1e-7)  # float32, sums of 64
    assert not gradient.masked_select(padding).any()


@pytest.mark.parametrize("num_sources", [1, 2])
@pytest.mark.parametrize("num_codebooks", [1, 2])
@pytest.mark.parametrize("feats_dim", [None, FEATS_DIM], ids=["tokens", "features"])
def test_toy_problem_is_learnt_by_heart(num_sources, num_codebooks, feats_dim):
    """The sources are functions of the input, and each utterance names them in an order of its own.

    Which output is which source is for the model to decide.
    """
    frames_per_tok = 1 if feats_dim is None else 2
    options = {"feats_dim": feats_dim, "frames_per_tok": frames_per_tok, "dropout": 0.0}
    separator = make_separator(num_codebooks, num_sources=num_sources, **options)
    mixture = random_toks(3, 9, num_codebooks)
    toks = torch.stack(
        [(mixture * 3 + shift) % CODEBOOK_SIZE for shift in range(1, 1 + num_sources)]
    )
    toks = toks.transpose(0, 1)  # (B, S, L, K)
    toks[1] = toks[1].flip(0)
    x, mask = filled(mixture, MASK, -1), MASK
    if feats_dim is not None:
        x, mask = torch.randn(3, 18, feats_dim), MASK.repeat_interleave(2, dim=1)
    optimizer = torch.optim.AdamW(separator.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        permutation_invariant(separator(x, mask=mask), toks, mask=MASK).loss.backward()
        optimizer.step()
    logits = separator.eval()(x, mask=mask)
    order = permutation_invariant(logits, toks, mask=MASK).order
    found = logits.argmax(dim=-1)[torch.arange(3)[:, None], order]
    real = MASK[:, None, :, None].expand_as(toks)
    assert torch.equal(found[real], toks[real])


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="num_sources and num_layers must be at least 1, got 0"):
        make_separator(num_sources=0)
    with pytest.raises(
        ValueError, match="frames_per_tok is 2, but tokens are read; give feats_dim"
    ):
        make_separator(frames_per_tok=2)
    logits, toks = torch.zeros(3, 2, 9, 1, CODEBOOK_SIZE), random_toks(3, 2, 9, 1)
    with pytest.raises(ValueError, match=r"got \(3, 2, 9, 1, 11\), \(3, 1, 9, 1\) and \(3, 9\)"):
        permutation_invariant(logits, toks[:, :1], mask=MASK)
