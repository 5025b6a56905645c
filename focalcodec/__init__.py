"""FocalCodec: speech as one stream of binary tokens.

``FocalCodec.from_pretrained(folder_or_hub_id)`` gives a codec for inference, ``FocalCodec(...)``
assembles one from its five parts. ``codec.py`` holds the glossary of shapes.
"""

from focalcodec.codec import FocalCodec
from focalcodec.quantizers import Quantized

__version__ = "0.1.0"
__all__ = ["FocalCodec", "Quantized", "__version__"]
