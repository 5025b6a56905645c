"""HiFi-GAN's multi-period and multi-scale discriminators, with a width.

Used by the decoder stage only and thrown away afterwards. SpeechBrain's ``HifiganDiscriminator``
has the same layers in one fixed size (70.7 M parameters). With ``width=1`` the class here gives its
outputs on its weights, and at every width its order of outputs, so that SpeechBrain's adversarial
and feature matching losses work on it unchanged.

References
----------
[1] Kong et al., 2020, arXiv:2010.05646, section 2.3.
[2] speechbrain 1.1.2, ``speechbrain.lobes.models.HifiGAN.HifiganDiscriminator``: layer sizes,
    reflection padding in the period discriminators (the software of [1] pads with zeros) and the
    order of the outputs.
"""

from collections.abc import Callable, Sequence
from math import gcd, log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

_SLOPE = 0.1  # of every leaky ReLU
_PERIOD_LAYERS = [(32, 3), (128, 3), (512, 3), (1024, 3), (1024, 1)]  # channels, stride; kernel 5
_SCALE_LAYERS = [  # channels, kernel size, stride, groups
    (128, 15, 1, 1),
    (128, 41, 2, 4),
    (256, 41, 2, 16),
    (512, 41, 4, 16),
    (1024, 41, 4, 16),
    (1024, 41, 1, 16),
    (1024, 5, 1, 1),
]
# The last period convolution mirrors 2 rows, so it needs 3: four strides of 3 leave them of 163.
_MIN_ROWS = 2 * 3**4 + 1


class MultiPeriodMultiScaleDiscriminator(nn.Module):
    """One discriminator for each period and one for each scale, all on the same signal.

    Every item of a batch is judged on its own (there are no batch statistics), so that real and
    decoded signals may share one forward pass.

    Parameters
    ----------
    width : multiplier of the published channel counts; > 0. 1 gives 70.7 M parameters, 1/4 4.4 M,
        1/16 0.3 M. The counts are rounded to multiples of 16, below that to powers of two, so that
        the grouped convolutions keep their groups as far as possible.
    periods : a period discriminator compares samples that are this many samples apart.
    num_scales : scale discriminators. The first sees the signal itself and has spectral
        normalization; each further one sees it averaged down by two once more and has weight
        normalization.

    Raises
    ------
    ValueError : if ``width`` is not positive, a period is below 1, or no discriminator is left.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        num_scales: int = 3,
    ):
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}; 1 gives the published sizes")
        if any(period < 1 for period in periods) or num_scales < 0:
            raise ValueError(
                f"periods must be >= 1 and num_scales >= 0, got {periods} and {num_scales}"
            )
        if not periods and not num_scales:
            raise ValueError("no discriminator is left: give at least one period or one scale")
        self.width = width
        self.periods = tuple(periods)
        self.num_scales = num_scales
        self.min_samples = max(((_MIN_ROWS - 1) * period + 1 for period in periods), default=1)
        self.mpd = _MultiPeriod(periods, width)
        self.msd = _MultiScale(num_scales, width)

    def forward(self, sig: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Scores and feature maps of all discriminators, periods first.

        Parameters
        ----------
        sig : (B, T) or (B, 1, T) waveform, at least ``min_samples`` long.

        Returns
        -------
        scores : one (B, S) tensor for each discriminator; S depends on T and the discriminator.
        feature maps : one list for each discriminator, the activations of its layers and last its
            score map: 6 for a period (B, C, rows, period), 8 for a scale (B, C, frames).

        Raises
        ------
        ValueError : if ``sig`` has another shape or is too short.
        """
        if sig.ndim == 2:
            sig = sig[:, None]  # (B, 1, T)
        if sig.ndim != 3 or sig.shape[1] != 1:
            raise ValueError(f"sig must be (B, T) or (B, 1, T), got shape {tuple(sig.shape)}")
        if sig.shape[-1] < self.min_samples:
            raise ValueError(
                f"sig has {sig.shape[-1]} samples, but periods {self.periods} need at least "
                f"{self.min_samples}; use longer segments or smaller periods"
            )
        period_scores, period_feats = self.mpd(sig)
        scale_scores, scale_feats = self.msd(sig)
        return period_scores + scale_scores, period_feats + scale_feats


class _MultiPeriod(nn.Module):
    def __init__(self, periods: Sequence[int], width: float):
        super().__init__()
        self.discriminators = nn.ModuleList(_Period(period, width) for period in periods)

    def forward(self, sig: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        judged = [discriminator(sig) for discriminator in self.discriminators]
        return [score for score, _ in judged], [feats for _, feats in judged]


class _MultiScale(nn.Module):
    def __init__(self, num_scales: int, width: float):
        super().__init__()
        # The older spectral norm of [2] does the two halves of its power iteration in the other
        # order: both agree in eval mode, and in training once the singular vectors have settled.
        norms = [spectral_norm, *[weight_norm] * (num_scales - 1)][:num_scales]
        self.discriminators = nn.ModuleList(_Scale(width, norm) for norm in norms)

    def forward(self, sig: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        scores, feats = [], []
        for discriminator in self.discriminators:
            if scores:
                sig = F.avg_pool1d(sig, kernel_size=4, stride=2, padding=2)
            score, maps = discriminator(sig)
            scores.append(score)
            feats.append(maps)
        return scores, feats


class _Stack(nn.Module):
    """Convolutions with leaky ReLUs and a last one to one channel; collects every activation."""

    convs: nn.ModuleList
    conv_post: nn.Module

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        feats = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), _SLOPE)
            feats.append(x)
        x = self.conv_post(x)
        feats.append(x)
        return x.flatten(1), feats


class _Period(_Stack):
    """Looks along time at every ``period``-th sample, with weight normalization."""

    def __init__(self, period: int, width: float):
        super().__init__()
        self.period = period
        channels = [1, *(_scaled(count, width) for count, _ in _PERIOD_LAYERS)]
        strides = [stride for _, stride in _PERIOD_LAYERS]
        self.convs = nn.ModuleList(
            self._conv(channels[i], channels[i + 1], 5, stride) for i, stride in enumerate(strides)
        )
        self.conv_post = self._conv(channels[-1], 1, 3, 1)

    @staticmethod
    def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Module:
        conv = _Conv2d(
            in_channels,
            out_channels,
            (kernel_size, 1),
            stride=(stride, 1),
            padding=(kernel_size // 2, 0),
            padding_mode="reflect",
        )
        return weight_norm(conv)

    def forward(self, sig: Tensor) -> tuple[Tensor, list[Tensor]]:
        sig = F.pad(sig, (0, -sig.shape[-1] % self.period), mode="reflect")
        return super().forward(sig.unflatten(-1, (-1, self.period)))  # (B, 1, rows, period)


class _Scale(_Stack):
    """Looks at the whole signal with long, mostly grouped kernels."""

    def __init__(self, width: float, norm: Callable[[nn.Module], nn.Module]):
        super().__init__()
        self.convs = nn.ModuleList()
        in_channels = 1
        for count, kernel_size, stride, groups in _SCALE_LAYERS:
            out_channels = _scaled(count, width)
            conv = _Conv1d(
                in_channels,
                out_channels,
                kernel_size,
                stride=stride,
                groups=gcd(groups, in_channels, out_channels),
                padding=kernel_size // 2,
            )
            self.convs.append(norm(conv))
            in_channels = out_channels
        self.conv_post = norm(_Conv1d(in_channels, 1, 3, padding=1))


class _Float32Weight:
    """Mixin for a convolution: its normalized weight is computed in float32, also under autocast.

    Spectral normalization divides by a norm that it follows from step to step with matrix-vector
    products, which autocast would round to 8 bits.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return self._conv_forward(x, weight, self.bias)


class _Conv1d(_Float32Weight, nn.Conv1d):
    pass


class _Conv2d(_Float32Weight, nn.Conv2d):
    pass


def _scaled(channels: int, width: float) -> int:
    count = channels * width
    return 16 * round(count / 16) if count >= 16 else 2 ** max(0, round(log2(count)))
