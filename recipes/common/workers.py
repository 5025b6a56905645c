"""Worker processes of programs that share their work through the file system.

A worker is a spawned process, or one of ``torchrun``'s. None outlives its parent, and what goes
wrong in one is said once, by the parent.
"""

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

import torch


class WorkerError(ValueError):
    """What a worker died of, with what to do about it."""


def run_workers(
    work: Callable[[int], None], *, number: int, shares_cpu: bool, on_wait: Callable[[], None]
) -> None:
    """Call ``work(index)`` in processes until all have ended; the first failure ends the others.

    Parameters
    ----------
    work : can be pickled; raises ValueError or OSError for whatever the user can put right.
    number : of processes, whose indexes are 0 to number - 1.
    shares_cpu : divide this process's threads among them.
    on_wait : called twice a second, and when a worker ends.

    Raises
    ------
    WorkerError : with the message of the worker that failed.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // number) if shares_cpu else None
    workers = {}
    try:
        for index in range(number):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_body, args=(work, index, threads, sender))
            worker.start()
            sender.close()
            workers[worker] = receiver
        running = set(workers)
        while running:
            wait([worker.sentinel for worker in running], timeout=0.5)
            on_wait()
            for worker in [worker for worker in running if not worker.is_alive()]:
                running.remove(worker)
                _refuse_failure(worker, workers[worker])
    finally:
        # Killing is safe at any time, and faster than asking.
        for worker in workers:
            worker.kill()
        for worker, receiver in workers.items():
            worker.join()
            receiver.close()


def worker_device(name: str, index: int) -> torch.device:
    """Device of a worker: with "cuda", one GPU after the other.

    Raises
    ------
    ValueError : if there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be such as cpu, cuda or cuda:0, got {name!r}") from error
    count = torch.cuda.device_count()
    if device.type != "cuda":
        return device
    if (device.index or 0) >= count:
        raise ValueError(f"device is {name} and there are {count} CUDA devices; pass --device cpu")
    return torch.device("cuda", index % count) if device.index is None else device


def torchrun_rank() -> int | None:
    """Rank of a process that torchrun has started; None for any other."""
    return int(os.environ["RANK"]) if {"RANK", "LOCAL_RANK"} <= set(os.environ) else None


def _body(work: Callable[[int], None], index: int, threads: int | None, sender: Connection) -> None:
    """Do a worker's work; what the user can put right is sent, not raised."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        work(index)
    except KeyboardInterrupt:
        os._exit(130)  # the parent was interrupted as well, and reports
    except (ValueError, OSError) as error:
        sender.send(str(error))


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _refuse_failure(worker: multiprocessing.Process, receiver: Connection) -> None:
    try:
        message = receiver.recv() if receiver.poll() else None
    except EOFError:
        message = None
    if message is not None:
        raise WorkerError(message)
    if worker.exitcode != 0:
        raise WorkerError(
            f"a worker ended with status {worker.exitcode} (-9: killed, often for memory; then "
            "lower --workers or --batch_seconds); finished shards are kept: run the same command"
        )
