"""The ablation's mixers: their sources' numbers, padding that never matters, equal sizes."""

import math
from functools import partial

import pytest
import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoderLayer
from speechbrain.nnet.attention import RelPosEncXL
from torch import nn

from focalcodec.focalnet import Compressor, Decompressor, FocalBlock
from focalcodec.masking import lengths_to_mask
from focalcodec.mixers import (
    AMPBlock,
    AntiAliasedSnake,
    ConformerBlock,
    LinearBlock,
    kaiser_sinc,
)
from recipes.downstream.separator import GeluConformerBlock
from tests.test_focalnet import randomize

MIXERS = {
    "focal": FocalBlock,
    "conformer": partial(ConformerBlock, num_heads=2, kernel_size=5),
    "amp": AMPBlock,
    "linear": LinearBlock,
}
mixers = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@mixers
def test_padding_never_changes_a_result(mixer):
    block = randomize(mixer(8)).eval()
    x = torch.randn(3, 12, 8)
    lengths = torch.tensor([12, 7, 1])
    mask = lengths_to_mask(lengths, 12)
    filled = x.masked_fill(~mask[..., None], math.nan)
    y = block(filled, mask=mask)
    assert not y[~mask].any()
    for row, length in enumerate(lengths.tolist()):
        alone = block(x[row : row + 1, :length])[0]
        assert torch.allclose(y[row, :length], alone, atol=1e-5)  # float32, a few layers


@mixers
def test_padding_gets_no_gradient(mixer):
    block = randomize(mixer(8))
    mask = lengths_to_mask(torch.tensor([9, 4]), 9)
    x = torch.randn(2, 9, 8).masked_fill(~mask[..., None], math.nan).requires_grad_()
    block(x, mask=mask).square().sum().backward()
    assert not x.grad[~mask].any()
    assert x.grad[mask].abs().sum(dim=-1).min() > 0
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@mixers
def test_item_without_real_frames_gives_zeros(mixer):
    y = randomize(mixer(8))(torch.randn(2, 5, 8), mask=lengths_to_mask(torch.tensor([5, 0]), 5))
    assert y.isfinite().all() and not y[1].any()


@pytest.mark.parametrize("name", ["focal", "conformer", "amp"])
def test_frames_are_mixed_and_by_linear_they_are_not(name):
    x = torch.randn(1, 20, 8)
    other = x.clone()
    other[0, 12, 0] += 3
    for block, reaches in ((MIXERS[name](8), True), (LinearBlock(8), False)):
        change = (randomize(block)(other) - block(x))[0].abs().amax(dim=-1) > 1e-6
        assert change[12]
        assert bool(change[10]) == bool(change[14]) == reaches


@mixers
def test_one_frame_is_enough(mixer):
    assert mixer(8)(torch.randn(2, 1, 8)).shape == (2, 1, 8)


def test_blocks_have_as_many_parameters_as_the_focal_one():
    """Of the sizes in hparams/mixer, at the small variant's widths."""
    for dim in (512, 256, 128):
        focal = num_parameters(FocalBlock(dim))
        for mixer in (ConformerBlock, AMPBlock, LinearBlock):
            assert num_parameters(mixer(dim)) == pytest.approx(focal, rel=0.04), mixer


@mixers
@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 1, 2)], ids=str)
def test_compressor_and_decompressor_take_every_mixer(mixer, factors):
    options = {"mixer": mixer, "activation": lambda dim: nn.Identity()}
    compressor = Compressor(6, 5, hidden_dims=[8, 6, 4], downscale_factors=factors, **options)
    decompressor = Decompressor(
        5, 6, hidden_dims=[4, 6, 8], upscale_factors=factors[::-1], **options
    )
    feats = torch.randn(2, 13, 6)
    mask = lengths_to_mask(torch.tensor([13, 6]), 13)
    tok_mask = mask[:, :: math.prod(factors)]
    for module in (compressor, decompressor):
        module.recomputes = True
    qfeats = decompressor(compressor(feats, mask=mask), mask=tok_mask)
    assert qfeats.shape == (2, tok_mask.shape[1] * math.prod(factors), 6)
    alone = decompressor(compressor(feats[1:, :6]))
    assert torch.allclose(qfeats[1:, : alone.shape[1]], alone, atol=1e-5)  # float32, 12 blocks


@pytest.mark.parametrize("cls", [ConformerBlock, GeluConformerBlock])
def test_conformer_equals_speechbrains_layer_on_its_weights(cls):
    sizes = {"d_model": 16, "d_ffn": 16, "nhead": 4, "kernel_size": 7}
    theirs = ConformerEncoderLayer(**sizes, activation=cls.activation).eval()
    block = cls(16, num_heads=4, kernel_size=7).eval()
    copy_conformer(randomize(theirs), block)
    x = torch.randn(2, 11, 16)
    with torch.no_grad():
        expected, _ = theirs(x, pos_embs=RelPosEncXL(16)(x))
        assert torch.allclose(block(x), expected, atol=2e-6)  # float32, one layer


def copy_conformer(theirs, block):
    """SpeechBrain's weights under our names; it keeps pointwise maps as convolutions."""
    names = {
        "ffn_module1.0.": "feed_forward1.0.",
        "ffn_module1.1.ffn.0.": "feed_forward1.1.",
        "ffn_module1.1.ffn.3.": "feed_forward1.4.",
        "norm1.norm.": "attention_norm.",
        "mha_layer.in_proj_": "attention.in_proj.",
        "mha_layer.linear_pos.": "attention.distance_proj.",
        "mha_layer.pos_bias_u": "attention.content_bias",
        "mha_layer.pos_bias_v": "attention.distance_bias",
        "mha_layer.out_proj.": "attention.out_proj.",
        "convolution_module.layer_norm.": "convolution.input_norm.",
        "convolution_module.bottleneck.0.": "convolution.in_proj.",
        "convolution_module.conv.": "convolution.dwconv.",
        "convolution_module.after_conv.0.": "convolution.norm.",
        "convolution_module.after_conv.2.": "convolution.out_proj.",
        "ffn_module2.0.": "feed_forward2.0.",
        "ffn_module2.1.ffn.0.": "feed_forward2.1.",
        "ffn_module2.1.ffn.3.": "feed_forward2.4.",
        "norm2.norm.": "norm.",
    }
    own = block.state_dict()
    state = {}
    for key, value in theirs.state_dict().items():
        start = next(start for start in names if key.startswith(start))
        name = names[start] + key.removeprefix(start)
        state[name] = value.reshape(own[name].shape)
    block.load_state_dict(state)


def test_conformer_refuses_sizes_that_do_not_fit():
    for options in ({"dim": 10, "num_heads": 4}, {"dim": 7, "num_heads": 1}, {"kernel_size": 4}):
        with pytest.raises(ValueError, match="dim must be even and a multiple of num_heads"):
            ConformerBlock(**({"dim": 8} | options))


def test_conformer_attention_drops_weights_in_training_only():
    block = ConformerBlock(8, num_heads=2, dropout=0.5)
    x = torch.randn(1, 9, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_anti_aliased_snake_equals_transformers_bigvgan():
    qwen = pytest.importorskip("transformers.models.qwen2_5_omni.modeling_qwen2_5_omni")
    ours, snake = AntiAliasedSnake(3), nn.Identity()
    theirs = qwen.Qwen2_5OmniAntiAliasedActivation1d(activation=snake)
    ours.snake = snake
    x = torch.randn(2, 3, 17)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)  # float32, two filters of 12 taps


def test_amp_equals_transformers_bigvgan_on_its_weights():
    qwen = pytest.importorskip("transformers.models.qwen2_5_omni.modeling_qwen2_5_omni")
    theirs = qwen.Qwen2_5OmniAMPBlock(6, kernel_size=3, dilation=(1, 3, 5)).eval()
    block = randomize(AMPBlock(6, dilations=(1, 3, 5)))
    for i, (activation, conv) in enumerate(zip(block.activations, block.convs, strict=True)):
        theirs.activations[i].act = activation.snake
        copy = (theirs.convs1 if i % 2 == 0 else theirs.convs2)[i // 2]
        copy.load_state_dict({"weight": conv.weight.detach(), "bias": conv.bias.detach()})
    x = torch.randn(2, 13, 6)
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2)).transpose(1, 2)
        assert torch.allclose(block(x), expected, atol=1e-5)  # float32, 6 convolutions


def test_low_pass_halves_the_cutoff_keeps_what_is_below_and_stops_what_is_above():
    taps = kaiser_sinc(cutoff=0.25, half_width=0.3, num_taps=12)
    gain = torch.fft.rfft(taps.double(), n=1000).abs()  # at 0, 0.001, ... cycles a sample
    assert gain[0] == pytest.approx(1, abs=1e-6)
    assert gain[250] == pytest.approx(0.5, abs=0.01)
    assert gain[:126].min() > 0.9  # up to half the cutoff
    assert gain[376:].max() < 0.1  # what folds back into that
    assert gain[420:].max() < 0.01
    assert torch.equal(taps, taps.flip(0)), "linear phase"


def test_snake_between_filters_aliases_less_than_snake_alone():
    """A tone whose second harmonic lies above half the frame rate must not come back below it."""
    size, tone = 512, 180  # 2 x 180 = 360 folds back to 512 - 360 = 152
    x = torch.sin(2 * math.pi * tone * torch.arange(size) / size)[None, None]
    block = AntiAliasedSnake(1)
    with torch.no_grad():
        filtered, plain = (torch.fft.rfft(y[0, 0]).abs() for y in (block(x), block.snake(x)))
    assert plain[152] > 50
    assert filtered[152] < 0.3 * plain[152]


def test_constant_input_stays_constant_through_the_filters():
    block = AntiAliasedSnake(2)
    block.snake = nn.Identity()
    x = torch.full((1, 2, 9), 0.7)
    assert torch.allclose(block(x), x, atol=1e-6)


def test_amp_refuses_sizes_that_do_not_fit():
    for options in ({"kernel_size": 4}, {"dilations": []}):
        with pytest.raises(ValueError, match="kernel_size must be odd and dilations"):
            AMPBlock(8, **options)
