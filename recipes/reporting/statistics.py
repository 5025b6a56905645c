"""Stand-in for recipes.common.bootstrap until that is merged: the same names and results' fields."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 1000


class Interval(NamedTuple):
    mean: float
    low: float | None
    high: float | None
    utterances: int


class Difference(NamedTuple):
    difference: float
    low: float | None
    high: float | None
    share_positive: float | None
    pairs: int


def mean_interval(scores, *, weights=None, resamples=RESAMPLES, seed=0):
    scores = np.asarray(scores, dtype=float)
    weights = np.ones_like(scores) if weights is None else np.asarray(weights, dtype=float)
    mean = float((scores * weights).sum() / weights.sum())
    if len(scores) < 2:
        return Interval(mean, None, None, len(scores))
    draws = np.random.default_rng(seed).integers(len(scores), size=(resamples, len(scores)))
    means = (scores * weights)[draws].sum(1) / weights[draws].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean, float(low), float(high), len(scores))


def row_differences(first, second, scores, *, weights, resamples=RESAMPLES, seed=0):
    by_id = {row["id"]: row for row in second}
    found = {}
    for score in scores:
        pairs = [
            (row, by_id[row["id"]])
            for row in first
            if score in row and score in by_id.get(row["id"], ())
        ]
        if pairs:
            interval = mean_interval(
                [ours[score] - theirs[score] for ours, theirs in pairs],
                weights=[ours[weights[score]] if score in weights else 1.0 for ours, _ in pairs],
            )
            found[score] = Difference(interval.mean, interval.low, interval.high, None, len(pairs))
    return found
