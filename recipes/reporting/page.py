"""The report's page: what is on it, in which order, rendered to one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from recipes.common.files import write_text
from recipes.common.paper_tables import published_tables, tables_beside
from recipes.reporting.differences import DifferenceTable, difference_table
from recipes.reporting.figures import (
    Point,
    curve_terms,
    plot_bitrate,
    plot_code_usage,
    plot_curves,
)
from recipes.reporting.groups import TASKS, grouped, set_titles
from recipes.reporting.measures import QUALITY, measure_of
from recipes.reporting.ratings import RatingSummary
from recipes.reporting.runs import Evaluation, FoundRuns, Training, labels
from recipes.reporting.samples import Samples, write_samples
from recipes.reporting.tables import (
    REFERENCE,
    ScoreTable,
    bitrate_of,
    facts_table,
    paper_table,
    score_table,
)

ASSETS = Path(__file__).parent / "assets"


class Group(NamedTuple):
    """Runs of one task on one test set, as shown; figures are paths in the report, or None.

    ``title`` is the name of the test set, with what tells it from others of that name.
    """

    id: str
    task: str
    title: str
    runs: list[Evaluation]
    names: dict[Path, str]
    size: str
    table: ScoreTable
    differences: DifferenceTable
    bitrate_figures: list[tuple[str, str]]
    usage_figure: str | None
    samples: Samples | None


def write_page(
    found: FoundRuns,
    output: Path,
    *,
    num_items: int,
    ratings: RatingSummary | None = None,
    has_listening_test: bool = False,
) -> None:
    """Write ``index.html`` and all that it shows into an empty folder.

    Parameters
    ----------
    found : the runs.
    output : folder to write.
    num_items : how many utterances of each test set to hear.
    ratings : analysed ratings of a listening test.
    has_listening_test : whether ``listening_test/index.html`` is, or will be, beside the page.
    """
    (output / "figures").mkdir(parents=True, exist_ok=True)
    runs = found.evaluations
    sets = grouped(runs)
    titles = set_titles(sets)
    groups = [
        _group(number, members, runs, titles[test_set], output, num_items)
        for number, (test_set, members) in enumerate(sets.items(), 1)
    ]
    shown = [table for run in runs for table in tables_beside(run.task, run.dataset_name)]
    others = [t for t in published_tables() if t not in shown and t.task != "speed"]
    context = {
        "groups": groups,
        "facts": facts_table(runs) if runs else None,
        "trainings": _trainings(found.trainings, output),
        "left_out": found.left_out,
        "runs": runs,
        "run_ids": {run.folder: f"run-{number}" for number, run in enumerate(runs, 1)},
        "run_names": {folder: name for group in groups for folder, name in group.names.items()}
        | labels([run for run in runs if run.task == "speed"]),
        "titles": titles,
        "others": [paper_table(table) for table in others],
        "ratings": ratings,
        "has_listening_test": has_listening_test,
        "tasks": TASKS,
        "measure_of": measure_of,
        "css": (ASSETS / "report.css").read_text(encoding="utf-8"),
        "js": (ASSETS / "report.js").read_text(encoding="utf-8"),
    }
    write_text(output / "index.html", render("report.html", context))


def render(template: str, context: dict[str, Any]) -> str:
    """Fill a template of ``assets``; every value is escaped, a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(context)


def _group(
    number: int,
    members: list[Evaluation],
    runs: Sequence[Evaluation],
    title: str,
    output: Path,
    num_items: int,
) -> Group:
    task = members[0].task
    whole = members[0].test_set._replace(task="resynthesis")
    codecs = {run.codec_name for run in members if run.task == "streaming"}
    offline = [run for run in runs if run.test_set == whole and run.codec_name in codecs]
    table = score_table([*members, *offline], title=title)
    names = labels([*members, *offline])  # those of the table
    return Group(
        id=f"set-{number}",
        task=task,
        title=title,
        runs=members,
        names={run.folder: names[run.folder] for run in members},
        size=_size(members),
        table=table,
        differences=difference_table([*members, *offline]),
        bitrate_figures=_bitrate_figures(table, output, f"figures/{number}"),
        usage_figure=_usage_figure(members, names, table, output, f"figures/{number}-codes.svg"),
        samples=write_samples(members, output, f"audio/{number}", limit=num_items),
    )


def _size(runs: Sequence[Evaluation]) -> str:
    """How much was evaluated, once if it is the same for all runs."""
    names, sizes = labels(runs), {}
    for run in runs:
        utterances, hours = run.dataset.get("utterances"), run.dataset.get("hours")
        text = "size not recorded" if utterances is None else f"{utterances} utterances"
        if isinstance(hours, int | float):
            text += f", {hours:.2f} h" if hours >= 1 else f", {60 * hours:.1f} min"
        sizes.setdefault(text, []).append(names[run.folder])
    if len(sizes) == 1:
        return f"{next(iter(sizes))}."
    return "; ".join(f"{', '.join(of)}: {text}" for text, of in sizes.items()) + "."


def _bitrate_figures(table: ScoreTable, output: Path, stem: str) -> list[tuple[str, str]]:
    """Plot every quality score that one of our runs has; title and path of each figure."""
    figures = []
    for measure in table.columns:
        points, reference = [], None
        for row in table.rows if measure.key in QUALITY else ():
            cell, bitrate = row.cells.get(measure.key), bitrate_of(row)
            if cell is None or cell.value is None:
                continue
            if row.codec == REFERENCE:
                reference = cell.value  # ours stands after the published one
            elif bitrate is not None:
                points.append(Point(row.name, bitrate, cell.value, row.is_ours, *cell.bounds))
        if any(point.is_ours for point in points):
            title, name = f"{measure.title} {measure.arrow}", f"{stem}-{measure.key}.svg"
            plot_bitrate(title, points, output / name, reference=reference)
            figures.append((title, name))
    return figures


def _usage_figure(
    runs: Sequence[Evaluation],
    names: dict[Path, str],
    table: ScoreTable,
    output: Path,
    name: str,
) -> str | None:
    """Plot code frequencies, in the order of the table, so that colours are those of its plots."""
    places = {row.name: place for place, row in enumerate(table.rows) if row.is_ours}
    runs = sorted(runs, key=lambda run: places[names[run.folder]])
    counts = {names[run.folder]: found for run in runs if (found := run.code_counts())}
    if not counts:
        return None
    plot_code_usage(counts, output / name)
    return name


def _trainings(trainings: Sequence[Training], output: Path) -> list[tuple[str, str]]:
    """Name and figure of each training that has logged something."""
    curves = []
    for number, training in enumerate(trainings, 1):
        if curve_terms(training.steps):
            name = f"figures/training-{number}.svg"
            plot_curves(training.steps, output / name)
            curves.append((str(training.folder), name))
    return curves
