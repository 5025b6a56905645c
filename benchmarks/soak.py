"""Hours through one live stream: memory stays flat, and all is as in one piece.

    python -m benchmarks.soak --audio /data/speech --checkpoint codec --hours 1

Speech, the folder's files one after the other, goes through ``codec.open_stream`` and back, cut at
random. Memory is printed on the way. In the end tokens and signal are compared with those of the
whole, which the codec converts at once: that takes memory by the hour, and is meant for small ones.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import soundfile
import torch
from torch import Tensor

from benchmarks.measuring import held_bytes, machine
from benchmarks.subjects import load_causal_codec, speech
from focalcodec import FocalCodec

_MIB = 2**20
_REPORTS = 12  # of memory


def pieces(blocks: Iterable[Tensor], *, longest: int, seed: int) -> Iterator[Tensor]:
    """Cut blocks (T,) into pieces of random lengths, 1 to ``longest`` samples, as (1, T)."""
    lengths = random.Random(seed)
    for block in blocks:
        while block.shape[0]:
            size = lengths.randint(1, longest)
            yield block[None, :size]
            block = block[size:]


class Soak:
    """One stream, there and back, for a long time.

    Parameters
    ----------
    codec : causal.
    path : 32-bit float file for the decoded signal.
    num_samples : of speech that will come.
    """

    def __init__(self, codec: FocalCodec, path: Path, *, num_samples: int) -> None:
        self.codec, self.path, self.num_samples = codec, path, num_samples
        # As large from the beginning as in the end, so that it is no part of what grows.
        self.toks = torch.zeros(1, codec.num_toks(num_samples), dtype=torch.int64)
        self._stream, self._taken, self._given = codec.open_stream(), 0, 0

    def run(self, chunks: Iterable[Tensor]) -> None:
        """Send all through, and tell of memory on the way."""
        start, told, first = time.monotonic(), 0, 0
        rate = self.codec.sample_rate_output
        with soundfile.SoundFile(self.path, "w", rate, 1, "FLOAT", format="RF64") as file:
            for chunk in chunks:
                self._taken += chunk.shape[1]
                self._keep(self._stream.encode(chunk), file)
                if self._taken * _REPORTS // self.num_samples > told:
                    told += 1
                    first = first or held_bytes()
                    seconds = self._taken / self.codec.sample_rate
                    print(
                        f"{seconds:8.0f} s of speech{time.monotonic() - start:8.0f} s of time: "
                        f"process {held_bytes() / _MIB:8.1f} MiB "
                        f"({(held_bytes() - first) / _MIB:+.1f}), "
                        f"states {self._stream.num_bytes() / _MIB:.3f} MiB",
                        flush=True,
                    )
            self._keep(self._stream.flush().toks, file)
            file.write(self._stream.flush().sig[0].numpy())

    def _keep(self, toks: Tensor, file: soundfile.SoundFile) -> None:
        if toks.shape[1]:
            self.toks[:, self._given : self._given + toks.shape[1]] = toks
            self._given += toks.shape[1]
            file.write(self._stream.decode(toks)[0].numpy())

    def compare(self, sig: Tensor) -> str:
        """Compare with the whole signal (T,), converted at once."""
        toks = self.codec.sig_to_toks(sig[None])
        whole = self.codec.toks_to_sig(self.toks)[0]
        largest, place = 0.0, 0
        for block in soundfile.blocks(self.path, blocksize=2**20, dtype="float32"):
            expected = whole[place : place + len(block)]
            largest = max(largest, float((torch.from_numpy(block) - expected).abs().max()))
            place += len(block)
        differ = int((toks != self.toks).sum())
        return (
            f"{toks.shape[1]} tokens, {differ} differ from those of the whole; "
            f"{place} of {whole.shape[0]} samples, which differ by {largest:.1e} at most"
        )


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="folder of mono 16 kHz speech")
    parser.add_argument("--checkpoint", help="causal codec; full size with random weights without")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the cuts")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    codec = load_causal_codec(arguments.checkpoint)
    num_samples = round(arguments.hours * 3600 * codec.sample_rate)
    source = {"sample_rate": codec.sample_rate, "num_samples": num_samples}
    print(f"{machine('cpu')}, torch {torch.__version__}")
    with TemporaryDirectory() as folder, torch.inference_mode():
        soak = Soak(codec, Path(folder) / "decoded.wav", num_samples=num_samples)
        blocks = speech(arguments.audio, **source)
        soak.run(pieces(blocks, longest=3 * codec.chunk_size, seed=arguments.seed))
        print(soak.compare(torch.cat(list(speech(arguments.audio, **source)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
