"""Packets in a byte stream: cut anywhere, damaged, and behind garbage."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focalcodec.bitstream import PacketFinder, Packetizer, Receiver
from tests.packet_streams import (
    HEADER,
    STREAM,
    check_order,
    packets_of,
    sealed_packet,
    seen,
    speech,
    toks_in,
)

SENDER = Packetizer(HEADER, stream=STREAM, hello_every=3)
PACKETS = SENDER.push(speech(40)) + SENDER.finish()
CLAIM = b"\xf0\xca\x11\x20" + bytes(8) + b"\xff"  # begins a packet of 1037 bytes


def pieces(content: bytes, sizes: list[int]) -> list[bytes]:
    """Content in pieces of these sizes, again and again."""
    found = []
    while content:
        size = sizes[len(found) % len(sizes)]
        found.append(content[:size])
        content = content[size:]
    return found


GARBAGE = st.binary(max_size=40) | st.sampled_from(
    [b"\xf0", b"\xf0\xca", b"\xf0\xf0\xca", CLAIM, CLAIM * 3, PACKETS[0][:30], PACKETS[1][:-1]]
)


@given(
    st.lists(GARBAGE, min_size=len(PACKETS) + 1, max_size=len(PACKETS) + 1),
    st.lists(st.integers(1, 70), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=150)
def test_every_whole_packet_is_found_whatever_lies_around_it_and_however_it_is_cut(garbage, sizes):
    content, *rest = garbage
    for packet, behind in zip(PACKETS, rest, strict=True):
        content += packet + behind
    finder = PacketFinder()
    found = [packet for piece in pieces(content, sizes) for packet in finder.push(piece)]
    finder.finish()
    assert found == PACKETS
    assert finder.skipped == sum(len(x) for x in garbage)


@pytest.mark.parametrize("before", [b"", b"\xf0", CLAIM, CLAIM[:5]])
def test_a_packet_comes_with_its_last_byte(before):
    finder = PacketFinder()
    finder.push(before)
    for packet in PACKETS:
        assert finder.push(packet[:-1]) == []
        assert finder.push(packet[-1:]) == [packet]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), max_size=2),
)
@settings(deadline=None, max_examples=150)
def test_damage_costs_the_packets_it_hits_and_gives_no_wrong_token(flips, cuts):
    toks = speech(80)
    content = bytearray(b"".join(packets_of(toks)))
    for position, value in flips:
        content[position] = value
    for position, size in cuts:
        del content[position : position + size]
    finder, receiver = PacketFinder(), Receiver(bits=12, max_gap=80)
    chunks = [chunk for packet in finder.push(bytes(content)) for chunk in receiver.push(packet)]
    finder.finish()
    check_order(chunks, toks)
    assert len(toks_in(chunks)) == 80  # the end is behind the damage
    assert receiver.counts.corrupt == 0
    lost = 21 - receiver.counts.received
    assert lost <= len(flips) + sum(2 + size // 23 for _, size in cuts)


@given(st.binary(max_size=3000), st.integers(1, 1500))
@settings(deadline=None, max_examples=100)
def test_random_bytes_hold_no_packet(content, size):
    finder = PacketFinder()
    assert not [p for piece in pieces(content, [size]) for p in finder.push(piece)]
    finder.finish()
    assert finder.skipped == len(content)


def test_a_stream_that_ends_within_a_packet_has_one_less():
    finder = PacketFinder()
    assert finder.push(PACKETS[0] + PACKETS[1][:-1]) == PACKETS[:1]
    finder.finish()
    assert finder.skipped == len(PACKETS[1]) - 1
    finder.finish()
    assert finder.skipped == len(PACKETS[1]) - 1


@pytest.mark.parametrize("unit", [CLAIM, b"\xf0", b"\xf0\xca", b"\xf0\xca\x11\x20", b"\0"])
def test_no_bytes_claim_memory(unit):
    finder, piece = PacketFinder(), unit * (4096 // len(unit))
    tracemalloc.start()
    try:
        for _ in range(50):
            assert finder.push(piece) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000 < 50 * len(piece)
    assert 0 <= 50 * len(piece) - finder.skipped < 1037


def test_the_largest_packets_are_found():
    large = sealed_packet(bits=32, count=255, content=b"\x01" * 1020)
    finder = PacketFinder()
    assert len(large) == 1037
    assert [p for b in large + large for p in finder.push(bytes([b]))] == [large, large]


def test_packets_of_two_streams_can_share_one():
    ours, theirs = packets_of(speech(40)), packets_of(speech(40), stream=9)
    mixed = b"".join(a + b for a, b in zip(ours, theirs, strict=True))
    receiver = Receiver(bits=12)
    chunks = [c for packet in PacketFinder().push(mixed) for c in receiver.push(packet)]
    assert toks_in(chunks)[:40] == speech(40).tolist()
    assert seen(receiver.counts)["foreign"] == 10
