"""Progress of a feature cache over all processes that fill it, read off the sizes of its files."""

from pathlib import Path

from torch import nn

from recipes.common.audio_progress import AudioProgress
from recipes.common.feature_cache.format import ITEM_SIZE, partial_bytes


class BuildProgress(AudioProgress):
    """Bar in seconds of audio.

    Parameters
    ----------
    folder : of the cache, which exists.
    seconds : of audio that are to be encoded.
    encoder : for the size of a second.
    enabled : as `AudioProgress` takes it.
    """

    def __init__(
        self, folder: Path, *, seconds: float, encoder: nn.Module, enabled: bool = True
    ) -> None:
        self.folder = folder
        frames_per_second = encoder.sample_rate / encoder.hop_length
        self._bytes_per_second = frames_per_second * encoder.dim * ITEM_SIZE
        partial = partial_bytes(folder, finished=False)
        self._bytes_before = partial_bytes(folder, finished=True) - partial
        super().__init__("encode", seconds=seconds, seconds_done=self.seconds_done, enabled=enabled)

    def seconds_done(self) -> int:
        """Seconds of audio that all processes have encoded since this object was made."""
        num_bytes = partial_bytes(self.folder, finished=True) - self._bytes_before
        return max(0, int(num_bytes / self._bytes_per_second))
