r"""Print a table of tested runs beside the paper's numbers: made from run folders, never typed.

    python -m recipes.results results/ablation --plot ablation.png
    python -m recipes.results RUN RUN --format csv --output table.csv

Reads ``run.json``, ``metrics.json`` and ``hyperparams.yaml`` of runs of ``train_quantizer.py``, and
of the runs that they name as their training and their decoder. Runs that differ in their seed
alone make one row, with mean and sample standard deviation; any other difference makes two. What
was not computed says so and is never a number.
"""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from recipes.common.files import write_text
from recipes.common.paper import SOURCE, TABLE_6, Row
from recipes.common.plots import plot_bars
from recipes.common.quantizer_runs import QuantizerRun, SeedGroup, find_runs, left_out_line
from recipes.common.result_table import (
    METRICS,
    PARTS,
    Metric,
    Table,
    label,
    make_table,
    missing,
    not_computed,
    seeds,
    spread,
    starts,
    values,
    variant,
)
from recipes.common.run_origin import Start

NOT_IN_THE_PAPER = "not in the paper"
PAPER = (
    Metric("paper UTMOS", ".2f"),
    Metric("paper dWER (%)", ".2f"),
    Metric("paper Sim (%)", ".1f"),
)


def markdown(table: Table) -> str:
    """Table, then what the paper's numbers are, what was not computed and why, and the origins."""
    lines = [_tabulated(table, "pipe", _escape_pipes), ""]
    lines += [f"Paper: {SOURCE}.", ""]
    if reasons := not_computed(table):
        lines += ["Not computed:", "", *(f"- {reason}" for reason in reasons), ""]
    for group in table.groups:
        lines += [f"{label(group)}:", ""]
        lines += [f"- {key}: `{text}`" for key, text in group.differences.items()]
        lines += [*([""] if group.differences else []), "```sh"]
        for start in starts(group):
            lines += [f"# {_origin(start)}", start.command]
        lines += ["```", ""]
    return "\n".join(lines)


def latex(table: Table) -> str:
    """Table for the package booktabs; what `markdown` says below it stands in comments."""
    lines = [f"Paper: {SOURCE}.", *(f"Not computed: {reason}" for reason in not_computed(table))]
    for group in table.groups:
        lines.append(f"{label(group)}:")
        lines += [f"  {key}: {text}" for key, text in group.differences.items()]
        for start in starts(group):
            lines += [f"  {_origin(start)}", f"    {start.command}"]
    comments = [f"% {line}" for text in lines for line in text.splitlines()]
    tabular = _tabulated(table, "latex_booktabs", str).replace("±", r"$\pm$")
    return "\n".join([tabular, *comments, ""])


def comma_separated(table: Table) -> str:
    """One line a row, numbers in full precision and in the unit of their column's title.

    ``commands``, ``commits`` and ``hardware`` list the same starts in the same order, joined by
    semicolons.
    """
    header = [*Row._fields, *(["configuration"] if table.has_variants else []), "number of seeds"]
    for metric in table.metrics.values():
        header += [f"{metric.title} {what}" for what in ("mean", "std", "seeds")]
    header += [metric.title for metric in PAPER]
    header += ["commands", "commits", "seeds", "hardware"]
    lines: list[list[Any]] = [header]
    for group in table.groups:
        line: list[Any] = [*_names(table, group), len(group.runs)]
        for key, metric in table.metrics.items():
            line += spread(group, key, scale=metric.scale) or ("", "", "")
        line += TABLE_6.get(group.row) or ("", "", "")
        found = starts(group)
        columns = [
            [start.command.replace("\n", " ") for start in found],
            [start.commit for start in found],
            seeds(group),
            [start.hardware for start in found],
        ]
        lines.append(line + ["; ".join(column) for column in columns])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
}


def plot(table: Table, path: Path) -> None:
    """Draw a panel for each metric that has values, a bar for each row.

    Raises
    ------
    ValueError : if no metric has values.
    """
    panels = {}
    for key, metric in table.metrics.items():
        if key in PARTS:
            continue
        bars = {
            label(group, shown=1): values(group, key, scale=metric.scale) for group in table.groups
        }
        if any(bars.values()):
            panels[metric.title] = bars
    plot_bars(panels, path)


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folder, or a folder to search"
    )
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    parser.add_argument(
        "--metrics", nargs="+", metavar="KEY", help=f"of {', '.join(METRICS)}, or any of a test"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bars to draw")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    arguments = parser.parse_args(argv)
    try:
        found = find_runs(arguments.runs)
        if found.left_out:
            print(f"results: left out: {left_out_line(found.left_out)}", file=sys.stderr)
        for path in filter(None, (arguments.plot, arguments.output)):
            refuse_inside(found.runs, path)
        table = make_table(found.runs, keys=arguments.metrics)
        text = FORMATS[arguments.format](table)
        if arguments.plot is not None:
            plot(table, arguments.plot)
        if arguments.output is not None:
            write_text(arguments.output, text)
    except (OSError, ValueError) as error:
        print(f"results: {error}", file=sys.stderr)
        return 1
    if arguments.output is None:
        sys.stdout.write(text)
    return 0


def refuse_inside(runs: Iterable[QuantizerRun], path: Path) -> None:
    """Raise ValueError if a file to write lies in a run folder."""
    for run in runs:
        if path.resolve().is_relative_to(run.folder.resolve()):
            raise ValueError(f"{path} lies in the run folder {run.folder}; write it elsewhere")


def _tabulated(table: Table, format: str, escape: Callable[[str], str]) -> str:
    told_apart = ["configuration"] if table.has_variants else []
    titles = [metric.title for metric in (*table.metrics.values(), *PAPER)]
    rows = []
    for group in table.groups:
        cells = [_cell(group, key, metric) for key, metric in table.metrics.items()]
        names = _names(table, group)
        rows.append([*names, str(len(group.runs)), *cells, *_paper_cells(group.row)])
    left = len(Row._fields) + len(told_apart)
    return tabulate(
        [[escape(cell) for cell in row] for row in rows],
        headers=[*Row._fields, *told_apart, "seeds", *titles],
        tablefmt=format,
        disable_numparse=True,
        colalign=["left"] * left + ["right"] * (1 + len(titles)),
    )


def _cell(group: SeedGroup, key: str, metric: Metric) -> str:
    found = spread(group, key, scale=metric.scale)
    if found is None:
        return missing(group, key)
    text = format(found.mean, metric.spec)
    if found.std is not None and key not in PARTS:
        text += f" ± {found.std:{metric.spec}}"
    if found.number < len(group.runs):
        text += f" ({found.number} of {len(group.runs)} seeds)"
    return text


def _paper_cells(row: Row) -> list[str]:
    published = TABLE_6.get(row)
    if published is None:
        return [NOT_IN_THE_PAPER] * len(PAPER)
    return [format(value, metric.spec) for value, metric in zip(published, PAPER, strict=True)]


def _names(table: Table, group: SeedGroup) -> list[str]:
    return [*group.row, *([variant(group)] if table.has_variants else [])]


def _escape_pipes(text: str) -> str:
    return text.replace("|", r"\|")


def _origin(start: Start) -> str:
    return f"{start.role}, seed {start.seed}, commit {start.commit}, hardware: {start.hardware}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
