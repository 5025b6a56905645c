"""Finite scalar quantization: latents rounded to a grid; an ablation of the binary quantizers.

References
----------
.. [1] Mentzer et al., 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv:2309.15505.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from focalcodec.quantizers import MAX_BITS, Quantizer

_BOUND_EPS = 1e-3  # keeps the outermost levels inside the range of tanh, as published


class FiniteScalarQuantizer(Quantizer):
    """Every entry of a latent rounded to one of a few levels: a grid of prod(levels) codes.

    An entry x of level count L is bounded to (L - 1) / 2 tanh(x + shift) - offset and rounded to an
    integer; codes are these divided by floor(L / 2), so that they lie in [-1, 1]. ``offset`` is 1/2
    for even L and 0 for odd, and ``shift`` brings x = 0 to 0. Needs neither an entropy nor a
    commitment term.

    Parameters
    ----------
    levels : L of each entry, 3 to 1000; [8, 5, 5, 5] is the paper's choice for about 2^10 codes.

    Attributes
    ----------
    code_dim : entries of a code.
    codebook_size : product of the levels.

    Raises
    ------
    ValueError : if there is no level, one is out of range, or there are more than 2^62 codes.

    References
    ----------
    .. [1] Mentzer et al., 2023, arXiv:2309.15505, section 3 and appendix A. The shift is the
       inverse of tanh, where the appendix's code has tan: 4e-6 apart at 8 levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        levels = tuple(levels) if isinstance(levels, Sequence) else ()
        if not levels or not all(isinstance(one, int) and 3 <= one <= 1000 for one in levels):
            raise ValueError(f"levels is a list of whole numbers from 3 to 1000, got {levels}")
        if math.prod(levels) > 2**MAX_BITS:
            raise ValueError(f"levels {levels} make more than 2^{MAX_BITS} codes")
        self.levels = levels
        self.code_dim = len(levels)
        self.codebook_size = math.prod(levels)
        # Integers, which no change of precision rounds, on the latents' device.
        sizes = torch.tensor(levels)
        places = [math.prod(levels[i + 1 :]) for i in range(len(levels))]
        self.register_buffer("_levels", sizes, persistent=False)
        self.register_buffer("_places", torch.tensor(places), persistent=False)

    def lats_to_codes(self, lats: Tensor) -> Tensor:
        """Nearest point of the grid; no gradient. A latent of NaN gives the lowest level.

        Parameters
        ----------
        lats : (..., D) floating point.

        Returns
        -------
        (..., D) codes, multiples of 1 / floor(L / 2) in [-1, 1].

        Raises
        ------
        ValueError : if the last axis is not D or ``lats`` is not floating point.
        """
        lats = self._checked_vectors(lats, name="lats").detach()
        return self._digits_to_codes(self._to_digits(self._bound(lats)), dtype=lats.dtype)

    def codes_to_toks(self, codes: Tensor) -> Tensor:
        """Tokens of codes: numbers of the levels in mixed radix, first entry most significant.

        Parameters
        ----------
        codes : (..., D) floating point; what is no point of the grid is rounded to one.

        Returns
        -------
        (...) int64 in [0, codebook_size).

        Raises
        ------
        ValueError : if the last axis is not D or ``codes`` is not floating point.
        """
        codes = self._checked_vectors(codes, name="codes")
        digits = self._to_digits(codes * self._half(codes))
        return (digits * self._places.to(codes.device)).sum(dim=-1)

    def toks_to_codes(self, toks: Tensor) -> Tensor:
        """Codes of tokens.

        Parameters
        ----------
        toks : (...) of any integer dtype, in [0, codebook_size).

        Returns
        -------
        (..., D) float32 codes.

        Raises
        ------
        ValueError : if ``toks`` is not of an integer dtype or holds a token out of range.
        """
        toks = self._checked_toks(toks)
        places, levels = self._places.to(toks.device), self._levels.to(toks.device)
        return self._digits_to_codes(toks[..., None] // places % levels, dtype=torch.float32)

    def extra_repr(self) -> str:
        """Arguments shown by ``print(module)``."""
        return f"levels={list(self.levels)}"

    def _project(self, lats: Tensor) -> Tensor:
        return self._bound(lats) / self._half(lats)

    def _bound(self, lats: Tensor) -> Tensor:
        """Latents squeezed so that rounding gives one of the levels, as integers around 0."""
        levels = self._levels.to(lats.device)
        reach = (levels - 1).to(lats.dtype) * ((1 - _BOUND_EPS) / 2)
        offset = ((levels + 1) % 2).to(lats.dtype) / 2
        return (lats + (offset / reach).atanh()).tanh() * reach - offset

    def _to_digits(self, bounded: Tensor) -> Tensor:
        """Numbers of the levels, from 0, that bounded latents are rounded to."""
        levels = self._levels.to(bounded.device)
        digits = (bounded.round() + self._half(bounded)).nan_to_num(0.0)
        return digits.clamp(min=0).minimum((levels - 1).to(digits.dtype)).long()

    def _digits_to_codes(self, digits: Tensor, *, dtype: torch.dtype) -> Tensor:
        half = self._half(digits).to(dtype)
        return (digits.to(dtype) - half) / half

    def _half(self, like: Tensor) -> Tensor:
        """(D,) floor(L / 2), the number of the level that means 0."""
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return (self._levels.to(like.device) // 2).to(dtype)
