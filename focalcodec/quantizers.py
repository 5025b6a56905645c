"""Binary quantizers: latents to sign codes and tokens, and the entropy term that trains them.

Pipeline position: compressor -> lats (B, L, D) -> **quantizer** -> toks (B, L), codes (B, L, D) ->
decompressor. Binary spherical quantization [1]_ is the paper's choice; lookup-free quantization
[2]_ is the same without the sphere. Neither has parameters, buffers or anything in a state dict,
and one class serves training and inference.

The entropy term compares every latent with all 2^D codes. For sign codes the softmax over the
codes is a product of D independent bits, so nothing of size frames x 2^D is ever needed:
`_BitEntropies` computes value and gradient exactly from two half-code tables.

References
----------
.. [1] Zhao et al., 2024, "Image and Video Tokenization with Binary Spherical Quantization",
       arXiv:2406.07548.
.. [2] Yu et al., 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation",
       arXiv:2310.05737.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

_NORM_EPS = 1e-12  # of the L2 norm, as published
_MAX_BITS = 62  # tokens and their number fit into int64
# Of the half-code tables of one block of frames: 1 MiB in float32 stays in a CPU's cache; other
# devices want few, large launches.
_TABLE_ELEMENTS = {"cpu": 2**18}
_TABLE_ELEMENTS_ELSEWHERE = 2**22


class Quantized(NamedTuple):
    """Result of a quantizer: ``toks`` (..., L) int64 in [0, 2^D) and ``codes`` (..., L, D)."""

    toks: Tensor
    codes: Tensor


class EntropyTerms(NamedTuple):
    """Entropy term and its two parts, scalars in nats; ``loss`` is what training adds."""

    loss: Tensor
    sample_entropy: Tensor
    codebook_entropy: Tensor


class _SignQuantizer(nn.Module):
    """What all sign quantizers share; a subclass says how large a code is and what it quantizes.

    Parameters
    ----------
    code_dim : bits per token D, in [1, 62].

    Attributes
    ----------
    codebook_size : number of codes, 2^D.

    Raises
    ------
    ValueError : if ``code_dim`` is not an integer in [1, 62].
    """

    def __init__(self, code_dim: int = 13) -> None:
        super().__init__()
        if not isinstance(code_dim, int) or isinstance(code_dim, bool):
            raise ValueError(f"code_dim is a whole number of bits, got {code_dim!r}")
        if not 1 <= code_dim <= _MAX_BITS:
            raise ValueError(f"code_dim is between 1 and {_MAX_BITS} bits, got {code_dim}")
        self.code_dim = code_dim
        self.codebook_size = 2**code_dim

    @property
    def code_value(self) -> float:
        """Absolute value of every entry of a code."""
        raise NotImplementedError

    def _project(self, lats: Tensor) -> Tensor:
        """Latents in the space of the codes: where the straight-through estimator acts."""
        raise NotImplementedError

    @property
    def codebook(self) -> Tensor:
        """(2^D, D) float32, row ``t`` is the code of token ``t``. Made anew, on the CPU."""
        return self.toks_to_codes(torch.arange(self.codebook_size))

    def forward(self, lats: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """Quantize latents, with a straight-through gradient.

        The value of ``codes`` is that of `lats_to_codes`, whether or not gradients are recorded;
        their gradient is passed on to the projected (for BSQ: normalized) latents unchanged.

        Parameters
        ----------
        lats : (B, L, D) or any (..., D), floating point, not normalized. Half precision is
            computed, and returned, in float32.
        mask : (B, L) bool, True for real frames. Padded frames get token 0 and a code of zeros,
            and whatever stands there neither enters nor receives a gradient.

        Returns
        -------
        ``toks`` (B, L) int64 and ``codes`` (B, L, D).

        Raises
        ------
        ValueError : if the last axis is not D, ``lats`` is not floating point, or ``mask`` has
            another shape or dtype.
        """
        lats = self._checked_vectors(lats, name="lats")
        if mask is not None:
            padding = ~_checked_mask(mask, lats)
            lats = lats.masked_fill(padding[..., None], 0.0)
        codes = self.lats_to_codes(lats)
        toks = self.codes_to_toks(codes)
        if torch.is_grad_enabled() and lats.requires_grad:
            projected = self._project(lats)
            # The difference is exactly 0 (NaN for a NaN latent, so that training notices).
            codes = codes + (projected - projected.detach())
        if mask is not None:
            codes = codes.masked_fill(padding[..., None], 0.0)
        return Quantized(toks, codes)

    def lats_to_codes(self, lats: Tensor) -> Tensor:
        """Signs of latents, scaled to the length of a code; no gradient.

        A latent of exactly 0 (either zero) or NaN gives a negative entry, bit 0, as the published
        code does; the text of the BSQ and FocalCodec papers gives 0 a positive sign.

        Parameters
        ----------
        lats : (..., D) floating point, normalized or not.

        Returns
        -------
        (..., D) codes with entries +-`code_value`.

        Raises
        ------
        ValueError : if the last axis is not D or ``lats`` is not floating point.
        """
        lats = self._checked_vectors(lats, name="lats").detach()
        return self._bits_to_codes(lats > 0, dtype=lats.dtype)

    def codes_to_toks(self, codes: Tensor) -> Tensor:
        """Tokens of codes: bit i is set where entry i is positive, first entry most significant.

        Parameters
        ----------
        codes : (..., D) floating point.

        Returns
        -------
        (...) int64 in [0, 2^D).

        Raises
        ------
        ValueError : if the last axis is not D or ``codes`` is not floating point.
        """
        bits = self._checked_vectors(codes, name="codes") > 0
        return (bits.long() << self._shifts(codes.device)).sum(dim=-1)

    def lats_to_toks(self, lats: Tensor) -> Tensor:
        """Tokens (...) int64 of latents (..., D): `lats_to_codes`, then `codes_to_toks`."""
        return self.codes_to_toks(self.lats_to_codes(lats))

    def toks_to_codes(self, toks: Tensor) -> Tensor:
        """Codes of tokens.

        Parameters
        ----------
        toks : (...) of any integer dtype, in [0, 2^D).

        Returns
        -------
        (..., D) float32 codes with entries +-`code_value`.

        Raises
        ------
        ValueError : if ``toks`` is not of an integer dtype or holds a token out of range.
        """
        if toks.is_floating_point() or toks.is_complex() or toks.dtype == torch.bool:
            raise ValueError(f"toks must be integers, got {toks.dtype}; convert with toks.long()")
        toks = toks.long()
        if toks.numel() and not 0 <= int(toks.min()) <= int(toks.max()) < self.codebook_size:
            raise ValueError(
                f"toks must be in [0, {self.codebook_size}) with {self.code_dim} bits, got "
                f"{int(toks.min())} to {int(toks.max())}; were they made with another codebook?"
            )
        bits = (toks[..., None] >> self._shifts(toks.device)) & 1
        return self._bits_to_codes(bits.bool(), dtype=torch.float32)

    def entropy_loss(
        self,
        lats: Tensor,
        *,
        mask: Tensor | None = None,
        inverse_temperature: float = 100.0,
        diversity_weight: float = 1.0,
        clamp: float | None = None,
        across_ranks: bool = True,
    ) -> EntropyTerms:
        """Entropy of soft code assignments: confident frames, evenly used codes.

        With u the projected latents and t the inverse temperature, a frame's assignment is the
        softmax of 2 t u.c over all codes c. As c has independent signs, it is the product over i
        of P(bit i = 1) = sigmoid(4 t v u_i), v the `code_value`: 1/sqrt(D) for BSQ, 1 for LFQ.
        The loss is the mean entropy of a frame's assignment minus ``diversity_weight`` times the
        entropy of the mean assignment ([1]_, section on the entropy penalty), both exact.

        **Distributed training.** When `torch.distributed` is initialised, one all-reduce makes
        both terms those of the frames of all W ranks, each frame with the same weight however
        many a rank holds, and every rank returns the same values. The gradient that a rank gets is
        W times the derivative with respect to its own latents, because DistributedDataParallel
        divides the sum of the ranks' gradients by W: what it then holds is exactly the gradient of
        one process with all the frames. That assumes what DDP training does anyway: every rank
        scales the loss alike. No collective runs in the backward pass. All ranks have to call this
        equally often, and a rank without a real frame takes part.

        Parameters
        ----------
        lats : (B, L, D) or any (..., D) latents before normalization. Computed in float32 (float64
            for float64 latents), under autocast too; on CUDA, TF32 matrix products, where allowed,
            round the mean assignment.
        mask : (B, L) bool, True for real frames; padding enters neither value nor gradient.
        inverse_temperature : t > 0; 100 in SpeechBrain's recipe.
        diversity_weight : weight of the codebook entropy (gamma).
        clamp : lower bound of probabilities inside the logarithm, in (0, 1). 1e-5 reproduces
            ``speechbrain.lobes.models.bsq``, where it moves the value by about 2e-3 nat. The sum
            over codes then no longer factorises: memory stays small, time does not.
        across_ranks : False keeps to this process's frames, e.g. to validate on one rank only.

        Returns
        -------
        Scalars in nats: ``loss``; ``sample_entropy`` and ``codebook_entropy``, each in
        [0, D log 2]; NaN if no frame is real (on any rank, where ranks are averaged): to raise
        would mean to wait for the device.

        Raises
        ------
        ValueError : if ``inverse_temperature`` or ``clamp`` is out of range, or shapes or dtypes
            do not fit.

        References
        ----------
        .. [1] Zhao et al., 2024, arXiv:2406.07548.
        """
        if not 0 < inverse_temperature < math.inf:
            raise ValueError(f"inverse_temperature must be positive, got {inverse_temperature}")
        if clamp is not None and not 0 < clamp < 1:
            raise ValueError(f"clamp is None or a probability in (0, 1), got {clamp}")
        lats = self._checked_vectors(lats, name="lats")
        weights = None
        if mask is not None:
            # Selecting frames would mean to wait for the device.
            lats = lats.masked_fill(~_checked_mask(mask, lats)[..., None], 0)
            weights = mask.reshape(-1).to(lats.dtype)
        lats = lats.reshape(-1, self.code_dim)
        with torch.autocast(lats.device.type, enabled=False):
            logits = self._project(lats) * (4.0 * inverse_temperature * self.code_value)
            sample, codebook = _BitEntropies.apply(logits, weights, clamp, across_ranks)
            return EntropyTerms(sample - diversity_weight * codebook, sample, codebook)

    def extra_repr(self) -> str:
        """Arguments shown by ``print(module)``."""
        return f"code_dim={self.code_dim}"

    def _checked_vectors(self, x: Tensor, *, name: str) -> Tensor:
        """``x`` in float32 or float64, after checking that it is (..., D) floating point."""
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != self.code_dim:
            raise ValueError(
                f"{name} must be (..., {self.code_dim}), code_dim last, got shape {tuple(x.shape)}"
            )
        return x if x.dtype == torch.float64 else x.float()

    def _shifts(self, device: torch.device) -> Tensor:
        """(D,) position of each bit in a token, most significant first."""
        return torch.arange(self.code_dim - 1, -1, -1, device=device)

    def _bits_to_codes(self, bits: Tensor, *, dtype: torch.dtype) -> Tensor:
        value = torch.tensor(self.code_value, dtype=dtype, device=bits.device)
        return torch.where(bits, value, -value)


class BinarySphericalQuantizer(_SignQuantizer):
    """Signs of latents on the unit sphere: 2^D codes with entries +-1/sqrt(D).

    Parameters
    ----------
    code_dim : bits per token D, in [1, 62]; 13 in the paper.

    Raises
    ------
    ValueError : if ``code_dim`` is not an integer in [1, 62].

    References
    ----------
    .. [1] Zhao et al., 2024, arXiv:2406.07548.
    """

    @property
    def code_value(self) -> float:
        """Absolute value of every entry of a code: 1/sqrt(D), so that codes have norm 1."""
        return self.code_dim**-0.5

    def _project(self, lats: Tensor) -> Tensor:
        return F.normalize(lats, dim=-1, eps=_NORM_EPS)


class LookupFreeQuantizer(_SignQuantizer):
    """Signs of latents as they are: 2^D codes with entries +-1.

    The soft assignment is the softmax of 2 t x.c (the squared distance to a code, up to terms that
    all codes share), so a bit's logit is 4 t x_i and is not bounded as on the sphere.

    Parameters
    ----------
    code_dim : bits per token D, in [1, 62].

    Raises
    ------
    ValueError : if ``code_dim`` is not an integer in [1, 62].

    References
    ----------
    .. [1] Yu et al., 2023, arXiv:2310.05737, section 3.1 (without its factorised codebooks).
    """

    @property
    def code_value(self) -> float:
        """Absolute value of every entry of a code: 1."""
        return 1.0

    def _project(self, lats: Tensor) -> Tensor:
        return lats


def _checked_mask(mask: Tensor, lats: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != lats.shape[:-1]:
        raise ValueError(
            f"mask must be bool of shape {tuple(lats.shape[:-1])}, True for real frames, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return mask


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
