"""Long signals in bounded memory: encode and decode in windows with context on both sides.

The codec has full context: attention, and the average over time in every focal block, reach over
the whole signal. So a signal of several windows gets tokens that approximate those of the whole
signal; one that fits into a single window gets exactly those. Windows start on the grid of tokens,
so both ways give equally many tokens of equal times, and what is written by one is read by the
other::

    encode   |<-- left -->|<------- size ------->|<-- right -->|     input samples; tokens of size
    decode   |<-- left -->|<------- size ------->|<-- right -->|     tokens; samples of size, and
                       |overlap|                                     overlap more, cross-faded

The same with a short size and no right context is the chunk-wise streaming of the paper [1]_: see
`Windows.chunks`.

References
----------
.. [1] Della Libera et al., 2025, arXiv:2502.04465, appendix F.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from focalcodec.codec import FocalCodec
from focalcodec.conversion import knn


class Windows(NamedTuple):
    """How a long signal is cut, in samples at the codec's input rate.

    Attributes
    ----------
    size : samples that a window contributes; the default is 30 s, the length that the encoder and
        the codec were trained on.
    left, right : real samples before and after them that the window sees too, rounded down to whole
        tokens where it is tokens that are decoded.
    overlap : samples over which the decoded signals of neighbouring windows are cross-faded.
    """

    size: int = 480_000
    left: int = 48_000
    right: int = 48_000
    overlap: int = 250

    @classmethod
    def chunks(cls, size: int, *, left: int = 48_000, overlap: int = 250) -> Windows:
        """Chunk-wise streaming with a latency of ``size`` samples; the paper's left and overlap.

        The paper tries 2000, 4000 and 8000 samples at 50 Hz. It does not say whether the receiver
        gets the tokens of the overlap twice; here it gets every token once, so the bitrate stays
        that of the codec, and decodes the overlap from tokens that it already has.
        """
        return cls(size=size, left=left, right=0, overlap=overlap)


DEFAULT = Windows()


def encode_blocks(
    codec: FocalCodec, blocks: Iterable[Tensor], *, windows: Windows = DEFAULT
) -> Iterator[Tensor]:
    """Encode a signal that comes in blocks; what has been encoded is forgotten.

    Parameters
    ----------
    codec : codec; the signal's last sample is covered as with ``exact_tail=True``.
    blocks : (T,) consecutive pieces of a signal at ``codec.sample_rate``, of any sizes.
    windows : how to cut. A signal shorter than ``size + right`` is one window, and its tokens are
        those of ``codec.sig_to_toks``.

    Yields
    ------
    (L,) int64 tokens of each window.

    Raises
    ------
    ValueError : if the windows do not fit the codec, or the signal is empty or not finite.
    """
    _check(windows, codec)
    per_tok = codec.samples_per_tok
    signal = _Buffer(blocks)
    index = 0
    while True:
        first, stop = index * windows.size // per_tok, (index + 1) * windows.size
        is_last = not signal.fill(stop + windows.right)
        if is_last and index and first * per_tok >= signal.stop:
            return
        begin = max(first - windows.left // per_tok, 0)
        signal.drop(begin * per_tok)
        # Not cut to whole tokens: every sample that is here helps.
        sig = signal.take(begin * per_tok, stop + windows.right)
        toks = codec.sig_to_toks(sig[None])[0]
        yield toks[first - begin : None if is_last else stop // per_tok - begin]
        if is_last:
            return
        index += 1


def decode_blocks(
    codec: FocalCodec,
    toks: Iterable[Tensor],
    *,
    windows: Windows = DEFAULT,
    num_samples: int | None = None,
) -> Iterator[Tensor]:
    """Decode tokens that come in blocks; what has been decoded is forgotten.

    Parameters
    ----------
    codec : codec.
    toks : (L,) consecutive pieces of tokens, of any sizes.
    windows : how to cut, best as in `encode_blocks`. Fewer tokens than those of ``size + right``
        samples are one window, and their signal is that of ``codec.toks_to_sig``.
    num_samples : output samples in all; None for all that the tokens cover.

    Yields
    ------
    (T,) consecutive pieces of the signal at ``codec.sample_rate_output``.

    Raises
    ------
    ValueError : if the windows do not fit the codec, there is no token, one is out of range, or
        there are too few for ``num_samples``.
    """
    return _decode(codec, toks, windows, lambda: num_samples, convert=lambda qfeats: qfeats)


def convert_blocks(
    codec: FocalCodec,
    toks: Iterable[Tensor],
    *,
    matching_set: Tensor,
    topk: int = 4,
    windows: Windows = DEFAULT,
    num_samples: int | None = None,
) -> Iterator[Tensor]:
    """Decode tokens in the voice of a matching set (M, H), see `focalcodec.conversion.knn`.

    Everything else is as in `decode_blocks`.
    """
    convert = partial(knn, matching_set=matching_set, topk=topk)
    return _decode(codec, toks, windows, lambda: num_samples, convert=convert)


def resynth_blocks(
    codec: FocalCodec, blocks: Iterable[Tensor], *, windows: Windows = DEFAULT
) -> Iterator[Tensor]:
    """Encode and decode a signal that comes in blocks, with ``Windows.chunks`` as it is spoken.

    Parameters
    ----------
    codec, blocks, windows : as in `encode_blocks`.

    Yields
    ------
    (T,) consecutive pieces of the signal at ``codec.sample_rate_output``; together they last as
    long as the input, rounded down to whole samples.
    """
    seen, all_seen = 0, False

    def watch() -> Iterator[Tensor]:
        nonlocal seen, all_seen
        for block in blocks:
            seen += block.shape[0]
            yield block
        all_seen = True

    def num_samples() -> int | None:
        return seen * codec.sample_rate_output // codec.sample_rate if all_seen else None

    toks = encode_blocks(codec, watch(), windows=windows)
    return _decode(codec, toks, windows, num_samples, convert=lambda qfeats: qfeats)


def _decode(
    codec: FocalCodec,
    toks: Iterable[Tensor],
    windows: Windows,
    num_samples: Callable[[], int | None],
    *,
    convert: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    """Decode window by window; ``num_samples`` answers None while the end is not known."""
    _check(windows, codec)
    per_tok = codec.samples_per_tok
    out_per_tok = per_tok * codec.sample_rate_output // codec.sample_rate
    overlap = windows.overlap * codec.sample_rate_output // codec.sample_rate
    held_back = max(overlap, out_per_tok)  # what the next window, or the signal's end, may change
    tokens = _Buffer(toks)
    given, held, index, is_last = 0, None, 0, False
    while not is_last:
        first = index * windows.size // per_tok
        stop = (index + 1) * windows.size // per_tok
        ahead = stop + windows.right // per_tok
        is_last = not tokens.fill(ahead)
        if is_last and index and first >= tokens.stop:
            break
        begin = max(first - windows.left // per_tok, 0)
        tokens.drop(begin)
        qfeats = codec.toks_to_qfeats(tokens.take(begin, ahead)[None])
        sig = codec.feats_to_sig(convert(qfeats))[0]
        sig = sig[: None if is_last else (stop - begin) * out_per_tok]
        sig = _join(held, sig[(first - begin) * out_per_tok - (overlap if index else 0) :], overlap)
        size = max(sig.shape[0] - held_back, 0)
        yield _limit(sig[:size], given, num_samples())
        given, held, index = given + size, sig[size:], index + 1
    covered, wanted = given + held.shape[0], num_samples()
    if wanted is not None and wanted > covered:
        raise ValueError(
            f"num_samples is {wanted}, but {tokens.stop} tokens cover only {covered} samples"
        )
    yield _limit(held, given, wanted)


def _join(held: Tensor | None, sig: Tensor, overlap: int) -> Tensor:
    """Append a signal to the one before, cross-faded over their common samples."""
    if held is None:
        return sig
    common = held.shape[0] - overlap
    fade_in = (torch.arange(overlap, device=sig.device, dtype=sig.dtype) + 0.5) / overlap
    crossed = held[common:] * (1 - fade_in) + sig[:overlap] * fade_in
    return torch.cat([held[:common], crossed, sig[overlap:]])


def _limit(piece: Tensor, given: int, wanted: int | None) -> Tensor:
    return piece if wanted is None else piece[: max(wanted - given, 0)]


class _Buffer:
    """Window onto a stream of 1-D tensors, addressed by position in the whole stream.

    Attributes
    ----------
    stop : position behind the last value that has arrived.
    """

    def __init__(self, blocks: Iterable[Tensor]) -> None:
        self.stop = 0
        self._blocks = iter(blocks)
        self._held: list[Tensor] = []
        self._start = 0

    def fill(self, stop: int) -> bool:
        """Take blocks until position ``stop`` is reached; False if the stream ends before."""
        while self.stop < stop:
            block = next(self._blocks, None)
            if block is None:
                return False
            if block.ndim != 1:
                raise ValueError(
                    f"blocks must be one-dimensional, got shape {tuple(block.shape)}; "
                    "a batch of long signals is encoded row by row"
                )
            self._held.append(block)
            self.stop += block.shape[0]
        return True

    def drop(self, start: int) -> None:
        """Forget what lies before position ``start``."""
        if self._held:
            self._held = [torch.cat(self._held)[start - self._start :]]
        self._start = start

    def take(self, start: int, stop: int) -> Tensor:
        """Values from ``start`` up to ``stop`` or the end of what has arrived."""
        held = torch.cat(self._held) if self._held else torch.empty(0)
        self._held = [held]
        return held[start - self._start : stop - self._start]


def _check(windows: Windows, codec: FocalCodec) -> None:
    per_tok = codec.samples_per_tok
    if windows.size < per_tok:
        raise ValueError(
            f"windows.size is {windows.size} samples, but one token has {per_tok}; take at least "
            "that many"
        )
    if min(windows.left, windows.right, windows.overlap) < 0:
        raise ValueError(f"left, right and overlap must be at least 0, got {windows}")
    whole = windows.left // per_tok * per_tok
    if windows.overlap > min(whole, windows.size // per_tok * per_tok):
        raise ValueError(
            f"windows.overlap is {windows.overlap} samples, but must not exceed the whole tokens "
            f"of size ({windows.size}) and of left ({windows.left}), {per_tok} samples each: it is "
            "decoded from the left context"
        )
