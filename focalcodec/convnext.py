"""ConvNeXt in one dimension, the backbone of the decoders; channels last, a constant frame rate.

References
----------
.. [1] Liu et al., 2022, "A ConvNet for the 2020s", arXiv:2201.03545.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.masking import zero_padding
from focalcodec.streaming import FrameConv, State

NORM_EPS = 1e-6


class ConvNeXt(nn.Module):
    """One-dimensional ConvNeXt [1]_ at a constant frame rate.

    Parameters
    ----------
    input_dim : channels of the input.
    num_layers : blocks.
    dim, ffn_dim : channels of and inside the blocks.
    kernel_size : frames, odd.
    layerscale_init : initial scale of each block's branch; None for ``1 / num_layers``.
    causal : reach back only.
    fill : what stands before the beginning for causal convolutions, see
        `focalcodec.streaming.LeftContext`.

    Raises
    ------
    ValueError : if ``kernel_size`` is even or ``num_layers`` below 1.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        num_layers: int,
        dim: int,
        ffn_dim: int,
        kernel_size: int = 7,
        layerscale_init: float | None = None,
        causal: bool = False,
        fill: str = "replicate",
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or num_layers < 1:
            raise ValueError(
                f"kernel_size must be odd and num_layers at least 1, got {kernel_size} and "
                f"{num_layers}"
            )
        self.input_dim = input_dim
        self.num_layers = num_layers
        self.dim = dim
        self.ffn_dim = ffn_dim
        self.kernel_size = kernel_size
        self.layerscale_init = layerscale_init
        self.causal = causal
        self.fill = fill
        self.embedding = FrameConv(
            input_dim, dim, kernel_size=kernel_size, causal=causal, fill=fill
        )
        self.input_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        scale = 1 / num_layers if layerscale_init is None else layerscale_init
        self.layers = nn.ModuleList(
            ConvNeXtBlock(
                dim,
                ffn_dim=ffn_dim,
                kernel_size=kernel_size,
                layerscale_init=scale,
                causal=causal,
                fill=fill,
            )
            for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """(B, N, input_dim) to (B, N, dim).

        Where ``mask`` (B, N) is False the input enters nothing and the result means nothing.
        ``state`` is where causal streams go on.
        """
        x = self.embedding(zero_padding(x, mask=mask), state=state)
        x = self.input_norm(x)
        for layer in self.layers:
            x = layer(x, mask=mask, state=state)
        return self.output_norm(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm and a feed-forward part, scaled and added to the input.

    Parameters
    ----------
    dim : channels.
    ffn_dim : hidden channels.
    kernel_size : frames, odd.
    layerscale_init : initial value of the learned scale of each channel.
    causal, fill : as in `ConvNeXt`.
    """

    def __init__(
        self,
        dim: int,
        *,
        ffn_dim: int,
        kernel_size: int = 7,
        layerscale_init: float,
        causal: bool = False,
        fill: str = "replicate",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.ffn_dim = ffn_dim
        self.kernel_size = kernel_size
        self.layerscale_init = layerscale_init
        self.causal = causal
        self.fill = fill
        self.dwconv = FrameConv(
            dim, dim, kernel_size=kernel_size, groups=dim, causal=causal, fill=fill
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(dim, ffn_dim)
        self.pwconv2 = nn.Linear(ffn_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), float(layerscale_init)))

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """(B, N, dim) to (B, N, dim); frames where ``mask`` is False do not reach the others."""
        branch = self.norm(self.dwconv(zero_padding(x, mask=mask), state=state))
        branch = self.pwconv2(F.gelu(self.pwconv1(branch)))
        return x + self.gamma * branch
