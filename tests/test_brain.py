"""The guarded optimizer step: non-finite values, clipping, accumulation, scaled losses."""

import json
import math
from functools import partial

import pytest
import speechbrain as sb
import torch
from torch.overrides import TorchFunctionMode

from recipes.common.experiment import build_experiment, run_experiment
from recipes.common.guarded_step import step_if
from tests.stages import STAGES, build, fit_one, options, start, steps_of, train
from train_quantizer import QuantizerBrain


def parameters(brain: sb.Brain) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in brain.modules.named_parameters()}


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
    assert metrics["train"]["step"] == 3
    # The second step was left out: its terms are in no mean, and it is counted.
    steps = steps_of(tmp_path / "run")
    assert [step["failed_steps"] for step in steps] == [0, 1, 1]
    means = [steps[0]["reconstruction"], steps[2]["reconstruction"]]
    assert min(means) <= metrics["train"]["reconstruction"] <= max(means)
    records = [json.loads(x) for x in (tmp_path / "run/nonfinite.jsonl").read_text().splitlines()]
    assert len(records) == 1 and len(records[0]["ids"][0]) == 2


def test_nan_in_every_batch_aborts_with_the_ids_and_keeps_the_checkpoint(
    corpus, tmp_path, monkeypatch
):
    run_experiment(PoisonedQuantizer, options("quantizer", corpus, tmp_path / "run"))
    kept = sorted((tmp_path / "run/save").iterdir())
    monkeypatch.setattr(PoisonedQuantizer, "poisoned", range(1000))
    longer = {"number_of_epochs": 9, "nonfinite_patience": 2}
    more = options("quantizer", corpus, tmp_path / "run", **longer)
    with pytest.raises(RuntimeError, match="2 steps in a row.*train-clean-100_"):
        run_experiment(PoisonedQuantizer, more)
    assert sorted((tmp_path / "run/save").iterdir()) == kept


@pytest.mark.parametrize(
    ("stage", "poisoned", "moved"),
    [
        ("quantizer", "compressor", set()),
        ("decoder", "discriminator", set()),
        ("decoder", "decoder", {"discriminator"}),  # its update comes first
    ],
)
def test_a_nonfinite_gradient_leaves_out_its_update_and_later_ones(
    stage, poisoned, moved, corpus, tmp_path
):
    experiment = build(stage, corpus, tmp_path / "run")
    brain = experiment.brain
    start(brain)
    parameter = next(brain.modules[poisoned].parameters())
    parameter.register_hook(lambda gradient: gradient * math.inf)
    before = parameters(brain)
    fit_one(brain, next(iter(experiment.train)))
    assert brain.step_log.streak == 1 and brain.step_log.num_failed == 1
    now = parameters(brain)
    assert {name.split(".")[0] for name in now if not torch.equal(before[name], now[name])} == moved
    assert all(parameter.grad is None for parameter in brain.modules.parameters())


def test_a_nonfinite_batch_leaves_out_its_whole_accumulation_group(corpus, tmp_path):
    class Poisoned(PoisonedQuantizer):
        poisoned = frozenset({1})

    options_ = options("quantizer", corpus, tmp_path / "run", grad_accumulation_factor=2)
    brain, loader, _, _ = build_experiment(Poisoned, options_)
    batches = list(loader)
    start(brain)
    before = parameters(brain)
    fit_one(brain, batches[0])
    fit_one(brain, batches[1])
    assert all(torch.equal(before[name], value) for name, value in parameters(brain).items())
    record = json.loads((tmp_path / "run/nonfinite.jsonl").read_text())
    assert record["ids"] == [[*batches[0].id, *batches[1].id]]
    assert not brain.means.sums, "the finite batch of the group was left out, too"
    fit_one(brain, batches[2])
    assert brain.means.sums
    assert brain.step_log.streak == 0 and brain.step_log.num_failed == 1
    assert any(not torch.equal(before[name], value) for name, value in parameters(brain).items())


@pytest.mark.parametrize("fused", [True, False])
def test_a_failed_step_leaves_weights_moments_and_step_counts_alone(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    for finite in (True, False):
        weight.grad = torch.full((3,), 1.0 if finite else math.nan)
        step_if(optimizer, torch.tensor(finite))
        if finite:
            before = [
                weight.detach().clone(),
                *(x.clone() for x in optimizer.state[weight].values()),
            ]
    after = [weight, *optimizer.state[weight].values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert before[0][0] != 1


class _Waits(TorchFunctionMode):
    """Notes calls that make the host wait for a device."""

    names = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__"}

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        name = getattr(function, "__name__", "")
        by_mask = name == "__getitem__" and _is_mask(arguments[1])
        if name in self.names or by_mask:
            self.calls.append(name)
        return function(*arguments, **(keywords or {}))


def _is_mask(index) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


@pytest.mark.parametrize("stage", STAGES)
def test_only_logged_steps_wait_for_the_device(stage, corpus, tmp_path):
    brain, loader, _, _ = build(stage, corpus, tmp_path / "run", log_interval_steps=3)
    start(brain)
    waits = []
    for batch in loader:
        with _Waits() as mode:
            fit_one(brain, batch)
        waits.append(len(mode.calls))
    assert waits[0] > 0 and waits[1] == 0 and waits[2] > 0, waits


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


@pytest.mark.parametrize("interval", ["steps", "minutes"])
def test_checkpoint_intervals_go_on_over_short_epochs(interval, corpus, tmp_path, monkeypatch):
    """Epochs of three batches; a validation only after the sixth."""
    saved = []

    class Watched(QuantizerBrain):
        def fit_batch(self, batch):
            minutes[0] += 1
            return super().fit_batch(batch)

        def _save_intra_epoch_ckpt(self):
            saved.append(self.optimizer_step)
            super()._save_intra_epoch_ckpt()

    minutes = [0]
    monkeypatch.setattr("time.time", lambda: 60.0 * minutes[0])
    words = options(
        "quantizer", corpus, tmp_path / "run", number_of_epochs=6, valid_interval_epochs=6
    )
    limit = {"steps": 4, "minutes": 3}[interval]
    run_experiment(Watched, [*words, f"--ckpt_interval_{interval}={limit}"])
    assert saved == [4, 8, 12, 16, 18]  # the last one before the validation


def test_lines_are_on_the_disk_before_the_checkpoint_that_follows_them(
    corpus, tmp_path, monkeypatch
):
    flushed = []
    monkeypatch.setattr("recipes.common.run_log.flush", lambda path: flushed.append(path.name))

    class Watched(QuantizerBrain):
        def _save_intra_epoch_ckpt(self):
            flushed.clear()
            super()._save_intra_epoch_ckpt()
            assert flushed == ["steps.jsonl"]
            flushed.clear()

    run_experiment(Watched, options("quantizer", corpus, tmp_path / "run"))
    assert flushed == ["steps.jsonl", "train_log.txt"]


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
        assert brain.scaler.get_scale() == scale and brain.step_log.streak == 0
        brain.step = 0
    with pytest.raises(RuntimeError, match="3 steps in a row"):
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


@pytest.mark.filterwarnings("ignore")  # those of the compiler
@pytest.mark.parametrize("stage", STAGES)
def test_compile_covers_encoder_and_modules_and_changes_no_loss(
    stage, corpus, tmp_path, monkeypatch
):
    """Without code generation, which takes minutes."""
    losses = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        words = options(stage, corpus, tmp_path / str(compiled))
        brain, loader, _, _ = build_experiment(
            STAGES[stage][0], [*words, "--compile"] if compiled else words
        )
        start(brain)
        for module in (brain.frozen.encode, *brain.modules.values()):
            assert isinstance(module, torch._dynamo.OptimizedModule) == compiled
        for batch in list(loader)[:2]:
            fit_one(brain, batch)
        brain._fetch_steps()
        losses[compiled] = brain.means.summarize()
        monkeypatch.undo()
    torch._dynamo.reset()
    for name, value in losses[False].items():
        # the second step is that of weights that have drifted apart by rounding
        assert losses[True][name] == pytest.approx(value, rel=0.02, abs=1e-3), name
