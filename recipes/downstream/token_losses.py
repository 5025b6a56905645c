"""Cross-entropy of tokens, and what it is if nobody says which output is which source.

References
----------
.. [1] Kolbæk et al., 2017, "Multitalker Speech Separation with Utterance-Level Permutation
   Invariant Training of Deep Recurrent Neural Networks", arXiv:1703.06284.
"""

from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor


class Assignment(NamedTuple):
    """Outputs assigned to references, utterance by utterance.

    loss () in nats per token; order (B, S) int64, the output that stands for each reference:
    ``outputs[b, order[b]]`` are in the order of the references.
    """

    loss: Tensor
    order: Tensor


def token_cross_entropy(logits: Tensor, toks: Tensor, *, mask: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over real tokens.

    Parameters
    ----------
    logits : (..., classes), of any precision; computed in float32.
    toks : (...) int64 in [0, classes).
    mask : bool, broadcast to the shape of ``toks``; True for what counts. The rest may hold
        anything and gets no gradient.

    Returns
    -------
    Scalar; NaN if ``mask`` selects nothing.
    """
    mask = mask.expand_as(toks)
    cost = _cross_entropies(
        logits.masked_fill(~mask[..., None], 0), toks.masked_fill(~mask, 0)[..., None]
    )[..., 0]
    return cost.masked_fill(~mask, 0).sum() / mask.sum()


def permutation_invariant(logits: Tensor, toks: Tensor, *, mask: Tensor) -> Assignment:
    """Cross-entropy with the best order of the outputs of each whole utterance [1]_.

    Parameters
    ----------
    logits : (B, S, L, K, codebook_size) of S outputs.
    toks : (B, S, L, K) int64 of as many references.
    mask : (B, L) bool, True for real tokens. The rest may hold anything and gets no gradient.

    Returns
    -------
    The mean over utterances weighted by their real tokens, which for one source is
    `token_cross_entropy`, and the orders. The gradient is that of the chosen order. Every
    permutation is tried: S! sums of S costs.

    Raises
    ------
    ValueError : if the shapes do not fit.
    """
    _check_sources(logits, toks, mask)
    num_sources = toks.shape[1]
    costs = _costs(logits, toks, mask=mask)
    orders = torch.tensor(list(permutations(range(num_sources))), device=toks.device)
    references = torch.arange(num_sources, device=toks.device)
    totals = costs[:, orders, references].sum(dim=2)  # (B, permutations)
    lowest, index = totals.min(dim=1)
    num_toks = mask.sum() * num_sources * toks.shape[3]
    return Assignment(lowest.sum() / num_toks, orders[index])


def _costs(logits: Tensor, toks: Tensor, *, mask: Tensor) -> Tensor:
    """(B, outputs, references) sums over real tokens of every pair."""
    padding = ~mask[:, None, :, None, None]
    toks = toks.permute(0, 2, 3, 1)[:, None].masked_fill(padding, 0)  # (B, 1, L, K, references)
    toks = toks.expand(-1, logits.shape[1], -1, -1, -1)
    costs = _cross_entropies(logits.masked_fill(padding, 0), toks)
    return costs.masked_fill(padding, 0).sum(dim=(2, 3))


def _cross_entropies(logits: Tensor, toks: Tensor) -> Tensor:
    """(..., S) of logits (..., classes) with each of S tokens (..., S)."""
    logits = logits.float()
    return logits.logsumexp(dim=-1, keepdim=True) - logits.gather(-1, toks)


def _check_sources(logits: Tensor, toks: Tensor, mask: Tensor) -> None:
    fits = logits.ndim == 5 and toks.ndim == 4 and logits.shape[:4] == toks.shape
    if not fits or mask.shape != (toks.shape[0], toks.shape[2]):
        raise ValueError(
            "logits must be (B, S, L, K, codebook_size), toks (B, S, L, K) and mask (B, L), got "
            f"{tuple(logits.shape)}, {tuple(toks.shape)} and {tuple(mask.shape)}"
        )
