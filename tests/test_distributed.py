"""Two processes on the CPU: where upstream trains on a random encoder, then hangs."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch

from recipes.common.experiment import build_experiment, fingerprint
from tests.stages import STAGES, options

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


def _train(rank: int, port: int, stage: str, corpus: Path, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # an encoder that only one rank loads would differ
    encoder = {"encoder": f"!include:{folder / 'wavlm.yaml'}", "encoder_checkpoint": "random"}
    arguments = options(stage, corpus, folder / "run", number_of_epochs=2, **encoder)
    arguments.append("--distributed_backend=gloo")
    brain, train, valid, test = build_experiment(STAGES[stage][0], arguments)
    brain.fit(brain.hparams.epoch_counter, train, valid)
    weights = fingerprint_of(brain.raw_modules)
    brain.evaluate(test, min_key=brain.selection_key)
    brain.run_log.close()
    seen = [fingerprint(brain.encoder), weights, brain.optimizer_step]
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


def fingerprint_of(modules: torch.nn.ModuleDict) -> float:
    return sum(float(value.detach().double().abs().sum()) for value in modules.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_finish_with_one_encoder_and_one_set_of_weights(stage, corpus, tmp_path):
    (tmp_path / "wavlm.yaml").write_text(ENCODER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_train, (port, stage, corpus, tmp_path), nprocs=2)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics) == {"train", "valid", "test"}
    # Six utterances in batches of two on two ranks: two steps an epoch.
    assert metrics["train"]["step"] == 4
