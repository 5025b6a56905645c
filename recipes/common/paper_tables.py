"""The published tables that a report prints beside our numbers, read from ``paper_tables.yaml``.

Values are in the units that the sources print (percent, kbit/s, kHz, millions); the file names the
source of each table and marks what is not legible. Table 6 is in `recipes.common.paper`.
"""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PATH = Path(__file__).with_suffix(".yaml")
REFERENCE = "Reference"
FACTS = (
    "bitrate",
    "sample_rate",
    "token_rate",
    "num_codebooks",
    "codebook_size",
    "embedding_dim",
    "parameters",
    "macs_per_second",
)


class PublishedValue(NamedTuple):
    """One number as printed; without a value where it cannot be read, which ``note`` explains."""

    value: float | None
    note: str | None = None


class PublishedRow(NamedTuple):
    """A codec's values by column; columns in which the source has no number are absent."""

    codec: str
    values: dict[str, PublishedValue]


class PublishedTable(NamedTuple):
    """One block of a published table.

    ``task`` and ``datasets`` tell which evaluation runs it stands beside.
    """

    source: str
    title: str
    task: str
    datasets: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    note: str | None
    has_facts: bool


@functools.cache
def published_tables() -> tuple[PublishedTable, ...]:
    """All tables, in the order of the file."""
    content = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return tuple(_table(entry, content["sources"]) for entry in content["tables"])


def tables_beside(task: str, dataset: str | None) -> list[PublishedTable]:
    """Tables of one task on one test set, by the name of its block."""
    return [
        table for table in published_tables() if table.task == task and dataset in table.datasets
    ]


@functools.cache
def published_facts() -> Mapping[str, dict[str, float]]:
    """Bitrate, sizes and cost of every published codec, by `same_name`, in the printed units."""
    facts: dict[str, dict[str, float]] = {}
    for table in published_tables():
        for row in table.rows if table.has_facts else ():
            for key in row.values.keys() & set(FACTS):
                facts.setdefault(same_name(row.codec), {}).setdefault(key, row.values[key].value)
    return facts


@functools.cache
def published_order() -> Mapping[str, int]:
    """Place of every published codec among all, by `same_name`: that of its first row."""
    order: dict[str, int] = {}
    for table in published_tables():
        for row in table.rows:
            order.setdefault(same_name(row.codec), len(order))
    return order


def same_name(name: str) -> str:
    """Name without case, spaces and punctuation, so that spellings of one codec are equal."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _table(entry: dict[str, Any], sources: dict[str, str]) -> PublishedTable:
    source = sources[entry["source"]]
    number = entry["number"]
    columns = tuple(entry["columns"])
    return PublishedTable(
        source=source if number is None else f"{source}, Table {number}",
        title=entry["title"],
        task=entry["task"],
        datasets=tuple(entry["datasets"]),
        columns=columns,
        rows=tuple(_row(row, columns) for row in entry["rows"]),
        note=entry.get("note"),
        has_facts=entry.get("facts", False),
    )


def _row(row: list[Any], columns: tuple[str, ...]) -> PublishedRow:
    name, *cells = row
    values = {
        column: _value(cell)
        for column, cell in zip(columns, cells, strict=True)
        if cell is not None
    }
    return PublishedRow(name, values)


def _value(cell: Any) -> PublishedValue:
    if not isinstance(cell, dict):
        return PublishedValue(float(cell))
    if "printed" in cell:
        return PublishedValue(None, f"not legible in our copy, which has “{cell['printed']}”")
    value = float(cell["value"])
    assert math.isfinite(value), cell
    return PublishedValue(value, cell["note"])
