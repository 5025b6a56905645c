"""Short hashes that tell whether two encoders give the same features."""

import hashlib

import torch

from focalcodec import hub


def fingerprint(encoder: torch.nn.Module) -> str:
    """Short hash of an encoder's class, arguments and weights; equal for equal features."""
    digest = hashlib.sha256(type(encoder).__name__.encode())
    digest.update(repr(sorted(hub.constructor_arguments(encoder).items())).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
