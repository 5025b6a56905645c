"""What the formats share about the numbers in their fields."""

from focalcodec.bitstream.errors import HeaderError

MAX_BITS = 32  # per token


def check_count(name: str, value: object, *, largest: int) -> None:
    """Refuse what is no integer from 1 to ``largest``.

    Raises
    ------
    HeaderError : naming ``name``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise HeaderError(f"{name} must be an integer from 1 to {largest}, got {value!r}")


def check_range(name: str, value: int, smallest: int, largest: int) -> None:
    """Refuse an argument that is no integer from ``smallest`` to ``largest``.

    Raises
    ------
    ValueError : naming ``name``.
    """
    if not isinstance(value, int) or not smallest <= value <= largest:
        raise ValueError(f"{name} must be an integer from {smallest} to {largest}, got {value!r}")


def ceil_div(a: int, b: int) -> int:
    """Quotient of integers, rounded up."""
    return -(-a // b)
