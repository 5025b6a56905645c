"""Entropies of soft assignments to binary codes, exact and without a frames x codes tensor.

The entropy term of binary quantizers compares every latent with all 2^D codes. For sign codes the
softmax over the codes is a product of D independent bits, so nothing of size frames x 2^D is ever
needed: value and gradient come exactly from two half-code tables. `focalcodec.quantizers` turns
latents into the bits' logits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

# Of the half-code tables of one block of frames: 1 MiB in float32 stays in a CPU's cache; other
# devices want few, large launches.
_TABLE_ELEMENTS = {"cpu": 2**18}
_TABLE_ELEMENTS_ELSEWHERE = 2**22


def bit_entropies(
    logits: Tensor,
    *,
    weights: Tensor | None = None,
    clamp: float | None = None,
    across_ranks: bool = True,
) -> tuple[Tensor, Tensor]:
    """Mean entropy of products of bits, and entropy of their mean, over the frames of all ranks.

    `focalcodec.quantizers.BinarySphericalQuantizer.entropy_loss` says what ranks get as gradients.

    Parameters
    ----------
    logits : (frames, D) of the bits, float32 or float64.
    weights : (frames,) 1 for real frames, 0 for padding; None for ones.
    clamp : lower bound of probabilities inside the logarithm; None for none.
    across_ranks : whether the frames of all ranks count, where there are ranks.

    Returns
    -------
    Two scalars in nats, NaN if no frame is real.
    """
    return _BitEntropies.apply(logits, weights, clamp, across_ranks)


class _BitEntropies(torch.autograd.Function):
    """Mean entropy of products of bits, and entropy of their mean, over the frames of all ranks.

    Bits are split in two halves. A frame's distribution over all codes is the outer product of its
    distributions a over the first and b over the second half-codes, so that the sum over frames is
    one matrix product A B^T of two tables, (2^floor(D/2), frames) and (2^ceil(D/2), frames).
    With E the derivative of the loss with respect to that product, those with respect to the tables
    are E B and E^T A, and that with respect to the logit of bit i, of probability s, is
    (1 - s) sum_{k: bit i of k = 1} a_k (E B)_k - s sum_{k: bit i of k = 0} a_k (E B)_k. Unlike
    shorter forms it stays precise where s is close to 0 or 1.

    Frames are taken in blocks, so that tables stay small. Only the logits and E are kept for the
    backward pass; the tables are made again.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        weights: Tensor | None,
        clamp: float | None,
        across_ranks: bool,
    ) -> tuple[Tensor, Tensor]:
        """Entropies in nats from the logits (frames, D) of the bits; weights (frames,) 0 or 1."""
        if weights is None:
            weights = logits.new_ones(logits.shape[0])
        high = logits.shape[1] // 2  # bits in the first half
        code_sum = logits.new_zeros(2**high, 2 ** (logits.shape[1] - high))
        sample_sum = logits.new_zeros(())
        for block, weight in _blocks(logits, weights):
            p1, p0 = torch.sigmoid(block), torch.sigmoid(-block)
            a, b = _table(p1[:high], p0[:high]), _table(p1[high:], p0[high:])
            if clamp is None:
                size = block.abs()
                bits = F.softplus(-size) + size * torch.sigmoid(-size)
                sample_sum += bits.sum(dim=0) @ weight
            else:
                for a_part, b_part, part in _parts(a, b, weight):
                    p = a_part[:, None] * b_part
                    sample_sum -= (p.clamp(min=clamp).log_() * p).sum(dim=(0, 1)) @ part
            code_sum.addmm_(a.mul_(weight), b.T)
        count, ctx.world_size = weights.sum(), 1
        if across_ranks and torch.distributed.is_available():
            if torch.distributed.is_initialized():
                count, ctx.world_size = _sum_over_ranks(code_sum, sample_sum, count)
        entropy, slope = _entropy_and_slope(code_sum / count, clamp=clamp)
        ctx.clamp = clamp
        ctx.save_for_backward(logits, weights, slope, count)
        return sample_sum / count, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, sample_grad: Tensor, codebook_grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """Gradient (frames, D) of this rank's logits, W times its share (see `entropy_loss`)."""
        logits, weights, slope, count = ctx.saved_tensors
        high = logits.shape[1] // 2
        with torch.autocast(logits.device.type, enabled=False):
            scale = ctx.world_size / count
            slope = slope * (codebook_grad * scale)
            grad = torch.empty_like(logits)
            for block, weight, out in _blocks(logits, weights, grad):
                p1, p0 = torch.sigmoid(block), torch.sigmoid(-block)
                a, b = _table(p1[:high], p0[:high]), _table(p1[high:], p0[high:])
                a_grad, b_grad = slope @ b, slope.T @ a
                if ctx.clamp is not None:
                    _add_clamped_slopes(
                        a, b, a_grad, b_grad, clamp=ctx.clamp, scale=sample_grad * scale
                    )
                out[:high] = _bit_grad(a_grad.mul_(a), p1[:high], p0[:high])
                out[high:] = _bit_grad(b_grad.mul_(b), p1[high:], p0[high:])
                if ctx.clamp is None:
                    out -= block * p1 * p0 * (sample_grad * scale)
                out *= weight
        return grad, None, None, None


def _blocks(logits: Tensor, weights: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views (D, frames) of logits (frames, D), so few frames that tables stay small.

    With them, those of the weights (frames,) and of others in the logits' shape.
    """
    code_dim = logits.shape[1]
    per_frame = 2 ** (code_dim // 2) + 2 ** (code_dim - code_dim // 2)
    size = _frames_at_once(logits, per_frame)
    others = [x.T.split(size, dim=1) for x in others]
    return zip(logits.T.split(size, dim=1), weights.split(size), *others, strict=True)


def _parts(*tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tables a, b and others (..., frames), cut so that the outer products of a, b stay small."""
    a, b = tables[:2]
    frames = _frames_at_once(a, a.shape[0] * b.shape[0])
    return zip(*(table.split(frames, dim=-1) for table in tables), strict=True)


def _frames_at_once(x: Tensor, elements_per_frame: int) -> int:
    elements = _TABLE_ELEMENTS.get(x.device.type, _TABLE_ELEMENTS_ELSEWHERE)
    return max(elements // elements_per_frame, 1)


def _table(p1: Tensor, p0: Tensor) -> Tensor:
    """Probabilities (2^H, frames) of all half-codes from those of H bits being 1 and 0.

    What is too small for the product of two tables to be a normal number becomes 0: it is far
    below what a sum of float32 probabilities can hold, and denormal numbers are slow on CPUs.
    """
    num_bits, frames = p1.shape
    least = torch.finfo(p1.dtype).tiny ** 0.5
    table = p1.new_ones(2**num_bits, frames)
    size = 1
    for i in range(num_bits - 1, -1, -1):  # bit i is above those already in the table
        torch.mul(table[:size], p1[i], out=table[size : 2 * size])
        table[:size] *= p0[i]
        size *= 2
        F.threshold_(table[:size], least, 0.0)
    return table


def _bit_grad(weighted: Tensor, p1: Tensor, p0: Tensor) -> Tensor:
    """Gradient (H, frames) of logits from probability x gradient (2^H, frames) of half-codes."""
    num_bits = p1.shape[0]
    shifts = torch.arange(num_bits - 1, -1, -1, device=p1.device)
    is_set = (torch.arange(2**num_bits, device=p1.device) >> shifts[:, None]) & 1
    is_set = is_set.to(weighted.dtype)
    return p0 * (is_set @ weighted) - p1 * ((1.0 - is_set) @ weighted)


def _entropy_and_slope(mean: Tensor, *, clamp: float | None) -> tuple[Tensor, Tensor]:
    """Entropy of the distribution ``mean`` and its derivative, the latter up to a constant.

    A frame's probabilities always sum to 1, so a constant has no effect on logits; it is chosen
    such that well-used codes get small values, which keeps rounding small.
    """
    log_mean = mean.clamp(min=clamp or torch.finfo(mean.dtype).tiny).log_()
    entropy = -(mean * log_mean).sum()
    slope = -log_mean - entropy
    return entropy, slope if clamp is None else slope + (mean < clamp).to(mean.dtype)


def _add_clamped_slopes(
    a: Tensor, b: Tensor, a_grad: Tensor, b_grad: Tensor, *, clamp: float, scale: Tensor
) -> None:
    """Add to the tables' gradients, in place, those of the clamped per-frame entropies."""
    for a_part, b_part, a_out, b_out in _parts(a, b, a_grad, b_grad):
        p = a_part[:, None] * b_part  # (2^floor(D/2), 2^ceil(D/2), frames)
        slope = (p < clamp).to(p.dtype).sub_(p.clamp_(min=clamp).log_()).mul_(scale)
        a_out += (slope * b_part).sum(dim=1)
        b_out += (slope * a_part[:, None]).sum(dim=0)


def _sum_over_ranks(code_sum: Tensor, sample_sum: Tensor, count: Tensor) -> tuple[Tensor, int]:
    """Sum over ranks, in place; the count of all frames and the number of ranks."""
    packed = torch.cat([code_sum.flatten(), sample_sum[None], count[None]])
    torch.distributed.all_reduce(packed)
    code_sum.copy_(packed[:-2].view_as(code_sum))
    sample_sum.copy_(packed[-2])
    return packed[-1], torch.distributed.get_world_size()
