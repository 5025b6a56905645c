r"""Make a report from run folders: one static folder to open in a browser, without a server.

    python -m recipes.report results/evaluation -o report
    python -m recipes.report RUN RUN -o report --mushra --mushra-set librispeech_test_clean
    python -m recipes.report RUN RUN -o report --ratings ratings/*.csv

RUN is a folder of ``recipes.evaluate`` or of a training, or one above some. Our numbers stand
beside the published ones, with their intervals, audio, spectrograms, figures and origins.
``--mushra`` adds a listening test, ``report/listening_test/index.html``, that asks people and saves
their ratings; ``--ratings`` analyses what they saved.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.reporting import folder
from recipes.reporting.groups import grouped, set_titles
from recipes.reporting.listening_test import Written, write_listening_test
from recipes.reporting.page import write_page
from recipes.reporting.ratings import analyse, read_ratings
from recipes.reporting.runs import Evaluation, FoundRuns, find_runs


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="run folder, or a folder to search"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--items", type=_positive, default=10, metavar="N", help="utterances to hear of a test set"
    )
    parser.add_argument("--mushra", action="store_true", help="make a listening test too")
    parser.add_argument(
        "--mushra-set", metavar="DATASET", help="test set to listen to, where there are several"
    )
    parser.add_argument(
        "--mushra-items", type=_positive, default=10, metavar="N", help="items to rate"
    )
    parser.add_argument(
        "--mushra-anchor", action="store_true", help="add the reference low-passed at 3.5 kHz"
    )
    parser.add_argument(
        "--ratings", type=Path, nargs="+", metavar="FILE.csv", help="what a listening test saved"
    )
    arguments = parser.parse_args(argv)
    try:
        lines = make_report(arguments)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def make_report(arguments: argparse.Namespace) -> list[str]:
    """Write the report; what to tell about it, a line each.

    Raises
    ------
    ValueError, OSError : if there is nothing to report, a file is damaged, or the output folder is
        not the report's own.
    """
    if not arguments.runs and not arguments.ratings:
        raise ValueError("nothing to report: name run folders, or --ratings of a listening test")
    if arguments.mushra and not arguments.runs:
        raise ValueError("--mushra needs the run folders to listen to")
    found = find_runs(arguments.runs) if arguments.runs else FoundRuns([], [], [])
    folder.check_output(arguments.output, found.folders)
    ratings = read_ratings(arguments.ratings) if arguments.ratings else None
    heard = listened_runs(found.evaluations, arguments.mushra_set) if arguments.mushra else []
    written = None
    num_runs = len(found.evaluations) + len(found.trainings)
    with folder.replacing(arguments.output, num_runs=num_runs) as partial:
        if arguments.mushra:
            written = write_listening_test(
                heard,
                partial / folder.LISTENING_TEST,
                num_items=arguments.mushra_items,
                with_anchor=arguments.mushra_anchor,
            )
        write_page(
            found,
            partial,
            num_items=arguments.items,
            ratings=None if ratings is None else analyse(ratings, partial),
            has_listening_test=arguments.mushra or folder.has_listening_test(arguments.output),
        )
    return _summary(arguments, found, written)


def listened_runs(runs: Sequence[Evaluation], dataset: str | None) -> list[Evaluation]:
    """Choose the test set that a listening test is about: that of the name, or the only one.

    A name is that of the test set, or its title in the report where several have one name.

    Raises
    ------
    ValueError : if there is none, or several and no name.
    """
    with_samples = [run for run in runs if run.samples()]
    groups = grouped(with_samples)
    titles = set_titles(grouped(runs))
    names = ", ".join(sorted({titles[key] for key in groups}))
    if dataset is not None:
        groups = {key: of for key, of in groups.items() if dataset in (key.name, titles[key])}
    if dataset is not None and len({key.task for key in groups}) > 1:
        groups = {key: members for key, members in groups.items() if key.task == "resynthesis"}
    if not groups:
        raise ValueError(
            f"no run with audio samples of test set {dataset}; there is: {names or 'none'}"
            if dataset
            else "a listening test needs runs with audio samples, and there is none"
        )
    if len(groups) > 1:
        raise ValueError(f"there are several test sets; name one with --mushra-set: {names}")
    return next(iter(groups.values()))


def _summary(arguments: argparse.Namespace, found: FoundRuns, written: Written | None) -> list[str]:
    lines = [f"left out: {path}: {reason}" for path, reason in found.left_out]
    if written is not None:
        page = arguments.output / folder.LISTENING_TEST / "index.html"
        fewer = written.items < arguments.mushra_items
        lines.append(
            f"listening test of {written.items} items"
            f"{' (the runs share no more)' if fewer else ''} in {written.conditions} conditions: "
            f"{page}"
        )
    lines.append(
        f"report of {len(found.evaluations)} evaluations and {len(found.trainings)} trainings: "
        f"{arguments.output / 'index.html'}"
    )
    return lines


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
