"""A codec that one can see through, and corpora written in its tokens: toy problems of the tasks.

A token is the level of a block of 20 ms, one of 16; what is written as levels is heard as the same
tokens, and decoding gives the same signal back.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from recipes.codecs.codec import Codec

BLOCK = 320  # samples
LEVELS = 16
_BLOCK_FILE = "# Levels, for tests.\n!name:tests.level_codec.Levels\nnum_codebooks: {}\n"


class Levels(Codec):
    """16 levels at 50 Hz; a second codebook tells how many of them are even, by its last bit."""

    name = model_id = "Levels"
    sample_rate = sample_rate_output = 16_000
    token_rate = 50.0
    codebook_size = LEVELS
    has_feats = True

    def __init__(self, *, num_codebooks: int = 1, checkpoint: str | None = None) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        blocks = nn.functional.pad(sig, (0, -sig.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        toks = ((blocks.mean(2) + 1) * LEVELS / 2 - 0.5).round().long().clamp(0, LEVELS - 1)
        further = [(toks + k) % 2 for k in range(1, self.num_codebooks)]
        return torch.stack([toks, *further], dim=-1)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return level_of(toks[..., 0]).repeat_interleave(BLOCK, dim=1)

    def _sig_to_feats(self, sig: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(self._sig_to_toks(sig)[..., 0], LEVELS).float()

    def embeddings(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.num_codebooks, LEVELS, 8, generator=generator)


def level_of(toks: Tensor) -> Tensor:
    """Levels in (-1, 1) of tokens."""
    return (toks + 0.5) * 2 / LEVELS - 1


def write_toks(path: Path, toks: Sequence[int]) -> Path:
    """Write the signal of tokens, as float so that no level moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sig = level_of(torch.tensor(toks)).repeat_interleave(BLOCK).numpy().astype(np.float32)
    soundfile.write(path, sig, 16_000, subtype="FLOAT")
    return path


def write_block(folder: Path, *, num_codebooks: int = 1) -> Path:
    """Write the codec's block file."""
    path = folder / f"levels_{num_codebooks}.yaml"
    path.write_text(_BLOCK_FILE.format(num_codebooks))
    return path
