"""Checkpoints survive kills, full disks and plain copies."""

import functools
import multiprocessing
import os
import random
import resource
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest
import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.epoch_loop import EpochCounter

from recipes.common import checkpoints
from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.random_state import RandomState

# Children are forked from a server that has imported the slow modules once and has no threads.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["speechbrain.core", "hyperpyyaml", "torch._dynamo", "pytest"])

Outcome = namedtuple("Outcome", "exitcode result")


def in_children(function, *args, num=1):
    """Run ``function(*args)`` in forked processes; with several, ``function(rank, num, *args)``."""
    pipes = [FORK.Pipe() for _ in range(num)]
    children = [
        FORK.Process(
            target=_child,
            args=(end, function, args if num == 1 else (rank, num, *args)),
        )
        for rank, (_, end) in enumerate(pipes)
    ]
    for child in children:
        child.start()
    outcomes = []
    for child, (receiver, end) in zip(children, pipes, strict=True):
        end.close()
        child.join(60)
        if child.is_alive():
            child.kill()
            child.join()
        result = receiver.recv() if child.exitcode == 0 else None
        receiver.close()
        outcomes.append(Outcome(child.exitcode, result))
        child.close()
    return outcomes[0] if num == 1 else outcomes


def _child(pipe, function, args):
    torch.set_num_threads(1)
    pipe.send(function(*args))


@register_checkpoint_hooks
class Hook:
    """Recoverable that calls a function with the path of its file when it is saved."""

    def __init__(self, action=None):
        self.action = action

    @mark_as_saver
    def save(self, path):
        path.write_text("first half, second half")
        if self.action is not None:
            self.action(path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        assert path.read_text() == "first half, second half"


class Run:
    """A training run in miniature: every step draws from all random states."""

    def __init__(self, folder, **options):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        self.model = torch.nn.Linear(3, 1)
        self.model.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.hook = Hook()
        recoverables = {
            "model": self.model,
            "hook": self.hook,
            "optimizer": self.optimizer,
            "random_state": RandomState(),
        }
        self.checkpointer = AtomicCheckpointer(folder, recoverables, **options)

    def train(self, num_steps):
        for _ in range(num_steps):
            x = torch.randn(4, 3) * random.gauss(1, 0.1) + np.random.standard_normal()
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.model.step += 1
        return self

    def save(self, **meta):
        return self.checkpointer.save_and_keep_only(meta={"mse": 1.0, **meta}, min_keys=["mse"])

    @property
    def step(self):
        return int(self.model.step)

    @property
    def state(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def uninterrupted(folder, num_steps):
    return Run(folder / "uninterrupted").train(num_steps).state


# Killed while saving


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file_then_die(path):
    path.write_text("first half")
    die()


def half_a_deletion_then_die(path, **_):
    next(path.glob("*.ckpt")).unlink()
    die()


def rename_then_die(source, target, rename=os.rename):
    rename(source, target)
    die()


def killed_at(run, instant):
    if instant in ("before a file", "within a file"):
        run.hook.action = die if instant == "before a file" else half_a_file_then_die
    elif instant == "before the meta file":
        checkpoints._size_and_crc = die
    elif instant == "before the flush":
        os.fsync = die
    elif instant == "before the rename":
        os.rename = die
    elif instant == "after the rename":
        os.rename = rename_then_die
    elif instant == "in deletion":
        shutil.rmtree = half_a_deletion_then_die


def save_twice_and_be_killed(folder, instant):
    run = Run(folder).train(2)
    run.save()
    run.train(2)
    killed_at(run, instant)
    run.save(mse=0.5)
    raise AssertionError(f"survived {instant}")


@pytest.mark.parametrize(
    ("instant", "step"),
    [
        ("before a file", 2),
        ("within a file", 2),
        ("before the meta file", 2),
        ("before the flush", 2),
        ("before the rename", 2),
        ("after the rename", 4),
        ("in deletion", 4),
    ],
)
def test_a_run_killed_while_saving_resumes_to_the_same_result(tmp_path, instant, step):
    folder = tmp_path / "save"
    assert in_children(save_twice_and_be_killed, folder, instant).exitcode == -signal.SIGKILL
    run = Run(folder)
    assert run.checkpointer.recover_if_possible() is not None
    assert run.step == step
    run.train(6 - step)
    torch.testing.assert_close(run.state, uninterrupted(tmp_path, 6), rtol=0, atol=0)
    run.save(mse=0.25)
    assert len(names(folder)) == 1 and names(folder)[0].startswith("CKPT")  # leftovers are gone


def kill_the_first_save(folder):
    run = Run(folder).train(2)
    run.hook.action = half_a_file_then_die
    run.save()


def test_a_run_killed_in_its_first_save_starts_again(tmp_path):
    assert in_children(kill_the_first_save, tmp_path).exitcode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert Run(tmp_path).checkpointer.recover_if_possible() is None


def test_a_checkpoint_replaced_under_its_name_is_there_at_every_instant(tmp_path, monkeypatch):
    run = Run(tmp_path).train(1)
    run.checkpointer.save_checkpoint(name="best")
    seen, rename = [], os.rename

    def spy(source, target):
        rename(source, target)
        seen.append(len(Run(tmp_path).checkpointer.list_checkpoints()))

    monkeypatch.setattr(os, "rename", spy)
    for _ in range(2):
        run.train(1).checkpointer.save_checkpoint(name="best")
    assert seen == [1, 2, 1] * 2 and names(tmp_path) == ["CKPT+best"]
    assert run.checkpointer.recover_if_possible().path.name == "CKPT+best" and run.step == 3


def test_folders_of_living_processes_and_of_users_are_not_removed(tmp_path, caplog):
    run = Run(tmp_path)
    host = checkpoints._host()
    living = tmp_path / f"tmp-{host}-{os.getppid()}-CKPT+x"
    dead = tmp_path / f"tmp-{host}-{2**22 + 1}-CKPT+x"
    elsewhere = tmp_path / "tmp-other-1-CKPT+x"
    user = tmp_path / "tmp-backup-CKPT+2026-01-01"
    for folder in (living, dead, elsewhere, user):
        folder.mkdir()
    path = run.checkpointer.save_checkpoint().path
    assert names(tmp_path) == sorted([path.name, living.name, user.name])
    assert "Another process seems to save" in caplog.text


# Full disk


def save_on_a_full_disk(folder):
    run = Run(folder).train(2)
    run.save()
    run.train(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        run.save()
    except RuntimeError as error:
        return str(error)


def no_space(path):
    raise OSError(28, "No space left on device")


def save_with_an_error(folder):
    run = Run(folder).train(2)
    run.save()
    run.train(2)
    run.hook.action = no_space
    with pytest.raises(RuntimeError) as error:
        run.save()
    return str(error.value)


@pytest.mark.parametrize("fill", [save_on_a_full_disk, save_with_an_error])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so(tmp_path, fill):
    folder = tmp_path / "save"
    message = in_children(fill, folder).result
    (kept,) = names(folder)
    assert "could not be saved" in message and f"continues from {kept}" in message
    run = Run(folder)
    run.checkpointer.recover_if_possible()
    assert run.step == 2
    torch.testing.assert_close(run.train(2).state, uninterrupted(tmp_path, 4), rtol=0, atol=0)


def test_too_little_free_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.save()
    before = names(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OSError, match="0 MB are free.*no checkpoint deleted.*continues from CKPT"):
        run.save()
    assert names(tmp_path) == before


def test_a_saver_that_writes_nothing_is_an_error(tmp_path):
    run = Run(tmp_path)
    run.hook.action = os.unlink
    with pytest.raises(RuntimeError, match="saver of the recoverable 'hook' wrote no file"):
        run.save()
    assert names(tmp_path) == []


# Incomplete checkpoints


def truncate(ckpt):
    path = ckpt / "optimizer.ckpt"
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(ckpt):
    path = ckpt / "optimizer.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_the_meta_file(ckpt):
    path = ckpt / "CKPT.yaml"
    path.write_text(path.read_text()[:-20])


DAMAGES = {
    truncate: "bytes instead of",
    flip_a_bit: "content of optimizer.ckpt has changed",
    cut_the_meta_file: "cut off|cannot be read",
    lambda ckpt: (ckpt / "model.ckpt").unlink(): "model.ckpt is missing",
    lambda ckpt: (ckpt / "CKPT.yaml").unlink(): "CKPT.yaml cannot be read",
    lambda ckpt: (ckpt / "CKPT.yaml").write_bytes(b"\xff\xfe\x00"): "cannot be read",
    lambda ckpt: (ckpt / "CKPT.yaml").write_text(""): "cut off",
}
damages = pytest.mark.parametrize(
    ("damage", "fault"),
    DAMAGES.items(),
    ids=["truncated", "bit", "meta cut", "file lost", "meta lost", "meta binary", "meta empty"],
)


@damages
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, damage, fault):
    run = Run(tmp_path)
    older = run.train(1).checkpointer.save_checkpoint()
    newer = run.train(1).checkpointer.save_checkpoint()
    damage(newer.path)
    run = Run(tmp_path)
    assert run.checkpointer.recover_if_possible().path == older.path
    assert run.step == 1
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert str(newer.path) in warning and any(part in warning for part in fault.split("|"))


@damages
def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path, damage, fault):
    damage(Run(tmp_path).train(1).checkpointer.save_checkpoint().path)
    with pytest.raises(RuntimeError, match=f"No complete checkpoint.*({fault}).*Restore one"):
        Run(tmp_path).checkpointer.recover_if_possible()


def test_every_cut_of_the_meta_file_is_noticed(tmp_path):
    run = Run(tmp_path)
    meta = run.checkpointer.save_checkpoint(meta={"zzz_mse": 0.123}).path / "CKPT.yaml"
    content = meta.read_bytes()
    for length in range(len(content)):
        meta.write_bytes(content[:length])
        assert run.checkpointer.list_checkpoints() == [], content[:length]


def test_a_checkpoint_of_speechbrains_own_checkpointer_is_refused(tmp_path):
    sb.utils.checkpoints.Checkpointer(tmp_path, {"hook": Hook()}).save_checkpoint()
    with pytest.raises(RuntimeError, match="SpeechBrain's own Checkpointer"):
        Run(tmp_path).checkpointer.recover_if_possible()


def test_damaged_checkpoints_neither_displace_complete_ones_nor_vanish(tmp_path):
    run = Run(tmp_path)
    damaged = run.train(1).checkpointer.save_checkpoint(meta={"mse": 0.1}).path
    truncate(damaged)
    run.train(1).save(mse=1.0)
    best = run.checkpointer.find_checkpoint(min_key="mse").path
    run.train(1).save(mse=2.0)
    assert len(names(tmp_path)) == 3 and {best.name, damaged.name} < set(names(tmp_path))


def test_a_recoverable_without_file_makes_a_checkpoint_incomplete(tmp_path):
    run = Run(tmp_path).train(1)
    run.checkpointer.save_checkpoint()
    run.checkpointer.recoverables["ema"] = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="no file for the recoverable 'ema'"):
        run.checkpointer.recover_if_possible()
    run.checkpointer.optional_recoverables["ema"] = True
    with pytest.warns(UserWarning, match="ema"):
        assert run.checkpointer.recover_if_possible() is not None
    run.checkpointer.optional_recoverables["ema"] = False
    run.checkpointer.allow_partial_load = True
    assert run.checkpointer.recover_if_possible() is not None


def test_an_empty_folder_gives_no_checkpoint(tmp_path):
    checkpointer = Run(tmp_path / "absent").checkpointer
    assert checkpointer.recover_if_possible() is None
    assert checkpointer.recover_if_possible(min_key="mse") is None
    assert checkpointer.list_checkpoints() == [] and names(tmp_path) == []


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
