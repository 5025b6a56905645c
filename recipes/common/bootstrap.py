"""How sure a mean over utterances is, and a difference between two codecs on the same utterances.

95 % percentile intervals of the bootstrap: utterances are drawn with replacement, a score together
with its weight and, where two codecs are compared, with the other's score. So an interval says what
another draw of utterances would change, not another training. The resampling is scipy's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from recipes.common.known_metrics import WEIGHTS

CONFIDENCE = 0.95
_RESAMPLES_AT_ONCE = 250  # 250 x 2620 utterances are 5 MB


class Interval(NamedTuple):
    """Mean and its bounds; the bounds are None where fewer than two utterances have the score."""

    mean: float
    low: float | None
    high: float | None
    utterances: int


class Difference(NamedTuple):
    """First mean minus second, its bounds (None of fewer than two pairs), and how often it is > 0.

    ``share_positive`` is the share of resamples in which the first mean is the larger one, half of
    those in which both are equal included.
    """

    difference: float
    low: float | None
    high: float | None
    share_positive: float | None
    pairs: int


def mean_interval(
    scores: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of one score over utterances, with its 95 % interval.

    Parameters
    ----------
    scores : (N,) one value an utterance.
    weights : (N,) > 0, such as words for a word error rate; None for equal ones.
    resamples : number of draws.
    seed : the same seed gives the same interval.

    Raises
    ------
    ValueError : if there is no score, one is not finite, or weights do not fit or are not > 0.
    """
    scores, weights = _checked(scores, weights)
    mean = float(_weighted_mean(scores, weights))
    if len(scores) < 2:
        return Interval(mean, None, None, len(scores))
    low, high, _ = _bootstrap((scores, weights), _weighted_mean, resamples=resamples, seed=seed)
    return Interval(mean, low, high, len(scores))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    first_weights: ArrayLike | None = None,
    second_weights: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference of two codecs' means over the same utterances, with its 95 % interval.

    Parameters
    ----------
    first, second : (N,) scores of the same utterances in the same order.
    first_weights, second_weights : (N,) > 0; None for equal ones.
    resamples : number of draws; both codecs get the same utterances in each.
    seed : the same seed gives the same interval.

    Raises
    ------
    ValueError : as `mean_interval`, or if the numbers of scores differ.
    """
    first, first_weights = _checked(first, first_weights)
    second, second_weights = _checked(second, second_weights)
    if len(first) != len(second):
        raise ValueError(
            f"paired scores are of the same utterances, got {len(first)} and {len(second)}; keep "
            "those that both codecs have"
        )
    samples = (first, second, first_weights, second_weights)
    difference = float(_mean_difference(*samples))
    if len(first) < 2:
        return Difference(difference, None, None, None, len(first))
    low, high, drawn = _bootstrap(samples, _mean_difference, resamples=resamples, seed=seed)
    share = np.mean((drawn > 0) + 0.5 * (drawn == 0))
    return Difference(difference, low, high, float(share), len(first))


def row_intervals(
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[str],
    *,
    weights: Mapping[str, str] = WEIGHTS,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """`mean_interval` of every score that some row has.

    Parameters
    ----------
    rows : one an utterance, such as `recipes.common.metrics.AudioMetrics.rows`.
    scores : keys of rows.
    weights : score -> key of its weight.
    resamples, seed : as `mean_interval`.

    Raises
    ------
    ValueError : as `mean_interval`, or if a row has a score without its weight.
    """
    intervals = {}
    for score in scores:
        having = [row for row in rows if score in row]
        if having:
            intervals[score] = mean_interval(
                [row[score] for row in having],
                weights=_weights_of(having, score, weights),
                resamples=resamples,
                seed=seed,
            )
    return intervals


def row_differences(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    scores: Sequence[str],
    *,
    weights: Mapping[str, str] = WEIGHTS,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Difference]:
    """`paired_difference` of every score over the utterances (``id``) that both codecs have it for.

    Parameters
    ----------
    first, second : rows with ``id``, of two codecs on one test set, in any order.
    scores, weights, resamples, seed : as `row_intervals`.

    Returns
    -------
    Score -> difference; without scores that no utterance has from both.

    Raises
    ------
    ValueError : as `paired_difference`, or if a row has a score without its weight.
    """
    by_id = {row["id"]: row for row in second}
    differences = {}
    for score in scores:
        pairs = [
            (row, by_id[row["id"]])
            for row in first
            if score in row and score in by_id.get(row["id"], ())
        ]
        if pairs:
            ours, theirs = zip(*pairs, strict=True)
            differences[score] = paired_difference(
                [row[score] for row in ours],
                [row[score] for row in theirs],
                first_weights=_weights_of(ours, score, weights),
                second_weights=_weights_of(theirs, score, weights),
                resamples=resamples,
                seed=seed,
            )
    return differences


def _weights_of(
    rows: Sequence[Mapping[str, Any]], score: str, weights: Mapping[str, str]
) -> list[float] | None:
    if score not in weights:
        return None
    column = weights[score]
    if lacking := [row for row in rows if column not in row]:
        raise ValueError(
            f"{score} is weighted by {column}, which {len(lacking)} of {len(rows)} rows lack; "
            "score the utterances again"
        )
    return [row[column] for row in rows]


def _checked(scores: ArrayLike, weights: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=np.float64)
    weights = np.ones_like(scores) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores must be (N,) with N >= 1, got shape {scores.shape}")
    if weights.shape != scores.shape:
        raise ValueError(f"weights must be {scores.shape} like scores, got {weights.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("scores must be finite and weights > 0; leave out utterances without one")
    return scores, weights


def _weighted_mean(scores: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    return (scores * weights).sum(axis) / weights.sum(axis)


def _mean_difference(
    first: np.ndarray,
    second: np.ndarray,
    first_weights: np.ndarray,
    second_weights: np.ndarray,
    axis: int = -1,
) -> np.ndarray:
    return _weighted_mean(first, first_weights, axis) - _weighted_mean(second, second_weights, axis)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., np.ndarray],
    *,
    resamples: int,
    seed: int,
) -> tuple[float, float, np.ndarray]:
    """Bounds, and the statistic of every resample."""
    from scipy import stats

    result = stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        batch=_RESAMPLES_AT_ONCE,
        vectorized=True,
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high), result.bootstrap_distribution
