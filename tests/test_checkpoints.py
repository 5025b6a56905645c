"""Checkpoints: whose they are, which are kept, and SpeechBrain's parts around them."""

import functools
import os
import random
import signal

import numpy as np
import pytest
import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.epoch_loop import EpochCounter

from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.random_state import RandomState
from tests.saved_runs import Hook, Run, half_a_file_then_die, in_children, names

# Configurations


@pytest.mark.parametrize("saved_hash", ["aaaa", None])
def test_a_folder_of_another_configuration_is_refused(tmp_path, saved_hash):
    Run(tmp_path, config_hash=saved_hash).checkpointer.save_checkpoint()
    before = names(tmp_path)
    other = Run(tmp_path)
    other.checkpointer.config_hash = "bbbb"
    for attempt in (other.checkpointer.recover_if_possible, other.save):
        with pytest.raises(RuntimeError, match="another configuration.*another output_folder"):
            attempt()
    assert names(tmp_path) == before and other.step == 0


def test_the_same_configuration_and_readers_without_one_are_accepted(tmp_path):
    saved = Run(tmp_path, config_hash="aaaa").checkpointer.save_checkpoint()
    assert yaml.safe_load((saved.path / "CKPT.yaml").read_text())["config_hash"] == "aaaa"
    for config_hash in ("aaaa", None):
        recovered = Run(tmp_path, config_hash=config_hash).checkpointer.recover_if_possible()
        assert recovered == saved


# What is kept


def kept_steps(folder):
    found = Run(folder).checkpointer.find_checkpoints()
    return [int(torch.load(ckpt.paramfiles["model"])["step"]) for ckpt in found]


def test_keep_only_keeps_the_best_and_the_last(tmp_path):
    run = Run(tmp_path)
    for mse in (3.0, 1.0, 2.0, float("nan"), 4.0):
        run.train(1).save(mse=mse)
    assert kept_steps(tmp_path) == [5, 2]
    run.checkpointer.recover_if_possible(min_key="mse")
    assert run.step == 2
    run.checkpointer.recover_if_possible(max_key="mse")
    assert run.step == 5


def test_a_metric_that_is_not_finite_is_never_the_best_but_the_last_is_kept(tmp_path):
    run = Run(tmp_path)
    run.train(1).save(mse=1.0)
    for mse in (float("nan"), -float("inf"), float("nan")):
        run.train(1).save(mse=mse)
        assert kept_steps(tmp_path) == [run.step, 1]
    assert run.checkpointer.find_checkpoint(min_key="mse").meta["mse"] == 1.0


def test_num_to_keep_and_predicate(tmp_path):
    run = Run(tmp_path)
    for step in range(4):
        run.train(1).checkpointer.save_and_keep_only(
            meta={"even": step % 2 == 0},
            num_to_keep=1,
            ckpt_predicate=lambda ckpt: not ckpt.meta["even"],
        )
    assert kept_steps(tmp_path) == [4, 3, 1]
    run.checkpointer.delete_checkpoints(num_to_keep=2)
    assert kept_steps(tmp_path) == [4, 3]
    run.checkpointer.delete_checkpoints(num_to_keep=0)
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="num_to_keep"):
        run.checkpointer.delete_checkpoints(num_to_keep=-1)


def test_saving_does_not_slow_down_from_save_to_save(tmp_path):
    """SpeechBrain appends to its own default list of orders."""
    run = Run(tmp_path)
    own, default = [], sb.utils.checkpoints.Checkpointer.save_and_keep_only.__defaults__
    before = [list(value) for value in default if isinstance(value, list)]
    for _ in range(2):
        run.checkpointer.save_and_keep_only(importance_keys=own)
        run.checkpointer.save_and_keep_only()
    assert own == [] and before == [value for value in default if isinstance(value, list)]


def test_meta_values_from_tensors_are_plain_and_others_refused(tmp_path):
    run = Run(tmp_path)
    saved = run.checkpointer.save_checkpoint(
        meta={"mse": torch.tensor(0.5), "uas": np.float64(0.25), "factors": [2, 2, 1]}
    )
    (ckpt,) = run.checkpointer.list_checkpoints()
    assert ckpt == saved
    assert (ckpt.meta["mse"], ckpt.meta["uas"], ckpt.meta["factors"]) == (0.5, 0.25, [2, 2, 1])
    with pytest.raises(RuntimeError, match="could not be saved"):
        run.checkpointer.save_checkpoint(meta={"model": run.model})
    assert names(tmp_path) == [saved.path.name]


@pytest.mark.parametrize(("end_of_epoch", "epoch"), [(True, 3), (False, 2)])
def test_end_of_epoch_reaches_the_loaders(tmp_path, end_of_epoch, epoch):
    counter = EpochCounter(10)
    checkpointer = AtomicCheckpointer(tmp_path, {"counter": counter})
    counter.current = 3
    checkpointer.save_checkpoint(end_of_epoch=end_of_epoch)
    checkpointer.recover_if_possible()
    assert counter.current == epoch


# With SpeechBrain's YAML, Brain and processes


def test_it_is_built_from_a_yaml_without_touching_the_disk(tmp_path):
    hparams = load_hyperpyyaml(f"""
        counter: !new:speechbrain.utils.epoch_loop.EpochCounter
            limit: 3
        checkpointer: !new:recipes.common.checkpoints.AtomicCheckpointer
            checkpoints_dir: {tmp_path}/save
            recoverables:
                counter: !ref <counter>
                random_state: !new:recipes.common.random_state.RandomState
    """)
    assert names(tmp_path) == []
    hparams["checkpointer"].config_hash = "aaaa"
    ckpt = hparams["checkpointer"].save_checkpoint()
    assert ckpt.path.parent == tmp_path / "save" and ckpt.meta["config_hash"] == "aaaa"


class TinyBrain(sb.Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch + 0.1 * torch.randn_like(batch))

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_stage_end(self, stage, stage_loss, epoch):
        if stage == sb.Stage.VALID:
            if self.hparams.kill_in_epoch == epoch:
                self.hparams.hook.action = half_a_file_then_die
            self.checkpointer.save_and_keep_only(meta={"mse": stage_loss}, min_keys=["mse"])


def fit_brain(folder, kill_in_epoch=None):
    torch.manual_seed(3)
    model, counter, hook = torch.nn.Linear(2, 2), EpochCounter(3), Hook()
    recoverables = {"model": model, "counter": counter, "hook": hook, "random": RandomState()}
    brain = TinyBrain(
        {"model": model},
        functools.partial(torch.optim.Adam, lr=0.1),
        {"hook": hook, "kill_in_epoch": kill_in_epoch},
        {"ckpt_interval_steps": 2},
        AtomicCheckpointer(folder, recoverables),
    )
    data = [torch.full((2,), float(value)) for value in range(6)]
    # Without a generator of its own the loader draws from torch's state, before as after a resume.
    loader = {"generator": torch.Generator()}
    brain.fit(counter, data, data[:2], False, dict(loader), dict(loader))
    return model.weight.detach()


def test_a_brain_killed_while_saving_resumes_to_the_same_result(tmp_path):
    killed = in_children(fit_brain, tmp_path / "killed", 2)
    assert killed.exitcode == -signal.SIGKILL
    resumed = fit_brain(tmp_path / "killed")
    torch.testing.assert_close(resumed, fit_brain(tmp_path / "whole"), rtol=0, atol=0)
    assert all(name.startswith("CKPT") for name in names(tmp_path / "killed"))


def draws():
    return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]


def distributed(rank, num, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num
    )
    run = Run(folder / "save", config_hash="aaaa")
    torch.manual_seed(rank), np.random.seed(rank), random.seed(rank)
    for mse in (1.0, 2.0, 3.0):
        run.train(1).save(mse=mse)
    returned = run.checkpointer.save_checkpoint()
    expected = draws()
    torch.manual_seed(9)
    recovered = run.checkpointer.recover_if_possible().path.name
    same = draws() == expected
    run.checkpointer.config_hash = "bbbb"
    try:
        run.checkpointer.recover_if_possible()
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    torch.distributed.destroy_process_group()
    return returned is not None, recovered, same, expected, refused


def test_two_processes_save_once_and_each_gets_its_random_state_back(tmp_path):
    first, second = in_children(distributed, tmp_path, num=2)
    assert (first.exitcode, second.exitcode) == (0, 0)
    (saved_0, recovered_0, same_0, draws_0, refused_0) = first.result
    (saved_1, recovered_1, same_1, draws_1, refused_1) = second.result
    assert saved_0 and not saved_1
    assert recovered_0 == recovered_1 and same_0 and same_1 and draws_0 != draws_1
    assert "another configuration" in refused_0 and refused_0 == refused_1
    assert len(names(tmp_path / "save")) == 3  # best, last of the keeping, last
