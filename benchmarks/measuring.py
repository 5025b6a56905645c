"""How the benchmarks measure time and memory, and on what machine."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from recipes.common.run_folder import cpu_model

_STATUS = Path("/proc/self/status")


def machine(device: str) -> str:
    """Name of the processor, and for a CPU its cores and load."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cpu_model()}, {os.cpu_count()} cores{load}"


def measure(
    runs: dict[str, Callable[[], Any]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each run; one round warms up, then all alternate."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}


class PartOfRuns:
    """A run, and for each time that it is called the seconds that a module's forward took of it.

    Parameters
    ----------
    run : calls the module, any number of times.
    module : of which forward is timed.
    device : of the module.
    """

    def __init__(
        self, run: Callable[[], Any], module: torch.nn.Module, *, device: torch.device
    ) -> None:
        self.run, self.device = run, device
        self.seconds: list[float] = []
        self._start = 0.0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def __call__(self) -> None:
        """Run once."""
        self.seconds.append(0.0)
        self.run()

    def _begin(self, *_: Any) -> None:
        wait(self.device)
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        wait(self.device)
        self.seconds[-1] += time.perf_counter() - self._start


def wait(device: torch.device) -> None:
    """Wait for what a CUDA device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def held_bytes() -> int:
    """Resident memory of this process; RuntimeError without Linux' ``/proc``."""
    return _resident_bytes("VmRSS")


def peak_bytes(run: Callable[[], Any], *, device: torch.device) -> int:
    """Bytes at the peak of a run: of a CUDA device's tensors, or of this process on a CPU.

    Raises
    ------
    RuntimeError : on a CPU without Linux' ``/proc``.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    held_bytes()  # before the run, if it cannot be read
    # Not getrusage: a child's maximum begins with what its parent held.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now the present
    run()
    return _resident_bytes("VmHWM")


def _resident_bytes(field: str) -> int:
    if not _STATUS.exists():
        raise RuntimeError(f"memory is read from {_STATUS}, which is not here; use --no-memory")
    lines = (line.split() for line in _STATUS.read_text(encoding="utf-8").splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == f"{field}:")


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Give ``function(*args)`` of a new process, whose error or death is raised here.

    Freed tensors of 1 MiB and more are no longer resident there, which glibc leaves to chance.
    """
    name = "MALLOC_MMAP_THRESHOLD_"
    context = multiprocessing.get_context("spawn")
    given = os.environ.get(name)
    os.environ[name] = str(2**20)  # for the child, which takes over the environment
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *args).result()
    finally:
        if given is None:
            del os.environ[name]
        else:
            os.environ[name] = given
