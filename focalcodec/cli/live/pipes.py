"""Raw signed 16-bit little-endian samples, one channel, on standard input and output."""

import os
import select
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from focalcodec.cli.live.end import End
from focalcodec.cli.live.sound import SoundSource
from focalcodec.cli.live.stop import SLICE_S, Stop

_FULL_SCALE = 32768
_READ_BYTES = 2**16
_WRITE_BYTES = select.PIPE_BUF  # what a pipe that is ready takes without blocking
_PATIENCE = 10  # slices that a reader gets to go on reading after a signal


class PipeSource(SoundSource):
    """Samples on a file descriptor.

    Parameters
    ----------
    descriptor : such as that of standard input.
    sample_rate, stop : as of `SoundSource`.
    echo : takes a line about half a sample at the end.
    """

    def __init__(
        self, descriptor: int, *, sample_rate: int, stop: Stop, echo: Callable[[str], None]
    ) -> None:
        super().__init__(sample_rate=sample_rate, stop=stop)
        self._descriptor, self._echo = descriptor, echo

    def _blocks(self) -> Iterator[Tensor]:
        rest = b""
        while not self._stop.requested:
            if not select.select([self._descriptor], [], [], SLICE_S)[0]:
                continue
            content = os.read(self._descriptor, _READ_BYTES)
            if not content:
                break
            content = rest + content
            whole = len(content) // 2 * 2
            rest = content[whole:]
            if whole:
                samples = np.frombuffer(content[:whole], dtype="<i2").astype(np.float32)
                yield torch.from_numpy(samples / _FULL_SCALE)
        if rest:
            self._echo("the input ends with half a sample, which is left out")


class PipeSink(End):
    """Samples to a file descriptor, clipped to [-1, 1].

    Parameters
    ----------
    descriptor : such as that of standard output.
    stop : after it, a reader that does not read is not waited for.
    """

    def __init__(self, descriptor: int, *, stop: Stop) -> None:
        self._descriptor, self._stop = descriptor, stop

    def consume(self, contents: Iterable[Tensor]) -> None:
        """Write signals as they come.

        Raises
        ------
        OSError : if the reader has gone, or does not read any more after a signal.
        """
        for sig in contents:
            scaled = (sig * _FULL_SCALE).round().clamp(-_FULL_SCALE, _FULL_SCALE - 1)
            self._write(scaled.numpy().astype("<i2").tobytes())

    def _write(self, content: bytes) -> None:
        left = _PATIENCE
        while content:
            if select.select([], [self._descriptor], [], SLICE_S)[1]:
                try:
                    written = os.write(self._descriptor, content[:_WRITE_BYTES])
                except BrokenPipeError as error:
                    raise OSError("the reader of standard output has gone") from error
                content = content[written:]
            elif self._stop.requested:
                left -= 1
                if not left:
                    raise OSError("the reader of standard output does not read any more")
