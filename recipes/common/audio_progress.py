"""Progress of work that several processes share, in seconds of audio."""

import time
from collections.abc import Callable

from tqdm import tqdm

_INTERVAL_SECONDS = 1.0


class AudioProgress:
    """Bar in seconds of audio.

    Parameters
    ----------
    desc : what is being done.
    seconds : of audio that are to be done.
    seconds_done : asks how many of them all processes have done.
    enabled : False shows nothing; nothing is shown either where the output is no terminal.
    """

    def __init__(
        self, desc: str, *, seconds: float, seconds_done: Callable[[], float], enabled: bool = True
    ) -> None:
        self._seconds_done = seconds_done
        self._next_update = 0.0
        self.bar = tqdm(
            total=round(seconds), desc=desc, unit="s", disable=None if enabled else True
        )

    def finish(self) -> None:
        """Fill the bar: bad files give nothing that would do it."""
        self.bar.update(self.bar.total - self.bar.n)

    def close(self) -> None:
        """Leave the bar where it is."""
        self.bar.close()

    def update(self) -> None:
        """Show where all processes are, at most once a second."""
        if self.bar.disable or time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + _INTERVAL_SECONDS
        self.bar.update(min(int(self._seconds_done()), self.bar.total) - self.bar.n)
