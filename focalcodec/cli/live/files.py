"""Audio files and token files, read and written block by block."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from focalcodec.audio import AudioReader, write_audio
from focalcodec.bitstream import Header, Reader, check_model
from focalcodec.cli.live.end import End
from focalcodec.cli.live.sound import BLOCK_S, SoundSource
from focalcodec.cli.live.stop import Stop
from focalcodec.cli.token_files import write_toks
from focalcodec.live import Piece


class AudioFileSource(SoundSource):
    """An audio file.

    Raises
    ------
    AudioError : as `AudioReader`.
    """

    def __init__(self, path: Path, *, stop: Stop) -> None:
        self._reader = AudioReader(path, sample_rate=None, block_s=BLOCK_S)
        super().__init__(sample_rate=self._reader.sample_rate, stop=stop)

    def _blocks(self) -> Iterator[Tensor]:
        return iter(self._reader)


class AudioFileSink(End):
    """An audio file, which appears under its name when it is finished."""

    def __init__(self, path: Path, *, sample_rate: int, overwrite: bool) -> None:
        self._path, self._sample_rate, self._overwrite = path, sample_rate, overwrite

    def consume(self, contents: Iterable[Tensor]) -> None:
        """Write signals as they come."""
        write_audio(self._path, contents, sample_rate=self._sample_rate, overwrite=self._overwrite)


class FocalSource(End):
    """A token file.

    Parameters
    ----------
    path : of the file.
    tok_format : of the codec at hand, see `check_model`.
    chunk_toks : tokens of a piece.
    stop : ends it.

    Attributes
    ----------
    header : of the tokens; without ``num_samples`` where not all of them were given.

    Raises
    ------
    FocalFileError : if the file is damaged or of another codec.
    """

    def __init__(self, path: Path, *, tok_format: dict, chunk_toks: int, stop: Stop) -> None:
        self._file = open(path, "rb")
        try:
            self._reader = Reader(self._file)
            check_model(self._reader.header, **tok_format)
        except ValueError:
            self._file.close()
            raise
        self.header = self._reader.header
        if not self._reader.complete:
            self.header = replace(self.header, num_samples=None)
        self._chunk_toks, self._stop = chunk_toks, stop

    def pieces(self) -> Iterator[Piece]:
        """Yield tokens, a chunk at a time."""
        for block in self._reader:
            for toks in block.split(self._chunk_toks):
                yield Piece(toks, time.perf_counter())
                if self._stop.requested:
                    self.header = replace(self.header, num_samples=None)
                    return

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FocalSink(End):
    """A token file.

    Parameters
    ----------
    path : of the file.
    header : of the tokens, without ``num_samples``.
    num_samples : of the source, asked for at the end.
    overwrite : replace a file that is there.
    """

    def __init__(
        self, path: Path, *, header: Header, num_samples: Callable[[], int], overwrite: bool
    ) -> None:
        self._path, self._header = path, header
        self._num_samples, self._overwrite = num_samples, overwrite

    def consume(self, contents: Iterable[Tensor]) -> None:
        """Write tokens as they come.

        Where something went wrong in between, the file is that of the samples whose tokens came.
        """
        header, num_toks = self._header, 0

        def counted() -> Iterator[Tensor]:
            nonlocal num_toks
            for toks in contents:
                num_toks += toks.shape[0]
                yield toks

        def num_samples() -> int:
            covered = num_toks * header.samples_per_tok * header.sample_rate // header.codec_rate
            return min(self._num_samples(), covered)

        write_toks(
            self._path,
            counted(),
            header=header,
            num_samples=num_samples,
            overwrite=self._overwrite,
        )
