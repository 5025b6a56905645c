"""Transformer layers with a gated relative position bias, full context or causal.

The bias depends on the distance key - query alone, by a table that all layers share.

**Causal attention** goes by chunks: with C = ``chunk_frames`` and W = ``window_size``, a frame sees
the whole chunk of C frames that it is in and what comes before, W keys in all. In a last chunk that
is not complete it sees W keys up to the last frame::

    frame i of n:   end = min((i // C + 1) * C, n),   keys max(end - W, 0) ... end - 1

Calls with a state begin at a chunk's border; only the last one may end inside of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.fastconv import convolve, is_plain_cpu
from focalcodec.masking import zero_padding
from focalcodec.streaming import LeftContext, State
from focalcodec.wavlm.blocks import blocks

_QUERIES = 64  # of a block of causal attention: a multiple of chunks, small beside the window


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


class Transformer(nn.Module):
    """Positional convolution and pre-norm layers that share one relative position table.

    Parameters
    ----------
    positional_embedding : maps (B, N, dim) to the same shape.
    relative_embedding : (buckets, heads) table of the relative bias.
    layers : see `TransformerLayer`.
    max_distance : frames from which on all distances share the last bucket.
    """

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

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Mix (B, N, dim); frames where ``mask`` (B, N) is False enter nothing and come back as 0.

        ``state`` is for causal layers only.
        """
        *_, y = self._run(x, mask=mask, state=state)
        return zero_padding(y, mask=mask)

    def layer_feats(self, x: Tensor, *, mask: Tensor | None = None) -> Iterator[Tensor]:
        """Frames (B, N, dim) behind the positional embedding, then behind each layer."""
        return (zero_padding(y, mask=mask) for y in self._run(x, mask=mask, state=None))

    def _run(self, x: Tensor, *, mask: Tensor | None, state: State | None) -> Iterator[Tensor]:
        # Zeros beyond the end are what the positional convolution sees of an item alone.
        x = zero_padding(x, mask=mask)
        x = x + self.positional_embedding(x, state=state)
        yield x
        scope = None
        for layer in self.layers:
            if scope is None:
                scope = layer.attention.scope(x, self._relative_values, mask=mask, state=state)
            x = layer(x, scope=scope, state=state)
            yield x

    def _relative_values(self, distance: Tensor) -> Tensor:
        """(H, ...) bias of distances key - query in frames.

        Nothing is kept between calls, as weights may change.
        """
        clamped = distance.clamp(-self.max_distance, self.max_distance)
        return self.relative_embedding(self.bucket[clamped + self.max_distance]).movedim(-1, 0)


class PositionalEmbedding(nn.Module):
    """Grouped convolution over a wide window and GELU, (B, N, dim) to (B, N, dim).

    Parameters
    ----------
    dim : channels.
    kernel_size : frames. Centred, an even kernel reaches one frame further back than ahead.
    groups : of the convolution.
    causal : reach back only, before the beginning to copies of the first frame.
    """

    def __init__(self, dim: int, kernel_size: int, groups: int, *, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size, groups=groups)
        self.context = LeftContext(kernel_size - 1) if causal else None

    def forward(self, x: Tensor, *, state: State | None = None) -> Tensor:
        """(B, N, dim) to (B, N, dim)."""
        taps = self.conv.kernel_size[0]
        if self.context is not None:
            x = self.context(x, state=state)
        else:
            x = F.pad(x, (0, 0, taps // 2, taps - 1 - taps // 2))
        return F.gelu(convolve(x, self.conv))


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward network, each around a residual path."""

    def __init__(self, dim: int, ffn_dim: int, attention: nn.Module, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, *, scope: Any, state: State | None = None) -> Tensor:
        """(B, N, dim) to (B, N, dim); ``scope`` from the attention of any of the layers."""
        y = self.attention(self.attention_norm(x), scope=scope, state=state)
        x = x + F.dropout(y, self.dropout, self.training)
        y = self.feed_forward(self.feed_forward_norm(x))
        return x + F.dropout(y, self.dropout, self.training)


class Attention(nn.Module):
    """Self-attention to all frames with a gated relative position bias ([1]_, section III-A).

    References
    ----------
    .. [1] Chen et al., 2022, "WavLM", arXiv:2110.13900.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.gru_rel_pos_linear = nn.Linear(dim // num_heads, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def scope(
        self,
        x: Tensor,
        relative_values: Callable[[Tensor], Tensor],
        *,
        mask: Tensor | None,
        state: State | None,
    ) -> FullScope:
        """Make what all layers share when they mix frames x (B, N, dim).

        The bias depends on the distance key - query alone. With the keys reversed, the distance is
        N - 1 minus the sum of both indices, so that the matrix is a view with overlapping rows of
        its 2 N - 1 distinct values: no table of N x N is ever stored.
        """
        if state is not None:
            raise ValueError("full context cannot go on from a state; use a causal encoder")
        size = x.shape[1]
        distance = torch.arange(size - 1, -size, -1, device=x.device)
        bias = relative_values(distance).contiguous()  # (H, 2 N - 1)
        # Not unfold, which would tie a compiled graph to one length.
        bias = bias.as_strided((bias.shape[0], size, size), (2 * size - 1, 1, 1))
        key_bias = None
        if mask is not None:
            key_bias = torch.zeros_like(mask, dtype=bias.dtype).masked_fill(~mask, -math.inf)
            key_bias = key_bias.flip(1)
        return FullScope(bias, key_bias)

    def forward(self, x: Tensor, *, scope: FullScope, state: State | None = None) -> Tensor:
        """Mix (B, N, dim); ``state`` is None."""
        del state
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        query = query.transpose(1, 2)  # (B, H, N, dim / H)
        key = key.flip(1).transpose(1, 2)
        value = value.flip(1).transpose(1, 2)
        gate = self.gate(x)
        attended = query.new_empty(query.transpose(1, 2).shape)
        for items, heads, queries in blocks(
            *query.shape[:3], floats_per_step=x.shape[1], device=x.device
        ):
            bias = gate[items, heads, queries] * scope.bias[heads, queries]
            if scope.key_bias is not None:
                bias = bias + scope.key_bias[items, None, None]
            block = F.scaled_dot_product_attention(
                query[items, heads, queries],
                key[items, heads],
                value[items, heads],
                attn_mask=bias.to(query.dtype),
            )
            attended[items, queries, heads] = block.transpose(1, 2)
        return self.out_proj(attended.flatten(2))

    def gate(self, x: Tensor) -> Tensor:
        """(B, H, N, 1) factor of the relative bias of each query."""
        x = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, dim / H)
        x = self.gru_rel_pos_linear(x).unflatten(-1, (2, 4)).sum(dim=-1)
        update, reset = x.sigmoid().chunk(2, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1) + 2


class FullScope(NamedTuple):
    """For full context: bias (H, N, N) of each query for the keys in reversed order.

    ``key_bias`` (B, N) of the keys in reversed order is -inf for padding; None for none.
    """

    bias: Tensor
    key_bias: Tensor | None


class ChunkedAttention(Attention):
    """Causal attention by chunks within a sliding window, see the module's head.

    Parameters
    ----------
    dim, num_heads : as in `Attention`.
    window_size : keys W that a frame sees, its own chunk's included.
    chunk_frames : frames C that see each other, >= 1 and at most W.
    """

    def __init__(self, dim: int, num_heads: int, *, window_size: int, chunk_frames: int) -> None:
        super().__init__(dim, num_heads)
        if not 1 <= chunk_frames <= window_size:
            raise ValueError(
                "window_size must hold a chunk of 1 + lookahead_size frames, "
                f"got {window_size} and {chunk_frames}"
            )
        self.window_size = window_size
        self.chunk_frames = chunk_frames
        self.context = LeftContext(window_size - 1, fill="zeros")

    def scope(
        self,
        x: Tensor,
        relative_values: Callable[[Tensor], Tensor],
        *,
        mask: Tensor | None,
        state: State | None,
    ) -> list[Span]:
        """Make blocks of queries with the keys that they may see.

        The keys of a block begin W - 1 frames in front of it, so that all blocks share one bias; a
        compiled graph gets one block, as their number would tie it to one length.
        """
        size, chunk, before = x.shape[1], self.chunk_frames, self.window_size - 1
        num_before = self.context.num_before(x.shape[0], state=state)
        if size == chunk and mask is None and min(num_before) >= self.window_size - chunk:
            # One chunk in the middle of all streams, the case that has to be fast: every query sees
            # the same W keys.
            query = torch.arange(chunk, device=x.device)
            key = torch.arange(chunk - self.window_size, chunk, device=x.device)
            bias = relative_values(key - query[:, None])
            return [Span(slice(None), slice(chunk - 1, None), bias, None)]
        if torch.compiler.is_compiling():
            step, cuts = size, [(slice(None), slice(None))]
        else:
            step = min(max(_QUERIES // chunk, 1) * chunk, size)
            starts = range(0, size, step)
            cuts = [(slice(i, i + step), slice(i, i + step + before)) for i in starts]
        frame = torch.arange(-before, size, device=x.device)
        bias = relative_values(frame[: step + before] - frame[before : before + step, None])
        end = self._ends(frame[before:], mask=mask)[..., None]  # (B or 1, N, 1)
        first = -torch.tensor(num_before, device=x.device)[:, None, None]
        spans = []
        for queries, keys in cuts:
            key, ends = frame[keys], end[:, queries]
            hidden = (key >= ends) | (key < ends - self.window_size) | (key < first)
            block_bias = bias[:, : hidden.shape[1], : hidden.shape[2]]
            spans.append(Span(queries, keys, block_bias, hidden[:, None]))
        return spans

    def _ends(self, query: Tensor, *, mask: Tensor | None) -> Tensor:
        """(B or 1, N) frame behind the last one that each query sees."""
        end = (query // self.chunk_frames + 1) * self.chunk_frames
        if mask is None:
            return end.clamp(max=query.shape[0])[None]
        sizes = mask.sum(dim=1, keepdim=True)
        # A query in the padding has to see something: what its chunk would be.
        return torch.where(query < sizes, end.minimum(sizes), end)

    def forward(self, x: Tensor, *, scope: list[Span], state: State | None = None) -> Tensor:
        """Mix (B, N, dim), from a chunk's border on if there is a state."""
        query, key_value = self.qkv_proj(x).tensor_split([x.shape[-1]], dim=-1)
        key_value = self.context(key_value, state=state)
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, dim / H)
        key, value = key_value.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        gate = self.gate(x)
        attended = []
        for span in scope:
            bias = gate[:, :, span.queries] * span.bias
            if span.hidden is not None:
                bias = bias.masked_fill(span.hidden, -math.inf)
            block = _attend(
                query[:, :, span.queries],
                key[:, :, span.keys],
                value[:, :, span.keys],
                bias=bias.to(query.dtype),
            )
            attended.append(block.transpose(1, 2))
        return self.out_proj(torch.cat(attended, dim=1).flatten(2))


def _attend(query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor) -> Tensor:
    """Attention of (B, H, Q, D) to (B, H, K, D) with a bias (B, H, Q, K)."""
    if not is_plain_cpu(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    # PyTorch's own, with a bias on a CPU, scales a copy of all keys first.
    scaled = query * query.shape[-1] ** -0.5
    return (scaled @ key.transpose(2, 3) + bias).softmax(dim=-1) @ value


class Span(NamedTuple):
    """Consecutive queries, the keys that they may see (counted with the context), and their bias.

    ``bias`` (H, Q, K); ``hidden`` (B or 1, 1, Q, K) is True for keys that a query does not see,
    None if it sees them all.
    """

    queries: slice
    keys: slice
    bias: Tensor
    hidden: Tensor | None


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, ffn_dim)
        self.out_proj = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to (B, N, dim)."""
        frames = x.flatten(0, 1)
        ffn_dim = self.in_proj.out_features
        y = [
            self.out_proj(F.gelu(self.in_proj(frames[block])))
            for (block,) in blocks(len(frames), floats_per_step=ffn_dim, device=x.device)
        ]
        return torch.cat(y).view(x.shape)
