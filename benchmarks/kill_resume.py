"""Runs killed at random and started again end as if nothing had happened: bit by bit, or not.

    python -m benchmarks.kill_resume --stage decoder --kills 20
    python -m benchmarks.kill_resume --stage quantizer --kills 20 --at write --ranks 2

A tiny corpus is made, in which a file for training and one for validation turn out to be broken
when they are loaded, and the stage's real command is run on it from its YAML without interruption,
twice: two such runs must agree. Then every trial starts the command in a fresh folder, kills it one
to three times, each time with all processes that it has started, and starts the same command again
until it ends. What the run leaves behind is compared with the uninterrupted run's: every tensor of
every checkpoint bitwise, logs and tables as text, audio as bytes, TensorBoard's curves point by
point, and that no other file is there.

A run that is over before its next kill is due gets no more kills. A trial that ended without any is
drawn and made again, a few times; the last line says how many kills there were. A start that fails
before its kill is due fails the trial.

``--at instant`` kills at a random time between the start and the uninterrupted run's duration,
``--at write`` immediately before a random one of the run's file operations (opening a file for
writing, renaming, deleting, making a folder), where a wrong order of writing shows. ``--signal
TERM`` or ``USR1`` tell it to stop instead, as schedulers do. Only for Linux: what a run has started
is found in ``/proc``.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.killed_run import (
    SCRIPTS,
    SIGNALS,
    Kill,
    Setting,
    finish,
    operations,
    prepare,
    resume_killed,
)
from benchmarks.run_comparison import differences, different_files

_NUM_SHOWN = 12  # differences of one trial
_NUM_DRAWS = 5  # of the kills of one trial, until one of them comes before the run's end


class Outcome(NamedTuple):
    """What became of a trial: whether it is exact, how many kills it had, the line that says so."""

    exact: bool
    kills: int
    line: str


def draw_kills(source: random.Random, *, at: str, signal_name: str, last: float) -> list[Kill]:
    """One to three kills at random, each up to ``last`` (seconds, or number of operations)."""
    number = source.randint(1, 3)
    if at == "write":
        return [Kill(f"{source.randint(1, round(last))} ", signal_name) for _ in range(number)]
    return [Kill(source.uniform(0, last), signal_name) for _ in range(number)]


def run_trial(
    number: int, *, setting: Setting, folder: Path, draws: Sequence[Sequence[Kill]], keep: bool
) -> Outcome:
    """Kill, resume, compare; with the first of the draws of which a kill is delivered."""
    trial = folder / f"trial{number}"
    try:
        deaths = resume_killed(setting, trial, draws)
        found = compare_trials(folder / "uninterrupted", trial)
    except (RuntimeError, TimeoutError) as error:
        return Outcome(False, 0, f"trial {number}: FAILED: {error}")
    if not found and not keep:
        shutil.rmtree(trial)
    history = "; ".join(map(str, deaths))
    shown = found[:_NUM_SHOWN] + [f"and {len(found) - _NUM_SHOWN} more"] * (len(found) > _NUM_SHOWN)
    line = "\n    ".join([f"trial {number}: {history}: {verdict(found)}", *shown])
    return Outcome(not found, len(deaths), line)


def compare_trials(reference: Path, trial: Path) -> list[str]:
    """Compare the outputs of two trials: run folders, and feature caches if they have any."""
    lines = differences(reference / "run", trial / "run")
    if (reference / "cache").is_dir():
        lines += [f"cache/{line}" for line in different_files(reference / "cache", trial / "cache")]
    return lines


def verdict(found: Sequence[str]) -> str:
    """Word for a comparison's result."""
    return "exact" if not found else f"{len(found)} DIFFERENCES"


def summary(outcomes: Sequence[Outcome]) -> str:
    """Last line: trials and kills; a trial that failed counts no kill."""
    exact = sum(outcome.exact for outcome in outcomes)
    kills = sum(outcome.kills for outcome in outcomes)
    return f"{exact} of {len(outcomes)} trials exact, {kills} kills delivered"


def trials(
    setting: Setting, folder: Path, *, number: int, at: str, signal_name: str, seed: int
) -> Iterator[tuple[int, list[list[Kill]]]]:
    """Draws of kills of all trials, by number, once the uninterrupted runs are there and agree.

    Raises
    ------
    RuntimeError : if two uninterrupted runs differ: then resuming cannot be judged.
    """
    prepare(setting)
    seconds = finish(setting, folder / "uninterrupted")
    print(f"uninterrupted: {seconds:.1f} s, {len(operations(folder / 'uninterrupted'))} operations")
    seconds = min(seconds, finish(setting, folder / "again"))
    found = compare_trials(folder / "uninterrupted", folder / "again")
    print(f"uninterrupted, again: {verdict(found)}", flush=True)
    if found:
        raise RuntimeError("two uninterrupted runs differ:\n" + "\n".join(found))
    last = len(operations(folder / "uninterrupted")) if at == "write" else seconds
    for trial in range(1, number + 1):
        source = random.Random(f"{seed}/{trial}")
        options = {"at": at, "signal_name": signal_name, "last": last}
        yield trial, [draw_kills(source, **options) for _ in range(_NUM_DRAWS)]


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 0 if every trial is exact."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill_resume", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--stage", choices=SCRIPTS, required=True)
    parser.add_argument("--kills", type=int, default=20, help="trials, of 1 to 3 kills each")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--at", choices=("instant", "write"), default="instant")
    parser.add_argument(
        "--signal", choices=SIGNALS, default="KILL", help="to all processes of the run"
    )
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--accumulation", type=int, default=2, help="batches per step")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1, help="2: torchrun, gloo")
    parser.add_argument("--feature_cache", action="store_true", help="of the run's own")
    parser.add_argument("--jobs", type=int, default=2, help="trials at the same time")
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        setting = Setting(
            arguments.stage,
            folder / "inputs",
            workers=arguments.workers,
            accumulation=arguments.accumulation,
            epochs=arguments.epochs,
            ranks=arguments.ranks,
            feature_cache=arguments.feature_cache,
        )
        plans = trials(
            setting,
            folder,
            number=arguments.kills,
            at=arguments.at,
            signal_name=arguments.signal,
            seed=arguments.seed,
        )
        common = {"setting": setting, "folder": folder, "keep": arguments.keep is not None}
        outcomes = []
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for outcome in pool.map(
                lambda trial: run_trial(trial[0], draws=trial[1], **common), plans
            ):
                outcomes.append(outcome)
                print(outcome.line, flush=True)
    print(summary(outcomes))
    return 0 if all(outcome.exact for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
