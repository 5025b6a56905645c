"""A small run with checkpoints, for tests that kill it and read what is left."""

import multiprocessing
import os
import random
import signal
import socket
from collections import namedtuple

import numpy as np
import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.random_state import RandomState

# Children are forked from a server that has imported the slow modules once and has no threads.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["speechbrain.core", "hyperpyyaml", "torch._dynamo", "pytest"])

Outcome = namedtuple("Outcome", "exitcode result")


def in_children(function, *args, num=1):
    """Run ``function(*args)`` in forked processes; with several, ``function(rank, num, *args)``."""
    pipes = [FORK.Pipe() for _ in range(num)]
    children = [
        FORK.Process(
            target=_child,
            args=(end, function, args if num == 1 else (rank, num, *args)),
        )
        for rank, (_, end) in enumerate(pipes)
    ]
    for child in children:
        child.start()
    outcomes = []
    for child, (receiver, end) in zip(children, pipes, strict=True):
        end.close()
        child.join(60)
        if child.is_alive():
            child.kill()
            child.join()
        result = receiver.recv() if child.exitcode == 0 else None
        receiver.close()
        outcomes.append(Outcome(child.exitcode, result))
        child.close()
    return outcomes[0] if num == 1 else outcomes


def free_port():
    """Port of this machine at which processes can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(pipe, function, args):
    torch.set_num_threads(1)
    pipe.send(function(*args))


@register_checkpoint_hooks
class Hook:
    """Recoverable that calls a function with the path of its file when it is saved."""

    def __init__(self, action=None):
        self.action = action

    @mark_as_saver
    def save(self, path):
        path.write_text("first half, second half")
        if self.action is not None:
            self.action(path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        assert path.read_text() == "first half, second half"


class Run:
    """A training run in miniature: every step draws from all random states."""

    def __init__(self, folder, **options):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        self.model = torch.nn.Linear(3, 1)
        self.model.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.hook = Hook()
        recoverables = {
            "model": self.model,
            "hook": self.hook,
            "optimizer": self.optimizer,
            "random_state": RandomState(),
        }
        self.checkpointer = AtomicCheckpointer(folder, recoverables, **options)

    def train(self, num_steps):
        for _ in range(num_steps):
            x = torch.randn(4, 3) * random.gauss(1, 0.1) + np.random.standard_normal()
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.model.step += 1
        return self

    def save(self, **meta):
        return self.checkpointer.save_and_keep_only(meta={"mse": 1.0, **meta}, min_keys=["mse"])

    @property
    def step(self):
        return int(self.model.step)

    @property
    def state(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def uninterrupted(folder, num_steps):
    return Run(folder / "uninterrupted").train(num_steps).state


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file_then_die(path):
    path.write_text("first half")
    die()
