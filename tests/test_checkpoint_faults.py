"""Checkpoints survive kills, full disks, damage and plain copies."""

import os
import resource
import shutil
import signal

import pytest
import speechbrain as sb
import torch

from recipes.common import checkpoints
from tests.saved_runs import Hook, Run, die, half_a_file_then_die, in_children, names, uninterrupted

# Killed while saving


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
