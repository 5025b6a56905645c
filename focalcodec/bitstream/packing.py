"""Tokens and bytes: the payload that files and packets share.

Tokens follow each other without gaps, each most significant bit first, and fill every byte from
its most significant bit on. The last byte is completed with zero bits.
"""

import torch
from torch import Tensor

from focalcodec.bitstream.errors import LengthError
from focalcodec.bitstream.fields import MAX_BITS, ceil_div, check_count

BLOCK = 2**14  # tokens that are (un)packed at a time; a multiple of 8, so that they fill bytes
NO_BITS = torch.empty(0, dtype=torch.int64, device="cpu")


def pack(toks: Tensor, *, bits: int) -> bytes:
    """Payload of tokens, ceil(L x bits / 8) bytes.

    Parameters
    ----------
    toks : (L,) of any integer dtype, in [0, 2^bits).
    bits : per token, 1 to 32.

    Raises
    ------
    ValueError : if ``toks`` is no (L,) tensor of integers in range.
    HeaderError : if ``bits`` is out of range.
    """
    payload, rest = pack_bits(checked_toks(toks, bits), NO_BITS, bits)
    return payload + last_byte(rest)


def unpack(payload: bytes, *, bits: int, count: int | None = None) -> Tensor:
    """Tokens (L,) int64 of a payload.

    Parameters
    ----------
    payload : bytes as `pack` gives them.
    bits : per token, 1 to 32.
    count : L; None for all whole tokens, of which the last ones may be padding below 8 bits.

    Raises
    ------
    LengthError : if ``payload`` is not as long as that of ``count`` tokens.
    HeaderError : if ``bits`` is out of range.
    """
    check_count("bits", bits, largest=MAX_BITS)
    if count is None:
        count = 8 * len(payload) // bits
    elif len(payload) != (needed := ceil_div(count * bits, 8)):
        raise LengthError(
            f"payload of {count} tokens of {bits} bits must be {needed} bytes, got {len(payload)}"
        )
    toks, size = [NO_BITS], BLOCK * bits // 8
    for start in range(0, len(payload), size):
        values = torch.tensor(list(payload[start : start + size]), device="cpu")
        toks.append(_from_bits(_to_bits(values, 8), bits))
    return torch.cat(toks)[:count]


def pack_bits(toks: Tensor, rest: Tensor, bits: int) -> tuple[bytes, Tensor]:
    """Whole bytes of the bits ``rest`` and the tokens after them, and the bits that are left."""
    payload = bytearray()
    for block in toks.split(BLOCK):
        stream = torch.cat([rest, _to_bits(block, bits)])
        payload += bytes(_from_bits(stream, 8).tolist())
        rest = stream[stream.numel() // 8 * 8 :].clone()
    return bytes(payload), rest


def last_byte(rest: Tensor) -> bytes:
    """At most 7 bits, completed with zeros; nothing if there are none."""
    return bytes(_from_bits(torch.cat([rest, rest.new_zeros(-rest.numel() % 8)]), 8).tolist())


def checked_toks(toks: Tensor, bits: int) -> Tensor:
    """Tokens (L,) int64 on the CPU; errors of `pack`."""
    check_count("bits", bits, largest=MAX_BITS)
    if toks.ndim != 1:
        raise ValueError(
            f"toks must be (L,), got shape {tuple(toks.shape)}; take a row of a batch with toks[b]"
        )
    if toks.is_floating_point() or toks.is_complex() or toks.dtype == torch.bool:
        raise ValueError(f"toks must be integers, got {toks.dtype}; convert with toks.long()")
    toks = toks.cpu().long()
    if toks.numel() and not 0 <= int(toks.min()) <= int(toks.max()) < 2**bits:
        raise ValueError(
            f"toks must be in [0, {2**bits}) with {bits} bits, got {int(toks.min())} to "
            f"{int(toks.max())}; were they made with another codebook?"
        )
    return toks


def _to_bits(values: Tensor, width: int) -> Tensor:
    """(L x width,) bits, 0 or 1, of (L,) values, most significant first."""
    return (values[:, None] >> _shifts(width)).bitwise_and_(1).flatten()


def _from_bits(stream: Tensor, width: int) -> Tensor:
    """(L,) values of the first L x width bits, as many as there are whole ones."""
    count = stream.numel() // width
    return (stream[: count * width].view(count, width) << _shifts(width)).sum(dim=1)


def _shifts(width: int) -> Tensor:
    return torch.arange(width - 1, -1, -1, device="cpu")
