"""Inference speed: transformers' WavLM in front of our parts against ours; what precision costs.

    python -m benchmarks.inference --audio FOLDER --batch 1 4 --precisions bfloat16

Both sides run in this process, alternate, get the same speech and have the same weights. The plain
side encodes with transformers' WavLMModel cut to six layers, then our compressor and quantizer. Its
decoder is ours, as transformers has none, so "decode" has no ratio. Then every precision is
compared with float32: how many tokens and bits flip, and what it gains.

Without ``--checkpoint`` the codec has its full size and random weights, whose flips say little.
With one, the plain side is left out.
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

from benchmarks.subjects import load_codec, speech
from focalcodec import FocalCodec
from focalcodec.wavlm import WavLM, state_dict_from_transformers

DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16")}
Run = Callable[[], Tensor]


def plain_encoder(encoder: WavLM) -> nn.Module:
    """Make transformers' model of the same sizes and give ``encoder`` its random weights."""
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    model = WavLMModel(
        WavLMConfig(
            hidden_size=encoder.dim,
            intermediate_size=encoder.ffn_dim,
            num_attention_heads=encoder.num_heads,
            num_hidden_layers=encoder.num_layers,
            num_buckets=encoder.num_buckets,
            max_bucket_distance=encoder.max_distance,
            num_conv_pos_embeddings=encoder.conv_pos,
            num_conv_pos_embedding_groups=encoder.conv_pos_groups,
            conv_dim=encoder.hidden_dims,
            conv_kernel=encoder.kernel_sizes,
            conv_stride=encoder.strides,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
        )
    )
    state = state_dict_from_transformers(model.state_dict(), encoder.num_layers)
    encoder.load_state_dict(state)
    model.encoder.layer_norm = nn.Identity()  # the codec has none behind the last layer
    return model.to(next(encoder.parameters()).device).eval().requires_grad_(False)


def median_times(runs: dict[str, Run], *, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each run; one round warms up, then all alternate."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare_sides(codec: FocalCodec, sig: Tensor, *, plain: nn.Module | None, repeats: int) -> None:
    """Print real-time factors of both sides for one batch."""
    seconds = sig.numel() / codec.sample_rate
    toks = codec.sig_to_toks(sig, exact_tail=False)
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": partial(codec.sig_to_toks, exact_tail=False)
    }
    if plain is not None:
        sides["plain"] = lambda x: codec.feats_to_toks(plain(x).last_hidden_state)
        ours = codec.sig_to_feats(sig, exact_tail=False)
        theirs = plain(sig).last_hidden_state
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        same = (sides["plain"](sig) == toks).float().mean().item()
        print(
            f"batch {len(sig)}: features differ by {error:.1e} of their peak, "
            f"{100 * same:.2f} % of the tokens are the same"
        )
    runs: dict[str, Run] = {f"encode {name}": partial(run, sig) for name, run in sides.items()}
    runs["decode"] = partial(codec.toks_to_sig, toks)
    if plain is not None:
        runs["encoder plain"] = lambda: plain(sig).last_hidden_state
        runs["encoder ours"] = partial(codec.sig_to_feats, sig, exact_tail=False)
    cost = median_times(runs, repeats=repeats, device=sig.device)
    rows = {"encoder alone": ("encoder ours", "encoder plain")} if plain is not None else {}
    rows |= {"encode": ("encode ours", "encode plain"), "decode": ("decode", None)}
    for name, (ours, theirs) in rows.items():
        _print_row(name, cost[ours] / seconds, cost.get(theirs, 0) / seconds)
    both = cost.get("encode plain", -cost["decode"]) + cost["decode"]
    _print_row("both", (cost["encode ours"] + cost["decode"]) / seconds, both / seconds)


def _print_row(name: str, ours: float, plain: float) -> None:
    ratio = f"{plain:12.4f}{plain / ours:9.2f} x" if plain else f"{'':12}{'':11}"
    print(f"{name:>24}{ratio}{ours:12.4f}", flush=True)


def compare_precisions(
    codec: FocalCodec, sig: Tensor, *, dtypes: list[str], repeats: int, compiles: bool
) -> None:
    """Print flips against float32 and speeds of each precision, and of the compiled codec."""
    toks = codec.sig_to_toks(sig)
    bits = codec.toks_to_codes(toks) > 0
    lats = codec.sig_to_lats(sig).abs()
    print(f"\nbatch {len(sig)}; |lats| have their median at {lats.median():.3f}")
    print(f"{'':24}{'tokens':>10}{'bits':>10}{'encode':>10}{'decode':>10}")
    ways = {"float32": nullcontext()}
    ways |= {name: torch.autocast(sig.device.type, dtype=DTYPES[name]) for name in dtypes}
    runs: dict[str, Run] = {}
    for name, context in ways.items():
        runs[f"{name} encode"] = _within(context, partial(codec.sig_to_toks, sig))
        runs[f"{name} decode"] = _within(context, partial(codec.toks_to_sig, toks))
    if compiles:
        ways["compiled"] = nullcontext()
        start = time.perf_counter()
        codec.compile_parts()
        runs = {
            "compiled encode": partial(codec.sig_to_toks, sig),
            "compiled decode": partial(codec.toks_to_sig, toks),
        }
        for run in runs.values():
            run()
        print(f"compiled in {time.perf_counter() - start:.0f} s")
    cost = median_times(runs, repeats=repeats, device=sig.device)
    for name in {run.rpartition(" ")[0]: None for run in runs}:
        got = codec.toks_to_codes(runs[f"{name} encode"]()) > 0
        flips = 100 * (got != bits).any(dim=-1).float().mean(), 100 * (got != bits).float().mean()
        factors = [
            cost[f"{name} {way}"] * codec.sample_rate / sig.numel() for way in ("encode", "decode")
        ]
        print(f"{name:>24}{flips[0]:8.2f} %{flips[1]:8.2f} %{factors[0]:10.4f}{factors[1]:10.4f}")


def _within(context: torch.autocast | nullcontext, run: Run) -> Run:
    def inside() -> Tensor:
        with context:
            return run()

    return inside


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="folder of speech at 16 kHz")
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
    blocks = speech(
        arguments.audio,
        sample_rate=codec.sample_rate,
        num_samples=size * max(arguments.batch),
    )
    sig = torch.cat(list(blocks)).view(-1, size).to(arguments.device)
    print(
        f"{arguments.seconds:g} s of speech an utterance, {arguments.device}, "
        f"{arguments.threads} thread(s), PyTorch {torch.__version__}; real-time factors, median of "
        f"{arguments.repeats}"
    )
    print(f"{'':>24}{'plain':>12}{'ratio':>11}{'ours':>12}")
    with torch.inference_mode():
        for batch in arguments.batch:
            compare_sides(codec, sig[:batch], plain=plain, repeats=arguments.repeats)
        del plain
        compare_precisions(
            codec,
            sig,
            dtypes=arguments.precisions,
            repeats=arguments.repeats,
            compiles=False,
        )
        if arguments.compile:
            compare_precisions(codec, sig, dtypes=[], repeats=arguments.repeats, compiles=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
