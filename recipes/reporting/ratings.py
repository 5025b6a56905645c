"""Ratings of a listening test: read, screened and averaged.

References
----------
[1] ITU-R BS.1534-3, 2015: MUSHRA, and in its section on post-screening whose ratings count.
[2] arXiv:2502.04465, appendix F.1 and Figure 2: what is reported.
"""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.common.bootstrap import Interval, mean_interval
from recipes.reporting.figures import Point, plot_bitrate, plot_ratings

COLUMNS = (
    "test",
    "participant",
    "item",
    "condition",
    "kind",
    "bitrate",
    "rating",
    "order",
    "position",
    "seconds",
    "time",
)
REFERENCE, ANCHOR, CODEC = "reference", "anchor", "codec"
# A listener who rates the hidden reference below this for a larger share of the items is left out.
SCREENING_RATING = 90
SCREENING_SHARE = 0.15


class Rating(NamedTuple):
    """One slider of one participant; ``bitrate`` in bit/s, None of the reference and the anchor."""

    participant: str
    item: str
    condition: str
    kind: str
    bitrate: float | None
    rating: float


class Condition(NamedTuple):
    """What the counted participants think of one condition; ``bitrate`` in kbit/s.

    ``name`` says the kind where conditions of several kinds have one name.
    """

    name: str
    kind: str
    bitrate: float | None
    mos: Interval
    median: float
    number: int


class RatingSummary(NamedTuple):
    """Result of a listening test.

    ``excluded`` are participants with the share of items for which they rated the hidden reference
    too low; ``items`` holds by item the mean rating of each condition, in their order. Figures are
    paths in the report's folder.
    """

    participants: int
    excluded: list[tuple[str, float]]
    conditions: list[Condition]
    items: dict[str, list[float | None]]
    box_figure: str
    bitrate_figure: str | None


def read_ratings(paths: Iterable[Path]) -> list[Rating]:
    """Read what the page of a listening test has saved.

    Raises
    ------
    ValueError : if a file is damaged, is of another test, or rates something again; names the file
        and the line.
    OSError : if a file cannot be read.
    """
    ratings: list[Rating] = []
    places: dict[tuple[str, ...], str] = {}
    tests: dict[str, Path] = {}
    for path in paths:
        for line, test, rating in _read_file(path):
            if test not in tests and tests:
                other, first = next(iter(tests.items()))
                raise ValueError(
                    f"{path} is of test {test}, {first} of test {other}; analyse them apart"
                )
            tests.setdefault(test, path)
            key = (rating.participant, rating.item, rating.condition, rating.kind)
            if key in places:
                raise ValueError(
                    f"{path}, line {line}: participant {rating.participant} has rated "
                    f"{rating.condition} of {rating.item} before, in {places[key]}; leave one out"
                )
            places[key] = f"{path}, line {line}"
            ratings.append(rating)
    if not ratings:
        raise ValueError("the files of ratings hold no rating")
    return ratings


def screened(ratings: Sequence[Rating]) -> tuple[list[Rating], list[tuple[str, float]]]:
    """Ratings that count, and the participants whose do not, with their share of low references.

    Raises
    ------
    ValueError : if nobody is left.
    """
    references: dict[str, list[float]] = {}
    for rating in ratings:
        scores = references.setdefault(rating.participant, [])
        if rating.kind == REFERENCE:
            scores.append(rating.rating)
    excluded = []
    for participant, scores in sorted(references.items()):
        low = sum(score < SCREENING_RATING for score in scores)
        if scores and low / len(scores) > SCREENING_SHARE:
            excluded.append((participant, low / len(scores)))
    out = {participant for participant, _ in excluded}
    kept = [rating for rating in ratings if rating.participant not in out]
    if not kept:
        raise ValueError(
            f"all {len(out)} participants rated the hidden reference below {SCREENING_RATING} for "
            f"more than {SCREENING_SHARE:.0%} of the items, so that no rating counts"
        )
    return kept, excluded


def analyse(ratings: Sequence[Rating], output: Path) -> RatingSummary:
    """Average ratings by condition and by item, and draw them into ``output/figures``.

    The interval of a mean is over participants, whose ratings are not independent of each other.

    Raises
    ------
    ValueError : see `screened`.
    """
    kept, excluded = screened(ratings)
    rated = _by_condition(kept)
    found = {key: _condition(_shown_name(key, rated), members) for key, members in rated.items()}
    order = sorted(
        rated, key=lambda key: (key[1] != REFERENCE, -found[key].mos.mean, found[key].name)
    )
    conditions = [found[key] for key in order]
    items: dict[str, list[float | None]] = {}
    for item in sorted({rating.item for rating in kept}):
        own = [rating for rating in kept if rating.item == item]
        items[item] = [
            statistics.fmean(values)
            if (values := [r.rating for r in own if (r.condition, r.kind) == key])
            else None
            for key in order
        ]
    (output / "figures").mkdir(parents=True, exist_ok=True)
    boxes = {found[key].name: [r.rating for r in rated[key]] for key in order}
    plot_ratings(boxes, output / "figures/ratings.svg")
    return RatingSummary(
        participants=len({rating.participant for rating in ratings}),
        excluded=excluded,
        conditions=conditions,
        items=items,
        box_figure="figures/ratings.svg",
        bitrate_figure=_bitrate_figure(conditions, output),
    )


def _bitrate_figure(conditions: Sequence[Condition], output: Path) -> str | None:
    points = [
        Point(c.name, c.bitrate, c.mos.mean, True, c.mos.low, c.mos.high)
        for c in conditions
        if c.bitrate is not None
    ]
    if not points:
        return None
    reference = next((c.mos.mean for c in conditions if c.kind == REFERENCE), None)
    path = output / "figures/mos.svg"
    plot_bitrate("Mean opinion score ↑", points, path, reference=reference)
    return "figures/mos.svg"


def _by_condition(ratings: Iterable[Rating]) -> dict[tuple[str, str], list[Rating]]:
    found: dict[tuple[str, str], list[Rating]] = {}
    for rating in ratings:
        found.setdefault((rating.condition, rating.kind), []).append(rating)
    return found


def _shown_name(key: tuple[str, str], keys: Iterable[tuple[str, str]]) -> str:
    name, kind = key
    return f"{name} ({kind})" if sum(other == name for other, _ in keys) > 1 else name


def _condition(name: str, ratings: Sequence[Rating]) -> Condition:
    by_participant: dict[str, list[float]] = {}
    for rating in ratings:
        by_participant.setdefault(rating.participant, []).append(rating.rating)
    scores = [statistics.fmean(own) for own in by_participant.values()]
    weights = [len(own) for own in by_participant.values()]
    first = ratings[0]
    return Condition(
        name=name,
        kind=first.kind,
        bitrate=None if first.bitrate is None else first.bitrate / 1000,
        mos=mean_interval(scores, weights=weights),
        median=statistics.median(rating.rating for rating in ratings),
        number=len(ratings),
    )


def _read_file(path: Path) -> Iterable[tuple[int, str, Rating]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise ValueError(
            f"{path}, line 1: the columns {', '.join(missing)} are missing; give the file as the "
            "listening test saved it, separated by commas"
        )
    for row in reader:
        try:
            yield reader.line_num, row["test"], _rating(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _rating(row: dict[str, str | None]) -> Rating:
    if None in row or None in row.values():
        raise ValueError("it has not as many fields as the first line")
    for name in ("participant", "item", "condition"):
        if not row[name]:
            raise ValueError(f"{name} is empty")
    if row["kind"] not in (REFERENCE, ANCHOR, CODEC):
        raise ValueError(f"kind must be reference, anchor or codec, got {row['kind']!r}")
    rating = _number(row["rating"], "rating")
    if not 0 <= rating <= 100:
        raise ValueError(f"rating must be between 0 and 100, got {row['rating']}")
    bitrate = _number(row["bitrate"], "bitrate") if row["bitrate"] else None
    return Rating(row["participant"], row["item"], row["condition"], row["kind"], bitrate, rating)


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {text!r}")
    return value
