"""Packed weights: 16 or 8 bits a weight, for live speech on a CPU.

A chunk of a stream is a few frames, and each needs all weights of the codec: reading them from
memory is what takes the time. Packed, they are a half or a quarter of that, and the matrix products
of PyTorch's quantized backends are made for few rows. Activations stay in float32 with "float16";
with "int8" they are quantized for each product, to 8 bits.

Only products are packed: attention, depthwise convolutions, normalization and the quantizer stay as
they are, in float32.
"""

import warnings

import torch
from torch import nn

from focalcodec.codec import FocalCodec
from focalcodec.linear_map import LinearMap

PRECISIONS = {"float16": torch.float16, "int8": torch.qint8}


def pack(codec: FocalCodec, *, precision: str) -> FocalCodec:
    """Pack the weights of a codec, in place; it then serves inference on this CPU only.

    Parameters
    ----------
    codec : in float32, on the CPU.
    precision : "float16" or "int8".

    Returns
    -------
    The same codec.

    Raises
    ------
    ValueError : if the precision is another one, or the codec is not in float32 on the CPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    weight = next(codec.decompressor.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"weights are packed from float32 on the CPU, got {weight.dtype} on {weight.device}; "
            "load the codec anew"
        )
    dtype = PRECISIONS[precision]
    for name in ("encoder", "compressor", "decompressor", "decoder"):
        part = getattr(codec, name)
        for module in list(part.modules()):
            if isinstance(module, LinearMap) and module.packable:
                module.pack(_packed(_linear(module), dtype))
        _quantize(part, dtype)
    return codec


def _linear(module: LinearMap) -> nn.Linear:
    weight, bias = module.matrix()
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data, linear.bias.data = weight.detach().contiguous(), bias.detach()
    return linear


def _packed(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    return _quantize(nn.Sequential(linear), dtype)[0]


def _quantize(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let PyTorch's quantized classes take the place of all ``nn.Linear`` inside."""
    with warnings.catch_warnings():
        # PyTorch announces their move to the package torchao.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)
        return torch.ao.quantization.quantize_dynamic(
            module, {nn.Linear}, dtype=dtype, inplace=True
        )
