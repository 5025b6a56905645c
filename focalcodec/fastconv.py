"""Convolutions with fewer multiplications, for CPUs in full precision.

There the number of multiplications is what takes the time, and matrix products are as fast as the
machine allows. All compute what ``torch.nn.functional.conv1d`` computes, up to rounding.

References
----------
.. [1] Winograd, 1980, "Arithmetic Complexity of Computations", SIAM: F(2, 2) of short filters.
.. [2] Oppenheim and Schafer, "Discrete-Time Signal Processing": block convolution by overlap-save.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_plain_cpu(x: Tensor) -> bool:
    """Whether the number of multiplications is what takes the time.

    That is so on a CPU in full precision. Elsewhere, and in compiled graphs, PyTorch's own
    convolutions are the better choice.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def conv_in_pairs(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution of 3 taps and stride 2 with 5 matrix products for two frames instead of 6.

    Neighbouring frames a b c and c d e, of taps u v w, share the product of c (Winograd's F(2, 2)):
    ua + vb + wc = u(a - c) + vb + (u + w)c and uc + vd + we = (u + w)c + vd - w(c - e).

    Parameters
    ----------
    x : (B, T, C) with T >= 3.
    kernel : (4, C, C'), the taps and the sum of the first and the last one.

    Returns
    -------
    (B, N, C') with N = (T - 1) // 2.
    """
    size = (x.shape[1] - 1) // 2
    even, odd = x[:, : 2 * size + 1 : 2], x[:, 1 : 2 * size : 2]
    difference = even[:, :-1] - even[:, 1:]
    shared = even[:, 1::2] @ kernel[3]
    y = odd @ kernel[1]
    first, second = y[:, 0::2], y[:, 1::2]
    first += shared
    second += shared[:, : second.shape[1]]
    batch = x.shape[0]
    first.baddbmm_(difference[:, 0::2], kernel[0].expand(batch, -1, -1))
    second.baddbmm_(difference[:, 1::2], kernel[2].expand(batch, -1, -1), alpha=-1)
    return y


def conv_side_by_side(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution whose taps do not overlap: one matrix product.

    Parameters
    ----------
    x : (B, T, C) with T at least the taps.
    kernel : (taps, C, C').

    Returns
    -------
    (B, N, C') with N = T // taps.
    """
    taps = kernel.shape[0]
    frames = x[:, : x.shape[1] // taps * taps].unflatten(1, (-1, taps))
    return frames.flatten(2) @ kernel.flatten(0, 1)


_MANY_TAPS = 32  # from which spectra have fewer multiplications
_FEW_FRAMES = 16  # of a convolution that is mostly reading its weights


def convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Convolve in the way that is fastest here.

    Parameters
    ----------
    x : (B, N + taps - 1, C), the frames with everything that the taps reach.
    conv : convolution of stride 1, C to C' channels.

    Returns
    -------
    (B, N, C').
    """
    taps = conv.kernel_size[0]
    frames = x.shape[0] * (x.shape[1] - taps + 1)
    if conv.groups < conv.in_channels and is_plain_cpu(x):
        if frames <= _FEW_FRAMES:
            return conv_by_columns(x, conv)
        if taps >= _MANY_TAPS and frames > taps:
            return conv_by_spectra(x, conv)
    return F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, groups=conv.groups).transpose(1, 2)


def is_long_depthwise(x: Tensor, conv: nn.Conv1d) -> bool:
    """Whether `depthwise_by_sums` is the way for these few frames x (B, N + taps - 1, C)."""
    taps = conv.kernel_size[0]
    frames = x.shape[0] * (x.shape[1] - taps + 1)
    is_depthwise = conv.groups == conv.in_channels == conv.out_channels
    return is_depthwise and taps >= _MANY_TAPS and frames <= _FEW_FRAMES and is_plain_cpu(x)


def depthwise_by_sums(x: Tensor, conv: nn.Conv1d, *, work: Tensor) -> Tensor:
    """Convolve each channel with many taps, for a few frames.

    PyTorch's own convolution reorders taps and frames in memory first.

    Parameters
    ----------
    x : (B, N + taps - 1, C), best with a contiguous time axis.
    conv : depthwise convolution of stride 1.
    work : (B, C, taps) for products; fresh memory would cost more than they do.

    Returns
    -------
    (B, N, C).
    """
    x, taps = x.transpose(1, 2), conv.kernel_size[0]
    frames = [
        torch.mul(x[:, :, i : i + taps], conv.weight[:, 0], out=work).sum(dim=2)
        for i in range(x.shape[2] - taps + 1)
    ]
    return torch.stack(frames, dim=1) + conv.bias


def conv_by_columns(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Convolve groups by one matrix product each, for a few frames.

    There it is the reading of the taps that takes the time, and PyTorch's own convolution reads
    them several times as slowly.

    Parameters
    ----------
    x : (B, N + taps - 1, C), the frames with everything that the taps reach.
    conv : grouped convolution of stride 1, C to C' channels.

    Returns
    -------
    (B, N, C').
    """
    groups, taps = conv.groups, conv.kernel_size[0]
    columns = x.unfold(1, taps, 1).unflatten(2, (groups, -1))  # (B, N, G, C / G, taps)
    columns = columns.permute(2, 0, 1, 3, 4).flatten(3).flatten(1, 2)  # (G, B N, C / G taps)
    kernel = conv.weight.flatten(1).unflatten(0, (groups, -1))  # (G, C' / G, C / G taps)
    y = (columns @ kernel.transpose(1, 2)).unflatten(1, (x.shape[0], -1))
    return y.permute(1, 2, 0, 3).flatten(2) + conv.bias


def conv_by_spectra(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Convolve many taps with a fraction of the multiplications, for long inputs.

    Overlapping segments and the taps are multiplied as spectra and the first samples of each
    circular correlation kept (overlap-save). The transforms are matrix products, fast at these
    sizes, which leave frequencies as the first axis, where the products of spectra need them. One
    group at a time, so that everything stays in the cache.

    Parameters
    ----------
    x : (B, N + taps - 1, C), the frames with everything that the taps reach.
    conv : grouped convolution of stride 1, C to C' channels.

    Returns
    -------
    (B, N, C').
    """
    taps = conv.kernel_size[0]
    size = x.shape[1] - taps + 1
    hop = max(taps // 2, 1)
    num_segments = -(-size // hop)
    x = F.pad(x, (0, 0, 0, num_segments * hop - size))
    segments = x.unfold(1, hop + taps - 1, hop)  # (B, S, C, T)
    transforms = _transforms(taps=taps, hop=hop, dtype=x.dtype)
    groups = zip(
        segments.chunk(conv.groups, dim=2), conv.weight.chunk(conv.groups, dim=0), strict=True
    )
    y = torch.cat([_correlate(*group, transforms=transforms) for group in groups], dim=2)
    return y[:, :size] + conv.bias


class _Transforms(NamedTuple):
    """Matrices between the time domain and (2 F, ...) spectra, real parts above imaginary ones.

    A spectrum of the taps is conjugate, has its origin in the middle of the taps, and is made of
    the sums and differences of taps that lie symmetrically, with half of the multiplications.
    """

    analysis: Tensor  # (2 F, T), of a segment
    cosines: Tensor  # (F, ceil(K / 2)), real parts of the taps from sums
    sines: Tensor  # (F, ceil(K / 2)), imaginary parts of the taps from differences
    synthesis: Tensor  # (hop, 2 F), of a product of both


def _transforms(*, taps: int, hop: int, dtype: torch.dtype) -> _Transforms:
    length = hop + taps - 1
    middle = (taps - 1) / 2
    freqs = torch.arange(length // 2 + 1)[:, None]
    omega = 2 * math.pi / length * freqs.double()
    segment = omega * torch.arange(length)
    offsets = torch.arange((taps + 1) // 2) - middle
    tap = omega * offsets
    # The middle one of an odd number of taps is added to itself.
    cosines = torch.where(offsets == 0, 0.5, tap.cos())
    once = (freqs == 0) | (2 * freqs == length)  # all other frequencies stand for two
    scale = torch.where(once, 1, 2) / length
    time = omega * (torch.arange(hop) + middle)
    return _Transforms(
        analysis=torch.cat((segment.cos(), -segment.sin())).to(dtype),
        cosines=cosines.to(dtype),
        sines=tap.sin().to(dtype),
        synthesis=torch.cat((scale * time.cos(), -scale * time.sin())).t().to(dtype),
    )


def _correlate(segments: Tensor, weight: Tensor, *, transforms: _Transforms) -> Tensor:
    """(B, S, C, T) segments and (C', C, K) taps of one group to (B, S hop, C')."""
    num_items, num_segments, input_dim, _ = segments.shape
    output_dim, _, taps = weight.shape
    half = (taps + 1) // 2
    near, far = weight[:, :, :half].flatten(0, 1), weight.flip(2)[:, :, :half].flatten(0, 1)
    kernel = (output_dim, input_dim)
    real = (transforms.cosines @ (near + far).t()).unflatten(1, kernel).transpose(1, 2)
    imag = (transforms.sines @ (near - far).t()).unflatten(1, kernel).transpose(1, 2)
    spectra = transforms.analysis @ segments.permute(3, 0, 1, 2).flatten(1)
    spectra = spectra.view(2, len(real), -1, input_dim).transpose(0, 1).flatten(1, 2)
    real_real, imag_real = (spectra @ real).chunk(2, dim=1)  # (F, B S, C') each
    real_imag, imag_imag = (spectra @ imag).chunk(2, dim=1)
    products = torch.stack((real_real - imag_imag, real_imag + imag_real))
    y = transforms.synthesis @ products.flatten(0, 1).flatten(1)
    y = y.view(-1, num_items, num_segments, output_dim)  # (hop, B, S, C')
    return y.permute(1, 2, 0, 3).flatten(1, 2)
