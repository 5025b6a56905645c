"""Frozen features of batches: encoded, augmented first perhaps, or read from the feature cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from focalcodec.encoding import encode
from focalcodec.masking import lengths_to_mask, num_valid
from recipes.common.crops import cut

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Features(NamedTuple):
    """Frozen features of a batch: feats (B, N, H) float32, mask (B, N)."""

    feats: Tensor
    mask: Tensor


class FrozenFeatures:
    """What the frozen encoder makes of the batches of `recipes.common.dataio`, without gradients.

    Parameters
    ----------
    encoder : on its device, in evaluation mode.

    Attributes
    ----------
    encode : the encoder, compiled after `compile`.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encode = self.encoder = encoder

    def compile(self) -> None:
        """Compile the encoder."""
        self.encode = torch.compile(self.encoder, dynamic=True)

    @torch.no_grad()
    def __call__(self, batch: Any, *, augment: Augment | None = None) -> Features:
        """Features of a batch: computed in float32, or read from the feature cache.

        Parameters
        ----------
        batch : with ``feats`` of the cache, or else ``sig``.
        augment : changes signals and relative lengths before they are encoded.

        Raises
        ------
        ValueError : if ``augment`` changes the shape of the signals.
        """
        if hasattr(batch, "feats"):
            feats, lens = batch.feats
            mask = lengths_to_mask(num_valid(lens, feats.shape[1]), feats.shape[1])
            return Features(feats.float(), mask)
        sig, lens = batch.sig
        if augment is not None:
            sig, lens = _augmented(sig, lens, augment)
        with torch.autocast(sig.device.type, enabled=False):
            return Features(*encode(self.encode, sig, lens=lens))

    def segments(self, batch: Any, *, augment: Augment | None = None) -> Features:
        """Features of a batch's segments (S, segment_frames, H), never padded.

        Those of the whole utterances where the batch has no segments. Arguments and errors as for
        a call.
        """
        if hasattr(batch, "frames"):
            feats = cut(self(batch, augment=augment).feats, frames=batch.frames.data)
        elif hasattr(batch, "feats") and batch.feats.data.ndim == 4:
            feats = batch.feats.data.float().flatten(0, 1)
        else:
            return self(batch, augment=augment)
        return Features(feats, torch.ones(feats.shape[:2], dtype=torch.bool, device=feats.device))


def _augmented(sig: Tensor, lens: Tensor, augment: Augment) -> tuple[Tensor, Tensor]:
    shape = sig.shape
    sig, lens = augment(sig, lens)
    if sig.shape != shape:
        raise ValueError(
            f"augment made {tuple(sig.shape)} of signals {tuple(shape)}, but frames have to "
            "stay where they are: leave out what changes speed or adds copies to the batch"
        )
    return sig, lens
