"""What a codec costs: parameters, multiply-accumulate operations, and speed.

All three take a codec by what it can do (``sig_to_toks``, ``toks_to_sig``, ``sample_rate``,
``sample_rate_output``), see `recipes.codecs.codec.Codec`.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Macs(NamedTuple):
    """Multiply-accumulate operations per second of audio, and what counted them."""

    encode: float
    decode: float
    tool: str

    @property
    def total(self) -> float:
        """Of encoding and decoding together."""
        return self.encode + self.decode


class RealTimeFactors(NamedTuple):
    """Seconds of audio per second of work: 1 keeps up, larger is faster."""

    encode: float
    decode: float
    total: float


def num_parameters(module: torch.nn.Module) -> int:
    """Count parameters, each once however many modules share it."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs_per_second(codec: Any, *, seconds: float = 1.0) -> Macs:
    """Count the operations of encoding and decoding one signal.

    Counted are matrix products, convolutions and attention, as half of the floating-point
    operations of ``torch.utils.flop_counter``; not Fourier transforms and what works element by
    element. Other tools count otherwise (the paper's ptflops among them), so figures of two tools
    do not compare.

    Parameters
    ----------
    codec : on its device, in evaluation mode.
    seconds : length of the signal; attention over all of it makes the figure grow with length.
    """
    sig = _noise(codec, seconds)
    with _countable_operations(), torch.no_grad():
        toks, encode = _count(lambda: codec.sig_to_toks(sig))
        _, decode = _count(lambda: codec.toks_to_sig(toks))
    real_seconds = sig.shape[1] / codec.sample_rate
    return Macs(
        encode / real_seconds,
        decode / real_seconds,
        f"torch.utils.flop_counter of torch {torch.__version__}, FLOPs / 2",
    )


def real_time_factors(
    codec: Any, *, seconds: float = 10.0, warmup: int = 2, repeats: int = 5
) -> RealTimeFactors:
    """Measure the real-time factor as the paper defines it: audio over processing time.

    Medians over repeats, after runs that do not count. The time of the whole is that of encoding
    and decoding one after the other.

    Parameters
    ----------
    codec : on its device, in evaluation mode.
    seconds : of the noise that is encoded.
    warmup, repeats : runs that do not count, and that do.

    Raises
    ------
    ValueError : if ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    sig = _noise(codec, seconds)
    times = []
    for _ in range(warmup + repeats):
        toks, encode = timed(lambda: codec.sig_to_toks(sig), device=sig.device)
        hyp_sig, decode = timed(lambda toks=toks: codec.toks_to_sig(toks), device=sig.device)
        times.append((encode, decode, encode + decode))
    encode, decode, total = map(statistics.median, zip(*times[warmup:], strict=True))
    given = sig.shape[1] / codec.sample_rate
    made = hyp_sig.shape[1] / codec.sample_rate_output
    return RealTimeFactors(given / encode, made / decode, given / total)


def timed(function: Callable[[], Any], *, device: torch.device | str) -> tuple[Any, float]:
    """Call a function and take its time, waiting for what a CUDA device still has to do.

    Returns
    -------
    What the function returned, and seconds.
    """
    _wait(device)
    start = time.perf_counter()
    result = function()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _noise(codec: Any, seconds: float) -> Tensor:
    """(1, T) of quiet noise, the same each time, on the codec's device."""
    generator = torch.Generator().manual_seed(0)
    sig = 0.1 * torch.randn(1, round(seconds * codec.sample_rate), generator=generator)
    return sig.to(next(codec.parameters()).device)


def _count(function: Callable[[], Any]) -> tuple[Any, float]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return result, counter.get_total_flops() / 2


@contextmanager
def _countable_operations() -> Iterator[None]:
    """Have modules call the operations that the counter knows.

    It counts 0 for the fused kernels of a Transformer layer, of attention on a CPU and of recurrent
    layers (seen with torch 2.13), which would make a codec with them look cheap.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of TF32, when the flags are set
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.backends.cudnn.flags(enabled=False),
                torch.backends.mkldnn.flags(enabled=False),
            ):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
