"""Tables of scores: our runs beside the published rows, with what is missing and why."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.known_metrics import METRICS, WEIGHTS
from recipes.common.paper_tables import (
    FACTS,
    REFERENCE,
    PublishedRow,
    PublishedTable,
    published_facts,
    published_order,
    published_tables,
    same_name,
    tables_beside,
)
from recipes.reporting.measures import Measure, in_order, measure_of
from recipes.reporting.runs import Evaluation, Score, labels

NOT_COMPUTED = "not computed"
INPUT = "Input"  # what a codec is given, where that is not the reference
_WEIGHT_KEYS = set(WEIGHTS.values())
# A metric of several scores that no run has computed has a column of the first alone.
_FURTHER_SCORES = {score for metric in METRICS.values() for score in metric.scores[1:]}
_LAST = len(published_order())


class Cell(NamedTuple):
    """What stands in a table: a value in the printed unit, or why there is none.

    ``bounds`` are those of its 95 % interval; ``number`` says of how many utterances it is.
    """

    value: float | None
    text: str
    interval: str = ""
    number: str = ""
    note: str | None = None
    bounds: tuple[float | None, float | None] = (None, None)

    @property
    def is_apart(self) -> bool:
        """Whether its interval does not hold 0."""
        low, high = self.bounds
        return low is not None and high is not None and (low > 0 or high < 0)


class Row(NamedTuple):
    """One line of a table: ``source`` is a run's folder, or names the source of published numbers.

    ``codec`` is what the row is sorted by and looked up as; ``name`` tells it from others.
    """

    name: str
    source: Path | str
    cells: dict[str, Cell]
    codec: str

    @property
    def is_ours(self) -> bool:
        """Whether the numbers are those of a run."""
        return isinstance(self.source, Path)


class ScoreTable(NamedTuple):
    """A table with its columns; ``notes`` are what cells refer to, each once."""

    title: str
    columns: list[Measure]
    rows: list[Row]
    sources: list[str]
    notes: list[str]


def score_table(runs: Sequence[Evaluation], *, title: str) -> ScoreTable:
    """Table of runs of one task on one test set, with the published rows of the same.

    The first run's task is the table's; runs of whole utterances may stand beside streaming ones.
    """
    task = runs[0].task
    published = tables_beside(task, runs[0].dataset_name)
    names = labels(runs)
    with_chunks = task == "streaming"
    rows = [
        row for run in runs for row in _run_rows(run, names[run.folder], with_chunks=with_chunks)
    ]
    rows += _commons(runs, names, "ref_", REFERENCE) + _commons(runs, names, "input_", INPUT)
    rows += _published_rows(published)
    shown = _shown(rows) - (set(FACTS) - {"bitrate"})
    return _finished(title, in_order(shown), rows, published)


def facts_table(runs: Iterable[Evaluation]) -> ScoreTable:
    """Say what every codec is and costs: Table 1's columns, and speed where it was measured."""
    rows = []
    described = _one_a_codec(list(runs))
    names = labels(described)
    for run in described:
        cells = _fact_cells(run)
        if run.task == "speed":
            cells |= _score_cells(_prefixed(run, ""), run) | _reasons(run)
        rows.append(Row(names[run.folder], run.folder, cells, run.codec_name))
    published = [table for table in published_tables() if table.has_facts]
    rows += _published_facts(published)
    return _finished("Compared codecs", in_order(_shown(rows)), rows, published)


def paper_table(table: PublishedTable) -> ScoreTable:
    """Show a published table alone."""
    rows = [_published_row(row, table.source) for row in table.rows]
    return _finished(table.title, [measure_of(key) for key in table.columns], rows, [table])


def bitrate_of(row: Row) -> float | None:
    """Bitrate of a row's codec in kbit/s, as it or its source says."""
    cell = row.cells.get("bitrate")
    return cell.value if cell is not None else None


def _one_a_codec(runs: Sequence[Evaluation]) -> list[Evaluation]:
    """All measurements of speed, and one other run of each codec that has none.

    Settings are kept only where they tell measurements of one codec apart.
    """
    found: dict[tuple[str, ...], list[Evaluation]] = {}
    for run in sorted(runs, key=lambda run: run.task != "speed"):
        identity = tuple(str(run.codec.get(key)) for key in ("name", "model_id", *FACTS))
        if run.task == "speed" or identity not in found:
            found.setdefault(identity, []).append(run)
    return [
        run if len(members) > 1 else run._replace(settings={})
        for members in found.values()
        for run in members
    ]


def _run_rows(run: Evaluation, name: str, *, with_chunks: bool) -> list[Row]:
    bitrate = _fact_cells(run, keys=("bitrate",))
    chunk = _chunk_cell(run) if with_chunks else {}
    scores = _score_cells(_prefixed(run, "hyp_") | _prefixed(run, ""), run)
    usage = _score_cells(_usage(run), run, intervals=False)
    cells = _reasons(run) | bitrate | chunk | scores | usage
    rows = [Row(name, run.folder, cells, run.codec_name)]
    if unquantized := _score_cells(_prefixed(run, "rec_"), run):
        rows.append(Row(f"{name}, unquantized features", run.folder, unquantized, run.codec_name))
    return rows


def _commons(
    runs: Sequence[Evaluation], names: dict[Path, str], prefix: str, title: str
) -> list[Row]:
    """Scores of what all codecs have in common: one row for all runs that agree on them."""
    found: dict[tuple, list[tuple[Evaluation, dict[str, Cell]]]] = {}
    for run in runs:
        if cells := _score_cells(_prefixed(run, prefix), run):
            printed = tuple(sorted((key, cell.text) for key, cell in cells.items()))
            found.setdefault(printed, []).append((run, cells))
    rows = []
    for members in found.values():
        of = f" of {', '.join(names[run.folder] for run, _ in members)}" if len(found) > 1 else ""
        run, cells = members[0]
        rows.append(Row(f"{title}{of}", run.folder, cells, title))
    return rows


def _published_rows(tables: Iterable[PublishedTable]) -> list[Row]:
    """Rows of all tables; the same numbers of the same codec count once."""
    rows: dict[tuple, Row] = {}
    for table in tables:
        for row in table.rows:
            found = _published_row(row, table.source)
            scores = [cell for key, cell in found.cells.items() if key not in FACTS]
            key = (row.codec, *(cell.value for cell in scores[:3]))
            rows.setdefault(key, found)
    return list(rows.values())


def _published_facts(tables: Iterable[PublishedTable]) -> list[Row]:
    """One row a codec, from the first table that has it."""
    rows: dict[str, Row] = {}
    for table in tables:
        for row in table.rows:
            facts = {key: value for key, value in row.values.items() if key in FACTS}
            if facts and row.codec not in rows:
                rows[row.codec] = _published_row(PublishedRow(row.codec, facts), table.source)
    return list(rows.values())


def _published_row(row: PublishedRow, source: str) -> Row:
    facts = published_facts().get(same_name(row.codec), {})
    values = dict(row.values)
    cells = {}
    if "bitrate" not in values and "bitrate" in facts:
        bitrate = facts["bitrate"]
        cells["bitrate"] = Cell(bitrate, measure_of("bitrate").text(bitrate))
    for key, (value, note) in values.items():
        text = "not legible" if value is None else measure_of(key).text(value)
        cells[key] = Cell(value, text, note=note and f"{row.codec}: {note}")
    return Row(row.codec, source, cells, row.codec)


def _prefixed(run: Evaluation, prefix: str) -> dict[str, Score]:
    """Scores of one prefix, by key; ``""`` for those that have none."""
    prefixes = ("hyp_", "ref_", "rec_", "input_")
    found = {}
    for name, score in run.scores.items():
        if prefix and name.startswith(prefix):
            found[name.removeprefix(prefix)] = score
        elif not prefix and not name.startswith(prefixes):
            found[name] = score
    return {key: score for key, score in found.items() if key not in _WEIGHT_KEYS}


def _usage(run: Evaluation) -> dict[str, Score]:
    keys = ("code_usage", "normalised_entropy", "normalised_entropy_used")
    return {key: Score(value) for key in keys if _is_number(value := run.code_usage.get(key))}


def _score_cells(
    scores: dict[str, Score], run: Evaluation, *, intervals: bool = True
) -> dict[str, Cell]:
    return {key: _score_cell(key, score, run, intervals) for key, score in scores.items()}


def _score_cell(key: str, score: Score, run: Evaluation, intervals: bool) -> Cell:
    measure = measure_of(key)
    text = measure.text(score.mean * measure.scale)
    interval, bounds = "", (None, None)
    if intervals and score.low is not None and score.high is not None:
        bounds = (score.low * measure.scale, score.high * measure.scale)
        interval = " to ".join(map(measure.text, bounds))
    number = ""
    if score.utterances is not None and score.utterances != run.dataset.get("utterances"):
        number = f"{score.utterances} utterances"
    return Cell(score.mean * measure.scale, text, interval, number, bounds=bounds)


def _fact_cells(run: Evaluation, keys: Iterable[str] = FACTS) -> dict[str, Cell]:
    cells = {}
    for key in keys:
        value = run.codec.get(key)
        if _is_number(value):
            measure = measure_of(key)
            cells[key] = Cell(value * measure.scale, measure.text(value * measure.scale))
    return cells


def _chunk_cell(run: Evaluation) -> dict[str, Cell]:
    size = run.settings.get("chunk_size")
    value = float(size) if _is_number(size) else math.inf
    return {"chunk_size": Cell(value, measure_of("chunk_size").text(value))}


def _reasons(run: Evaluation) -> dict[str, Cell]:
    """Cells that say why a metric has no value; a value replaces them."""
    cells = {}
    for metric, reason in run.not_computed.items():
        scores = METRICS[metric].scores if metric in METRICS else (metric,)
        cell = Cell(None, NOT_COMPUTED, note=f"{measure_of(scores[0]).title}: {reason}")
        cells |= dict.fromkeys(scores, cell)
    return cells


def _shown(rows: Iterable[Row]) -> set[str]:
    """Keys of the columns that rows need."""
    return {
        key
        for row in rows
        for key, cell in row.cells.items()
        if cell.text != NOT_COMPUTED or key not in _FURTHER_SCORES
    }


def _finished(
    title: str, columns: list[Measure], rows: list[Row], published: Sequence[PublishedTable]
) -> ScoreTable:
    rows = sorted(rows, key=_place)
    cells = [row.cells[key] for row in rows for key, *_ in columns if key in row.cells]
    notes = dict.fromkeys(cell.note for cell in cells if cell.note)
    sources = [f"{table.source}{f' ({table.note})' if table.note else ''}" for table in published]
    return ScoreTable(title, columns, rows, list(dict.fromkeys(sources)), list(notes))


def _place(row: Row) -> tuple:
    """Sort key: references first, then the published order, a run beside the codec that it is."""
    chunk = row.cells.get("chunk_size")
    size = -chunk.value if chunk is not None else 0
    order = published_order().get(same_name(row.codec), _LAST)
    rank = {REFERENCE: 0, INPUT: 1}.get(row.codec, 2)
    return (rank, order, same_name(row.codec), size, row.is_ours, row.name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
