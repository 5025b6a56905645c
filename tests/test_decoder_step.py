"""The decoder stage's step gives what the plain step gives, in fewer passes."""

import pytest
import torch
from speechbrain.lobes.models.HifiGAN import (
    HingeDLoss,
    HingeGLoss,
    L1SpecLoss,
    MelganFeatureLoss,
)

from recipes.common.ema import MovingAverage
from recipes.common.losses import LogMelLoss
from recipes.common.weights import load_parameters
from recipes.export import export
from tests.stages import build, fit_one, start, steps_of, train

MEL = {"sample_rate": 16000, "hop_length": 320, "win_length": 1024, "n_fft": 1024}


def plain_losses(brain, batch):
    """Yield the two losses as published: real and generated audio apart, in both halves."""
    discriminator = brain.modules.discriminator
    with torch.no_grad():
        feats, sig, _ = brain.segments(batch)
    rec_sig = brain.modules.decoder(feats)
    rec_scores, _ = discriminator(rec_sig.detach())
    ref_scores, _ = discriminator(sig)
    yield sum(HingeDLoss()(*pair)[0] for pair in zip(rec_scores, ref_scores, strict=True))
    rec_scores, rec_maps = discriminator(rec_sig)
    _, ref_maps = discriminator(sig)
    mel = L1SpecLoss(**MEL, n_mel_channels=80, mel_fmin=0, mel_fmax=8000)(rec_sig, sig)
    adversarial = sum(HingeGLoss()(score) for score in rec_scores)
    yield adversarial + 54 * MelganFeatureLoss()(rec_maps, ref_maps) + 45 * mel


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_and_gradients_are_those_of_the_plain_step(accumulation, corpus, tmp_path):
    """Inside an accumulation group the feature maps of the first half are used again."""
    brain, loader, _, _ = build(
        "decoder", corpus, tmp_path / "run", grad_accumulation_factor=accumulation
    )
    batch = next(iter(loader))
    start(brain)
    brain.modules.eval()  # spectral norm's power iteration goes on with every pass
    brain.step = 1
    results = []
    for losses in (
        (update.loss for update in brain.updates(batch)),
        plain_losses(brain, batch),
    ):
        values, gradients = [], []
        for name, loss in zip(("discriminator", "decoder"), losses, strict=True):
            brain.zero_grad(set_to_none=True)
            loss.backward()
            values.append(loss.detach())
            gradients += [p.grad.clone() for p in brain.modules[name].parameters()]
        results.append((values, gradients))
    (ours, our_gradients), (plain, plain_gradients) = results
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    assert len(our_gradients) == len(plain_gradients) > 50
    for actual, expected in zip(our_gradients, plain_gradients, strict=True):
        # float32 sums over one batch or two
        assert (actual - expected).norm() <= 1e-4 * expected.norm() + 1e-6


def test_discriminators_judge_in_three_passes_not_four(corpus, tmp_path):
    brain, loader, _, _ = build("decoder", corpus, tmp_path / "run")
    start(brain)
    sizes = []
    brain.modules.discriminator.register_forward_hook(
        lambda module, inputs, output: sizes.append((len(inputs[0]), inputs[0].requires_grad))
    )
    batch = next(iter(loader))
    fit_one(brain, batch)
    # Both at once, reference, decoded: as many segments as in four passes of two.
    assert sizes == [(4, False), (2, False), (2, True)]


def test_inside_an_accumulation_group_the_reference_is_judged_once(corpus, tmp_path):
    brain, loader, _, _ = build("decoder", corpus, tmp_path / "run", grad_accumulation_factor=2)
    start(brain)
    sizes = []
    brain.modules.discriminator.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    batches = list(loader)
    fit_one(brain, batches[0])
    assert sizes == [4, 2]
    fit_one(brain, batches[1])
    assert sizes == [4, 2, 4, 2, 2]


def test_log_mel_loss_is_speechbrains():
    sig, other = torch.randn(2, 3, 7040)
    ours = LogMelLoss(**MEL, n_mels=80, f_min=0.0, f_max=8000.0)
    theirs = L1SpecLoss(**MEL, n_mel_channels=80, mel_fmin=0.0, mel_fmax=8000.0)
    assert torch.equal(ours(sig, other), theirs(sig, other))


def test_log_mel_loss_is_float32_under_autocast_too():
    loss = LogMelLoss(**MEL, n_mels=80, f_min=0.0, f_max=8000.0)
    rec_sig, ref_sig = torch.randn(2, 2, 7040, generator=torch.Generator().manual_seed(0))
    expected = loss(rec_sig, ref_sig)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(rec_sig, ref_sig), expected)


def test_margins_of_the_discriminators_are_logged(decoder_run):
    for step in steps_of(decoder_run):
        margin = step["score_real"] - step["score_fake"]
        assert step["score_margin"] == pytest.approx(margin, rel=1e-4, abs=1e-7)
        assert step["failed_steps"] == 0


# Moving average


def test_the_average_follows_slowly_and_forgets_the_start():
    module = torch.nn.BatchNorm1d(2)
    average = MovingAverage(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(2.0)
    average.update(module, step=1)
    assert torch.allclose(average.module.weight, torch.full((2,), 1 + (1 - 2 / 11)))
    average.update(module, step=10**6)
    assert torch.allclose(average.module.weight, torch.full((2,), 2 - 0.9 * 2 / 11))
    module(torch.randn(4, 2))
    average.update(module, step=3)
    assert average.module.num_batches_tracked == 1 and not average.module.training


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(decay, corpus, tmp_path):
    with pytest.raises(ValueError, match="ema_decay must be in"):
        build("decoder", corpus, tmp_path / "run", ema_decay=decay)


def test_the_average_is_validated_resumed_exported_and_decoded_with(
    quantizer_run, corpus, tmp_path
):
    folder = tmp_path / "run"
    train("decoder", corpus, folder, ema_decay=0.9, number_of_epochs=2)
    train("decoder", corpus, tmp_path / "first", ema_decay=0.9)
    train("decoder", corpus, tmp_path / "first", ema_decay=0.9, number_of_epochs=2)
    weights = {}
    for run in (folder, tmp_path / "first"):
        decoder = build("decoder", corpus, tmp_path / f"{run.name}_new").brain.modules.decoder
        load_parameters(decoder, run, name="decoder", min_key="mel")
        weights[run] = [p.detach() for p in decoder.parameters()]
    assert all(map(torch.equal, *weights.values()))
    brain, _, valid, _ = build("decoder", corpus, folder, ema_decay=0.9, number_of_epochs=2)
    brain.on_fit_start()
    assert all(map(torch.equal, brain.average.module.parameters(), weights[folder]))
    assert not all(map(torch.equal, brain.modules.decoder.parameters(), weights[folder]))
    codec = export(folder, quantizer_run, tmp_path / "codec")
    assert all(map(torch.equal, codec.decoder.parameters(), weights[folder]))


# Fine-tuning


def test_fine_tuning_starts_from_a_codecs_weights(decoder_run, quantizer_run, corpus, tmp_path):
    codec = export(decoder_run, quantizer_run, tmp_path / "codec")
    for stage, names in {
        "decoder": ["decoder"],
        "quantizer": ["compressor", "decompressor"],
    }.items():
        brain = build(stage, corpus, tmp_path / stage, init_from=tmp_path / "codec").brain
        for name in names:
            ours = brain.modules[name].state_dict()
            assert all(
                torch.equal(ours[key], x) for key, x in getattr(codec, name).state_dict().items()
            )


def test_a_resumed_fine_tuning_goes_on_with_its_own_weights(
    decoder_run, quantizer_run, corpus, tmp_path
):
    codec = export(decoder_run, quantizer_run, tmp_path / "codec")
    train("decoder", corpus, tmp_path / "run", init_from=tmp_path / "codec")
    (tmp_path / "codec/config.json").unlink()  # no longer needed
    brain = build("decoder", corpus, tmp_path / "run", init_from=tmp_path / "codec").brain
    brain.on_fit_start()
    assert not all(map(torch.equal, brain.modules.decoder.parameters(), codec.decoder.parameters()))


def test_a_codec_of_another_size_or_encoder_is_refused(
    decoder_run, quantizer_run, corpus, tmp_path
):
    export(decoder_run, quantizer_run, tmp_path / "codec")
    init = {"init_from": tmp_path / "codec"}
    with pytest.raises(ValueError, match="the YAML's decoder .* must be that of init_from"):
        build(
            "decoder", corpus, tmp_path / "a", **init, decoder="!include:decoder/vocos_small.yaml"
        )
    (tmp_path / "logmel.yaml").write_text(
        "!new:focalcodec.logmel.LogMel\nn_mels: 80\nf_min: 50.0\n"
    )
    with pytest.raises(ValueError, match="has encoder .* --encoder_checkpoint"):
        build("decoder", corpus, tmp_path / "b", **init, encoder=f"!include:{tmp_path}/logmel.yaml")
