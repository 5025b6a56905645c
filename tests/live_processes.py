"""The command line in processes of its own, with real descriptors, signals and exit statuses.

They are forked from a server that has imported the slow modules once.
"""

import array
import contextlib
import fcntl
import multiprocessing
import os
import re
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["focalcodec.cli", "focalcodec.wavlm", "safetensors.torch"])
PATIENCE_S = 60


class Command:
    """One command under way; closing kills it.

    Parameters
    ----------
    words : of the command, such as "stream", "-", "out.wav".
    name : of the file below the folder that its standard error goes to.
    stdin, stdout : descriptors; None for nothing and for the file of standard error.
    """

    def __init__(
        self, *words: object, name: str, stdin: int | None = None, stdout: int | None = None
    ) -> None:
        self.path = Path(f"{name}.log").resolve()
        self.path.write_text("")
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        ends = [null if stdin is None else stdin, log if stdout is None else stdout, log]
        ends = [multiprocessing.reduction.DupFd(end) for end in ends]
        # The server has the environment of whichever test started it.
        arguments = ([str(word) for word in words], ends, dict(os.environ))
        self.process = FORK.Process(target=_main, args=arguments)
        self.process.start()
        os.close(null)
        os.close(log)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.path.read_text().replace("\r", "\n")

    def hear(self, pattern: str) -> re.Match:
        """Wait until it says something."""
        end = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.log)):
            assert time.monotonic() < end and self.process.is_alive(), f"silent: {self.log}"
            time.sleep(0.01)
        return found

    def signal(self, signum: int) -> None:
        os.kill(self.process.pid, signum)

    @property
    def status(self) -> int:
        """Exit status, once it has ended."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, f"does not end: {self.log}"
        return self.process.exitcode

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()


def num_waiting(descriptor: int) -> int:
    """Bytes in a pipe that nobody has read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def started(*words: object, name: str, **ends: int) -> Iterator[Command]:
    command = Command(*words, name=name, **ends)
    try:
        yield command
        assert "Traceback" not in command.log
    finally:
        command.close()


def _main(words: list[str], ends: list, environment: dict[str, str]) -> None:
    from focalcodec.cli import main

    os.environ.clear()
    os.environ.update(environment)
    for target, end in enumerate(ends):
        descriptor = end.detach()
        os.dup2(descriptor, target)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False, buffering=1) for number, mode in enumerate("rww")
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(words)
