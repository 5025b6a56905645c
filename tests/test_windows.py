"""Long signals: one window gives what the whole signal gives, several keep lengths and seams."""

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalcodec.conversion import knn
from focalcodec.windows import (
    DEFAULT,
    Windows,
    convert_blocks,
    decode_blocks,
    encode_blocks,
    resynth_blocks,
)

FACTORS = pytest.mark.parametrize(
    "factors", [(1, 1, 1), (2, 1, 1), (2, 2, 1)], ids=["50hz", "25hz", "12_5hz"]
)
SMALL = Windows(size=6400, left=2560, right=1280, overlap=250)
CHUNKS = Windows.chunks(4000, left=5120)  # no whole number of tokens at 25 and 12.5 Hz


def blocks_of(x, size):
    return iter(x.split(size))


def encode(codec, sig, windows, *, block=999):
    return torch.cat(list(encode_blocks(codec, blocks_of(sig, block), windows=windows)))


def decode(codec, toks, windows, *, block=7, **arguments):
    return torch.cat(
        list(decode_blocks(codec, blocks_of(toks, block), windows=windows, **arguments))
    )


@pytest.fixture
def local_codec(make_codec):
    """Codec without global layers: windows with enough context must equal the whole signal."""

    def make(factors):
        codec = make_codec(factors=factors)
        for part in (codec.compressor, codec.decompressor):
            for layer in part.layers:
                # The last gate belongs to the average over time: switched off.
                modulation = layer["focal_block"].modulation
                with torch.no_grad():
                    modulation.in_proj.weight[-1].zero_()
                    modulation.in_proj.bias[-1].zero_()
        return codec.requires_grad_(False)

    return make


@FACTORS
def test_one_window_gives_the_tokens_and_the_signal_of_the_whole(make_codec, factors):
    codec = make_codec(encoder="wavlm", factors=factors).requires_grad_(False)
    for size in (1, 319, 5000, SMALL.size + SMALL.right - 1):
        sig = 0.1 * torch.randn(size)
        toks = encode(codec, sig, SMALL)
        assert torch.equal(toks, codec.sig_to_toks(sig[None])[0])
        # Fewer tokens than those of size + right are one window.
        if len(toks) < SMALL.size // codec.samples_per_tok:
            whole = codec.toks_to_sig(toks[None], num_samples=size)[0]
            assert torch.equal(decode(codec, toks, SMALL, num_samples=size), whole)


@FACTORS
def test_windows_equal_the_whole_signal_where_the_context_covers_the_receptive_field(
    local_codec, factors
):
    codec = local_codec(factors)
    wide = Windows(size=16000, left=48000, right=48000, overlap=250)
    sig = 0.1 * torch.randn(165_001)
    toks = encode(codec, sig, wide)
    assert torch.equal(toks, codec.sig_to_toks(sig[None])[0])
    rec_sig = decode(codec, toks, wide, num_samples=len(sig))
    whole = codec.toks_to_sig(toks[None], num_samples=len(sig))[0]
    torch.testing.assert_close(rec_sig, whole, atol=1e-5, rtol=1e-5)


@FACTORS
@pytest.mark.parametrize("windows", [SMALL, CHUNKS], ids=["windows", "chunks"])
def test_every_length_keeps_its_tokens_and_samples(make_codec, factors, windows):
    codec = make_codec(factors=factors).requires_grad_(False)
    edge = windows.size + windows.right
    for size in (edge - 1, edge, edge + 1, 2 * windows.size, 3 * windows.size + 320, 25_601):
        sig = 0.1 * torch.randn(size)
        toks = encode(codec, sig, windows)
        assert len(toks) == codec.num_toks(size)
        assert len(decode(codec, toks, windows)) == len(toks) * codec.samples_per_tok
        assert len(decode(codec, toks, windows, num_samples=size)) == size
        assert len(decode(codec, toks, windows, num_samples=5)) == 5
        pieces = list(resynth_blocks(codec, blocks_of(sig, 1600), windows=windows))
        assert sum(len(piece) for piece in pieces) == size
        assert torch.equal(torch.cat(pieces), decode(codec, toks, windows, num_samples=size))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 40_000),
    blocks=st.lists(st.integers(0, 9000), min_size=1, max_size=8),
    window=st.integers(1280, 9000),
    left=st.integers(1280, 6000),
    right=st.integers(0, 3000),
)
def test_blocks_of_any_sizes_give_the_same(tiny, size, blocks, window, left, right):
    windows = Windows(window, left, right, overlap=100)
    sig = 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size))
    pieces = [piece for piece in sig.split([*_fit(blocks, size)])]
    toks = torch.cat(list(encode_blocks(tiny, pieces, windows=windows)))
    assert torch.equal(toks, encode(tiny, sig, windows, block=size))
    whole = decode(tiny, toks, windows, block=len(toks), num_samples=size)
    assert len(whole) == size and bool(whole.isfinite().all())
    pieces = toks.split([*_fit(blocks, len(toks))])
    again = list(decode_blocks(tiny, pieces, windows=windows, num_samples=size))
    assert torch.equal(torch.cat(again), whole)


@pytest.fixture(scope="module")
def tiny():
    from tests.conftest import _make_codec

    torch.manual_seed(0)
    return _make_codec(factors=(2, 1, 1)).requires_grad_(False)


def _fit(sizes, total):
    """Sizes that sum to ``total``: the given ones as far as they go, then the rest."""
    for size in sizes:
        size = min(size, total)
        total -= size
        yield size
    yield total


def test_seams_are_linear_cross_fades(make_codec):
    codec = make_codec().requires_grad_(False)
    windows = Windows(size=3200, left=1600, right=0, overlap=250)
    toks = torch.randint(codec.codebook_size, (20,))
    first = codec.toks_to_sig(toks[None, :10])[0]
    second = codec.toks_to_sig(toks[None, 5:])[0]  # five tokens of left context
    fade = (torch.arange(250) + 0.5) / 250
    seam = first[-250:] * (1 - fade) + second[1350:1600] * fade
    expected = torch.cat([first[:-250], seam, second[1600:]])
    torch.testing.assert_close(decode(codec, toks, windows), expected, atol=1e-6, rtol=1e-5)


def test_chunks_never_wait_for_later_samples(make_codec):
    codec = make_codec().requires_grad_(False)
    windows = Windows.chunks(3200, left=3200)
    taken = 0

    def blocks():
        nonlocal taken
        for block in sig.split(3200):
            taken += 1
            yield block

    sig = 0.1 * torch.randn(16000)
    for number, toks in enumerate(encode_blocks(codec, blocks(), windows=windows), start=1):
        assert (taken, len(toks)) == (number, 10)
        # What has been said depends on nothing that comes later.
        heard = sig[max(number * 3200 - 6400, 0) : number * 3200]
        assert torch.equal(toks, codec.sig_to_toks(heard[None])[0, -10:])
    taken, pieces = 0, []
    for piece in resynth_blocks(codec, blocks(), windows=windows):
        pieces.append(len(piece))
        assert sum(pieces) >= min(taken * 3200 - 320, 16000)  # all but the last token's samples
    assert sum(pieces) == 16000


def test_memory_is_bounded_by_the_window(make_codec):
    codec = make_codec().requires_grad_(False)
    alive = []  # how many blocks the encoder still holds, after each window

    def blocks():
        for _ in range(200):
            block = 0.1 * torch.randn(1600)
            made.append(weakref.ref(block))
            yield block

    made = []
    for _ in encode_blocks(codec, blocks(), windows=SMALL):
        alive.append(sum(ref() is not None for ref in made))
    assert len(made) == 200
    assert max(alive) <= 1 + (SMALL.left + SMALL.size + SMALL.right) // 1600


def test_converted_windows_are_the_neighbours_of_each_frame(make_codec):
    codec = make_codec(encoder="wavlm").requires_grad_(False)
    sig = 0.1 * torch.randn(1, 4000)
    matching_set = codec.sig_to_feats(0.1 * torch.randn(1, 9000))[0]
    toks = codec.sig_to_toks(sig)
    pieces = convert_blocks(codec, iter(toks), matching_set=matching_set, topk=3, num_samples=4000)
    feats = knn(codec.toks_to_qfeats(toks), matching_set, topk=3)
    assert torch.equal(torch.cat(list(pieces)), codec.feats_to_sig(feats, num_samples=4000)[0])


def test_another_output_rate_keeps_seams_and_length(make_codec):
    from focalcodec import FocalCodec

    parts = dict(make_codec().named_children())
    parts["decoder"] = make_codec(hop_length=480).decoder
    parts["decoder"].sample_rate = 24000
    codec = FocalCodec(**parts).eval().requires_grad_(False)
    sig = 0.1 * torch.randn(20_001)
    pieces = list(resynth_blocks(codec, blocks_of(sig, 1600), windows=SMALL))
    assert sum(len(piece) for piece in pieces) == 20_001 * 3 // 2


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (Windows(size=639), "one token has 640"),
        (Windows(left=-1), "at least 0"),
        (Windows.chunks(6400, overlap=7000), "must not exceed the whole tokens"),
        (Windows.chunks(6400, left=639), "must not exceed the whole tokens"),
    ],
    ids=["size", "negative", "overlap", "left"],
)
def test_windows_that_do_not_fit_are_refused(make_codec, windows, message):
    codec = make_codec(factors=(2, 1, 1))
    with pytest.raises(ValueError, match=message):
        next(encode_blocks(codec, [torch.zeros(1000)], windows=windows))
    with pytest.raises(ValueError, match=message):
        next(decode_blocks(codec, [torch.zeros(3, dtype=torch.long)], windows=windows))


def test_bad_signals_are_refused(make_codec):
    codec = make_codec()
    for blocks, message in [
        ([], "at least one sample"),
        ([torch.zeros(0)], "at least one sample"),
        ([torch.zeros(1, 400)], "one-dimensional"),
        ([torch.zeros(400), torch.full((2,), math.nan)], "2 values that are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(encode_blocks(codec, blocks))
    with pytest.raises(ValueError, match="at least one token"):
        list(decode_blocks(codec, []))
    with pytest.raises(ValueError, match="3 tokens cover only 960 samples"):
        list(decode_blocks(codec, [torch.zeros(3, dtype=torch.long)], num_samples=961))
    assert DEFAULT == Windows(480_000, 48_000, 48_000, 250)
