"""Resampling: one kernel for training, inference and files in blocks, with exact lengths.

Windowed-sinc interpolation as ``torchaudio.functional.resample`` does it by default, with the same
kernel (float32; that of ``torchaudio.transforms.Resample`` is 4e-6 away). torchaudio computes the
length of the result in float32, and of long signals it is now and then one sample short; here it
is ceil(T * new_sample_rate / sample_rate) always.
"""

import functools
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

_RATE_RANGE_HZ = (1_000, 768_000)
_MAX_KERNEL_SIZE = 2**24  # entries; 44,100 -> 16,000 Hz has 8e4, 22,051 -> 16,000 Hz (coprime) 4e8


def resample(sig: Tensor, *, sample_rate: int, new_sample_rate: int) -> Tensor:
    """Resample whole signals.

    Parameters
    ----------
    sig : (..., T) float32.
    sample_rate, new_sample_rate : in Hz.

    Returns
    -------
    (..., ceil(T * new_sample_rate / sample_rate)).

    Raises
    ------
    ValueError : if the rates have so small a common divisor that the kernel would take gigabytes.
    """
    if sample_rate == new_sample_rate:
        return sig
    check_ratio(sample_rate, new_sample_rate)
    period, new_period = periods(sample_rate, new_sample_rate)
    # Made longer than needed, then cut, as torchaudio may round the length down.
    padded = F.pad(sig, (0, period * (1 + 64 // new_period)))
    size = resampled_length(sig.shape[-1], sample_rate=sample_rate, new_sample_rate=new_sample_rate)
    return _apply(_resampler(sample_rate, new_sample_rate), padded)[..., :size]


def resample_blocks(
    blocks: Iterable[Tensor], *, sample_rate: int, new_sample_rate: int
) -> Iterator[Tensor]:
    """Resample a signal that comes in blocks, to what `resample` makes of the whole.

    Parameters
    ----------
    blocks : (T,) float32, consecutive.
    sample_rate, new_sample_rate : in Hz.

    Yields
    ------
    (T,) consecutive pieces, together ceil(T * new_sample_rate / sample_rate) samples.

    Raises
    ------
    ValueError : if the rates have so small a common divisor that the kernel would take gigabytes.
    """
    if sample_rate == new_sample_rate:
        yield from blocks
        return
    check_ratio(sample_rate, new_sample_rate)
    period, new_period = periods(sample_rate, new_sample_rate)
    kernel = _resampler(sample_rate, new_sample_rate)
    width = context_periods(sample_rate, new_sample_rate)
    held, seen, given = torch.zeros(width * period), 0, 0
    for block in blocks:
        held, seen = torch.cat([held, block]), seen + block.shape[0]
        count = held.shape[0] // period - 2 * width
        if count > 0:
            piece = _apply(kernel, held[: (count + 2 * width) * period])
            yield piece[width * new_period :][: count * new_period]
            held, given = held[count * period :], given + count * new_period
    missing = -(-new_period * seen // period) - given
    if missing > 0:
        held = torch.cat([held, torch.zeros((width + 1) * period)])
        yield _apply(kernel, held)[width * new_period :][:missing]


def resampled_length(num_samples: int, *, sample_rate: int, new_sample_rate: int) -> int:
    """Count the samples that ``num_samples`` become."""
    period, new_period = periods(sample_rate, new_sample_rate)
    return -(-new_period * num_samples // period)


def periods(sample_rate: int, new_sample_rate: int) -> tuple[int, int]:
    """Input and output samples after which the kernel repeats."""
    divisor = math.gcd(sample_rate, new_sample_rate)
    return sample_rate // divisor, new_sample_rate // divisor


def context_periods(sample_rate: int, new_sample_rate: int) -> int:
    """Periods of input that the kernel needs on both sides.

    A piece that starts on a multiple of the period, with so many periods around it, gives what it
    gives inside the whole signal.
    """
    if sample_rate == new_sample_rate:
        return 0
    check_ratio(sample_rate, new_sample_rate)
    period, _ = periods(sample_rate, new_sample_rate)
    return -(-_resampler(sample_rate, new_sample_rate).width // period)


def check_rate(sample_rate: int) -> None:
    """Refuse a rate that no recording has: the header that says so is wrong."""
    lowest, highest = _RATE_RANGE_HZ
    if not lowest <= sample_rate <= highest:
        raise ValueError(f"sample rate {sample_rate} Hz is not in [{lowest}, {highest}]")


def check_ratio(sample_rate: int, new_sample_rate: int) -> None:
    """Refuse two rates whose kernel would take gigabytes."""
    period, new_period = periods(sample_rate, new_sample_rate)
    if new_period * (period + 13 * max(1, period / new_period)) > _MAX_KERNEL_SIZE:
        raise ValueError(
            f"cannot resample {sample_rate} Hz to {new_sample_rate} Hz: their common divisor is "
            f"only {math.gcd(sample_rate, new_sample_rate)}; convert the file to a usual rate"
        )


@functools.lru_cache(maxsize=16)
def _resampler(sample_rate: int, new_sample_rate: int) -> torchaudio.transforms.Resample:
    # float32: the kernel of the function; by default the class has one of float64, 4e-6 away.
    return torchaudio.transforms.Resample(sample_rate, new_sample_rate, dtype=torch.float32)


def _apply(kernel: torchaudio.transforms.Resample, sig: Tensor) -> Tensor:
    # Whoever pulls the blocks may run the codec in a lower precision, which is not for the signal.
    with torch.autocast(sig.device.type, enabled=False):
        return kernel(sig)
