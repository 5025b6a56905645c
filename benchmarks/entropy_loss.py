"""Entropy term of the binary spherical quantizer: SpeechBrain's class against ours.

Both get the same latents and do one forward and one backward pass. Times come from one process in
which the two alternate; peak memory comes from a fresh process for each side (CPU) or from the
CUDA allocator. A side that would not fit in free memory is left out, and said so.

    python -m benchmarks.entropy_loss --frames 12000 --bits 10 13 16 --threads 1 --repeats 3
"""

import argparse
import ctypes
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from focalcodec.quantizers import BinarySphericalQuantizer

_CLAMP = 1e-5  # inside SpeechBrain's logarithm
_TENSORS = 7  # of size frames x codes that SpeechBrain's class holds at its peak, measured
_MIB = 2**20

Step = Callable[[Tensor], Tensor]


def main(argv: list[str] | None = None) -> None:
    """Print a table of ratios."""
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    print(
        f"{args.frames} frames, forward + backward, float32, {args.device}, {args.threads} "
        f"thread(s), PyTorch {torch.__version__}; median of {args.repeats} interleaved repeats"
    )
    print(_row("bits", "side", "time/s", "ratio", "peak/MiB", "ratio", "value diff", "grad diff"))
    for bits in args.bits:
        for row in _compare(bits, args=args):
            print(_row(*row), flush=True)
    print(
        "ratio: SpeechBrain's time or peak memory divided by the row's. Differences are from "
        "SpeechBrain's loss\n(nats) and gradient (relative, L2). 'clamp' has SpeechBrain's lower "
        f"bound of {_CLAMP:g} inside the logarithm\nand so the same numbers; 'exact', as we train, "
        "has none: the clamp alone makes its difference."
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.entropy_loss", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--frames", type=int, default=12000, help="latents in the batch")
    parser.add_argument("--bits", type=int, nargs="+", default=[10, 13, 16], help="code sizes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the latents")
    args = parser.parse_args(argv)
    for name in ("frames", "threads", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def _compare(bits: int, *, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Rows of one code size; the first is SpeechBrain's."""
    steps = {name: make(bits, args.device) for name, make in SIDES.items()}
    need, free = _TENSORS * 4 * args.frames * 2**bits, _free_memory(args.device)
    first = "SpeechBrain"
    skipped = need > 0.8 * free
    if skipped:
        del steps[first]
    times, values, grads = time_steps(steps, lats=_lats(bits, args=args), repeats=args.repeats)
    peaks = {name: _peak_memory(name, bits, args=args) for name in steps}
    rows = []
    if skipped:
        note = f"left out: needs about {need / _MIB:.0f} MiB, {free / _MIB:.0f} MiB are free"
        rows.append((str(bits), first, note))
    for name in steps:
        row = (str(bits), name, f"{times[name]:.4f}")
        if skipped:
            rows.append((*row, "-", f"{peaks[name] / _MIB:.1f}", "-", "-", "-"))
            continue
        grad_diff = (grads[name] - grads[first]).norm() / grads[first].norm()
        rows.append(
            (
                *row,
                f"{times[first] / times[name]:.1f}",
                f"{peaks[name] / _MIB:.1f}",
                f"{peaks[first] / peaks[name]:.0f}",
                f"{values[name] - values[first]:+.1e}",
                f"{grad_diff:.1e}",
            )
        )
    return rows


def time_steps(
    steps: dict[str, Step], *, lats: Tensor, repeats: int
) -> tuple[dict[str, float], dict[str, float], dict[str, Tensor]]:
    """Median seconds, loss and gradient of each step; one untimed pass each, then in turns."""
    seconds = {name: [] for name in steps}
    values, grads = {}, {}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            lats.grad = None
            _synchronize(lats.device)
            start = time.perf_counter()
            loss = step(lats)
            loss.backward()
            _synchronize(lats.device)
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
            values[name], grads[name] = loss.item(), lats.grad
    return {name: statistics.median(s) for name, s in seconds.items()}, values, grads


def _speechbrain(bits: int, device: str) -> Step:
    from speechbrain.lobes.models.bsq import BinarySphericalQuantizer as SpeechBrainQuantizer

    quantizer = SpeechBrainQuantizer(bits, entropy_loss_weight=1.0).to(device)
    return lambda lats: quantizer(lats)[2]


def _exact(bits: int, device: str) -> Step:
    quantizer = BinarySphericalQuantizer(bits)
    return lambda lats: quantizer.entropy_loss(lats).loss


def _clamped(bits: int, device: str) -> Step:
    quantizer = BinarySphericalQuantizer(bits)
    return lambda lats: quantizer.entropy_loss(lats, clamp=_CLAMP).loss


SIDES = {"SpeechBrain": _speechbrain, "ours, exact": _exact, "ours, clamp": _clamped}


def _lats(bits: int, *, args: argparse.Namespace, frames: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(args.seed)
    lats = torch.randn(1, frames or args.frames, bits, generator=generator)
    return lats.to(args.device).requires_grad_()


def _peak_memory(side: str, bits: int, *, args: argparse.Namespace) -> int:
    """Peak bytes that one pass adds to what was allocated before it."""
    if torch.device(args.device).type == "cuda":
        lats = _lats(bits, args=args)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        SIDES[side](bits, args.device)(lats).backward()
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_growth, args=(side, bits, args, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process measuring {side} at {bits} bits ended early") from None
    finally:
        child.join()


def _measure_growth(side: str, bits: int, args: argparse.Namespace, sender) -> None:
    """Send the growth of this fresh process's peak resident memory over one pass."""
    torch.set_num_threads(args.threads)
    step = SIDES[side](bits, args.device)
    step(_lats(bits, args=args, frames=8)).backward()  # loads kernels and libraries
    lats = _lats(bits, args=args)
    # Importing may have peaked above what is held now, which would hide the pass: give freed memory
    # back, then hold enough that the present size is the peak.
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        ballast = bytearray(max(_peak_rss() - held, 0) + _MIB)
        ballast[:: resource.getpagesize()] = b"\1" * len(ballast[:: resource.getpagesize()])
    before = _peak_rss()
    step(lats).backward()
    sender.send(max(_peak_rss() - before, 1))


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free_memory(device: str) -> int:
    """Bytes that may be used: of the CUDA device, or of the machine and this process's cgroup."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 8 * 2**30
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{x}" for x in ("max", "current"))
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(*cells: str) -> str:
    widths = (5, 13, 9, 7, 10, 7, 12, 11)
    if len(cells) < len(widths):
        return f"{cells[0]:>5}  {cells[1]:<13}{cells[2]}"
    head = f"{cells[0]:>5}  {cells[1]:<13}"
    return head + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True)
    )


if __name__ == "__main__":
    main()
