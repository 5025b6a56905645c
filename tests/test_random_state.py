"""Random states are restored exactly, or with a warning where processes or GPUs are others."""

import random

import numpy as np
import pytest
import torch

from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.random_state import RandomState


def draws():
    return [
        torch.rand(3).tolist(),
        np.random.standard_normal(3).tolist(),
        [random.gauss(0, 1), random.random()],
    ]


def test_random_states_are_restored_exactly(tmp_path):
    np.random.standard_normal(), random.gauss(0, 1)  # both keep the second half of a pair
    state = RandomState()
    checkpointer = AtomicCheckpointer(tmp_path, {"random_state": state})
    ckpt = checkpointer.save_checkpoint()
    expected = draws()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    checkpointer.recover_if_possible()
    assert draws() == expected
    torch.load(ckpt.paramfiles["random_state"], weights_only=True)


@pytest.mark.gpu
def test_cuda_random_states_are_restored_exactly(tmp_path):
    torch.cuda.init()
    checkpointer = AtomicCheckpointer(tmp_path, {"random_state": RandomState()})
    checkpointer.save_checkpoint()
    expected = torch.rand(3, device="cuda")
    checkpointer.recover_if_possible()
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_other_numbers_of_processes_or_gpus_are_warned_about(tmp_path, caplog):
    state = RandomState()
    state.save(tmp_path / "one")
    (mine,) = torch.load(tmp_path / "one")
    torch.save([mine, mine], tmp_path / "two")
    state.load(tmp_path / "two", True)
    assert "saved by 2 processes, now there are 1" in caplog.text
    other_gpus = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    torch.save([{**mine, "cuda": other_gpus}], tmp_path / "gpus")
    if not torch.cuda.is_available():
        state.load(tmp_path / "gpus", True)
        assert "saved with 1 GPUs and now there are 0" in caplog.text
