"""Blocks of a YAML where they are used: built with sizes, options and weights of their own.

A block file holds explicit numbers and no references, so that it can be swapped by one scalar
include. Sizes that follow from another block (the decoder's input is as wide as the encoder's
features) are therefore passed where the block is used: `build` and `mirror` are for YAMLs, where
HyperPyYAML has no arithmetic.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn


def build(factory: Callable[..., Any], **sizes: Any) -> Any:
    """Call a block's factory (a ``!name:`` mapping) with the sizes that follow from other blocks.

    Raises
    ------
    TypeError : if the block is an object (``!new:``) where a factory is needed, or does not take
        these sizes.
    """
    if not callable(factory) or hasattr(factory, "forward"):
        raise TypeError(
            f"this block must be a factory that takes {', '.join(sizes)}, got the object "
            f"{type(factory).__name__}; start the block file with !name: instead of !new:"
        )
    return factory(**sizes)


def mirror(values: Sequence[Any]) -> list[Any]:
    """Reversed copy: the decompressor mirrors the compressor (paper, appendix D.1)."""
    return list(reversed(values))


def load_codec(hparams: Mapping[str, Any]) -> nn.Module:
    """Codec (`recipes.codecs.codec.Codec`) with its weights.

    Parameters
    ----------
    hparams : with ``codec``, ``codec_options``, and ``codec_checkpoint`` in place of the block's
        own weights.

    Raises
    ------
    ValueError : if the block takes no such options.
    """
    options = dict(hparams["codec_options"])
    if hparams["codec_checkpoint"] is not None:
        options["checkpoint"] = hparams["codec_checkpoint"]
    check_options(hparams["codec"], options, key="codec_options")
    return hparams["codec"](**options)


def prepare_dataset(
    hparams: Mapping[str, Any], save_folder: str | PathLike[str], **limits: Any
) -> None:
    """Call the dataset block of a task, which writes manifests.

    Parameters
    ----------
    hparams : with ``dataset``, ``dataset_options``, ``data_folder``, ``min_duration_s``,
        ``max_duration_s`` and ``on_bad_file``.
    save_folder : receives the manifests.
    limits : further arguments that keys of the YAML give.

    Raises
    ------
    ValueError : if the block takes no such options; and what it raises itself.
    """
    taken = {
        "data_folder": hparams["data_folder"],
        "min_duration_s": hparams["min_duration_s"],
        "max_duration_s": hparams["max_duration_s"],
        "on_bad_file": hparams["on_bad_file"],
        **limits,
    }
    options = dict(hparams["dataset_options"])
    check_options(hparams["dataset"], options, key="dataset_options", taken=taken)
    hparams["dataset"](save_folder=save_folder, **taken, **options)


def check_options(
    factory: Callable[..., Any], options: Mapping[str, Any], *, key: str, taken: Iterable[str] = ()
) -> None:
    """Raise ValueError if a block's function has no such arguments, or they are keys of the YAML.

    Parameters
    ----------
    factory : the block.
    options : further arguments.
    key : of the YAML that holds them.
    taken : arguments that keys of their own give.
    """
    if given := set(options) & set(taken):
        raise ValueError(f"{', '.join(sorted(given))} in {key} are keys of the YAML: --KEY=VALUE")
    try:
        inspect.signature(factory).bind_partial(**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(factory).parameters)
        raise ValueError(f"{key} {options}: {error}; the block takes {known}") from error
