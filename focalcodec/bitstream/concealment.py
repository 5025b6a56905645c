"""What stands in for tokens that are missing.

A concealment is any function ``conceal(last, *, since, count)`` that gives (count,) tokens. Of
these, ``last`` (K,) are the last tokens that were received, as many as the newest packet has, none
at the beginning of a stream. Since then, ``since`` tokens have stood in for missing ones already.
"""

from typing import Protocol

import torch
from torch import Tensor


class Concealment(Protocol):
    """Maker of tokens for a gap."""

    def __call__(self, last: Tensor, *, since: int, count: int) -> Tensor:
        """Make the next (count,) int64 tokens of a gap."""


def repeat_last(last: Tensor, *, since: int, count: int) -> Tensor:
    """Say the last packet again, as often as the gap is long: a b c d, a b c d, a b.

    With nothing to repeat, the tokens are 0.
    """
    if not last.numel():
        return last.new_zeros(count)
    return last[torch.arange(since, since + count, device=last.device) % last.numel()]


def fill_with(tok: int) -> Concealment:
    """Concealment by one token, such as the one that a codec makes of silence."""

    def conceal(last: Tensor, *, since: int, count: int) -> Tensor:
        return last.new_full((count,), tok)

    return conceal


zeros = fill_with(0)  # a code like any other: what it sounds like is the codec's matter
