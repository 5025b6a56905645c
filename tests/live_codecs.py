"""Tiny causal codecs for live speech: 16 kHz in, 24 kHz out, 50 tokens of 6 bits a second."""

from functools import partial
from pathlib import Path

import torch

from focalcodec import FocalCodec
from focalcodec.activations import Snake
from focalcodec.focalnet import Compressor, Decompressor, FocalBlock
from focalcodec.quantizers import BinarySphericalQuantizer
from focalcodec.wavenext import WaveNeXt
from focalcodec.wavlm import WavLM


def make_live_codec(*, code_dim: int = 6, dim: int = 16) -> FocalCodec:
    """Codec whose chunks are 4 frames, in evaluation mode; its tokens differ from each other."""
    torch.manual_seed(0)
    mixer = partial(FocalBlock, window=3, causal=True, pool_size=8)
    blocks = {"mixer": mixer, "activation": Snake, "causal": True}
    codec = FocalCodec(
        WavLM(
            hidden_dims=(8,) * 7,
            dim=dim,
            num_layers=2,
            ffn_dim=24,
            num_heads=2,
            conv_pos=16,
            conv_pos_groups=2,
            num_buckets=32,
            max_distance=80,
            causal=True,
            window_size=16,
        ),
        Compressor(dim, code_dim, hidden_dims=[12, 10], downscale_factors=[1, 1], **blocks),
        BinarySphericalQuantizer(code_dim),
        Decompressor(
            code_dim,
            dim,
            hidden_dims=[10, 12],
            upscale_factors=[1, 1],
            lookahead_size=3,
            **blocks,
        ),
        WaveNeXt(dim, num_layers=2, dim=8, ffn_dim=12, causal=True),
    )
    with torch.no_grad():
        lats = codec.compressor(codec.encoder(torch.rand(1, 48_000) - 0.5))
        codec.compressor.out_proj.bias -= lats.mean((0, 1))
        codec.decoder.head.proj.weight *= 0.2  # hardly anything is clipped
    return codec.eval()


def save_live_codec(folder: Path, *, code_dim: int = 6) -> FocalCodec:
    """Codec in a folder, as it is loaded from there."""
    make_live_codec(code_dim=code_dim).save_pretrained(folder)
    return FocalCodec.from_pretrained(folder)
