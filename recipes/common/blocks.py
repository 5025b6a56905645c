"""Two functions that a YAML calls where it needs arithmetic that HyperPyYAML has not.

A block file holds explicit numbers and no references, so that it can be swapped by one scalar
include. Sizes that follow from another block (the decoder's input is as wide as the encoder's
features) are therefore passed where the block is used.
"""

from collections.abc import Callable, Sequence
from typing import Any


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
