"""Streams: any way of cutting the input gives what the whole gives, and no mistake does harm."""

import math
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from focalcodec import FocalCodec
from tests.causal_codecs import CODECS, cut, make_causal_codec, noise

# Of the peak: float32 sums in another order in chunks than in the whole, measured up to 2e-6.
TOLERANCE = 1e-5
EVERY_CODEC = pytest.mark.parametrize("name", CODECS)
SIG = noise(2, 700)  # 70 frames, several times what any part of the codecs remembers
SIZES = st.lists(st.integers(1, 150), min_size=1, max_size=30)
_MADE = {}


def codec_of(name):
    if name not in _MADE:
        _MADE[name] = make_causal_codec(**CODECS[name])
    return _MADE[name]


def encode(stream, sig, sizes):
    toks = [stream.encode(piece) for piece in cut(sig, sizes)]
    return torch.cat([*toks, stream.flush().toks], dim=1)


def decode(stream, toks, sizes):
    sig = [stream.decode(piece) for piece in cut(toks, sizes)]
    return torch.cat([*sig, stream.flush().sig], dim=1)


def assert_near(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max()


def assert_same_state(stream, expected):
    state = stream.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.fixture
def codec():
    return codec_of("published")


@pytest.fixture
def stream(codec):
    """Stream of two rows in the middle of a chunk of samples and of one of tokens."""
    stream = codec.open_stream(batch_size=2)
    stream.encode(SIG[:, :130])
    stream.decode(codec.sig_to_toks(SIG)[:, :9])
    return stream


def go_on(stream):
    """Take what a stream gives from here to its end."""
    toks = stream.codec.sig_to_toks(SIG)
    got = [stream.encode(SIG[:, 130:333]), stream.decode(toks[:, 9:30]), *stream.flush()]
    return got


def assert_goes_on(stream, expected):
    """Exactly, not nearly: it is the same arithmetic."""
    assert all(torch.equal(*pair) for pair in zip(go_on(stream), expected, strict=True))


# Any way of cutting


@EVERY_CODEC
@settings(max_examples=12, deadline=None)
@given(size=st.integers(1, 700), sizes=SIZES, others=SIZES)
def test_any_way_of_cutting_the_signal_gives_the_tokens_of_the_whole(name, size, sizes, others):
    codec, sig = codec_of(name), SIG[:, :size]
    stream = codec.open_stream(batch_size=2)
    toks = encode(stream, sig, sizes)
    assert torch.equal(toks, codec.sig_to_toks(sig))
    stream.reset()
    assert torch.equal(encode(stream, sig, others), toks)


@EVERY_CODEC
@settings(max_examples=12, deadline=None)
@given(size=st.integers(1, 70), sizes=SIZES, others=SIZES)
def test_any_way_of_cutting_the_tokens_gives_the_signal_of_the_whole(name, size, sizes, others):
    codec = codec_of(name)
    toks = codec.sig_to_toks(SIG)[:, :size]
    stream = codec.open_stream(batch_size=2)
    sig = decode(stream, toks, sizes)
    assert_near(sig, codec.toks_to_sig(toks))
    stream.reset()
    assert torch.equal(decode(stream, toks, others), sig)  # not by a bit


@EVERY_CODEC
def test_features_of_a_stream_are_those_of_the_whole(name):
    """Tokens could hide what is wrong by less than their distance."""
    codec, feats = make_causal_codec(**CODECS[name]), []
    codec.encoder.register_forward_hook(lambda *call: feats.append(call[2]))
    stream = codec.open_stream(batch_size=2)
    toks = encode(stream, SIG, [stream.chunk_size])
    assert len(feats) == math.ceil(SIG.shape[1] / stream.chunk_size)
    assert_near(torch.cat(feats, dim=1), codec.sig_to_feats(SIG))
    # Other tests compare tokens, which means nothing where all are alike or stand on a border.
    assert len(toks.unique()) > 5 and codec.sig_to_lats(SIG).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("name", "chunk_size", "chunk_toks"),
    [("published", 40, 4), ("25hz", 60, 3), ("12.5hz", 40, 1), ("no lookahead", 10, 1)],
)
def test_a_chunk_is_whole_frames_and_tokens_of_all_parts(name, chunk_size, chunk_toks):
    codec = codec_of(name)
    stream = codec.open_stream()
    assert (stream.chunk_size, stream.chunk_toks) == (chunk_size, chunk_toks)
    assert codec.latency_ms == pytest.approx(1000 * chunk_size / 16000)
    assert stream.encode(SIG[:1, : chunk_size - 1]).shape == (1, 0)
    assert stream.encode(SIG[:1, :1]).shape == (1, chunk_toks)
    assert stream.decode(torch.ones(1, 1, dtype=torch.int64)).shape == (
        1,
        chunk_size * codec.sample_rate_output // 16000 if chunk_toks == 1 else 0,
    )


def test_encoding_and_decoding_in_one_place_is_resynthesis():
    """As the docstring of flush says."""
    codec = codec_of("25hz")
    stream = codec.open_stream(batch_size=2)
    sig = [
        stream.decode(toks) for piece in cut(SIG, [99]) if (toks := stream.encode(piece)).numel()
    ]
    toks = stream.flush().toks
    sig += [stream.decode(toks), stream.flush().sig]
    assert_near(torch.cat(sig, dim=1)[:, : SIG.shape[1] * 3 // 2], codec(SIG).rec_sig)


def test_a_codec_in_double_precision_streams():
    codec = make_causal_codec(**CODECS["published"]).double()
    stream, sig = codec.open_stream(batch_size=2), SIG.double()
    toks = encode(stream, sig, [77])
    assert torch.equal(toks, codec.sig_to_toks(sig))
    decoded, expected = decode(stream, toks, [5]), codec.toks_to_sig(toks)
    assert decoded.dtype == torch.float64
    assert (decoded - expected).abs().max() <= 1e-13


# Rows


@EVERY_CODEC
def test_a_row_gives_what_it_gives_alone(name):
    codec = codec_of(name)
    sig = torch.cat([noise(3, 400), torch.zeros(1, 400)])
    stream = codec.open_stream(batch_size=4)
    toks = encode(stream, sig, [90])
    rec_sig = decode(stream, toks, [7])
    for row in range(4):
        alone = codec.open_stream()
        assert torch.equal(encode(alone, sig[row : row + 1], [90]), toks[row : row + 1])
        assert_near(rec_sig[row : row + 1], decode(alone, toks[row : row + 1], [7]))


def test_reset_begins_anew(stream):
    stream.reset()
    stream.flush()
    stream.encode(SIG[:, :11])
    stream.reset()
    toks = encode(stream, SIG, [100])
    assert torch.equal(toks, stream.codec.sig_to_toks(SIG))
    stream.reset()  # flush had ended them
    assert torch.equal(encode(stream, SIG, [100]), toks)


@pytest.mark.parametrize("rows", [[1], [0, 2], [0, 1, 2], []])
def test_rows_begin_anew_while_others_go_on(codec, rows):
    sig = noise(3, 800)
    toks = codec.sig_to_toks(sig)
    stream = codec.open_stream(batch_size=3)
    stream.encode(sig[:, :320])
    stream.decode(toks[:, :32])
    stream.reset(row for row in rows)  # any iterable
    got = encode(stream, sig[:, 320:], [50])
    decoded = decode(stream, toks[:, 32:], [50])
    for row in range(3):
        one = slice(row, row + 1)
        if row in rows:
            expected = codec.sig_to_toks(sig[one, 320:])
            rec_sig = codec.toks_to_sig(toks[one, 32:])
        else:
            expected, rec_sig = toks[one, 32:], codec.toks_to_sig(toks[one])[:, 32 * 15 :]
        assert torch.equal(got[one], expected)
        assert_near(decoded[one], rec_sig)


def test_rows_begin_anew_between_chunks_only(stream):
    expected = go_on(stream.codec.open_stream(batch_size=2)), stream.state_dict()
    with pytest.raises(ValueError, match="between chunks only; 10 samples and 1 tokens of a chunk"):
        stream.reset([0])
    assert_same_state(stream, expected[1])
    stream.flush()  # ends both in the middle of a chunk
    with pytest.raises(ValueError, match="between chunks only"):
        stream.reset([0])


@pytest.mark.parametrize("rows", [[2], [0, -1], [0, 1, 7]])
def test_unknown_rows_are_refused_without_a_change(codec, rows):
    stream = codec.open_stream(batch_size=2)
    stream.encode(SIG[:, :80])
    expected = stream.state_dict()
    with pytest.raises(ValueError, match=rf"rows must be from 0 to 1, .*\[{rows[-1]}\]"):
        stream.reset(rows)
    assert_same_state(stream, expected)


def test_flush_ends_only_what_is_in_the_middle_of_a_chunk(codec):
    stream = codec.open_stream(batch_size=2)
    stream.encode(SIG[:, :80])
    stream.decode(codec.sig_to_toks(SIG)[:, :5])
    toks, sig = stream.flush()
    assert toks.shape == (2, 0) and sig.shape == (2, 15)
    assert [x.shape for x in stream.flush()] == [(2, 0), (2, 0)]
    stream.encode(SIG[:, 80:])  # still goes on
    with pytest.raises(RuntimeError, match="flush has ended these streams; .* reset"):
        stream.decode(toks.new_zeros(2, 1))
    stream.encode(SIG[:, :1])
    stream.flush()
    with pytest.raises(RuntimeError, match="flush has ended these streams; .* reset"):
        stream.encode(SIG[:, 80:])


# Saving


def test_a_stream_goes_on_from_a_file(stream, tmp_path):
    save_file(stream.state_dict(), tmp_path / "stream.safetensors")
    expected = go_on(stream)
    again = make_causal_codec(**CODECS["published"]).open_stream(batch_size=2)
    again.load_state_dict(load_file(tmp_path / "stream.safetensors"))
    assert_goes_on(again, expected)


@pytest.mark.parametrize("moment", ["new", "ended", "row reset"])
def test_a_state_of_any_moment_can_be_taken_and_given(codec, moment):
    stream, again = (codec.open_stream(batch_size=2) for _ in range(2))
    if moment != "new":
        stream.encode(SIG[:, :80])
    if moment == "row reset":
        stream.reset([1])
    if moment == "ended":
        stream.encode(SIG[:, :3])
        stream.flush()
    again.encode(SIG[:, :330])
    again.load_state_dict(stream.state_dict())
    assert_same_state(again, stream.state_dict())
    if moment == "ended":
        with pytest.raises(RuntimeError, match="flush has ended"):
            again.encode(SIG)
    else:
        assert torch.equal(encode(again, SIG, [33]), encode(stream, SIG, [80]))


def test_a_state_is_a_copy(stream):
    state = stream.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    expected = go_on(stream)
    assert all(torch.equal(state[key], kept[key]) for key in state)
    stream.load_state_dict(state)
    go_on(stream)
    assert all(torch.equal(state[key], kept[key]) for key in state)
    stream.load_state_dict(state)
    assert_goes_on(stream, expected)


def other_state(name="published", *, batch_size=2, double=False, **changes):
    codec = make_causal_codec(**CODECS[name] | changes)
    stream = (codec.double() if double else codec).open_stream(batch_size=batch_size)
    sig = SIG.double() if double else SIG
    stream.encode(sig[:1].expand(batch_size, -1)[:, :130])
    return stream.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda own: other_state("vocos"), "of a stream of another codec"),
        (lambda own: other_state(seed=1), "of a stream of another codec"),
        (lambda own: other_state(pool_size=8), "of a stream of another codec"),
        (lambda own: other_state(double=True), "in another precision"),
        (lambda own: other_state(batch_size=3), "sig must have 2 rows.*, got .3, 10."),
        (lambda own: {}, "no state of a stream: codec, ended, sig, toks is missing"),
        (lambda own: own | {"sig": own["sig"][0]}, r"sig holds less than a chunk of 40, got .*10,"),
        (lambda own: own | {"toks": torch.zeros(2, 4)}, "toks holds less than a chunk of 4, got"),
        (lambda own: own | {"encoding.x": own["sig"]}, "1 names differ, such as x"),
        (
            lambda own: {k: v for k, v in own.items() if "decoder.backbone.embed" not in k},
            "2 names differ, such as decoder.backbone.embedding.context.frames",
        ),
        (
            lambda own: own | {k: v[:, 1:] for k, v in own.items() if k.endswith("frames")},
            "encoder.context holds 2 streams of 16 frames, got frames of shape",
        ),
        (
            lambda own: own | {k: v[:1] for k, v in own.items() if k.endswith("num_seen")},
            "encoder.context holds 2 streams of 16 frames, .*num_seen of shape",
        ),
    ],
    ids=[
        *("decoder", "weights", "sizes", "precision", "batch", "empty", "rows", "toks", "more"),
        *("fewer", "frames", "counts"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_without_a_change(stream, make, message):
    before = stream.state_dict()
    with pytest.raises(ValueError, match=message):
        stream.load_state_dict(make(dict(before)))
    assert_same_state(stream, before)


# Mistakes


@pytest.mark.parametrize(
    ("method", "x", "message"),
    [
        ("encode", torch.zeros(2, 0), "at least one sample"),
        ("encode", torch.zeros(40), "add a batch axis"),
        ("encode", torch.zeros(2, 1, 40), "mix the channels down"),
        ("encode", torch.zeros(3, 40), r"sig must have 2 rows, .*batch_size=3\) makes as many"),
        ("encode", torch.zeros(2, 40).double(), "own precision torch.float32, got torch.float64"),
        ("encode", torch.zeros(2, 40, dtype=torch.int16), "scale integers"),
        ("encode", torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), "1 values that are not finite"),
        ("encode", torch.full((2, 99), -torch.inf), "198 values that are not finite"),
        ("decode", torch.zeros(2, 0, dtype=torch.int64), "at least one token"),
        ("decode", torch.zeros(4, dtype=torch.int64), "add a batch axis"),
        ("decode", torch.zeros(1, 4, dtype=torch.int64), "toks must have 2 rows"),
        ("decode", torch.tensor([[0, 1], [2, 32]]), "32"),
        ("decode", torch.tensor([[0, 1], [2, -1]]), "-1"),
        ("decode", torch.zeros(2, 4), "float32"),
    ],
)
def test_what_is_refused_changes_nothing(stream, method, x, message):
    before = stream.state_dict()
    with pytest.raises(ValueError, match=message):
        getattr(stream, method)(x)
    assert_same_state(stream, before)
    expected = go_on(stream)
    stream.load_state_dict(before)
    assert_goes_on(stream, expected)


def failing_once(module, *, at_call, error):
    """Let a module raise at one of its calls."""
    calls = iter(range(at_call + 1))

    def fail(*_):
        if next(calls, None) == at_call:
            raise error

    module.register_forward_hook(fail)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("at_call", [0, 1, 4], ids=["first", "second", "last"])
@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("encoder.feature_extractor", "encode"),
        ("encoder.encoder.layers.1.attention", "encode"),
        ("compressor.layers.1.focal_block.modulation.layers.0.0", "encode"),
        ("quantizer", "encode"),
        ("decompressor.refiner", "decode"),
        ("decoder.backbone.layers.0.dwconv", "decode"),
        ("decoder", "decode"),
    ],
)
def test_what_failed_can_be_repeated(part, method, at_call, error):
    """Of a call of 5 chunks, whichever fails."""
    codec = make_causal_codec(**CODECS["published"])
    stream = codec.open_stream(batch_size=2)
    x = SIG if method == "encode" else codec.sig_to_toks(SIG)
    size = {"encode": 10, "decode": 1}[method]
    run = getattr(stream, method)
    run(x[:, : 13 * size])
    before = stream.state_dict()
    expected = run(x[:, 13 * size : 33 * size]), stream.state_dict()
    stream.load_state_dict(before)
    failing_once(codec.get_submodule(part), at_call=at_call, error=error)
    with pytest.raises(type(error)):
        run(x[:, 13 * size : 33 * size])
    assert_same_state(stream, before)
    assert torch.equal(run(x[:, 13 * size : 33 * size]), expected[0])
    assert_same_state(stream, expected[1])


@pytest.mark.parametrize("part", ["compressor", "decoder"])
def test_an_end_that_failed_can_be_repeated(part):
    codec = make_causal_codec(**CODECS["published"])
    stream = codec.open_stream(batch_size=2)
    stream.encode(SIG[:, :97])
    stream.decode(codec.sig_to_toks(SIG)[:, :6])
    before = stream.state_dict()
    expected = stream.flush()
    stream.load_state_dict(before)
    failing_once(codec.get_submodule(part), at_call=0, error=RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.flush()
    assert_same_state(stream, before)
    assert all(torch.equal(*pair) for pair in zip(stream.flush(), expected, strict=True))


def test_features_that_overflow_are_refused_without_a_change(stream):
    before = stream.state_dict()
    loud = SIG.clone()
    loud[1, 300] = 3e38
    with pytest.raises(ValueError, match=r"the encoder overflows: .* peaks at 3e\+38, scale it"):
        stream.encode(loud)
    assert_same_state(stream, before)
    expected = go_on(stream)
    stream.load_state_dict(before)
    assert_goes_on(stream, expected)


def test_a_codec_with_full_context_is_refused_by_name(make_codec):
    message = "cannot stream: encoder, compressor, decompressor, decoder need what comes later"
    with pytest.raises(ValueError, match=message):
        make_codec().open_stream()
    causal, other = codec_of("vocos"), make_codec(encoder="wavlm", dim=12, code_dim=5)
    assert causal.causal and not other.causal and other.latency_ms is None
    mixed = FocalCodec(
        make_causal_codec(convolutions={}).encoder,
        *[part for name, part in causal.named_children() if name != "encoder"][:-1],
        other.decoder,
    )
    with pytest.raises(ValueError, match="cannot stream: decoder need what comes later"):
        mixed.open_stream()
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        causal.open_stream(batch_size=0)


# For hours


def test_memory_of_the_states_does_not_grow(codec):
    stream, sizes = codec.open_stream(batch_size=2), set()
    for _ in range(4):
        stream.encode(SIG)
        stream.decode(codec.sig_to_toks(SIG)[:, :88])
        sizes.add(stream.num_bytes())
    assert len(sizes) == 1 and 0 < sizes.pop() < 50_000


def resident_bytes():
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc of Linux")
def test_two_minutes_give_the_tokens_of_the_whole_in_the_same_memory():
    """1500 chunks of 80 ms in 5 seconds; an hour of them takes 30 times as long."""
    convolutions = {"hidden_dims": (6, 6), "kernel_sizes": (25, 25), "strides": (16, 20)}
    codec = make_causal_codec(convolutions=convolutions, factors=(1,), num_layers=1)
    stream = codec.open_stream()
    assert stream.chunk_size == 1280
    sig = noise(1, 120 * 16000)
    expected = codec.sig_to_toks(sig)
    memory = []
    for chunk, toks in zip(sig.split(1280, dim=1), expected.split(4, dim=1), strict=True):
        assert torch.equal(stream.encode(chunk), toks)
        memory.append(resident_bytes())
    assert max(memory[200:]) - memory[200] < 2**20
