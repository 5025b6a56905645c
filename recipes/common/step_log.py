"""What training steps leave behind: their terms, and which of them were not finite.

Terms stay on the device until `StepLog.fetch` brings them to the host, all steps in one transfer,
so that no step waits for the device. Whether a step is finite is decided on the device, too; here
it is counted, written down and, after too many in a row, turned into an error.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch import Tensor

from recipes.common.files import write_json

logger = get_logger(__name__)


class StepTensors(NamedTuple):
    """One training batch, on the device.

    ids : utterances of the accumulation group up to this batch.
    terms : scalars to log; means over ``weight`` things (frames, segments).
    failed : scalar bool, True if the group's step was left out because of this; the same on all
        ranks. None inside a group.
    rates : learning rates, by optimizer.
    """

    epoch: int
    step: int
    ids: list[str]
    terms: dict[str, Tensor]
    weight: Tensor | float
    failed: Tensor | None
    rates: dict[str, float]


class Step(NamedTuple):
    """One training batch, on the host; ``terms`` are means over all ranks."""

    epoch: int
    step: int
    ids: list[str]
    terms: dict[str, float]
    weight: float
    complete: bool  # the last of its accumulation group
    failed: bool  # the group's step was left out
    rates: dict[str, float]


@register_checkpoint_hooks
class StepLog:
    """Steps that are still on the device, and the count of those that were not finite.

    Parameters
    ----------
    folder : where ``nonfinite.jsonl`` goes.
    patience : failed steps in a row after which training gives up.
    """

    def __init__(self, folder: str | Path, *, patience: int) -> None:
        self.path = Path(folder) / "nonfinite.jsonl"
        self.patience = patience
        self.streak = 0
        self.num_failed = 0
        self._pending: list[StepTensors] = []

    def add(self, step: StepTensors) -> None:
        """Keep a step until the next `fetch`."""
        self._pending.append(step)

    def fetch(self) -> list[Step]:
        """Give the steps since the last call, as means over ranks; every rank has to call it.

        Raises
        ------
        RuntimeError : after ``patience`` failed steps in a row.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return []
        steps = []
        rows = iter(_to_host(pending))
        for tensors in pending:
            weight, failed, *values = next(rows)
            steps.append(
                Step(
                    epoch=tensors.epoch,
                    step=tensors.step,
                    ids=tensors.ids,
                    terms=dict(zip(tensors.terms, values, strict=True)),
                    weight=weight,
                    complete=tensors.failed is not None,
                    failed=failed > 0,
                    rates=tensors.rates,
                )
            )
        for step in steps:
            if step.complete:
                self._count(step)
        return _with_fate_of_group(steps)

    def _count(self, step: Step) -> None:
        if not step.failed:
            self.streak = 0
            return
        self.streak += 1
        self.num_failed += 1
        terms = {name: str(value) for name, value in step.terms.items()}
        record = {"epoch": step.epoch, "step": step.step, "ids": gather(step.ids), "terms": terms}
        if if_main_process():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        logger.warning("loss or gradient is not finite, step left out: %s", record)
        if self.streak >= self.patience:
            raise RuntimeError(
                f"{self.streak} steps in a row had a loss or gradient that is not finite "
                f"(nonfinite_patience: {self.patience}); the last one is of {step.ids}, all are in "
                f"{self.path}. The last checkpoint is untouched: lower lr, or set max_grad_norm, "
                "and choose a new output_folder"
            )

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write the counts; steps have been fetched before."""
        if self._pending:
            raise RuntimeError("steps must be fetched before a checkpoint is saved")
        write_json(Path(path), {"streak": self.streak, "num_failed": self.num_failed})

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Read the counts."""
        del end_of_epoch
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        self.streak, self.num_failed = state["streak"], state["num_failed"]


def _with_fate_of_group(steps: list[Step]) -> list[Step]:
    """Give every batch of an accumulation group what its last batch says of the group's step."""
    fates: list[Step] = []
    failed = False
    for step in reversed(steps):
        failed = step.failed if step.complete else failed
        fates.insert(0, step._replace(failed=failed))
    return fates


def _to_host(pending: list[StepTensors]) -> list[list[float]]:
    """Weight, failed, terms of each step as numbers, in one transfer."""
    some = next(iter(pending[-1].terms.values()))
    scalars: list[Tensor | float] = []
    for step in pending:
        scalars += [step.weight, 0.0 if step.failed is None else step.failed, *step.terms.values()]
    # float64 holds float32 and counts exactly; MPS has none.
    dtype = torch.float32 if some.device.type == "mps" else torch.float64
    packed = torch.stack(
        [torch.as_tensor(x, device=some.device).detach().to(dtype) for x in scalars]
    )
    sizes = [2 + len(step.terms) for step in pending]
    if torch.distributed.is_initialized():
        packed = torch.cat([_mean_over_ranks(row) for row in packed.split(sizes)])
    values = packed.tolist()
    return [[values.pop(0) for _ in range(size)] for size in sizes]


def _mean_over_ranks(row: Tensor) -> Tensor:
    """Terms weighted by the ranks' own weights, the weight summed, ``failed`` as it is."""
    weight, failed, terms = row[:1], row[1:2], row[2:]
    summed = torch.cat([weight, terms * weight])
    torch.distributed.all_reduce(summed)
    return torch.cat([summed[:1], failed, summed[1:] / summed[:1]])


def gather(value: Any) -> list[Any]:
    """Everybody's value, by rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def from_main(value: float) -> float:
    """Take the main process's value, on every rank."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def finite_terms(terms: dict[str, float]) -> dict[str, float]:
    """Terms without those that are not finite."""
    return {name: value for name, value in terms.items() if math.isfinite(value)}
