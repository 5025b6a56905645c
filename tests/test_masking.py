"""Masks: relative lengths are inverted exactly, masks are prefixes, padding never counts."""

import pytest
import torch

from focalcodec.masking import check_mask, lengths_to_mask, masked_mean, num_valid, zero_padding


def test_relative_lengths_give_back_every_length_up_to_1500():
    for size in range(1, 1501):
        lengths = torch.arange(1, size + 1)
        assert torch.equal(num_valid(lengths / size, size), lengths), size


@pytest.mark.parametrize("size", [480_000, 999_983, 2**23 - 1], ids=["30 s", "prime", "349 s"])
def test_relative_lengths_give_back_every_length_of_long_signals(size):
    lengths = torch.arange(1, size + 1)
    lens = lengths / size
    assert lens.dtype == torch.float32
    assert torch.equal(num_valid(lens, size), lengths)


def test_absolute_lengths_stay_within_the_padded_length():
    lens = torch.tensor([1e-9, 0.04, 0.5, 0.999, 1.0, 1.0 + 1e-6])
    assert num_valid(lens, 10).tolist() == [1, 1, 5, 10, 10, 10]
    assert num_valid(lens, 10).dtype == torch.int64


def test_masks_are_prefixes_of_the_given_lengths():
    lengths = torch.arange(8)
    mask = lengths_to_mask(lengths, 7)
    assert mask.shape == (8, 7) and mask.dtype == torch.bool
    assert torch.equal(mask.sum(dim=1), lengths)
    assert not (mask[:, 1:] & ~mask[:, :-1]).any()  # never False, then True


@pytest.mark.parametrize("trailing", [(), (4,), (4, 2)], ids=["scalars", "vectors", "matrices"])
def test_masked_mean_is_that_of_the_real_frames(trailing):
    x = torch.randn(3, 5, *trailing)
    mask = lengths_to_mask(torch.tensor([5, 2, 1]), 5)
    expected = torch.cat([x[0], x[1, :2], x[2, :1]]).mean(dim=0)
    padding = ~mask.reshape(3, 5, *(1 for _ in trailing))
    padded = x.masked_fill(padding, torch.nan).requires_grad_()
    mean = masked_mean(padded, mask=mask)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(masked_mean(x), x.flatten(0, 1).mean(dim=0))
    mean.sum().backward()
    assert not padded.grad[~mask].any() and padded.grad[mask].all()


def test_mean_of_no_frame_is_nan_or_refused():
    assert masked_mean(torch.ones(2, 3), mask=torch.zeros(2, 3, dtype=torch.bool)).isnan()
    with pytest.raises(ValueError, match="at least one frame"):
        masked_mean(torch.ones(2, 0))


def test_padding_becomes_zero_whatever_it_holds():
    mask = lengths_to_mask(torch.tensor([3, 1]), 3)
    real = torch.randn(2, 3, 4)
    for filling in (torch.nan, torch.inf, 1e4):
        x = real.masked_fill(~mask[..., None], filling).requires_grad_()
        y = zero_padding(x, mask=mask)
        assert torch.equal(y[mask], real[mask]) and not y[~mask].any()
        y.sum().backward()
        assert torch.equal(x.grad, mask[..., None].float().expand(2, 3, 4))
    assert zero_padding(real, mask=None) is real


def test_a_mask_that_does_not_fit_is_named():
    feats = torch.zeros(2, 3, 4)
    check_mask(None, like=feats, name="feats")
    check_mask(torch.ones(2, 3, dtype=torch.bool), like=feats, name="feats")
    for mask in (torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool), torch.ones(3).bool()):
        with pytest.raises(
            ValueError, match=r"mask must be bool of shape \(2, 3\) like feats, got"
        ):
            check_mask(mask, like=feats, name="feats")
