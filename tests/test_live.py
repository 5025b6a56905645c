"""Live speech as a chain of iterators: what comes out is what the codec gives offline."""

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalcodec.live import Piece, cut, decoded, delivered, encoded, paced, resampled
from focalcodec.meter import Meter, Times
from focalcodec.resampling import resample
from tests.causal_codecs import make_live_codec

TO_16_KHZ = [(rate, 16_000) for rate in (8000, 16_000, 22_050, 44_100, 48_000)]


@pytest.fixture(scope="module")
def codec():
    return make_live_codec()


def pieces_of(x, sizes, *, starts=()):
    """Pieces of a row, of the given sizes in turn."""
    pieces, place = [], 0
    while place < x.shape[0]:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(Piece(x[place : place + size], float(place), len(pieces) in starts))
        place += size
    return pieces


def joined(pieces):
    return torch.cat([piece.content for piece in pieces])


def noise(size):
    return torch.rand(size) - 0.5


@settings(max_examples=60, deadline=None)
@given(
    rates=st.sampled_from([*TO_16_KHZ, (24_000, 48_000)]),
    size=st.integers(1, 30_000),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
def test_resampling_pieces_is_resampling_the_whole(rates, size, sizes):
    rates = dict(zip(("sample_rate", "new_sample_rate"), rates, strict=True))
    sig = torch.rand(size, generator=torch.Generator().manual_seed(size)) - 0.5
    sizes = [max(1, entry, size // 200) for entry in sizes]
    found = joined(resampled(pieces_of(sig, sizes), **rates))
    # float32: convolutions of other sizes sum in another order
    torch.testing.assert_close(found, resample(sig, **rates), rtol=0, atol=2e-6)


def test_resampled_pieces_are_not_held_back_and_name_their_arrival():
    sig, came = noise(48_000), []

    def source():
        for piece in pieces_of(sig, [960]):
            came.append(piece.content.shape[0])
            yield piece

    given_out = 0
    for piece in resampled(source(), sample_rate=48_000, new_sample_rate=16_000):
        if len(came) < 50:
            assert piece.arrived == sum(came[:-1])
            given_out += piece.content.shape[0]
            assert sum(came) / 3 - given_out < 10  # samples: the kernel's width is 7


@pytest.mark.parametrize("size", [1, 319, 1280, 1281, 12_800, 13_000])
@pytest.mark.parametrize("sizes", [(320,), (1000, 1, 3000), (50_000,)], ids=str)
def test_chunks_of_a_signal_are_the_codec_offline(codec, size, sizes):
    sig, meter = noise(size), Meter(0.08)
    pieces = list(encoded(pieces_of(sig, sizes), stream=codec.open_stream(), meter=meter))
    toks = codec.sig_to_toks(sig[None])[0]
    assert torch.equal(joined(pieces), toks)
    assert [piece.content.shape[0] for piece in pieces[:-1]] == [4] * (len(pieces) - 1)
    stream = codec.open_stream()
    found = joined(decoded(iter(pieces), stream=stream, meter=meter))
    torch.testing.assert_close(found, codec.toks_to_sig(toks[None])[0], rtol=0, atol=1e-5)


def test_tokens_in_any_pieces_decode_to_the_same(codec):
    toks = torch.randint(64, (41,))
    expected = codec.toks_to_sig(toks[None])[0]
    for sizes in ((1,), (3, 5), (41,)):
        pieces = pieces_of(toks, sizes)
        found = joined(decoded(pieces, stream=codec.open_stream(), meter=Meter(0.08)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_decoding_begins_anew_where_a_piece_starts(codec):
    """The tokens before it, an incomplete chunk included, are decoded to their end."""
    toks = torch.randint(64, (17,))
    pieces = pieces_of(toks, (7, 10), starts=(0, 1))
    found = joined(decoded(pieces, stream=codec.open_stream(), meter=Meter(0.08)))
    expected = [codec.toks_to_sig(part[None])[0] for part in toks.split((7, 10))]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


def test_signal_that_is_not_finite_is_refused(codec, monkeypatch):
    stream = codec.open_stream()
    monkeypatch.setattr(stream, "decode", lambda toks: torch.full((1, 10), math.nan))
    with pytest.raises(ValueError, match="not finite"):
        list(decoded(pieces_of(torch.zeros(4).long(), [4]), stream=stream, meter=Meter(1)))


def test_signal_is_cut_once_its_length_is_known():
    lengths = iter([None, None, 2500])
    pieces = pieces_of(torch.arange(3000.0), [1000])
    assert joined(cut(pieces, num_samples=lambda: next(lengths))).tolist() == list(range(2500))
    whole = joined(cut(pieces, num_samples=lambda: None))
    assert whole.shape[0] == 3000
    assert len(list(cut(pieces, num_samples=lambda: 2000))) == 2


def test_paced_pieces_come_when_they_are_spoken():
    start, waits = time.perf_counter(), []
    pieces = list(paced(pieces_of(noise(3000), [1000]), rate=10_000, wait=waits.append))
    spoken = [piece.arrived - pieces[0].arrived for piece in pieces]
    assert spoken == pytest.approx([0, 0.1, 0.2], abs=1e-6)
    assert pieces[0].arrived >= start + 0.1
    assert all(0 <= wait <= spoken[i] + 0.1 for i, wait in enumerate(waits))


def test_pieces_that_are_late_are_not_waited_for():
    waits = []
    for _ in paced(pieces_of(noise(3000), [1000]), rate=1_000_000, wait=waits.append):
        time.sleep(0.005)
    assert waits[1:] == [0, 0]


def test_a_chunk_counts_when_the_sink_comes_back_for_the_next():
    meter = Meter(0.25)

    def working():
        for seconds in (0.0, 0.3):
            arrived = time.perf_counter()
            with meter.working():
                time.sleep(seconds)
            yield Piece(torch.zeros(240), arrived)

    contents = delivered(working(), rate=24_000, meter=meter)
    assert next(contents).shape == (240,) and meter.processing.count == 0
    time.sleep(0.05)
    assert next(contents).shape == (240,) and meter.processing.count == 1
    assert meter.latency.quantile(1) >= 0.049
    assert next(contents, None) is None
    assert meter.seconds == pytest.approx(0.02) and meter.num_slow == 1
    assert meter.processing.total >= 0.3
    assert meter.real_time_factor == pytest.approx(meter.processing.total / 0.02)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(1e-5, 100), min_size=1, max_size=300),
    fraction=st.floats(0.01, 1),
)
def test_quantile_is_within_half_a_percent(values, fraction):
    times = Times()
    for value in values:
        times.add(value)
    exact = sorted(values)[math.ceil(fraction * len(values)) - 1]
    assert times.quantile(fraction) == pytest.approx(exact, rel=0.0051)
    assert times.count == len(values) and times.total == pytest.approx(sum(values))


def test_nothing_has_no_quantile_and_no_factor():
    assert math.isnan(Times().quantile(0.5)) and math.isnan(Meter(1).real_time_factor)
