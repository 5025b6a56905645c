"""The receiver of packets: order, losses, counts, ends, time, and hostile packets."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalcodec.bitstream import Packetizer, Receiver, fill_with, repeat_last, zeros
from tests.packet_streams import (
    HEADER,
    STREAM,
    check_order,
    check_sums,
    concealed_in,
    packets_of,
    run,
    sealed_packet,
    seen,
    speech,
    toks_in,
)

# ------------------------------------------------------------------ order


@given(
    st.integers(0, 4),
    st.integers(1, 9),
    st.sampled_from([0, 2**32 - 30]),
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=3), min_size=11, max_size=11),
)
@settings(deadline=None, max_examples=150)
def test_every_token_comes_once_and_in_order_whatever_the_order_and_copies(
    reach, size, first, delays
):
    toks = speech(10 * size)
    packets = packets_of(toks, first=first, toks_per_packet=size)
    hello = Packetizer(HEADER, stream=STREAM, first=first).push(toks[:1])[0]
    arrivals = []
    for place, packet in enumerate(packets):
        delay, *copies = delays[place]
        delay = min(delay, reach)
        arrivals += [(place + later, packet) for later in (delay, *(delay + c for c in copies))]
    arrivals.sort(key=lambda arrival: arrival[0])
    receiver = Receiver(bits=12, max_delay=reach * size, max_gap=60 * size)
    chunks = run(receiver, [hello, *(packet for _, packet in arrivals)]) + receiver.finish()
    check_order(chunks, toks, start=first)
    assert toks_in(chunks) == toks.tolist() and receiver.has_ended
    check_sums(receiver.counts, packets=len(arrivals) + 1, chunks=chunks)
    assert receiver.counts.received == 12 and receiver.counts.duplicate == len(arrivals) - 11


@pytest.mark.parametrize(
    "max_delay, given_tokens, late",
    [(0, [4, 8, 4, 0], 1), (4, [4, 0, 12, 0], 1), (8, [4, 0, 0, 12], 0)],
)
def test_a_missing_packet_is_waited_for_as_long_as_others_may_wait(max_delay, given_tokens, late):
    first, second, third, fourth, _ = packets_of(speech(16))
    receiver = Receiver(bits=12, max_delay=max_delay)
    chunks = [receiver.push(packet) for packet in (first, third, fourth, second)]
    assert [len(toks_in(c)) for c in chunks] == given_tokens
    assert receiver.counts.late == late and receiver.counts.concealed == 4 * late
    assert receiver.counts.reordered == 1 - late


# ------------------------------------------------------------------ losses


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(0, 30),
    st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_whatever_is_lost_or_disordered_the_number_of_tokens_is_right(
    sizes, random, max_delay, knows_end
):
    toks, packets, sender = speech(sum(sizes)), [], Packetizer(HEADER, toks_per_packet=9)
    for part in toks.split(sizes):
        packets.append((sender.push(part)[-1], part.numel()))
    kept = [packet for packet in packets if random.random() < 0.6]
    random.shuffle(kept)
    arrivals = [packet for packet, _ in kept]
    if knows_end:
        arrivals.insert(random.randint(0, len(arrivals)), sender.finish()[0])
    receiver = Receiver(bits=12, max_delay=max_delay, max_gap=len(toks))
    chunks = run(receiver, arrivals) + receiver.finish()
    check_order(chunks, toks)
    check_sums(receiver.counts, packets=len(arrivals), chunks=chunks)
    if knows_end:
        assert len(toks_in(chunks)) == len(toks)
    if not receiver.counts.late:
        assert receiver.counts.toks == sum(size for _, size in kept)


@given(st.sets(st.integers(0, 19)), st.sampled_from([0, 4, 7, 16]))
@settings(deadline=None, max_examples=60)
def test_without_disorder_exactly_what_was_lost_is_concealed(lost, max_delay):
    toks = speech(80)
    packets = packets_of(toks)
    receiver = Receiver(bits=12, max_delay=max_delay, max_gap=80)
    arrivals = [packet for place, packet in enumerate(packets) if place not in lost]
    chunks = run(receiver, arrivals) + receiver.finish()
    check_order(chunks, toks)
    assert concealed_in(chunks) == [4 * place + i for place in sorted(lost) for i in range(4)]
    expected = {"received": 21 - len(lost), "toks": 80 - 4 * len(lost), "concealed": 4 * len(lost)}
    assert seen(receiver.counts) == {name: value for name, value in expected.items() if value}


def test_a_gap_repeats_the_last_packet_however_it_is_asked_for():
    toks = speech(18)
    packets = packets_of(toks, toks_per_packet=3)
    receiver = Receiver(bits=12)
    chunks = run(receiver, packets[:2])
    chunks += receiver.conceal(2) + receiver.conceal(2) + receiver.push(packets[5])
    a, b, c = toks[3:6].tolist()
    assert toks_in(chunks)[6:15] == [a, b, c] * 3
    assert toks_in(chunks)[15:] == toks[15:].tolist()


def test_every_gap_begins_with_the_first_token_of_the_packet_before_it():
    toks = speech(20)
    packets = packets_of(toks)
    receiver = Receiver(bits=12)
    chunks = run(receiver, packets[:1]) + receiver.conceal(2) + run(receiver, packets[1:2])
    chunks += run(receiver, packets[3:4])
    assert concealed_in(chunks) == [4, 5, 8, 9, 10, 11]
    assert toks_in(chunks)[4:6] == toks[:2].tolist()
    # The last four that were received: of the packet that came in part, and of the one before.
    assert toks_in(chunks)[8:12] == toks[2:4].tolist() + toks[6:8].tolist()


@pytest.mark.parametrize(
    "conceal, expected", [(zeros, [0] * 8), (fill_with(77), [77] * 8), (repeat_last, [0] * 8)]
)
def test_what_is_lost_before_anything_came_is_made_of_one_token(conceal, expected):
    receiver = Receiver(bits=12, conceal=conceal)
    assert toks_in(receiver.push(packets_of(speech(12))[2]))[:8] == expected


def test_a_concealment_of_another_length_is_an_error():
    receiver = Receiver(bits=12, conceal=lambda last, *, since, count: last)
    with pytest.raises(ValueError, match=r"must give \(4,\) tokens, got shape \(0,\)"):
        receiver.push(packets_of(speech(8))[1])


# ------------------------------------------------------------------ counts


def test_counts_are_exact():
    packets = packets_of(speech(40))  # 0 to 9, and the end as 10
    other = packets_of(speech(40), stream=STREAM + 1)
    receiver = Receiver(bits=12, max_delay=4, max_gap=20)
    run(receiver, [packets[0], packets[2], packets[1]])  # 1 is overtaken
    run(receiver, [packets[2], packets[4], packets[5], packets[3]])  # 2 again, 3 too late
    run(receiver, [packets[3], other[7], packets[6][:-1], b"", packets[6]])
    run(receiver, [sealed_packet(bits=11, first=28, count=1, content=bytes(2))])
    run(receiver, [packets[7], packets[8], packets[9], packets[10], packets[10], packets[0]])
    run(receiver, [sealed_packet(first=40, count=1, content=bytes(2))])  # behind the end
    assert seen(receiver.counts) == {
        "received": 10,  # all but 3
        "reordered": 1,
        "duplicate": 3,  # 2, 3 after it was late, 10
        "late": 1,
        "outside": 2,  # 0 by then, and what lies behind the end
        "foreign": 2,
        "corrupt": 2,
        "toks": 36,
        "concealed": 4,
    }
    assert str(receiver.counts) == (
        "36 tokens, 4 concealed; 10 packets received, 1 reordered, 3 duplicate, 1 late, "
        "2 outside, 2 foreign, 2 corrupt"
    )


def test_a_packet_that_is_late_in_part_is_used_as_far_as_it_is_in_time():
    toks = speech(12)
    packets = packets_of(toks)
    receiver = Receiver(bits=12)
    chunks = run(receiver, packets[:1]) + receiver.conceal(2) + run(receiver, packets[1:])
    check_order(chunks, toks)
    assert concealed_in(chunks) == [4, 5] and receiver.has_ended
    assert seen(receiver.counts) == {"received": 3, "late": 1, "toks": 10, "concealed": 2}


def test_packets_of_other_sizes_may_overlap():
    toks = speech(40)
    receiver = Receiver(bits=12, max_delay=40)
    small, large = packets_of(toks, toks_per_packet=4), packets_of(toks, toks_per_packet=7)
    chunks = run(receiver, [*small[1::2], *large[::2], *small[::2], *large[1::2]])
    check_order(chunks, toks)
    assert toks_in(chunks) == toks.tolist() and not receiver.counts.concealed


# ------------------------------------------------------------------ ends


def test_the_end_reveals_a_lost_tail():
    receiver = Receiver(bits=12)
    packets = packets_of(speech(20))
    chunks = run(receiver, [packets[0], packets[-1]])
    assert concealed_in(chunks) == list(range(4, 20)) and receiver.has_ended
    assert receiver.conceal(4) == receiver.finish() == []


def test_tokens_that_the_end_has_overtaken_are_waited_for():
    toks = speech(8)
    packets = packets_of(toks)
    receiver = Receiver(bits=12, max_delay=8)
    chunks = run(receiver, [packets[0], packets[2]])
    assert not receiver.has_ended
    chunks += run(receiver, [packets[1]])
    assert receiver.has_ended and toks_in(chunks) == toks.tolist()
    assert seen(receiver.counts) == {"received": 3, "reordered": 1, "toks": 8}


def test_the_last_packet_may_have_tokens_and_come_again():
    end = sealed_packet(kind=0x12, first=4, count=2, content=b"\xab\xc1\x23")
    receiver = Receiver(bits=12)
    chunks = run(receiver, [packets_of(speech(4))[0], end, end])
    assert toks_in(chunks)[4:] == [0xABC, 0x123] and receiver.has_ended
    assert seen(receiver.counts) == {"received": 2, "duplicate": 1, "toks": 6}


def test_without_an_end_finish_gives_what_waits():
    toks = speech(12)
    packets = packets_of(toks)
    receiver = Receiver(bits=12, max_delay=8)
    assert run(receiver, [packets[0], packets[2]])[-1].first == 0
    chunks = receiver.finish()
    assert concealed_in(chunks) == [4, 5, 6, 7] and toks_in(chunks)[4:] == toks[8:].tolist()
    assert receiver.has_ended and receiver.finish() == []
    assert receiver.push(packets[1]) == [] and receiver.counts.late == 1
    chunks = receiver.push(sealed_packet(first=12, count=1, content=bytes(2)))
    assert chunks[0].starts and not receiver.has_ended  # it was not the end


def test_a_stream_can_be_empty():
    receiver = Receiver(bits=12)
    assert receiver.conceal(4) == receiver.finish() == []
    assert run(receiver, packets_of(speech(0))) == [] and receiver.has_ended
    assert seen(receiver.counts) == {"received": 1}


def test_two_ends_cannot_both_be_true():
    packets = packets_of(speech(16))
    receiver = Receiver(bits=12, max_delay=16)
    run(receiver, packets[2:3])
    for first in (4, 14, 12, 20):  # before a token that came; possible; and two others
        receiver.push(sealed_packet(kind=0x12, first=first))
    assert seen(receiver.counts) == {"received": 2, "outside": 3}
    assert len(toks_in(receiver.finish())) == 14


# ------------------------------------------------------------------ time


def test_conceal_gives_the_tokens_that_are_there():
    toks = speech(16)
    packets = packets_of(toks)
    receiver = Receiver(bits=12, max_delay=12)
    chunks = run(receiver, [packets[0], packets[2]])
    chunks += receiver.conceal(6)
    assert concealed_in(chunks) == [4, 5, 6, 7] and len(toks_in(chunks)) == 10
    chunks += run(receiver, [packets[1], packets[3], packets[4]])
    check_order(chunks, toks)
    assert len(toks_in(chunks)) == 16 and receiver.counts.late == 1


def test_conceal_stops_at_the_longest_gap_and_the_next_packet_starts_anew():
    toks = speech(16)
    packets = packets_of(toks)
    receiver = Receiver(bits=12, max_gap=10)
    chunks = run(receiver, packets[:1])
    counts = [len(toks_in(receiver.conceal(4))) for _ in range(5)]
    assert counts == [4, 4, 2, 0, 0] and not receiver.has_ended
    again = run(receiver, packets[:1] + packets[1:3])  # one that is old, and it goes on
    assert [chunk.starts for chunk in again] == [True, False]
    assert toks_in(chunks + again) == toks[:12].tolist()
    assert receiver.counts.restarts == 1 and receiver.counts.outside == 1
    run(receiver, packets[:1])
    assert receiver.counts.duplicate == 1 and not receiver.counts.late


def test_conceal_stops_at_the_end():
    packets = packets_of(speech(12))
    receiver = Receiver(bits=12, max_delay=12)
    run(receiver, [packets[0], packets[-1]])
    assert len(toks_in(receiver.conceal(100))) == 8 and receiver.has_ended


# ------------------------------------------------------------------ hostile packets


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["flip", "delete", "insert", "truncate", "join"]),
            st.integers(0, 19),
            st.integers(0, 30),
            st.integers(1, 255),
        ),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=150)
def test_damage_never_gives_a_wrong_token(mutations):
    toks = speech(80)
    packets = packets_of(toks)
    for kind, place, position, value in mutations:
        packet = packets[place]
        before, after = packet[:position], packet[position:]
        packets[place] = {
            "flip": before + bytes([after[0] ^ value]) + after[1:] if after else before,
            "delete": before + after[1:],
            "insert": before + bytes([value]) + after,
            "truncate": before,
            "join": packet + packets[value % 20],
        }[kind]
    receiver = Receiver(bits=12, max_gap=80)
    chunks = run(receiver, packets)
    check_order(chunks, toks)
    assert len(toks_in(chunks)) == 80
    check_sums(receiver.counts, packets=21, chunks=chunks)


NUMBERS = st.integers(0, 400) | st.integers(2**32 - 100, 2**32 - 1) | st.integers(0, 2**32 - 1)
HOSTILE = st.builds(
    lambda kind, stream, first, count: sealed_packet(
        kind=kind,
        stream=stream,
        first=first,
        count=count,
        content=b"\1" * (28 + count if kind == 0x10 else -(-count * 12 // 8)),
    ),
    st.sampled_from([0x10, 0x11, 0x11, 0x12]),
    st.integers(0, 1),
    NUMBERS,
    st.integers(0, 9) | st.just(255),
)


@given(
    st.lists(HOSTILE | st.integers(0, 300), max_size=60),
    st.sampled_from([0, 5, 100]),
    st.sampled_from([1, 10, 300]),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=300)
def test_no_sound_packets_however_made_raise_or_claim_memory(calls, max_delay, max_gap, patience):
    receiver = Receiver(bits=12, max_delay=max_delay, max_gap=max_gap, patience=patience)
    chunks, packets = [], 0
    for call in calls:
        made = receiver.conceal(call) if isinstance(call, int) else receiver.push(call)
        assert len(toks_in(made)) <= 2 * (max_delay + 2 * max_gap) + (patience + 2) * 255
        packets += not isinstance(call, int)
        chunks += made
        check_sums(receiver.counts, packets=packets, chunks=chunks)
    chunks += receiver.finish()
    for before, after in zip(chunks, chunks[1:], strict=False):
        assert after.starts or after.first == before.first + before.toks.numel()
    check_sums(receiver.counts, packets=packets, chunks=chunks)


def test_what_a_receiver_holds_does_not_grow():
    receiver = Receiver(bits=12, max_delay=20, max_gap=20)
    packets = packets_of(speech(8000))
    sizes = []
    for start in range(0, 2000, 400):
        run(receiver, packets[start : start + 400 : 2])
        sizes.append(len(pickle.dumps(receiver)))
    assert max(sizes) - min(sizes) < 50  # the digits of its numbers
    run(receiver, [sealed_packet(stream=i, count=1, content=bytes(2)) for i in range(999)])
    run(receiver, [sealed_packet(kind=0x12, first=10**6 * i) for i in range(999)])
    assert len(pickle.dumps(receiver)) < max(sizes) + 500


@pytest.mark.parametrize("setting", ["bits", "max_delay", "max_gap", "patience"])
def test_settings_out_of_range_are_refused_by_name(setting):
    for value in (-1, 2**17, None):
        with pytest.raises(ValueError, match=f"{setting} must be an integer from"):
            Receiver(**{"bits": 12} | {setting: value})


def test_policies_leave_what_they_are_given_as_it_is():
    last = torch.tensor([1, 2, 3])
    made = repeat_last(last, since=1, count=4)
    made += 1
    assert made.tolist() == [3, 4, 2, 3] and last.tolist() == [1, 2, 3]


def test_end_is_known_before_all_that_comes_before_it():
    receiver, packets = Receiver(bits=12, max_delay=40), packets_of(speech(12))
    assert not receiver.knows_end
    run(receiver, packets[:1])
    assert not receiver.knows_end
    run(receiver, packets[2:])
    assert receiver.knows_end and not receiver.has_ended
    run(receiver, packets[1:2])
    assert receiver.knows_end and receiver.has_ended
