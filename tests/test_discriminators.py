"""Properties of the discriminators."""

import copy

import pytest
import torch
from speechbrain import Stage
from speechbrain.lobes.models.HifiGAN import (
    DiscriminatorLoss,
    GeneratorLoss,
    HifiganDiscriminator,
    HingeDLoss,
    HingeGLoss,
    MelganFeatureLoss,
    MSEDLoss,
)
from speechbrain.lobes.models.HifiGAN import DiscriminatorS as SpeechBrainScale

from recipes.common.discriminators import MultiPeriodMultiScaleDiscriminator


def tiny(**options):
    return MultiPeriodMultiScaleDiscriminator(**{"width": 1 / 32, **options})


def noise(*shape):
    return torch.empty(*shape).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def flat(feats):
    return [feat for maps in feats for feat in maps]


def ours(state_dict):
    """SpeechBrain's names as ours: it wraps 2-D convolutions and has the older spectral norm."""
    names = {
        ".conv.": ".",
        ".weight_orig": ".parametrizations.weight.original",
        ".weight_u": ".parametrizations.weight.0._u",
        ".weight_v": ".parametrizations.weight.0._v",
    }
    renamed = {}
    for key, value in state_dict.items():
        for theirs, our in names.items():
            key = key.replace(theirs, our)
        renamed[key] = value
    return renamed


def test_width_1_equals_speechbrain_on_its_weights():
    theirs = HifiganDiscriminator().eval()
    discriminator = MultiPeriodMultiScaleDiscriminator().eval()
    discriminator.load_state_dict(ours(theirs.state_dict()), strict=True)
    sig = noise(1, 1, 1790)
    with torch.no_grad():
        their_scores, their_feats = theirs(sig)
        scores, feats = discriminator(sig)
    assert [len(maps) for maps in feats] == [len(maps) for maps in their_feats] == [6] * 5 + [8] * 3
    for our, their in zip(scores + flat(feats), their_scores + flat(their_feats), strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=0)
    assert num_parameters(discriminator) == num_parameters(theirs) == 70_724_591


def test_training_equals_speechbrain_once_the_singular_vectors_have_settled():
    old, new = SpeechBrainScale(use_spectral_norm=True), tiny(width=1, periods=[], num_scales=1)
    with torch.no_grad():
        for conv in [*old.convs, old.conv_post]:  # a large first singular value settles fast
            u, v = (torch.randn(size) for size in (len(conv.weight_orig), conv.weight_v.numel()))
            conv.weight_orig += torch.outer(u, v).view_as(conv.weight_orig)
        sig = noise(1, 1, 256)
        for _ in range(10):
            old(sig)
        state = {f"msd.discriminators.0.{key}": value for key, value in old.state_dict().items()}
        new.load_state_dict(ours(state), strict=True)
        score, feats = old(sig)
        scores, all_feats = new(sig)
    torch.testing.assert_close(scores[0], score, rtol=1e-4, atol=1e-6)  # float32, 8 layers
    torch.testing.assert_close(all_feats[0], feats, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [1 / 64, 1 / 16, 0.05, 0.1, 0.3], ids=str)
def test_any_width_is_valid_and_shrinks_with_its_square(width):
    discriminator = tiny(width=width, periods=[3], num_scales=2)
    _, feats = discriminator(noise(1, 800))
    assert [len(maps) for maps in feats] == [6, 8, 8]
    full = tiny(width=1, periods=[3], num_scales=2)
    assert num_parameters(discriminator) < 2 * width**2 * num_parameters(full) + 5000


def test_channel_axis_is_optional():
    discriminator = tiny().eval()
    sig = noise(2, 2000)
    with_axis, without = discriminator(sig[:, None]), discriminator(sig)
    torch.testing.assert_close(with_axis, without, rtol=0, atol=0)
    assert all(score.ndim == 2 and len(score) == 2 for score in without[0])


def test_items_of_a_batch_are_independent():
    discriminator = tiny().eval()
    real, fake = noise(2, 2000), 3 * noise(2, 2000)
    both, _ = discriminator(torch.cat([real, fake]))
    alone, _ = discriminator(fake)
    for joint, single in zip(both, alone, strict=True):
        torch.testing.assert_close(
            joint[2:], single, rtol=0, atol=1e-6
        )  # float32, other batch size


def test_speechbrains_losses_accept_the_outputs_and_gradients_reach_everything():
    discriminator = tiny()
    real, fake = noise(2, 1, 2000), (0.5 * noise(2, 1, 2000)).requires_grad_()
    real_scores, real_feats = discriminator(real)
    fake_scores, fake_feats = discriminator(fake)
    assert DiscriminatorLoss(HingeDLoss())(fake_scores, real_scores)["D_loss"].isfinite()
    losses = DiscriminatorLoss(MSEDLoss())(fake_scores, real_scores)
    losses["D_loss"].backward(retain_graph=True)
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    fake.grad = None
    generator_loss = GeneratorLoss(
        mseg_loss=HingeGLoss(),
        mseg_loss_weight=1,
        feat_match_loss=MelganFeatureLoss(),
        feat_match_loss_weight=54,
    )
    losses = generator_loss(Stage.TRAIN, fake, real, fake_scores, fake_feats, real_feats)
    losses["G_loss"].backward()
    assert fake.grad.abs().sum() > 0


def test_it_learns_to_tell_real_from_fake():
    discriminator = tiny(periods=[2, 3], num_scales=2)
    loss_of = DiscriminatorLoss(HingeDLoss())
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=4e-3, betas=(0.8, 0.99))
    real, fake = torch.sin(torch.arange(1000) / 10).repeat(2, 1), noise(2, 1000)
    losses = []
    for _ in range(25):
        scores, _ = discriminator(torch.cat([real, fake]))
        losses.append(loss_of([s[2:] for s in scores], [s[:2] for s in scores])["D_loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_bf16_autocast_stays_close_to_float32_and_keeps_the_norms_in_float32():
    discriminator = tiny().eval()
    sig = noise(2, 2000)
    reference, _ = discriminator(sig)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, feats = discriminator(sig)
        discriminator.train()(sig)
    sum(feat.float().abs().mean() for feat in flat(feats)).backward()
    assert flat(feats)[0].dtype == torch.bfloat16
    for rounded, exact in zip(scores, reference, strict=True):
        torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.02)  # 8-bit mantissa
    for name, tensor in [*discriminator.named_buffers(), *discriminator.named_parameters()]:
        assert tensor.dtype == torch.float32, name
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_autocast_does_not_touch_the_spectral_norms_vectors(device):
    plain = tiny().to(device)
    autocast = copy.deepcopy(plain)
    sig = noise(1, 2000).to(device)
    plain(sig)
    with torch.autocast(device, dtype=torch.bfloat16):
        autocast(sig)
    for (name, ours), other in zip(plain.named_buffers(), autocast.buffers(), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("periods", [(2, 3, 5, 7, 11), (2,), ()], ids=str)
def test_shortest_input_works_and_a_shorter_one_is_refused(periods):
    discriminator = tiny(periods=periods)
    scores, _ = discriminator(noise(1, discriminator.min_samples))
    assert all(score.isfinite().all() for score in scores)
    with pytest.raises(ValueError, match=f"need at least {discriminator.min_samples}"):
        discriminator(noise(1, discriminator.min_samples - 1))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\(B, T\) or \(B, 1, T\), got shape \(1, 2, 3000\)"):
        tiny()(noise(1, 2, 3000))
    with pytest.raises(ValueError, match="width must be positive"):
        tiny(width=0)
    with pytest.raises(ValueError, match="periods must be >= 1"):
        tiny(periods=[0])
    with pytest.raises(ValueError, match="no discriminator is left"):
        tiny(periods=[], num_scales=0)


def test_copies_after_a_forward_pass():
    discriminator = tiny().eval()
    sig = noise(1, 2000)
    expected = discriminator(sig)
    torch.testing.assert_close(copy.deepcopy(discriminator)(sig), expected, rtol=0, atol=0)
