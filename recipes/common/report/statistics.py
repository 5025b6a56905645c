"""Intervals of means and of paired differences, as the report prints them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
Weighted = Mapping[str, tuple[float, float]]  # value and weight by utterance id


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval, which one single observation does not have."""

    mean: float
    low: float | None
    high: float | None
    number: int

    @property
    def is_apart_from_zero(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def mean_interval(values: Sequence[float], *, weights: Sequence[float] | None = None) -> Interval:
    """Weighted mean of independent observations.

    Raises
    ------
    ValueError : if there are none.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=float)
    if not len(values):
        raise ValueError("there are no values to average")
    mean = float((values * weights).sum() / weights.sum())
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = (values * weights)[draws].sum(1) / weights[draws].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean, float(low), float(high), len(values))


def paired_difference(first: Weighted, second: Weighted) -> Interval | None:
    """Mean of first - second over the utterances that both have; None if they share none."""
    shared = [key for key in first if key in second]
    if not shared:
        return None
    return mean_interval(
        [first[key][0] - second[key][0] for key in shared],
        weights=[first[key][1] for key in shared],
    )
