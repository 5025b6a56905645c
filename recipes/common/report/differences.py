"""Paired differences between runs on the same utterances."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from recipes.common.report.measures import QUALITY, Measure, in_order, measure_of
from recipes.common.report.runs import Evaluation, labels
from recipes.common.report.statistics import Interval, paired_difference
from recipes.common.report.tables import Cell


class Pair(NamedTuple):
    """First minus second, by measure, in the printed units."""

    first: str
    second: str
    cells: dict[str, Cell]


class DifferenceTable(NamedTuple):
    """All pairs of runs, and the measures that at least one pair shares utterances of."""

    columns: list[Measure]
    pairs: list[Pair]


def difference_table(runs: Sequence[Evaluation]) -> DifferenceTable:
    """Differences of all pairs of runs of one task on one test set."""
    names = labels(runs)
    scores = {
        run.folder: {key: run.utterance_scores(f"hyp_{key}") for key in QUALITY} for run in runs
    }
    pairs = []
    for first, second in itertools.combinations(runs, 2):
        cells = {}
        for key in QUALITY:
            found = paired_difference(scores[first.folder][key], scores[second.folder][key])
            if found is not None:
                cells[key] = _cell(key, found)
        pairs.append(Pair(names[first.folder], names[second.folder], cells))
    return DifferenceTable(in_order({key for pair in pairs for key in pair.cells}), pairs)


def _cell(key: str, difference: Interval) -> Cell:
    measure = measure_of(key)
    mean, low, high = (
        None if value is None else _signed(measure, value * measure.scale)
        for value in difference[:3]
    )
    interval = "" if low is None else f"{low} to {high}"
    number = f"{difference.number} utterances"
    note = "apart" if difference.is_apart_from_zero else None
    return Cell(difference.mean * measure.scale, mean, interval, number, note)


def _signed(measure: Measure, value: float) -> str:
    text = measure.text(value)
    return text if value < 0 else f"+{text}"
