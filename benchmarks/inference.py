"""Inference speed: transformers' WavLM in front of our parts against ours; what precision costs.

    python -m benchmarks.inference --audio FOLDER --batch 1 4 --precisions bfloat16

Both sides run in this process, alternate, get the same speech and have the same weights. The plain
side encodes with transformers' WavLMModel cut to six layers, then our compressor and quantizer. Its
decoder is ours, as transformers has none, so "decode" has no ratio. Batches are measured twice:
full, and with rows from 40 to 100 % of the length, whose padding both sides are told of. Then every
precision is compared with float32: how many tokens and bits flip, and what it gains.

Without ``--checkpoint`` the codec has its full size and random weights, whose flips say little.
With one, the plain side is left out. Without ``--audio`` the signal is synthetic and no speech.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measuring import machine, measure, wait
from benchmarks.subjects import load_codec, plain_encoder, speech, synthetic
from focalcodec import FocalCodec
from focalcodec.masking import num_valid

DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16")}
SHORTEST = 0.4  # row of a batch of unequal lengths, as a fraction of the longest
Run = Callable[[], Tensor]


def compare_sides(
    codec: FocalCodec,
    sig: Tensor,
    *,
    lens: Tensor | None = None,
    plain: nn.Module | None,
    repeats: int,
) -> None:
    """Print real-time factors of both sides for one batch; padding counts as no audio."""
    share = 1.0 if lens is None else lens.mean().item()
    ours = partial(codec.sig_to_feats, sig, lens=lens, exact_tail=False)
    toks = codec.sig_to_toks(sig, lens=lens, exact_tail=False)
    toks_lens = None
    if lens is not None:
        lengths = num_valid(lens, sig.shape[1])
        toks_lens = codec.num_toks(lengths, exact_tail=False) / toks.shape[1]
    runs: dict[str, Run] = {
        "ours encode": partial(codec.sig_to_toks, sig, lens=lens, exact_tail=False),
        "decode": partial(codec.toks_to_sig, toks, lens=toks_lens),
    }
    print(
        f"batch {len(sig)}" + (f", {100 * (1 - share):.0f} % padding" if lens is not None else "")
    )
    if plain is not None:
        theirs, frame_lens = _plain_feats(codec, sig, lens=lens, plain=plain)
        runs["plain encode"] = lambda: codec.feats_to_toks(theirs(), lens=frame_lens)
        runs |= {"plain encoder": theirs, "ours encoder": ours}
        if lens is None:  # with padding, transformers counts other frames as real
            error = ((ours() - theirs()).abs().max() / theirs().abs().max()).item()
            same = (runs["plain encode"]() == toks).float().mean().item()
            print(
                f"  features differ by {error:.1e} of their peak, {100 * same:.2f} % of the tokens "
                "are the same"
            )
    times = measure(runs, repeats=repeats, device=sig.device)
    for side in ("ours", "plain"):
        if f"{side} encode" in times:
            pairs = zip(times[f"{side} encode"], times["decode"], strict=True)
            times[f"{side} both"] = [sum(pair) for pair in pairs]
    times["ours decode"] = times.pop("decode")
    seconds = sig.numel() * share / codec.sample_rate
    for part in ("encoder", "encode", "decode", "both"):
        if f"ours {part}" in times:
            ours_and_plain = times[f"ours {part}"], times.get(f"plain {part}")
            _print_row(part, *ours_and_plain, seconds=seconds)


def _plain_feats(
    codec: FocalCodec, sig: Tensor, *, lens: Tensor | None, plain: nn.Module
) -> tuple[Run, Tensor | None]:
    """Give the encoding by transformers and the relative lengths of its features."""
    if lens is None:
        return lambda: plain(sig).last_hidden_state, None
    lengths = num_valid(lens, sig.shape[1])
    mask = torch.arange(sig.shape[1], device=sig.device) < lengths[:, None]
    num_frames = codec.encoder.num_frames(sig.shape[1])
    frame_lens = codec.encoder.num_frames(lengths) / num_frames
    return lambda: plain(sig, attention_mask=mask.long()).last_hidden_state, frame_lens


def _print_row(name: str, ours: list[float], plain: list[float] | None, *, seconds: float) -> None:
    """Real-time factors by medians, and ratios by medians and by minima."""
    middle = statistics.median
    cells = f"{'':12}{middle(ours) / seconds:12.4f}"
    if plain is not None:
        cells = f"{middle(plain) / seconds:12.4f}{middle(ours) / seconds:12.4f}"
        cells += f"{middle(plain) / middle(ours):9.2f} x{min(plain) / min(ours):9.2f} x"
    print(f"{name:>24}{cells}", flush=True)


def compare_precisions(codec: FocalCodec, sig: Tensor, *, dtypes: list[str], repeats: int) -> None:
    """Print flips against float32 and speeds of each precision."""
    toks = codec.sig_to_toks(sig)
    bits, lats = codec.toks_to_codes(toks) > 0, codec.sig_to_lats(sig)
    print(
        f"\nbatch {len(sig)}; |lats| have their median at {lats.abs().median():.3f}\n"
        f"{'':24}{'tokens':>10}{'bits':>10}{'|change|':>10}{'encode':>10}{'decode':>10}"
    )
    runs: dict[str, Run] = {}
    rows = {}
    for name in ("float32", *dtypes):
        context = torch.autocast(sig.device.type, DTYPES[name]) if name in dtypes else nullcontext()
        encode = _within(context, partial(codec.sig_to_toks, sig))
        decode = _within(context, partial(codec.toks_to_sig, toks))
        try:
            decode()
            flips = (codec.toks_to_codes(encode()) > 0) != bits
            change = _within(context, partial(codec.sig_to_lats, sig))() - lats
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name:>24}  not on this device: {str(error).splitlines()[0]}")
            continue
        runs |= {f"{name} encode": encode, f"{name} decode": decode}
        rows[name] = (
            f"{name:>24}{100 * flips.any(dim=-1).float().mean():8.2f} %"
            f"{100 * flips.float().mean():8.2f} %{change.abs().median():10.5f}"
        )
    times = measure(runs, repeats=repeats, device=sig.device)
    for name, row in rows.items():
        print(row + _factors(times, name, codec=codec, sig=sig), flush=True)


def compare_compiled(codec: FocalCodec, sig: Tensor, *, repeats: int) -> None:
    """Print speeds before and after compiling ``codec``, and what it takes to compile it."""
    print(f"\nbatch {len(sig)}\n{'':24}{'encode':>10}{'decode':>10}")
    toks = codec.sig_to_toks(sig)
    runs: dict[str, Run] = {
        "encode": partial(codec.sig_to_toks, sig),
        "decode": partial(codec.toks_to_sig, toks),
    }
    eager = measure(runs, repeats=repeats, device=sig.device)
    codec.compile_parts()
    firsts = []
    for size in (sig.shape[1], int(0.8 * sig.shape[1]), int(0.7 * sig.shape[1])):
        start = time.perf_counter()
        codec.toks_to_sig(codec.sig_to_toks(sig[:, :size]))
        wait(sig.device)
        firsts.append(time.perf_counter() - start)
    compiled = measure(runs, repeats=repeats, device=sig.device)
    for side, times in (("eager", eager), ("compiled", compiled)):
        times = {f"{side} {way}": values for way, values in times.items()}
        print(f"{side:>24}{_factors(times, side, codec=codec, sig=sig)}")
    flips = (codec.sig_to_toks(sig) != toks).float().mean()
    print(
        f"first calls at three lengths: {', '.join(f'{first:.0f} s' for first in firsts)}; "
        f"{100 * flips:.2f} % of the tokens are others"
    )


def _factors(times: dict[str, list[float]], name: str, *, codec: FocalCodec, sig: Tensor) -> str:
    seconds = sig.numel() / codec.sample_rate
    ways = [statistics.median(times[f"{name} {way}"]) for way in ("encode", "decode")]
    return "".join(f"{way / seconds:10.4f}" for way in ways)


def _within(context: torch.autocast | nullcontext, run: Run) -> Run:
    def inside() -> Tensor:
        with context:
            return run()

    return inside


def _signal(audio: Path | None, *, sample_rate: int, num_samples: int) -> Tensor:
    if audio is None:
        return synthetic(sample_rate=sample_rate, num_samples=num_samples)
    return torch.cat(list(speech(audio, sample_rate=sample_rate, num_samples=num_samples)))


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--audio", type=Path, help="folder of speech at 16 kHz; default: synthetic")
    parser.add_argument("--checkpoint", help="codec folder; left out: full size, random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="utterances")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of every utterance")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precisions", nargs="*", choices=list(DTYPES), default=["bfloat16"])
    parser.add_argument("--compile", action="store_true", help="the compiled codec as well")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    codec = load_codec(arguments.checkpoint).to(arguments.device)
    plain = None if arguments.checkpoint else plain_encoder(codec.encoder)
    size = round(arguments.seconds * codec.sample_rate)
    sig = _signal(
        arguments.audio,
        sample_rate=codec.sample_rate,
        num_samples=size * max(arguments.batch),
    )
    sig = sig.view(-1, size).to(arguments.device)
    print(
        f"{machine(arguments.device)}; {arguments.threads} thread(s), PyTorch "
        f"{torch.__version__}\n{arguments.seconds:g} s of "
        f"{'speech' if arguments.audio else 'a synthetic signal, which is no speech,'} a row; "
        f"{arguments.checkpoint or 'random weights (flips are not those of a trained codec)'}\n"
        f"real-time factors, median of {arguments.repeats}"
        + ("; plain side left out, as it has no such weights" if plain is None else "")
    )
    repeats = arguments.repeats
    print(f"{'':>24}{'plain':>12}{'ours':>12}{'ratio':>11}{'of minima':>11}")
    with torch.inference_mode():
        for batch in arguments.batch:
            compare_sides(codec, sig[:batch], plain=plain, repeats=repeats)
            if batch > 1:
                lens = torch.linspace(1, SHORTEST, batch, device=sig.device)
                compare_sides(codec, sig[:batch], lens=lens, plain=plain, repeats=repeats)
        del plain
        if arguments.precisions:
            compare_precisions(codec, sig, dtypes=arguments.precisions, repeats=repeats)
        if arguments.compile:
            compare_compiled(codec, sig, repeats=repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
