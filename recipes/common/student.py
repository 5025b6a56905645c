"""The causal encoder that learns from a frozen one with full context (FocalCodec-Stream).

Both get the same silence behind the end of a signal, so that they give the same number of frames,
ceil(n / hop_length) of n samples.

References
----------
Della Libera et al., 2025, "FocalCodec-Stream", arXiv:2509.16195.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from focalcodec.encoding import complete


class LayerFeats(NamedTuple):
    """What an encoder's layers make of a batch.

    layers (B, N, H) each, the first one behind the positional embedding; mask (B, N), None for a
    batch without padding.
    """

    layers: list[Tensor]
    mask: Tensor | None


class Student(nn.Module):
    """An encoder in training: one ``forward`` for all layers.

    DistributedDataParallel averages the gradients of what was computed by its own call alone, so
    the encoder's methods are not for training.

    Parameters
    ----------
    encoder : a `focalcodec.wavlm.WavLM`.
    trained : how the names of the parameters begin that are trained; the others are frozen.

    Raises
    ------
    ValueError : if the encoder gives no layers, or an entry of ``trained`` names no parameter.
    """

    def __init__(self, encoder: nn.Module, *, trained: Sequence[str]) -> None:
        super().__init__()
        if not hasattr(encoder, "layer_feats"):
            raise ValueError(
                f"student is a {type(encoder).__name__}, which has no layers to train; take a "
                "WavLM, such as encoder/wavlm6_causal.yaml"
            )
        self.encoder = encoder
        train_only(encoder, trained)

    def forward(
        self, sig: Tensor, *, lens: Tensor | None = None, depth: int | None = None
    ) -> LayerFeats:
        """Compute what `layer_feats` does, with gradients."""
        return layer_feats(self.encoder, sig, lens=lens, depth=depth)


def layer_feats(
    encoder: nn.Module, sig: Tensor, *, lens: Tensor | None = None, depth: int | None = None
) -> LayerFeats:
    """Send a signal through an encoder.

    Parameters
    ----------
    encoder : a `focalcodec.wavlm.WavLM`; of one without layers, such as log-mel, the features stand
        for each layer.
    sig : (B, T) at the encoder's rate.
    lens : (B,) relative lengths.
    depth : Transformer layers to go through; None for all of them.
    """
    sig, lens, mask = complete(encoder, sig, lens=lens)
    if hasattr(encoder, "layer_feats"):
        return LayerFeats(encoder.layer_feats(sig, lens=lens, depth=depth), mask)
    if depth is None:
        raise ValueError(
            f"{type(encoder).__name__} has no layers; depth says for how many it stands"
        )
    return LayerFeats([encoder(sig, lens=lens)] * (1 + depth), mask)


def train_only(module: nn.Module, trained: Sequence[str]) -> None:
    """Freeze all parameters but those whose names begin as ``trained`` says, at whole words.

    Raises
    ------
    ValueError : if an entry names no parameter.
    """
    names = {name: parameter for name, parameter in module.named_parameters()}
    for prefix in trained:
        if not any(_is_within(name, prefix) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"trained names {prefix!r}, but no parameter of {type(module).__name__} begins so; "
                f"its parts are {', '.join(parts)}"
            )
    for name, parameter in names.items():
        parameter.requires_grad_(any(_is_within(name, prefix) for prefix in trained))


def _is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
