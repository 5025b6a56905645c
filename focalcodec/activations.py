"""Nonlinearities of the blocks.

`Snake` and `LeakyReLU` are injected as factories ``activation(dim)`` and see channels first,
(B, C, N).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, alpha learned per channel, for signals with periods [1]_.

    Maps (B, dim, N) to the same shape.

    References
    ----------
    .. [1] Ziyin et al., 2020, arXiv:2006.08195.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.alpha = nn.Parameter(torch.ones(dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, N) to (B, dim, N)."""
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)


class DynamicTanh(nn.Module):
    """tanh(alpha x) with one learned alpha: a normalization that needs no statistics [1]_.

    Without the scale and shift of the reference, as in the published causal codec.

    Parameters
    ----------
    alpha : initial value.

    References
    ----------
    .. [1] Zhu et al., 2025, "Transformers without Normalization", arXiv:2503.10622.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return (self.alpha * x).tanh()


class LeakyReLU(nn.Module):
    """Leaky ReLU with the constructor of an activation factory; ``dim`` does not matter.

    The paper's ablation does not give the slope; the default is PyTorch's.
    """

    def __init__(self, dim: int, *, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.dim = dim
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return F.leaky_relu(x, self.negative_slope)
