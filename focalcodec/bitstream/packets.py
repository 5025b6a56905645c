"""Packets: the tokens of live speech, a few at a time, on their way between two processes.

Pipeline position: toks (L,) as they are made -> **packets** -> toks (L,), the missing ones
concealed. A packet stands alone: whatever happens to the others, its tokens have their place. The
format, version 1; all integers are unsigned and little endian:

======= ==== ========== ===========================================================================
offset  size field      content
======= ==== ========== ===========================================================================
0       2    magic      F0 CA
2       1    kind       10 hello, 11 tokens, 12 the last tokens; the upper half is the version, 1
3       1    bits       per token, 1 to 32
4       4    stream     random number of the stream; a sender that starts again draws a new one
8       4    first      sequence number: index of the packet's first token in the stream, mod 2^32
12      1    n          tokens, 1 to 255, of the last packet 0 to 255; of a hello, bytes of model id
13      m    content    see below
13 + m  4    crc        CRC-32 as in zlib of the 13 + m bytes before it
======= ==== ========== ===========================================================================

**Tokens** are n tokens as ``packing`` writes them, m = ceil(n x bits / 8) bytes. The sequence
number counts tokens, not packets, as that of TCP counts bytes: so a receiver knows how many tokens
it misses, whatever the sizes of the packets that carried them. It wraps around, and is compared as
RFC 1982 says: of two numbers the later one is less than 2^31 ahead.

**The last tokens** end the stream: it has ``first`` + n tokens. Without tokens (n = 0) the packet
only says so. A sender may repeat it in case that it is lost.

**A hello** says what the tokens are, m = 28 + n bytes: sample_rate, codec_rate, samples_per_tok (4
bytes each), fingerprint (16) and model id (n, UTF-8), all as in the header of a file. ``first`` is
the index of the next token to be sent. It comes before the first token and then again and again,
so that a receiver can join late and a lost one does not matter.

**Datagrams** carry one packet each; one of another size than its fields say is damaged. In a **byte
stream** packets follow each other, and magic, sizes and checksum find them again after damage, see
``framing``. No packet is larger than 1037 bytes, so none is larger than a datagram may be without
being cut on its way.

**Overhead** is 17 bytes a packet. Four tokens of 12 bits, 80 ms at 50 Hz, make packets of 23 bytes:
2.3 kbit/s, of which 0.6 are tokens and 1.7 are not. A hello with a model id of 38 bytes takes 83
bytes, every 25 packets 0.33 kbit/s. UDP and IPv4 add 28 bytes to each datagram, 2.9 kbit/s more.
More tokens a packet cost less and wait longer: 25 of them, half a second, 0.88 kbit/s.

A checksum tells damage, not malice: packets are neither encrypted nor signed.
"""

import secrets
import struct
import zlib
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from focalcodec.bitstream.errors import HeaderError, PacketError
from focalcodec.bitstream.fields import MAX_BITS, ceil_div, check_range
from focalcodec.bitstream.header import Header
from focalcodec.bitstream.packing import checked_toks, pack, unpack

MAGIC = b"\xf0\xca"
HEAD_BYTES = 13  # all that says how large a packet is
MAX_TOKS = 255  # in one packet
_HELLO, _TOKS, _LAST = 0x10, 0x11, 0x12
_HEAD = struct.Struct("<2sBBIIB")
_CODEC = struct.Struct("<III16s")  # a hello's content before the model id
_CRC = struct.Struct("<I")
_NO_TOKS = torch.empty(0, dtype=torch.int64, device="cpu")


class Packet(NamedTuple):
    """One packet.

    ``stream`` and ``first`` are below 2^32; ``toks`` is (L,) int64 of ``bits`` each. A hello has a
    ``header`` and no tokens; ``is_last`` means that the stream ends behind these tokens.
    """

    stream: int
    first: int
    bits: int
    toks: Tensor = _NO_TOKS
    header: Header | None = None
    is_last: bool = False


def packet_to_bytes(packet: Packet) -> bytes:
    """Packet as it is sent; `Packetizer` makes sure that its values fit."""
    kind, count = _LAST if packet.is_last else _TOKS, packet.toks.numel()
    content = pack(packet.toks, bits=packet.bits)
    if packet.header is not None:
        kind, count = _HELLO, len(packet.header.model_id.encode())
        content = _codec_to_bytes(packet.header)
    head = _HEAD.pack(MAGIC, kind, packet.bits, packet.stream, packet.first, count)
    return head + content + _CRC.pack(zlib.crc32(head + content))


def packet_from_bytes(content: bytes) -> Packet:
    """Packet of a datagram.

    Raises
    ------
    PacketError : if it is no sound packet of this version.
    """
    if (size := packet_size(content)) != len(content):
        raise PacketError(f"{len(content)} bytes are no packet of version 1, or not a whole one")
    if _CRC.pack(zlib.crc32(content[: -_CRC.size])) != content[-_CRC.size :]:
        raise PacketError("the packet is damaged: its checksum is wrong")
    _, kind, bits, stream, first, count = _HEAD.unpack_from(content)
    body = content[HEAD_BYTES : size - _CRC.size]
    if kind == _HELLO:
        return Packet(stream, first, bits, header=_codec_from_bytes(body, bits))
    toks = unpack(body, bits=bits, count=count)
    return Packet(stream, first, bits, toks, is_last=kind == _LAST)


def packet_size(head: bytes) -> int | None:
    """Bytes of the packet that begins with these `HEAD_BYTES` or more; None if none does."""
    if len(head) < HEAD_BYTES:
        return None
    magic, kind, bits, _, _, count = _HEAD.unpack_from(head)
    if magic != MAGIC or not 1 <= bits <= MAX_BITS or (kind == _TOKS and not count):
        return None
    sizes = {_HELLO: _CODEC.size + count}
    sizes[_TOKS] = sizes[_LAST] = ceil_div(count * bits, 8)
    return HEAD_BYTES + sizes[kind] + _CRC.size if kind in sizes else None


def serial_difference(a: int, b: int) -> int:
    """How far sequence number ``a`` is ahead of ``b``, -2^31 to 2^31 - 1; RFC 1982, 32 bits."""
    return (a - b + 2**31) % 2**32 - 2**31


def _codec_to_bytes(header: Header) -> bytes:
    rates = (header.sample_rate, header.codec_rate, header.samples_per_tok)
    return _CODEC.pack(*rates, bytes.fromhex(header.fingerprint)) + header.model_id.encode()


def _codec_from_bytes(body: bytes, bits: int) -> Header:
    sample_rate, codec_rate, samples_per_tok, fingerprint = _CODEC.unpack_from(body)
    try:
        return Header(
            bits=bits,
            sample_rate=sample_rate,
            codec_rate=codec_rate,
            samples_per_tok=samples_per_tok,
            fingerprint=fingerprint.hex(),
            model_id=body[_CODEC.size :].decode(),
        )
    except (HeaderError, UnicodeDecodeError) as error:
        raise PacketError(f"the hello says what cannot be: {error}") from error


class Packetizer:
    """Packets of one stream of tokens, the sender's half.

    The same calls with the same ``stream`` give the same bytes.

    Parameters
    ----------
    header : what the tokens are; ``num_samples`` is not sent.
    stream : 0 to 2^32 - 1, not to be used twice; None draws one.
    first : index of the first token, 0 to 2^32 - 1; other than 0 for tests of the wrap-around.
    toks_per_packet : at most, 1 to 255.
    hello_every : packets with tokens from one hello to the next, >= 1.

    Raises
    ------
    ValueError : if a number is out of range.
    """

    def __init__(
        self,
        header: Header,
        *,
        stream: int | None = None,
        first: int = 0,
        toks_per_packet: int = 4,
        hello_every: int = 25,
    ) -> None:
        # Not from a generator that a seed makes repeat itself: a restart must change the number.
        self.stream = secrets.randbits(32) if stream is None else stream
        check_range("stream", self.stream, 0, 2**32 - 1)
        check_range("first", first, 0, 2**32 - 1)
        check_range("toks_per_packet", toks_per_packet, 1, MAX_TOKS)
        check_range("hello_every", hello_every, 1, 2**32 - 1)
        self._header, self._next = replace(header, num_samples=None), first
        self._toks_per_packet, self._hello_every = toks_per_packet, hello_every
        self._until_hello = 0  # packets
        self._has_ended = False

    def push(self, toks: Tensor) -> list[bytes]:
        """Packets of the next tokens (L,), L >= 0, hellos among them; none waits for more tokens.

        Raises
        ------
        ValueError : if tokens do not fit, as `pack` does, or the stream has ended.
        """
        if self._has_ended:
            raise ValueError("the stream has ended; make another Packetizer for the next one")
        toks, packets = checked_toks(toks, self._header.bits), []
        for part in toks.split(self._toks_per_packet) if toks.numel() else ():
            if not self._until_hello:
                packets.append(self._packet(header=self._header))
                self._until_hello = self._hello_every
            packets.append(self._packet(toks=part))
            self._until_hello -= 1
            self._next = (self._next + part.numel()) % 2**32
        return packets

    def finish(self) -> list[bytes]:
        """Packets that end the stream; to be sent again, unchanged, in case that they are lost."""
        self._has_ended = True
        return [self._packet(is_last=True)]

    def _packet(self, **content: Tensor | Header | bool) -> bytes:
        packet = Packet(self.stream, self._next, self._header.bits, **content)
        return packet_to_bytes(packet)
