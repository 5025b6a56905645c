"""Short hashes that tell whether two modules have the same weights, or give the same features."""

import hashlib
from typing import Any

import torch

from focalcodec import hub


def fingerprint(encoder: torch.nn.Module) -> str:
    """Short hash of an encoder's class, arguments and weights; equal for equal features."""
    digest = hashlib.sha256(type(encoder).__name__.encode())
    digest.update(repr(sorted(hub.constructor_arguments(encoder).items())).encode())
    _update(digest, encoder)
    return digest.hexdigest()[:16]


def weights_hash(module: torch.nn.Module) -> str:
    """Short hash of a module's class and weights alone, for modules of any package."""
    digest = hashlib.sha256(type(module).__name__.encode())
    _update(digest, module)
    return digest.hexdigest()[:16]


def _update(digest: Any, module: torch.nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        bytes_of = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bytes_of.numpy().tobytes())
