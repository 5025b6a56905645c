"""Audio for the tests of audio scores, and skips for scores whose package is missing."""

import pytest
import torch

from recipes.common.metrics import AudioMetrics

RATE = 16_000


def skip_unless_computed(name: str) -> None:
    if reason := AudioMetrics(names=[name], sample_rate=RATE).not_computed.get(name):
        pytest.skip(reason)


def voice(seconds: float, *, sample_rate: int = RATE) -> torch.Tensor:
    """(T,) harmonics of 120 Hz in syllables, the same on every machine: no random numbers."""
    time = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    pitch = 2 * torch.pi * (120 * time + 3 * torch.sin(2 * torch.pi * 0.7 * time))
    harmonics = sum(torch.sin(k * pitch) / k for k in range(1, 30))
    syllables = torch.sin(2 * torch.pi * 2 * time).clamp_min(0.001)
    return (0.2 * harmonics * syllables).float()


def add_noise(sig: torch.Tensor, *, snr_db: float) -> torch.Tensor:
    noise = torch.randn(sig.shape, generator=torch.Generator().manual_seed(0))
    return sig + noise * sig.square().mean().sqrt() / noise.square().mean().sqrt() / 10 ** (
        snr_db / 20
    )
