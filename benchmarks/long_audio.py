"""Long audio in windows: peak memory and time per minute, and what the windows change.

    python -m benchmarks.long_audio --audio FOLDER --minutes 10 60

For each length a process of its own encodes and decodes that much speech, which comes in blocks and
is never held whole, and reports its peak memory and its time per minute of audio: both should not
depend on the length. Then one excerpt is encoded whole, in windows and in chunks of the paper's
appendix F.3, and the tokens are compared; with random weights that says little, so name a trained
codec with ``--checkpoint``.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.subjects import load_codec, speech
from focalcodec.windows import DEFAULT, Windows, decode_blocks, encode_blocks

WAYS = {
    "windows of 30 s": DEFAULT,
    "windows of 10 s": Windows(size=160_000),
    **{f"chunks of {size}": Windows.chunks(size) for size in (8000, 4000, 2000)},
}


def measure(audio: Path, checkpoint: str | None, minutes: float, threads: int) -> dict[str, float]:
    """Seconds and peak bytes of encoding and decoding so much speech in this process."""
    torch.set_num_threads(threads)
    codec = load_codec(checkpoint)
    size = round(minutes * 60 * codec.sample_rate)
    blocks = speech(audio, sample_rate=codec.sample_rate, num_samples=size)
    with torch.inference_mode():
        start = time.perf_counter()
        toks = torch.cat(list(encode_blocks(codec, blocks)))
        middle = time.perf_counter()
        decoded = sum(map(len, decode_blocks(codec, iter([toks]), num_samples=size)))
        end = time.perf_counter()
    assert decoded == size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"encode": middle - start, "decode": end - middle, "peak": peak}


def compare(audio: Path, checkpoint: str | None, minutes: float) -> None:
    """Print how many tokens each way has in common with the whole excerpt."""
    codec = load_codec(checkpoint)
    size = round(minutes * 60 * codec.sample_rate)
    sig = torch.cat(list(speech(audio, sample_rate=codec.sample_rate, num_samples=size)))
    with torch.inference_mode():
        whole = codec.sig_to_codes(sig[None])[0] > 0
        for name, windows in WAYS.items():
            toks = torch.cat(list(encode_blocks(codec, [sig], windows=windows)))
            same = (codec.toks_to_codes(toks[None])[0] > 0) == whole
            print(
                f"{name:20}{100 * same.all(dim=1).float().mean():10.1f} %"
                f"{100 * same.float().mean():10.2f} %",
                flush=True,
            )


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_audio", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--audio", type=Path, required=True, help="folder of speech at 16 kHz")
    parser.add_argument("--checkpoint", help="codec folder; left out: full size, random weights")
    parser.add_argument("--minutes", type=float, nargs="*", default=[10, 60])
    parser.add_argument("--excerpt-minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    common = (arguments.audio, arguments.checkpoint)
    print(f"{'minutes':>8}{'encode':>18}{'decode':>18}{'peak':>12}")
    for minutes in arguments.minutes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(partial(measure, *common, minutes, arguments.threads))
        print(
            f"{minutes:8g}{cost['encode'] / minutes:10.2f} s/minute"
            f"{cost['decode'] / minutes:9.2f} s/minute{cost['peak'] / 2**30:8.2f} GiB",
            flush=True,
        )
    torch.set_num_threads(arguments.threads)
    if arguments.excerpt_minutes:
        print(f"\nagreement with {arguments.excerpt_minutes:g} minutes encoded whole")
        print(f"{'':20}{'tokens':>12}{'bits':>12}")
        compare(*common, arguments.excerpt_minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
