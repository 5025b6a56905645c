"""The `.focal` file: the tokens of one recording at their true width, behind a small header.

Pipeline position: toks (L,) of one recording -> **file** -> toks (L,). A payload has no overhead:
13-bit tokens at 50 Hz take exactly 0.65 kbit/s. What follows is the whole format, version 1; all
integers are unsigned and little endian, all checksums CRC-32 as in zlib.

======= ==== =============== ======================================================================
offset  size field           content
======= ==== =============== ======================================================================
0       8    magic           89 46 4F 43 41 4C 0D 0A: one byte above ASCII, "FOCAL", CR, LF
8       1    version         1
9       1    bits            per token, 1 to 32
10      2    n               bytes of the model id, 0 to 255
12      4    sample_rate     Hz, of the source audio, >= 1
16      8    num_samples     of the source audio at ``sample_rate``, >= 1; 2^64 - 1: not finished
24      4    codec_rate      Hz, of the codec's input, >= 1
28      4    samples_per_tok at ``codec_rate``, >= 1
32      4    payload crc     of all bytes of the payload; 0 while not finished
36      16   fingerprint     of the codec's configuration
52      n    model id        UTF-8, for messages; the fingerprint is what identifies the codec
52 + n  4    header crc      of the 52 + n bytes before it
56 + n       payload         the tokens, and nothing after them
======= ==== =============== ======================================================================

**Payload.** Tokens follow each other without gaps, each most significant bit first, and fill every
byte from its most significant bit on. The last byte is completed with zero bits. The number of
tokens is not stored, it follows from the header: at the codec's rate the source has
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
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

FilePath = str | os.PathLike[str]

_MAGIC, _VERSION = b"\x89FOCAL\r\n", 1
_FIELDS = struct.Struct("<8sBBHIQIII16s")  # all before the model id
_CRC = struct.Struct("<I")
_UNFINISHED = 2**64 - 1
_MAX_ID_BYTES = 255
_LARGEST = {  # of the fields that count something; the smallest is 1
    "bits": 32,
    "sample_rate": 2**32 - 1,
    "num_samples": _UNFINISHED - 1,
    "codec_rate": 2**32 - 1,
    "samples_per_tok": 2**32 - 1,
}
_BLOCK = 2**14  # tokens that are (un)packed at a time; a multiple of 8, so that they fill bytes
_NO_BITS = torch.empty(0, dtype=torch.int64, device="cpu")


class FocalFileError(ValueError):
    """A file that is no sound `.focal` file, or does not fit what it is used for."""


class MagicError(FocalFileError):
    """The file does not begin as a `.focal` file does."""


class VersionError(FocalFileError):
    """The file has a version of the format that is not known here."""


class HeaderError(FocalFileError):
    """The header is cut or damaged, or a field has an impossible value."""


class ChecksumError(FocalFileError):
    """The payload does not have the checksum that the header names."""


class LengthError(FocalFileError):
    """The number of tokens or bytes does not fit the header."""


class ModelError(FocalFileError):
    """The tokens were made with another codec."""


class CutFileWarning(UserWarning):
    """Only the first tokens are there: the file is not finished, or cut."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of its tokens; without ``num_samples``, what depends on it is None.

    Parameters
    ----------
    bits : per token, 1 to 32.
    sample_rate : of the source audio, Hz.
    num_samples : of the source audio; None while it is not known.
    codec_rate : of the codec's input, Hz.
    samples_per_tok : samples at ``codec_rate`` that one token stands for.
    fingerprint : of the codec's configuration, 32 lower-case hexadecimal digits.
    model_id : folder or hub id of the codec, at most 255 bytes of UTF-8.

    Raises
    ------
    HeaderError : if a value does not fit its field.
    """

    bits: int
    sample_rate: int
    num_samples: int | None = None
    codec_rate: int
    samples_per_tok: int
    fingerprint: str
    model_id: str = ""

    def __post_init__(self) -> None:
        """Check that every value fits its field."""
        for name in _LARGEST:
            if name != "num_samples" or self.num_samples is not None:
                _check_count(name, getattr(self, name))
        if not re.fullmatch("[0-9a-f]{32}", self.fingerprint):
            raise HeaderError(
                f"fingerprint must be 32 lower-case hexadecimal digits, got {self.fingerprint!r}"
            )
        try:
            size = len(self.model_id.encode())
        except UnicodeEncodeError as error:
            raise HeaderError(f"model_id {self.model_id!r} is not Unicode: {error}") from error
        if size > _MAX_ID_BYTES:
            raise HeaderError(f"model_id must be at most {_MAX_ID_BYTES} bytes, got {size}")

    @property
    def num_bytes(self) -> int:
        """Size of the header; the payload begins there."""
        return _FIELDS.size + len(self.model_id.encode()) + _CRC.size

    @property
    def num_toks(self) -> int | None:
        """Tokens that the whole source makes."""
        if self.num_samples is None:
            return None
        # In integers: torchaudio 2.11 computes this length in float32, and of long signals it is
        # now and then one sample too short.
        samples = _ceil_div(self.num_samples * self.codec_rate, self.sample_rate)
        return _ceil_div(samples, self.samples_per_tok)

    @property
    def duration(self) -> float | None:
        """Length of the source, s."""
        return None if self.num_samples is None else self.num_samples / self.sample_rate

    @property
    def bitrate(self) -> float:
        """Bits of payload per second of speech."""
        return self.bits * self.codec_rate / self.samples_per_tok

    def num_samples_at(self, rate: int) -> int | None:
        """Count the samples of the source at ``rate`` Hz: rounded half up, at least 1."""
        if self.num_samples is None:
            return None
        return max(1, (2 * self.num_samples * rate + self.sample_rate) // (2 * self.sample_rate))


def check_model(
    header: Header,
    *,
    bits: int,
    codec_rate: int,
    samples_per_tok: int,
    fingerprint: str,
    model_id: str,
) -> None:
    """Refuse tokens of another codec.

    Parameters
    ----------
    header : of the tokens.
    bits, codec_rate, samples_per_tok, fingerprint : of the codec at hand, as in `Header`.
    model_id : its name. One codec may go by several names, so they are shown, not compared.

    Raises
    ------
    ModelError : if anything but the name differs.
    """
    ours = {
        "bits": bits,
        "codec_rate": codec_rate,
        "samples_per_tok": samples_per_tok,
        "fingerprint": fingerprint,
    }
    theirs = {name: getattr(header, name) for name in ours}
    if different := [f"{k} is {theirs[k]}, not {ours[k]}" for k in ours if theirs[k] != ours[k]]:
        raise ModelError(
            f"the tokens are of model {header.model_id!r}, not of model {model_id!r}: "
            f"{'; '.join(different)}. Use the model that made them"
        )


# Tokens and bytes


def pack(toks: Tensor, *, bits: int) -> bytes:
    """Payload of tokens, ceil(L x bits / 8) bytes.

    Parameters
    ----------
    toks : (L,) of any integer dtype, in [0, 2^bits).
    bits : per token, 1 to 32.

    Raises
    ------
    ValueError : if ``toks`` is no (L,) tensor of integers in range.
    HeaderError : if ``bits`` is out of range.
    """
    payload, rest = _pack(_checked_toks(toks, bits), _NO_BITS, bits)
    return payload + _last_byte(rest)


def unpack(payload: bytes, *, bits: int, count: int | None = None) -> Tensor:
    """Tokens (L,) int64 of a payload.

    Parameters
    ----------
    payload : bytes as `pack` gives them.
    bits : per token, 1 to 32.
    count : L; None for all whole tokens, of which the last ones may be padding below 8 bits.

    Raises
    ------
    LengthError : if ``payload`` is not as long as that of ``count`` tokens.
    HeaderError : if ``bits`` is out of range.
    """
    _check_count("bits", bits)
    if count is None:
        count = 8 * len(payload) // bits
    elif len(payload) != (needed := _ceil_div(count * bits, 8)):
        raise LengthError(
            f"payload of {count} tokens of {bits} bits must be {needed} bytes, got {len(payload)}"
        )
    toks, size = [_NO_BITS], _BLOCK * bits // 8
    for start in range(0, len(payload), size):
        values = torch.tensor(list(payload[start : start + size]), device="cpu")
        toks.append(_from_bits(_to_bits(values, 8), bits))
    return torch.cat(toks)[:count]


def _pack(toks: Tensor, rest: Tensor, bits: int) -> tuple[bytes, Tensor]:
    """Whole bytes of the bits ``rest`` and the tokens after them, and the bits that are left."""
    payload = bytearray()
    for block in toks.split(_BLOCK):
        stream = torch.cat([rest, _to_bits(block, bits)])
        payload += bytes(_from_bits(stream, 8).tolist())
        rest = stream[stream.numel() // 8 * 8 :].clone()
    return bytes(payload), rest


def _last_byte(rest: Tensor) -> bytes:
    """At most 7 bits, completed with zeros; nothing if there are none."""
    return bytes(_from_bits(torch.cat([rest, rest.new_zeros(-rest.numel() % 8)]), 8).tolist())


def _to_bits(values: Tensor, width: int) -> Tensor:
    """(L x width,) bits, 0 or 1, of (L,) values, most significant first."""
    return (values[:, None] >> _shifts(width)).bitwise_and_(1).flatten()


def _from_bits(stream: Tensor, width: int) -> Tensor:
    """(L,) values of the first L x width bits, as many as there are whole ones."""
    count = stream.numel() // width
    return (stream[: count * width].view(count, width) << _shifts(width)).sum(dim=1)


def _shifts(width: int) -> Tensor:
    return torch.arange(width - 1, -1, -1, device="cpu")


def _checked_toks(toks: Tensor, bits: int) -> Tensor:
    _check_count("bits", bits)
    if toks.ndim != 1:
        raise ValueError(
            f"toks must be (L,), got shape {tuple(toks.shape)}; take a row of a batch with toks[b]"
        )
    if toks.is_floating_point() or toks.is_complex() or toks.dtype == torch.bool:
        raise ValueError(f"toks must be integers, got {toks.dtype}; convert with toks.long()")
    toks = toks.cpu().long()
    if toks.numel() and not 0 <= int(toks.min()) <= int(toks.max()) < 2**bits:
        raise ValueError(
            f"toks must be in [0, {2**bits}) with {bits} bits, got {int(toks.min())} to "
            f"{int(toks.max())}; were they made with another codebook?"
        )
    return toks


def _check_count(name: str, value: object) -> None:
    largest = _LARGEST[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise HeaderError(f"{name} must be an integer from 1 to {largest}, got {value!r}")


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


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
        self._crc, self._rest = 0, _NO_BITS  # of the payload so far; bits that fill no byte yet
        try:
            self._file = open(path, "wb" if overwrite else "xb")
        except FileExistsError as error:
            raise FileExistsError(f"{path} exists; set overwrite=True to replace it") from error
        self._append(_header_to_bytes(header, crc=0))

    def __enter__(self) -> Writer:
        """Give the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file as it is."""
        self._file.close()

    def write(self, toks: Tensor) -> None:
        """Append tokens (L,), L >= 0; if it raises a ValueError, as `pack` does, it wrote none."""
        toks = _checked_toks(toks, self.header.bits)
        payload, rest = _pack(toks, self._rest, self.header.bits)
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
        self._append_payload(_last_byte(self._rest))
        os.fsync(self._file.fileno())
        self._file.seek(0)
        self._append(_header_to_bytes(header, crc=self._crc))  # one write: the buffer is larger
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
    toks = _checked_toks(toks, header.bits)
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


def _header_to_bytes(header: Header, *, crc: int) -> bytes:
    model_id = header.model_id.encode()
    source = (header.sample_rate, header.num_samples or _UNFINISHED)
    codec = (header.codec_rate, header.samples_per_tok, crc, bytes.fromhex(header.fingerprint))
    fields = _FIELDS.pack(_MAGIC, _VERSION, header.bits, len(model_id), *source, *codec)
    return fields + model_id + _CRC.pack(zlib.crc32(fields + model_id))


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
        head = file.read(_FIELDS.size + _MAX_ID_BYTES + _CRC.size)
        try:
            self.header, self._crc = _header_from_bytes(head)
        except FocalFileError as error:
            raise type(error)(f"{file.name}: {error}") from error
        num_bytes = max(0, os.fstat(file.fileno()).st_size - self.header.num_bytes)
        self.num_toks, expected = 8 * num_bytes // self.header.bits, self.header.num_toks
        self.complete = expected is not None and expected <= self.num_toks
        if self.complete:
            self.num_toks = expected
            if excess := num_bytes - _ceil_div(expected * self.header.bits, 8):
                raise LengthError(f"{file.name} has {excess} bytes after its {expected} tokens")

    def __iter__(self) -> Iterator[Tensor]:
        """Yield blocks of equal size, the last one smaller."""
        self._warn_if_cut()
        bits, crc = self.header.bits, 0
        for start in range(0, self.num_toks, _BLOCK):
            count = min(_BLOCK, self.num_toks - start)
            self._file.seek(self.header.num_bytes + start * bits // 8)
            payload = self._file.read(_ceil_div(count * bits, 8))
            if len(payload) < _ceil_div(count * bits, 8):
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
        return reader.header, torch.cat([_NO_BITS, *reader])


def _header_from_bytes(head: bytes) -> tuple[Header, int]:
    """Header and payload checksum from the beginning of a file."""
    if not head.startswith(_MAGIC) and not _MAGIC.startswith(head):
        raise MagicError(
            f"not a .focal file, it begins with {head[: len(_MAGIC)]!r}, not {_MAGIC!r}; "
            "if it was one, it was transferred as text"
        )
    version = head[len(_MAGIC) : len(_MAGIC) + 1]
    if version not in (b"", bytes([_VERSION])):
        raise VersionError(
            f"version {version[0]} of the .focal format, only {_VERSION} is known here; read it "
            "with the release of FocalCodec that wrote it"
        )
    if len(head) < _FIELDS.size:
        raise HeaderError(f"cut: the file ends in its header, after {len(head)} bytes")
    _, _, bits, id_size, sample_rate, num_samples, codec_rate, samples_per_tok, crc, fingerprint = (
        _FIELDS.unpack_from(head)
    )
    end = _FIELDS.size + id_size
    if head[end : end + _CRC.size] != _CRC.pack(zlib.crc32(head[:end])):
        raise HeaderError("the header is damaged or cut: its checksum is wrong; fetch it again")
    try:
        model_id = head[_FIELDS.size : end].decode()
    except UnicodeDecodeError as error:
        raise HeaderError(f"the model id is not UTF-8: {error}") from error
    header = Header(
        bits=bits,
        sample_rate=sample_rate,
        num_samples=None if num_samples == _UNFINISHED else num_samples,
        codec_rate=codec_rate,
        samples_per_tok=samples_per_tok,
        fingerprint=fingerprint.hex(),
        model_id=model_id,
    )
    return header, crc
