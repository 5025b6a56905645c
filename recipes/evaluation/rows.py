"""Results of single utterances, kept as they come: a killed evaluation loses one utterance.

Each process appends to a file of its own, ``rows/RANK.jsonl``; what an earlier start has left is
read from all of them, whatever the number of processes was then.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """Result of one utterance.

    ``scores`` by prefix and name (``hyp_stoi``); ``failures`` as [what, reason]; ``not_computed``
    by metric: why no utterance has it on this machine; ``toks`` as K lists; ``seconds`` of work,
    on ``hardware``. ``start`` counts how often the evaluation was started. A file that could not be
    read has failures alone, with ``audio`` as what failed.
    """

    id: str
    scores: Mapping[str, float] = {}
    failures: Sequence[Sequence[str]] = ()
    not_computed: Mapping[str, str] = {}
    toks: Sequence[Sequence[int]] = ()
    seconds: Mapping[str, float] = {}
    hardware: str = ""
    start: int = 0


class Rows:
    """Rows of a run folder.

    Parameters
    ----------
    folder : of the run.
    rank : this process.
    """

    def __init__(self, folder: Path, *, rank: int = 0) -> None:
        self.folder = folder / "rows"
        self.path = self.folder / f"{rank}.jsonl"

    def read(self) -> dict[str, Row]:
        """Rows by id, that of the last start of each; a line that a kill cut short is left out."""
        rows: dict[str, Row] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = Row(**json.loads(line))
                except (ValueError, TypeError):
                    logger.warning("%s has an incomplete line; its utterance is repeated", path)
                    continue
                if row.id not in rows or rows[row.id].start <= row.start:
                    rows[row.id] = row
        return rows

    def append(self, row: Row) -> None:
        """Write one row; it is with the operating system when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row._asdict(), allow_nan=False) + "\n"
        with open(self.path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a kill came in the middle of a line
                    file.write(b"\n")
            file.write(line.encode())


def is_done(row: Row | None, *, missing: Collection[str]) -> bool:
    """Whether a row need not be repeated: what it lacks cannot be computed now either.

    A file that could not be read is tried again with every start.
    """
    if row is None or any(what == "audio" for what, _ in row.failures):
        return False
    return set(row.not_computed) <= set(missing)
