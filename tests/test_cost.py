"""What a run will cost is told before it starts, and to ask changes nothing."""

import re

import pytest
import speechbrain as sb
import torch

from recipes.common import cost
from tests.stages import STAGES, build, train


def everything(brain) -> list[torch.Tensor]:
    state = [*brain.modules.state_dict().values()]
    for optimizer in brain.optimizers_dict.values():
        state += [x for values in optimizer.state.values() for x in values.values()]
    return [x.clone() for x in state]


@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
@pytest.mark.parametrize("stage", STAGES)
def test_measuring_changes_nothing(stage, resumed, corpus, tmp_path):
    overrides = {"ema_decay": 0.9} if stage == "decoder" else {}
    if resumed:
        train(stage, corpus, tmp_path / "run", **overrides)
    brain = build(stage, corpus, tmp_path / "run", **overrides).brain
    brain.on_fit_start()
    before, random_state = everything(brain), torch.get_rng_state()
    assert len(before) > len(brain.modules.state_dict()) or not resumed
    times, peak = cost.measure(brain, num_steps=3)
    assert len(times) == 3 and min(times) > 0 and peak > 2**20
    after = everything(brain)
    assert len(after) == len(before) and all(map(torch.equal, after, before))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in brain.modules.parameters())
    if stage == "decoder":
        average = brain.average.module.parameters()
        same = all(map(torch.equal, average, brain.modules.decoder.parameters()))
        assert same != resumed
    assert brain.step_log.fetch() == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_with_an_estimate_ends_like_one_without(stage, corpus, tmp_path):
    for steps in (0, 2):
        train(stage, corpus, tmp_path / f"{steps}", cost_steps=steps)
    first, second = ((tmp_path / f"{n}" / "steps.jsonl").read_text() for n in (0, 2))
    assert first == second


def test_the_announcement_says_what_a_user_wants_to_know(corpus, tmp_path):
    brain = build("decoder", corpus, tmp_path / "run", number_of_epochs=5).brain
    brain.hparams.cost_steps = 2
    brain.on_fit_start()
    text = (tmp_path / "run/log.txt").read_text()
    hours = sum(row["duration"] for row in brain.loaders[sb.Stage.TRAIN].dataset.data.values())
    assert f"train: {hours / 3600:.2f} h, 6 utterances of " in text
    assert "one epoch: 3 steps; the run: 5 epochs, at most 3000000 steps; 15 steps to go" in text
    for name, module in (*brain.modules.items(), ("encoder", brain.encoder)):
        millions = sum(p.numel() for p in module.parameters()) / 1e6
        assert f"{name}: {millions:.2f} M parameters" in text
    seconds = float(re.search(r"measured: (\S+) s a batch", text).group(1))
    hours, minutes, rest = map(int, re.search(r"15 steps, .*: (\d+):(\d+):(\d+)", text).groups())
    assert 3600 * hours + 60 * minutes + rest == pytest.approx(15 * seconds, abs=1)


def test_clock_counts_beyond_a_day():
    assert cost.clock(90061.4) == "25:01:01"
