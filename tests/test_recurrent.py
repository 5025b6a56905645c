"""The shallow models of the discriminative tasks: padding, pooling, what they start from."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from recipes.downstream.recurrent import BiLSTM, Classifier, Recognizer, pool


@pytest.fixture
def codebooks() -> torch.Tensor:
    return torch.randn(2, 10, 6)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (3, 7, 2) of 7, 4 and 1 steps, and mask."""
    toks = torch.randint(10, (3, 7, 2))
    return toks, torch.arange(7) < torch.tensor([[7], [4], [1]])


MODELS = {
    "recognizer": lambda codebooks: Recognizer(codebooks, num_units=5, hidden_dim=8),
    "classifier": lambda codebooks: Classifier(codebooks, num_labels=5, hidden_dim=8),
}


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name, codebooks, batch):
    model = MODELS[name](codebooks).eval()
    toks, mask = batch
    together = model(toks.masked_fill(~mask[..., None], 9), mask=mask)
    for row, size in enumerate(mask.sum(1).tolist()):
        alone = model(toks[row : row + 1, :size], mask=mask[row : row + 1, :size])[0]
        found = together[row, :size] if name == "recognizer" else together[row]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)  # float32, two layers


@pytest.mark.parametrize("name", MODELS)
def test_losses_of_half_precision_start_from_float32(name, codebooks, batch):
    model = MODELS[name](codebooks)
    toks, mask = batch
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(toks, mask=mask)
    assert scores.dtype == torch.float32
    (scores * torch.randn(5)).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_weight(name, codebooks, batch):
    model = MODELS[name](codebooks)
    toks, mask = batch
    (model(toks, mask=mask) * torch.randn(5)).sum().backward()
    for weight, value in model.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, weight


def test_log_probabilities_are_normalized(codebooks, batch):
    toks, mask = batch
    log_probs = MODELS["recognizer"](codebooks)(toks, mask=mask)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 7))


def test_pooling_is_mean_and_standard_deviation_of_real_steps():
    x = torch.randn(2, 6, 4)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    pooled = pool(x.masked_fill(~mask[..., None], 0), mask=mask)
    for row, size in enumerate((6, 3)):
        real = x[row, :size]
        expected = torch.cat([real.mean(0), real.std(0, correction=0)])
        torch.testing.assert_close(pooled[row], expected)


def test_a_single_step_has_a_finite_gradient():
    x = torch.randn(1, 1, 4, requires_grad=True)
    pool(x, mask=torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    assert x.grad.isfinite().all()


def test_both_directions_are_those_of_packed_sequences(codebooks, batch):
    trunk = BiLSTM(codebooks, hidden_dim=8, num_layers=2).eval()
    packed = torch.nn.LSTM(8, 8, 2, bidirectional=True, batch_first=True)
    for layer, pair in enumerate(zip(trunk.ahead, trunk.back, strict=True)):
        for lstm, suffix in zip(pair, ("", "_reverse"), strict=True):
            for name, weight in lstm.named_parameters():
                getattr(packed, f"{name[:-1]}{layer}{suffix}").data.copy_(weight)
    toks, mask = batch
    x = pack_padded_sequence(
        trunk.embedding(toks, mask=mask), mask.sum(1), batch_first=True, enforce_sorted=False
    )
    expected, _ = pad_packed_sequence(packed(x)[0], batch_first=True)
    torch.testing.assert_close(trunk(toks, mask=mask), expected, rtol=0, atol=1e-6)
