"""The ablation's blocks side by side: parameters, multiplications and time.

    python -m benchmarks.blocks --threads 1

Mixers are compared by a forward and backward pass at one width, decoders by decoding; each block is
the one of its file in ``hparams``. All run in this process, in turns, on the same random input:
neither time nor size depends on the weights. Ratios are to the first of a kind, the paper's choice.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hyperpyyaml import load_hyperpyyaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import machine, measure

HPARAMS = Path(__file__).resolve().parents[1] / "hparams"
MIXERS = ("focal", "conformer", "amp", "linear")
DECODERS = ("vocos", "hifigan")


def load_block(kind: str, name: str) -> Callable[..., nn.Module]:
    """Read the factory of ``hparams/KIND/NAME.yaml``."""
    return load_hyperpyyaml(f"block: !include:{HPARAMS / kind / name}.yaml")["block"]


def compare(
    modules: dict[str, nn.Module], run: Callable[[nn.Module], Any], *, repeats: int
) -> list[str]:
    """Measure blocks in turns; a line for each: parameters, MACs, seconds, ratios to the first."""
    device = next(next(iter(modules.values())).parameters()).device
    runs = {name: partial(run, module) for name, module in modules.items()}
    times = measure(runs, repeats=repeats, device=device)
    first = next(iter(modules))
    lines = [f"{'':12}{'parameters':>14}{'GMAC':>10}{'seconds':>10}{'time':>9}{'by minima':>11}"]
    for name, module in modules.items():
        with FlopCounterMode(display=False) as counter:
            run(module)
        lines.append(
            f"{name:12}{sum(p.numel() for p in module.parameters()):14,}"
            f"{counter.get_total_flops() / 2e9:10.2f}{statistics.median(times[name]):10.3f}"
            f"{statistics.median(times[name]) / statistics.median(times[first]):7.2f} x"
            f"{min(times[name]) / min(times[first]):9.2f} x"
        )
    return lines


def train_step(module: nn.Module, *, x: torch.Tensor) -> None:
    """Forward and backward."""
    module(x).square().mean().backward()


@torch.no_grad()
def decode(module: nn.Module, *, x: torch.Tensor) -> None:
    """Forward alone."""
    module(x)


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=512, help="width of the mixers")
    parser.add_argument("--input-dim", type=int, default=1024, help="of the decoders")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of speech in each row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    frames = round(50 * arguments.seconds)
    print(
        f"{machine(arguments.device)}, {arguments.threads} threads, PyTorch {torch.__version__}; "
        f"{arguments.batch} x {frames} frames"
    )
    for kind, names, dim, run in (
        ("mixer", MIXERS, arguments.dim, train_step),
        ("decoder", DECODERS, arguments.input_dim, decode),
    ):
        modules = {name: load_block(kind, name)(dim).to(arguments.device) for name in names}
        x = torch.randn(arguments.batch, frames, dim, device=arguments.device)
        print(f"\n{kind}s at {dim} channels, {run.__doc__.lower()}")
        print("\n".join(compare(modules, partial(run, x=x), repeats=arguments.repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
