"""Compressor, decompressor and their parts: published numbers, and padding that never matters."""

import inspect
import json
from functools import partial
from math import prod

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from focalcodec.activations import LeakyReLU, Snake
from focalcodec.focal_block import FeedForward, FocalBlock, FocalModulation
from focalcodec.focalnet import Compressor, Decompressor, DownScale, UpScale
from focalcodec.masking import lengths_to_mask

# Of the peak; measured float32 noise of the references is up to 3e-6 (golden/README.md).
GOLDEN_TOLERANCE = 5e-6

GOLDEN_MODULES = {
    "snake": lambda: Snake(6),
    "down2_noncausal": lambda: DownScale(6, 5, factor=2, activation=Snake(5)),
    "down3_noncausal": lambda: DownScale(6, 5, factor=3, activation=Snake(5)),
    "up2_noncausal": lambda: UpScale(6, 5, factor=2, activation=Snake(6)),
    "focalmod_noncausal": lambda: FocalModulation(8),
    "focalmod_post_noncausal": lambda: FocalModulation(
        8, window=6, level=3, factor=4, post_norm=True, normalize_modulator=True
    ),
    "focalblock_noncausal": lambda: FocalBlock(8, window=5, ffn_ratio=2.5, layer_scale=1e-4),
    "focalblock_post_noncausal": lambda: FocalBlock(
        8, window=5, level=1, ffn_ratio=2.5, post_norm=True
    ),
}
FACTORS = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 3, 2), (4, 1, 2)]
VARIANTS = {
    "plain": {},
    "layer_scale": {"layer_scale": 0.5},
    "post_norm": {"post_norm": True, "normalize_modulator": True},
    "even_kernels": {"window": 4, "level": 1},
}
factors = pytest.mark.parametrize("factors", FACTORS, ids=lambda f: "x".join(map(str, f)))
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def make_compressor(factors, *, activation=Snake, **block):
    compressor = Compressor(
        6,
        5,
        hidden_dims=[8, 6, 4],
        downscale_factors=factors,
        mixer=partial(FocalBlock, **block),
        activation=activation,
    )
    return randomize(compressor)


def make_decompressor(factors, *, activation=Snake, **block):
    decompressor = Decompressor(
        5,
        6,
        hidden_dims=[4, 6, 8],
        upscale_factors=factors,
        mixer=partial(FocalBlock, **block),
        activation=activation,
    )
    return randomize(decompressor)


def randomize(module):
    """Make every parameter count: initial values hide scales of 1e-4 and biases of 0."""
    for parameter in module.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape) + 0.1
    return module.eval()


def from_golden_configs(config):
    compressor, decompressor = config["compressor_config"], config["decompressor_config"]
    mixer = partial(
        FocalBlock,
        window=compressor["focal_window"],
        level=compressor["focal_level"],
        factor=compressor["focal_factor"],
        layer_scale=compressor["layerscale_init"] if compressor["use_layerscale"] else None,
        post_norm=compressor["use_post_norm"],
        normalize_modulator=compressor["normalize_modulator"],
    )
    return (
        Compressor(
            compressor["input_dim"],
            compressor["output_dim"],
            hidden_dims=compressor["hidden_dims"],
            downscale_factors=compressor["downscale_factors"],
            mixer=mixer,
            activation=Snake,
        ),
        Decompressor(
            decompressor["input_dim"],
            decompressor["output_dim"],
            hidden_dims=decompressor["hidden_dims"],
            upscale_factors=decompressor["upscale_factors"],
            mixer=mixer,
            activation=Snake,
        ),
    )


def load_part(module, tensors, *, prefix):
    selected = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    module.load_state_dict(selected, strict=True)
    return module.eval()


def assert_golden(result, reference):
    assert result.shape == reference.shape
    assert (result - reference).abs().max() <= GOLDEN_TOLERANCE * reference.abs().max()


@pytest.mark.parametrize("case", GOLDEN_MODULES)
@torch.no_grad()
def test_module_gives_published_values(case, shared):
    tensors = load_file(shared / "golden/modules/io.safetensors")
    module = load_part(GOLDEN_MODULES[case](), tensors, prefix=f"{case}/param/")
    calls = [key.removesuffix("/in0") for key in tensors if key.startswith(f"{case}/")]
    calls = [call for call in calls if f"{call}/in0" in tensors]
    assert calls
    for call in calls:
        # The published DownScale loses frames at factor 3; the next test has ours.
        if call == "down3_noncausal/T7":
            continue
        x, reference = tensors[f"{call}/in0"], tensors[f"{call}/out"]
        if case == "snake":
            assert_golden(module(x.transpose(1, 2)).transpose(1, 2), reference)
        else:
            assert_golden(module(x), reference)
            everything = torch.ones(x.shape[:2], dtype=torch.bool)
            assert_golden(module(x, mask=everything), reference)


@torch.no_grad()
def test_downscale_keeps_the_last_frames(shared):
    tensors = load_file(shared / "golden/modules/io.safetensors")
    module = load_part(
        GOLDEN_MODULES["down3_noncausal"](), tensors, prefix="down3_noncausal/param/"
    )
    x, reference = tensors["down3_noncausal/T7/in0"], tensors["down3_noncausal/T7/out"]
    assert_golden(module(x)[:, :2], reference)
    assert module(x).shape[1] == 3
    padded = F.pad(x, (0, 0, 0, 2))
    assert torch.allclose(module(x), module(padded), atol=1e-6)
    assert module(x[:, :1]).shape[1] == 1


@pytest.mark.parametrize("case", ["50hz", "25hz", "12_5hz"])
@torch.no_grad()
def test_stages_give_published_values(case, shared):
    folder = shared / f"golden/noncausal_{case}"
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    tensors = load_file(folder / "io.safetensors")
    compressor, decompressor = from_golden_configs(config)
    load_part(compressor, weights, prefix="compressor.")
    load_part(decompressor, weights, prefix="decompressor.")
    names = [key.removesuffix("/feats") for key in tensors if key.endswith("/feats")]
    assert {"single", "short100", "batch"} <= set(names)
    for name in names:
        lats = F.normalize(compressor(tensors[f"{name}/feats"]), dim=-1)
        assert_golden(lats, tensors[f"{name}/lats"])
        if f"{name}/qfeats" in tensors:
            assert_golden(decompressor(tensors[f"{name}/codes"]), tensors[f"{name}/qfeats"])


def test_default_size_has_published_parameters(shared):
    published = {}
    for line in (shared / "golden/keys/keys_50hz_v002_layout.txt").read_text().splitlines():
        key, shape, _ = line.split("\t")
        published[key] = tuple(json.loads(shape))
    with torch.device("meta"):
        compressor = Compressor(
            1024,
            13,
            hidden_dims=[1024, 512, 256],
            downscale_factors=[1, 1, 1],
            mixer=FocalBlock,
            activation=Snake,
        )
        decompressor = Decompressor(
            13,
            1024,
            hidden_dims=[256, 512, 1024],
            upscale_factors=[1, 1, 1],
            mixer=FocalBlock,
            activation=Snake,
        )
    for prefix, module in (("compressor.", compressor), ("decompressor.", decompressor)):
        ours = {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}
        assert ours == {k: v for k, v in published.items() if k.startswith(prefix)}
        assert sum(map(prod, ours.values())) == pytest.approx(18.3e6, abs=0.05e6)


@factors
@variants
@torch.no_grad()
def test_compressor_ignores_padding(factors, variant):
    compressor = make_compressor(factors, **variant)
    check_padding(compressor, dim=6, num_frames=lambda n: ceil_chain(n, factors))


@factors
@variants
@torch.no_grad()
def test_decompressor_ignores_padding(factors, variant):
    decompressor = make_decompressor(factors, **variant)
    check_padding(decompressor, dim=5, num_frames=lambda n: n * prod(factors))


@pytest.mark.parametrize(
    ("module", "num_frames"),
    [
        (FocalBlock(6), lambda n: n),
        (FocalModulation(6, window=4), lambda n: n),
        (DownScale(6, 5, factor=3, activation=Snake(5)), lambda n: -(-n // 3)),
        (UpScale(6, 5, factor=3, activation=Snake(6)), lambda n: 3 * n),
    ],
    ids=["block", "modulation", "downscale", "upscale"],
)
@torch.no_grad()
def test_part_ignores_padding(module, num_frames):
    check_padding(randomize(module), dim=6, num_frames=num_frames)


def check_padding(module, *, dim, num_frames):
    lengths = torch.tensor([13, 1, 7, 2, 12])
    x = torch.randn(len(lengths), 14, dim)
    mask = lengths_to_mask(lengths, 14)
    batch = module(x.masked_fill(~mask[..., None], torch.nan), mask=mask)
    assert batch.shape[1] == num_frames(14)
    assert torch.equal(batch, module(x.masked_fill(~mask[..., None], 1e4), mask=mask))
    for item, rows, length in zip(x, batch, lengths.tolist(), strict=True):
        alone = module(item[None, :length])
        valid = num_frames(length)
        assert alone.shape[1] == valid
        # float32: sums of the average and of matrix products run in another order.
        assert (rows[:valid] - alone[0]).abs().max() <= 5e-6 * alone.abs().max()
        assert not rows[valid:].any()


def ceil_chain(size, factors):
    for factor in factors:
        size = -(-size // factor)
    return size


@factors
def test_lengths_are_rounded_up_and_restored(factors):
    compressor, decompressor = make_compressor(factors), make_decompressor(factors[::-1])
    for num_frames in (1, 2, 3, 11, 12):
        lats = compressor(torch.randn(1, num_frames, 6))
        assert lats.shape == (1, ceil_chain(num_frames, factors), 5)
        qfeats = decompressor(lats)
        assert qfeats.shape == (1, lats.shape[1] * prod(factors), 6)
        mask = torch.ones(1, num_frames, dtype=torch.bool)
        assert mask[:, :: prod(factors)].shape == lats.shape[:2]


@pytest.mark.parametrize("make", [make_compressor, make_decompressor])
def test_gradients_reach_all_parameters_and_no_padding(make):
    module = make((2, 1, 3), layer_scale=1e-4).train()
    x = torch.randn(2, 9, module.input_dim)
    mask = lengths_to_mask(torch.tensor([9, 4]), 9)
    x = x.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    module(x, mask=mask).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert x.grad[mask].any() and not x.grad[~mask].any()


@pytest.mark.parametrize("make", [make_compressor, make_decompressor])
def test_recomputing_keeps_little_and_gives_the_same_gradients(make):
    """With dropout, whose draws have to be repeated, and padding."""
    module = make((2, 1, 1)).train()
    module.dropout = 0.2
    x = torch.randn(2, 12, module.input_dim)
    mask = lengths_to_mask(torch.tensor([12, 8]), 12)
    found = []
    for module.recomputes in (False, True):
        kept = {}

        def keep(saved, kept=kept):
            kept[saved.data_ptr()] = saved.numel()
            return saved

        torch.manual_seed(1)
        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            result = module(x, mask=mask)
        result.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in module.parameters()]
        found.append((sum(kept.values()), [result.detach(), *gradients]))
    (all_kept, plain), (little_kept, recomputed) = found
    assert all(torch.equal(*pair) for pair in zip(plain, recomputed, strict=True))
    assert little_kept < all_kept / 3


def test_item_without_real_frames_is_zero_and_harmless():
    block = randomize(FocalBlock(4))
    mask = torch.tensor([[True, True, False], [False, False, False]])
    y = block(torch.randn(2, 3, 4), mask=mask)
    assert not y[1].any()
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_average_is_exact_under_half_precision():
    modulation = randomize(FocalModulation(4, window=1, level=1))
    # 4096 frames of about 30: their sum overflows half precision, their mean does not.
    x = (30 + torch.rand(1, 4096, 4)).half()
    modulation = modulation.half()
    y = modulation(x, mask=torch.ones(1, 4096, dtype=torch.bool))
    assert y.isfinite().all()
    reference = modulation.float()(x.float())
    assert (y.float() - reference).abs().max() <= 2e-2 * reference.abs().max()  # half: 11 bits


def test_bf16_autocast_step():
    compressor, decompressor = make_compressor((2, 1, 1)), make_decompressor((1, 1, 2))
    mask = lengths_to_mask(torch.tensor([8, 5]), 8)
    feats = torch.randn(2, 8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lats = compressor(feats, mask=mask)
        qfeats = decompressor(lats, mask=mask[:, ::2])
    qfeats.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in compressor.parameters())


def test_layer_scale_starts_small_and_is_optional():
    block = FocalBlock(8, layer_scale=1e-4)
    assert torch.equal(block.modulation_gamma, torch.full((8,), 1e-4))
    assert torch.equal(block.feed_forward_gamma, torch.full((8,), 1e-4))
    x = torch.randn(2, 5, 8)
    assert torch.allclose(block(x), x, atol=1e-3)  # 1e-4 times branches below 10
    assert not any("gamma" in name for name in FocalBlock(8).state_dict())


def test_dropout_acts_in_training_only():
    x = torch.randn(1, 6, 8)
    for module in (FocalBlock(8, dropout=0.5), FocalModulation(8, dropout=0.5)):
        assert not torch.equal(module(x), module(x))
        module.eval()
        assert torch.equal(module(x), module(x))


def test_mixer_and_activation_are_injected():
    class Halve(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim = dim

        def forward(self, x, *, mask=None):
            return x / 2

    compressor = Compressor(
        3, 2, hidden_dims=[4, 5], downscale_factors=[1, 2], mixer=Halve, activation=LeakyReLU
    )
    assert [layer["focal_block"].dim for layer in compressor.layers] == [4, 5]
    assert [layer["downscale"].activation.dim for layer in compressor.layers] == [4, 5]
    assert compressor(torch.randn(1, 5, 3)).shape == (1, 3, 2)


def test_activations_follow_their_formulas():
    x = torch.randn(2, 3, 4)
    snake = Snake(3)
    snake.alpha.data = torch.tensor([[0.5], [1.0], [2.0]])
    expected = x + torch.sin(snake.alpha * x) ** 2 / snake.alpha
    assert torch.allclose(snake(x), expected, atol=1e-6)
    assert torch.equal(LeakyReLU(3, negative_slope=0.1)(x), torch.where(x > 0, x, 0.1 * x))


def test_constructor_arguments_are_attributes():
    modules = [
        make_compressor((2, 1, 1)),
        make_decompressor((1, 1, 2)),
        FocalBlock(4, layer_scale=0.1, ffn_ratio=2.5, dropout=0.1),
        FocalModulation(4, window=5, dropout=0.1),
        FeedForward(4, ffn_dim=6),
        DownScale(4, 3, factor=2, activation=Snake(3)),
        UpScale(4, 3, factor=2, activation=Snake(4)),
        Snake(4),
        LeakyReLU(4),
    ]
    for module in modules:
        arguments = {
            name: getattr(module, name) for name in inspect.signature(type(module)).parameters
        }
        rebuilt = type(module)(**arguments)
        assert rebuilt.state_dict().keys() == module.state_dict().keys()
        for name, value in module.state_dict().items():
            assert rebuilt.state_dict()[name].shape == value.shape


@pytest.mark.parametrize(
    ("feats", "mask", "message"),
    [
        (torch.zeros(2, 6), None, "feats must be"),
        (torch.zeros(2, 0, 6), None, "at least 1 frame"),
        (torch.zeros(2, 3, 7), None, "6 channels"),
        (torch.zeros(2, 3, 6), torch.ones(2, 3), "mask must be bool"),
        (torch.zeros(2, 3, 6), torch.ones(2, 4, dtype=torch.bool), "mask must be bool"),
    ],
    ids=["2-D", "empty", "channels", "float mask", "long mask"],
)
def test_wrong_input_is_named(feats, mask, message):
    with pytest.raises(ValueError, match=message):
        make_compressor((1, 1, 1))(feats, mask=mask)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="hidden_dims and downscale_factors"):
        make_compressor((1, 1))
    with pytest.raises(ValueError, match="upscale_factors must be at least 1"):
        make_decompressor((1, 0, 1))
    with pytest.raises(ValueError, match="window, level and pool_size"):
        FocalModulation(4, level=0)
