"""Both stages, run from their real YAMLs on a tiny corpus: learning, guards, means, folders."""

import hashlib
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import speechbrain as sb
import torch
from torch import nn

from recipes.common.brain import evenly_spaced
from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.experiment import build_experiment, load_encoder, run_experiment
from recipes.common.run_log import Means, RunLog
from recipes.common.weights import find_parameters, load_parameters
from tests.stages import STAGES, build, options, steps_of, train
from train_quantizer import FeatureMoments, QuantizerBrain


def parameters(brain: sb.Brain) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in brain.modules.named_parameters()}


# Learning and logging


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
    brain, batch = experiment.brain, next(iter(experiment.train))
    brain.epoch = 1
    feats, sig = brain.segments(brain.features(batch), batch.id)
    assert feats.shape == (2, 22, 80) and sig.shape == (2, 7040)
    alone = brain.encoder(sig)
    # Three frames at each edge see beyond the cut. 1e-4: float32 FFT of the same samples.
    assert torch.allclose(alone[:, 3:-3], feats[:, 3:-3], atol=1e-4)
    again, _ = brain.segments(brain.features(batch), batch.id)
    assert torch.equal(again, feats)
    brain.epoch = 2
    assert not torch.equal(brain.segments(brain.features(batch), batch.id)[0], feats)


def test_utterance_shorter_than_a_segment_is_repeated_not_padded(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run", segment_frames=200)
    batch = next(iter(experiment.train))
    features = experiment.brain.features(batch)
    feats, _ = experiment.brain.segments(features, batch.id)
    num_frames = int(features.mask[0].sum())
    assert num_frames < 200
    assert torch.equal(feats[0, num_frames:], feats[0, : 200 - num_frames])


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


# The guarded step


class PoisonedQuantizer(QuantizerBrain):
    """Turns the loss of chosen batches into NaN."""

    poisoned = frozenset({2})

    def updates(self, batch):
        for update in super().updates(batch):
            self.seen = getattr(self, "seen", 0) + 1
            nan = self.seen in self.poisoned
            yield update._replace(loss=update.loss * math.nan) if nan else update


def test_nan_loss_skips_the_batch_and_is_written_down(corpus, tmp_path):
    metrics = run_experiment(PoisonedQuantizer, options("quantizer", corpus, tmp_path / "run"))
    assert math.isfinite(metrics["test"]["reconstruction"])
    assert metrics["train"]["step"] == 2  # of three batches
    records = [json.loads(x) for x in (tmp_path / "run/nonfinite.jsonl").read_text().splitlines()]
    assert len(records) == 1 and len(records[0]["ranks"][0]["ids"]) == 2


def test_nan_in_every_batch_aborts_with_the_ids_and_keeps_the_checkpoint(
    corpus, tmp_path, monkeypatch
):
    run_experiment(PoisonedQuantizer, options("quantizer", corpus, tmp_path / "run"))
    kept = sorted((tmp_path / "run/save").iterdir())
    monkeypatch.setattr(PoisonedQuantizer, "poisoned", range(1000))
    longer = {"number_of_epochs": 9, "nonfinite_patience": 2}
    more = options("quantizer", corpus, tmp_path / "run", **longer)
    with pytest.raises(RuntimeError, match="2 batches in a row.*train-clean-100_"):
        run_experiment(PoisonedQuantizer, more)
    assert sorted((tmp_path / "run/save").iterdir()) == kept


@pytest.mark.parametrize("stage", STAGES)
def test_nonfinite_gradient_leaves_all_weights_alone(stage, corpus, tmp_path):
    experiment = build(stage, corpus, tmp_path / "run")
    brain = experiment.brain
    start(brain)
    module = next(iter(brain.modules.values()))
    next(module.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    fit_one(brain, next(iter(experiment.train)))
    assert brain.nonfinite_streak == 1 and brain.optimizer_step == 0
    assert all(torch.equal(before[name], value) for name, value in module.named_parameters())
    assert all(parameter.grad is None for parameter in brain.modules.parameters())


def start(brain: sb.Brain) -> None:
    """Do what the loop does before the first batch."""
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    brain.modules.train()


def fit_one(brain: sb.Brain, batch) -> None:
    brain.step += 1
    brain.fit_batch(batch)


def with_sgd(experiment, lr: float = 1.0):
    """Plain gradient descent, whose update is the gradient itself."""
    experiment.brain.opt_class = partial(torch.optim.SGD, lr=lr)
    return experiment


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_bounds_every_optimizers_step(stage, corpus, tmp_path):
    experiment = with_sgd(build(stage, corpus, tmp_path / "run", max_grad_norm=0.01))
    brain = experiment.brain
    start(brain)
    before = parameters(brain)
    fit_one(brain, next(iter(experiment.train)))
    after = parameters(brain)
    for module in brain.optimized().values() if stage == "decoder" else [brain.modules]:
        prefix = next((f"{name}." for name, value in brain.modules.items() if value is module), "")
        change = [after[name] - before[name] for name in before if name.startswith(prefix)]
        norm = math.sqrt(sum(float(value.square().sum()) for value in change))
        # 1 %: differences of float32 weights of about 0.1 to 1
        assert norm == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_equals_one_step_on_the_mean_gradient(stage, corpus, tmp_path):
    """Two accumulated batches move the weights by the mean of what each alone moves them by."""
    moved = []
    for factor, batches in ((1, [0]), (1, [1]), (2, [0, 1])):
        folder = tmp_path / f"{len(moved)}"
        changes = {"grad_accumulation_factor": factor, "max_grad_norm": 0}
        if (
            stage == "decoder"
        ):  # what depends on the discriminators depends on their first half step
            changes |= {"adversarial_weight": 0, "feature_matching_weight": 0}
        experiment = with_sgd(build(stage, corpus, folder, **changes), lr=1e-3)
        brain = experiment.brain
        loaded = list(experiment.train)
        start(brain)
        brain.modules.eval()  # spectral norm's power iteration would differ
        before = parameters(brain)
        for index in batches:
            fit_one(brain, loaded[index])
        assert brain.optimizer_step == 1
        after = parameters(brain)
        moved.append({key: after[key] - before[key] for key in before})
    assert all(any(value.abs().max() > 1e-6 for value in step.values()) for step in moved)
    for key, together in moved[2].items():
        expected = (moved[0][key] + moved[1][key]) / 2
        # differences of float32 weights: absolute error of one ulp of the weight
        assert torch.allclose(together, expected, rtol=1e-2, atol=3e-7), key


def test_checkpoint_waits_for_the_end_of_an_accumulation_group(corpus, tmp_path):
    accumulation = {"grad_accumulation_factor": 2}
    brain = build("quantizer", corpus, tmp_path / "run", **accumulation).brain
    brain.ckpt_interval_steps = 1
    due = []
    for step in (1, 2, 3):  # three batches: a group of two and one of one
        brain.step = step
        due.append(brain._should_save_intra_epoch_ckpt(0.0, 5))
    assert due == [False, True, True]


def with_fp16_scaler(brain: sb.Brain, scale: float) -> None:
    """Add what fp16 adds to a step, also where there is no fp16: losses with a scale."""
    brain.scaler = torch.GradScaler("cpu", enabled=True, init_scale=scale)


@pytest.mark.parametrize("stage", STAGES)
def test_scaled_losses_give_the_same_step_for_every_optimizer(stage, corpus, tmp_path):
    moved = []
    for scale in (None, 1024.0):
        experiment = with_sgd(build(stage, corpus, tmp_path / str(scale)), lr=1e-2)
        brain, batch = experiment.brain, next(iter(experiment.train))
        start(brain)
        if scale is not None:
            with_fp16_scaler(brain, scale)
        fit_one(brain, batch)
        moved.append(parameters(brain))
    # powers of two scale exactly; the sums behind them are the same
    assert all(torch.allclose(moved[0][key], moved[1][key], atol=1e-7) for key in moved[0])


@pytest.mark.parametrize("stage", STAGES)
def test_overflow_lowers_the_scale_and_is_a_failure_only_without_any(stage, corpus, tmp_path):
    experiment = build(stage, corpus, tmp_path / "run", nonfinite_patience=3)
    brain, batch = experiment.brain, next(iter(experiment.train))
    start(brain)
    with_fp16_scaler(brain, 4.0)
    module = next(iter(brain.modules.values()))
    next(module.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    for scale in (2.0, 1.0):
        fit_one(brain, batch)
        assert brain.scaler.get_scale() == scale and brain.nonfinite_streak == 0
        brain.step = 0
    with pytest.raises(RuntimeError, match="3 batches in a row"):
        for _ in range(5):
            fit_one(brain, batch)
            brain.step = 0
    assert all(torch.equal(before[name], value) for name, value in module.named_parameters())


def test_batches_left_over_at_the_end_of_an_epoch_are_stepped(corpus, tmp_path):
    train("quantizer", corpus, tmp_path / "run", grad_accumulation_factor=2)
    assert [step["step"] for step in steps_of(tmp_path / "run")] == [1, 2]  # three batches


def test_decoder_update_leaves_no_gradient_in_the_discriminators(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run")
    brain, batch = experiment.brain, next(iter(experiment.train))
    start(brain)
    updates = brain.updates(batch)
    next(updates)
    update = next(updates)
    update.loss.backward()
    updates.close()
    assert all(p.grad is None for p in brain.modules["discriminator"].parameters())
    assert any(p.grad is not None for p in brain.modules["decoder"].parameters())
    assert all(p.requires_grad for p in brain.modules["discriminator"].parameters())


def test_discriminator_update_leaves_no_gradient_in_the_decoder(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run")
    brain = experiment.brain
    start(brain)
    next(brain.updates(next(iter(experiment.train)))).loss.backward()
    assert all(p.grad is None for p in brain.modules["decoder"].parameters())


# What follows the validation


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


# Run folders


def test_step_budget_ends_the_run_with_a_validation(corpus, tmp_path):
    metrics = train(
        "quantizer", corpus, tmp_path / "run", optimizer_step_limit=4, number_of_epochs=9
    )
    assert steps_of(tmp_path / "run")[-1]["step"] == 4
    assert metrics["valid"]["step"] == 4


@pytest.mark.parametrize("stage", STAGES)
def test_continued_run_equals_an_uninterrupted_one(stage, corpus, tmp_path):
    train(stage, corpus, tmp_path / "cut", number_of_epochs=1)
    train(stage, corpus, tmp_path / "cut", number_of_epochs=2)
    train(stage, corpus, tmp_path / "whole", number_of_epochs=2)
    assert steps_of(tmp_path / "cut") == steps_of(tmp_path / "whole")
    name = {"decoder": "decoder", "quantizer": "compressor"}[stage]
    cut, whole = (
        torch.load(find_parameters(tmp_path / run, name=name, min_key=None), weights_only=True)
        for run in ("cut", "whole")
    )
    assert all(torch.equal(cut[key], whole[key]) for key in whole)
    starts = json.loads((tmp_path / "cut/run.json").read_text())["starts"]
    assert len(starts) == 2


class WorseningQuantizer(QuantizerBrain):
    """Validation error that grows with every epoch."""

    def evaluate_terms(self, batch, stage):
        terms, weight = super().evaluate_terms(batch, stage)
        return terms | {"reconstruction": float(self.epoch)}, weight


def test_best_and_last_checkpoint_are_kept_and_the_best_is_tested(corpus, tmp_path):
    arguments = options("quantizer", corpus, tmp_path / "run", number_of_epochs=3)
    metrics = run_experiment(WorseningQuantizer, arguments)
    kept = AtomicCheckpointer(tmp_path / "run/save").list_checkpoints()
    assert sorted(ckpt.meta["epoch"] for ckpt in kept) == [1, 3]
    assert metrics["test"]["step"] == 3  # three steps an epoch


def test_test_only_keeps_the_log(corpus, tmp_path):
    """Also the lines after the best checkpoint, which is what the test loads."""
    folder = tmp_path / "run"
    arguments = options("quantizer", corpus, folder, number_of_epochs=3)
    run_experiment(WorseningQuantizer, arguments)
    steps, metrics = steps_of(folder), json.loads((folder / "metrics.json").read_text())
    run_experiment(WorseningQuantizer, [*arguments, "--test_only"])
    assert steps_of(folder) == steps
    again = json.loads((folder / "metrics.json").read_text())
    assert (again["train"], again["valid"]) == (metrics["train"], metrics["valid"])


def test_debug_leaves_the_run_folder_alone(corpus, tmp_path):
    folder = tmp_path / "run"
    train("quantizer", corpus, folder)
    logs = ("steps.jsonl", "metrics.json", "train_log.txt")
    before = [(folder / name).read_bytes() for name in logs]
    arguments = [*options("quantizer", corpus, folder), "--debug"]
    brain, loader, valid, test = build_experiment(QuantizerBrain, arguments)
    brain.fit(brain.hparams.epoch_counter, loader, valid)
    brain.evaluate(test, min_key="reconstruction")
    brain.run_log.close()
    brain.checkpointer.tempdir.cleanup()
    assert [(folder / name).read_bytes() for name in logs] == before


def test_decoder_checkpoint_may_be_added_later(decoder_run, corpus, tmp_path):
    train("quantizer", corpus, tmp_path / "run")
    later = {"number_of_epochs": 2, "decoder_checkpoint": decoder_run}
    metrics = train("quantizer", corpus, tmp_path / "run", **later)
    assert metrics["valid"]["hyp_mel_distance"] > 0


def test_mistake_leaves_the_folder_free_for_the_corrected_command(corpus, tmp_path):
    with pytest.raises(ValueError, match="stoy"):
        build("quantizer", corpus, tmp_path / "run", metrics="[stoy]")
    build("quantizer", corpus, tmp_path / "run", lr=0.1)


def test_output_inside_the_users_data_is_refused_before_anything_is_written(corpus):
    with pytest.raises(ValueError, match="nothing is ever written there"):
        build("quantizer", corpus, corpus / "results")
    assert not (corpus / "results").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer_step_limit", 0), ("valid_interval_epochs", 0), ("log_interval_steps", 0)],
)
def test_counts_below_one_are_refused_by_name(key, value, corpus, tmp_path):
    with pytest.raises(ValueError, match=f"{key} must be at least 1"):
        build("quantizer", corpus, tmp_path / "run", **{key: value})


def test_step_limit_can_be_lifted_on_the_command_line(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run", optimizer_step_limit="null")
    assert experiment.brain.optimizer_step_limit is None


def test_other_configuration_in_the_same_folder_is_refused(corpus, tmp_path):
    train("quantizer", corpus, tmp_path / "run")
    saved = (tmp_path / "run/hyperparams.yaml").read_bytes()
    with pytest.raises(ValueError, match="another configuration.*--output_folder"):
        train("quantizer", corpus, tmp_path / "run", entropy_weight=5.0)
    assert (tmp_path / "run/hyperparams.yaml").read_bytes() == saved


def test_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, sample_rate=16000)
    log.resume(0)
    for step in (1, 2, 3):
        log.step(step, {"mel": 1.0}, epoch=1)
    log.close()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 4, "ep')
    again = RunLog(tmp_path, sample_rate=16000)
    again.resume(2)
    again.close()
    assert [step["step"] for step in steps_of(tmp_path)] == [1, 2]


def test_wrong_decoder_checkpoint_is_refused(decoder_run, corpus, tmp_path):
    wrong = next((decoder_run / "save").glob("CKPT*/discriminator.ckpt"))
    with pytest.raises(ValueError, match="does not fit"):
        build("quantizer", corpus, tmp_path / "run", decoder_checkpoint=wrong)


def test_decoder_of_another_size_is_refused(decoder_run, corpus, tmp_path):
    with pytest.raises(ValueError, match="does not fit"):
        build(
            "quantizer",
            corpus,
            tmp_path / "run",
            decoder="!include:decoder/vocos.yaml",
            decoder_checkpoint=decoder_run,
        )


def test_missing_decoder_checkpoint_names_the_path(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build("quantizer", corpus, tmp_path / "run", decoder_checkpoint="nowhere")


def test_test_only_without_a_checkpoint_is_refused(corpus, tmp_path):
    arguments = [*options("quantizer", corpus, tmp_path / "run"), "--test_only"]
    with pytest.raises(RuntimeError, match="no checkpoint with reconstruction"):
        run_experiment(QuantizerBrain, arguments)


def test_encoder_with_weights_needs_a_checkpoint():
    from focalcodec.wavlm import WavLM

    tiny = partial(
        WavLM,
        hidden_dims=[8] * 7,
        num_layers=1,
        dim=16,
        ffn_dim=16,
        num_heads=2,
        conv_pos=4,
        conv_pos_groups=2,
    )
    with pytest.raises(ValueError, match="encoder_checkpoint is null"):
        load_encoder(tiny(), None)
    first, second = tiny(), tiny()
    load_encoder(first, "random")
    load_encoder(second, "random")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
