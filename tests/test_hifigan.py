"""HiFi-GAN as a decoder: SpeechBrain's numbers, Vocos' lengths, padding that never matters."""

import math

import pytest
import torch
from speechbrain.lobes.models.HifiGAN import HifiganGenerator
from speechbrain.nnet.CNN import Conv1d

from focalcodec.hifigan import HiFiGAN
from focalcodec.masking import lengths_to_mask
from focalcodec.vocos import Vocos
from tests.test_focalnet import randomize

SMALL = {
    "dim": 16,
    "upsample_factors": (5, 4, 2),
    "upsample_kernel_sizes": (11, 8, 4),
    "resblock_kernel_sizes": (3, 7),
}


def tiny(input_dim=6, **options):
    return HiFiGAN(input_dim, **(SMALL | options)).eval()


def speechbrains(decoder):
    return HifiganGenerator(
        in_channels=decoder.input_dim,
        out_channels=1,
        resblock_type="1",
        resblock_dilation_sizes=[list(decoder.resblock_dilations)]
        * len(decoder.resblock_kernel_sizes),
        resblock_kernel_sizes=list(decoder.resblock_kernel_sizes),
        upsample_kernel_sizes=list(decoder.upsample_kernel_sizes),
        upsample_initial_channel=decoder.dim,
        upsample_factors=list(decoder.upsample_factors),
    ).eval()


def renamed(theirs, decoder):
    """SpeechBrain's weights under our names: its residual blocks stand in one list."""
    num_kernels = len(decoder.resblock_kernel_sizes)
    state = {}
    for key, value in theirs.state_dict().items():
        words = key.replace(".conv.", ".").split(".")
        if words[0] == "ups":
            words = ["steps", words[1], "upsample", *words[2:]]
        elif words[0] == "resblocks":
            step, block = divmod(int(words[1]), num_kernels)
            pair, place = words[3], str(int(words[2] == "convs2"))
            words = [f"steps.{step}.resblocks.{block}.pairs.{pair}.{place}", *words[4:]]
        state[".".join(words)] = value
    return state


@pytest.mark.parametrize("pads_with_zeros", [True, False])
def test_equals_speechbrains_generator_on_its_weights(pads_with_zeros):
    decoder = tiny()
    theirs = randomize(speechbrains(decoder))
    if pads_with_zeros:
        for module in theirs.modules():
            if isinstance(module, Conv1d):
                module.padding_mode = "constant"
    decoder.load_state_dict(renamed(theirs, decoder))
    feats = torch.randn(2, 40, 6)
    with torch.no_grad():
        sig, expected = decoder(feats), theirs(feats.transpose(1, 2))[:, 0]
    assert sig.shape == expected.shape == (2, 40 * 40)
    # Where SpeechBrain mirrors the ends instead, the middle is the same.
    inner = slice(None) if pads_with_zeros else slice(17 * 40, 23 * 40)
    assert torch.allclose(sig[:, inner], expected[:, inner], atol=1e-5)  # float32, 39 convolutions


def test_default_is_v1_at_320_samples_a_frame():
    decoder = HiFiGAN()
    assert decoder.hop_length == 320
    theirs = speechbrains(decoder)
    assert {k: v.shape for k, v in renamed(theirs, decoder).items()} == {
        k: v.shape for k, v in decoder.state_dict().items()
    }


@pytest.mark.parametrize("num_frames", [1, 2, 7, 22])
def test_length_is_that_of_vocos(num_frames):
    hop = math.prod(SMALL["upsample_factors"])
    vocos = Vocos(6, num_layers=1, dim=4, ffn_dim=4, n_fft=2 * hop, hop_length=hop)
    feats = torch.randn(2, num_frames, 6)
    assert tiny()(feats).shape == vocos(feats).shape == (2, num_frames * hop)


def test_padding_never_changes_a_result():
    decoder = randomize(tiny())
    feats = torch.randn(3, 9, 6)
    lengths = torch.tensor([9, 4, 1])
    mask = lengths_to_mask(lengths, 9)
    sig = decoder(feats.masked_fill(~mask[..., None], math.nan), mask=mask)
    for row, length in enumerate(lengths.tolist()):
        alone = decoder(feats[row : row + 1, :length])[0]
        size = length * decoder.hop_length
        assert torch.allclose(sig[row, :size], alone, atol=1e-5)  # float32, 39 convolutions
        assert not sig[row, size:].any()


def test_every_weight_gets_a_gradient_and_the_signal_stays_in_range():
    decoder = randomize(tiny()).train()
    sig = decoder(10 * torch.randn(1, 5, 6))
    assert sig.abs().max() <= 1
    sig.square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsample_factors": (5, 4)}, "one entry per step"),
        ({"upsample_kernel_sizes": (10, 8, 4)}, "got 10 for factor 5"),
        ({"dim": 12}, "multiple of 2\\^3"),
        ({"resblock_kernel_sizes": (4,)}, "must be odd"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_feats_of_another_width_are_refused():
    with pytest.raises(ValueError, match="6 channels"):
        tiny()(torch.randn(1, 5, 7))
