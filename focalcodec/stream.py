"""Live speech through a causal codec: signal in, tokens out, and back, chunk by chunk.

A `Stream` buffers what it gets into chunks of ``codec.chunk_size`` samples (80 ms in the published
codecs) and sends each chunk through the codec with the states of the one before it. So the results
do not depend on how the input was cut, not by a bit, and up to rounding they are those of
``codec.sig_to_toks`` and ``codec.toks_to_sig`` on the whole, an incomplete last chunk included.

The published code gives other tokens, or another number of them, where chunks are cut otherwise;
here there is no wrong way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    Whatever a method raises, the streams are as before the call, which can be repeated.

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
        ValueError : if ``sig`` is empty, not finite or of another batch size or precision, or
            features overflow.
        RuntimeError : after `flush` has encoded an incomplete chunk.
        """
        check_mono(sig, sample_rate=self.codec.sample_rate, dtype=self.codec.dtype)
        self._check_rows(sig, name="sig")
        check_finite(sig, None, name="sig")
        if self._encoded_all:
            raise RuntimeError("flush has ended these streams; begin new ones with reset")
        pending = torch.cat([self._sig, sig], dim=1)
        whole = pending.shape[1] // self.chunk_size * self.chunk_size
        chunks = pending[:, :whole].split(self.chunk_size, dim=1) if whole else ()
        toks = _converted(chunks, convert=self._encode_chunk, state=self._encoding)
        self._sig = pending[:, whole:].clone()
        return _joined(toks, empty=self._no_toks)

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
        ValueError : if ``toks`` are empty, of another batch size or out of range.
        RuntimeError : after `flush` has decoded an incomplete chunk.
        """
        check_toks(toks)
        self._check_rows(toks, name="toks")
        self.codec.toks_to_codes(toks)  # refuses what is out of range, before anything is kept
        if self._decoded_all:
            raise RuntimeError("flush has ended these streams; begin new ones with reset")
        pending = torch.cat([self._toks, toks], dim=1)
        whole = pending.shape[1] // self.chunk_toks * self.chunk_toks
        chunks = pending[:, :whole].split(self.chunk_toks, dim=1) if whole else ()
        sig = _converted(chunks, convert=self._decode_chunk, state=self._decoding)
        self._toks = pending[:, whole:].clone()
        return _joined(sig, empty=self._no_sig)

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
        toks = [self._encode_chunk(self._sig)] if self._sig.shape[1] else []
        sig = [self._decode_chunk(self._toks)] if self._toks.shape[1] else []
        if toks:
            self._encoding.commit()
            self._encoded_all, self._sig = True, self._no_sig
        if sig:
            self._decoding.commit()
            self._decoded_all, self._toks = True, self._no_toks
        return Flushed(_joined(toks, empty=self._no_toks), _joined(sig, empty=self._no_sig))

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Begin new streams, in all rows or in some of them while the others go on.

        Raises
        ------
        ValueError : for some rows, in the middle of a chunk: all rows advance by whole chunks; or
            if there is no such row.
        """
        rows = None if rows is None else list(rows)
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
            "codec": self._identity(),
            "sig": self._sig.clone(),
            "toks": self._toks.clone(),
            "ended": torch.tensor([self._encoded_all, self._decoded_all]),
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where another stream of the same codec and batch size was.

        Raises
        ------
        ValueError : if it was a stream of another codec or batch size, or if names or shapes do not
            fit; the stream is as before then.
        """
        self._check_own(tensors)
        tensors = {key: value.to(self._no_sig.device) for key, value in tensors.items()}
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
        return codec.quantizer(lats).toks

    def _decode_chunk(self, toks: Tensor) -> Tensor:
        codec, state = self.codec, self._decoding
        state.rollback()
        codes = codec.toks_to_codes(toks).to(codec.dtype)
        return codec.decoder(codec.decompressor(codes, state=state), state=state)

    def _identity(self) -> Tensor:
        """(32,) uint8, a digest of precision, sizes and biases.

        So two trainings of one configuration differ, and no gigabyte of weights has to be read.
        """
        digest = hashlib.sha256(str(self.codec.dtype).encode())
        for name, weights in self.codec.named_parameters():
            digest.update(f"{name} {tuple(weights.shape)}".encode())
            if weights.ndim == 1:
                digest.update(weights.detach().to("cpu", torch.float32).numpy().tobytes())
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)

    def _check_own(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse what is no state of a stream of this codec and batch size, but for its halves."""
        limits = {"sig": self.chunk_size, "toks": self.chunk_toks}
        if missing := sorted({"codec", "ended", *limits} - set(tensors)):
            raise ValueError(f"this is no state of a stream: {', '.join(missing)} is missing")
        for name, limit in limits.items():
            if tensors[name].ndim != 2 or tensors[name].shape[1] >= limit:
                raise ValueError(
                    f"this is no state of a stream: {name} holds less than a chunk of {limit}, got "
                    f"shape {tuple(tensors[name].shape)}"
                )
            self._check_rows(tensors[name], name=name)
        if not torch.equal(tensors["codec"].cpu(), self._identity()):
            raise ValueError(
                "this is the state of a stream of another codec, or of this one in another "
                "precision; go on with the codec that it comes from"
            )

    def _check_rows(self, x: Tensor, *, name: str) -> None:
        if x.shape[0] != self.batch_size:
            raise ValueError(
                f"{name} must have {self.batch_size} rows, one for each stream, got "
                f"{tuple(x.shape)}; open_stream(batch_size={x.shape[0]}) makes as many"
            )


def _converted(
    chunks: Sequence[Tensor], *, convert: Callable[[Tensor], Tensor], state: State
) -> list[Tensor]:
    """Convert chunks one after the other; if one of them fails, none counts."""
    before = state.state_dict() if len(chunks) > 1 else {}
    pieces: list[Tensor] = []
    try:
        for chunk in chunks:
            pieces.append(convert(chunk))
            state.commit()
    except BaseException:
        if pieces:
            state.load_state_dict(before)
        raise
    return pieces


def _joined(pieces: list[Tensor], *, empty: Tensor) -> Tensor:
    return torch.cat(pieces, dim=1) if pieces else empty


def is_causal(part: torch.nn.Module, *, name: str) -> bool:
    """Whether a part of a codec sees nothing that comes later; a quantizer never does."""
    return name == "quantizer" or getattr(part, "causal", False)
