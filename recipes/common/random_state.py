"""Random states as a part of checkpoints, so that a resumed run draws the same numbers."""

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import (
    ddp_prevent_block,
    if_main_process,
    is_distributed_initialized,
)
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class RandomState:
    """Recoverable for the global random states of every process: torch, CUDA, numpy and Python.

    The states of all processes of a distributed run are gathered into one file, which holds only
    tensors and plain values (``torch.load`` reads it with ``weights_only=True``).

    A DataLoader draws a number from torch's state whenever its iteration starts, also after a
    resume in the middle of an epoch: each needs a ``generator`` of its own for a resumed run to go
    on with the same random numbers.
    """

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write the states of all processes; called on every process, written by the main one."""
        mine = random_state()
        if ddp_prevent_block():
            states = [mine]
        else:
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, mine)
        if if_main_process():
            torch.save(states, path)

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Set this process's states; with a warning if the number of processes or GPUs changed."""
        del end_of_epoch
        states = torch.load(path, map_location="cpu", weights_only=True)
        rank, size = 0, 1
        if is_distributed_initialized():
            rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if len(states) != size:
            logger.warning(
                f"The random states were saved by {len(states)} processes, now there are {size}: "
                "the run goes on, but with other random numbers"
            )
        if rank < len(states):
            set_random_state(states[rank])


def random_state() -> dict[str, Any]:
    """State of every global generator of this process, as tensors and plain values."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        # Without CUDA in use nothing was drawn from it, and asking would put a context on each GPU.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": [version, torch.tensor(words), gauss],
        "numpy": {
            **numpy_state,
            "state": {
                "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
                "pos": int(numpy_state["state"]["pos"]),
            },
        },
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_devices != len(state["cuda"]) and state["cuda"]:
        logger.warning(
            f"The random states were saved with {len(state['cuda'])} GPUs and now there are "
            f"{num_devices}: the random numbers drawn there will differ"
        )
    for device, cuda_state in zip(range(num_devices), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda_state, device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    key, pos = state["numpy"]["state"]["key"], state["numpy"]["state"]["pos"]
    np.random.set_state(
        {**state["numpy"], "state": {"key": key.numpy().astype(np.uint32), "pos": pos}}
    )
