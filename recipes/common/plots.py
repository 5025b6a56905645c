"""Pictures of runs: loss curves, mel-spectrograms and bars of test results, as PNG files."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from focalcodec.logmel import LogMel

matplotlib.use("Agg")

_MEL_RANGE = math.log(10) * 80 / 20  # 80 dB in nepers


def read_steps(run: Path) -> list[dict[str, Any]]:
    """Entries of a run's ``steps.jsonl``, in order.

    A last line without its end is left out: the run is writing it, or was killed in it.

    Raises
    ------
    FileNotFoundError : if the run has not logged a step.
    ValueError : if a line is damaged; names the file and the line.
    """
    path = run / "steps.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the run has not logged a step yet")
    *lines, _ = path.read_bytes().split(b"\n")
    return [_step(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def plot_losses(runs: Mapping[str, Path], terms: Mapping[str, Sequence[str]], path: Path) -> None:
    """One row of panels per run, one panel per term, over optimizer steps.

    Parameters
    ----------
    runs : run folders by the name to print.
    terms : for each of those names, the loss terms to show.
    path : PNG to write.
    """
    columns = max(len(names) for names in terms.values())
    figure = Figure(figsize=(3.2 * columns, 2.6 * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), columns, squeeze=False)
    for row, (name, run) in zip(panels, runs.items(), strict=True):
        steps = read_steps(run)
        for panel in row[len(terms[name]) :]:
            panel.set_visible(False)
        for panel, term in zip(row, terms[name], strict=False):
            panel.plot([entry["step"] for entry in steps], [entry[term] for entry in steps])
            panel.set_title(f"{name}: {term}", fontsize=9)
            panel.set_xlabel("optimizer step", fontsize=8)
            panel.tick_params(labelsize=7)
    figure.savefig(path, dpi=120)


def plot_bars(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Horizontal bars of means, with the single values as points and their spread as a line.

    Parameters
    ----------
    panels : by title, for each bar's label its values; the same labels in all. Where there are no
        values the bar's place stays empty.
    path : PNG to write.

    Raises
    ------
    ValueError : if there is no panel.
    """
    if not panels:
        raise ValueError("nothing to plot: no metric has a value")
    labels = list(next(iter(panels.values())))
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    label_width = 0.07 * max(len(line) for label in labels for line in label.splitlines())
    figure = Figure(
        figsize=(label_width + 2.2 * columns, rows * (0.9 + 0.32 * len(labels))),
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, (title, bars) in zip(axes, panels.items(), strict=False):
        for place, label in enumerate(labels):
            if bars[label]:
                _draw_bar(panel, place, bars[label])
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="x", nbins=5)
        panel.set_yticks(range(len(labels)), labels, fontsize=8)
        panel.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=120)


def write_mels(signals: Mapping[Path, Tensor], *, sample_rate: int) -> None:
    """Write a plain picture of each signal's log-mel spectrogram, all on one colour scale.

    One pixel is one of 80 bands (0 to 8 kHz, bass at the bottom) and 10 ms; the scale spans 80 dB
    down from the loudest.

    Parameters
    ----------
    signals : waveforms (T,) by the PNG to write.
    sample_rate : Hz.
    """
    if not signals:
        return
    encoder = LogMel(sample_rate=sample_rate, n_fft=1024, hop_length=sample_rate // 100)
    with torch.no_grad():
        mels = {path: encoder(sig[None])[0].T.numpy() for path, sig in signals.items()}
    high = max(mel.max() for mel in mels.values())
    low = max(high - _MEL_RANGE / encoder.log_std, min(mel.min() for mel in mels.values()))
    for path, mel in mels.items():
        colours = {"vmin": low, "vmax": high, "cmap": "magma"}
        imsave(path, mel, origin="lower", metadata={"Software": None}, **colours)


def _step(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(
            f"{place} is damaged ({error}); remove it, or leave its run out"
        ) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int | float):
        raise ValueError(f"{place} must be a JSON object whose key step is a number")
    return entry


def _draw_bar(panel: Axes, place: int, values: Sequence[float]) -> None:
    mean = statistics.fmean(values)
    panel.barh(place, mean, height=0.65, color=f"C{place % 10}", alpha=0.6)
    if len(values) > 1:
        panel.errorbar(
            mean, place, xerr=statistics.stdev(values), color="black", capsize=3, linewidth=1
        )
    panel.plot(values, [place] * len(values), ".", color="black", markersize=4)
