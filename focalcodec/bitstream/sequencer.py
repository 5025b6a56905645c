"""The tokens of one stream in their order, missing ones waited for and then concealed.

Positions are indices of tokens in the stream that do not wrap around: plain integers, so that all
comparisons are.
"""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from focalcodec.bitstream.concealment import Concealment
from focalcodec.bitstream.counts import Counts
from focalcodec.bitstream.packets import Packet, serial_difference


class Chunk(NamedTuple):
    """Tokens (L,) int64 that follow those of the chunk before.

    ``first`` is the position of the first one. Either all were received or all are ``concealed``.
    ``starts`` means that what came before does not matter: decoding begins anew.
    """

    toks: Tensor
    first: int
    concealed: bool
    starts: bool


class Sequencer:
    """Puts the tokens of one stream in order.

    Parameters
    ----------
    start : position of the first token to give.
    passed_over : tokens right before ``start`` that the stream had and nobody will get.
    counts : where to count.
    conceal, max_delay, max_gap : as of `focalcodec.bitstream.Receiver`.

    Attributes
    ----------
    horizon : position behind the last token that is known to have been sent.
    end : position behind the last token of the stream; None while it is not known.
    """

    def __init__(
        self,
        start: int,
        *,
        passed_over: int,
        counts: Counts,
        conceal: Concealment,
        max_delay: int,
        max_gap: int,
    ) -> None:
        self.horizon = start
        self.end: int | None = None
        self._next = start  # to be given
        self._received = start  # behind the newest token that was received
        self._waiting: dict[int, int] = {}  # tokens by position, from `_next` on
        self._missed = set(range(start - passed_over, start))  # not older than `max_gap`
        self._newest = 0  # tokens in the newest packet that has any
        self._last, self._since = torch.empty(0, dtype=torch.int64, device="cpu"), 0
        self._starts = True
        self._counts, self._conceal = counts, conceal
        self._max_delay, self._max_gap = max_delay, max_gap

    @property
    def has_ended(self) -> bool:
        """Whether every token of the stream has been given."""
        return self.end is not None and self._next >= self.end

    def position(self, first: int) -> int:
        """Position of a sequence number, the one that is nearest to where the stream is."""
        return self._next + serial_difference(first, self._next)

    def gap(self, packet: Packet) -> int:
        """Tokens that are missing between all that were received and a packet; < 0 if it is old."""
        return self.position(packet.first) - self._received

    def take(self, packet: Packet) -> None:
        """Keep what is new in a packet whose `gap` is bridged, and count the packet."""
        start = self.position(packet.first)
        end = start + packet.toks.numel()
        if end <= self._next - self._max_gap or self._contradicts(packet, end):
            self._counts.outside += 1
            return
        toks = dict(enumerate(packet.toks.tolist(), start))
        new = {p: tok for p, tok in toks.items() if p >= self._next and p not in self._waiting}
        if not self._missed.isdisjoint(toks):
            self._counts.late += 1
        elif new or packet.header or (packet.is_last and self.end is None):
            self._counts.received += 1
            self._counts.reordered += bool(toks) and end <= self.horizon
        else:
            self._counts.duplicate += 1
        self._missed.difference_update(toks)
        self._waiting |= new
        if packet.is_last:
            self.end = end
        if end > self._received and toks:
            self._received, self._newest = end, len(toks)
        self.horizon = max(self.horizon, end)

    def due(self) -> list[Chunk]:
        """Chunks that wait for nothing, or have waited long enough."""
        return self._give(self._due())

    def force(self, num_toks: int) -> list[Chunk]:
        """Chunks of the next ``num_toks`` tokens, fewer at the end and behind a long gap."""
        until = min(self._next + num_toks, self._received + self._max_gap)
        return self._give(until if self.end is None else min(until, self.end))

    def finish(self) -> list[Chunk]:
        """Chunks of all tokens that are known to have been sent and were not given yet."""
        return self._give(self.horizon)

    def _contradicts(self, packet: Packet, end: int) -> bool:
        """Whether the stream cannot have this packet, because of its end."""
        if packet.is_last and self.end is None:
            return end < self.horizon
        return self.end is not None and (end > self.end or packet.is_last and end < self.end)

    def _due(self) -> int:
        """Position up to which nothing is waited for."""
        until = self._next
        for known in sorted(self._waiting):
            if known > until and self.horizon - known <= self._max_delay:
                return until
            until = known + 1
        return until if self._max_delay else self.horizon

    def _give(self, until: int) -> list[Chunk]:
        chunks = []
        for is_there, run in groupby(range(self._next, until), key=self._waiting.__contains__):
            positions = list(run)
            toks = self._take_out(positions) if is_there else self._make_up(positions)
            chunks.append(Chunk(toks, positions[0], not is_there, self._starts))
            self._starts = False
        self._next = max(self._next, until)
        self._missed = {p for p in self._missed if p >= self._next - self._max_gap}
        return chunks

    def _take_out(self, positions: list[int]) -> Tensor:
        toks = self._last.new_tensor([self._waiting.pop(p) for p in positions])
        self._last, self._since = torch.cat([self._last, toks])[-self._newest :], 0
        self._counts.toks += len(positions)
        return toks

    def _make_up(self, positions: list[int]) -> Tensor:
        count = len(positions)
        toks = self._conceal(self._last, since=self._since, count=count)
        if toks.shape != (count,):
            raise ValueError(f"conceal must give ({count},) tokens, got shape {tuple(toks.shape)}")
        self._missed.update(positions)
        self._since += count
        self._counts.concealed += count
        return toks
