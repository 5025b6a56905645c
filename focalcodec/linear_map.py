"""Linear maps whose published weights have the shape of a convolution.

A convolution whose stride is its number of taps is a linear map of joined frames; so is any other
one, of the frames that its taps reach. A `LinearMap` computes it as such, and can be packed
(`focalcodec.packing`).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearMap:
    """Mixin of modules that hold a linear map under another shape.

    Attributes
    ----------
    packable : whether the module is a linear map at all.
    """

    packable = True

    @property
    def packed(self) -> nn.Module | None:
        """What computes the map in the place of the weights; None for the weights themselves."""
        return self._modules.get("packed_map")

    def pack(self, packed: nn.Module) -> None:
        """Let another module compute the map from now on."""
        self.packed_map = packed

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Weights (output_dim, input_dim) and bias (output_dim,) of the map."""
        raise NotImplementedError

    def map(self, x: Tensor) -> Tensor:
        """(..., input_dim) to (..., output_dim)."""
        return F.linear(x, *self.matrix()) if self.packed is None else self.packed(x)


class PointwiseConv(LinearMap, nn.Conv1d):
    """Convolution of one tap on frames (B, N, C): a linear map of each."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(input_dim, output_dim, 1)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Weights (output_dim, input_dim) and bias."""
        return self.weight[..., 0], self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) to (..., output_dim)."""
        return self.map(x)
