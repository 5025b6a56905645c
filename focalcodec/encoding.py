"""A signal on its way into an encoder: the silence behind its end, its frames and their mask."""

import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.masking import lengths_to_mask, num_valid


def encode(
    encoder: nn.Module, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Features and mask of a signal, by the conventions of `FocalCodec`; training uses it too.

    Parameters
    ----------
    encoder : see `FocalCodec`.
    sig : (B, T) finite signal at the encoder's rate.
    lens : (B,) relative lengths.
    exact_tail : append silence until there are ceil(n / hop_length) frames for n samples.

    Returns
    -------
    feats (B, N, H), 0 past each row's end, and mask (B, N); None for the mask without ``lens``.
    """
    sig, lens, mask = complete(encoder, sig, lens=lens, exact_tail=exact_tail)
    return encoder(sig, lens=lens), mask


def complete(
    encoder: nn.Module, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Make a signal what `encode` sends through the encoder; parameters are those of `encode`.

    Returns
    -------
    Signal (B, T') with its silence, lens (B,) of it, and mask (B, N) of the frames; None for both
    without ``lens``.
    """
    size = sig.shape[1]
    lengths = None
    if lens is not None:
        lengths = num_valid(lens, size)
        sig = sig.where(lengths_to_mask(lengths, size), 0.0)
    if exact_tail:
        size = _padded_size(encoder, size)
        sig = F.pad(sig, (0, size - sig.shape[1]))
    if lengths is None:
        return sig, None, None
    if exact_tail:
        lengths = _padded_size(encoder, lengths)
    mask = lengths_to_mask(encoder.num_frames(lengths), encoder.num_frames(size))
    return sig, lengths.double() / size, mask


def _padded_size(encoder: nn.Module, num_samples: int | Tensor) -> int | Tensor:
    """Size with the silence that makes it give ceil(num_samples / hop_length) frames."""
    needed = encoder.num_samples(-(-num_samples // encoder.hop_length))
    if isinstance(num_samples, Tensor):
        return needed.maximum(num_samples)
    return max(needed, num_samples)
