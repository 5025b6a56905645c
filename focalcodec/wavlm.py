"""WavLM encoder: raw speech to 50 Hz features, the first stage of the codec (sig -> feats).

The codec keeps the first 6 of WavLM-large's 24 layers, frozen: seven strided convolutions, a
projection, a convolutional positional embedding and pre-norm Transformer layers whose attention
carries a gated relative position bias [1]_. No waveform normalisation comes before and no LayerNorm
after, as in the published codec [2]_.

References
----------
.. [1] Chen et al., 2022, "WavLM", arXiv:2110.13900, section III.
.. [2] Della Libera et al., 2025, "FocalCodec", arXiv:2502.04465, appendix D.1.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.fastconv import conv_by_spectra, conv_in_pairs, is_plain_cpu
from focalcodec.masking import check_sig, lengths_to_mask, num_valid


class WavLM(nn.Module):
    """First layers of WavLM with full context.

    The defaults are those of WavLM-large cut to 6 layers; parameter names are those of the
    published codecs.

    Parameters
    ----------
    hidden_dims, kernel_sizes, strides : channels, taps and strides of the convolutions, one entry
        per convolution.
    num_layers : number of Transformer layers.
    dim : channels of the features.
    ffn_dim : hidden channels of the feed-forward networks.
    num_heads : attention heads; must divide ``dim``.
    num_buckets : entries of the relative position table, half of them for each direction.
    max_distance : distance in frames from which on all distances share the last bucket.
    dropout : dropout probability in training mode.
    conv_pos : taps of the positional convolution.
    conv_pos_groups : groups of the positional convolution; must divide ``dim``.

    Attributes
    ----------
    sample_rate : sample rate of the input in Hz.
    hop_length : samples per frame.

    Raises
    ------
    ValueError : if the arguments do not fit each other.
    """

    sample_rate = 16000

    def __init__(
        self,
        *,
        hidden_dims: Sequence[int] = (512,) * 7,
        kernel_sizes: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        num_layers: int = 6,
        dim: int = 1024,
        ffn_dim: int = 4096,
        num_heads: int = 16,
        num_buckets: int = 320,
        max_distance: int = 800,
        dropout: float = 0.0,
        conv_pos: int = 128,
        conv_pos_groups: int = 16,
    ) -> None:
        super().__init__()
        if not 0 < len(hidden_dims) == len(kernel_sizes) == len(strides):
            raise ValueError(
                "hidden_dims, kernel_sizes and strides need one entry per convolution, got "
                f"{len(hidden_dims)}, {len(kernel_sizes)} and {len(strides)}"
            )
        if dim % num_heads or dim % conv_pos_groups:
            raise ValueError(
                f"dim must be a multiple of num_heads and of conv_pos_groups, "
                f"got {dim}, {num_heads} and {conv_pos_groups}"
            )
        if num_buckets % 4 or max_distance <= num_buckets // 4:
            raise ValueError(
                "num_buckets must be a multiple of 4 and max_distance larger than num_buckets / 4, "
                f"got {num_buckets} and {max_distance}"
            )
        self.hidden_dims = tuple(hidden_dims)
        self.kernel_sizes = tuple(kernel_sizes)
        self.strides = tuple(strides)
        self.num_layers = num_layers
        self.dim = dim
        self.ffn_dim = ffn_dim
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.dropout = dropout
        self.conv_pos = conv_pos
        self.conv_pos_groups = conv_pos_groups
        self.hop_length = math.prod(self.strides)

        self.feature_extractor = _FeatureExtractor(hidden_dims, kernel_sizes, strides)
        self.norm = nn.LayerNorm(hidden_dims[-1])
        self.feature_proj = nn.Linear(hidden_dims[-1], dim)
        self.encoder = _Transformer(
            _PositionalEmbedding(dim, conv_pos, conv_pos_groups),
            nn.Embedding(num_buckets, num_heads),
            [_TransformerLayer(dim, ffn_dim, num_heads, dropout) for _ in range(num_layers)],
            max_distance=max_distance,
        )

    def forward(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Compute the features of a batch of waveforms.

        With ``lens``, whatever lies beyond an item's end is ignored, zero or not (even NaN): each
        item gets the features that it has alone. Without, the whole tensor is signal, as in the
        published codec.

        Parameters
        ----------
        sig : (B, T) waveforms at ``sample_rate``; their level matters, as it is not normalised.
        lens : (B,) relative lengths in (0, 1].

        Returns
        -------
        (B, ``num_frames(T)``, ``dim``) features; with ``lens``, frames beyond an item's own
        ``num_frames(round(lens * T))`` are 0.

        Raises
        ------
        ValueError : if ``sig`` is not (B, T) floating point or ``lens`` not (B,).
        """
        check_sig(sig, sample_rate=self.sample_rate, lens=lens)
        lengths = None if lens is None else num_valid(lens, sig.shape[1])
        if lengths is not None and sig.device.type == "cpu" and not torch.compiler.is_compiling():
            padding = sig.shape[1] - lengths.double().mean().item()
            if padding > _ROW_SAMPLES:
                return self._row_by_row(sig, lengths=lengths)
            if padding == 0:
                lengths = None
        return self._batch(sig, lengths=lengths)

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames that ``forward`` gives for a number of samples: at least one."""
        return self.feature_extractor.num_frames(num_samples)

    def num_samples(self, num_frames: int | Tensor) -> int | Tensor:
        """Fewest samples that fill a number of frames.

        ``num_frames(num_samples(n)) == n`` for n >= 1. A single frame also comes from fewer samples
        than this: they are extended by zeros.
        """
        return self.feature_extractor.num_samples(num_frames)

    def _batch(self, sig: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Features of (B, T) waveforms; ``lengths`` (B,) in samples, None for all of them whole."""
        x = self.feature_proj(self.norm(self.feature_extractor(sig, lengths=lengths)))
        x = F.dropout(x, self.dropout, self.training)
        mask = None if lengths is None else lengths_to_mask(self.num_frames(lengths), x.shape[1])
        return self.encoder(x, mask=mask)

    def _row_by_row(self, sig: Tensor, *, lengths: Tensor) -> Tensor:
        """Do what `_batch` does, without working on padding."""
        size = self.num_frames(sig.shape[1])
        feats = [
            self._batch(row[None, :length])[0]
            for row, length in zip(sig, lengths.tolist(), strict=True)
        ]
        return torch.stack([F.pad(x, (0, 0, 0, size - x.shape[0])) for x in feats])


def state_dict_from_transformers(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """State dict of ``WavLM`` from that of a WavLM in transformers.

    Written for ``microsoft/wavlm-large`` and models of its kind (feature-extractor norm "layer", no
    convolution bias, stable layer norm). The weight norm of the positional convolution is folded,
    in its older spelling (``weight_g``, ``weight_v``) or the newer (``parametrizations``); query,
    key and value projections become one.

    Parameters
    ----------
    state : state dict of ``WavLMModel`` or, with the prefix ``wavlm.``, of a model built on one.
    num_layers : Transformer layers to keep; later layers and unused tensors are dropped.

    Returns
    -------
    State dict for ``WavLM(...).load_state_dict``, without copies where none are needed.

    Raises
    ------
    KeyError : if a tensor is missing; the message names it.
    ValueError : if the convolutions have biases, which ``WavLM`` has no place for.
    """
    prefix = "wavlm." if any(key.startswith("wavlm.") for key in state) else ""
    conv = f"{prefix}feature_extractor.conv_layers."
    if any(key.startswith(conv) and key.endswith(".conv.bias") for key in state):
        raise ValueError(
            "feature extractor convolutions with bias are not supported; "
            "a WavLM of the kind of microsoft/wavlm-large is needed"
        )
    num_convs = sum(key.startswith(conv) and key.endswith(".conv.weight") for key in state) or 1

    def take(key: str) -> Tensor:
        if prefix + key not in state:
            raise KeyError(
                f"{prefix}{key} is missing from the state dict; a WavLM of the kind of "
                f"microsoft/wavlm-large with at least {num_layers} layers is needed"
            )
        return state[prefix + key]

    mapped = {}
    for ours, theirs in _module_names(num_convs, num_layers).items():
        for kind in ("weight", "bias"):
            mapped[f"{ours}.{kind}"] = take(f"{theirs}.{kind}")
    for i in range(num_convs):
        mapped[f"feature_extractor.layers.{i}.conv.weight"] = take(
            f"feature_extractor.conv_layers.{i}.conv.weight"
        )
    for i in range(num_layers):
        attention = f"encoder.layers.{i}.attention"
        mapped[f"{attention}.gru_rel_pos_const"] = take(f"{attention}.gru_rel_pos_const")
        for kind in ("weight", "bias"):
            qkv = [take(f"{attention}.{part}_proj.{kind}") for part in "qkv"]
            mapped[f"{attention}.qkv_proj.{kind}"] = torch.cat(qkv)
    mapped["encoder.relative_embedding.weight"] = take(
        "encoder.layers.0.attention.rel_attn_embed.weight"
    )

    conv = "encoder.pos_conv_embed.conv"
    if f"{prefix}{conv}.weight_g" in state:
        magnitude, direction = take(f"{conv}.weight_g"), take(f"{conv}.weight_v")
    else:
        magnitude = take(f"{conv}.parametrizations.weight.original0")
        direction = take(f"{conv}.parametrizations.weight.original1")
    # One magnitude per tap: the norm runs over output and input channels.
    norm = direction.norm(dim=(0, 1), keepdim=True)
    mapped["encoder.positional_embedding.conv.weight"] = direction * (magnitude / norm)
    mapped["encoder.positional_embedding.conv.bias"] = take(f"{conv}.bias")
    return mapped


def _module_names(num_convs: int, num_layers: int) -> dict[str, str]:
    """Names of modules with weight and bias: ours to those in transformers."""
    names = {
        "norm": "feature_projection.layer_norm",
        "feature_proj": "feature_projection.projection",
    }
    for i in range(num_convs):
        names[f"feature_extractor.layers.{i}.norm"] = (
            f"feature_extractor.conv_layers.{i}.layer_norm"
        )
    for i in range(num_layers):
        layer = f"encoder.layers.{i}"
        names[f"{layer}.attention_norm"] = f"{layer}.layer_norm"
        names[f"{layer}.attention.gru_rel_pos_linear"] = f"{layer}.attention.gru_rel_pos_linear"
        names[f"{layer}.attention.out_proj"] = f"{layer}.attention.out_proj"
        names[f"{layer}.feed_forward_norm"] = f"{layer}.final_layer_norm"
        names[f"{layer}.feed_forward.in_proj"] = f"{layer}.feed_forward.intermediate_dense"
        names[f"{layer}.feed_forward.out_proj"] = f"{layer}.feed_forward.output_dense"
    return names


def _relative_bucket(distance: Tensor, *, num_buckets: int, max_distance: int) -> Tensor:
    """Row of the relative position table for each distance (key - query), in frames.

    Each direction has half of the rows: the nearer half of those for one distance each, the others
    for logarithmically growing ranges, the last one for everything from ``max_distance`` on.
    """
    half = num_buckets // 2
    exact = half // 2
    magnitude = distance.abs()
    # float32 on purpose: the borders of the logarithmic buckets are those of float32 arithmetic.
    ratio = torch.log(magnitude.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + ratio * (half - exact)).long().clamp(max=half - 1)
    return torch.where(magnitude < exact, magnitude, far) + half * (distance > 0)


# Floats of a block's largest intermediate tensor: 16 MiB, about what stays in a CPU's cache and in
# memory that the allocator keeps, or 1 GiB on a device.
_BLOCK_FLOATS_CPU = 2**22
_BLOCK_FLOATS_DEVICE = 2**28

# Mean padding, in samples, from which on a CPU goes through a batch row by row: a quarter of a
# second of signal costs about as much as reading all weights once more.
_ROW_SAMPLES = 4000


def _blocks(*shape: int, floats_per_step: int, device: torch.device) -> Iterator[tuple[slice, ...]]:
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
    budget = _BLOCK_FLOATS_CPU if device.type == "cpu" else _BLOCK_FLOATS_DEVICE
    step = max(budget // (floats_per_step * math.prod(rest)), 1 if rest else 16)
    for start in range(0, size, step):
        block = slice(start, min(start + step, size))
        if not rest:
            yield (block,)
            continue
        floats_per_block = floats_per_step * (block.stop - block.start)
        for inner in _blocks(*rest, floats_per_step=floats_per_block, device=device):
            yield block, *inner


class _FeatureExtractor(nn.Module):
    """Strided convolutions, (B, T) samples to (B, N, C) frames."""

    def __init__(
        self, hidden_dims: Sequence[int], kernel_sizes: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.hop_length = 1
        self.receptive_field = 1
        self.layers = nn.ModuleList()
        input_dim = 1
        for hidden_dim, kernel_size, stride in zip(hidden_dims, kernel_sizes, strides, strict=True):
            self.layers.append(_ConvLayer(input_dim, hidden_dim, kernel_size, stride))
            self.receptive_field += (kernel_size - 1) * self.hop_length
            self.hop_length *= stride
            input_dim = hidden_dim
        # The first layer's result is the largest tensor by far.
        self.floats_per_frame = hidden_dims[0] * self.hop_length // strides[0]

    def forward(self, sig: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Frames of (B, T) waveforms; ``lengths`` (B,) in samples, None for all of them whole."""
        if lengths is not None:
            sig = sig.masked_fill(~lengths_to_mask(lengths, sig.shape[1]), 0)
        shape = (sig.shape[0], self.num_frames(sig.shape[1]))
        kernels = [layer.kernel() if is_plain_cpu(sig) else None for layer in self.layers]
        frames = []
        for items, steps in _blocks(
            *shape, floats_per_step=self.floats_per_frame, device=sig.device
        ):
            x = sig[items, steps.start * self.hop_length :]
            x = x[:, : self.num_samples(steps.stop - steps.start)]
            # Only the first frame of an item can reach beyond the item's end.
            reaches_end = lengths is not None and steps.start == 0
            x = self._stack(x, kernels=kernels, lengths=lengths[items] if reaches_end else None)
            frames.append(x.flatten(0, 1))
        return torch.cat(frames).unflatten(0, shape)

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        frames = (num_samples - self.receptive_field) // self.hop_length + 1
        return frames.clamp(min=1) if isinstance(frames, Tensor) else max(frames, 1)

    def num_samples(self, num_frames: int | Tensor) -> int | Tensor:
        return (num_frames - 1) * self.hop_length + self.receptive_field

    def _stack(
        self, sig: Tensor, *, kernels: Sequence[Tensor | None], lengths: Tensor | None
    ) -> Tensor:
        x = sig[:, :, None]
        for layer, kernel in zip(self.layers, kernels, strict=True):
            x = layer(x, kernel=kernel)
            if lengths is not None:
                lengths = layer.num_frames(lengths)
                x = x.masked_fill(~lengths_to_mask(lengths, x.shape[1])[:, :, None], 0)
        return x


class _ConvLayer(nn.Module):
    """Convolution without padding, LayerNorm over channels, GELU: (B, T, C) to (B, N, C').

    Channels stay the last axis: LayerNorm needs them there, and the convolution is as fast on that
    layout, so that nothing is ever transposed in memory.
    """

    def __init__(self, input_dim: int, output_dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.conv = nn.Conv1d(input_dim, output_dim, kernel_size, stride=stride, bias=False)
        self.norm = nn.LayerNorm(output_dim)

    def kernel(self) -> Tensor | None:
        """(3, C, C') weights for `conv_in_pairs`, or None if it is not for this layer."""
        if (self.kernel_size, self.stride) != (3, 2):
            return None
        return self.conv.weight.permute(2, 0, 1).contiguous().transpose(1, 2)

    def forward(self, x: Tensor, *, kernel: Tensor | None) -> Tensor:
        # Anything shorter than the kernel is extended by zeros and gives one frame.
        if x.shape[1] < self.kernel_size:
            x = F.pad(x, (0, 0, 0, self.kernel_size - x.shape[1]))
        if kernel is not None:
            x = conv_in_pairs(x, kernel)
        else:
            # A 2-D convolution over one row: the only one PyTorch has for channels-last memory.
            x = x.transpose(1, 2)[:, :, None]  # (B, C, 1, T)
            x = F.conv2d(x, self.conv.weight[:, :, None], stride=(1, self.stride))
            x = x.squeeze(2).transpose(1, 2)  # (B, N, C')
        return F.gelu(self.norm(x))

    def num_frames(self, lengths: Tensor) -> Tensor:
        return ((lengths - self.kernel_size) // self.stride + 1).clamp(min=1)


class _Transformer(nn.Module):
    """Positional convolution and pre-norm layers that share one relative position table."""

    def __init__(
        self,
        positional_embedding: nn.Module,
        relative_embedding: nn.Embedding,
        layers: Sequence[nn.Module],
        *,
        max_distance: int,
    ) -> None:
        super().__init__()
        self.positional_embedding = positional_embedding
        self.relative_embedding = relative_embedding
        self.layers = nn.ModuleList(layers)
        self.max_distance = max_distance
        # The row of every distance from -max_distance to max_distance.
        bucket = _relative_bucket(
            torch.arange(-max_distance, max_distance + 1),
            num_buckets=relative_embedding.num_embeddings,
            max_distance=max_distance,
        )
        self.register_buffer("bucket", bucket, persistent=False)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        # Zeros beyond the end are what the positional convolution sees of an item alone.
        if mask is not None:
            x = x.masked_fill(~mask[:, :, None], 0)
        x = x + self.positional_embedding(x)
        bias = self._relative_bias(x.shape[1])
        key_bias = None
        if mask is not None:
            key_bias = (
                torch.zeros_like(mask, dtype=bias.dtype).masked_fill(~mask, -math.inf).flip(1)
            )
        for layer in self.layers:
            x = layer(x, bias=bias, key_bias=key_bias)
        return x if mask is None else x.masked_fill(~mask[:, :, None], 0)

    def _relative_bias(self, size: int) -> Tensor:
        """(H, N, N) bias of each query (axis 1) for the keys in reversed order (axis 2).

        The bias depends on the distance key - query alone. With the keys reversed, the distance is
        size - 1 minus the sum of both indices, so that the matrix is a view with overlapping rows
        of its 2 N - 1 distinct values: no table of N x N is ever stored. Nothing is kept between
        calls either, as weights may change.
        """
        distance = torch.arange(size - 1, -size, -1, device=self.bucket.device)
        bucket = self.bucket[
            distance.clamp(-self.max_distance, self.max_distance) + self.max_distance
        ]
        bias = self.relative_embedding(bucket).t().contiguous()  # (H, 2 N - 1)
        # Not unfold, which would tie a compiled graph to one length.
        return bias.as_strided((bias.shape[0], size, size), (2 * size - 1, 1, 1))


class _PositionalEmbedding(nn.Module):
    """Grouped convolution over a wide window and GELU, (B, N, dim) to (B, N, dim)."""

    def __init__(self, dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:2].numel() > self.conv.kernel_size[0] and is_plain_cpu(x):
            return F.gelu(conv_by_spectra(x, self.conv))
        y = self.conv(x.transpose(1, 2))[:, :, : x.shape[1]]  # an even kernel gives one frame more
        return F.gelu(y).transpose(1, 2)


class _TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward network, each around a residual path."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = _Attention(dim, num_heads)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = _FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, *, bias: Tensor, key_bias: Tensor | None = None) -> Tensor:
        y = self.attention(self.attention_norm(x), bias=bias, key_bias=key_bias)
        x = x + F.dropout(y, self.dropout, self.training)
        y = self.feed_forward(self.feed_forward_norm(x))
        return x + F.dropout(y, self.dropout, self.training)


class _Attention(nn.Module):
    """Self-attention with a gated relative position bias (arXiv:2110.13900, section III-A)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.gru_rel_pos_linear = nn.Linear(dim // num_heads, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, x: Tensor, *, bias: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """Attend to all keys.

        Parameters
        ----------
        x : (B, N, dim) frames.
        bias : (H, N, N) relative bias of each query for the keys in reversed order.
        key_bias : (B, N) bias of the keys in reversed order, -inf for padding.
        """
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        query = query.transpose(1, 2)  # (B, H, N, dim / H)
        key = key.flip(1).transpose(1, 2)
        value = value.flip(1).transpose(1, 2)
        gate = self._gate(x)
        attended = query.new_empty(query.transpose(1, 2).shape)
        for items, heads, queries in _blocks(
            *query.shape[:3], floats_per_step=x.shape[1], device=x.device
        ):
            block_bias = gate[items, heads, queries] * bias[heads, queries]
            if key_bias is not None:
                block_bias = block_bias + key_bias[items, None, None]
            block = F.scaled_dot_product_attention(
                query[items, heads, queries],
                key[items, heads],
                value[items, heads],
                attn_mask=block_bias.to(query.dtype),
            )
            attended[items, queries, heads] = block.transpose(1, 2)
        return self.out_proj(attended.flatten(2))

    def _gate(self, x: Tensor) -> Tensor:
        """(B, H, N, 1) factor of the relative bias of each query."""
        x = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, dim / H)
        x = self.gru_rel_pos_linear(x).unflatten(-1, (2, 4)).sum(dim=-1)
        update, reset = x.sigmoid().chunk(2, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1) + 2


class _FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, ffn_dim)
        self.out_proj = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.flatten(0, 1)
        blocks = _blocks(len(frames), floats_per_step=self.in_proj.out_features, device=x.device)
        y = [self.out_proj(F.gelu(self.in_proj(frames[block]))) for (block,) in blocks]
        return torch.cat(y).view(x.shape)
