"""Statistics of tokens: how many codes are used and how evenly, and the bits per second."""

import math

import torch
from torch import Tensor


class CodeUsage:
    """How many codes are used, and how evenly, over everything that was appended.

    Parameters
    ----------
    codebook_size : number of codes of each codebook; at least 2.
    num_codebooks : K; more than one are counted one by one and averaged, as published figures are.

    Attributes
    ----------
    counts : (K, codebook_size) int64, how often each code occurred.
    """

    def __init__(self, codebook_size: int, *, num_codebooks: int = 1):
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        if num_codebooks < 1:
            raise ValueError(f"num_codebooks must be at least 1, got {num_codebooks}")
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.clear()

    def clear(self) -> None:
        """Forget everything that was appended."""
        self.counts = torch.zeros(self.num_codebooks, self.codebook_size, dtype=torch.int64)

    def append(self, toks: Tensor, *, mask: Tensor | None = None) -> None:
        """Count tokens.

        Parameters
        ----------
        toks : (B, L, K) int64 in [0, codebook_size); of one codebook also (B, L).
        mask : (B, L) bool, True for real tokens; None for all.

        Raises
        ------
        ValueError : if a real token is not in [0, codebook_size), the number of codebooks is
            another, or the shape of ``mask`` differs.
        """
        if toks.ndim == 2 and self.num_codebooks == 1:
            toks = toks[:, :, None]
        if toks.ndim != 3 or toks.shape[2] != self.num_codebooks:
            raise ValueError(
                f"toks must be (B, L, {self.num_codebooks}), one number a codebook, "
                f"got {tuple(toks.shape)}"
            )
        if mask is not None and mask.shape != toks.shape[:2]:
            raise ValueError(
                f"mask must have the shape of toks without codebooks, got {tuple(mask.shape)} and "
                f"{tuple(toks.shape)}"
            )
        toks = (toks.flatten(0, 1) if mask is None else toks[mask]).detach()  # (tokens, K)
        if toks.numel() == 0:
            return
        low, high = (bound.item() for bound in toks.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"toks must be in [0, {self.codebook_size}), got {low} to {high}; "
                "is codebook_size that of the quantizer?"
            )
        shifts = self.codebook_size * torch.arange(self.num_codebooks, device=toks.device)
        counts = torch.bincount((toks + shifts).flatten(), minlength=self.counts.numel())
        self.counts = self.counts.to(counts.device) + counts.view_as(self.counts)

    def summarize(self, *, across_ranks: bool = True) -> dict[str, float]:
        """Usage over all ranks, averaged over codebooks; under DDP every rank must call this.

        Parameters
        ----------
        across_ranks : False where every rank has seen all tokens, which would count them again.

        Returns
        -------
        ``code_usage`` (fraction of the codebook that occurred), ``used_codes``,
        ``normalised_entropy`` (entropy over log codebook_size), ``normalised_entropy_used`` (over
        log used_codes; 0 if there is only one) and ``num_tokens`` (of one codebook).

        Raises
        ------
        RuntimeError : if no token was appended on any rank.
        """
        books = self.summarize_codebooks(across_ranks=across_ranks)
        if len(books) == 1:  # whole numbers stay whole
            return books[0]
        return {key: sum(book[key] for book in books) / len(books) for key in books[0]}

    def summarize_codebooks(self, *, across_ranks: bool = True) -> list[dict[str, float]]:
        """Give what `summarize` averages, by codebook; same arguments and errors."""
        counts = self._global_counts() if across_ranks else self.counts
        if int(counts.sum()) == 0:
            raise RuntimeError("no token was appended: code usage needs at least one")
        return [self._summarize_one(row) for row in counts]

    def _summarize_one(self, counts: Tensor) -> dict[str, float]:
        num_tokens = int(counts.sum())
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


def bitrate(token_rate: float, codebook_size: int, *, num_codebooks: int = 1) -> float:
    """Bits per second of streams of ``token_rate`` Hz tokens, each one of ``codebook_size``."""
    if token_rate <= 0 or codebook_size < 2:
        raise ValueError(
            f"token_rate must be > 0 and codebook_size >= 2, got {token_rate} and {codebook_size}"
        )
    return token_rate * num_codebooks * math.log2(codebook_size)
