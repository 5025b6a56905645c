"""A causal codec as it runs live: its own stream, to which speech comes chunk by chunk.

Unlike with `recipes.codecs.chunked`, nothing is sent twice and the result does not depend on how
the speech was cut: it is that of the whole signal.
"""

import math

import torch
from torch import Tensor

from recipes.codecs.codec import Codec, Resynthesis, fit


class Live:
    """A causal codec that gets a signal in pieces.

    Parameters
    ----------
    codec : with a ``latency_ms``, such as `recipes.codecs.focalcodec.FocalCodec` of a causal codec.
    chunk_size : samples that arrive at once.

    Attributes
    ----------
    bitrate, bitrate_with_context : bit/s that are sent: those of the codec.
    latency_ms : time from a sample to its tokens at worst, without computation: it waits for the
        end of its piece as well as for that of the codec's own chunk.

    Raises
    ------
    ValueError : if ``chunk_size`` is below 1.
    """

    def __init__(self, codec: Codec, *, chunk_size: int) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 sample, got {chunk_size}")
        self.codec = codec
        self.chunk_size = chunk_size
        self.bitrate = self.bitrate_with_context = codec.bitrate
        own_chunk = round(codec.latency_ms * codec.sample_rate / 1000)
        waited = chunk_size + own_chunk - math.gcd(chunk_size, own_chunk)
        self.latency_ms = 1000 * waited / codec.sample_rate

    @torch.no_grad()
    def resynthesize(self, sig: Tensor) -> Resynthesis:
        """Encode and decode a signal (1, T) piece by piece.

        Returns
        -------
        Signal as long as the input, and tokens (1, L, 1).
        """
        stream = self.codec.open_stream()
        toks, decoded = [], []

        def decode(new: Tensor) -> None:
            toks.append(new)
            if new.shape[1]:
                decoded.append(stream.decode(new))

        for piece in sig.split(self.chunk_size, dim=1):
            decode(stream.encode(piece))
        decode(stream.flush().toks)
        decoded.append(stream.flush().sig)
        size = self.codec.num_samples_output(sig.shape[1])
        return Resynthesis(fit(torch.cat(decoded, dim=1), size), torch.cat(toks, dim=1)[..., None])
