"""Chunk-wise inference of a codec that is not causal (Della Libera et al., 2025, appendix F.3).

::

    window of chunk i   [ left context ........ | chunk i .................. | overlap ]
    used of it                                  [ fade in | .............. ][ fade out ]

Each chunk is encoded and decoded together with the samples before it (left context) and after it
(overlap, the look-ahead). Of what is decoded the chunk and the overlap after it are used; the
overlap is also the beginning of the next chunk, and there the two are cross-faded linearly.

**Tokens.** A window begins where the chunk's first token does: the left context is shortened by
less than one token to make it so. A chunk's tokens are those from its beginning to the end of its
overlap, ceil((chunk + overlap) / samples per token): where chunk and overlap are no multiple of a
token's samples, the last token reaches beyond, and neighbouring chunks both send the tokens of the
overlap between them. So chunk-wise inference takes more bits than the codec itself, the more the
shorter its chunks: `Chunked.bitrate` counts that.

**What is not counted.** The receiver decodes with the left context's tokens too, encoded anew for
each chunk, which need not equal those that it got before. A receiver that does exactly what is done
here needs all of them: `Chunked.bitrate_with_context`.
"""

import math

import torch
from torch import Tensor, nn

from recipes.codecs.codec import Codec, Resynthesis


class Chunked(nn.Module):
    """A codec that sees a signal chunk by chunk.

    Sizes are in samples at the codec's input rate. Memory for encoding and decoding depends on
    them, not on the length of the signal. A signal that is not longer than one chunk is treated as
    without chunks.

    Parameters
    ----------
    codec : does the work.
    chunk_size : samples that are decoded at once.
    left_context : samples before a chunk that are encoded and decoded with it.
    overlap : samples after a chunk that are encoded and decoded with it, and cross-faded with the
        next one.

    Raises
    ------
    ValueError : if ``chunk_size`` is below 1, or ``overlap`` or ``left_context`` below 0, or
        ``overlap`` above ``chunk_size``.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        chunk_size: int = 8000,
        left_context: int = 48000,
        overlap: int = 250,
    ) -> None:
        super().__init__()
        if chunk_size < 1 or left_context < 0 or not 0 <= overlap <= chunk_size:
            raise ValueError(
                "chunked inference needs chunk_size >= 1, left_context >= 0 and overlap from 0 to "
                f"chunk_size, got {chunk_size}, {left_context} and {overlap} samples"
            )
        self.codec = codec
        self.chunk_size, self.left_context, self.overlap = chunk_size, left_context, overlap
        self.name, self.model_id = codec.name, codec.model_id
        self.sample_rate, self.sample_rate_output = codec.sample_rate, codec.sample_rate_output
        self.token_rate = codec.token_rate
        self.num_codebooks, self.codebook_size = codec.num_codebooks, codec.codebook_size

    @property
    def latency_ms(self) -> float:
        """Time from a sample's arrival to its output, at worst, without computation."""
        return 1000 * (self.chunk_size + self.overlap) / self.sample_rate

    @property
    def bitrate(self) -> float:
        """Bits per second of the tokens that `resynthesize` returns, for a long signal."""
        return self._bitrate(0)

    @property
    def bitrate_with_context(self) -> float:
        """Bits per second if the left context's tokens are sent again with every chunk."""
        return self._bitrate(self.left_context // self.codec.samples_per_tok)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codec.device

    def embeddings(self) -> Tensor:
        """(K, codebook_size, H) vector of every token of every codebook."""
        return self.codec.embeddings()

    @torch.no_grad()
    def resynthesize(self, sig: Tensor) -> Resynthesis:
        """Encode and decode chunk by chunk.

        Parameters
        ----------
        sig : (1, T) at `sample_rate`.

        Returns
        -------
        sig (1, T') at `sample_rate_output`, as long as the input; toks (1, L, K), those of each
        chunk and its overlap, one chunk after the other.

        Raises
        ------
        ValueError : if ``sig`` is no single mono utterance.
        """
        if sig.ndim != 2 or sig.shape[0] != 1:
            raise ValueError(f"sig must be one utterance (1, T), got {tuple(sig.shape)}")
        num_samples = sig.shape[1]
        if num_samples <= self.chunk_size:
            return self.codec.resynthesize(sig)
        to_output = self.codec.num_samples_output
        decoded, toks = sig.new_empty(1, to_output(num_samples)), []
        for start in range(0, num_samples, self.chunk_size):
            chunk = self._chunk(sig, start=start)
            first = to_output(start)
            if start > 0:
                shared = to_output(min(start + self.overlap, num_samples)) - first
                before = decoded[:, first : first + shared]
                chunk.sig[:, :shared] = _cross_fade(before, chunk.sig[:, :shared])
            decoded[:, first : first + chunk.sig.shape[1]] = chunk.sig
            toks.append(chunk.toks)
        return Resynthesis(decoded, torch.cat(toks, dim=1))

    def _chunk(self, sig: Tensor, *, start: int) -> Resynthesis:
        """Signal and tokens from ``start`` to the end of the overlap after its chunk."""
        codec = self.codec
        context_toks = min(self.left_context, start) // codec.samples_per_tok
        first = start - context_toks * codec.samples_per_tok
        window = sig[:, first : start + self.chunk_size + self.overlap]
        toks = codec.sig_to_toks(window)
        skipped = codec.num_samples_output(start) - codec.num_samples_output(first)
        end = codec.num_samples_output(first + window.shape[1])
        decoded = codec.toks_to_sig(toks, num_samples=end - codec.num_samples_output(first))
        return Resynthesis(decoded[:, skipped:], toks[:, context_toks:])

    def _bitrate(self, context_toks: int) -> float:
        size = self.chunk_size + self.overlap
        num_toks = math.ceil(size / self.codec.samples_per_tok) + context_toks
        bits = num_toks * self.num_codebooks * math.log2(self.codebook_size)
        return bits * self.sample_rate / self.chunk_size


def _cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """From one (1, n) signal to another, linearly: equal signals come out as they are."""
    size = before.shape[1]
    weight = (torch.arange(size, device=before.device, dtype=before.dtype) + 0.5) / max(size, 1)
    return before.lerp(after, weight)
