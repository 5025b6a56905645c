"""Downstream tasks on two processes: gradients are those of one with the whole batch."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from recipes.common.dataio import collate
from recipes.downstream.experiment import build_task
from tests.saved_runs import free_port
from tests.stages import fit_one, start, steps_of
from tests.tasks import TASKS, options, run, write_mixtures, write_spoken
from tests.tiny_checkpoints import save_xvector
from tests.two_ranks import become, on_two_ranks

CHECKED = ("asr", "separation", "tts")


def step_once(task: str, corpus: Path, folder: Path, *, rows: slice, ranks: int) -> None:
    """One step of plain gradient descent, whose change of the weights is the gradient."""
    more = {"speaker_model": folder / "xvector"} if task == "tts" else {}
    output = folder / f"{task}{ranks}"
    arguments = options(task, corpus, output, batch_size=4 // ranks, max_grad_norm=0.0, **more)
    arguments += ["--distributed_backend=gloo"] * (ranks > 1)
    toy = TASKS[task]
    brain, loader, _, _ = build_task(toy.brain, arguments, assemble=toy.assemble)
    brain.opt_class = partial(torch.optim.SGD, lr=1.0)
    start(brain)
    before = [p.detach().clone() for p in brain.modules.parameters()]
    fit_one(brain, collate([loader.dataset[i] for i in (0, 7, 3, 5)[rows]]))
    changes = [p.detach() - old for p, old in zip(brain.modules.parameters(), before, strict=True)]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(changes, folder / f"{task}{ranks}.pt")
    brain.run_log.close()


def steps_of_half(
    rank: int, port: int, corpora: dict[str, Path], folder: Path, ports: list[int]
) -> None:
    for task, own_port in zip(corpora, ports, strict=True):
        become(rank, own_port)  # each run makes a group of its own
        half = slice(2 * rank, 2 * rank + 2)
        step_once(task, corpora[task], folder, rows=half, ranks=2)
        torch.distributed.destroy_process_group()
    become(rank, port)
    argv = options("asr", corpora["asr"], folder / "whole", batch_size=2, number_of_epochs=2)
    toy = TASKS["asr"]
    brain, train, valid, test = build_task(
        toy.brain, [*argv, "--distributed_backend=gloo"], assemble=toy.assemble
    )
    brain.fit(brain.hparams.epoch_counter, train, valid)
    brain.evaluate(test, min_key=brain.selection_key)
    brain.run_log.close()
    total = sum(float(p.detach().double().abs().sum()) for p in brain.modules.parameters())
    (folder / f"rank{rank}.json").write_text(json.dumps([total, brain.optimizer_step]))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of what two ranks have done, and one."""
    folder = tmp_path_factory.mktemp("ranks")
    save_xvector(folder / "xvector")
    spoken = write_spoken(folder / "spoken")
    corpora = dict.fromkeys(CHECKED, spoken)
    corpora["separation"] = write_mixtures(folder / "mixtures")
    on_two_ranks(steps_of_half, corpora, folder, [free_port() for _ in corpora])
    for task, corpus in corpora.items():
        step_once(task, corpus, folder, rows=slice(0, 4), ranks=1)
    return folder


@pytest.mark.parametrize("task", CHECKED)
def test_two_ranks_with_half_of_a_batch_each_are_one_with_all_of_it(task, folder):
    """Utterances have unequal lengths: a mean of the ranks' means would be another."""
    apart, together = (torch.load(folder / f"{task}{n}.pt", weights_only=True) for n in (2, 1))
    largest = max(change.norm() for change in together)
    assert largest > 0
    for actual, expected in zip(apart, together, strict=True):
        # float32 sums over halves, and one ulp of weights of about 1
        assert (actual - expected).norm() <= 1e-3 * expected.norm() + 1e-6 * largest
    (two,), (one,) = steps_of(folder / f"{task}2"), steps_of(folder / f"{task}1")
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


def test_two_ranks_train_to_the_end_with_one_set_of_weights(folder):
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    metrics = json.loads((folder / "whole/metrics.json").read_text())
    # Eight utterances in batches of two on two ranks: two steps an epoch.
    assert metrics["train"]["step"] == 4
    rows = (folder / "whole/evaluation/utterances.csv").read_text().splitlines()
    assert len(rows) == 9, "every utterance once"


def test_tokens_of_two_ranks_are_those_of_one(folder, tmp_path):
    run("asr", folder / "spoken", tmp_path / "one")
    for path in (tmp_path / "one/tokens").glob("*.parquet"):
        assert path.read_bytes() == (folder / "whole/tokens" / path.name).read_bytes()
