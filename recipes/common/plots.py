"""Pictures of runs: loss curves and mel-spectrograms, as PNG files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from focalcodec.logmel import LogMel

matplotlib.use("Agg")


def read_steps(run: Path) -> list[dict[str, float]]:
    """Entries of a run's ``steps.jsonl``, in order.

    Raises
    ------
    FileNotFoundError : if the run has not logged a step.
    """
    path = run / "steps.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the run has not logged a step yet")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def plot_mels(signals: Mapping[str, Tensor], path: Path, *, sample_rate: int) -> None:
    """Log-mel spectrograms of signals (T,) below one another, on one scale.

    Parameters
    ----------
    signals : waveforms by title.
    path : PNG to write.
    sample_rate : Hz.
    """
    encoder = LogMel(sample_rate=sample_rate, n_fft=1024, hop_length=sample_rate // 100)
    with torch.no_grad():
        mels = {name: encoder(sig[None])[0].T.numpy() for name, sig in signals.items()}
    low = min(mel.min() for mel in mels.values())
    high = max(mel.max() for mel in mels.values())
    figure = Figure(figsize=(9, 2.2 * len(mels)), layout="constrained")
    panels = figure.subplots(len(mels), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (name, mel) in zip(panels, mels.items(), strict=True):
        extent = (0, mel.shape[1] / 100, 0, mel.shape[0])
        panel.imshow(
            mel, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap="magma"
        )
        panel.set_title(name, fontsize=9)
        panel.set_ylabel("mel band", fontsize=8)
    panels[-1].set_xlabel("seconds", fontsize=8)
    figure.savefig(path, dpi=120)
