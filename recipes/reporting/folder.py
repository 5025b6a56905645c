"""The folder that a report is written to: replaced whole or not at all, and nothing but a report.

A marker lists the files that were written, and counts the runs that they show. Only a folder with
the marker is ever replaced, and only the files that it lists. The listening test is listed apart:
it stays while people take it, until another one is made.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.common.files import read_json, write_json

MARKER = "report_files.json"
LISTENING_TEST = "listening_test"
_PARTS = ("report", LISTENING_TEST)


def check_output(output: Path, run_folders: Iterable[Path]) -> None:
    """Refuse a folder that belongs to something else.

    Raises
    ------
    ValueError : if it lies in a run folder, holds what no report has written, or holds a report of
        runs where now there are none.
    """
    run_folders = list(run_folders)
    for folder in run_folders:
        if output.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{output} lies in the run folder {folder}; write it elsewhere")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; name a folder to write")
    if output.is_dir() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise ValueError(
            f"{output} holds files that no report has written (there is no {MARKER}); name another "
            "folder, or empty this one"
        )
    if not run_folders and (shown := _marked(output).get("runs", 0)):
        raise ValueError(
            f"{output} holds a report of {shown} runs, which one of ratings alone would replace; "
            "name the runs too, or another -o"
        )


def has_listening_test(output: Path) -> bool:
    """Whether a listening test was written there before."""
    return (output / LISTENING_TEST / "index.html").is_file()


@contextmanager
def replacing(output: Path, *, num_runs: int) -> Iterator[Path]:
    """Give an empty folder to write into, which becomes ``output`` when all has gone well.

    A listening test that is there stays unless a new one was written. The marker keeps
    ``num_runs``, how many runs the report shows.
    """
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        _install(partial, output, num_runs)
    finally:
        shutil.rmtree(partial)


def _install(partial: Path, output: Path, num_runs: int) -> None:
    new: dict[str, list[str]] = {part: [] for part in _PARTS}
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            name = path.relative_to(partial)
            new[LISTENING_TEST if name.parts[0] == LISTENING_TEST else "report"].append(str(name))
    output.mkdir(exist_ok=True)
    marker = output / MARKER
    old = _marked(output)
    old = {part: list(old.get(part, [])) for part in _PARTS}
    if not new[LISTENING_TEST]:
        new[LISTENING_TEST] = old[LISTENING_TEST]
    # Whatever happens between here and the last line, the marker lists all that is there.
    both = {part: sorted({*old[part], *new[part]}) for part in _PARTS}
    write_json(marker, {"runs": num_runs, **both})
    for part in _PARTS:
        for name in sorted(set(old[part]) - set(new[part])):
            _remove(output, name)
        for name in new[part]:
            if (partial / name).is_file():
                (output / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / name, output / name)
    write_json(marker, {"runs": num_runs, **new})


def _marked(output: Path) -> dict[str, Any]:
    marker = output / MARKER
    return read_json(marker) if marker.is_file() else {}


def _remove(output: Path, name: str) -> None:
    """Remove a listed file, and folders that it leaves empty; never anything outside."""
    path = output / name
    if not path.resolve().is_relative_to(output):
        raise ValueError(f"{output / MARKER} lists {name}, which lies outside; remove that line")
    path.unlink(missing_ok=True)
    for folder in list(path.parents)[: len(Path(name).parts) - 1]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
