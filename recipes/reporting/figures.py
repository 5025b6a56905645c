"""Figures of the report: scores over bitrate, use of codes, training curves, ratings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from recipes.reporting.svg import INK, MARKERS, MUTED, SERIES, STYLE, plain, save

_LONGEST_NAME = 40  # letters; the table beside a figure has it whole


class Point(NamedTuple):
    """One codec in a plot over bitrate; ``low`` and ``high`` bound its interval if it has one."""

    name: str
    bitrate: float
    value: float
    is_ours: bool
    low: float | None = None
    high: float | None = None


def plot_bitrate(
    title: str, points: Sequence[Point], path: Path, *, reference: float | None = None
) -> None:
    """Draw a score over bitrate: ours filled and coloured, published ones hollow.

    Parameters
    ----------
    title : of the score.
    points : one a codec; of ours, the same order gives the same colours.
    path : SVG to write.
    reference : the reference's score, drawn as a dashed line; None without.
    """
    ours = list(dict.fromkeys(point.name for point in points if point.is_ours))
    with matplotlib.rc_context(STYLE):
        figure, panel = _one_panel(5.6, 3.6)
        panel.set_title(plain(title))
        _bitrate_axis(panel, [point.bitrate for point in points])
        for point in points:
            _draw_point(panel, point, ours)
        if reference is not None:
            panel.axhline(reference, color=INK, linestyle=(0, (5, 4)), linewidth=0.9)
            panel.annotate(
                "reference",
                (1, reference),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=7.5,
                color=MUTED,
            )
        panel.margins(x=0.12, y=0.12)
        _label_points(panel, points, ours)
        save(figure, path)


def plot_code_usage(counts: Mapping[str, Sequence[Sequence[int]]], path: Path) -> None:
    """Sorted code frequencies of codecs, one line a codebook, relative to a uniform use.

    Parameters
    ----------
    counts : by codec, how often each code was used, by codebook.
    path : SVG to write.
    """
    with matplotlib.rc_context(STYLE):
        figure, panel = _one_panel(5.6, 3.6)
        lines = {}
        for place, (name, books) in enumerate(counts.items()):
            for number, book in enumerate(books):
                sizes = np.sort(np.asarray(book, dtype=float))[::-1]
                if not sizes.sum():
                    continue
                used = sizes[sizes > 0]
                (line,) = panel.plot(
                    np.arange(1, len(used) + 1) / len(sizes),
                    used / sizes.sum() * len(sizes),
                    color=SERIES[place % len(SERIES)],
                    linestyle=("-", "--", ":", "-.")[place // len(SERIES) % 4],
                    alpha=1 if number == 0 else 0.45,
                    drawstyle="steps-post",
                )
                lines.setdefault(name, line)
        panel.axhline(1, color=MUTED, linewidth=1, linestyle="--")
        panel.set_yscale("log")
        panel.set_xlim(0, 1.02)
        panel.set_xlabel("rank of the code / codebook size")
        panel.set_ylabel("frequency / that of a uniform use")
        panel.legend(list(lines.values()), [_short(name) for name in lines], loc="upper right")
        save(figure, path)


def curve_terms(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Terms of a training that have a number in some step."""
    terms = dict.fromkeys(key for entry in steps for key in entry if _is_number(entry[key]))
    return [term for term in terms if term not in ("step", "epoch")]


def plot_curves(steps: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the `curve_terms` of a training over optimizer steps, one panel a term.

    Parameters
    ----------
    steps : entries with ``step`` and terms, of which there is one; a term may be missing in some.
    path : SVG to write.
    """
    terms = curve_terms(steps)
    with matplotlib.rc_context(STYLE):
        columns = min(4, len(terms))
        rows = -(-len(terms) // columns)
        figure = Figure(figsize=(3 * columns, 2.2 * rows + 0.3))
        grid = figure.add_gridspec(
            rows,
            columns,
            left=0.2 / columns,
            right=0.99,
            top=1 - 0.14 / rows,
            bottom=0.55 / (2.2 * rows + 0.3),
            wspace=0.32,
            hspace=0.42,
        )
        for place, term in enumerate(terms):
            panel = figure.add_subplot(grid[place // columns, place % columns])
            shown = [(e["step"], e[term]) for e in steps if _is_number(e.get(term))]
            thinned = shown[:: max(1, len(shown) // 1000)]
            panel.plot(*zip(*thinned, strict=True), color=SERIES[0], linewidth=1.1)
            panel.set_title(plain(term))
            panel.tick_params(labelsize=7)
            panel.locator_params(axis="x", nbins=4)
        figure.text(0.5, 0.02, "optimizer step", ha="center", fontsize=8.5, color=MUTED)
        save(figure, path)


def plot_ratings(ratings: Mapping[str, Sequence[float]], path: Path) -> None:
    """Box plots of listeners' ratings by condition, all ratings as points beside the box.

    Parameters
    ----------
    ratings : 0 to 100, by condition, the first on top.
    path : SVG to write.
    """
    names = list(ratings)
    with matplotlib.rc_context(STYLE):
        figure, panel = _one_panel(
            5.6,
            0.95 + 0.44 * len(names),
            left=0.3 + 0.085 * min(_LONGEST_NAME, max(map(len, names))),
        )
        line = {"color": MUTED, "linewidth": 1}
        panel.boxplot(
            list(ratings.values()),
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={"color": SERIES[1], "linewidth": 2.2},
        )
        for place, values in enumerate(ratings.values(), 1):
            spread = np.random.default_rng(place).uniform(-0.18, 0.18, len(values))
            panel.plot(values, place + spread, ".", color=SERIES[0], alpha=0.35, markersize=4)
        panel.set_yticks(range(1, len(names) + 1), [_short(name) for name in names])
        panel.tick_params(axis="y", labelcolor=INK, labelsize=9)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.set_xlim(-2, 102)
        panel.set_xlabel("rating")
        save(figure, path)


def _one_panel(width: float, height: float, *, left: float = 0.65) -> tuple[Figure, Axes]:
    """Figure of one panel in inches; its margins are set, for finding them means to draw twice."""
    figure = Figure(figsize=(width, height))
    left = min(left, width / 2)
    right, bottom, top = 0.15, 0.5, 0.35
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


def _bitrate_axis(panel: Axes, bitrates: Sequence[float]) -> None:
    panel.set_xlabel("bitrate (kbit/s)")
    if min(bitrates) == max(bitrates) > 0:
        panel.set_xlim(0.5 * bitrates[0], 1.5 * bitrates[0])  # its own choice magnifies nothing
    if min(bitrates) > 0 and max(bitrates) > 2.5 * min(bitrates):
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5)))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())


def _draw_point(panel: Axes, point: Point, ours: Sequence[str]) -> None:
    if not point.is_ours:
        panel.plot(
            point.bitrate, point.value, "o", markersize=5, color=MUTED, markerfacecolor="none"
        )
        return
    place = ours.index(point.name)
    color = SERIES[place % len(SERIES)]
    panel.plot(
        point.bitrate,
        point.value,
        MARKERS[place % len(MARKERS)],
        markersize=8,
        color=color,
        zorder=3,
    )
    if point.low is not None:
        panel.vlines(point.bitrate, point.low, point.high, color=color, linewidth=1.6, zorder=3)


def _label_points(panel: Axes, points: Sequence[Point], ours: Sequence[str]) -> None:
    """Write names beside points, each where it covers no other name and no point."""
    panel.autoscale_view()
    at = [panel.transData.transform((p.bitrate, p.value)) for p in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    left, _, right, _ = panel.bbox.extents
    places = ((8, -4, "left"), (-8, -4, "right"), (0, 8, "center"), (0, -16, "center"))
    for dy in (10, -18, 24, -32):
        places += ((8, dy, "left"), (-8, dy, "right"), (0, 1.25 * dy, "center"))
    for index in sorted(range(len(points)), key=lambda i: not points[i].is_ours):
        point, (x, y) = points[index], at[index]
        size = 8.5 if point.is_ours else 7.5
        name = _short(point.name)
        letter = 0.89 if point.is_ours else 0.8  # of a wide font, ours bold; pixels at 100 dpi
        width, height = letter * size * len(name), 1.35 * size
        for dx, dy, side in places:
            start = x + dx - {"left": 0, "right": width, "center": width / 2}[side]
            box = (start, y + dy - 1, start + width, y + dy + height)
            inside = left <= box[0] and box[2] <= right
            if inside and not any(_overlap(box, other) for other in taken):
                break
        else:
            if not point.is_ours:
                continue  # its mark stays, its numbers are in the table
            dx, dy, side = places[0] if x < (left + right) / 2 else places[1]
            start = x + dx - (width if side == "right" else 0)
            box = (start, y + dy, start + width, y + dy + height)
        taken.append(box)
        color = SERIES[ours.index(point.name) % len(SERIES)] if point.is_ours else MUTED
        weight = "bold" if point.is_ours else "normal"
        panel.annotate(
            name,
            (point.bitrate, point.value),
            xytext=(dx * 0.72, dy * 0.72),
            textcoords="offset points",
            ha=side,
            fontsize=size,
            color=color,
            fontweight=weight,
        )


def _short(name: str) -> str:
    """Text of a name in a figure: a long one without its middle."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[:24]}…{name[25 - _LONGEST_NAME :]}"
    return plain(name)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
