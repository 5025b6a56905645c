"""Real runs, really killed: the same command continues them exactly."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks import killed_run
from benchmarks.kill_resume import Outcome, compare_trials, draw_kills, run_trial, summary
from benchmarks.killed_run import (
    Kill,
    Setting,
    finish,
    next_step,
    prepare,
    resume_killed,
    resume_until_done,
)
from benchmarks.run_comparison import differences
from recipes.common.dataio import read_bad_files
from recipes.common.interruption import INTERRUPTED

SETTINGS = {
    "decoder": Setting("decoder", Path(), epochs=2),
    "quantizer": Setting("quantizer", Path(), epochs=2, feature_cache=True, listens=False),
    "two ranks": Setting("decoder", Path(), epochs=1, ranks=2),
    "encoder": Setting("encoder", Path(), epochs=2),
    "joint": Setting("joint", Path(), epochs=2, feature_cache=True),
}
# Killed in the middle of an epoch, while features are written, in a save; told to stop by a signal
# to all processes of the group, which of two ranks only one gets. Killed in the test at last, when
# the broken files, which it counts, will not be read again.
KILLS = {
    "decoder": [
        Kill("4 open run/steps.jsonl"),
        Kill("2 open run/steps.jsonl", "TERM"),
        Kill("1 os.mkdir run/samples/test"),
    ],
    "quantizer": [Kill("1 os.rename cache"), Kill("2 open run/steps.jsonl", "USR1")],
    "two ranks": [Kill("3 os.rename run/save/tmp"), Kill("1 open run/steps.jsonl", "USR1")],
    "encoder": [Kill("3 open run/steps.jsonl"), Kill("2 open run/steps.jsonl", "TERM")],
    "joint": [Kill("2 os.rename run/save/tmp"), Kill("2 open run/steps.jsonl", "USR1")],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Folder of the runs, and futures of all of them by name of the setting.

    Each run starts an interpreter of its own, which takes most of the time: two at once.
    """
    folder = tmp_path_factory.mktemp("resume")
    settings = {name: s._replace(inputs=folder / "inputs") for name, s in SETTINGS.items()}
    prepare(settings["decoder"])
    with ThreadPoolExecutor(2) as pool:
        futures = {
            name: (
                pool.submit(resume_until_done, setting, folder / name / "killed", KILLS[name]),
                pool.submit(finish, setting, folder / name / "uninterrupted"),
            )
            for name, setting in settings.items()
        }
        yield folder, futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_run_ends_as_if_it_had_not_been(name, outcomes):
    folder, futures = outcomes
    deaths, _ = (future.result() for future in futures[name])
    for death, kill in zip(deaths, KILLS[name], strict=True):
        assert kill.at.partition(" ")[2] in death.phase
    found = compare_trials(folder / name / "uninterrupted", folder / name / "killed")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", SETTINGS)
def test_broken_files_are_met_when_they_are_loaded(name, outcomes):
    folder, futures = outcomes
    futures[name][1].result()
    run = folder / name / "uninterrupted/run"
    bad = read_bad_files(run / "bad_files.tsv")
    assert sorted(Path(path).parts[-4] for path in bad) == ["dev-clean", "train-clean-100"]
    manifests = (run / "train.json").read_text() + (run / "valid.json").read_text()
    assert all(Path(path).name in manifests for path in bad)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_is_told_to_stop_has_saved(name, outcomes):
    folder, futures = outcomes
    killed, told, *_ = futures[name][0].result()
    assert told.step > killed.step
    # torchrun has an exit status of its own for whatever its processes end with.
    assert told.status == (INTERRUPTED if SETTINGS[name].ranks == 1 else 1)
    printed = (folder / name / "killed/printed.txt").read_text()
    assert f"SIG{KILLS[name][1].signal_name} arrived" in printed
    assert "start the same command again" in printed


# What counts as a kill


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Make a script the command of a stage, and give the stage's setting."""

    def make(text, **options):
        script = tmp_path / "stub.py"
        script.write_text(text)
        monkeypatch.setitem(killed_run.SCRIPTS, "stub", (str(script), "stub.yaml"))
        return Setting("stub", tmp_path, **options)

    return make


LATE = {"instant": Kill(60.0), "write": Kill("2 ")}
MAKE_FOLDER = "import os; os.mkdir(os.environ['KILL_RESUME_TRIAL'] + '/folder')\n"


@pytest.mark.parametrize("kill", LATE.values(), ids=LATE)
def test_a_run_that_ended_before_its_kill_has_not_been_killed(kill, stub, tmp_path):
    setting = stub(MAKE_FOLDER)
    assert resume_until_done(setting, tmp_path / "trial", [kill, Kill(0.0)]) == []


def test_an_undelivered_kill_is_drawn_again(stub, tmp_path):
    setting = stub(MAKE_FOLDER)
    draws = [[LATE["instant"]], [LATE["write"]], [Kill("1 "), LATE["instant"]], [Kill(0.0)]]
    (death,) = resume_killed(setting, tmp_path / "trial", draws)
    assert death.phase == "before os.mkdir folder" and death.status == -9


def test_a_trial_without_a_kill_is_not_exact(stub, tmp_path):
    outcome = run_trial(
        1, setting=stub(""), folder=tmp_path, draws=[[LATE["write"]]] * 2, keep=False
    )
    assert not outcome.exact and outcome.kills == 0
    assert "FAILED: no kill was delivered: 2 runs ended" in outcome.line


@pytest.mark.parametrize("kill", LATE.values(), ids=LATE)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_crash_before_the_kill_is_no_kill(ranks, kill, stub, tmp_path):
    """With two ranks torchrun ends with 1, as it does when its processes are killed."""
    setting = stub("raise SystemExit('the disk is gone')", ranks=ranks)
    with pytest.raises(RuntimeError, match="(?s)exit status 1, before its kill.*the disk is gone"):
        resume_until_done(setting, tmp_path / "trial", [kill])


def test_the_last_line_counts_trials_and_kills():
    outcomes = [Outcome(True, 3, ""), Outcome(False, 1, ""), Outcome(True, 2, "")]
    assert summary(outcomes) == "2 of 3 trials exact, 6 kills delivered"


# The comparison itself: it must see what a resumed run could get wrong


def flip_bit(path, *keys):
    """Change the lowest bit of the first value of one tensor in a file of the checkpoint."""

    def damage(run):
        (file,) = run.glob(f"save/CKPT*/{path}")
        content = value = torch.load(file, weights_only=True)
        for key in keys:
            value = value[key]
        value.view(-1).view(torch.uint8)[0] ^= 1
        torch.save(content, file)

    return damage


def replace(path, old, new):
    """Change the first place of a text in a file."""

    def damage(run):
        (file,) = run.glob(path)
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new, 1))

    return damage


def repeat_last_line(run):
    log = run / "train_log.txt"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")


def change_sample(run):
    file = sorted(run.glob("samples/valid/*/rec.wav"))[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_curves(run):
    for file in run.glob("tensorboard/*"):
        file.write_bytes(file.read_bytes()[:-2000])


def leave(path):
    """Leave a file or, for a path that ends in a slash, a folder."""

    def damage(run):
        if path.endswith("/"):
            (run / path).mkdir()
        else:
            (run / path).write_text("half")

    return damage


def double_checkpoint(run):
    (checkpoint,) = run.glob("save/CKPT*")
    shutil.copytree(checkpoint, checkpoint.with_name(f"{checkpoint.name}-copy"))


DAMAGES = {
    "decoder.ckpt/head.proj.bias": flip_bit("decoder.ckpt", "head.proj.bias"),
    "decoder_optimizer.ckpt/state/0/exp_avg": flip_bit(
        "decoder_optimizer.ckpt", "state", 0, "exp_avg"
    ),
    "random_state.ckpt/0/torch": flip_bit("random_state.ckpt", 0, "torch"),
    "brain.ckpt/optimizer_step": replace(
        "save/CKPT*/brain.ckpt", b"optimizer_step: ", b"optimizer_step: 1"
    ),
    "CKPT.yaml/mel": replace("save/CKPT*/CKPT.yaml", b"mel: ", b"mel: 1"),
    "steps.jsonl": replace("steps.jsonl", b'"mel": ', b'"mel": 1'),
    "metrics.json": replace("metrics.json", b'"mel": ', b'"mel": 1'),
    "train_log.txt": repeat_last_line,
    "test_rec.csv": lambda run: (run / "test_rec.csv").unlink(),
    "samples/valid": change_sample,
    "TensorBoard": lose_curves,
    ".metrics.json.123: left over": leave(".metrics.json.123"),
    "save: ": leave("save/tmp-host-1-CKPT+2026/"),
    "instead of 1 checkpoint": double_checkpoint,
}


def test_a_copy_of_a_run_differs_in_nothing(decoder_run, tmp_path):
    shutil.copytree(decoder_run, tmp_path / "run")
    assert differences(decoder_run, tmp_path / "run") == []


@pytest.mark.parametrize("where", DAMAGES)
def test_every_difference_is_reported_with_its_place(where, decoder_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(decoder_run, run)
    DAMAGES[where](run)
    found = differences(decoder_run, run)
    assert found and all(where in line for line in found), found
    if where not in ("TensorBoard", "train_log.txt"):
        assert len(found) == 1


def test_an_interrupted_copy_of_a_save_is_not_taken_for_a_checkpoint(decoder_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(decoder_run, run)
    (checkpoint,) = run.glob("save/CKPT*")
    checkpoint.rename(checkpoint.with_name("tmp-host-1-CKPT+2026"))
    assert "tmp-host-1-CKPT+2026: left over" in "\n".join(differences(decoder_run, run))
    assert next_step(run) == 0


def test_the_same_seed_draws_the_same_kills():
    plans = [
        [
            draw_kills(random.Random(f"{seed}/1"), at=at, signal_name="KILL", last=20)
            for at in ("instant", "write")
        ]
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]
    instants, writes = plans[0]
    assert all(isinstance(kill.at, float) and 0 <= kill.at <= 20 for kill in instants)
    assert all(1 <= int(kill.at) <= 20 for kill in writes)
