"""Small feature caches for the tests: audio, toy encoders, builds in child processes."""

import contextlib
import multiprocessing
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from focalcodec.logmel import LogMel
from focalcodec.wavlm import WavLM
from recipes.common.feature_cache import FeatureCache, describe_encoder
from recipes.common.feature_cache.build import BuildReport, build_cache
from recipes.common.fingerprint import fingerprint
from tests.audio_files import RATE, write_noise

# Children are forked from a server that has imported the slow modules once and has no threads.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["recipes.common.feature_cache.build", "recipes.common.shards", "speechbrain.core", "pytest"]
)

UNIT_BYTES = 6000  # two to four of the utterances below with 16 channels


class SlowLogMel(LogMel):
    """Log-mel that takes its time, so that a process can be met at work."""

    def forward(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Wait, then compute."""
        time.sleep(0.05)
        return super().forward(sig, lens=lens)


class MeetingLogMel(LogMel):
    """Log-mel that begins when every process that shares `barrier` has begun, too."""

    barrier = None

    def forward(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Wait for the others before the first batch, then compute."""
        if self.barrier is not None:
            self.barrier.wait(timeout=60)
            self.barrier = None
        return super().forward(sig, lens=lens)


class StuckLogMel(LogMel):
    """Log-mel that does not end, for processes that are to be ended."""

    def forward(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Wait longer than any test."""
        time.sleep(600)
        return super().forward(sig, lens=lens)


class LoudLogMel(LogMel):
    """Log-mel times a factor, for what half precision does not hold."""

    factor = 1e5

    def forward(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Compute, then scale."""
        return super().forward(sig, lens=lens) * self.factor


ENCODERS = {
    "logmel": partial(LogMel, n_mels=16),
    "slow": partial(SlowLogMel, n_mels=16),
    "meeting": partial(MeetingLogMel, n_mels=16),
    "loud": partial(LoudLogMel, n_mels=16),
    "wavlm": partial(
        WavLM,
        hidden_dims=(8,) * 7,
        num_layers=2,
        dim=16,
        ffn_dim=24,
        num_heads=2,
        num_buckets=32,
        max_distance=80,
        conv_pos=16,
        conv_pos_groups=2,
    ),
}


def make_encoder(name: str = "logmel") -> torch.nn.Module:
    """Toy encoder, in evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ENCODERS[name]().eval()


def write_audio(folder: Path, *, num: int = 10, first: int = 0) -> dict[str, dict]:
    """Noise of 1 s and a little more each; the entries, as a dataset of the manifest holds them."""
    entries = {}
    for index in range(first, first + num):
        # Ids in another order than lengths.
        num_samples = RATE + 701 * (7 * index % 11)
        wav = write_noise(folder / f"utt{index:02d}.wav", num_samples=num_samples)
        entries[f"utt{index:02d}"] = {"wav": str(wav), "num_samples": num_samples}
    return entries


def build(folder: Path, entries: dict, *, encoder: str = "logmel", **options) -> BuildReport:
    """Build a cache of several shards and several batches in each."""
    module = make_encoder(encoder)
    options = {"progress": False, "unit_bytes": UNIT_BYTES, "batch_seconds": 2.5} | options
    return build_cache(folder, entries, encoder=module, fingerprint=fingerprint(module), **options)


def open_cache(folder: Path, *, encoder: str = "logmel") -> FeatureCache:
    """Open a cache with the encoder that made it."""
    module = make_encoder(encoder)
    return FeatureCache(folder, encoder=describe_encoder(module, fingerprint(module)))


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of all files of a cache but its locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextlib.contextmanager
def child(function, *args):
    """Run ``function(*args)`` in a child process; it is ended with the block."""
    process = FORK.Process(target=_one_thread, args=(function, args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _one_thread(function, args):
    torch.set_num_threads(1)
    function(*args)
