"""What a command has to do: input and output file of each job, found and checked before it starts.

Inputs are files, folders and globs. What is named is taken as it is; what is searched for, in
folders and by globs, is taken by its extension, hidden names left out.
"""

import glob
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from focalcodec.audio import AUDIO_SUFFIXES
from focalcodec.bitstream import open_focal

FOCAL_SUFFIX = ".focal"


class Job(NamedTuple):
    """One input, the output that is made of it, and whether to replace what is there."""

    source: Path
    target: Path
    overwrite: bool = False


class Failure(NamedTuple):
    """An input that gives nothing, and why."""

    path: str | Path
    reason: str


class Plan(NamedTuple):
    """Jobs in the order of the inputs, inputs whose output is there already, and bad inputs."""

    jobs: list[Job]
    skipped: list[Path]
    failures: list[Failure]


class Found(NamedTuple):
    """Files, each with its name relative to the input that it comes from, and bad inputs."""

    files: list[tuple[Path, Path]]
    failures: list[Failure]


def plan_jobs(
    inputs: Sequence[str],
    output: str,
    *,
    suffixes: Collection[str],
    target_suffix: str,
    target_suffixes: Collection[str],
    references: Iterable[Path] = (),
    existing: str = "error",
) -> Plan:
    """Pair every input file with its output; what would overwrite something is a bad input.

    Parameters
    ----------
    inputs : files, folders and globs.
    output : folder, there or not; for one input file also the name of a file.
    suffixes : extensions of the files to take from folders and globs.
    target_suffix : extension of the outputs in a folder.
    target_suffixes : extensions that make ``output`` the name of a file.
    references : further inputs, which no output may replace.
    existing : what to do about an output that is there: "error", "skip" or "overwrite". With "skip"
        an unfinished token file is made again.

    Raises
    ------
    ValueError : if ``output`` can be neither a folder nor the one output file.
    """
    found = find_files(inputs, suffixes=suffixes, leave_out=output)
    is_single = len(found.files) <= 1 and len(inputs) == 1 and not os.path.isdir(inputs[0])
    target = _output_file(output, is_single=is_single, suffixes=target_suffixes)
    jobs = [
        Job(path, target or Path(output) / name.with_suffix(target_suffix))
        for path, name in found.files
    ]
    sources = {_identity(path): path for path in (*references, *(job.source for job in jobs))}
    targets = [os.path.realpath(job.target) for job in jobs]
    makers = defaultdict(list)
    for job, real_target in zip(jobs, targets, strict=True):
        makers[real_target].append(job.source)
    plan = Plan([], [], found.failures)
    for job, real_target in zip(jobs, targets, strict=True):
        try:
            _check_unique(job, makers[real_target])
            if _is_there(job, sources, existing):
                plan.skipped.append(job.source)
            else:
                replaces = existing == "overwrite" or job.target.exists()
                plan.jobs.append(job._replace(overwrite=replaces))
        except (OSError, ValueError) as error:
            plan.failures.append(Failure(job.source, str(error)))
    return plan


def find_files(
    inputs: Iterable[str], *, suffixes: Collection[str], leave_out: str | None = None
) -> Found:
    """List the files that inputs stand for, each once.

    Parameters
    ----------
    inputs : files, folders and globs. What exists is no glob; what does not exist and is no glob
        either is listed all the same, for whoever opens it to say so.
    suffixes : lower-case extensions of the files to take from folders and globs.
    leave_out : folder below an input that is not searched.

    Returns
    -------
    Files with their names below the folder or below the part of the glob without wildcards.
    """
    files, failures = {}, []
    hidden = None if leave_out is None else Path(os.path.realpath(leave_out))
    for entry in inputs:
        if not entry:  # an unset variable of the shell; as a path it would be this folder
            failures.append(Failure("''", "is no name of a file"))
            continue
        path = Path(entry)
        if os.path.isdir(entry):
            names, root = _walk(path, suffixes, hidden, failures), path
        elif os.path.exists(entry) or not glob.has_magic(entry):
            names, root = [Path(path.name)], path.parent
        else:
            root = _fixed_part(path)
            circles = _Circles(root)
            found = _glob(path, suffixes, hidden, failures)
            names = [name for name in found if not circles.reach(name.parent)]
        names = sorted(names)
        if not names:
            known = " ".join(sorted(suffixes))
            failures.append(Failure(entry, f"no file found here; looked for {known}"))
        for name in names:
            file = root / name
            files.setdefault((os.path.realpath(file), name), (file, name))
    return Found(list(files.values()), failures)


def _output_file(output: str, *, is_single: bool, suffixes: Collection[str]) -> Path | None:
    """``output`` if it names the one output file, None if it is a folder."""
    if not output:
        raise ValueError("the name of the output is empty; give a folder or a file")
    path = Path(output)
    if os.path.isdir(path):
        return None
    usual = " ".join(sorted(set(suffixes) & {FOCAL_SUFFIX, ".wav", ".flac", ".ogg", ".mp3"}))
    if path.suffix.lower() in suffixes:
        if is_single:
            return path
        raise ValueError(f"{output} names a file, which needs one input file; give a folder")
    if path.suffix.lower() in AUDIO_SUFFIXES | {FOCAL_SUFFIX}:
        raise ValueError(f"{output} names a file of a kind that is not written here; use {usual}")
    if os.path.lexists(path):
        raise ValueError(f"{output} is a file; give a folder, or a name that ends in {usual}")
    return None


def _check_unique(job: Job, makers: Sequence[Path]) -> None:
    if len(makers) == 1:
        return
    other = next(path for path in makers if path != job.source)
    more = f" and of {len(makers) - 2} more" if makers[2:] else ""
    raise ValueError(f"its output {job.target} would be that of {other}{more} too; rename one")


def _is_there(job: Job, sources: Mapping[tuple[int, int] | None, Path], existing: str) -> bool:
    """Whether the output is there and stays; ValueError if it must not be written."""
    target = job.target
    if target.is_symlink() and not target.exists():
        raise ValueError(
            f"its output {target} is a link to nothing; remove it or fetch its content"
        )
    if not target.exists():
        return False
    if target.is_dir():
        raise ValueError(f"its output {target} is a folder")
    if _identity(target) in sources:
        raise ValueError(
            f"its output {target} is the same file as the input {sources[_identity(target)]}; "
            "choose another folder"
        )
    if existing == "error":
        raise ValueError(f"its output {target} exists; give --overwrite or --skip-existing")
    return existing == "skip" and _is_finished(target)


def _is_finished(target: Path) -> bool:
    """Whether a file is whole: audio always, as it gets its name last; tokens by their header."""
    if target.suffix.lower() != FOCAL_SUFFIX:
        return True
    if not target.stat().st_size:
        return False
    with open_focal(target) as reader:
        return reader.complete


def _identity(path: Path) -> tuple[int, int] | None:
    """Identify a file by what all its names share; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _walk(
    folder: Path,
    suffixes: Collection[str],
    leave_out: Path | None,
    failures: list[Failure],
    above: frozenset[str] = frozenset(),
) -> Iterator[Path]:
    """Names of files below ``folder``, relative to it; links are followed, but not in circles."""
    above |= {os.path.realpath(folder)}
    try:
        entries = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        failures.append(Failure(folder, f"cannot be searched: {error.strerror}"))
        return
    for entry in entries:
        path = folder / entry
        if not os.path.isdir(path):
            if path.suffix.lower() in suffixes:
                yield Path(entry)
        elif os.path.realpath(path) not in above | {str(leave_out)}:
            for name in _walk(path, suffixes, leave_out, failures, above):
                yield entry / name


def _glob(
    pattern: Path, suffixes: Collection[str], leave_out: Path | None, failures: list[Failure]
) -> Iterator[Path]:
    """Names of files that a pattern finds, below its fixed part; folders that it finds as well."""
    root = _fixed_part(pattern)
    inside = leave_out is None or Path(os.path.realpath(root)).is_relative_to(leave_out)
    for match in glob.iglob(str(pattern), recursive=True):
        path = Path(match)
        name = path.relative_to(root)
        if not inside and Path(os.path.realpath(path)).is_relative_to(leave_out):
            continue
        if os.path.isdir(path):
            yield from (name / below for below in _walk(path, suffixes, leave_out, failures))
        elif path.suffix.lower() in suffixes:
            yield name


class _Circles:
    """Links that lead back to a folder on the way to them; ``**`` follows them 40 times."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[Path, bool] = {}

    def reach(self, folder: Path) -> bool:
        """Whether such a link is on the way from the root to ``folder``, relative to it."""
        if folder not in self._seen:
            way = [os.path.realpath(self._root / part) for part in (folder, *folder.parents)]
            self._seen[folder] = len(set(way)) < len(way)
        return self._seen[folder]


def _fixed_part(pattern: Path) -> Path:
    """Folders of a pattern before its first wildcard."""
    parts = []
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
