"""Paired differences between runs on the same utterances."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from recipes.common.bootstrap import Difference, row_differences
from recipes.common.known_metrics import WEIGHTS
from recipes.reporting.measures import QUALITY, Measure, in_order, measure_of
from recipes.reporting.runs import Evaluation, labels
from recipes.reporting.tables import Cell


class Pair(NamedTuple):
    """First minus second, by measure, in the printed units."""

    first: str
    second: str
    cells: dict[str, Cell]


class DifferenceTable(NamedTuple):
    """All pairs of runs, and the measures that at least one pair shares utterances of.

    After each measure stands the share of resamples in which the first is the larger one.
    """

    columns: list[Measure]
    pairs: list[Pair]


def difference_table(runs: Sequence[Evaluation]) -> DifferenceTable:
    """Differences of all pairs of runs of one task on one test set, in what both computed."""
    names = labels(runs)
    rows = {run.folder: run.utterances() for run in runs}
    weights = {f"hyp_{key}": f"hyp_{weight}" for key, weight in WEIGHTS.items()}
    pairs = []
    for first, second in itertools.combinations(runs, 2):
        scores = [
            name for key in QUALITY if (name := f"hyp_{key}") in first.scores.keys() & second.scores
        ]
        found = row_differences(rows[first.folder], rows[second.folder], scores, weights=weights)
        cells = {}
        for name, difference in found.items():
            measure = measure_of(name.removeprefix("hyp_"))
            cells |= {measure.key: _cell(measure, difference)} | _share(measure, difference)
        pairs.append(Pair(names[first.folder], names[second.folder], cells))
    shown = {key for pair in pairs for key in pair.cells}
    columns = []
    for measure in in_order(shown & set(QUALITY)):
        share = _share_of(measure)
        columns += [measure, share] if share.key in shown else [measure]
    return DifferenceTable(columns, pairs)


def _share_of(measure: Measure) -> Measure:
    title, _, _ = measure.title.partition(" (")
    return Measure(f"{measure.key}_share", f"{title}: first larger (%)", ".1f", 100)


def _share(measure: Measure, found: Difference) -> dict[str, Cell]:
    if found.share_positive is None:
        return {}
    share = _share_of(measure)
    value = found.share_positive * share.scale
    return {share.key: Cell(value, share.text(value))}


def _cell(measure: Measure, found: Difference) -> Cell:
    value = found.difference * measure.scale
    number = f"{found.pairs} utterances"
    if found.low is None or found.high is None:
        return Cell(value, _signed(measure, value), number=number)
    low, high = found.low * measure.scale, found.high * measure.scale
    return Cell(
        value,
        _signed(measure, value),
        interval=f"{_signed(measure, low)} to {_signed(measure, high)}",
        number=number,
        bounds=(low, high),
    )


def _signed(measure: Measure, value: float) -> str:
    text = measure.text(value)
    return text if value < 0 else f"+{text}"
