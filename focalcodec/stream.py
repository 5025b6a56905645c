"""Live speech through a causal codec: signal in, tokens out, and back, chunk by chunk.

A `Stream` buffers what it gets into chunks of ``codec.chunk_size`` samples (80 ms in the published
codecs) and sends each chunk through the codec with the states of the one before it. So the results
do not depend on how the input was cut, not by a bit, and up to rounding they are those of
``codec.sig_to_toks`` and ``codec.toks_to_sig`` on the whole, an incomplete last chunk included.

The published code gives other tokens, or another number of them, where chunks are cut otherwise;
here there is no wrong way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from focalcodec.checks import check_finite, check_mono, check_toks
from focalcodec.streaming import State

if TYPE_CHECKING:
    from focalcodec.codec import FocalCodec


class Flushed(NamedTuple):
    """What was left at the end of streams: tokens (B, L) of samples, signal (B, T) of tokens."""

    toks: Tensor
    sig: Tensor


class Stream:
    """A batch of live streams through a causal codec, made by ``codec.open_stream``.

    Encoding and decoding are independent: one process may encode and another one decode, or one do
    both. Rows are independent streams that advance together. Weights must not change meanwhile.

    Parameters
    ----------
    codec : causal.
    batch_size : streams B.

    Attributes
    ----------
    chunk_size : input samples that are encoded at once.
    chunk_toks : tokens that are decoded at once.

    Raises
    ------
    ValueError : if the codec is not causal or ``batch_size`` below 1.
    """

    def __init__(self, codec: FocalCodec, *, batch_size: int = 1) -> None:
        if not codec.causal:
            parts = ", ".join(n for n, p in codec.named_children() if not is_causal(p, name=n))
            raise ValueError(
                f"this codec cannot stream: {parts} need what comes later; take a causal one, or "
                "focalcodec.windows with Windows.chunks"
            )
        self.codec = codec
        self.batch_size = batch_size
        self.chunk_size = codec.chunk_size
        self.chunk_toks = codec.chunk_size // codec.samples_per_tok
        self._encoding = State(
            {"encoder": codec.encoder, "compressor": codec.compressor}, batch_size=batch_size
        )
        self._decoding = State(
            {"decompressor": codec.decompressor, "decoder": codec.decoder}, batch_size=batch_size
        )
        self._clear()

    @torch.no_grad()
    def encode(self, sig: Tensor) -> Tensor:
        """Take in more of the signal; give the tokens of the chunks that are complete now.

        Parameters
        ----------
        sig : (B, T) at ``codec.sample_rate``, of any length T >= 1.

        Returns
        -------
        (B, L) int64, L a multiple of ``chunk_toks``, 0 where no chunk has become complete.

        Raises
        ------
        ValueError : if ``sig`` is empty, not finite or of another batch size or precision; then the
            stream is as before. If features overflow, the stream is as before that chunk, which is
            lost with what came behind it; tokens from before it come with the next call.
        RuntimeError : after `flush` has encoded an incomplete chunk.
        """
        check_mono(sig, sample_rate=self.codec.sample_rate, dtype=self.codec.dtype)
        self._check_rows(sig, name="sig")
        check_finite(sig, None, name="sig")
        if self._encoded_all:
            raise RuntimeError("flush has ended these streams; begin new ones with reset")
        pending = torch.cat([self._sig, sig], dim=1)
        whole = pending.shape[1] // self.chunk_size * self.chunk_size
        self._sig = pending[:, whole:].clone()
        for chunk in pending[:, :whole].split(self.chunk_size, dim=1) if whole else ():
            self._toks_done.append(self._encode_chunk(chunk))
        return self._done(self._toks_done, empty=self._no_toks)

    @torch.no_grad()
    def decode(self, toks: Tensor) -> Tensor:
        """Take in more tokens; give the signal of the chunks that are complete now.

        Parameters
        ----------
        toks : (B, L) int64 tokens, L >= 1.

        Returns
        -------
        (B, T) at ``codec.sample_rate_output``, whole chunks, T = 0 where none has become complete.

        Raises
        ------
        ValueError : if ``toks`` are empty, of another batch size or out of range; then the stream
            is as before.
        RuntimeError : after `flush` has decoded an incomplete chunk.
        """
        check_toks(toks)
        self._check_rows(toks, name="toks")
        self.codec.toks_to_codes(toks)  # refuses what is out of range, before anything is kept
        if self._decoded_all:
            raise RuntimeError("flush has ended these streams; begin new ones with reset")
        pending = torch.cat([self._toks, toks], dim=1)
        whole = pending.shape[1] // self.chunk_toks * self.chunk_toks
        self._toks = pending[:, whole:].clone()
        for chunk in pending[:, :whole].split(self.chunk_toks, dim=1) if whole else ():
            self._sig_done.append(self._decode_chunk(chunk))
        return self._done(self._sig_done, empty=self._no_sig)

    @torch.no_grad()
    def flush(self) -> Flushed:
        """End the streams: give what the buffers hold, as incomplete chunks.

        Where both is done in one place, the last tokens are decoded like this::

            toks = stream.flush().toks
            sig = torch.cat([stream.decode(toks), stream.flush().sig], dim=1)  # if there are toks

        What was ended in the middle of a chunk takes nothing more until `reset`; what was not goes
        on, as if nothing had happened. The decoded signal covers the last token: cut it to
        ``num_samples * sample_rate_output // sample_rate``.
        """
        if self._sig.shape[1]:
            self._toks_done.append(self._encode_chunk(self._sig))
            self._encoded_all, self._sig = True, self._sig[:, :0]
        if self._toks.shape[1]:
            self._sig_done.append(self._decode_chunk(self._toks))
            self._decoded_all, self._toks = True, self._toks[:, :0]
        return Flushed(
            self._done(self._toks_done, empty=self._no_toks),
            self._done(self._sig_done, empty=self._no_sig),
        )

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Begin new streams, in all rows or in some of them while the others go on.

        Raises
        ------
        ValueError : for some rows, in the middle of a chunk: all rows advance by whole chunks.
        """
        if rows is None:
            self._clear()
        elif self._sig.shape[1] or self._toks.shape[1] or self._encoded_all or self._decoded_all:
            raise ValueError(
                f"single rows begin anew between chunks only; {self._sig.shape[1]} samples and "
                f"{self._toks.shape[1]} tokens of a chunk have been taken in"
            )
        for state in (self._encoding, self._decoding):
            state.reset(rows)

    def num_bytes(self) -> int:
        """Memory that the states take; it does not grow with time."""
        return self._encoding.num_bytes() + self._decoding.num_bytes()

    def state_dict(self) -> dict[str, Tensor]:
        """Copy of everything that the streams remember, tensors by name."""
        states = {"encoding": self._encoding, "decoding": self._decoding}
        tensors = {
            f"{name}.{key}": value
            for name, state in states.items()
            for key, value in state.state_dict().items()
        }
        return tensors | {
            "sig": self._sig.clone(),
            "toks": self._toks.clone(),
            "ended": torch.tensor([self._encoded_all, self._decoded_all]),
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where another stream of the same codec and batch size was.

        Raises
        ------
        ValueError : if names or shapes do not fit; the stream is as before then.
        """
        own = {"sig", "toks", "ended"}
        if missing := sorted(own - set(tensors)):
            raise ValueError(f"this is no state of a stream: {', '.join(missing)} is missing")
        for name in ("sig", "toks"):
            self._check_rows(tensors[name], name=name)
        halves = [
            {key[len(name) :]: value for key, value in tensors.items() if key.startswith(name)}
            for name in ("encoding.", "decoding.")
        ]
        self._encoding.check(halves[0])
        self._decoding.check(halves[1])
        self._encoding.load_state_dict(halves[0])
        self._decoding.load_state_dict(halves[1])
        self._clear()
        self._sig, self._toks = tensors["sig"].clone(), tensors["toks"].clone()
        self._encoded_all, self._decoded_all = tensors["ended"].tolist()

    def _clear(self) -> None:
        weight = next(self.codec.decompressor.parameters())
        self._no_sig = torch.empty(self.batch_size, 0, dtype=self.codec.dtype, device=weight.device)
        self._no_toks = torch.empty(self.batch_size, 0, dtype=torch.int64, device=weight.device)
        self._sig, self._toks = self._no_sig, self._no_toks
        self._toks_done: list[Tensor] = []
        self._sig_done: list[Tensor] = []
        self._encoded_all = self._decoded_all = False

    def _encode_chunk(self, sig: Tensor) -> Tensor:
        codec, state = self.codec, self._encoding
        state.rollback()  # what a call that was interrupted has left
        feats = codec.encoder(sig, state=state)
        lats = codec.compressor(feats, state=state)
        if not bool(lats.isfinite().all()):
            raise ValueError(
                "the encoder overflows: its features are not finite, and every token would be 0; "
                f"the chunk peaks at {float(sig.abs().max()):g}, scale it to [-1, 1] or compute in "
                f"more than {feats.dtype}"
            )
        toks = codec.quantizer(lats).toks
        state.commit()
        return toks

    def _decode_chunk(self, toks: Tensor) -> Tensor:
        codec, state = self.codec, self._decoding
        state.rollback()
        codes = codec.toks_to_codes(toks).to(codec.dtype)
        sig = codec.decoder(codec.decompressor(codes, state=state), state=state)
        state.commit()
        return sig

    def _done(self, pieces: list[Tensor], *, empty: Tensor) -> Tensor:
        joined = torch.cat([empty.to(pieces[0].dtype), *pieces], dim=1) if pieces else empty
        pieces.clear()
        return joined

    def _check_rows(self, x: Tensor, *, name: str) -> None:
        if x.shape[0] != self.batch_size:
            raise ValueError(
                f"{name} must have {self.batch_size} rows, one for each stream, got "
                f"{tuple(x.shape)}; open_stream(batch_size={x.shape[0]}) makes as many"
            )


def is_causal(part: torch.nn.Module, *, name: str) -> bool:
    """Whether a part of a codec sees nothing that comes later; a quantizer never does."""
    return name == "quantizer" or getattr(part, "causal", False)
