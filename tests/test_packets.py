"""Packets: the format, what is refused, and the sender's half."""

import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalcodec.bitstream import (
    Packet,
    PacketError,
    Packetizer,
    Receiver,
    check_model,
    pack,
    packet_from_bytes,
    packet_to_bytes,
)
from tests.packet_streams import HEADER, STREAM, sealed_packet, seen, speech, toks_in

# This is the format: it never changes.
GOLDEN_TOKS = [0xABC, 0x005, 0xFFF]
GOLDEN_HELLO = bytes.fromhex(
    "f0 ca  10 0c  04 03 02 01  fe ff ff ff  07"  # magic, kind, bits, stream, first, n
    "80 bb 00 00  80 3e 00 00  40 01 00 00"  # sample_rate, codec_rate, samples_per_tok
    "00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff"  # fingerprint
    "74 69 6e 79 2f c3 a9"  # model id
    "2f 61 ec 82"  # crc
)
GOLDEN_PACKET = bytes.fromhex(
    "f0 ca  11 0c  04 03 02 01  fe ff ff ff  03"
    "ab c0 05 ff f0"  # 101010111100 000000000101 111111111111 and four zeros
    "bd 6b 5c 7d"
)
GOLDEN_END = bytes.fromhex("f0 ca  12 0c  04 03 02 01  01 00 00 00  00  37 0f 1f f1")


def same(a: Packet, b: Packet) -> bool:
    return torch.equal(a.toks, b.toks) and a._replace(toks=None) == b._replace(toks=None)


# ------------------------------------------------------------------ the format


def test_the_format_is_byte_for_byte_the_golden_packets():
    sender = Packetizer(HEADER, stream=STREAM, first=2**32 - 2)
    assert sender.push(torch.tensor(GOLDEN_TOKS)) == [GOLDEN_HELLO, GOLDEN_PACKET]
    assert sender.finish() == [GOLDEN_END]
    assert packet_from_bytes(GOLDEN_HELLO).header == HEADER
    packet = packet_from_bytes(GOLDEN_PACKET)
    assert packet.toks.tolist() == GOLDEN_TOKS
    assert (packet.stream, packet.first, packet.bits) == (STREAM, 2**32 - 2, 12)
    end = packet_from_bytes(GOLDEN_END)
    assert end.is_last and not end.toks.numel() and end.first == 1


@given(st.integers(1, 32), st.integers(1, 255), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_packet_comes_back(bits, count, number, is_last):
    toks = torch.randint(2**bits, (count,))
    packet = Packet(number, number, bits, toks, is_last=is_last)
    content = packet_to_bytes(packet)
    assert same(packet_from_bytes(content), packet)
    assert content[13:-4] == pack(toks, bits=bits)  # as in a file
    assert len(content) <= 1037


def test_a_hello_tells_what_a_header_does_but_the_length():
    hello = Packetizer(replace(HEADER, num_samples=999)).push(speech(1))[0]
    header = packet_from_bytes(hello).header
    assert header == HEADER
    codec = {name: getattr(HEADER, name) for name in ("bits", "codec_rate", "samples_per_tok")}
    check_model(header, **codec, fingerprint=HEADER.fingerprint, model_id="another/name")


def test_the_overhead_is_what_the_format_says():
    sender = Packetizer(replace(HEADER, model_id="x" * 38), toks_per_packet=4)
    hello, packet = sender.push(speech(4))
    assert (len(hello), len(packet)) == (83, 23)
    assert 8 * 23 / 0.08 == 2300 and 8 * (23 - 6) / 0.08 == 1700
    sender = Packetizer(HEADER, toks_per_packet=25)
    assert 8 * len(sender.push(speech(25))[1]) / 0.5 == 880


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("content", [GOLDEN_HELLO, GOLDEN_PACKET, GOLDEN_END])
def test_every_flipped_bit_is_noticed(content):
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        receiver = Receiver(bits=12)
        assert receiver.push(bytes(flipped)) == [] and receiver.finish() == []
        assert seen(receiver.counts) == {"corrupt": 1} and receiver.header is None


@pytest.mark.parametrize("content", [GOLDEN_HELLO, GOLDEN_PACKET, GOLDEN_END])
def test_no_part_of_a_packet_and_none_with_more_behind_it_is_one(content):
    for size in range(len(content)):
        with pytest.raises(PacketError, match=f"{size} bytes are no packet of version 1"):
            packet_from_bytes(content[:size])
    for more in (b"\0", content):
        with pytest.raises(PacketError, match="not a whole one"):
            packet_from_bytes(content + more)


CODEC = struct.pack("<III", 48000, 16000, 320) + bytes(16)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"magic": b"\xf0\xcb", "count": 1, "content": bytes(2)}, "no packet"),
        ({"kind": 0x21, "count": 1, "content": bytes(2)}, "no packet of version 1"),
        ({"kind": 0x13, "count": 1, "content": bytes(2)}, "no packet"),
        ({"bits": 0, "count": 1, "content": bytes(2)}, "no packet"),
        ({"bits": 33, "count": 1, "content": bytes(5)}, "no packet"),
        ({"count": 0}, "no packet"),
        ({"count": 2, "content": bytes(2)}, "not a whole one"),
        ({"kind": 0x10, "content": bytes(28)}, "sample_rate must be an integer from 1"),
        ({"kind": 0x10, "count": 1, "content": CODEC + b"\xff"}, "cannot be.*utf-8"),
    ],
)
def test_impossible_values_are_refused_in_spite_of_the_checksum(fields, message):
    with pytest.raises(PacketError, match=message):
        packet_from_bytes(sealed_packet(**fields))


def test_what_pads_the_last_byte_does_not_matter():
    packet = packet_from_bytes(sealed_packet(count=1, content=b"\xab\xcf"))
    assert packet.toks.tolist() == [0xABC]


@given(st.binary(max_size=60), st.integers(0, 13))
@settings(deadline=None, max_examples=200)
def test_random_bytes_are_counted_and_give_no_tokens(content, known):
    receiver = Receiver(bits=12)
    assert receiver.push(GOLDEN_PACKET[:known] + content) == []
    assert seen(receiver.counts) == {"corrupt": 1}


# ------------------------------------------------------------------ the sender


def test_packets_are_cut_from_each_call_and_nothing_waits():
    sender = Packetizer(HEADER, stream=STREAM, toks_per_packet=4, hello_every=2)
    assert sender.push(speech(0)) == []
    packets = [packet_from_bytes(p) for p in sender.push(speech(9)) + sender.push(speech(1))]
    found = [(p.header is not None, p.first, p.toks.numel()) for p in packets]
    assert found == [
        (True, 0, 0),
        (False, 0, 4),
        (False, 4, 4),
        (True, 8, 0),
        (False, 8, 1),
        (False, 9, 1),
    ]
    assert packet_from_bytes(sender.finish()[0]).first == 10


def test_the_same_calls_with_the_same_number_give_the_same_bytes():
    first, second = (Packetizer(HEADER, stream=7) for _ in range(2))
    assert first.push(speech(99)) == second.push(speech(99))
    assert first.finish() == second.finish() == second.finish()


def test_every_sender_draws_another_number_whatever_the_seed():
    numbers = set()
    for _ in range(9):
        torch.manual_seed(0)
        numbers.add(Packetizer(HEADER).stream)
    assert len(numbers) == 9


def test_tokens_that_do_not_fit_are_refused_and_the_stream_goes_on():
    sender = Packetizer(HEADER, stream=STREAM)
    with pytest.raises(ValueError, match="toks must be in"):
        sender.push(torch.tensor([1, 4096]))
    with pytest.raises(ValueError, match=r"must be \(L,\)"):
        sender.push(torch.zeros(1, 4, dtype=torch.int64))
    receiver = Receiver(bits=12)
    chunks = [chunk for p in sender.push(speech(8)) for chunk in receiver.push(p)]
    assert toks_in(chunks) == speech(8).tolist()


def test_behind_its_end_a_stream_has_no_tokens():
    sender = Packetizer(HEADER)
    sender.finish()
    with pytest.raises(ValueError, match="the stream has ended; make another Packetizer"):
        sender.push(speech(1))


@pytest.mark.parametrize(
    "setting, value",
    [
        ("stream", -1),
        ("stream", 2**32),
        ("first", 2**32),
        ("first", 0.5),
        ("toks_per_packet", 0),
        ("toks_per_packet", 256),
        ("hello_every", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be an integer from"):
        Packetizer(HEADER, **{setting: value})
