"""Two processes on the CPU: where upstream trains on a random encoder, then hangs."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from recipes.common.dataio import collate
from recipes.common.experiment import build_experiment
from recipes.common.fingerprint import fingerprint
from recipes.common.metrics import AudioMetrics
from tests.stages import STAGES, STREAMING, fit_one, options, start, steps_of
from tests.two_ranks import become, on_two_ranks

ENCODER = """# WavLM at toy size.
!new:focalcodec.wavlm.WavLM
hidden_dims: [8, 8, 8, 8, 8, 8, 8]
num_layers: 1
dim: 16
ffn_dim: 16
num_heads: 2
conv_pos: 4
conv_pos_groups: 2
"""


_ALL = STAGES | STREAMING
LFQ = "!include:quantizer/lfq_10bit.yaml"


def _train(rank: int, port: int, stage: str, corpus: Path, folder: Path) -> None:
    become(rank, port)
    torch.manual_seed(rank)  # an encoder that only one rank loads would differ
    encoder = {"encoder": f"!include:{folder / 'wavlm.yaml'}", "encoder_checkpoint": "random"}
    if stage in STREAMING:
        encoder = {}  # which is WavLM anyway
    average = {"ema_decay": 0.9} if stage == "decoder" else {}
    arguments = options(stage, corpus, folder / "run", number_of_epochs=2, **encoder, **average)
    arguments.append("--distributed_backend=gloo")
    brain, train, valid, test = build_experiment(_ALL[stage][0], arguments)
    brain.fit(brain.hparams.epoch_counter, train, valid)
    weights = [fingerprint_of(brain.raw_modules)]
    if average:
        weights.append(fingerprint_of(brain.average.module))
        assert len(set(weights)) == 2
    brain.evaluate(test, min_key=brain.selection_key)
    brain.run_log.close()
    assert train.sampler.seed == brain.hparams.seed
    seen = [fingerprint(brain.encoder), weights, brain.optimizer_step]
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


def fingerprint_of(modules: torch.nn.Module) -> float:
    return sum(float(value.detach().double().abs().sum()) for value in modules.parameters())


@pytest.mark.parametrize("stage", [*STAGES, "encoder", "joint"])
def test_two_processes_finish_with_one_encoder_and_one_set_of_weights(stage, corpus, tmp_path):
    (tmp_path / "wavlm.yaml").write_text(ENCODER)
    on_two_ranks(_train, stage, corpus, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics) == {"train", "valid", "test"}
    # Six utterances in batches of two on two ranks: two steps an epoch.
    assert metrics["train"]["step"] == 4
    if stage == "quantizer":  # every rank validates all: no token is counted twice
        frames = sum(
            -(-entry["num_samples"] // 320)
            for entry in json.loads((tmp_path / "run/valid.json").read_text()).values()
        )
        assert metrics["valid"]["num_tokens"] == frames


def _step_once(
    stage: str, corpus: Path, folder: Path, overrides: dict, *, utterances: slice, ranks: int
) -> None:
    """One step of plain gradient descent, whose change of the weights is the gradient."""
    arguments = options(stage, corpus, folder / f"{ranks}", batch_size=4 // ranks, **overrides)
    if ranks > 1:
        arguments.append("--distributed_backend=gloo")
    brain, loader, _, _ = build_experiment(_ALL[stage][0], arguments)
    brain.opt_class = partial(torch.optim.SGD, lr=1.0)
    start(brain)
    brain.modules.eval()  # spectral norm's power iteration goes on with every pass
    before = [p.detach().clone() for p in brain.modules.parameters()]
    fit_one(brain, collate([loader.dataset[i] for i in range(4)[utterances]]))
    changes = [p.detach() - old for p, old in zip(brain.modules.parameters(), before, strict=True)]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(changes, folder / f"{ranks}.pt")
    brain.run_log.close()


def _step_of_half(
    rank: int, port: int, stage: str, corpus: Path, folder: Path, overrides: dict
) -> None:
    become(rank, port)
    half = slice(2 * rank, 2 * rank + 2)
    _step_once(stage, corpus, folder, overrides, utterances=half, ranks=2)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("decoder", {}),
        ("quantizer", {}),
        (
            "quantizer",
            {"quantizer": LFQ, "downscale_factors": "[2, 2, 2]", "commitment_weight": 50},
        ),
        ("quantizer", {"quantizer": "!include:quantizer/fsq_10bit.yaml"}),
        ("encoder", {}),
        ("joint", {}),
    ],
    ids=["decoder", "bsq", "lfq", "fsq", "encoder", "joint"],
)
def test_two_ranks_with_half_of_a_batch_each_are_one_with_all_of_it(
    stage, overrides, corpus, tmp_path
):
    """Utterances have unequal lengths: a mean of the ranks' means would be another."""
    on_two_ranks(_step_of_half, stage, corpus, tmp_path, overrides)
    _step_once(stage, corpus, tmp_path, overrides, utterances=slice(0, 4), ranks=1)
    apart, together = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (2, 1))
    largest = max(change.norm() for change in together)
    for actual, expected in zip(apart, together, strict=True):
        # float32 sums over halves, and one ulp of weights of about 1
        assert (actual - expected).norm() <= 1e-3 * expected.norm() + 1e-6 * largest
    (two,), (one,) = steps_of(tmp_path / "2"), steps_of(tmp_path / "1")
    for name in one.keys() - {"padding"}:  # which batches of two have less of
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


def _score(rank: int, port: int, folder: Path) -> None:
    become(rank, port)
    torch.distributed.init_process_group("gloo")
    metrics = AudioMetrics(names=["mel_distance"], sample_rate=16000, rank=rank, world_size=2)
    _append_five(metrics)
    assert len(metrics.stats["mel_distance"].scores) == 2
    metrics.gather()
    metrics.write_csv(folder / f"{rank}.csv")
    assert metrics.failures[0].id == "4" and len(metrics.failures) == 1
    torch.distributed.destroy_process_group()


def _append_five(metrics: AudioMetrics) -> None:
    source = torch.Generator().manual_seed(0)
    for index in range(5):
        ref_sig, hyp_sig = torch.randn(2, 1, 4000, generator=source)
        if index == 4:
            hyp_sig[0, 5] = torch.nan
        metrics.append([str(index)], ref_sig, hyp_sig)


def test_ranks_share_the_scoring_and_get_all_scores(tmp_path):
    on_two_ranks(_score, tmp_path)
    alone = AudioMetrics(names=["mel_distance"], sample_rate=16000)
    _append_five(alone)
    alone.write_csv(tmp_path / "alone.csv")
    texts = {path.read_text() for path in tmp_path.glob("*.csv")}
    assert len(texts) == 1 and len(texts.pop().splitlines()) == 6


def _too_few_batches(rank: int, port: int, corpus: Path, folder: Path) -> None:
    become(rank, port)
    words = [*options("quantizer", corpus, folder, batch_seconds=60), "--distributed_backend=gloo"]
    with pytest.raises(ValueError, match="makes 1 batches of the training set for 2 processes"):
        build_experiment(STAGES["quantizer"][0], words)
    torch.distributed.destroy_process_group()


def test_fewer_batches_than_ranks_need_are_refused(corpus, tmp_path):
    on_two_ranks(_too_few_batches, corpus, tmp_path / "run")
