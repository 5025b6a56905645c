"""Checkpoints of codecs and encoders, on disk and on the Hugging Face hub.

``files`` finds, reads and writes them; ``config`` turns config.json into parts and back, by the
names, types and ranges of ``arguments``; ``weights`` reads tensors and checks that they fit;
``legacy`` and ``encoder`` know the names that weights have elsewhere. Names and keys of published
checkpoints are translated in this folder and nowhere else.
"""

from focalcodec.hub.config import constructor_arguments, fingerprint
from focalcodec.hub.files import load_encoder_weights, load_parts, save_parts
from focalcodec.hub.weights import load_strict

__all__ = [
    "constructor_arguments",
    "fingerprint",
    "load_encoder_weights",
    "load_parts",
    "load_strict",
    "save_parts",
]
