"""Both stages, run from their real YAMLs on a tiny corpus: learning, logging, data."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import speechbrain as sb
import torch
from torch import nn

from recipes.common.audio_scores import evenly_spaced
from recipes.common.feature_moments import FeatureMoments
from recipes.common.run_log import Means
from recipes.common.weights import load_parameters
from tests.stages import STAGES, build, fit_one, start, steps_of, train
from tests.tiny_checkpoints import save_whisper


def test_decoder_stage_learns(decoder_run):
    steps = steps_of(decoder_run)
    assert len(steps) == 9
    assert steps[-1]["mel"] < 0.9 * steps[0]["mel"]


def test_quantizer_stage_learns(quantizer_run):
    steps = steps_of(quantizer_run)
    assert steps[-1]["reconstruction"] < 0.95 * steps[0]["reconstruction"]


@pytest.mark.parametrize("run", ["decoder_run", "quantizer_run"])
def test_run_folder_explains_itself(run, request, corpus):
    folder = request.getfixturevalue(run)
    for name in ("hyperparams.yaml", "log.txt", "env.log", "train_log.txt", "test_rec.csv"):
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.glob("*.py"))
    description = json.loads((folder / "run.json").read_text())
    assert str(corpus) in description["command"]
    assert description["versions"]["torch"] == torch.__version__
    assert len(description["config_hash"]) == 16
    assert list((folder / "tensorboard").glob("events*"))
    assert len(list((folder / "samples/valid").glob("*/ref.wav"))) == 3
    assert "\nlog_interval_steps: 1\n" in (folder / "hyperparams.yaml").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"train", "valid", "test"}
    assert metrics["test"]["not_computed"] == {}
    assert metrics["valid"]["rec_mel_distance"] > 0
    assert metrics["test"]["ref_mel_distance"] == pytest.approx(0, abs=1e-6)


def test_training_scores_by_the_models_that_it_names(corpus, tmp_path):
    whisper = save_whisper(tmp_path / "whisper")
    options = {"metrics": "[dwer, stft_distance]", "valid_metric_utterances": 1}
    metrics = train(
        "decoder",
        corpus,
        tmp_path / "run",
        score_models=f"{{asr: {whisper}}}",
        optimizer_step_limit=1,
        **options,
    )
    for subset in ("valid", "test"):
        assert str(whisper) in metrics[subset]["models"]["dwer"]
        assert metrics[subset]["rec_dwer"] >= 0
    with pytest.raises(ValueError, match="score_models must name .*asr, speaker.*{'wer': 'x'}"):
        build("decoder", corpus, tmp_path / "other", score_models="{wer: x}", **options)


def test_tensorboard_holds_losses_rates_norms_audio_and_spectrograms(quantizer_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(quantizer_run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    wanted = {"reconstruction", "entropy", "loss", "grad_norm_quantizer", "lr_quantizer"}
    assert {f"train/{name}" for name in wanted} <= set(tags["scalars"])
    assert {"valid/code_usage", "valid/normalised_entropy"} <= set(tags["scalars"])
    assert any(tag.endswith("/hyp") for tag in tags["audio"])
    assert any(tag.endswith("/hyp/spectrogram") for tag in tags["images"])


def test_recomputing_activations_changes_no_logged_number(corpus, tmp_path):
    brain = build("quantizer", corpus, tmp_path / "none", recompute_activations=True).brain
    assert all(module.recomputes for module in brain.modules.values())
    for name in ("False", "True"):
        train("quantizer", corpus, tmp_path / name, recompute_activations=name)
    assert steps_of(tmp_path / "False") == steps_of(tmp_path / "True")


@pytest.mark.parametrize(("stage", "name"), [("decoder", "mel"), ("quantizer", "reconstruction")])
def test_logged_train_losses_are_the_true_means_in_every_epoch(stage, name, corpus, tmp_path):
    """Four utterances and two in an epoch: a mean over batches would not be the mean over them."""
    for epochs in (1, 2):
        metrics = train(stage, corpus, tmp_path / "run", batch_size=4, number_of_epochs=epochs)
        experiment = build(stage, corpus, tmp_path / f"other{epochs}", batch_size=4)
        experiment.brain.train_sampler.set_epoch(epochs)
        weights = []
        for batch in experiment.train:
            frames = experiment.brain.features(batch).mask.sum()
            weights.append(len(batch.id) if stage == "decoder" else float(frames))
        values = [step[name] for step in steps_of(tmp_path / "run") if step["epoch"] == epochs]
        assert len(values) == 2 and weights[0] != weights[1]
        assert metrics["train"][name] == pytest.approx(np.average(values, weights=weights))


def test_logged_totals_are_the_weighted_sums_that_the_paper_names(decoder_run, quantizer_run):
    for step in steps_of(decoder_run):
        total = step["adversarial"] + 54 * step["feature_matching"] + 45 * step["mel"]
        assert step["decoder"] == pytest.approx(total, rel=1e-5)
        hinges = step["discriminator_real"] + step["discriminator_fake"]
        assert step["discriminator"] == pytest.approx(hinges, rel=1e-5)
    for step in steps_of(quantizer_run):
        total = step["reconstruction"] + 0.1 * step["entropy"]
        assert step["loss"] == pytest.approx(total, rel=1e-5)
        difference = step["sample_entropy"] - step["codebook_entropy"]
        assert step["entropy"] == pytest.approx(difference, rel=1e-5)


def test_backward_runs_on_the_logged_total(corpus, tmp_path):
    brain, loader, _, _ = build("quantizer", corpus, tmp_path / "run")
    start(brain)
    update = next(brain.updates(next(iter(loader))))
    assert float(update.loss.detach()) == float(update.terms["loss"])


def test_logged_valid_loss_is_the_mean_over_utterances(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run")
    brain = experiment.brain
    brain.run_log.resume(0)
    brain.on_stage_start(sb.Stage.TEST)
    brain.modules.eval()
    distances = []
    with torch.no_grad():
        for batch in experiment.valid:
            brain.evaluate_batch(batch, sb.Stage.VALID)
            for sig, part in zip(*batch.sig, strict=True):
                sig = sig[: round(float(part) * len(sig))]
                padded = torch.nn.functional.pad(sig, (0, -len(sig) % 320))[None]
                feats = brain.encoder(padded)
                distances.append(brain.hparams.mel_loss(brain.modules.decoder(feats), padded))
    # 1e-5: float32 sums over one and over two utterances
    assert brain.means.summarize()["mel"] == pytest.approx(float(sum(distances)) / 3, rel=1e-5)


def test_means_weigh_unequal_batches():
    means = Means()
    means.add({"mel": 1.0}, weight=3)
    means.add({"mel": 5.0}, weight=1)
    assert means.summarize() == {"mel": 2.0}


def test_feature_variance_is_over_frames_and_mean_over_channels():
    feats = torch.randn(50, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 7
    moments = FeatureMoments()
    moments.append(feats[:20])
    moments.append(feats[20:])
    expected = feats.double().var(dim=0, unbiased=False).mean()
    assert moments.variance() == pytest.approx(float(expected))


def test_without_decoder_checkpoint_validation_has_no_audio(corpus, tmp_path):
    metrics = train("quantizer", corpus, tmp_path / "run")
    assert not [key for key in metrics["valid"] if key.startswith(("hyp", "rec_"))]
    assert 0 < metrics["valid"]["code_usage"] < 1
    assert not (tmp_path / "run/samples").exists()


def test_with_decoder_checkpoint_validation_has_both_rows(quantizer_run):
    metrics = json.loads((quantizer_run / "metrics.json").read_text())
    assert {"hyp_mel_distance", "rec_mel_distance"} <= set(metrics["valid"])


@pytest.mark.parametrize("factors", ["[2, 1, 1]", "[2, 2, 1]"], ids=["25Hz", "12.5Hz"])
def test_odd_lengths_train_at_lower_token_rates(factors, corpus, tmp_path):
    metrics = train("quantizer", corpus, tmp_path / "run", downscale_factors=factors)
    assert math.isfinite(metrics["test"]["reconstruction"])


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_computes_in_bf16_and_trains(stage, corpus, tmp_path):
    half = {"precision": "bf16", "eval_precision": "bf16"}
    brain, loader, valid, _ = build(stage, corpus, tmp_path / "run", **half)
    start(brain)
    seen = {True: set(), False: set()}
    for module in brain.modules.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda layer, _, output: seen[layer.training].add(output.dtype)
            )
    fit_one(brain, next(iter(loader)))
    brain.modules.eval()
    brain.evaluate_batch(next(iter(valid)), sb.Stage.VALID)
    assert brain.optimizer_step == 1
    # The head of the decoder stays in float32 in both.
    expected = {torch.bfloat16, torch.float32} if stage == "decoder" else {torch.bfloat16}
    assert seen[True] == seen[False] == expected
    assert all(torch.isfinite(parameter).all() for parameter in brain.modules.parameters())


# Data


def test_segments_of_features_and_signal_come_from_the_same_place(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run")
    brain = experiment.brain
    feats, sig, _ = brain.segments(next(iter(experiment.train)))
    assert feats.shape == (2, 22, 80) and sig.shape == (2, 7040)
    alone = brain.encoder(sig)
    # Three frames at each edge see beyond the cut. 1e-4: float32 FFT of the same samples.
    assert torch.allclose(alone[:, 3:-3], feats[:, 3:-3], atol=1e-4)


def test_segments_are_others_in_every_epoch_and_the_same_in_every_process(corpus, tmp_path):
    brain, loader, _, _ = build("decoder", corpus, tmp_path / "run", num_workers=1)
    seen = {}
    for epoch in (1, 2, 1):
        brain.on_stage_start(sb.Stage.TRAIN, epoch)
        frames = {}
        for batch in loader:
            frames |= {name: rows.tolist() for name, rows in zip(*batch_frames(batch), strict=True)}
        assert seen.setdefault(epoch, frames) == frames
    assert seen[1].keys() == seen[2].keys()
    assert any(seen[1][name] != seen[2][name] for name in seen[1])


def batch_frames(batch) -> tuple[list[str], torch.Tensor]:
    return batch.id, batch.frames.data


def test_utterance_shorter_than_a_segment_is_repeated_not_padded(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run", segment_frames=200)
    batch = next(iter(experiment.train))
    num_frames = int(experiment.brain.features(batch).mask[0].sum())
    feats, _, _ = experiment.brain.segments(batch)
    assert num_frames < 200
    assert torch.equal(feats[0, num_frames:], feats[0, : 200 - num_frames])


def test_crops_per_utterance_encode_fewer_utterances_for_the_same_batch(corpus, tmp_path):
    overrides = {"batch_size": 4, "crops_per_utterance": 2, "segment_frames": 10}
    brain, loader, _, _ = build("decoder", corpus, tmp_path / "run", **overrides)
    batch = next(iter(loader))
    feats, sig, _ = brain.segments(batch)
    assert len(batch.id) == 2 and len(feats) == len(sig) == 4
    assert not torch.equal(feats[0], feats[1])  # of one utterance, from two places
    assert len(loader) == 3
    with pytest.raises(ValueError, match="multiple of crops_per_utterance, got 4 and 3"):
        build("decoder", corpus, tmp_path / "other", batch_size=4, crops_per_utterance=3)


def test_logged_padding_is_the_share_of_frames_that_are_none(corpus, tmp_path):
    for stage in STAGES:
        brain, loader, _, _ = build(stage, corpus, tmp_path / stage, batch_size=3)
        start(brain)
        batch = next(iter(loader))
        frames = [-(-int(size) // 320) for size in batch.num_samples]
        fit_one(brain, batch)
        expected = 1 - sum(frames) / (3 * max(frames))
        assert steps_of(tmp_path / stage)[0]["padding"] == pytest.approx(expected)


def test_training_tokens_equal_the_codecs_on_each_utterance_alone(quantizer_run, corpus, tmp_path):
    experiment = build("quantizer", corpus, tmp_path / "run")
    brain = experiment.brain
    load_parameters(brain.modules["compressor"], quantizer_run, name="compressor", min_key=None)
    brain.modules.eval()
    for batch in experiment.valid:
        with torch.no_grad():
            quantized = brain.quantize(batch)
            for row, (sig, part) in enumerate(zip(*batch.sig, strict=True)):
                sig = sig[: round(float(part) * len(sig))]
                toks = quantized.toks[row][quantized.tok_mask[row]]
                assert torch.equal(toks, brain.codec.sig_to_toks(sig[None])[0])


def test_user_data_is_untouched(corpus, tmp_path):
    def digest() -> dict[Path, str]:
        files = (path for path in corpus.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digest()
    train("quantizer", corpus, tmp_path / "run")
    assert digest() == before


def test_evenly_spaced_reaches_over_the_whole_list():
    ids = [str(i) for i in range(10)]
    assert evenly_spaced(ids, 3) == {"0", "3", "6"}
    assert evenly_spaced(ids, 99) == set(ids)


def test_learning_rate_follows_the_reconstruction_error_not_the_signed_loss(corpus, tmp_path):
    brain = build("quantizer", corpus, tmp_path / "run", lr=0.001).brain
    brain.on_fit_start()
    rate = brain.optimizers_dict["quantizer"].param_groups[0]
    for error, entropy in ((0.5, -1.0), (0.4, -6.0), (0.3, -9.0)):
        values = {"reconstruction": error, "entropy": entropy, "loss": error + 0.1 * entropy}
        brain.anneal(sb.Stage.VALID, 1, values)
        assert rate["lr"] == 0.001
    brain.anneal(sb.Stage.VALID, 1, {"reconstruction": 0.31})
    assert rate["lr"] == pytest.approx(0.0009)


def test_decoder_learning_rate_decays_every_epoch(corpus, tmp_path):
    brain = build("decoder", corpus, tmp_path / "run").brain
    brain.on_fit_start()
    rates = []
    for epoch in (1, 2, 3):
        brain.anneal(sb.Stage.TRAIN, epoch, {})
        rates.append(brain.optimizers_dict["decoder"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.001 * 0.999**epoch for epoch in (1, 2, 3)])


def test_training_stops_when_the_reconstruction_error_no_longer_falls(corpus, tmp_path):
    stuck = {"lr": 0.0, "weight_decay": 0.0, "epochs_without_improvement": 2}
    train("quantizer", corpus, tmp_path / "run", number_of_epochs=50, **stuck)
    assert max(step["epoch"] for step in steps_of(tmp_path / "run")) == 3


def test_nonfinite_validation_saves_nothing(corpus, tmp_path):
    brain = build("quantizer", corpus, tmp_path / "run").brain
    brain.run_log.resume(0)
    brain.on_stage_start(sb.Stage.VALID, 1)
    brain.means.add({"reconstruction": math.nan}, weight=1)
    with pytest.raises(RuntimeError, match="valid reconstruction is nan; no checkpoint"):
        brain.on_stage_end(sb.Stage.VALID, 0.0, 1)
    assert not (tmp_path / "run/save").exists()
