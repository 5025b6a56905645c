"""Tiny causal codecs with random weights, one for each way in which chunks and windows can meet."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from focalcodec import FocalCodec
from focalcodec.activations import Snake
from focalcodec.focal_block import FocalBlock
from focalcodec.focalnet import Compressor, Decompressor
from focalcodec.quantizers import BinarySphericalQuantizer
from focalcodec.vocos import Vocos
from focalcodec.wavenext import WaveNeXt
from focalcodec.wavlm import WavLM

STRIDES = {"hidden_dims": (6, 6), "kernel_sizes": (7, 3), "strides": (5, 2)}  # 10 samples a frame
CODECS: dict[str, dict[str, Any]] = {
    "published": {"refined": 3},  # in its proportions: chunks of 4 frames for all parts
    "vocos": {"decoder": "vocos"},
    "25hz": {"factors": (2, 1), "lookahead_size": 2, "window_size": 7, "refined": 1},
    "12.5hz": {"factors": (2, 2), "lookahead_size": 0, "window_size": 5, "decoder": "vocos"},
    "no lookahead": {"lookahead_size": 0, "window_size": 1, "pool_size": 1},
}


def make_causal_codec(
    *,
    factors: tuple[int, ...] = (1, 1),
    lookahead_size: int = 3,
    window_size: int = 10,
    pool_size: int = 9,
    refined: int = 0,
    decoder: str = "wavenext",
    convolutions: dict[str, Any] = STRIDES,
    num_layers: int = 2,
    code_dim: int = 5,
    seed: int = 0,
) -> FocalCodec:
    """Make a codec of about 10 000 weights, in evaluation mode; all parts of it matter.

    Parameters
    ----------
    lookahead_size, window_size : of the encoder, in frames; by default no whole number of chunks.
    pool_size : of focal blocks, in frames; the last one of the decompressor has another.
    num_layers : of encoder and decoder.
    refined : frames that the decompressor's refiner looks ahead, 0 for none.
    """
    dim = 12
    torch.manual_seed(seed)
    encoder = WavLM(
        **convolutions,
        num_layers=num_layers,
        dim=dim,
        ffn_dim=16,
        num_heads=2,
        num_buckets=8,
        max_distance=9,
        conv_pos=6,
        conv_pos_groups=2,
        causal=True,
        window_size=window_size,
        lookahead_size=lookahead_size,
    )
    mixer = partial(FocalBlock, window=3, factor=2, causal=True, pool_size=pool_size)
    scaling = {"hidden_dims": [8] * len(factors), "activation": Snake, "causal": True}
    compressor = Compressor(dim, code_dim, downscale_factors=factors, mixer=mixer, **scaling)
    decompressor = Decompressor(
        code_dim,
        dim,
        upscale_factors=factors[::-1],
        mixer=mixer,
        last_mixer=partial(mixer, pool_size=4),
        lookahead_size=refined,
        **scaling,
    )
    hop_length = encoder.hop_length
    sizes = {"num_layers": num_layers, "dim": 8, "ffn_dim": 12, "kernel_size": 3, "causal": True}
    decoders = {
        "vocos": partial(Vocos, n_fft=2 * hop_length, hop_length=hop_length),
        "wavenext": partial(WaveNeXt, hop_length=3 * hop_length // 2, sample_rate=24000),
    }
    parts = (encoder, compressor, BinarySphericalQuantizer(code_dim), decompressor)
    codec = with_lively_weights(FocalCodec(*parts, decoders[decoder](dim, **sizes)))
    codec.requires_grad_(False).decoder.head.proj.weight.mul_(0.3)  # few samples are clamped
    return codec.eval()


def make_live_codec(*, code_dim: int = 6) -> FocalCodec:
    """Make a tiny codec of the published rates: 16 kHz in, 24 kHz out, 50 tokens a second."""
    codec = make_causal_codec(
        convolutions={"hidden_dims": (8,) * 7},
        window_size=16,
        pool_size=8,
        refined=3,
        code_dim=code_dim,
    )
    with torch.no_grad():
        lats = codec.sig_to_lats(torch.rand(1, 48_000) - 0.5)
    codec.compressor.out_proj.bias -= lats.mean((0, 1))  # both bits of each dimension occur
    return codec


def save_live_codec(folder: Path, *, code_dim: int = 6) -> FocalCodec:
    """Codec in a folder, as it is loaded from there."""
    make_live_codec(code_dim=code_dim).save_pretrained(folder)
    return FocalCodec.from_pretrained(folder)


def with_lively_weights(model: nn.Module) -> nn.Module:
    """Random weights under which every part matters: norms and gates start as near identities."""
    with torch.no_grad():
        for weight in model.parameters():
            fan_in = weight[0].numel()
            weight.add_(torch.randn_like(weight) * (fan_in**-0.5 if fan_in > 1 else 0.3))
    return model


def noise(*shape: int, seed: int = 7) -> Tensor:
    """Noise whose level comes and goes, at most 1.

    With this seed the latents of what the tests encode stay 1e-4 away from 0, where tokens change:
    a hundred times what float32 rounds.
    """
    source = torch.Generator().manual_seed(seed)
    level = torch.linspace(0, 20, shape[-1]).sin().square()
    return (torch.rand(*shape, generator=source) * 2 - 1) * level


def cut(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Pieces of a sequence (B, N) of the given sizes, the last one over and over."""
    pieces = []
    while x.shape[1]:
        size = sizes[min(len(pieces), len(sizes) - 1)]
        pieces.append(x[:, :size])
        x = x[:, size:]
    return pieces
