"""What the benchmarks measure on: a codec, transformers' encoder, speech."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor, nn

from focalcodec import FocalCodec
from focalcodec.activations import Snake
from focalcodec.focalnet import Compressor, Decompressor, FocalBlock
from focalcodec.quantizers import BinarySphericalQuantizer
from focalcodec.vocos import Vocos
from focalcodec.wavenext import WaveNeXt
from focalcodec.wavlm import WavLM, state_dict_from_transformers

SAMPLE_RATE = 16000  # Hz, of utterances
Entries = dict[str, dict[str, Any]]  # utterances as `recipes.common.dataio.SigDataset` wants them


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


def load_causal_codec(checkpoint: str | None) -> FocalCodec:
    """Causal codec of a checkpoint, or the full-size one of 4096 codes with random weights."""
    if checkpoint is not None:
        return FocalCodec.from_pretrained(checkpoint)
    torch.manual_seed(0)
    mixer = partial(FocalBlock, window=14, level=2, factor=4, causal=True)
    blocks = {"mixer": mixer, "activation": Snake, "causal": True, "hidden_dims": [1024] * 3}
    codec = FocalCodec(
        WavLM(causal=True),
        Compressor(1024, 12, downscale_factors=[1, 1, 1], **blocks),
        BinarySphericalQuantizer(12),
        Decompressor(12, 1024, upscale_factors=[1, 1, 1], lookahead_size=3, **blocks),
        WaveNeXt(causal=True),
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


def synthetic(*, sample_rate: int, num_samples: int) -> Tensor:
    """(T,) harmonics of a gliding pitch, in bursts, with noise; for trials without speech."""
    generator = torch.Generator().manual_seed(0)
    time_s = torch.arange(num_samples, dtype=torch.float64) / sample_rate
    pitch_hz = 140 + 50 * torch.sin(2.1 * time_s) + 15 * torch.sin(13 * time_s)
    phase = 2 * torch.pi * pitch_hz.cumsum(0) / sample_rate
    voiced = sum(torch.sin(k * phase) / k for k in range(1, 25))
    bursts = torch.sin(2 * torch.pi * 2 * time_s).clamp(min=0)
    noise = torch.randn(num_samples, generator=generator, dtype=torch.float64)
    return (0.1 * bursts * voiced + 0.01 * noise).float()


def synthetic_utterances(folder: Path, *, sizes: list[int]) -> Entries:
    """Write wav files of so many samples each, pieces of one synthetic signal."""
    sig = synthetic(sample_rate=SAMPLE_RATE, num_samples=sum(sizes))
    entries = {}
    for index, part in enumerate(sig.split(sizes)):
        path = folder / f"utterance{index:03d}.wav"
        soundfile.write(path, part.numpy(), SAMPLE_RATE)
        entries[path.stem] = {"wav": str(path), "num_samples": len(part)}
    return entries


def drawn_utterances(
    audio: Path, *, number: int, limits: tuple[int, int], source: random.Random
) -> Entries:
    """Draw utterances of a folder whose samples are within the limits.

    Raises
    ------
    ValueError : if a file is not at 16 kHz, or there are too few.
    """
    entries = {}
    for path in sorted(path for path in audio.rglob("*") if path.suffix in (".flac", ".wav")):
        header = soundfile.info(path)
        if header.samplerate != SAMPLE_RATE:
            raise ValueError(f"{path} must be at {SAMPLE_RATE} Hz, got {header.samplerate} Hz")
        if limits[0] <= header.frames <= limits[1]:
            name = path.relative_to(audio).as_posix()
            entries[name] = {"wav": str(path), "num_samples": header.frames}
    if len(entries) < number:
        raise ValueError(
            f"{audio} holds {len(entries)} .flac or .wav files within --min-seconds and "
            f"--max-seconds, and --batch needs {number}"
        )
    return {name: entries[name] for name in source.sample(sorted(entries), number)}


def rather_long(entries: Entries, *, part: int) -> Entries:
    """Pick one of every ``part`` utterances of neighbouring lengths: the one above the middle."""
    return {key: entries[key] for key in _by_length(entries)[part // 2 :: part]}


def similar_lengths(batches: Sequence[Entries]) -> list[Entries]:
    """Sort the utterances of all batches into as many, or fewer, of similar lengths.

    With padding, none has more samples than needed for that number.
    """
    entries = {key: entry for batch in batches for key, entry in batch.items()}
    ids = _by_length(entries)
    sizes = [entries[key]["num_samples"] for key in ids]
    limits = {size * number for size in sizes for number in range(1, len(sizes) + 1)}
    for limit in sorted(limit for limit in limits if limit >= sizes[-1]):
        groups: list[Entries] = []
        for key, size in zip(ids, sizes, strict=True):
            if not groups or (len(groups[-1]) + 1) * size > limit:
                groups.append({})
            groups[-1][key] = entries[key]
        if len(groups) <= len(batches):
            return groups
    raise AssertionError("one batch for all is always found")


def _by_length(entries: Entries) -> list[str]:
    return sorted(entries, key=lambda key: entries[key]["num_samples"])


def padded_samples(entries: Entries) -> int:
    """Count a batch's samples with its padding."""
    return len(entries) * max(entry["num_samples"] for entry in entries.values())


def describe(batches: Sequence[Entries]) -> str:
    """Say how long the utterances are, and how much padding they get."""
    sizes = [entry["num_samples"] / SAMPLE_RATE for batch in batches for entry in batch.values()]
    padding = 1 - sum(sizes) * SAMPLE_RATE / sum(map(padded_samples, batches))
    return (
        f"{len(sizes)} x {min(sizes):.1f} to {max(sizes):.1f} s ({sum(sizes):.1f} s) in "
        f"{len(batches)} batches, {100 * padding:.0f} % padding"
    )
