"""Causal parts: nothing of the future, nothing of the padding, attention by its definition."""

import inspect
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from focalcodec.activations import DynamicTanh, Snake
from focalcodec.focal_block import FocalBlock, FocalModulation
from focalcodec.focalnet import ChunkRefiner, Compressor, Decompressor, DownScale
from focalcodec.masking import lengths_to_mask
from focalcodec.mixers import LinearBlock
from focalcodec.streaming import State
from focalcodec.vocos import Vocos
from focalcodec.wavenext import WaveNeXt
from focalcodec.wavlm import WavLM
from focalcodec.wavlm.transformer import ChunkedAttention
from tests.causal_codecs import CODECS, make_causal_codec, noise, with_lively_weights

EVERY_CODEC = pytest.mark.parametrize("name", CODECS)
EXACT = 1e-12  # of the peak, in float64
TOLERANCE = 1e-5  # of the peak, in float32, measured up to 3e-6


def assert_near(got, expected, *, tolerance=TOLERANCE):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture
def encoder():
    return make_causal_codec(convolutions={"hidden_dims": (8,) * 7}).encoder


@pytest.fixture(params=["row_by_row", "as_a_batch"])
def _padding(request, monkeypatch):
    """Both ways in which a CPU may go through a padded batch."""
    limit = -1 if request.param == "row_by_row" else math.inf
    monkeypatch.setattr("focalcodec.wavlm.encoder._ROW_SAMPLES", limit)


# The future


@EVERY_CODEC
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_comes_after_a_chunk_changes_nothing_in_it(name, data):
    encoder = make_causal_codec(**CODECS[name]).encoder.double()
    chunk, hop = encoder.chunk_frames, encoder.hop_length
    frames = chunk * data.draw(st.integers(1, 70 // chunk))
    sig = noise(1, 700).double()
    feats = encoder(sig)
    # The last frame of a chunk begins with the last sample that it is made of.
    last = (frames - 1) * hop
    later = torch.cat([sig[:, : last + 1], 1 - 2 * torch.rand(1, 699 - last).double()], dim=1)
    assert_near(encoder(later)[:, :frames], feats[:, :frames], tolerance=EXACT)
    sig[0, last] += 1
    changed = (encoder(sig) - feats)[0].abs().amax(dim=1) > 1e-6
    assert changed[frames - chunk : frames].all() and not changed[: frames - chunk].any()


@EVERY_CODEC
def test_frames_behind_a_token_change_nothing_in_it(name):
    codec = make_causal_codec(**CODECS[name]).double()
    factor = math.prod(codec.compressor.downscale_factors)
    feats = torch.randn(1, 61, 12, dtype=torch.float64)
    lats = codec.compressor(feats)
    for tok in (0, 3, 14):
        later = feats.clone()
        later[:, tok * factor + 1 :].normal_()
        assert_near(codec.compressor(later)[:, : tok + 1], lats[:, : tok + 1], tolerance=EXACT)
        later[:, tok * factor] += 1
        assert (codec.compressor(later)[:, tok] - lats[:, tok]).abs().max() > 1e-6


@EVERY_CODEC
def test_tokens_behind_a_chunk_change_nothing_in_what_it_decodes_to(name):
    codec = make_causal_codec(**CODECS[name]).double()
    chunk = codec.decompressor.chunk_frames
    factor = math.prod(codec.decompressor.upscale_factors)
    hop = codec.decoder.hop_length
    codes = torch.randn(1, 48, 5, dtype=torch.float64)
    qfeats = codec.decompressor(codes)
    sig = codec.decoder(qfeats)
    for toks in (chunk, 5 * chunk, 47):
        later = torch.cat([codes[:, :toks], torch.randn_like(codes[:, toks:])], dim=1)
        frames = toks * factor // chunk * chunk
        got = codec.decompressor(later)
        assert_near(got[:, :frames], qfeats[:, :frames], tolerance=EXACT)
        assert_near(codec.decoder(got)[:, : frames * hop], sig[:, : frames * hop], tolerance=EXACT)
        assert (got - qfeats)[:, toks * factor :].abs().amax(dim=(0, 2)).min() > 1e-6


# Padding


@EVERY_CODEC
@pytest.mark.usefixtures("_padding")
def test_a_padded_row_gives_what_it_gives_alone(name):
    codec = make_causal_codec(**CODECS[name])
    sizes = [700, 699, 401, 60, 59, 11, 1]
    alone = [noise(1, size) for size in sizes]
    sig = torch.full((len(sizes), 700), torch.nan)
    for row, x in zip(sig, alone, strict=True):
        row[: x.shape[1]] = x[0]
    lens = torch.tensor(sizes) / 700
    feats, toks = codec.sig_to_feats(sig, lens=lens), codec.sig_to_toks(sig, lens=lens)
    tok_lens = codec.num_toks(torch.tensor(sizes)) / toks.shape[1]
    rec_sig = codec.toks_to_sig(toks, lens=tok_lens)
    for row, x in enumerate(alone):
        expected, own = codec.sig_to_feats(x), codec.sig_to_toks(x)
        assert_near(feats[row : row + 1, : expected.shape[1]], expected)
        assert not feats[row, expected.shape[1] :].any()
        assert torch.equal(toks[row : row + 1, : own.shape[1]], own)
        decoded = codec.toks_to_sig(own)
        assert_near(rec_sig[row : row + 1, : decoded.shape[1]], decoded)
        assert not rec_sig[row, decoded.shape[1] :].any()


@EVERY_CODEC
def test_padding_of_every_part_enters_nothing(name):
    codec = make_causal_codec(**CODECS[name])
    factor = math.prod(codec.compressor.downscale_factors)
    lengths = torch.tensor([40, 39, 13, 1])
    mask = lengths_to_mask(lengths, 40)
    parts = {
        codec.compressor: (12, mask, lambda n: -(-n // factor)),
        codec.decompressor: (5, mask, lambda n: n * factor),
        codec.decoder: (12, mask, lambda n: n * codec.decoder.hop_length),
    }
    for part, (dim, mask, size_of) in parts.items():
        x = torch.randn(4, 40, dim)
        y = part(x.masked_fill(~mask[..., None], torch.nan), mask=mask)
        for row, length in enumerate(lengths.tolist()):
            expected = part(x[row : row + 1, :length])
            assert expected.shape[1] == size_of(length)
            assert_near(y[row : row + 1, : size_of(length)], expected)
            assert not y[row, size_of(length) :].any()


def test_lens_and_a_state_are_refused_together(encoder):
    state = State({"encoder": encoder}, batch_size=2)
    with pytest.raises(ValueError, match="streams are not padded: .* leave out lens"):
        encoder(torch.zeros(2, 1280), lens=torch.tensor([1.0, 0.2]), state=state)


# Attention


def attention_by_definition(attention, x, *, values, first=0):
    """Every frame of one row (N, dim) by itself: softmax over the keys that it may see.

    ``first`` is where the row begins; frames before it are not there.
    """
    size, heads = len(x), attention.num_heads
    query, key, value = attention.qkv_proj(x).unflatten(-1, (3, heads, -1)).unbind(1)
    gates = attention.gru_rel_pos_linear(x.unflatten(-1, (heads, -1)))  # (N, H, 8)
    update, reset = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)
    gate = update * (reset * attention.gru_rel_pos_const[0, :, 0, 0] - 1) + 2
    rows = []
    for i in range(first, size):
        chunk = attention.chunk_frames
        end = min((i // chunk + 1) * chunk, size)
        seen = range(max(end - attention.window_size, first), end)
        scores = []
        for j in seen:
            score = (query[i] * key[j]).sum(-1) / math.sqrt(query.shape[-1])
            scores.append(score + gate[i] * values(torch.tensor(j - i)))
        weights = torch.stack(scores).softmax(dim=0)  # (keys, H)
        rows.append((weights[..., None] * value[list(seen)]).sum(dim=0).flatten())
    return attention.out_proj(torch.stack(rows))


@pytest.fixture
def values():
    """Bias (H, ...) of every distance, another one for each."""
    table = torch.randn(2, 401, dtype=torch.float64)
    return lambda distance: table[:, distance + 200]


def make_attention(window_size, chunk_frames):
    attention = ChunkedAttention(4, 2, window_size=window_size, chunk_frames=chunk_frames)
    return with_lively_weights(attention).double().requires_grad_(False)


WINDOWS = pytest.mark.parametrize(
    ("window_size", "chunk_frames"),
    [(8, 4), (9, 4), (5, 4), (4, 4), (3, 1), (1, 1), (11, 3), (70, 2), (200, 4)],
)


@WINDOWS
@pytest.mark.parametrize("size", [1, 2, 4, 7, 64, 131])
def test_attention_is_what_it_is_defined_as(window_size, chunk_frames, size, values):
    """Beyond 64 frames it goes by blocks."""
    attention = make_attention(window_size, chunk_frames)
    x = torch.randn(2, size, 4, dtype=torch.float64)
    got = attention(x, scope=attention.scope(x, values, mask=None, state=None))
    for row, expected in zip(x, got, strict=True):
        assert_near(
            expected, attention_by_definition(attention, row, values=values), tolerance=EXACT
        )


@WINDOWS
def test_attention_of_padded_rows_is_what_it_is_alone(window_size, chunk_frames, values):
    attention = make_attention(window_size, chunk_frames)
    lengths = [70, 69, 33, 2, 1]
    x = torch.randn(5, 70, 4, dtype=torch.float64)
    mask = lengths_to_mask(torch.tensor(lengths), 70)
    got = attention(x, scope=attention.scope(x, values, mask=mask, state=None))
    assert got.isfinite().all()
    for row, length in enumerate(lengths):
        expected = attention_by_definition(attention, x[row, :length], values=values)
        assert_near(got[row, :length], expected, tolerance=EXACT)


@WINDOWS
@settings(max_examples=5, deadline=None)
@given(chunks=st.lists(st.integers(1, 6), min_size=1, max_size=6), left=st.integers(0, 3))
def test_attention_of_streams_is_that_of_the_whole(window_size, chunk_frames, chunks, left):
    """For calls of any number of chunks; one row begins anew in the middle."""
    attention = make_attention(window_size, chunk_frames)
    table = torch.linspace(-3, 3, 802, dtype=torch.float64).view(401, 2).T

    def values(distance):
        return table[:, distance + 200]

    sizes = [number * chunk_frames for number in chunks]
    if left % chunk_frames:
        sizes.append(left % chunk_frames)
    x = torch.randn(2, sum(sizes), 4, dtype=torch.float64)
    state, got = State({"": attention}, batch_size=2), []
    for call, piece in enumerate(x.split(sizes, dim=1)):
        if call == len(sizes) // 2:
            state.reset([1])
        scope = attention.scope(piece, values, mask=None, state=state)
        got.append(attention(piece, scope=scope, state=state))
        state.commit()
    got, first = torch.cat(got, dim=1), sum(sizes[: len(sizes) // 2])
    expected = attention_by_definition(attention, x[0], values=values)
    assert_near(got[0], expected, tolerance=EXACT)
    expected = attention_by_definition(attention, x[1, first:], values=values)
    assert_near(got[1, first:], expected, tolerance=EXACT)


@torch.no_grad()
def test_features_do_not_depend_on_the_size_of_blocks(encoder, monkeypatch):
    sig = torch.randn(2, 40000)
    lens = torch.tensor([1.0, 0.7])
    expected = encoder(sig), encoder(sig, lens=lens)
    monkeypatch.setattr("focalcodec.wavlm.transformer._QUERIES", 4)
    monkeypatch.setattr("focalcodec.wavlm.blocks.BLOCK_FLOATS_CPU", 1)
    assert_near(encoder(sig), expected[0])
    assert_near(encoder(sig, lens=lens), expected[1])


# The encoder


def test_a_frame_begins_with_every_hop(encoder):
    assert encoder.hop_length == 320
    for size in (1, 2, 319, 320, 321, 640, 641, 5000):
        num_frames = -(-size // 320)
        assert encoder.num_frames(size) == num_frames
        assert encoder(torch.zeros(1, size)).shape == (1, num_frames, encoder.dim)
    frames = torch.arange(1, 500)
    samples = encoder.num_samples(frames)
    assert torch.equal(samples, (frames - 1) * 320 + 1)
    assert torch.equal(encoder.num_frames(samples), frames)
    assert torch.equal(encoder.num_frames(samples[1:] - 1), frames[:-1])


def test_copies_of_the_first_sample_stand_before_the_beginning():
    """A constant signal has gone on for ever: all its frames are alike, in every layer."""
    encoder = make_causal_codec(window_size=4).encoder
    sig = torch.cat([torch.full((1, 400), 0.3), noise(1, 300)], dim=1)
    for feats in encoder.layer_feats(sig):
        assert_near(feats[:, :40], feats[:, :4].repeat(1, 10, 1))
        assert (feats[:, 41:] - feats[:, :1]).abs().amax(dim=2).min() > 1e-3


@pytest.mark.parametrize("lens", [None, torch.tensor([1.0, 0.4])], ids=["full", "padded"])
def test_the_last_of_the_layers_features_are_the_features(encoder, lens):
    sig = torch.randn(2, 6000)
    layers = encoder.layer_feats(sig, lens=lens)
    assert len(layers) == 1 + encoder.num_layers
    assert {x.shape for x in layers} == {(2, 19, encoder.dim)}
    assert_near(layers[-1], encoder(sig, lens=lens))
    if lens is not None:
        assert not any(x[1, 8:].any() for x in layers)
    first = make_causal_codec(convolutions={"hidden_dims": (8,) * 7}, num_layers=1).encoder
    first.load_state_dict(encoder.state_dict(), strict=False)
    assert_near(layers[1], first(sig, lens=lens))


@torch.no_grad()
@pytest.mark.parametrize("lens", [None, torch.tensor([1.0, 0.5])], ids=["full", "padded"])
def test_one_graph_serves_every_length(lens):
    encoder = make_causal_codec(num_layers=1).encoder
    counter = CompileCounter()
    compiled = torch.compile(encoder, backend=counter, fullgraph=True, dynamic=True)
    for size in (1000, 200, 1234):
        sig = torch.randn(2, size)
        assert_near(compiled(sig, lens=lens), encoder(sig, lens=lens))
    assert counter.frame_count == 1


def test_full_context_goes_on_from_no_state():
    sizes = {"hidden_dims": (8,) * 7, "num_layers": 1, "dim": 16, "ffn_dim": 8, "num_heads": 2}
    encoder = WavLM(**sizes, conv_pos=4, conv_pos_groups=2)
    with pytest.raises(ValueError, match="full context cannot go on from a state; use a causal"):
        encoder(torch.zeros(1, 1280), state=State({"": encoder}, batch_size=1))


# Training


# But for windows of one frame, which has no other to be compared with.
@pytest.mark.parametrize("name", sorted(CODECS.keys() - {"no lookahead"}))
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.usefixtures("_padding")
def test_gradients_reach_every_parameter(name, padded):
    codec = make_causal_codec(**CODECS[name]).train().requires_grad_(True)
    sig = noise(2, 700)
    lens = torch.tensor([1.0, 0.5]) if padded else None
    if padded:
        sig[1, 350:] = torch.nan
    sig.requires_grad_()
    qfeats = codec.sig_to_qfeats(sig, lens=lens)
    lens = None if lens is None else torch.tensor([1.0, 36 / qfeats.shape[1]])
    codec.feats_to_sig(qfeats, lens=lens).square().sum().backward()
    for key, weights in codec.named_parameters():
        assert weights.grad.isfinite().all() and weights.grad.abs().sum() > 0, key
    assert sig.grad.isfinite().all()
    assert not padded or not sig.grad[1, 350:].any()


def test_recomputed_causal_layers_have_the_same_gradients():
    codec = make_causal_codec(**CODECS["25hz"]).train().requires_grad_(True)
    grads = []
    for recomputes in (False, True):
        codec.compressor.recomputes = codec.decompressor.recomputes = recomputes
        codec.zero_grad()
        codec.sig_to_qfeats(noise(2, 400)).square().sum().backward()
        grads.append([weights.grad.clone() for weights in codec.compressor.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


# Small parts


def test_dynamic_tanh_is_its_formula():
    norm = DynamicTanh(0.25)
    x = torch.randn(2, 3, 4, requires_grad=True)
    assert torch.equal(norm(x), torch.tanh(0.25 * x))
    assert [(key, tuple(value.shape)) for key, value in norm.state_dict().items()] == [
        ("alpha", (1,))
    ]
    assert DynamicTanh().alpha.item() == 0.5
    assert torch.autograd.gradcheck(norm.double(), (x.double(),))
    block = FocalBlock(8, causal=True, post_norm=True, tanh_scale=0.3)
    norms = [module for module in block.modules() if isinstance(module, DynamicTanh)]
    assert len(norms) == 3 and all(norm.alpha.item() == pytest.approx(0.3) for norm in norms)
    assert not any(isinstance(module, nn.LayerNorm) for module in block.modules())


@pytest.mark.parametrize("size", [1, 3, 4, 5, 11, 12])
@torch.no_grad()
def test_a_refiner_sees_the_frames_of_a_chunk_together(size):
    refiner = with_lively_weights(ChunkRefiner(3, chunk_frames=4)).double()
    x = torch.randn(2, size, 3, dtype=torch.float64)
    y = refiner(x)
    assert y.shape == x.shape
    for start in range(0, size, 4):
        chunk = torch.zeros(2, 4, 3, dtype=torch.float64)
        chunk[:, : size - start] = x[:, start : start + 4]
        hidden = nn.functional.gelu(refiner.in_proj(chunk.flatten(1)))
        expected = chunk + refiner.out_proj(hidden).view(2, 4, 3)
        assert_near(y[:, start : start + 4], expected[:, : size - start], tolerance=EXACT)
    later = x.clone()
    later[:, -1] += 1  # reaches the first frame of its chunk
    start = (size - 1) // 4 * 4
    assert (refiner(later) - y)[:, start].abs().max() > 1e-6
    assert torch.equal(refiner(later)[:, :start], y[:, :start])


def test_samples_of_wavenext_are_clamped():
    decoder = WaveNeXt(4, num_layers=5, dim=8, ffn_dim=8, hop_length=10, causal=True)
    assert decoder.sample_rate == 500
    assert all(torch.equal(layer.gamma, torch.full((8,), 0.2)) for layer in decoder.backbone.layers)
    feats = torch.randn(2, 50, 4)
    samples = decoder.head.proj(decoder.backbone(feats)).flatten(1)
    assert samples.max() > 1 and samples.min() < -1
    assert torch.equal(decoder(feats), samples.clamp(-1, 1))


def test_constructor_arguments_are_attributes():
    causal = partial(FocalBlock, causal=True, pool_size=5, tanh_scale=0.4)
    scaling = {"hidden_dims": [4], "mixer": causal, "activation": Snake, "causal": True}
    modules = [
        WaveNeXt(4, num_layers=1, dim=8, ffn_dim=8, kernel_size=3, hop_length=4, causal=True),
        Vocos(4, num_layers=1, dim=8, ffn_dim=8, n_fft=16, hop_length=4, causal=True),
        make_causal_codec().encoder,
        Compressor(3, 2, downscale_factors=[2], **scaling),
        Decompressor(2, 3, upscale_factors=[2], lookahead_size=1, last_mixer=causal, **scaling),
        causal(4),
        FocalModulation(4, causal=True, pool_size=5),
        ChunkRefiner(3, chunk_frames=2),
        DownScale(4, 3, factor=2, activation=Snake(3), causal=True),
    ]
    for module in modules:
        arguments = {
            name: getattr(module, name) for name in inspect.signature(type(module)).parameters
        }
        shapes = [
            {key: value.shape for key, value in one.state_dict().items()}
            for one in (module, type(module)(**arguments))
        ]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_causal_codec(window_size=3),
            "window_size must hold a chunk of 1 \\+ lookahead_size frames, got 3 and 4",
        ),
        (lambda: make_causal_codec(lookahead_size=-1), "window_size must hold a chunk"),
        (lambda: make_causal_codec(pool_size=0), "window, level and pool_size .* pool_size=0"),
        (
            lambda: Compressor(
                3, 2, hidden_dims=[4], downscale_factors=[1], mixer=LinearBlock, activation=Snake,
                causal=True,
            ),
            "causal is True, but LinearBlock has full context; give both the same",
        ),
        (
            lambda: Decompressor(
                3, 2, hidden_dims=[4], upscale_factors=[1], activation=Snake,
                mixer=partial(FocalBlock, causal=True),
            ),
            "causal is False, but FocalBlock has none of what comes later",
        ),
        (
            lambda: Decompressor(
                3, 2, hidden_dims=[4], upscale_factors=[1], activation=Snake, mixer=FocalBlock,
                lookahead_size=3,
            ),
            "lookahead_size is 3, but a decompressor with full context has no use for a refiner",
        ),
        (lambda: WaveNeXt(4, kernel_size=6), "kernel_size must be odd .* got 6 and 8"),
        (lambda: WaveNeXt(4, num_layers=0), "num_layers at least 1, got 7 and 0"),
    ],
    ids=["window", "lookahead", "pool", "mixer", "causal mixer", "refiner", "even", "layers"],
)  # fmt: skip
def test_wrong_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
