"""Audio files in blocks: hours of audio in bounded memory, of any rate, as one channel.

First and last step of the command line: `AudioReader` gives blocks at the codec's rate, and
`write_audio` takes them. Headers are only believed where a wrong one does no harm.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from torch import Tensor

from focalcodec.resampling import check_rate, check_ratio, resample_blocks

# What libsndfile reads, and in the second line what it does not: reported, not overlooked.
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .voc "
    ".m4a .aac .wma .webm .amr .raw".split()
)
# soundfile's name of the format that is written under an extension.
AUDIO_FORMATS = {
    f".{name.lower()}": name
    for name in soundfile.available_formats()
    if name not in ("RAW", "SD2")  # one cannot be read back, one comes as two files
} | {".aif": "AIFF"}

_BLOCK_VALUES = 2**18  # samples x channels that are read at once
_WRITE_SAMPLES = 2**13  # libsndfile 1.2.2 overruns its stack on long writes of Vorbis
_MAX_ESTIMATE_S = 1e7  # a stream of unknown length claims about 2**63 samples


class AudioError(ValueError):
    """An audio file that cannot be used, with its ``path`` and ``reason``."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class AudioReader:
    """Samples of one file as blocks of one channel at a wanted rate; closed after the last one.

    Channels are averaged. Peaks of float files beyond [-1, 1] are kept. The blocks, joined, are
    what resampling the whole file at once gives. A file that ends before its header says so gives
    what is there, unless libsndfile calls it damaged.

    Parameters
    ----------
    path : anything that libsndfile reads.
    sample_rate : of the blocks, Hz; None for that of the file.
    block_s : of the file that are read at once, s; None for as much as is fast.

    Attributes
    ----------
    sample_rate : of the file, Hz.
    num_samples : samples of the file, at its own rate, that have been read so far.

    Raises
    ------
    AudioError : if the file is missing or not readable as audio; while iterating, if it is damaged,
        empty or holds samples that are not finite.
    """

    def __init__(
        self, path: str | Path, *, sample_rate: int | None, block_s: float | None = None
    ) -> None:
        self.path = path
        self.num_samples = 0
        self._file = _open(path)
        self._block_s = block_s
        self.sample_rate = self._file.samplerate
        sample_rate = self.sample_rate if sample_rate is None else sample_rate
        try:
            check_rate(self.sample_rate)
            check_ratio(self.sample_rate, sample_rate)
        except ValueError as error:
            self._file.close()
            raise AudioError(path, str(error)) from error
        self._blocks = resample_blocks(
            self._read(), sample_rate=self.sample_rate, new_sample_rate=sample_rate
        )

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (T,) float32 blocks, T >= 1, each only once."""
        return self._blocks

    def _read(self) -> Iterator[Tensor]:
        with self._file as file:
            size = _BLOCK_VALUES // file.channels
            if self._block_s is not None:
                size = min(size, round(self._block_s * self.sample_rate))
            size = max(1, size)
            while len(frames := self._frames(size)):
                sig = torch.from_numpy(frames).mean(dim=1)
                # Before resampling, which would spread one bad sample over its neighbours.
                if not bool(sig.isfinite().all()):
                    first = self.num_samples + int((~sig.isfinite()).nonzero()[0])
                    raise AudioError(self.path, f"sample {first} is not finite")
                self.num_samples += len(frames)
                yield sig
        if not self.num_samples:
            raise AudioError(self.path, "holds no samples")

    def _frames(self, size: int) -> np.ndarray:
        with _reading(self.path):
            return self._file.read(size, dtype="float32", always_2d=True)


def estimate_seconds(path: str | Path) -> float:
    """Duration in seconds as the header tells it, true or not; AudioError if there is no header."""
    with _open(path) as file:
        return min(file.frames / max(file.samplerate, 1), _MAX_ESTIMATE_S)


def write_audio(
    path: Path, blocks: Iterable[Tensor], *, sample_rate: int, overwrite: bool = False
) -> int:
    """Write one channel to a file that appears whole or not at all, and count its samples.

    Parameters
    ----------
    path : its extension, one of `AUDIO_FORMATS`, tells the format. Samples have the width that is
        usual in it, 16 bits in WAV; formats of integers clip what lies outside of [-1, 1].
    blocks : (T,) float signal in consecutive pieces.
    sample_rate : Hz.
    overwrite : replace a file that is there.

    Raises
    ------
    FileExistsError : if the file is there, unless ``overwrite``.
    AudioError : if the extension is none, the format does not take this rate, or a sample is not
        finite.
    """
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".focalcodec-", dir=path.parent) as folder:
        partial = Path(folder) / "partial"
        num_samples = _write(partial, path, blocks, sample_rate)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        if not overwrite and path.exists():
            raise FileExistsError(f"{path} appeared in the meantime")
        os.replace(partial, path)
    return num_samples


def _open(path: str | Path) -> soundfile.SoundFile:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise AudioError(path, reason) from error
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(mode):
        raise AudioError(path, "is a folder" if stat.S_ISDIR(mode) else "is not a regular file")
    with _reading(path):
        return _Sequential(os.fsencode(path))


class _Sequential(soundfile.SoundFile):
    """Read from the first sample to the last without asking the header how many there are."""

    def seekable(self) -> bool:
        # Otherwise soundfile cuts what it reads to the header's length and seeks after every block,
        # which changes decoded MP3 in the last bit.
        return False


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while reading into an AudioError that names the file."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # TypeError: raw, no header
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise AudioError(path, f"is not readable as audio: {reason}") from error


def _write(partial: Path, path: Path, blocks: Iterable[Tensor], sample_rate: int) -> int:
    num_samples, kind = 0, AUDIO_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise AudioError(path, "cannot be written: it has no extension of an audio format")
    try:
        with soundfile.SoundFile(
            os.fsencode(partial), "w", samplerate=sample_rate, channels=1, format=kind
        ) as file:
            for sig in blocks:
                if not bool(sig.isfinite().all()):
                    raise AudioError(path, "the decoded signal is not finite")
                for piece in sig.split(_WRITE_SAMPLES):
                    file.write(piece.numpy())
                num_samples += sig.shape[0]
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"cannot be written: {error.error_string}") from error
    return num_samples
