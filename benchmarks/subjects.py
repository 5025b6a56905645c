"""What inference is measured on: a codec and speech."""

from collections.abc import Iterator
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
    """Blocks (T,) of the folder's files, again and again, ``num_samples`` in all.

    Raises
    ------
    FileNotFoundError : if the folder holds no .flac or .wav file.
    ValueError : if a file is not mono at ``sample_rate``.
    """
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
