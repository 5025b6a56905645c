"""Live speech as a chain of iterators: pieces come in, are encoded or decoded, and go out.

Every link takes and gives `Piece` after piece and holds back no more than it must, so that a sink
which pulls at the end of the chain has each chunk as soon as it can be had::

    source -> resampled -> encoded -> decoded -> cut -> delivered -> sink

Signals are one row, (T,), and tokens (L,), on the CPU wherever they are handed on.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from focalcodec.meter import Meter
from focalcodec.resampling import resample_blocks
from focalcodec.stream import Stream


class Piece(NamedTuple):
    """Signal (T,) or tokens (L,) that follow those of the piece before.

    ``arrived`` is the `time.perf_counter` at which the last of them was here; ``starts`` means that
    what came before does not matter.
    """

    content: Tensor
    arrived: float
    starts: bool = False


def paced(
    pieces: Iterable[Piece], *, rate: float, wait: Callable[[float], None]
) -> Iterator[Piece]:
    """Hold pieces back as if they were spoken just now.

    Parameters
    ----------
    pieces : which can be had at once, such as those of a file.
    rate : samples or tokens per second.
    wait : sleeps for so many seconds.

    Yields
    ------
    The same, each when its last sample would have been spoken, which is also when it ``arrived``.
    """
    start, seen = time.perf_counter(), 0
    for piece in pieces:
        seen += piece.content.shape[0]
        spoken = start + seen / rate
        wait(max(0.0, spoken - time.perf_counter()))
        yield piece._replace(arrived=spoken)


def resampled(
    pieces: Iterable[Piece], *, sample_rate: int, new_sample_rate: int
) -> Iterator[Piece]:
    """Resample a signal; joined, the pieces are what resampling the whole signal gives."""
    arrived = 0.0

    def blocks() -> Iterator[Tensor]:
        nonlocal arrived
        for piece in pieces:
            arrived = piece.arrived
            yield piece.content

    rates = {"sample_rate": sample_rate, "new_sample_rate": new_sample_rate}
    for block in resample_blocks(blocks(), **rates):
        yield Piece(block, arrived)


def encoded(pieces: Iterable[Piece], *, stream: Stream, meter: Meter) -> Iterator[Piece]:
    """Tokens of a signal, chunk by chunk, the incomplete last one included.

    Errors are those of `Stream.encode`.
    """
    device, arrived = _device(stream), 0.0
    for piece in _by_chunks(pieces, stream.chunk_size):
        arrived = piece.arrived
        with meter.working():
            toks = stream.encode(piece.content.to(device)[None])[0].cpu()
        if toks.numel():
            yield piece._replace(content=toks)
    with meter.working():
        toks = stream.flush().toks[0].cpu()
    if toks.numel():
        yield Piece(toks, arrived)


def decoded(pieces: Iterable[Piece], *, stream: Stream, meter: Meter) -> Iterator[Piece]:
    """Signal of tokens, chunk by chunk; where a piece ``starts``, decoding begins anew.

    Raises
    ------
    ValueError : as `Stream.decode`, and if the signal is not finite.
    """
    device, arrived = _device(stream), 0.0
    for piece in _by_chunks(pieces, stream.chunk_toks):
        if piece.starts:
            yield from _rest(stream, meter, arrived)
            stream.reset()
        arrived = piece.arrived
        with meter.working():
            sig = _finite(stream.decode(piece.content.to(device)[None]))
        if sig.numel():
            yield piece._replace(content=sig)
    yield from _rest(stream, meter, arrived)


def cut(pieces: Iterable[Piece], *, num_samples: Callable[[], int | None]) -> Iterator[Piece]:
    """Signal up to the length of its source, beyond which its last token may reach.

    ``num_samples`` is asked before each piece; None while the source has not come to its end, or
    where nobody knows its length.
    """
    given = 0
    for piece in pieces:
        wanted = num_samples()
        left = piece.content.shape[0] if wanted is None else max(0, wanted - given)
        given += piece.content.shape[0]
        if left:
            yield piece._replace(content=piece.content[:left])


def delivered(pieces: Iterable[Piece], *, rate: float, meter: Meter) -> Iterator[Tensor]:
    """Contents of pieces; each counts as delivered when the next one is asked for.

    ``rate`` is that of the contents, samples or tokens per second.
    """
    for piece in pieces:
        yield piece.content
        meter.deliver(seconds=piece.content.shape[0] / rate, arrived=piece.arrived)


def _by_chunks(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    """Cut pieces where a chunk ends."""
    filled = 0
    for piece in pieces:
        if piece.starts:
            filled = 0
        rest, starts = piece.content, piece.starts
        while rest.shape[0]:
            part = rest[: size - filled]
            yield Piece(part, piece.arrived, starts)
            rest, starts = rest[part.shape[0] :], False
            filled = (filled + part.shape[0]) % size


def _rest(stream: Stream, meter: Meter, arrived: float) -> Iterator[Piece]:
    with meter.working():
        sig = _finite(stream.flush().sig)
    if sig.numel():
        yield Piece(sig, arrived)


def _finite(sig: Tensor) -> Tensor:
    """Row (T,) of a decoded signal (1, T)."""
    if not bool(sig.isfinite().all()):
        raise ValueError("the decoded signal is not finite; use a higher precision")
    return sig[0].float().cpu()


def _device(stream: Stream) -> torch.device:
    return next(stream.codec.parameters()).device
