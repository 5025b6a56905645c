"""Packets for tests: streams, senders over sockets, and packets made by hand."""

import socket
import struct
import zlib
from collections.abc import Iterable

import torch

from focalcodec.bitstream import Chunk, Counts, Header, Packetizer, Receiver

HEADER = Header(
    bits=12,
    sample_rate=48000,
    codec_rate=16000,
    samples_per_tok=320,
    fingerprint="00112233445566778899aabbccddeeff",
    model_id="tiny/é",
)
STREAM = 0x01020304
CLASSES = ("received", "duplicate", "late", "outside", "foreign", "corrupt")


def speech(count: int, bits: int = 12) -> torch.Tensor:
    """(L,) tokens, neighbours different."""
    return (torch.arange(count) * 37 + 5) % 2**bits


def packets_of(toks: torch.Tensor, *, stream: int = STREAM, **settings: int) -> list[bytes]:
    """Packets with tokens, four each unless told otherwise, and the one that ends the stream."""
    sender = Packetizer(HEADER, stream=stream, **settings)
    return [p for p in sender.push(toks) + sender.finish() if p[2] != 0x10]


def sealed_packet(
    *,
    magic: bytes = b"\xf0\xca",
    kind: int = 0x11,
    bits: int = 12,
    stream: int = STREAM,
    first: int = 0,
    count: int = 0,
    content: bytes = b"",
) -> bytes:
    """Packet with any values and the right checksum, made without the module."""
    packet = magic + struct.pack("<BBIIB", kind, bits, stream, first, count) + content
    return packet + struct.pack("<I", zlib.crc32(packet))


def run(receiver: Receiver, packets: Iterable[bytes]) -> list[Chunk]:
    return [chunk for packet in packets for chunk in receiver.push(packet)]


def toks_in(chunks: Iterable[Chunk]) -> list[int]:
    return [tok for chunk in chunks for tok in chunk.toks.tolist()]


def concealed_in(chunks: Iterable[Chunk]) -> list[int]:
    """Positions of tokens that were concealed."""
    return [
        chunk.first + i for chunk in chunks if chunk.concealed for i in range(chunk.toks.numel())
    ]


def check_order(chunks: Iterable[Chunk], toks: torch.Tensor, *, start: int = 0) -> None:
    """Tokens follow each other without a gap, and what is not concealed is right."""
    position = start
    for chunk in chunks:
        assert chunk.first == position and chunk.toks.numel() > 0
        assert chunk.starts == (position == start)
        assert chunk.toks.dtype == torch.int64
        position += chunk.toks.numel()
        if not chunk.concealed:
            assert torch.equal(chunk.toks, toks[chunk.first - start : position - start])


def check_sums(counts: Counts, *, packets: int, chunks: list[Chunk]) -> None:
    """Every packet and every token is counted once."""
    assert sum(getattr(counts, name) for name in CLASSES) == packets
    assert counts.toks + counts.concealed == len(toks_in(chunks))
    assert counts.concealed == len(concealed_in(chunks))


def seen(counts: Counts) -> dict[str, int]:
    """All counts but those that are 0."""
    return {name: value for name, value in vars(counts).items() if value}


def send_datagrams(port: int, count: int, lost: tuple[int, ...]) -> None:
    """Send a stream of ``count`` tokens by UDP, without the packets whose places are ``lost``."""
    sender = Packetizer(HEADER, stream=STREAM)
    packets = sender.push(speech(count)) + sender.finish()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for place, packet in enumerate(packets):
            if place not in lost:
                sock.sendto(packet, ("127.0.0.1", port))


def send_bytes(port: int, count: int, damaged: tuple[int, ...]) -> None:
    """Send a stream of ``count`` tokens by TCP, in pieces of 50 bytes, some packets damaged."""
    sender = Packetizer(HEADER, stream=STREAM)
    packets = sender.push(speech(count)) + sender.finish()
    for place in damaged:
        packets[place] = packets[place][:14] + b"\0" + packets[place][15:]
    content = b"".join(packets)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for start in range(0, len(content), 50):
            sock.sendall(content[start : start + 50])
