"""What is passed to the codec, checked at its boundary: one clear error for each kind of mistake.

The published codec takes most of these without a word: one NaN sample turns every token into 0, a
stereo signal becomes a batch of two, a token out of range wraps.
"""

import math

import torch
from torch import Tensor, nn

from focalcodec.masking import lengths_to_mask, num_valid


def check_mono(sig: Tensor, *, sample_rate: int, dtype: torch.dtype) -> None:
    """Refuse what is no batch of mono signals.

    Parameters
    ----------
    sig : shall be (B, T) of ``dtype`` with at least one sample.
    sample_rate : Hz, for the message.
    dtype : precision of the codec.

    Raises
    ------
    ValueError : if it is something else.
    """
    what = f"sig must be (B, T) mono float at {sample_rate} Hz"
    shape = tuple(sig.shape)
    if sig.ndim == 1:
        raise ValueError(f"{what}, got shape {shape}; add a batch axis with sig[None]")
    if sig.ndim != 2:
        raise ValueError(
            f"{what}, got shape {shape}; mix the channels down, for example with "
            "sig.mean(dim=1) of (B, channels, T)"
        )
    if sig.numel() == 0:
        raise ValueError(f"{what} with at least one sample, got shape {shape}")
    if not sig.is_floating_point():
        raise ValueError(
            f"{what}, got {sig.dtype}; scale integers to [-1, 1], 16-bit ones with "
            "sig.float() / 32768"
        )
    if sig.dtype != dtype:
        raise ValueError(
            f"{what} in the codec's own precision {dtype}, got {sig.dtype}; "
            f"convert with sig.to({dtype})"
        )


def check_sequence(x: Tensor, lens: Tensor | None, *, name: str, dim: int) -> Tensor | None:
    """Refuse what is no finite (B, N, dim) sequence; its mask (B, N), None without ``lens``.

    Raises
    ------
    ValueError : if a shape does not fit, a real frame is not finite or ``lens`` are no fractions.
    """
    if x.ndim != 3 or x.shape[-1] != dim or x.numel() == 0:
        raise ValueError(
            f"{name} must be (B, frames, {dim}) with at least one frame, got shape {tuple(x.shape)}"
        )
    return check_finite(x, lens, name=name)


def check_finite(x: Tensor, lens: Tensor | None, *, name: str) -> Tensor | None:
    """Refuse values that are not finite before the end of a row; mask (B, N) of what is.

    Parameters
    ----------
    x : (B, N, ...) values.
    lens : (B,) relative lengths; None if nothing is padded, and then the mask is None too.
    name : what the message calls them.

    Raises
    ------
    ValueError : if a value is not finite or ``lens`` are not (B,) fractions in (0, 1].
    """
    mask = None
    finite = x.isfinite()
    if lens is not None:
        _check_lens(lens, x)
        mask = lengths_to_mask(num_valid(lens, x.shape[1]), x.shape[1])
        finite = finite | ~mask.view(*mask.shape, *[1] * (x.ndim - 2))
    if not bool(finite.all()):
        raise ValueError(
            f"{name} holds {int((~finite).sum())} values that are not finite of {x.numel()}; one "
            "of them would change every token: leave the file out or replace them"
        )
    return mask


def check_toks(toks: Tensor) -> None:
    """Refuse what is no batch of tokens; their range is the quantizer's business."""
    if toks.ndim != 2 or toks.numel() == 0:
        raise ValueError(
            f"toks must be (B, L) with at least one token, got shape {tuple(toks.shape)}; "
            "add a batch axis with toks[None]"
        )


def check_num_samples(
    num_samples: int | Tensor | None, mask: Tensor | None, *, like: Tensor, samples_per_step: int
) -> tuple[Tensor | None, Tensor | None]:
    """Refuse more output samples than there are steps for.

    Parameters
    ----------
    num_samples : output samples, an int or (B,) integers; None for all.
    mask : (B, N) bool of the steps to decode; None for all.
    like : (B, N, ...) steps to decode.
    samples_per_step : output samples of one step.

    Returns
    -------
    The number as a tensor, () or (B,), and the mask, which one number per row implies.

    Raises
    ------
    ValueError : if the number is no integer, below 1 or too large.
    """
    if num_samples is None:
        return None, mask
    wanted = torch.as_tensor(num_samples, device=like.device)
    if wanted.is_floating_point() or wanted.shape not in ((), like.shape[:1]):
        raise ValueError(
            f"num_samples must be an integer or ({like.shape[0]},) integers, "
            f"got {wanted.dtype} of shape {tuple(wanted.shape)}"
        )
    steps = torch.tensor(like.shape[1], device=like.device)
    if wanted.ndim and mask is not None:
        steps = mask.sum(dim=1)
    if not bool(((wanted >= 1) & (wanted <= steps * samples_per_step)).all()):
        raise ValueError(
            f"num_samples is {wanted.tolist()} but must be at least 1 and at most "
            f"{(steps * samples_per_step).tolist()}, which is what there is to decode; tokens of "
            "exact_tail=True cover every sample"
        )
    if wanted.ndim and mask is None:
        mask = lengths_to_mask(-(-wanted // samples_per_step), like.shape[1])
    return wanted, mask


def check_interfaces(codec: nn.Module) -> None:
    """Refuse five parts that do not fit each other; ``codec`` is a `focalcodec.FocalCodec`.

    Raises
    ------
    ValueError : if sizes, factors or frame lengths of neighbours differ; the message names both.
    """
    dim = ("encoder.dim", codec.encoder.dim)
    code_dim = ("quantizer.code_dim", codec.quantizer.code_dim)
    neighbours = {
        "compressor.input_dim": (codec.compressor.input_dim, dim),
        "compressor.output_dim": (codec.compressor.output_dim, code_dim),
        "decompressor.input_dim": (codec.decompressor.input_dim, code_dim),
        "decompressor.output_dim": (codec.decompressor.output_dim, dim),
        "decoder.input_dim": (codec.decoder.input_dim, dim),
    }
    for key, (value, (other_key, other)) in neighbours.items():
        if value != other:
            raise ValueError(
                f"{other_key} is {other} but {key} is {value}; take it from the block: "
                f"{key.partition('.')[2]}: !ref <{other_key}>"
            )
    down, up = codec.compressor.downscale_factors, codec.decompressor.upscale_factors
    if math.prod(down) != math.prod(up):
        raise ValueError(
            f"compressor.downscale_factors {list(down)} shorten {math.prod(down)} times but "
            f"decompressor.upscale_factors {list(up)} lengthen {math.prod(up)} times; "
            "the products must agree"
        )
    rate, out_rate = codec.sample_rate, codec.sample_rate_output
    hop_length, out_hop_length = codec.hop_length, codec.decoder.hop_length
    if hop_length * out_rate != out_hop_length * rate:
        raise ValueError(
            f"encoder.hop_length is {hop_length} samples at {rate} Hz but decoder.hop_length "
            f"is {out_hop_length} at {out_rate} Hz; a frame must last equally long in both: "
            f"set decoder.hop_length to {hop_length * out_rate / rate:g}"
        )


def _check_lens(lens: Tensor, x: Tensor) -> None:
    if lens.shape != x.shape[:1]:
        raise ValueError(
            f"lens must be ({x.shape[0]},), one for each row, got shape {tuple(lens.shape)}"
        )
    if not lens.is_floating_point() or not bool(((lens > 0) & (lens <= 1)).all()):
        raise ValueError(
            f"lens must be fractions of the padded length in (0, 1], got {lens.tolist()}; "
            "divide absolute lengths by the size of the time axis"
        )
