"""The encoder itself: convolutions, projection, Transformer."""

import math
from collections.abc import Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.masking import check_sig, lengths_to_mask, num_valid
from focalcodec.streaming import LeftContext, State
from focalcodec.wavlm.features import FeatureExtractor
from focalcodec.wavlm.transformer import (
    Attention,
    ChunkedAttention,
    PositionalEmbedding,
    Transformer,
    TransformerLayer,
)

# Mean padding, in samples, from which on a CPU goes through a batch row by row: a quarter of a
# second of signal costs about as much as reading all weights once more.
_ROW_SAMPLES = 4000


class WavLM(nn.Module):
    """First layers of WavLM, with full context or causal.

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
    causal : convolutions reach back only, before the beginning to copies of the first sample or
        frame, and attention goes by chunks, see `focalcodec.wavlm.transformer`. Frame i is made of
        the samples up to i * ``hop_length``, and of those of the frames of its chunk.
    window_size : keys that a frame attends to at most; causal only.
    lookahead_size : frames ahead that the first frame of a chunk sees, a chunk being that many and
        one more; causal only.

    Attributes
    ----------
    sample_rate : sample rate of the input in Hz.
    hop_length : samples per frame.
    chunk_frames : frames of a chunk, the unit of streams; 1 + ``lookahead_size``.

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
        causal: bool = False,
        window_size: int = 512,
        lookahead_size: int = 3,
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
        self.causal = causal
        self.window_size = window_size
        self.lookahead_size = lookahead_size
        self.hop_length = math.prod(self.strides)
        self.chunk_frames = 1 + lookahead_size

        self.feature_extractor = FeatureExtractor(hidden_dims, kernel_sizes, strides)
        # Copies of the first sample stand for those of the first value of every convolution: a
        # constant signal gives constant values.
        self._reach = self.feature_extractor.receptive_field - 1 if causal else 0
        self.context = LeftContext(self._reach)
        self.norm = nn.LayerNorm(hidden_dims[-1])
        self.feature_proj = nn.Linear(hidden_dims[-1], dim)
        self.encoder = Transformer(
            PositionalEmbedding(dim, conv_pos, conv_pos_groups, causal=causal),
            nn.Embedding(num_buckets, num_heads),
            [
                TransformerLayer(dim, ffn_dim, self._attention(), dropout=dropout)
                for _ in range(num_layers)
            ],
            max_distance=max_distance,
        )

    def forward(
        self, sig: Tensor, *, lens: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Compute the features of a batch of waveforms.

        With ``lens``, whatever lies beyond an item's end is ignored, zero or not (even NaN): each
        item gets the features that it has alone. Without, the whole tensor is signal, as in the
        published codec.

        Parameters
        ----------
        sig : (B, T) waveforms at ``sample_rate``; their level matters, as it is not normalised.
        lens : (B,) relative lengths in (0, 1].
        state : where causal streams go on, from a chunk's border; ``sig`` is then whole chunks of
            ``chunk_frames * hop_length`` samples, but for the end of the streams, and without
            ``lens``.

        Returns
        -------
        (B, ``num_frames(T)``, ``dim``) features; with ``lens``, frames beyond an item's own
        ``num_frames(round(lens * T))`` are 0.

        Raises
        ------
        ValueError : if ``sig`` is not (B, T) floating point or ``lens`` not (B,), or if there is a
            state and ``lens``.
        """
        check_sig(sig, sample_rate=self.sample_rate, lens=lens)
        if state is not None and lens is not None:
            raise ValueError("streams are not padded: all of them advance alike; leave out lens")
        lengths = None if lens is None else num_valid(lens, sig.shape[1])
        if lengths is not None and sig.device.type == "cpu" and not torch.compiler.is_compiling():
            padding = sig.shape[1] - lengths.double().mean().item()
            if padding > _ROW_SAMPLES:
                return self._row_by_row(sig, lengths=lengths)
            if padding == 0:
                lengths = None
        return self._batch(sig, lengths=lengths, state=state)

    def layer_feats(
        self, sig: Tensor, *, lens: Tensor | None = None, depth: int | None = None
    ) -> list[Tensor]:
        """Frames (B, N, ``dim``) behind the positional embedding and behind each layer.

        Arguments are those of `forward`, whose result is the last of them; of ``depth`` layers, if
        that is given, where nothing behind them is computed.
        """
        check_sig(sig, sample_rate=self.sample_rate, lens=lens)
        lengths = None if lens is None else num_valid(lens, sig.shape[1])
        x, mask = self._front(sig, lengths=lengths)
        layers = self.encoder.layer_feats(x, mask=mask)
        return list(layers if depth is None else islice(layers, 1 + depth))

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames that ``forward`` gives for a number of samples: at least one."""
        return self.feature_extractor.num_frames(num_samples + self._reach)

    def num_samples(self, num_frames: int | Tensor) -> int | Tensor:
        """Fewest samples that fill a number of frames.

        ``num_frames(num_samples(n)) == n`` for n >= 1. A single frame also comes from fewer samples
        than this: they are extended by zeros.
        """
        return self.feature_extractor.num_samples(num_frames) - self._reach

    def _attention(self) -> nn.Module:
        if not self.causal:
            return Attention(self.dim, self.num_heads)
        return ChunkedAttention(
            self.dim,
            self.num_heads,
            window_size=self.window_size,
            chunk_frames=self.chunk_frames,
        )

    def _batch(
        self, sig: Tensor, *, lengths: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """Features of (B, T) waveforms; ``lengths`` (B,) in samples, None for all of them whole."""
        x, mask = self._front(sig, lengths=lengths, state=state)
        return self.encoder(x, mask=mask, state=state)

    def _front(
        self, sig: Tensor, *, lengths: Tensor | None, state: State | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Frames in front of the Transformer, and their mask."""
        sig = self.context(sig[:, :, None], state=state)[:, :, 0]
        reached = None if lengths is None else lengths + self._reach
        x = self.feature_proj(self.norm(self.feature_extractor(sig, lengths=reached, state=state)))
        x = F.dropout(x, self.dropout, self.training)
        mask = None if lengths is None else lengths_to_mask(self.num_frames(lengths), x.shape[1])
        return x, mask

    def _row_by_row(self, sig: Tensor, *, lengths: Tensor) -> Tensor:
        """Do what `_batch` does, without working on padding."""
        size = self.num_frames(sig.shape[1])
        feats = [
            self._batch(row[None, :length])[0]
            for row, length in zip(sig, lengths.tolist(), strict=True)
        ]
        return torch.stack([F.pad(x, (0, 0, 0, size - x.shape[0])) for x in feats])
