"""What a run will cost, printed before its first step.

The figures are measured on real batches, after which everything is as before: weights, optimizer
states, random numbers and the data's order.
"""

import logging
import resource
import statistics
import time
from typing import Any

import speechbrain as sb
import torch

from recipes.common.dataio import collate
from recipes.common.random_state import random_state, set_random_state

logger = logging.getLogger(__name__)


def announce(brain: Any) -> None:
    """Log hours of audio, steps, parameters, and time and memory of a few measured steps.

    Parameters
    ----------
    brain : a `recipes.common.training_brain.TrainingBrain` with loaders, recovered, on every rank.
    """
    for line in [*_data(brain), *_parameters(brain), *_measured(brain)]:
        logger.info(line)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _data(brain: Any) -> list[str]:
    lines = []
    for stage, loader in brain.loaders.items():
        durations = _durations(loader.dataset)
        lines.append(
            f"{stage.name.lower()}: {sum(durations) / 3600:.2f} h, {len(durations)} utterances of "
            f"{min(durations):.1f} to {max(durations):.1f} s"
        )
    limit = brain.optimizer_step_limit
    lines.append(
        f"one epoch: {brain.steps_per_epoch()} steps; the run: {brain.hparams.number_of_epochs} "
        f"epochs{'' if limit is None else f', at most {limit} steps'}; "
        f"{brain.remaining_steps()} steps to go"
    )
    return lines


def _durations(dataset: Any) -> list[float]:
    return [dataset.data[utterance]["duration"] for utterance in dataset.data_ids]


def _parameters(brain: Any) -> list[str]:
    modules = {name: (module, "trained") for name, module in brain.modules.items()}
    modules |= {name: (part, "frozen") for name, part in brain.frozen_parts.items()}
    return [
        f"{name}: {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters, {kind}"
        for name, (module, kind) in modules.items()
    ]


def _measured(brain: Any) -> list[str]:
    times, peak = measure(brain, num_steps=brain.hparams.cost_steps)
    middle = statistics.median(times)
    left = brain.remaining_steps()
    return [
        f"measured: {middle:.3g} s a batch ({len(times)} batches, the first, of the longest "
        f"utterances, {times[0]:.3g} s); peak memory {peak / 2**30:.2f} GiB",
        f"estimate for {left} steps, without validation: "
        f"{clock(left * brain.grad_accumulation_factor * middle)}",
    ]


def measure(brain: Any, *, num_steps: int) -> tuple[list[float], int]:
    """Seconds of each of a few batches, the first one of the longest utterances; peak bytes.

    On CUDA the peak of the allocator, elsewhere that of the process.
    """
    dataset = brain.loaders[sb.Stage.TRAIN].dataset
    state = _State(brain)
    times = []
    if brain.device_type == "cuda":  # a feature cache may have been filled before
        torch.cuda.reset_peak_memory_stats(brain.device)
    for indices in _chosen_batches(brain.loaders[sb.Stage.TRAIN], num_steps):
        batch = collate([dataset[i] for i in indices])
        _wait(brain.device)
        start = time.monotonic()
        brain.train_on(batch, group=1, should_step=True, idle=True)
        _wait(brain.device)
        times.append(time.monotonic() - start)
    if brain.device_type == "cuda":
        peak = torch.cuda.max_memory_allocated(brain.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    state.restore()
    return times, peak


def _chosen_batches(loader: Any, number: int) -> list[list[int]]:
    """Choose indices of batches: the largest that can come, and others from all of an epoch."""
    durations = _durations(loader.dataset)
    batches = [list(batch) for batch in loader.batch_sampler]
    largest = max(batches, key=lambda batch: len(batch) * max(durations[i] for i in batch))
    if loader.batch_size is not None:  # any utterances may meet
        order = sorted(range(len(durations)), key=lambda i: -durations[i])
        largest = order[: loader.batch_size]
    others = number - 1
    return [largest, *(batches[i * len(batches) // others] for i in range(others))]


class _State:
    """What an idle step changes all the same: buffers, random numbers, fp16's scale, modes."""

    def __init__(self, brain: Any) -> None:
        self.brain = brain
        self.buffers = [buffer.clone() for buffer in brain.modules.buffers()]
        self.training = brain.modules.training
        self.random_state = random_state()
        self.scaler = brain.scaler.state_dict()
        self.states = {name: bool(o.state) for name, o in brain.optimizers_dict.items()}
        brain.modules.train()

    def restore(self) -> None:
        for buffer, value in zip(self.brain.modules.buffers(), self.buffers, strict=True):
            buffer.copy_(value)
        self.brain.modules.train(self.training)
        set_random_state(self.random_state)
        self.brain.scaler.load_state_dict(self.scaler)
        for name, optimizer in self.brain.optimizers_dict.items():
            optimizer.zero_grad(set_to_none=True)
            if not self.states[name]:
                optimizer.state.clear()


def _wait(device: Any) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
