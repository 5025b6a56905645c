"""Progress of a feature cache over all processes that fill it, read off the sizes of its files."""

import time
from pathlib import Path

from torch import nn
from tqdm import tqdm

from recipes.common.feature_cache.format import ITEM_SIZE, partial_bytes

_INTERVAL_SECONDS = 1.0


class BuildProgress:
    """Bar in seconds of audio.

    Parameters
    ----------
    folder : of the cache, which exists.
    seconds : of audio that are to be encoded.
    encoder : for the size of a second.
    enabled : False shows nothing; nothing is shown either where the output is no terminal.
    """

    def __init__(
        self, folder: Path, *, seconds: float, encoder: nn.Module, enabled: bool = True
    ) -> None:
        self.folder = folder
        frames_per_second = encoder.sample_rate / encoder.hop_length
        self._bytes_per_second = frames_per_second * encoder.dim * ITEM_SIZE
        partial = partial_bytes(folder, finished=False)
        self._bytes_before = partial_bytes(folder, finished=True) - partial
        self._next_update = 0.0
        self.bar = tqdm(
            total=round(seconds), desc="encode", unit="s", disable=None if enabled else True
        )

    def finish(self) -> None:
        """Fill the bar: bad files have no features that would do it."""
        self.bar.update(self.bar.total - self.bar.n)

    def close(self) -> None:
        """Leave the bar where it is."""
        self.bar.close()

    def update(self) -> None:
        """Show where all processes are, at most once a second."""
        if self.bar.disable or time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + _INTERVAL_SECONDS
        self.bar.update(min(self.seconds_done(), self.bar.total) - self.bar.n)

    def seconds_done(self) -> int:
        """Seconds of audio that all processes have encoded since this object was made."""
        num_bytes = partial_bytes(self.folder, finished=True) - self._bytes_before
        return max(0, int(num_bytes / self._bytes_per_second))
