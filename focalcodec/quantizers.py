"""Quantizers: latents to codes and tokens, and the terms that train them.

Pipeline position: compressor -> lats (B, L, D) -> **quantizer** -> toks (B, L), codes (B, L, D) ->
decompressor. Binary spherical quantization [1]_ is the paper's choice; lookup-free quantization
[2]_ is the same without the sphere; finite scalar quantization is in `focalcodec.fsq`. None of
these has anything in a state dict; the centroids of `focalcodec.kmeans` are the only weights that a
quantizer has. One class serves training and inference.

What a quantizer adds to the training loss it says itself: `entropy_loss` (sign codes) and
`commitment_loss` (LFQ) are None where the method has no such term.

References
----------
.. [1] Zhao et al., 2024, "Image and Video Tokenization with Binary Spherical Quantization",
       arXiv:2406.07548.
.. [2] Yu et al., 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation",
       arXiv:2310.05737.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from focalcodec.entropy import bit_entropies
from focalcodec.masking import masked_mean

_NORM_EPS = 1e-12  # of the L2 norm, as published
MAX_BITS = 62  # tokens and their number fit into int64


class Quantized(NamedTuple):
    """Result of a quantizer: ``toks`` (..., L) int64 below its size, and ``codes`` (..., L, D)."""

    toks: Tensor
    codes: Tensor


class EntropyTerms(NamedTuple):
    """Entropy term and its two parts, scalars in nats; ``loss`` is what training adds."""

    loss: Tensor
    sample_entropy: Tensor
    codebook_entropy: Tensor


class Quantizer(nn.Module):
    """What all quantizers share: checks, padding and the straight-through estimator.

    Attributes
    ----------
    code_dim : entries of a code, D.
    codebook_size : number of codes.
    """

    code_dim: int
    codebook_size: int

    def lats_to_codes(self, lats: Tensor) -> Tensor:
        """Codes (..., D) of latents (..., D); no gradient."""
        raise NotImplementedError

    def codes_to_toks(self, codes: Tensor) -> Tensor:
        """Tokens (...) int64 of codes (..., D)."""
        raise NotImplementedError

    def toks_to_codes(self, toks: Tensor) -> Tensor:
        """Codes (..., D) float32 of tokens (...)."""
        raise NotImplementedError

    def _project(self, lats: Tensor) -> Tensor:
        """Latents in the space of the codes: where the straight-through estimator acts."""
        raise NotImplementedError

    def normalize(self, lats: Tensor) -> Tensor:
        """Latents (..., D) without what the codes do not depend on; as they are if on all of it."""
        return lats

    def entropy_loss(
        self,
        lats: Tensor,
        *,
        mask: Tensor | None = None,
        inverse_temperature: float = 100.0,
        diversity_weight: float = 1.0,
        clamp: float | None = None,
        across_ranks: bool = True,
    ) -> EntropyTerms | None:
        """Term that makes codes sure and evenly used; None for a method without it."""
        return None

    def commitment_loss(self, lats: Tensor, *, mask: Tensor | None = None) -> Tensor | None:
        """Term that ties latents to their codes; None for a method without it."""
        return None

    @property
    def codebook(self) -> Tensor:
        """(codebook_size, D) float32, row ``t`` is the code of token ``t``. Made on the CPU."""
        return self.toks_to_codes(torch.arange(self.codebook_size))

    def forward(self, lats: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """Quantize latents, with a straight-through gradient.

        The value of ``codes`` is that of `lats_to_codes`, whether or not gradients are recorded;
        their gradient is passed on to the projected (BSQ: normalized, FSQ: bounded) latents
        unchanged.

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
        toks, codes = self._quantize(lats)
        if torch.is_grad_enabled() and lats.requires_grad:
            projected = self._project(lats)
            # The difference is exactly 0 (NaN for a NaN latent, so that training notices).
            codes = codes + (projected - projected.detach())
        if mask is not None:
            toks = toks.masked_fill(padding, 0)
            codes = codes.masked_fill(padding[..., None], 0.0)
        return Quantized(toks, codes)

    def lats_to_toks(self, lats: Tensor) -> Tensor:
        """Tokens (...) int64 of latents (..., D): `lats_to_codes`, then `codes_to_toks`."""
        return self.codes_to_toks(self.lats_to_codes(lats))

    def _quantize(self, lats: Tensor) -> Quantized:
        """Tokens and codes of checked latents; no gradient."""
        codes = self.lats_to_codes(lats)
        return Quantized(self.codes_to_toks(codes), codes)

    def _checked_vectors(self, x: Tensor, *, name: str) -> Tensor:
        """``x`` in float32 or float64, after checking that it is (..., D) floating point."""
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != self.code_dim:
            raise ValueError(
                f"{name} must be (..., {self.code_dim}), code_dim last, got shape {tuple(x.shape)}"
            )
        return x if x.dtype == torch.float64 else x.float()

    def _checked_toks(self, toks: Tensor) -> Tensor:
        """``toks`` as int64, after checking that they are tokens of this codebook."""
        if toks.is_floating_point() or toks.is_complex() or toks.dtype == torch.bool:
            raise ValueError(f"toks must be integers, got {toks.dtype}; convert with toks.long()")
        toks = toks.long()
        if toks.numel() and not 0 <= int(toks.min()) <= int(toks.max()) < self.codebook_size:
            raise ValueError(
                f"toks must be in [0, {self.codebook_size}) with {self.extra_repr()}, got "
                f"{int(toks.min())} to {int(toks.max())}; were they made with another codebook?"
            )
        return toks


class _SignQuantizer(Quantizer):
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
        if not 1 <= code_dim <= MAX_BITS:
            raise ValueError(f"code_dim is between 1 and {MAX_BITS} bits, got {code_dim}")
        self.code_dim = code_dim
        self.codebook_size = 2**code_dim

    @property
    def code_value(self) -> float:
        """Absolute value of every entry of a code."""
        raise NotImplementedError

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
        toks = self._checked_toks(toks)
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
            sample, codebook = bit_entropies(
                logits, weights=weights, clamp=clamp, across_ranks=across_ranks
            )
            return EntropyTerms(sample - diversity_weight * codebook, sample, codebook)

    def extra_repr(self) -> str:
        """Arguments shown by ``print(module)``."""
        return f"code_dim={self.code_dim}"

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

    def normalize(self, lats: Tensor) -> Tensor:
        """Latents (..., D) of length 1."""
        return F.normalize(lats, dim=-1, eps=_NORM_EPS)

    def _project(self, lats: Tensor) -> Tensor:
        return self.normalize(lats)


class LookupFreeQuantizer(_SignQuantizer):
    """Signs of latents as they are: 2^D codes with entries +-1.

    The soft assignment is the softmax of 2 t x.c (the squared distance to a code, up to terms that
    all codes share), so a bit's logit is 4 t x_i: not bounded as on the sphere, and near a code D
    times as large. At t = 100 the entropy term has a gradient only where latents are close to 0.

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

    def commitment_loss(self, lats: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Squared distance of latents to their codes, mean over real frames and entries.

        Without the sphere nothing else keeps latents at the size of codes. The paper inherits the
        term from VQ-VAE; the widely used implementation, lucidrains' vector-quantize-pytorch, had
        it with weight 0.25.

        Parameters
        ----------
        lats : (B, L, D) latents.
        mask : (B, L) bool, True for real frames.

        Returns
        -------
        Scalar; its gradient reaches latents only. NaN if no frame is real.

        Raises
        ------
        ValueError : if shapes or dtypes do not fit.
        """
        lats = self._checked_vectors(lats, name="lats")
        if mask is not None:
            # Selected by masked_mean alone, a NaN would still have a gradient of NaN.
            lats = lats.masked_fill(~_checked_mask(mask, lats)[..., None], 0.0)
        error = (lats - self.lats_to_codes(lats)).square().mean(dim=-1)
        return masked_mean(error, mask=mask)

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
