"""Published causal codecs: their tokens in one piece and in streams, their parts, their sizes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from focalcodec import FocalCodec
from focalcodec.activations import DynamicTanh, Snake
from focalcodec.convnext import ConvNeXtBlock
from focalcodec.focal_block import FocalBlock, FocalModulation
from focalcodec.focalnet import ChunkRefiner, DownScale, UpScale
from focalcodec.hub.config import build_parts, describe_parts
from focalcodec.streaming import LeftContext
from focalcodec.vocos import CausalISTFTHead
from focalcodec.wavenext import WaveNeXtHead
from focalcodec.wavlm.features import FeatureExtractor
from focalcodec.wavlm.transformer import (
    Attention,
    ChunkedAttention,
    FullScope,
    PositionalEmbedding,
    TransformerLayer,
)
from tests.causal_codecs import cut

CASES = pytest.mark.parametrize("case", ["causal_wavenext", "causal_vocos"])
# Of the peak; measured float32 noise of the references is below 3e-6 stage by stage and below 4e-6
# end to end.
STAGE_TOLERANCE = 5e-6
GOLDEN_TOLERANCE = 1e-5

BLOCK = {"window": 5, "ffn_ratio": 2.5, "pool_size": 9, "causal": True}
MODULES = {
    "dyt": lambda: DynamicTanh(),
    "chunk_ff": lambda: ChunkRefiner(6, chunk_frames=4),
    "down2_causal": lambda: DownScale(6, 5, factor=2, activation=Snake(5), causal=True),
    "down3_causal": lambda: DownScale(6, 5, factor=3, activation=Snake(5), causal=True),
    "up2_causal": lambda: UpScale(6, 5, factor=2, activation=Snake(6)),
    "focalmod_causal": lambda: FocalModulation(8, causal=True, pool_size=12),
    "focalmod_post_causal": lambda: FocalModulation(
        8,
        window=6,
        level=3,
        factor=4,
        post_norm=True,
        normalize_modulator=True,
        causal=True,
        pool_size=9,
    ),
    "focalblock_causal": lambda: FocalBlock(8, layer_scale=1e-4, **BLOCK),
    "focalblock_post_causal": lambda: FocalBlock(8, level=1, post_norm=True, **BLOCK),
    "vocos_block_causal": lambda: ConvNeXtBlock(8, ffn_dim=12, layerscale_init=0.3, causal=True),
    "wavenext_block_causal": lambda: ConvNeXtBlock(
        8, ffn_dim=12, layerscale_init=0.3, causal=True, fill="zeros"
    ),
    "wavenext_block_noncausal": lambda: ConvNeXtBlock(8, ffn_dim=12, layerscale_init=0.3),
    "istft_head_causal": lambda: CausalISTFTHead(8, n_fft=48, hop_length=16),
    "wavenext_head": lambda: WaveNeXtHead(8, hop_length=12),
    "posconv_causal": lambda: PositionalEmbedding(12, 8, 3, causal=True),
    "posconv_odd_causal": lambda: PositionalEmbedding(12, 7, 3, causal=True),
    "posconv_noncausal": lambda: PositionalEmbedding(12, 8, 3, causal=False),
    "posconv_odd_noncausal": lambda: PositionalEmbedding(12, 7, 3, causal=False),
}


def assert_near(got, expected, *, tolerance=GOLDEN_TOLERANCE):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def golden_of(shared, case):
    folder = shared / "golden" / case
    return FocalCodec.from_pretrained(folder), load_file(folder / "io.safetensors")


# Whole codecs


@CASES
def test_the_codec_is_described_as_published(shared, case):
    codec, _ = golden_of(shared, case)
    info = json.loads((shared / "golden" / case / "meta.json").read_text())["info"]
    assert codec.causal == info["causal"]
    assert codec.sample_rate_input == info["sample_rate_input"]
    assert codec.sample_rate_output == info["sample_rate_output"]
    assert codec.chunk_size == info["chunk_size"]
    assert codec.latency_ms == info["latency"]
    assert sum(weights.numel() for weights in codec.parameters()) == info["num_total_params"]


@CASES
def test_stage_by_stage(shared, case):
    codec, golden = golden_of(shared, case)
    for name in ("single", "batch"):
        sig, feats, lats, toks, codes, qfeats, rec_sig = (
            golden[f"{name}/{y}"]
            for y in ("sig", "feats", "lats", "toks", "codes", "qfeats", "rec_sig")
        )
        assert_near(codec.sig_to_feats(sig), feats, tolerance=STAGE_TOLERANCE)
        assert_near(codec.feats_to_lats(feats), lats, tolerance=STAGE_TOLERANCE)
        assert torch.equal(codec.lats_to_toks(lats), toks)
        assert torch.equal(codec.lats_to_codes(lats), codes)
        assert torch.equal(codec.toks_to_codes(toks), codes)
        assert_near(codec.codes_to_qfeats(codes), qfeats, tolerance=STAGE_TOLERANCE)
        decoded = codec.feats_to_sig(qfeats)
        assert_near(decoded[:, : rec_sig.shape[1]], rec_sig, tolerance=STAGE_TOLERANCE)
        if name == "single":
            tail = golden["single/rec_raw_tail"]
            assert_near(decoded[:, -512:], tail, tolerance=STAGE_TOLERANCE)


@CASES
@pytest.mark.parametrize("exact_tail", [True, False])
def test_end_to_end(shared, case, exact_tail):
    """A causal codec has a frame for every hop that has begun: both ways to end are one."""
    codec, golden = golden_of(shared, case)
    names = {key.partition("/")[0] for key in golden if key.endswith("/sig")}
    assert names >= {"single", "batch", "short100"}
    for name in sorted(names):
        sig = golden[f"{name}/sig"]
        toks, codes, rec_sig = codec(sig, exact_tail=exact_tail)
        assert torch.equal(toks, golden[f"{name}/toks"])
        assert_near(rec_sig, golden[f"{name}/rec_sig"])
        for y in ("feats", "lats", "qfeats"):
            if f"{name}/{y}" in golden:
                got = getattr(codec, f"sig_to_{y}")(sig, exact_tail=exact_tail)
                assert_near(got, golden[f"{name}/{y}"])


@CASES
def test_a_batch_gives_the_tokens_of_its_items(shared, case):
    codec, golden = golden_of(shared, case)
    sig, lens = golden["batch/sig"], golden["batch/length"]
    alone = golden["batch/toks_item1_alone"]
    for lengths in (lens, None):  # the published codec ignores them, and it does no harm there
        toks = codec.sig_to_toks(sig, lens=lengths)
        assert torch.equal(toks[:1], golden["batch/toks"][:1])
        assert torch.equal(toks[1:, : alone.shape[1]], alone)
    assert torch.equal(toks, golden["batch/toks_no_length"])


@CASES
@pytest.mark.parametrize("size", [1280, 3840, 999, 10**6])
def test_streams_give_the_published_tokens_and_signal(shared, case, size):
    codec, golden = golden_of(shared, case)
    sig = golden["single/sig"][:, : golden["stream/sig_samples"].item()]
    stream = codec.open_stream()
    toks = torch.cat([stream.encode(piece) for piece in cut(sig, [size])], dim=1)
    assert torch.equal(toks, golden["stream/toks"])
    assert torch.equal(toks, golden["stream/offline_toks"])
    rec_sig = torch.cat([stream.decode(piece) for piece in cut(toks, [size])], dim=1)
    assert_near(rec_sig, golden["stream/rec_sig"])


@CASES
def test_batches_of_streams_give_the_published_tokens_and_signal(shared, case):
    codec, golden = golden_of(shared, case)
    stream = codec.open_stream(batch_size=2)
    toks = torch.cat([stream.encode(piece) for piece in cut(golden["batch/sig"], [1280])], dim=1)
    assert torch.equal(toks, golden["stream_batch/toks"])
    rec_sig = torch.cat([stream.decode(piece) for piece in cut(toks, [4])], dim=1)
    assert_near(rec_sig[:, :3000], golden["stream_batch/rec_sig_head"])


@CASES
def test_an_incomplete_end_is_that_of_the_whole_not_the_published_one(shared, case):
    """The published stream has another attention window there than the whole signal has."""
    codec, golden = golden_of(shared, case)
    stream, sig = codec.open_stream(), golden["single/sig"]
    whole = torch.cat([stream.encode(sig), stream.flush().toks], dim=1)
    assert torch.equal(whole, golden["single/toks"])
    published = golden["stream_ragged/toks"]
    complete = sig.shape[1] // codec.chunk_size * 4
    assert torch.equal(whole[:, :complete], published[:, :complete])
    assert torch.equal(whole, published) == (case == "causal_vocos")
    rec_sig = torch.cat([stream.decode(published), stream.flush().sig], dim=1)
    assert_near(rec_sig[:, -2000:], golden["stream_ragged/rec_sig_tail"])


@CASES
def test_an_end_filled_with_silence_is_the_published_one(shared, case):
    codec, golden = golden_of(shared, case)
    stream, sig = codec.open_stream(), golden["single/sig"]
    sig = nn.functional.pad(sig, (0, -sig.shape[1] % codec.chunk_size))
    toks = stream.encode(sig)
    assert torch.equal(toks, golden["stream_padtail/toks"])
    assert_near(stream.decode(toks)[:, -2000:], golden["stream_padtail/rec_sig_tail"])


@CASES
def test_checkpoints_are_saved_as_they_were(shared, case, tmp_path):
    published = shared / "golden" / case
    codec = FocalCodec.from_pretrained(published)
    codec.save_pretrained(tmp_path)
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path, published))
    for word in ("max_cached_steps", "use_flex_attention"):  # ways of computing the same
        del theirs["encoder_config"][word]
    assert ours == theirs
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path, published)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    assert FocalCodec.from_pretrained(tmp_path).fingerprint == codec.fingerprint


# Parts


@pytest.mark.parametrize("case", MODULES)
@torch.no_grad()
def test_modules_give_published_values(shared, case):
    golden = load_file(shared / "golden/modules/io.safetensors")
    module, calls = _module(MODULES[case](), golden, case=case), _calls(golden, case=case)
    assert calls
    for x, expected in calls:
        assert_near(module(x), expected, tolerance=STAGE_TOLERANCE)


@torch.no_grad()
def test_strided_convolutions_give_published_values(shared):
    """The published ones each have their own context; ours is one, in front of all of them."""
    golden = load_file(shared / "golden/modules/io.safetensors")
    layer = FeatureExtractor((6,), (10,), (5,)).layers[0]
    layer.conv = nn.Conv1d(3, 6, 10, stride=5, bias=False)  # with more channels than a signal has
    _module(layer, golden, case="convblock_causal")
    for x, expected in _calls(golden, case="convblock_causal"):
        got = layer(LeftContext(9)(x), kernel=None)
        assert_near(got, expected, tolerance=STAGE_TOLERANCE)


@torch.no_grad()
def test_attention_with_a_bias_gives_published_values(shared):
    golden = load_file(shared / "golden/modules/io.safetensors")
    attention = _module(Attention(12, 3), golden, case="mha")
    for call in ("nomask", "mask"):
        x, bias, mask = (golden.get(f"mha/{call}/in{i}") for i in range(3))
        # Keys are in reversed order there.
        hidden = None if mask is None else mask[:, 0, 0].flip(1)
        scope = FullScope(bias.flip(2), hidden)
        assert_near(attention(x, scope=scope), golden[f"mha/{call}/out"], tolerance=STAGE_TOLERANCE)
    layer = TransformerLayer(12, 20, Attention(12, 3), dropout=0.0)
    _module(layer, golden, case="transformer_layer")
    x, bias = (golden[f"transformer_layer/a/in{i}"] for i in range(2))
    got = layer(x, scope=FullScope(bias.flip(2), None))
    assert_near(got, golden["transformer_layer/a/out"], tolerance=STAGE_TOLERANCE)


@pytest.mark.parametrize(("window_size", "lookahead_size"), [(12, 3), (8, 0), (10, 1)])
def test_frames_attend_to_those_of_the_published_pattern(shared, window_size, lookahead_size):
    golden = load_file(shared / "golden/modules/io.safetensors")
    pattern = golden[f"attn_pattern/w{window_size}_l{lookahead_size}"].bool()
    attention = ChunkedAttention(
        4, 2, window_size=window_size, chunk_frames=1 + lookahead_size
    ).double()
    x = torch.randn(1, len(pattern), 4, dtype=torch.float64, requires_grad=True)

    def no_bias(distance):
        return torch.zeros(2, *distance.shape, dtype=torch.float64)

    y = attention(x, scope=attention.scope(x, no_bias, mask=None, state=None))
    for frame, sees in zip(y[0], pattern, strict=True):
        (grad,) = torch.autograd.grad(frame.square().sum(), x, retain_graph=True)
        assert torch.equal(grad[0].abs().sum(dim=1) > 0, sees)


def _module(module, golden, *, case):
    prefix = f"{case}/param/"
    module.load_state_dict(
        {key.removeprefix(prefix): value for key, value in golden.items() if prefix in key}
    )
    return module.eval()


def _calls(golden, *, case):
    """Input and result of each call of a module."""
    inputs = sorted(key for key in golden if key.startswith(f"{case}/") and key.endswith("/in0"))
    return [(golden[key], golden[key.replace("/in0", "/out")]) for key in inputs]


# Full size


def published_config(code_dim):
    """Return a configuration that leaves all but the bits to the defaults of v0.0.2."""
    return {
        "encoder_config": {"causal": True},
        "compressor_config": {"causal": True, "output_dim": code_dim},
        "quantizer_config": {"codebook_size": 2**code_dim},
        "decompressor_config": {"causal": True, "input_dim": code_dim},
        "decoder_config": {"causal": True},
    }


@pytest.mark.parametrize("code_dim", [11, 12, 16], ids=["2k", "4k", "65k"])
def test_published_configurations_build_codecs_of_full_size(code_dim):
    parts = build_parts(published_config(code_dim), where="config.json", sketch=True)
    with torch.device("meta"):
        codec = FocalCodec(**parts)
    assert codec.causal and codec.codebook_size == 2**code_dim
    assert (codec.sample_rate, codec.sample_rate_output) == (16000, 24000)
    assert (codec.token_rate, codec.bitrate) == (50, 50 * code_dim)
    assert (codec.chunk_size, codec.latency_ms) == (1280, 80)
    described = describe_parts(parts)
    again = build_parts(described, where="config.json", sketch=True)
    assert describe_parts(again) == described
    num_weights = sum(weights.numel() for weights in codec.parameters())
    assert num_weights == pytest.approx(249.04e6, abs=0.02e6)


def test_every_key_of_the_full_size_checkpoint_has_its_place(shared):
    text = (shared / "golden/keys/keys_causal_4k_v002_layout.txt").read_text()
    published = {}
    for line in text.splitlines():
        key, shape, dtype = line.split("\t")
        assert dtype == "float32"
        published[key] = tuple(json.loads(shape))
    parts = build_parts(published_config(12), where="config.json", sketch=True)
    own = nn.ModuleDict(parts).state_dict()
    assert {key: tuple(value.shape) for key, value in own.items()} == published
    assert sum(value.numel() for value in own.values()) == 249_038_490
