"""How fast live speech is processed: quantiles of times over any duration, in bounded memory."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_STEPS = 100  # bins per factor e: a quantile is within half a per cent


class Times:
    """Distribution of durations.

    Attributes
    ----------
    count : durations so far.
    total : their sum, s.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Take in one duration; what is below a microsecond counts as one."""
        self.count += 1
        self.total += seconds
        self._bins[round(_STEPS * math.log(max(seconds, 1e-6)))] += 1

    def quantile(self, fraction: float) -> float:
        """Duration that ``fraction`` of all do not exceed, within 0.5 %; NaN without any."""
        left = math.ceil(fraction * self.count)
        for place in sorted(self._bins):
            left -= self._bins[place]
            if left <= 0:
                return math.exp(place / _STEPS)
        return math.nan


class Meter:
    """Times of the chunks of one live session.

    Parameters
    ----------
    chunk_s : duration of a chunk, s: what its processing may take.

    Attributes
    ----------
    seconds : of speech that have been delivered.
    processing : of each chunk, encoding and decoding as far as both are done here.
    latency : of each chunk, from the arrival of its last sample or token to its delivery.
    num_slow : chunks whose processing took longer than they last.
    """

    def __init__(self, chunk_s: float) -> None:
        self.chunk_s = chunk_s
        self.seconds = 0.0
        self.processing = Times()
        self.latency = Times()
        self.num_slow = 0
        self._spent = 0.0

    @property
    def real_time_factor(self) -> float:
        """Processing time by speech time; NaN before the first delivery."""
        return self.processing.total / self.seconds if self.seconds else math.nan

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time inside as processing of the chunk that is delivered next."""
        start = time.perf_counter()
        yield
        self._spent += time.perf_counter() - start

    def deliver(self, *, seconds: float, arrived: float) -> None:
        """Note that a chunk of ``seconds`` has been delivered just now.

        ``arrived`` is the `time.perf_counter` of its last sample or token.
        """
        self.seconds += seconds
        self.processing.add(self._spent)
        self.latency.add(time.perf_counter() - arrived)
        self.num_slow += self._spent > self.chunk_s
        self._spent = 0.0
