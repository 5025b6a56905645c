"""Live speech on a CPU: time of a chunk against the 80 ms that it lasts.

    python -m benchmarks.streaming --audio /data/speech --threads 1 2

The full-size causal codec (random weights, or ``--checkpoint``) encodes and decodes real speech
chunk by chunk, in several precisions, with ``--compile`` compiled as well, and beside a plain
implementation of the same arithmetic. All take each chunk in turns in this process, so that the
machine's load meets them alike. Printed are median and 99th percentile of a chunk, ratios to the
plain one, tokens that differ from it, and the share of each part of the codec.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measuring import PartOfRuns, machine
from benchmarks.plain_stream import PlainStream
from benchmarks.subjects import load_causal_codec, speech
from focalcodec import FocalCodec
from focalcodec.packing import PRECISIONS, pack
from focalcodec.stream import Stream

PLAIN = "plain, float32"


class Timed:
    """A stream that notes seconds and tokens of its chunks.

    Parameters
    ----------
    stream : has ``encode`` and ``decode``.
    """

    def __init__(self, stream: PlainStream | Stream) -> None:
        self.stream = stream
        self.seconds: list[float] = []
        self.toks: list[Tensor] = []

    def run(self, chunk: Tensor) -> None:
        """Encode and decode a chunk (1, chunk_size)."""
        start = time.perf_counter()
        toks = self.stream.encode(chunk)
        self.stream.decode(toks)
        self.seconds.append(time.perf_counter() - start)
        self.toks.append(toks)


def variants(codec: FocalCodec, *, precisions: Sequence[str], compiled: bool) -> dict[str, Timed]:
    """Streams to be measured, by name."""
    streams = {PLAIN: Timed(PlainStream(codec)), "float32": Timed(codec.open_stream())}
    for precision in precisions:
        packed = pack(copy.deepcopy(codec), precision=precision)
        streams[precision] = Timed(packed.open_stream())
    if compiled:
        graph = copy.deepcopy(codec)
        graph.compile_parts()
        streams["float32, compiled"] = Timed(graph.open_stream())
    return streams


def table(streams: dict[str, Timed], *, warm_up: int, budget_ms: float) -> list[str]:
    """Make a line for each stream: times, ratio to the plain one, tokens that differ from its."""
    plain = streams[PLAIN]
    lines = [f"{'':20}{'median ms':>11}{'p99 ms':>9}{'real time':>11}{'ratio':>9}{'tokens':>9}"]
    for name, timed in streams.items():
        seconds = timed.seconds[warm_up:]
        median = statistics.median(seconds)
        p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
        ratio = statistics.median(plain.seconds[warm_up:]) / median
        differ = torch.cat(timed.toks, 1) != torch.cat(plain.toks, 1)
        lines.append(
            f"{name:20}{1000 * median:11.1f}{1000 * p99:9.1f}{1000 * median / budget_ms:11.2f}"
            f"{ratio:7.2f} x{100 * differ.double().mean():7.2f} %"
        )
    return lines


def parts(codec: FocalCodec) -> dict[str, nn.Module]:
    """Parts of a codec, by what to call them."""
    transformer = codec.encoder.encoder
    named = {
        "convolutions": codec.encoder.feature_extractor,
        "positional embedding": transformer.positional_embedding,
    }
    for number, layer in enumerate(transformer.layers):
        named |= {f"attention {number}": layer.attention, f"ffn {number}": layer.feed_forward}
    named |= {"compressor": codec.compressor, "decompressor": codec.decompressor}
    return named | {"decoder": codec.decoder}


def shares(timed: Timed, chunks: Sequence[Tensor]) -> list[str]:
    """Measure the parts of a stream's chunks; a line for each kind of part."""
    codec, run = timed.stream.codec, Chunks(timed, chunks)
    whole: Callable[[], None] = run
    measured: dict[str, PartOfRuns] = {}
    for name, module in parts(codec).items():
        measured[name] = PartOfRuns(whole, module, device=torch.device("cpu"))
        whole = measured[name]
    for _ in chunks:
        whole()
    total = statistics.median(timed.seconds[-len(chunks) :])
    kinds: dict[str, float] = {}
    for name, part in measured.items():
        kind = name.rstrip(" 0123456789")
        kinds[kind] = kinds.get(kind, 0) + statistics.median(part.seconds)
    return [f"  {kind:22}{100 * seconds / total:5.1f} %" for kind, seconds in kinds.items()]


class Chunks:
    """One chunk after the other with each call."""

    def __init__(self, timed: Timed, chunks: Sequence[Tensor]) -> None:
        self.run, self.left = timed.run, list(reversed(chunks))

    def __call__(self) -> None:
        """Take the next chunk."""
        self.run(self.left.pop())


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="folder of mono 16 kHz speech")
    parser.add_argument("--checkpoint", help="causal codec; full size with random weights without")
    parser.add_argument("--seconds", type=float, default=30.0, help="of speech")
    parser.add_argument("--warm-up", type=float, default=11.0, help="seconds that are not counted")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--compile", action="store_true", help="takes many minutes at full size")
    arguments = parser.parse_args(argv)
    codec = load_causal_codec(arguments.checkpoint)
    num_samples = round(arguments.seconds * codec.sample_rate)
    blocks = speech(arguments.audio, sample_rate=codec.sample_rate, num_samples=num_samples)
    chunks = torch.cat(list(blocks))[None].split(codec.chunk_size, dim=1)
    chunks = [chunk for chunk in chunks if chunk.shape[1] == codec.chunk_size]
    warm_up = round(arguments.warm_up * codec.sample_rate / codec.chunk_size)
    if len(chunks) < warm_up + 10:
        parser.error(f"--seconds {arguments.seconds} leaves less than 10 chunks after the warm-up")
    print(f"{machine('cpu')}, torch {torch.__version__}, {codec.latency_ms:.0f} ms a chunk")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        streams = variants(codec, precisions=arguments.precisions, compiled=arguments.compile)
        for chunk in chunks:
            for timed in streams.values():
                timed.run(chunk)
        print(f"\n{threads} threads")
        print("\n".join(table(streams, warm_up=warm_up, budget_ms=codec.latency_ms)))
        for name in ("float32", *arguments.precisions):
            print(f"{name}, share of a chunk")
            print("\n".join(shares(streams[name], chunks[:50])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
