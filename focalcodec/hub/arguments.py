"""Constructor arguments that come from a stranger's JSON: their names, types and ranges.

What a constructor takes is read from its annotations. Every number gets a range, wide enough for
any codec, so that no configuration can ask for more modules than there is time to make, or for
shapes that overflow.
"""

import inspect
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

Where = str | os.PathLike[str]  # where a configuration comes from, for messages

_LARGEST = 2**20
_MOST_MODULES = 256  # of one kind
_MOST_ENTRIES = 16  # of a list: modules are made for each pair of entries of some
# Arguments whose range is not 1 (whole numbers) or -_LARGEST (other numbers) to _LARGEST.
_RANGES = {
    "codebook_size": (2, 2**62),
    "dilations": (1, 2**10),
    "dropout": (0, 1),
    "factor": (0, _LARGEST),
    "focal_factor": (0, _LARGEST),
    "focal_level": (1, _MOST_MODULES),
    "last_window_size": (1, 2**15),
    "levels": (3, 1000),
    "level": (1, _MOST_MODULES),
    "lookahead_size": (0, 2**10),
    "n_fft": (1, 2**16),  # with n_mels it bounds the filters of LogMel, which no file holds
    "n_mels": (1, 2**10),
    "num_layers": (0, _MOST_MODULES),
    "pool_size": (1, 2**15),
    "resblock_dilations": (1, 2**10),
    "upsample_factors": (1, 2**10),
    "upsample_kernel_sizes": (1, 2**11),
    "window_size": (1, 2**15),
}
_REPR = reprlib.Repr()
_REPR.maxstring = 80


def kinds_of(cls: type) -> dict[str, Any]:
    """Annotations of a constructor's arguments by name."""
    return {name: p.annotation for name, p in inspect.signature(cls).parameters.items()}


def defaults_of(cls: type) -> dict[str, Any]:
    """Default values of a constructor's arguments by name; those without one are not there."""
    parameters = inspect.signature(cls).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def check_arguments(
    arguments: Any, kinds: Mapping[str, Any], *, key: str, where: Where
) -> dict[str, Any]:
    """Refuse what is no JSON object, or has an unknown key or a value of another type or range.

    Parameters
    ----------
    arguments : what stands under ``key``.
    kinds : name -> annotation of every argument that may be there: int, float, bool, a sequence of
        int, one of these or None; or Any, for what is checked elsewhere or nowhere.
    key : where the arguments stand, such as ``encoder_config``.
    where : where the configuration comes from; every message names it.

    Returns
    -------
    The arguments, as a new dictionary.

    Raises
    ------
    ValueError : naming the key, what it holds and what it may hold.
    """
    if not isinstance(arguments, dict):
        raise ValueError(f"{key} of {where} must be a JSON object, got {shown(arguments)}")
    if unknown := sorted(set(arguments) - set(kinds)):
        raise ValueError(
            f"{key} of {where} has the unknown key {shown(unknown[0])}; known are {listed(kinds)}"
        )
    for name, value in arguments.items():
        if not _fits(value, kinds[name], name=name):
            raise ValueError(
                f"{key}.{name} of {where} must be {_needed(kinds[name], name=name)}, "
                f"got {shown(value)}"
            )
    return dict(arguments)


def shown(value: Any) -> str:
    """One short line for a value that may be of any size."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"{type(value).__name__} of too many digits"


def listed(names: Iterable[str]) -> str:
    """Names in order, for messages."""
    return ", ".join(sorted(names))


def _fits(value: Any, kind: Any, *, name: str) -> bool:
    if kind is Any:
        return True
    if isinstance(kind, UnionType):
        return any(_fits(value, one, name=name) for one in get_args(kind))
    if kind in (bool, NoneType):
        return isinstance(value, kind)
    if get_origin(kind) is Sequence:
        fits = isinstance(value, list | tuple) and len(value) <= _MOST_ENTRIES
        return fits and all(_fits(entry, *get_args(kind), name=name) for entry in value)
    low, high = _range(kind, name=name)
    is_number = isinstance(value, int | kind) and not isinstance(value, bool)
    return is_number and low <= value <= high


def _needed(kind: Any, *, name: str) -> str:
    """Say what `_fits` asks for."""
    if isinstance(kind, UnionType):
        return " or ".join(_needed(one, name=name) for one in get_args(kind))
    if kind in (bool, NoneType):
        return "true or false" if kind is bool else "null"
    if get_origin(kind) is Sequence:
        return f"a list of at most {_MOST_ENTRIES}, each {_needed(*get_args(kind), name=name)}"
    low, high = _range(kind, name=name)
    return f"a{' whole' if kind is int else ''} number from {low} to {high}"


def _range(kind: type, *, name: str) -> tuple[int, int]:
    return _RANGES.get(name, (1 if kind is int else -_LARGEST, _LARGEST))
