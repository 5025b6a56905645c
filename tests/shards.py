"""Small folders of shards for the tests: audio, rows as manifests hold them, toy codecs."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipes.codecs.codec import Codec
from recipes.common.shards import Tokens, build_shards
from recipes.common.shards.build import ShardReport
from tests.audio_files import RATE, write_noise


class Blocks(Codec):
    """Samples of 16 bits in pairs, a token of two codebooks; counts what it encodes."""

    name = model_id = "PCM"
    sample_rate = sample_rate_output = RATE
    token_rate = RATE / 2
    num_codebooks = 2
    codebook_size = 2**16
    encoded = 0  # signals, by all
    dies_at = None  # number of the signal in whose batch the process is killed

    def sigs_to_toks(self, sigs: Sequence[Tensor]) -> list[Tensor]:
        """Encode, or die."""
        Blocks.encoded += len(sigs)
        if self.dies_at is not None and Blocks.encoded >= self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sigs_to_toks(sigs)

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        padded = nn.functional.pad(sig, (0, -sig.shape[1] % self.num_codebooks))
        return ((padded + 1) * 32767.5).round().long().reshape(1, -1, self.num_codebooks)


def make_row(path: Path, num_samples: int, **keys: Any) -> dict[str, Any]:
    """Write noise, and give its row; ``keys`` are its labels."""
    row = {"wav": str(write_noise(path, num_samples=num_samples)), "num_samples": num_samples}
    return row | {"sample_rate": RATE, "duration": num_samples / RATE, "speaker": "s"} | keys


def write_rows(folder: Path, *, num: int = 9) -> dict[str, dict[str, Any]]:
    """Rows of 0.2 s and a little more each, ids in another order than lengths."""
    return {
        f"utt{index}": make_row(
            folder / f"utt{index}.wav", RATE // 5 + 301 * (7 * index % 11), text=f"text {index}"
        )
        for index in range(num)
    }


def build(folder: Path, rows: dict, *, codec: Codec | None = None, **options: Any) -> ShardReport:
    """Build shards of three or four utterances with several batches in each."""
    options = {"shard_minutes": 0.02, "batch_seconds": 0.7, "progress": False} | options
    extractor = options.pop("extractor", None) or Tokens(codec or Blocks())
    return build_shards(folder, {"train": rows}, extractor=extractor, **options)


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of all visible files of a folder, and of what its hidden parts hold."""
    paths = [path for path in folder.iterdir() if path.is_file()]
    paths += (folder / ".parts").rglob("*")
    return {path.name: path.read_bytes() for path in paths}


class Stuck(Blocks):
    """A codec that does not end, for processes that are to be ended."""

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        time.sleep(600)
        return super()._sig_to_toks(sig)


class Quadruples(Blocks):
    """Twice the codebooks."""

    num_codebooks = 4
