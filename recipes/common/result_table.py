"""A table of tested runs: which are one row, its means and spreads, what is missing and why."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from recipes.common.known_metrics import METRICS as AUDIO
from recipes.common.paper import NO_DECODER
from recipes.common.quantizer_runs import QuantizerRun, SeedGroup, group_runs
from recipes.common.run_origin import NOT_RECORDED, Start

NOT_COMPUTED = "not computed"


class Metric(NamedTuple):
    """How a value is printed: its column's title, its format, and the factor to its unit."""

    title: str
    spec: str = ".4g"
    scale: float = 1


# Keys of the test's part of metrics.json; ratios are fractions there.
METRICS = {
    "reconstruction": Metric("feature MSE", ".4f"),
    "hyp_stoi": Metric("STOI", ".3f"),
    "hyp_pesq": Metric("PESQ-WB", ".2f"),
    "hyp_dnsmos_ovrl": Metric("DNSMOS OVRL", ".2f"),
    "hyp_utmos": Metric("UTMOS", ".2f"),
    "hyp_dwer": Metric("dWER (%)", ".2f", 100),
    "hyp_sim": Metric("Sim (%)", ".1f", 100),
    "code_usage": Metric("code usage (%)", ".1f", 100),
    "normalised_entropy": Metric("normalised entropy", ".3f"),
    "bottleneck_parameters": Metric("compressor + decompressor (M)", ".2f", 1e-6),
    "decoder_parameters": Metric("decoder (M)", ".2f", 1e-6),
}
# These come from run.json: of which parts they count the parameters.
PARTS = {
    "bottleneck_parameters": ("compressor", "decompressor"),
    "decoder_parameters": ("decoder",),
}


class Spread(NamedTuple):
    """Mean over seeds, sample standard deviation (None of one seed), and how many there are."""

    mean: float
    std: float | None
    number: int


class Table(NamedTuple):
    """One row a group of seeds, one column a metric, by its key."""

    groups: list[SeedGroup]
    metrics: dict[str, Metric]

    @property
    def has_variants(self) -> bool:
        """Whether rows are told apart by more than their name."""
        return any(group.variant for group in self.groups)


def make_table(runs: Sequence[QuantizerRun], *, keys: Sequence[str] | None = None) -> Table:
    """Group runs by row and configuration.

    Parameters
    ----------
    runs : see `recipes.common.quantizer_runs.find_runs`.
    keys : metrics to show; None for `METRICS`.

    Raises
    ------
    ValueError : if no run knows a metric, or two runs have the same row, configuration and seed.
    """
    known = set(METRICS).union(*(run.test for run in runs)) - {"not_computed", "models"}
    if unknown := [key for key in keys or () if key not in known]:
        raise ValueError(
            f"unknown metrics {', '.join(unknown)}; these runs know {', '.join(sorted(known))}"
        )
    chosen = dict.fromkeys(keys or METRICS)
    return Table(group_runs(runs), {key: METRICS.get(key, Metric(key)) for key in chosen})


def values(group: SeedGroup, key: str, *, scale: float = 1) -> list[float]:
    """Values of a metric over a group's seeds, as far as they were computed."""
    found = [_value(run, key) for run in group.runs]
    return [scale * value for value in found if value is not None]


def spread(group: SeedGroup, key: str, *, scale: float = 1) -> Spread | None:
    """Mean and spread of a metric over a group's seeds; None where no seed has it."""
    found = values(group, key, scale=scale)
    if not found:
        return None
    std = statistics.stdev(found) if len(found) > 1 else None
    return Spread(statistics.fmean(found), std, len(found))


def missing(group: SeedGroup, key: str) -> str:
    """Word for a metric that no seed of a group has."""
    if key not in PARTS:
        return NOT_COMPUTED
    return NOT_RECORDED if group.runs[0].parameters is None else NO_DECODER


def not_computed(table: Table) -> list[str]:
    """Say for each metric that some run does not have why; each reason once."""
    reasons: dict[str, None] = {}
    for key, metric in table.metrics.items():
        for group in table.groups:
            for run in group.runs:
                if _value(run, key) is None:
                    reasons[f"{metric.title}: {_reason(run, key)}"] = None
    return list(reasons)


def variant(group: SeedGroup, *, shown: int = 3) -> str:
    """Say what tells a group from others of its row, such as ``1: lr 0.001``; mostly nothing.

    ``shown`` limits the differences that are listed; the number is a group's own.
    """
    if not group.variant:
        return ""
    listed = [f"{key} {text}" for key, text in group.differences.items()]
    more = [f"{len(listed) - shown} more"] if len(listed) > shown else []
    return f"{group.variant}: {', '.join(listed[:shown] + more)}"


def label(group: SeedGroup, *, shown: int = 3) -> str:
    """Name of a row, distinct; ``shown`` as in `variant`."""
    own = variant(group, shown=shown)
    return ", ".join(group.row) + (f" ({own})" if own else "")


def seeds(group: SeedGroup) -> list[str]:
    """Seeds as text, in the order of the runs."""
    return [NOT_RECORDED if run.seed is None else str(run.seed) for run in group.runs]


def starts(group: SeedGroup) -> list[Start]:
    """Commands of all seeds; that of a decoder which several were tested with counts once."""
    return list(dict.fromkeys(start for run in group.runs for start in run.starts))


def _value(run: QuantizerRun, key: str) -> float | None:
    if key in PARTS:
        unused = {"decoder"} if run.row.decoder == NO_DECODER else set()
        counts = [(run.parameters or {}).get(part) for part in PARTS[key] if part not in unused]
        return sum(counts) if counts and None not in counts else None
    value = run.test.get(key)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None


def _reason(run: QuantizerRun, key: str) -> str:
    if key in PARTS:
        return (
            f"{NOT_RECORDED} by the version that a run was made with"
            if run.parameters is None
            else "the test had no decoder"
        )
    metric_of = {score: name for name, metric in AUDIO.items() for score in metric.scores}
    reason = run.test.get("not_computed", {}).get(metric_of.get(key.partition("_")[2]))
    if reason is not None:
        return reason
    if run.row.decoder == NO_DECODER and key.startswith(("hyp_", "rec_")):
        return "decoder_checkpoint was null, so that no audio was decoded"
    return f"no {key} among the metrics of the test"
