"""Statistics of tokens: how many codes are used and how evenly, and the bits per second."""

import math

import torch
from torch import Tensor


class CodeUsage:
    """How many codes are used, and how evenly, over everything that was appended.

    Parameters
    ----------
    codebook_size : number of codes; at least 2.
    """

    def __init__(self, codebook_size: int):
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        self.codebook_size = codebook_size
        self.clear()

    def clear(self) -> None:
        """Forget everything that was appended."""
        self.counts = torch.zeros(self.codebook_size, dtype=torch.int64)

    def append(self, toks: Tensor, *, mask: Tensor | None = None) -> None:
        """Count tokens.

        Parameters
        ----------
        toks : (B, L) int64 in [0, codebook_size).
        mask : (B, L) bool, True for real tokens; None for all.

        Raises
        ------
        ValueError : if a real token is not in [0, codebook_size), or the shape of ``mask`` differs.
        """
        if mask is not None and mask.shape != toks.shape:
            raise ValueError(
                f"mask must have the shape of toks, got {tuple(mask.shape)} and {tuple(toks.shape)}"
            )
        toks = (toks if mask is None else toks[mask]).detach().flatten()
        if toks.numel() == 0:
            return
        low, high = (bound.item() for bound in toks.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"toks must be in [0, {self.codebook_size}), got {low} to {high}; "
                "is codebook_size that of the quantizer?"
            )
        counts = torch.bincount(toks, minlength=self.codebook_size)
        self.counts = self.counts.to(counts.device) + counts

    def summarize(self, *, across_ranks: bool = True) -> dict[str, float]:
        """Usage over all ranks; under DDP every rank must call this.

        Parameters
        ----------
        across_ranks : False where every rank has seen all tokens, which would count them again.

        Returns
        -------
        ``code_usage`` (fraction of the codebook that occurred), ``used_codes``,
        ``normalised_entropy`` (entropy over log codebook_size), ``normalised_entropy_used`` (over
        log used_codes; 0 if there is only one) and ``num_tokens``.

        Raises
        ------
        RuntimeError : if no token was appended on any rank.
        """
        counts = self._global_counts() if across_ranks else self.counts
        num_tokens = int(counts.sum())
        if num_tokens == 0:
            raise RuntimeError("no token was appended: code usage needs at least one")
        probs = counts[counts > 0].double() / num_tokens
        used_codes = probs.numel()
        entropy = float(torch.special.entr(probs).sum())
        return {
            "code_usage": used_codes / self.codebook_size,
            "used_codes": used_codes,
            "normalised_entropy": entropy / math.log(self.codebook_size),
            "normalised_entropy_used": entropy / math.log(used_codes) if used_codes > 1 else 0.0,
            "num_tokens": num_tokens,
        }

    def _global_counts(self) -> Tensor:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.counts
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        counts = self.counts.to(device, copy=True)  # the rank's own counts stay: more may follow
        distributed.all_reduce(counts)
        return counts


def bitrate(token_rate: float, codebook_size: int) -> float:
    """Bits per second of a stream of ``token_rate`` Hz tokens, each one of ``codebook_size``."""
    if token_rate <= 0 or codebook_size < 2:
        raise ValueError(
            f"token_rate must be > 0 and codebook_size >= 2, got {token_rate} and {codebook_size}"
        )
    return token_rate * math.log2(codebook_size)
