"""Cutting work into blocks whose intermediate tensors stay small."""

import math
from collections.abc import Iterator

import torch

# Floats of a block's largest intermediate tensor: 16 MiB, about what stays in a CPU's cache and in
# memory that the allocator keeps, or 1 GiB on a device.
BLOCK_FLOATS_CPU = 2**22
BLOCK_FLOATS_DEVICE = 2**28


def blocks(*shape: int, floats_per_step: int, device: torch.device) -> Iterator[tuple[slice, ...]]:
    """Cut the leading axes of a tensor, whose steps are independent, into blocks in memory order.

    Faster on a CPU, and memory stays bounded everywhere. A compiled graph gets one block, as the
    number of blocks would tie it to one length.

    Parameters
    ----------
    shape : sizes of the axes; the last is cut only into 16 steps or more.
    floats_per_step : size of the largest intermediate tensor, per step along all of the axes.
    device : where the tensor is.

    Yields
    ------
    One slice for each axis.
    """
    if torch.compiler.is_compiling():
        yield tuple(slice(0, size) for size in shape)
        return
    size, *rest = shape
    budget = BLOCK_FLOATS_CPU if device.type == "cpu" else BLOCK_FLOATS_DEVICE
    step = max(budget // (floats_per_step * math.prod(rest)), 1 if rest else 16)
    for start in range(0, size, step):
        block = slice(start, min(start + step, size))
        if not rest:
            yield (block,)
            continue
        floats_per_block = floats_per_step * (block.stop - block.start)
        for inner in blocks(*rest, floats_per_step=floats_per_block, device=device):
            yield block, *inner
