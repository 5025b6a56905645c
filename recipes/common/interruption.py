"""Signals that announce the end of a run's time: note them, save, leave with a status of its own.

SLURM sends SIGTERM before it takes a machine away (preemption, time limit), or with ``sbatch
--signal=USR1@120`` the signal SIGUSR1 two minutes before; other schedulers send SIGTERM as well.
The training loop asks `Interruption.agree` where it could save, saves, and raises `Interrupted`.
"""

import logging
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

logger = logging.getLogger(__name__)

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again", what a job script tests
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

# Where a loader's worker sees that its main process has had a signal: shared with the children that
# a process forks. A spawned one has its own, and dies of every signal.
_noted = mmap.mmap(-1, 1)
# For which a worker waits for its main process to note the same signal: Python runs a handler only
# between two of its own instructions, and a checkpoint's flush to the disk is one.
_PATIENCE_S = 10.0


class Interrupted(SystemExit):
    """End of a run that has saved all that it needs to continue; exit status `INTERRUPTED`.

    Parameters
    ----------
    signal_name : what announced the end, such as SIGUSR1; None: another rank knows.
    step : optimizer steps that are in the checkpoint; None: it came before training went on.
    """

    def __init__(self, signal_name: str | None, *, step: int | None) -> None:
        super().__init__(INTERRUPTED)
        self.signal_name = signal_name
        self.step = step

    def __str__(self) -> str:
        """Say what happened and how to continue."""
        saved = f"is saved at step {self.step}" if self.step is not None else "had nothing to save"
        return (
            f"{self.signal_name or 'a signal to another rank'} arrived; the run {saved} and ends "
            f"with exit status {INTERRUPTED}: start the same command again, and it continues "
            "exactly there"
        )


class Interruption:
    """Notes SIGTERM and SIGUSR1 instead of dying of them; the training loop asks when it can save.

    A context manager for the main thread of a process; in another thread Python allows no handler,
    so it does nothing there and says so in the debug log. Ctrl-C (SIGINT) stays as it is. It may be
    entered again, and others may be nested in it, whose signals are then also its own.

    Attributes
    ----------
    signal_name : "SIGTERM" or "SIGUSR1", whichever came first; None before. It stays when the
        context ends.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._outer: dict[int, Any] = {}
        self._process: int | None = None
        self._depth = 0

    def __enter__(self) -> "Interruption":
        """Install the handlers."""
        if threading.current_thread() is not threading.main_thread():
            logger.debug("not in the main thread: SIGTERM and SIGUSR1 keep their handlers")
            return self
        self._depth += 1
        if self._depth == 1:
            self._process = os.getpid()
            self._outer = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
            if not any(map(_interruption_of, self._outer.values())):
                _renew_noted(self.signal_name is not None)
        return self

    def __exit__(self, *error: object) -> None:
        """Put the earlier handlers back."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if self._depth == 0 and os.getpid() == self._process:
            for signum, handler in self._outer.items():
                # None is one that was not installed from Python, which cannot put it back.
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def agree(self) -> bool:
        """Whether any rank has a signal; a collective call in a distributed run.

        One rank alone may have been told, or each at another step, but all must leave the loop
        after the same one.
        """
        noted = self.signal_name is not None
        if not torch.distributed.is_initialized():
            return noted
        device = "cuda" if "nccl" in torch.distributed.get_backend() else "cpu"
        flag = torch.tensor(int(noted), device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child, which has nothing to save
            _die_of(signum)
            return
        _noted[0] = 1  # first: logging may fail where the signal came in the middle of it
        name = signal.Signals(signum).name
        if self.signal_name is None:
            self.signal_name = name
            logger.warning("%s arrived: the run will save and end where it can", name)
        else:
            logger.warning("%s arrived: the run is about to save for %s", name, self.signal_name)
        outer = _interruption_of(self._outer[signum])
        if outer is not None:
            outer._handle(signum, frame)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Raise `Interrupted` where a signal arrives: for what comes before training.

    Manifests and feature caches may be left at any instruction, and a cache takes hours: without
    this, a scheduler's warning would kill it with a status that no job script takes for "again".
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def leave(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            _die_of(signum)
        raise Interrupted(signal.Signals(signum).name, step=None)

    outer = {signum: signal.signal(signum, leave) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in outer.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def spare_worker(worker_id: int) -> None:
    """Let a loader's worker live on while its main process saves; a ``worker_init_fn``.

    Schedulers signal all processes of a job, and a worker that dies of it raises an error in the
    main process at any instruction, also while that saves. So a worker ignores SIGUSR1, and a
    SIGTERM that its main process notes as well. It still ends when the main process itself sends
    SIGTERM, as PyTorch does at the end, and dies of one that nobody else got.

    PyTorch's workers set a handler of SIGTERM before they call this: the one inherited from an
    `Interruption` never runs.
    """
    del worker_id
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    # A handler would not be told the sender, and would run for two signals that come together once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_the_end, name="sigterm", daemon=True).start()


def _wait_for_the_end() -> None:
    """End this worker at the first SIGTERM that concerns it."""
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == os.getppid():
            os._exit(0)  # as PyTorch's own handler does: not an error
        if not _is_noted_in_time():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            signal.raise_signal(signal.SIGTERM)


def _is_noted_in_time() -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while not _noted[0]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _interruption_of(handler: Any) -> Interruption | None:
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Interruption) else None


def _renew_noted(value: bool) -> None:
    """Begin to share with the children that are forked from now on, and with nobody else."""
    global _noted
    _noted = mmap.mmap(-1, 1)
    _noted[0] = int(value)


def _die_of(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signum)
