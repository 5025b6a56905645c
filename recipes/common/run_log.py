"""Everything that a run writes down while it goes: step losses, stage means, audio, spectrograms.

Three forms of the same numbers: ``steps.jsonl`` (one line per logged step) and ``metrics.json``
(the latest stage means and the final test) for programs, TensorBoard for eyes. A resumed run first
drops what was written after its checkpoint, so curves never overlap.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from recipes.common.files import flush, remove_leftovers, write_json, write_text

_STAGES = ("train", "valid", "test")  # order in metrics.json, whenever they come
_LINES = ("steps.jsonl", "nonfinite.jsonl", "train_log.txt")


@register_checkpoint_hooks
class Means:
    """Running means of named terms, exact over batches of unequal size, part of the checkpoint."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, terms: dict[str, float], *, weight: float) -> None:
        """Add one batch's means, weighted by what they are means over (frames or utterances)."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * weight
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def summarize(self) -> dict[str, float]:
        """Means of all terms so far; empty if nothing was added."""
        return {name: total / self.weights[name] for name, total in self.sums.items()}

    def clear(self) -> None:
        """Start again."""
        self.sums, self.weights = {}, {}

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write the sums."""
        write_json(Path(path), {"sums": self.sums, "weights": self.weights})

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Read the sums of an unfinished epoch; a finished one left nothing to go on with."""
        if not end_of_epoch:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            self.sums, self.weights = state["sums"], state["weights"]


class RunLog:
    """Writer of one run folder; only the main process writes.

    Parameters
    ----------
    folder : the run folder.
    sample_rate : of the audio, Hz.
    """

    def __init__(self, folder: str | Path, *, sample_rate: int) -> None:
        self.folder = Path(folder)
        self.sample_rate = sample_rate
        self.metrics: dict[str, Any] = {}
        self.writes = if_main_process()
        self._steps = self.folder / "steps.jsonl"
        self._board: SummaryWriter | None = None

    def resume(self, step: int, *, validated: bool = True) -> None:
        """Open the writers to train on from that optimizer step (0: a new run).

        What was written after it is dropped, also a test, which is repeated; ``validated`` tells
        whether the validation at that step, if there is one, is part of what is resumed.
        """
        if step > 0:
            self._read_metrics()
            later = [name for name, values in self.metrics.items() if values["step"] > step]
            for name in later:
                del self.metrics[name]
        if not self.writes:
            return
        remove_leftovers(self.folder)
        _keep_lines(self._steps, lambda line: _step_of(line) <= step)
        failures = self.folder / "nonfinite.jsonl"
        if failures.exists():
            _keep_lines(failures, lambda line: _step_of(line) <= step)
        last = step if validated else step - 1
        text = self.folder / "train_log.txt"
        if text.exists():
            _keep_lines(text, lambda line: _validated_step_of(line) <= last)
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def reopen(self) -> None:
        """Open the writers to add a test; what is there stays."""
        self._read_metrics()
        if self.writes:
            self._board = SummaryWriter(str(self.folder / "tensorboard"))

    def step(self, step: int, terms: dict[str, float], *, epoch: int) -> None:
        """Write one training step's values."""
        if self._board is None:
            return
        with self._steps.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, **terms}) + "\n")
        for name, value in terms.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def stage(self, name: str, step: int, values: dict[str, Any]) -> None:
        """Write one stage's values (train, valid, test) to metrics.json and TensorBoard."""
        metrics = {**self.metrics, name: {"step": step, **values}}
        self.metrics = {key: metrics[key] for key in _STAGES if key in metrics}
        if self._board is None:
            return
        write_json(self.folder / "metrics.json", self.metrics)
        for key, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{name}/{key}", value, step)

    def audio(self, name: str, step: int, sig: Tensor) -> None:
        """Write a waveform (T,) to ``samples/NAME.wav`` and to TensorBoard, with spectrogram."""
        if self._board is None:
            return
        wav = sig.detach().float().clamp(-1, 1).cpu()
        path = self.folder / "samples" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wav.numpy(), self.sample_rate)
        self._board.add_audio(name, wav, step, sample_rate=self.sample_rate)
        self._board.add_image(
            f"{name}/spectrogram", _spectrogram_image(wav), step, dataformats="HW"
        )

    def flush(self) -> None:
        """Wait until all lines are on the disk, so that no checkpoint is there without them."""
        if self._board is None:
            return
        self._board.flush()
        for name in _LINES:
            if (self.folder / name).exists():
                flush(self.folder / name)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _read_metrics(self) -> None:
        path = self.folder / "metrics.json"
        if path.is_file():
            self.metrics = json.loads(path.read_text(encoding="utf-8"))


def _keep_lines(path: Path, is_kept: Callable[[str], bool]) -> None:
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    del lines[-1]  # what follows the last end of a line is nothing, or half a line
    write_text(path, "".join(f"{line}\n" for line in lines if is_kept(line)))


def _validated_step_of(line: str) -> float:
    """Step of one line of train_log.txt; infinite for that of a test or for half a line."""
    found = re.match(r"epoch: \d+, step: (\d+) - .*valid ", line)
    return int(found[1]) if found else math.inf


def _step_of(line: str) -> float:
    """Step of one line of steps.jsonl; infinite for a line that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf


def _spectrogram_image(sig: Tensor) -> np.ndarray:
    """(H, W) grey levels of a log-magnitude spectrogram over 80 dB, bass at the bottom."""
    window = sig.new_tensor(np.hanning(1024))
    magnitude = sig.stft(1024, 256, window=window, return_complex=True, pad_mode="constant").abs()
    decibels = 20 * magnitude.clamp(min=1e-5).log10()
    grey = ((decibels - decibels.max() + 80) / 80).clamp(0, 1)
    return (255 * grey.flip(0)).to(dtype=grey.dtype).byte().numpy()
