"""Downstream tasks that were interrupted end as if they had not been, bit by bit."""

import os
import signal
from pathlib import Path

import pytest
import torch

from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.files import read_json
from recipes.common.interruption import Interrupted
from recipes.downstream.brain import TokenBrain
from recipes.downstream.experiment import run_task
from tests.stages import steps_of
from tests.tasks import TASKS, options, run, write_mixtures, write_noisy, write_spoken
from tests.tiny_checkpoints import save_xvector


class Killed(Exception):
    """Ends a run where no handler would."""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    spoken = write_spoken(folder / "spoken")
    save_xvector(folder / "xvector")
    corpora = {"enhancement": write_noisy(folder / "noisy")}
    corpora["separation"] = write_mixtures(folder / "mixtures")
    return dict.fromkeys(("asr", "speaker", "tts"), spoken) | corpora


def interrupting(brain: type[TokenBrain], *, at: int, how) -> type[TokenBrain]:
    """Give a Brain that is interrupted after its ``at``-th step since this start."""

    class Interrupting(brain):
        steps = 0

        def fit_batch(self, batch):
            loss = super().fit_batch(batch)
            self.steps += 1
            if self.steps == at:
                how()
            return loss

    return Interrupting


def kill() -> None:
    raise Killed


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoints = AtomicCheckpointer(folder / "save").list_checkpoints()
    last = max(checkpoints, key=lambda checkpoint: checkpoint.meta["epoch"])
    return torch.load(last.path / "model.ckpt", weights_only=True)


def files_of(folder: Path) -> dict[Path, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_task_ends_as_if_it_had_not_been(task, corpora, tmp_path):
    corpus = corpora[task]
    words = {"number_of_epochs": 4, "dropout": 0.3, "ckpt_interval_steps": 1, "sorting": "random"}
    if task == "tts":
        words["speaker_model"] = corpus.parent / "xvector"
    run(task, corpus, tmp_path / "whole", **words)
    argv = options(task, corpus, tmp_path / "parts", **words)
    toy = TASKS[task]
    with pytest.raises(Killed):
        run_task(interrupting(toy.brain, at=2, how=kill), toy.assemble, argv)
    with pytest.raises(Interrupted):
        run_task(interrupting(toy.brain, at=2, how=stop), toy.assemble, argv)
    run_task(toy.brain, toy.assemble, argv)
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "parts")
    whole, parts = (state_of(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    metrics = [read_json(tmp_path / name / "metrics.json") for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    tested = [files_of(tmp_path / name / "evaluation") for name in ("whole", "parts")]
    assert tested[0] == tested[1] and len(tested[0]) >= 2
    assert len(read_json(tmp_path / "parts/run.json")["starts"]) == 3
