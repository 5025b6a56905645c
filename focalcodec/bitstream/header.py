"""The header of a `.focal` file: what it says of its tokens, and whether that fits a codec.

Packets say the same. In a file it takes these bytes, all integers unsigned and little endian, all
checksums CRC-32 as in zlib:

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
"""

import re
import struct
import zlib
from dataclasses import dataclass

from focalcodec.bitstream.errors import HeaderError, MagicError, ModelError, VersionError
from focalcodec.bitstream.fields import MAX_BITS, ceil_div, check_count

_MAGIC, _VERSION = b"\x89FOCAL\r\n", 1
_FIELDS = struct.Struct("<8sBBHIQIII16s")  # all before the model id
_CRC = struct.Struct("<I")
_UNFINISHED = 2**64 - 1
_MAX_ID_BYTES = 255
MAX_HEADER_BYTES = _FIELDS.size + _MAX_ID_BYTES + _CRC.size
_LARGEST = {  # of the fields that count something; the smallest is 1
    "bits": MAX_BITS,
    "sample_rate": 2**32 - 1,
    "num_samples": _UNFINISHED - 1,
    "codec_rate": 2**32 - 1,
    "samples_per_tok": 2**32 - 1,
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is said of tokens; without ``num_samples``, what depends on it is None.

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
                check_count(name, getattr(self, name), largest=_LARGEST[name])
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
        samples = ceil_div(self.num_samples * self.codec_rate, self.sample_rate)
        return ceil_div(samples, self.samples_per_tok)

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


def header_to_bytes(header: Header, *, crc: int) -> bytes:
    """Header as bytes, with the checksum of the payload; 0 while there is none."""
    model_id = header.model_id.encode()
    source = (header.sample_rate, header.num_samples or _UNFINISHED)
    codec = (header.codec_rate, header.samples_per_tok, crc, bytes.fromhex(header.fingerprint))
    fields = _FIELDS.pack(_MAGIC, _VERSION, header.bits, len(model_id), *source, *codec)
    return fields + model_id + _CRC.pack(zlib.crc32(fields + model_id))


def header_from_bytes(head: bytes) -> tuple[Header, int]:
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
