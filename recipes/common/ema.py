"""Exponential moving average of a module's weights."""

import copy

import torch
from torch import nn


class MovingAverage:
    """A copy of a module whose weights follow it slowly.

    Parameters
    ----------
    module : what is trained.
    decay : in (0, 1), part of the average that an update keeps. The first updates keep less,
        (1 + n) / (10 + n) of it after n steps, so that the untrained weights are soon forgotten.

    Attributes
    ----------
    module : the averaged copy, in evaluation mode.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), or 0 for none, got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        """Follow ``module`` after its ``step``-th step."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, value in zip(
            self.module.state_dict().values(), module.state_dict().values(), strict=True
        ):
            if value.is_floating_point():
                average.lerp_(value.to(average.dtype), weight)
            else:
                average.copy_(value)
