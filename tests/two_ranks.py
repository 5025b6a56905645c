"""Two processes on the CPU, as torchrun would start them."""

import os
from collections.abc import Callable

import torch

from tests.saved_runs import free_port


def become(rank: int, port: int) -> None:
    """Set what torchrun tells a process."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)


def on_two_ranks(function: Callable, *arguments: object) -> None:
    """Call ``function(rank, port, *arguments)`` in two processes at once."""
    torch.multiprocessing.spawn(function, (free_port(), *arguments), nprocs=2)
