"""The receiver of packets: hellos, joining late, long gaps, and several streams."""

import pytest

from focalcodec.bitstream import ModelError, Packetizer, Receiver, check_model
from tests.packet_streams import (
    HEADER,
    STREAM,
    concealed_in,
    packets_of,
    run,
    sealed_packet,
    seen,
    speech,
    toks_in,
)

OTHER = 99  # another stream

# ------------------------------------------------------------------ hellos, joining, gaps


def test_hellos_tell_what_the_tokens_are_and_need_not_come_first():
    packets = Packetizer(HEADER, stream=STREAM, hello_every=2).push(speech(16))
    assert [p[2] for p in packets] == [16, 17, 17, 16, 17, 17]
    receiver = Receiver(bits=12)
    chunks = run(receiver, packets[1:3])
    assert receiver.header is None and len(toks_in(chunks)) == 8
    run(receiver, packets[3:4])
    header = receiver.header
    assert header == HEADER
    run(receiver, packets[:1] + packets[3:])
    assert receiver.header is header


def test_the_hello_of_another_codec_is_there_to_be_refused_and_its_tokens_are_not():
    receiver = Receiver(bits=13)
    assert run(receiver, Packetizer(HEADER, stream=STREAM).push(speech(8))) == []
    assert seen(receiver.counts) == {"received": 1, "foreign": 2}
    with pytest.raises(ModelError, match="bits is 12, not 13"):
        check_model(
            receiver.header,
            bits=13,
            codec_rate=16000,
            samples_per_tok=320,
            fingerprint=HEADER.fingerprint,
            model_id="ours",
        )


def test_a_hello_reveals_what_was_lost_before_it():
    packets = Packetizer(HEADER, stream=STREAM, hello_every=2).push(speech(16))
    receiver = Receiver(bits=12)
    assert concealed_in(receiver.push(packets[3])) == list(range(8))


def test_a_receiver_that_joins_late_begins_where_it_joins():
    toks = speech(400)
    packets = packets_of(toks)
    receiver = Receiver(bits=12, max_gap=50)
    chunks = run(receiver, packets[60:62] + packets[59:60] + packets[62:])
    assert chunks[0].starts and chunks[0].first == 240
    assert toks_in(chunks) == toks[240:].tolist()
    assert receiver.counts.late == 1 and receiver.counts.restarts == 0


def test_a_gap_up_to_the_longest_is_concealed():
    packets = packets_of(speech(80))
    receiver = Receiver(bits=12, max_gap=40)
    assert len(concealed_in(run(receiver, [packets[0], packets[11]]))) == 40


def test_behind_a_longer_gap_decoding_starts_anew_and_nothing_that_came_is_lost():
    toks = speech(80)
    packets = packets_of(toks)
    receiver = Receiver(bits=12, max_gap=39, max_delay=8, patience=3)
    assert len(toks_in(run(receiver, [packets[0], packets[2]]))) == 4
    assert run(receiver, [packets[13], packets[13], packets[13], packets[15]]) == []
    assert seen(receiver.counts)["outside"] == 4
    chunks = receiver.push(packets[14])
    assert [(c.first, c.starts, c.concealed) for c in chunks] == [
        (4, False, True),
        (8, False, False),
        (52, True, False),
        (56, False, False),
        (60, False, False),
    ]
    assert toks_in(chunks)[4:] == toks[8:12].tolist() + toks[52:64].tolist()
    assert seen(receiver.counts) == {
        "received": 5,
        "outside": 2,  # copies
        "restarts": 1,
        "toks": 20,
        "concealed": 4,
    }
    assert receiver.push(packets[12]) == [] and receiver.counts.late == 1


def test_one_packet_from_far_ahead_changes_nothing():
    toks = speech(40)
    packets = packets_of(toks)
    stray = sealed_packet(first=2**31 - 1, count=1, content=bytes(2))
    receiver = Receiver(bits=12)
    chunks = run(receiver, [x for packet in packets for x in (packet, stray, stray)])
    assert toks_in(chunks) == toks.tolist()
    assert seen(receiver.counts) == {"received": 11, "outside": 22, "toks": 40}


@pytest.mark.parametrize("back", [2**31, 2**31 - 1, 1000])
def test_sequence_numbers_are_compared_around_their_wrap(back):
    receiver = Receiver(bits=12)
    run(receiver, packets_of(speech(8), first=2**32 - 4)[:2])  # up to 4, once around
    old = sealed_packet(first=(4 - back) % 2**32, count=1, content=bytes(2))
    assert receiver.push(old) == [] and receiver.counts.outside == 1


# ------------------------------------------------------------------ several streams


def test_a_second_sender_does_not_disturb():
    toks = speech(80)
    ours, theirs = packets_of(toks), packets_of(speech(80) + 1, stream=OTHER)
    receiver = Receiver(bits=12)
    chunks = []
    for ours_next, theirs_next in zip(ours[:-1], theirs[:-1], strict=True):
        chunks += run(receiver, [ours_next, theirs_next])
    assert toks_in(chunks) == toks.tolist()
    assert seen(receiver.counts) == {"received": 20, "foreign": 20, "toks": 80}


def test_a_sender_that_was_started_again_loses_nothing():
    old, new = speech(40), speech(40) + 1
    receiver = Receiver(bits=12, max_delay=8)
    chunks = run(receiver, Packetizer(HEADER, stream=STREAM).push(old))  # and no end
    packets = Packetizer(HEADER, stream=OTHER).push(new)
    assert run(receiver, packets[:2]) == []
    assert receiver.header is not None
    again = run(receiver, packets[2:])
    assert again[0].starts and again[0].first == 0
    assert toks_in(chunks + again) == old.tolist() + new.tolist()
    assert seen(receiver.counts) == {"received": 22, "restarts": 1, "toks": 80}
    assert receiver.header == HEADER


def test_packets_that_do_not_belong_together_are_not_followed():
    toks = speech(40)
    receiver = Receiver(bits=12, patience=2)
    chunks = run(receiver, packets_of(toks)[:1])
    places = [(OTHER, 0), (OTHER + 1, 0), (OTHER, 2**30), (STREAM, 2**30), (STREAM, 2**29)]
    for stream, first in places:
        packet = sealed_packet(stream=stream, first=first, count=1, content=bytes(2))
        assert receiver.push(packet) == []
    chunks += run(receiver, packets_of(toks)[1:])
    assert toks_in(chunks) == toks.tolist()
    assert seen(receiver.counts) == {"received": 11, "foreign": 3, "outside": 2, "toks": 40}


@pytest.mark.parametrize("has_end", [True, False])
def test_behind_the_end_of_a_stream_the_next_one_begins_at_once(has_end):
    receiver = Receiver(bits=12)
    sender = Packetizer(HEADER, stream=STREAM)
    run(receiver, sender.push(speech(8)) + has_end * sender.finish())
    receiver.finish()
    assert receiver.has_ended and receiver.header == HEADER
    chunks = receiver.push(packets_of(speech(8), stream=OTHER)[0])
    assert chunks[0].starts and not receiver.has_ended and receiver.header is None
