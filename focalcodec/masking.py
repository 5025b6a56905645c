"""Masks of real frames: the one place that turns relative lengths into absolute counts and masks.

Every batch is padded on the right, so a mask is a run of True followed by a run of False. ``None``
in place of ``lens`` or ``mask`` means that nothing is padded.
"""

import torch
from torch import Tensor


def num_valid(lens: Tensor, size: int) -> Tensor:
    """Absolute lengths from relative ones.

    Parameters
    ----------
    lens : (B,) relative lengths in (0, 1].
    size : padded length that ``lens`` refers to.

    Returns
    -------
    (B,) int64, in [1, size]. Rounded, not rounded up: a relative length is a quotient of two
    integers, and rounding inverts it exactly where rounding up would often add a frame.
    """
    # float32 holds quotients of lengths up to 2**24 exactly enough; longer signals need float64.
    return (lens.double() * size).round().long().clamp(1, size)


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """(B, size) bool mask, True for the first ``lengths[b]`` positions of row ``b``."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def check_mask(mask: Tensor | None, *, like: Tensor, name: str) -> None:
    """Refuse a mask that does not fit a sequence.

    Parameters
    ----------
    mask : (B, N) bool, True for real frames; None fits everything.
    like : (B, N, ...) sequence that it belongs to.
    name : what the message calls the sequence.

    Raises
    ------
    ValueError : if the type is not bool or the shape is another.
    """
    if mask is not None and (mask.dtype != torch.bool or mask.shape != like.shape[:2]):
        raise ValueError(
            f"mask must be bool of shape {tuple(like.shape[:2])} like {name}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )


def check_frames(x: Tensor, *, dim: int, mask: Tensor | None, name: str) -> None:
    """Refuse what is no sequence of at least one frame of ``dim`` channels, or has another mask.

    Parameters
    ----------
    x : shall be (B, N, dim), N >= 1.
    dim : channels.
    mask : shall be (B, N) bool, True for real frames; None for all.
    name : what the message calls the sequence.

    Raises
    ------
    ValueError : if a shape or the type of ``mask`` does not fit.
    """
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != dim:
        raise ValueError(
            f"{name} must be (batch, at least 1 frame, {dim} channels), got {tuple(x.shape)}"
        )
    check_mask(mask, like=x, name=name)


def zero_padding(x: Tensor, *, mask: Tensor | None) -> Tensor:
    """Set padded frames to 0, whatever they hold.

    Parameters
    ----------
    x : (B, N, C) values.
    mask : (B, N) bool, True for real frames; None for all.

    Returns
    -------
    (B, N, C); its gradient at padded frames is 0.
    """
    # Filled, not multiplied: padding may hold NaN.
    return x if mask is None else x.masked_fill(~mask[..., None], 0)


def masked_mean(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean over real frames.

    Parameters
    ----------
    x : (B, N, ...) values.
    mask : (B, N) bool, True for real frames; None for all.

    Returns
    -------
    (...) mean over the batch's real frames: trailing axes are kept. NaN if ``mask`` selects no
    frame: to raise would mean to wait for the device.

    Raises
    ------
    ValueError : without ``mask``, if there is no frame.
    """
    if mask is None:
        if x.shape[0] * x.shape[1] == 0:
            raise ValueError(f"a mean needs at least one frame, got shape {tuple(x.shape)}")
        return x.flatten(0, 1).mean(dim=0)
    padding = ~mask[(...,) + (None,) * (x.ndim - 2)]
    return x.masked_fill(padding, 0).sum(dim=(0, 1)) / mask.sum()


def check_sig(sig: Tensor, *, sample_rate: int, lens: Tensor | None = None) -> None:
    """Raise ValueError unless ``sig`` is (B, T) floating point and ``lens``, if given, is (B,)."""
    if sig.ndim != 2 or not sig.is_floating_point():
        raise ValueError(
            f"sig must be (B, T) float at {sample_rate} Hz, got {tuple(sig.shape)} {sig.dtype}; "
            "add a batch axis with sig[None], scale integers to [-1, 1]"
        )
    if lens is not None and lens.shape != sig.shape[:1]:
        raise ValueError(
            f"lens must be (B,) with B = {sig.shape[0]} as sig has, got {tuple(lens.shape)}"
        )
