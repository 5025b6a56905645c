"""A causal codec's stream written the plain way, to be measured beside `focalcodec.stream`.

The same arithmetic on the same weights as the published implementation arranges it: contexts and
keys are concatenated anew for every chunk, the relative bias is cut from a table of all pairs of
positions, convolutions are PyTorch's own, weights are read in full precision. One stream, whole
chunks of a codec whose factors are 1 and whose decoder is WaveNeXt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec import FocalCodec


class PlainStream:
    """One stream; ``encode`` takes a chunk (1, chunk_size), ``decode`` its tokens.

    Parameters
    ----------
    codec : causal, in float32.
    """

    def __init__(self, codec: FocalCodec) -> None:
        self.codec = codec
        self.window = codec.encoder.window_size
        self.chunk = codec.encoder.chunk_frames
        self._contexts: dict[nn.Module, Tensor] = {}
        self._keys: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        position = torch.arange(self.window)
        values = codec.encoder.encoder._relative_values
        self._table = values(position - position[:, None])  # (H, W, W)

    @torch.no_grad()
    def encode(self, sig: Tensor) -> Tensor:
        """Tokens (1, C) of a chunk."""
        encoder = self.codec.encoder
        x = sig[:, None]  # (1, 1, T)
        for layer in encoder.feature_extractor.layers:
            x = F.conv1d(self._extend(x, layer), layer.conv.weight, stride=layer.stride)
            x = F.gelu(layer.norm(x.transpose(1, 2))).transpose(1, 2)
        x = encoder.feature_proj(encoder.norm(x.transpose(1, 2)))
        conv = encoder.encoder.positional_embedding.conv
        x = x + F.gelu(self._convolve(x, conv))
        for layer in encoder.encoder.layers:
            x = x + self._attend(layer.attention_norm(x), layer.attention)
            fed = layer.feed_forward
            x = x + fed.out_proj(F.gelu(fed.in_proj(layer.feed_forward_norm(x))))
        for layer in self.codec.compressor.layers:
            scale = layer["downscale"]
            x = F.conv1d(x.transpose(1, 2), scale.downscale.weight, scale.downscale.bias)
            x = self._focal(scale.activation(x).transpose(1, 2), layer["focal_block"])
        return self.codec.quantizer(self.codec.compressor.out_proj(x)).toks

    @torch.no_grad()
    def decode(self, toks: Tensor) -> Tensor:
        """Signal (1, T) of the tokens of a chunk."""
        decompressor, decoder = self.codec.decompressor, self.codec.decoder
        x = decompressor.in_proj(self.codec.toks_to_codes(toks))
        for layer in decompressor.layers:
            scale = layer["upscale"]
            x = scale.activation(self._focal(x, layer["focal_block"]).transpose(1, 2))
            x = F.conv_transpose1d(x, scale.upscale.weight, scale.upscale.bias).transpose(1, 2)
        if decompressor.refiner is not None:
            x = decompressor.refiner(x)
        backbone = decoder.backbone
        x = backbone.input_norm(self._convolve(x, backbone.embedding, fill="zeros"))
        for layer in backbone.layers:
            y = layer.norm(self._convolve(x, layer.dwconv, fill="zeros"))
            x = x + layer.gamma * layer.pwconv2(F.gelu(layer.pwconv1(y)))
        return decoder.head(backbone.output_norm(x))

    def _extend(self, x: Tensor, owner: nn.Module, *, fill: str = "replicate") -> Tensor:
        """(1, C, N) with the context of a convolution in front of it."""
        conv = getattr(owner, "conv", owner)
        size = conv.kernel_size[0] - 1
        if owner not in self._contexts:
            first = x[:, :, :1].expand(-1, -1, size)
            self._contexts[owner] = first if fill == "replicate" else torch.zeros_like(first)
        x = torch.cat([self._contexts[owner], x], dim=2)
        self._contexts[owner] = x[:, :, x.shape[2] - size :]
        return x

    def _convolve(self, x: Tensor, conv: nn.Conv1d, *, fill: str = "replicate") -> Tensor:
        x = self._extend(x.transpose(1, 2), conv, fill=fill)
        return F.conv1d(x, conv.weight, conv.bias, groups=conv.groups).transpose(1, 2)

    def _attend(self, x: Tensor, attention: nn.Module) -> Tensor:
        query, key, value = (
            part.transpose(1, 2)
            for part in attention.qkv_proj(x).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        )
        if attention in self._keys:
            old_key, old_value = self._keys[attention]
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
            key, value = key[:, :, -self.window :], value[:, :, -self.window :]
        self._keys[attention] = key, value
        size = key.shape[2]
        bias = attention.gate(x) * self._table[:, size - x.shape[1] : size, :size]
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return attention.out_proj(y.transpose(1, 2).flatten(2))

    def _focal(self, x: Tensor, block: nn.Module) -> Tensor:
        modulation = block.modulation
        y = modulation.in_proj(block.modulation_norm(x))
        dims = [modulation.dim, modulation.dim, modulation.level + 1]
        query, context, gates = y.split(dims, dim=-1)
        total = 0
        for i, (conv, _) in enumerate(modulation.layers):
            context = F.gelu(self._convolve(context, conv))
            total = total + context * gates[..., i : i + 1]
        proj = modulation.context_proj
        total = F.conv1d(total.transpose(1, 2), proj.weight, proj.bias).transpose(1, 2)
        x = x + modulation.out_proj(query * total)
        return x + block.feed_forward(block.feed_forward_norm(x))
