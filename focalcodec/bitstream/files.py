"""The `.focal` file: the tokens of one recording at their true width, behind a small header.

Pipeline position: toks (L,) of one recording -> **file** -> toks (L,). A payload has no overhead:
13-bit tokens at 50 Hz take exactly 0.65 kbit/s. The header is described in ``header``, the rest of
the format, version 1, here.

**Payload.** Tokens as ``packing`` writes them, and nothing after them. The number of tokens is not
stored, it follows from the header: at the codec's rate the source has
ceil(num_samples x codec_rate / sample_rate) samples, and one token stands for each
``samples_per_tok`` of them, the last one for what is left. This is exact integer arithmetic.

**Writers** begin with a header that says "not finished" and append whole bytes. After the last
token they complete the last byte, make the payload durable, and only then replace the header, in
one write, by the finished one, which has the same size. So a finished header promises the whole
payload, and a file can be read while it grows. A writer that dies between these two steps leaves
up to floor(7 / bits) tokens too many, made of padding: none from 8 bits on.

**Readers** look at magic, version and header checksum in this order and refuse what they do not
know, and impossible values. They trust the size of the file, not the header's numbers: of a file
that is not finished, or ends too early, they give the whole tokens that are there, with a warning
and without a checksum. Bytes after the payload are an error, and so is a payload without its
checksum. What the padding holds is the checksum's business alone.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from focalcodec.bitstream.errors import (
    ChecksumError,
    CutFileWarning,
    FocalFileError,
    LengthError,
)
from focalcodec.bitstream.fields import ceil_div
from focalcodec.bitstream.header import (
    MAX_HEADER_BYTES,
    Header,
    header_from_bytes,
    header_to_bytes,
)
from focalcodec.bitstream.packing import (
    BLOCK,
    NO_BITS,
    checked_toks,
    last_byte,
    pack_bits,
    unpack,
)

FilePath = str | os.PathLike[str]

# Writing


class Writer:
    """Write a file while its tokens come in; a context manager that closes it.

    The file can be read at any moment: when `write` returns, at most the last 7 bits are missing.
    What ends before `finish`, by an exception or a kill, stays readable but says "not finished".

    Parameters
    ----------
    path : file to make.
    header : without ``num_samples``.
    overwrite : replace a file that is there.

    Attributes
    ----------
    header : with ``num_samples`` once the file is finished.
    num_toks : tokens written so far.

    Raises
    ------
    FileExistsError : if the file is there, unless ``overwrite``.
    ValueError : if ``header`` has ``num_samples``.
    """

    def __init__(self, path: FilePath, header: Header, *, overwrite: bool = False) -> None:
        if header.num_samples is not None:
            raise ValueError(
                f"header.num_samples must be None until finish(), got {header.num_samples}"
            )
        self.header, self.num_toks = header, 0
        self._crc, self._rest = 0, NO_BITS  # of the payload so far; bits that fill no byte yet
        try:
            self._file = open(path, "wb" if overwrite else "xb")
        except FileExistsError as error:
            raise FileExistsError(f"{path} exists; set overwrite=True to replace it") from error
        self._append(header_to_bytes(header, crc=0))

    def __enter__(self) -> Writer:
        """Give the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file as it is."""
        self._file.close()

    def write(self, toks: Tensor) -> None:
        """Append tokens (L,), L >= 0; if it raises a ValueError, as `pack` does, it wrote none."""
        toks = checked_toks(toks, self.header.bits)
        payload, rest = pack_bits(toks, self._rest, self.header.bits)
        self._append_payload(payload)
        self._rest = rest
        self.num_toks += toks.numel()

    def finish(self, num_samples: int) -> None:
        """Complete the file, durably, and close it.

        Parameters
        ----------
        num_samples : of the source audio, at ``header.sample_rate``.

        Raises
        ------
        HeaderError : if ``num_samples`` does not fit its field.
        LengthError : if it makes another number of tokens than were written.
        """
        header = replace(self.header, num_samples=num_samples)
        _check_num_toks(header, self.num_toks)
        self._append_payload(last_byte(self._rest))
        os.fsync(self._file.fileno())
        self._file.seek(0)
        self._append(header_to_bytes(header, crc=self._crc))  # one write: the buffer is larger
        os.fsync(self._file.fileno())
        self._file.close()
        self.header = header

    def _append_payload(self, payload: bytes) -> None:
        self._append(payload)
        self._crc = zlib.crc32(payload, self._crc)

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()


def write(path: FilePath, toks: Tensor, header: Header, *, overwrite: bool = False) -> None:
    """Write all tokens (L,) of a source; ``header`` has its ``num_samples``.

    Errors are those of `Writer`. No file is made, and none replaced, if the tokens do not fit.
    """
    toks = checked_toks(toks, header.bits)
    _check_num_toks(header, toks.numel())
    with Writer(path, replace(header, num_samples=None), overwrite=overwrite) as writer:
        writer.write(toks)
        writer.finish(header.num_samples)


def _check_num_toks(header: Header, count: int) -> None:
    if header.num_toks != count:
        raise LengthError(
            f"num_samples {header.num_samples} at {header.sample_rate} Hz makes {header.num_toks} "
            f"tokens, but there are {count}; encode ceil(num_samples * codec_rate / sample_rate) "
            "samples, no more and no less, and write every token"
        )


# Reading


class Reader:
    """Tokens of an open file as (L,) int64 blocks, in bounded memory; made by `open_focal`.

    Every iteration begins at the first token. A complete file gives its last block only if the
    checksum of all is right; the blocks before it come unchecked (`read` checks first). Any other
    file gives what was there when it was opened, unchecked, and warns once.

    Parameters
    ----------
    file : open for reading in binary mode, seekable.

    Attributes
    ----------
    header : what the file says of its tokens.
    num_toks : whole tokens that are there.
    complete : whether these are all.

    Raises
    ------
    MagicError, VersionError, HeaderError : if the file does not begin with a sound header.
    LengthError : if bytes follow the tokens; while iterating, if the file became shorter.
    ChecksumError : while iterating, if the tokens are damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._has_warned = file, False
        head = file.read(MAX_HEADER_BYTES)
        try:
            self.header, self._crc = header_from_bytes(head)
        except FocalFileError as error:
            raise type(error)(f"{file.name}: {error}") from error
        num_bytes = max(0, os.fstat(file.fileno()).st_size - self.header.num_bytes)
        self.num_toks, expected = 8 * num_bytes // self.header.bits, self.header.num_toks
        self.complete = expected is not None and expected <= self.num_toks
        if self.complete:
            self.num_toks = expected
            if excess := num_bytes - ceil_div(expected * self.header.bits, 8):
                raise LengthError(f"{file.name} has {excess} bytes after its {expected} tokens")

    def __iter__(self) -> Iterator[Tensor]:
        """Yield blocks of equal size, the last one smaller."""
        self._warn_if_cut()
        bits, crc = self.header.bits, 0
        for start in range(0, self.num_toks, BLOCK):
            count = min(BLOCK, self.num_toks - start)
            self._file.seek(self.header.num_bytes + start * bits // 8)
            payload = self._file.read(ceil_div(count * bits, 8))
            if len(payload) < ceil_div(count * bits, 8):
                raise LengthError(f"{self._file.name} became shorter while it was read")
            toks = unpack(payload, bits=bits, count=count)
            crc = zlib.crc32(payload, crc)
            if self.complete and start + count == self.num_toks and crc != self._crc:
                raise ChecksumError(
                    f"{self._file.name} is damaged: its tokens have checksum {crc:08x}, and had "
                    f"{self._crc:08x} when they were written; fetch or encode it again"
                )
            yield toks

    def _warn_if_cut(self) -> None:
        if self.complete or self._has_warned:
            return
        self._has_warned = True
        state, known = "is still being written or was never finished", ""
        if self.header.num_toks is not None:
            state, known = "is cut", f" of {self.header.num_toks}"
        message = f"{self._file.name} {state}: {self.num_toks}{known} tokens are there"
        warnings.warn(message, CutFileWarning, stacklevel=3)


@contextmanager
def open_focal(path: FilePath) -> Iterator[Reader]:
    """Open a file, check its header, and close it in the end; errors of `Reader`.

    Raises
    ------
    FileNotFoundError, IsADirectoryError : if there is no such file, or it is a folder.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a .focal file in it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    with open(path, "rb") as file:
        yield Reader(file)


def read(path: FilePath) -> tuple[Header, Tensor]:
    """Header and all tokens (L,) int64 of a file, checked; errors and warning of `open_focal`."""
    with open_focal(path) as reader:
        return reader.header, torch.cat([NO_BITS, *reader])
