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
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from focalcodec import FocalCodec
from focalcodec.focalnet import Compressor, Decompressor, FocalBlock, Snake
from focalcodec.quantizers import BinarySphericalQuantizer
from focalcodec.vocos import Vocos
from focalcodec.wavlm import WavLM
from focalcodec.windows import DEFAULT, Windows, decode_blocks, encode_blocks

WAYS = {
    "windows of 30 s": DEFAULT,
    "windows of 10 s": Windows(size=160_000),
    **{f"chunks of {size}": Windows.chunks(size) for size in (8000, 4000, 2000)},
}


def load_codec(checkpoint: str | None) -> FocalCodec:
    """Codec of a checkpoint, or the full-size 50 Hz one with random weights."""
    if checkpoint is not None:
        return FocalCodec.from_pretrained(checkpoint)
    torch.manual_seed(0)
    blocks = {"mixer": FocalBlock, "activation": Snake}
    dims, factors = [1024, 512, 256], [1, 1, 1]
    codec = FocalCodec(
        WavLM(),
        Compressor(1024, 13, hidden_dims=dims, downscale_factors=factors, **blocks),
        BinarySphericalQuantizer(13),
        Decompressor(13, 1024, hidden_dims=dims[::-1], upscale_factors=factors, **blocks),
        Vocos(),
    )
    return codec.eval().requires_grad_(False)


def speech(folder: Path, *, sample_rate: int, num_samples: int) -> Iterator[Tensor]:
    """Blocks of the folder's files, again and again, ``num_samples`` in all."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".flac", ".wav"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .flac or .wav file")
    left = num_samples
    for path in cycle(files):
        sig, rate = soundfile.read(path, dtype="float32")
        if rate != sample_rate or sig.ndim != 1:
            raise ValueError(f"{path} must be mono at {sample_rate} Hz, got {rate} Hz")
        yield torch.from_numpy(sig[:left])
        left -= min(len(sig), left)
        if left == 0:
            return


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
