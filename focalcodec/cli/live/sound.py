"""What all sources of sound have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from focalcodec.cli.live.end import End
from focalcodec.cli.live.stop import Stop
from focalcodec.live import Piece
from focalcodec.resampling import check_rate

BLOCK_S = 0.02  # of sound that is read at once: a quarter of a chunk of the published codecs


class SoundSource(End, ABC):
    """Sound of one channel in small blocks.

    Parameters
    ----------
    sample_rate : its own, Hz.
    stop : ends it.

    Attributes
    ----------
    num_samples : given so far, at its own rate.
    has_ended : whether that is all.

    Raises
    ------
    ValueError : if no recording has such a rate.
    """

    def __init__(self, *, sample_rate: int, stop: Stop) -> None:
        check_rate(sample_rate)
        self.sample_rate = sample_rate
        self.num_samples = 0
        self.has_ended = False
        self._stop = stop

    def pieces(self) -> Iterator[Piece]:
        """Yield what comes in, (T,) float32, at its own rate."""
        try:
            for block in self._blocks():
                self.num_samples += block.shape[0]
                yield Piece(block, time.perf_counter())
                if self._stop.requested:
                    return
        finally:
            self.has_ended = True

    @abstractmethod
    def _blocks(self) -> Iterator[Tensor]:
        """Yield (T,) blocks of at most about `BLOCK_S`, or of what there is."""
