"""Bootstrap intervals: coverage, weights, pairing, and what they cannot say."""

import math

import numpy as np
import pytest

from recipes.common.bootstrap import (
    mean_interval,
    paired_difference,
    row_differences,
    row_intervals,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_interval_holds_the_true_mean_in_95_of_100_cases(rng):
    held = 0
    for _ in range(400):
        interval = mean_interval(rng.exponential(2.0, 80), resamples=400)
        held += interval.low <= 2.0 <= interval.high
    assert 0.90 <= held / 400 <= 0.98  # about 0.93 for skewed values; its own error is 0.011


def test_interval_is_about_two_standard_errors(rng):
    scores = rng.normal(3.0, 0.5, 2000)
    interval = mean_interval(scores)
    error = scores.std() / math.sqrt(2000)
    assert interval.mean == pytest.approx(scores.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert interval.low < interval.mean < interval.high and interval.utterances == 2000


def test_weights_are_drawn_with_their_scores(rng):
    words = rng.integers(1, 40, 300)
    edits = rng.binomial(words, 0.1)
    interval = mean_interval(edits / words, weights=words)
    assert interval.mean == pytest.approx(edits.sum() / words.sum())
    # Delta method of a ratio of sums.
    residual = edits - interval.mean * words
    error = math.sqrt((residual**2).sum()) / words.sum()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert mean_interval(edits / words, weights=7 * words) == pytest.approx(interval)


def test_same_seed_gives_the_same_interval(rng):
    scores = rng.random(50)
    assert mean_interval(scores, seed=3) == mean_interval(scores, seed=3)
    assert mean_interval(scores, seed=3) != mean_interval(scores, seed=4)


def test_equal_scores_have_no_width_and_one_score_no_interval():
    assert mean_interval([2.5] * 9) == (2.5, 2.5, 2.5, 9)
    assert mean_interval([2.5]) == (2.5, None, None, 1)
    assert paired_difference([2.5], [1.0]) == (1.5, None, None, None, 1)


def test_pairing_sees_a_difference_that_utterances_hide(rng):
    hardness = rng.normal(0, 1.0, 200)
    first = hardness + rng.normal(0.05, 0.05, 200)
    second = hardness + rng.normal(0.0, 0.05, 200)
    difference = paired_difference(first, second)
    assert difference.difference == pytest.approx(first.mean() - second.mean())
    assert 0 < difference.low < difference.difference < difference.high < 0.1
    assert difference.share_positive == 1 and difference.pairs == 200
    apart = mean_interval(first), mean_interval(second)
    assert apart[0].low < apart[1].high  # by themselves they overlap
    backwards = paired_difference(second, first)
    assert backwards.share_positive == 0 and backwards.low == pytest.approx(-difference.high)


def test_codecs_that_are_alike_differ_by_nothing(rng):
    scores = rng.random(30)
    assert paired_difference(scores, scores) == (0.0, 0.0, 0.0, 0.5, 30)


def test_weighted_difference_is_that_of_weighted_means(rng):
    words = rng.integers(1, 40, 100)
    first, second = rng.random(100), rng.random(100)
    difference = paired_difference(first, second, first_weights=words, second_weights=words)
    means = (mean_interval(x, weights=words).mean for x in (first, second))
    assert difference.difference == pytest.approx(next(means) - next(means))


def test_rows_are_read_by_score_and_weight():
    rows = [
        {"id": "a", "hyp_stoi": 0.9, "hyp_dwer": 0.5, "hyp_dwer_words": 2},
        {"id": "b", "hyp_stoi": 0.7},
        {"id": "c", "hyp_dwer": 0.0, "hyp_dwer_words": 8},
    ]
    weights = {"hyp_dwer": "hyp_dwer_words"}
    intervals = row_intervals(rows, ["hyp_stoi", "hyp_dwer", "hyp_pesq"], weights=weights)
    assert set(intervals) == {"hyp_stoi", "hyp_dwer"}
    assert (intervals["hyp_stoi"].mean, intervals["hyp_stoi"].utterances) == (
        pytest.approx(0.8),
        2,
    )
    assert intervals["hyp_dwer"].mean == pytest.approx(0.1)


def test_rows_are_paired_by_id():
    first = [{"id": name, "stoi": value} for name, value in (("a", 1.0), ("b", 2.0), ("c", 9.0))]
    second = [{"id": name, "stoi": value} for name, value in (("b", 1.0), ("a", 0.5), ("d", 9.0))]
    second.append({"id": "c"})
    differences = row_differences(first, second, ["stoi", "pesq"])
    assert set(differences) == {"stoi"}
    assert differences["stoi"].pairs == 2
    assert differences["stoi"].difference == pytest.approx(0.75)


def test_score_without_its_weight_is_named():
    rows = [
        {"id": "a", "hyp_dwer": 0.5, "hyp_dwer_words": 2},
        {"id": "b", "hyp_dwer": 0.1},
        {"id": "c"},
    ]
    weights = {"hyp_dwer": "hyp_dwer_words"}
    message = "hyp_dwer is weighted by hyp_dwer_words, which 1 of 2 rows lack"
    with pytest.raises(ValueError, match=message):
        row_intervals(rows, ["hyp_dwer"], weights=weights)
    with pytest.raises(ValueError, match=message):
        row_differences(rows, rows, ["hyp_dwer"], weights=weights)


@pytest.mark.parametrize(
    ("scores", "weights"),
    [([], None), ([1.0, math.nan], None), ([1.0], [0.0]), ([1.0], [1.0, 2.0]), ([[1.0]], None)],
    ids=["none", "nan", "no weight", "other shape", "two axes"],
)
def test_what_has_no_mean_is_refused(scores, weights):
    with pytest.raises(ValueError, match="scores must|weights must"):
        mean_interval(scores, weights=weights)


def test_unequal_numbers_are_no_pairs():
    with pytest.raises(ValueError, match="same utterances, got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])
