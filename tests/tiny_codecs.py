"""Other authors' codecs at toy size, with random weights, and two that one can see through."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
)

from recipes.codecs.codec import Codec


def write_encodec(folder: Path, **changes) -> EncodecModel:
    """24 kHz, 75 Hz, 1024 codes of 8 dimensions; 2 codebooks at 1.5 kbit/s, 4 at 3."""
    config = EncodecConfig(
        **{
            "target_bandwidths": [1.5, 3.0],
            "num_filters": 4,
            "hidden_size": 8,
            "codebook_dim": 8,
            "num_lstm_layers": 1,
        }
        | changes
    )
    model = EncodecModel(config)
    with torch.no_grad():
        lats = model.encoder(noise(1, config.audio_channels, 24_000))[0]
    # Around what the encoder gives, which hardly varies: otherwise all tokens were the same.
    for index, layer in enumerate(model.quantizer.layers):
        layer.codebook.embed.normal_().mul_(lats.std(1)).add_(lats.mean(1) if index == 0 else 0)
    return _write(model, folder)


def write_dac(folder: Path) -> DacModel:
    """16 kHz, 50 Hz, 4 codebooks of 64 codes of 4 dimensions."""
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4, 5, 8],
        upsampling_ratios=[8, 5, 4, 2],
        decoder_hidden_size=32,
        n_codebooks=4,
        codebook_size=64,
        codebook_dim=4,
        sampling_rate=16000,
    )
    return _write(DacModel(config), folder)


def write_mimi(folder: Path) -> MimiModel:
    """24 kHz, 12.5 Hz, one semantic and five acoustic codebooks of 64 codes of 8 dimensions."""
    config = MimiConfig(
        hidden_size=16,
        num_filters=2,
        codebook_size=64,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=6,
        num_hidden_layers=1,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=10,
        upsample_groups=16,
    )
    model = MimiModel(config)
    for group in ("semantic", "acoustic"):
        for layer in getattr(model.quantizer, f"{group}_residual_vector_quantizer").layers:
            layer.codebook.embed_sum.normal_(std=0.1)
            layer.codebook.cluster_usage.fill_(2)  # a vector is the sum over its users
    return _write(model, folder)


def _write(model: nn.Module, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    return model.eval()


class Pcm(Codec):
    """Samples of 16 bits as tokens, ``block`` of them a step; decoded ``upsample`` times each."""

    name = model_id = "PCM"
    sample_rate = 16000
    codebook_size = 2**16

    def __init__(self, *, block: int = 1, upsample: int = 1) -> None:
        super().__init__()
        self.num_codebooks, self.upsample = block, upsample
        self.sample_rate_output, self.token_rate = 16000 * upsample, 16000 / block
        self.longest = 0  # samples encoded at once

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        self.longest = max(self.longest, sig.shape[1])
        padded = nn.functional.pad(sig, (0, -sig.shape[1] % self.num_codebooks))
        return ((padded + 1) * 32767.5).round().long().reshape(1, -1, self.num_codebooks)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return (toks.reshape(1, -1) / 32767.5 - 1).repeat_interleave(self.upsample, dim=1)


class Plateau(Pcm):
    """A codec whose windows disagree as much as can be: each decodes to its last sample."""

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return super()._toks_to_sig(toks[:, -1:].expand_as(toks))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Half as loud as can be."""
    source = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=source) - 0.5
