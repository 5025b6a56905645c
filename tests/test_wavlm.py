"""The WavLM encoder: equal to transformers and the published codec, independent of padding."""

import json

import pytest
import safetensors.torch
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import pad
from transformers import WavLMConfig, WavLMModel

from focalcodec.wavlm import WavLM, state_dict_from_transformers
from focalcodec.wavlm.transformer import _relative_bucket
from tests.causal_codecs import with_lively_weights

# Small sizes that keep every layer of the real ones; few buckets, so that all are reached.
SIZES = dict(
    hidden_dims=(16,) * 7,
    num_layers=2,
    dim=32,
    ffn_dim=48,
    num_heads=4,
    num_buckets=32,
    max_distance=40,
    conv_pos=16,
    conv_pos_groups=4,
)


@pytest.fixture
def encoder() -> WavLM:
    return with_lively_weights(WavLM(**SIZES)).eval()


@pytest.fixture(params=["row_by_row", "as_a_batch"])
def _padding(request, monkeypatch) -> None:
    """Both ways in which a CPU may go through a padded batch."""
    limit = -1 if request.param == "row_by_row" else float("inf")
    monkeypatch.setattr("focalcodec.wavlm.encoder._ROW_SAMPLES", limit)


def _transformers_model(**sizes) -> WavLMModel:
    config = WavLMConfig(
        conv_dim=SIZES["hidden_dims"],
        num_hidden_layers=SIZES["num_layers"] + 1,
        hidden_size=SIZES["dim"],
        intermediate_size=SIZES["ffn_dim"],
        num_attention_heads=SIZES["num_heads"],
        num_buckets=SIZES["num_buckets"],
        max_bucket_distance=SIZES["max_distance"],
        num_conv_pos_embeddings=sizes.get("conv_pos", SIZES["conv_pos"]),
        num_conv_pos_embedding_groups=SIZES["conv_pos_groups"],
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=False,
    )
    return with_lively_weights(WavLMModel(config)).eval()


def _old_weight_norm(state: dict) -> dict:
    names = {"parametrizations.weight.original0": "weight_g"}
    names["parametrizations.weight.original1"] = "weight_v"
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    assert any(key.endswith("weight_g") for key in state)
    return state


@torch.no_grad()
@pytest.mark.parametrize("size", [400, 401, 719, 720, 16000, 32123])
@pytest.mark.parametrize("conv_pos", [16, 15], ids=["even_conv_pos", "odd_conv_pos"])
def test_feats_equal_transformers(size, conv_pos):
    reference = _transformers_model(conv_pos=conv_pos)
    encoder = WavLM(**SIZES | dict(conv_pos=conv_pos)).eval()
    encoder.load_state_dict(state_dict_from_transformers(reference.state_dict(), 2))
    sig = torch.randn(2, size)  # transformers takes no fewer than 400 samples
    expected = reference(sig, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(encoder(sig), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["new", "old"])
@pytest.mark.parametrize("prefix", ["", "wavlm."])
def test_state_dict_from_transformers_reads_every_spelling(spelling, prefix):
    reference = _transformers_model()
    state = reference.state_dict()
    if spelling == "old":
        state = _old_weight_norm(state)
    state = {prefix + key: value for key, value in state.items()}
    if prefix:
        state["lm_head.weight"] = torch.zeros(2, 2)
    encoder = WavLM(**SIZES).eval()
    encoder.load_state_dict(state_dict_from_transformers(state, 2))
    sig = torch.randn(1, 4000)
    expected = reference(sig, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(encoder(sig), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "missing",
    [
        "feature_extractor.conv_layers.3.layer_norm.bias",
        "encoder.layers.1.attention.v_proj.bias",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "encoder.layers.0.attention.rel_attn_embed.weight",
    ],
)
def test_missing_tensor_is_named(missing):
    state = _transformers_model().state_dict()
    del state[missing]
    with pytest.raises(KeyError, match=missing):
        state_dict_from_transformers(state, 2)


def test_too_many_layers_are_refused():
    with pytest.raises(KeyError, match=r"encoder\.layers\.3\."):
        state_dict_from_transformers(_transformers_model().state_dict(), 4)


def test_convolutions_with_bias_are_refused():
    state = _transformers_model().state_dict()
    state["feature_extractor.conv_layers.0.conv.bias"] = torch.zeros(16)
    with pytest.raises(ValueError, match="bias"):
        state_dict_from_transformers(state, 2)


def test_default_state_dict_is_the_published_layout(shared):
    with torch.device("meta"):
        state = WavLM().state_dict()
    lines = (shared / "golden/keys/keys_50hz_v002_layout.txt").read_text().splitlines()
    published = dict(line.split("\t")[:2] for line in lines if line.startswith("encoder."))
    assert {f"encoder.{key}": str(list(value.shape)) for key, value in state.items()} == published


@torch.no_grad()
@pytest.mark.parametrize("layout", ["published", "transformers", "transformers_old"])
def test_feats_equal_golden(shared, layout):
    folder = shared / "golden/hf_wavlm"
    load = safetensors.torch.load_file
    config = json.loads((folder / "encoder_config.json").read_text())["encoder_config"]
    encoder = WavLM(**config).eval()
    if layout == "published":
        state = load(folder / "encoder.safetensors")
    else:
        state = load(folder / "hf/model.safetensors")
        if layout == "transformers_old":
            state = {key: value for key, value in state.items() if "parametrizations" not in key}
            state |= load(folder / "hf_legacy_pos_conv.safetensors")
        state = state_dict_from_transformers(state, 3)
    encoder.load_state_dict(state)
    golden = load(folder / "io.safetensors")
    feats = encoder(golden["single/sig"])
    # float32 noise of this case against float64 is 4e-6, features peak at about 10
    torch.testing.assert_close(feats, golden["single/feats"], atol=2e-5, rtol=0)
    torch.testing.assert_close(feats, golden["single/hf_hidden_state"], atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [100, 399, 400, 401, 719, 720])
def test_short_signals_equal_golden(shared, size):
    folder = shared / "golden/noncausal_50hz"
    config = json.loads((folder / "config.json").read_text())["encoder_config"]
    for key in ("max_cached_steps", "causal", "window_size", "lookahead_size"):
        del config[key]
    del config["use_flex_attention"]
    encoder = WavLM(**config).eval()
    state = safetensors.torch.load_file(folder / "model.safetensors")
    prefix = "encoder."
    encoder.load_state_dict(
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    )
    golden = safetensors.torch.load_file(folder / "io.safetensors")
    expected = golden[f"short{size}/feats"]
    feats = encoder(golden[f"short{size}/sig"])
    torch.testing.assert_close(feats, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (32, 64), (64, 100)])
def test_relative_buckets_equal_golden(shared, num_buckets, max_distance):
    golden = safetensors.torch.load_file(shared / "golden/modules/io.safetensors")
    bucket = _relative_bucket(
        golden["rel_bucket/relative_position"].long(),
        num_buckets=num_buckets,
        max_distance=max_distance,
    )
    expected = golden[f"rel_bucket/{num_buckets}_{max_distance}"].long()
    torch.testing.assert_close(bucket, expected, atol=0, rtol=0)


@pytest.mark.parametrize("size", [1, 3, 40, 41, 42, 300])
def test_every_distance_has_its_bucket(encoder, size):
    """The table holds distances up to max_distance = 40; those beyond share the last bucket."""
    frames = torch.arange(size)
    distance = frames - frames[:, None]  # key - query
    bucket = _relative_bucket(distance, num_buckets=32, max_distance=40)
    expected = encoder.encoder.relative_embedding(bucket).permute(2, 0, 1)
    transformer = encoder.encoder
    scope = transformer.layers[0].attention.scope(
        torch.zeros(1, size, encoder.dim), transformer._relative_values, mask=None, state=None
    )
    bias = scope.bias.flip(2)  # keys are reversed in it
    torch.testing.assert_close(bias, expected, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.usefixtures("_padding")
@pytest.mark.parametrize("garbage", [0.0, 3.0, float("nan")], ids=["zeros", "noise", "nan"])
def test_feats_ignore_padding(encoder, garbage):
    sizes = [16000, 15999, 7777, 720, 719, 400, 399, 200, 100, 14, 1]
    alone = [torch.randn(1, size) for size in sizes]
    batch = torch.cat([pad(x, (0, 16000 - x.shape[1])) for x in alone])
    for row, size in zip(batch, sizes, strict=True):
        row[size:] = garbage
    feats = encoder(batch, lens=torch.tensor(sizes) / 16000)
    for x, item in zip(alone, feats, strict=True):
        expected = encoder(x)[0]
        assert len(expected) == encoder.num_frames(x.shape[1])
        # float32 sums in another order
        torch.testing.assert_close(item[: len(expected)], expected, atol=1e-5, rtol=0)
        assert (item[len(expected) :] == 0).all()


@torch.no_grad()
def test_much_padding_changes_no_bit_on_a_cpu(encoder):
    sizes = [16000, 5000, 400, 1]
    sig = torch.randn(4, 16000)
    feats = encoder(sig, lens=torch.tensor(sizes) / 16000)
    for row, size, item in zip(sig, sizes, feats, strict=True):
        expected = encoder(row[None, :size])[0]
        torch.testing.assert_close(item[: len(expected)], expected, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.usefixtures("_padding")
def test_feats_ignore_padding_in_a_short_batch(encoder):
    sig = torch.randn(2, 300)
    feats = encoder(sig, lens=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(feats[:1], encoder(sig[:1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(feats[1:], encoder(sig[1:, :150]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_lens_of_one_change_nothing(encoder):
    sig = torch.randn(2, 5000)
    torch.testing.assert_close(encoder(sig, lens=torch.ones(2)), encoder(sig), atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.usefixtures("_padding")
def test_a_batch_of_which_no_row_is_full_keeps_its_size(encoder):
    sig = torch.randn(2, 8000)
    feats = encoder(sig, lens=torch.tensor([0.5, 0.25]))
    assert feats.shape == (2, encoder.num_frames(8000), encoder.dim)
    torch.testing.assert_close(feats[:1, :12], encoder(sig[:1, :4000]), atol=1e-5, rtol=0)
    assert (feats[:, 12:] == 0).all()


@torch.no_grad()
@pytest.mark.usefixtures("_padding")
@pytest.mark.parametrize("lens", [None, torch.tensor([1.0, 0.4, 1e-4])], ids=["full", "padded"])
def test_feats_do_not_depend_on_the_size_of_blocks(encoder, monkeypatch, lens):
    sig = torch.randn(3, 40000)
    expected = encoder(sig, lens=lens)
    monkeypatch.setattr("focalcodec.wavlm.blocks.BLOCK_FLOATS_CPU", 1)  # the shortest: 16 frames
    torch.testing.assert_close(encoder(sig, lens=lens), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_feats_follow_weights_edited_in_place(encoder):
    sig = torch.randn(1, 8000)
    encoder(sig)
    encoder.encoder.relative_embedding.weight.mul_(-1)
    fresh = WavLM(**SIZES).eval()
    fresh.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(sig), fresh(sig), atol=0, rtol=0)


def test_num_samples_inverts_num_frames(encoder):
    frames = torch.arange(1, 5000)
    samples = encoder.num_samples(frames)
    torch.testing.assert_close(encoder.num_frames(samples), frames)
    torch.testing.assert_close(encoder.num_frames(samples[1:] - 1), frames[:-1])
    assert encoder.num_samples(3) == 1040 and encoder.num_frames(1040) == 3
    assert [encoder.num_frames(n) for n in (0, 1, 399, 719, 720)] == [1, 1, 1, 1, 2]


@torch.no_grad()
@pytest.mark.parametrize("size", [0, 1, 9, 399, 400, 720, 1039, 1040, 5000])
def test_forward_gives_num_frames(encoder, size):
    assert encoder(torch.zeros(1, size)).shape == (1, encoder.num_frames(size), encoder.dim)


def test_unusual_strides_keep_the_contract():
    sizes = dict(hidden_dims=(8, 8, 8), kernel_sizes=(7, 4, 1), strides=(3, 4, 2))
    encoder = WavLM(**SIZES | sizes).eval()
    assert encoder.hop_length == 24
    for size in (*range(1, 90), 500):
        assert encoder(torch.zeros(1, size)).shape[1] == encoder.num_frames(size)


@pytest.mark.usefixtures("_padding")
@pytest.mark.parametrize("lens", [None, torch.tensor([1.0, 0.5])], ids=["full", "padded"])
def test_gradients_reach_every_parameter_and_the_signal(lens):
    encoder = with_lively_weights(WavLM(**SIZES | dict(dropout=0.1))).train()
    sig = torch.randn(2, 4000)
    if lens is not None:
        sig[1, 2000:] = float("nan")
    sig.requires_grad_()
    encoder(sig, lens=lens).square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad.isfinite().all() and weight.grad.abs().sum() > 0, name
    assert sig.grad.isfinite().all()
    if lens is not None:
        assert (sig.grad[1, 2000:] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("lens", [None, torch.tensor([1.0, 0.5])], ids=["full", "padded"])
def test_bf16_autocast_stays_close(encoder, lens):
    sig = torch.randn(2, 8000)
    expected = encoder(sig, lens=lens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feats = encoder(sig, lens=lens)
    assert feats.isfinite().all()
    error = (feats.float() - expected).square().mean() / expected.square().mean()
    assert error < 1e-3  # bf16 keeps 8 bits: relative errors of a few parts in 1000 a layer


@torch.no_grad()
@pytest.mark.parametrize("lens", [None, torch.tensor([1.0, 0.5])], ids=["full", "padded"])
def test_one_graph_serves_every_length(encoder, lens):
    counter = CompileCounter()
    compiled = torch.compile(encoder, backend=counter, fullgraph=True, dynamic=True)
    for size in (8000, 4000, 12345):
        sig = torch.randn(2, size)
        expected = encoder(sig, lens=lens)
        # float32 noise of this case against float64 is 1.3e-5 both ways, features peak at about 10
        torch.testing.assert_close(compiled(sig, lens=lens), expected, atol=3e-5, rtol=0)
    assert counter.frame_count == 1


def test_gradients_of_a_plain_cpu_are_those_of_the_convolutions(encoder, monkeypatch):
    sig = torch.randn(2, 8000)
    grads = {}
    for plain in (True, False):
        if not plain:
            for module in ("features", "transformer"):
                monkeypatch.setattr(f"focalcodec.wavlm.{module}.is_plain_cpu", lambda x: False)
        encoder.zero_grad()
        encoder(sig).square().mean().backward()
        grads[plain] = {name: weight.grad.clone() for name, weight in encoder.named_parameters()}
    for name, expected in grads[False].items():
        error = (grads[True][name] - expected).norm() / expected.norm()
        assert error < 1e-4, name  # float32 through 7 convolutions and back


@pytest.mark.parametrize("sig", [torch.zeros(500), torch.zeros(1, 500, dtype=torch.int16)])
def test_wrong_input_is_refused(encoder, sig):
    with pytest.raises(ValueError, match="sig"):
        encoder(sig)
    with pytest.raises(ValueError, match="lens"):
        encoder(torch.zeros(2, 500), lens=torch.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_heads=5), "num_heads"),
        (dict(strides=(5, 2)), "strides"),
        (dict(max_distance=8), "max_distance"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        WavLM(**SIZES | arguments)
