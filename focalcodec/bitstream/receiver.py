"""The receiver of live speech: packets in any order in, tokens in order out.

It follows one stream at a time, from the first packet that it sees. Up to ``max_gap`` tokens in,
that is from the beginning of the stream; a receiver that joins later begins where it joins. What is
missing is concealed, up to ``max_gap`` tokens in a row; behind a longer gap decoding begins anew.

**No packet is believed alone** that is far ahead or of another stream: such a packet is put aside,
and only when ``patience`` of them belong together, with none of the stream between them, the
receiver follows them, from the first of them on; RFC 3550, A.1, goes about it likewise. So neither
a stray packet nor a second sender ends a stream, and a sender that was started again, which has
another stream number, loses nothing. Where there is no stream to follow, before the first one,
behind the end of one, and when `Receiver.conceal` has bridged all that it may, one is enough.

**There is no clock here.** What happens depends on the packets and the calls alone. A caller that
has waited long enough says so: by `Receiver.conceal` when tokens are needed now, by
`Receiver.finish` when nothing more will come. Also behind the packet that ends the stream, missing
tokens are waited for: they may have been overtaken by it.
"""

from focalcodec.bitstream.concealment import Concealment, repeat_last
from focalcodec.bitstream.counts import Counts
from focalcodec.bitstream.errors import PacketError
from focalcodec.bitstream.fields import MAX_BITS, check_range
from focalcodec.bitstream.header import Header
from focalcodec.bitstream.packets import (
    MAX_TOKS,
    Packet,
    packet_from_bytes,
    serial_difference,
)
from focalcodec.bitstream.sequencer import Chunk, Sequencer

_MAX_WAIT = 2**16  # tokens; more would cost memory for nothing


class Receiver:
    """Tokens of a stream of packets; no bytes that come in make it raise.

    They are in [0, 2^bits). What it holds, and gives at once, is bounded by its settings, whatever
    packets say.

    Parameters
    ----------
    bits : per token of the codec at hand; tokens of another width are not taken.
    conceal : gives tokens for missing ones, see `focalcodec.bitstream.concealment`.
    max_delay : tokens that wait, at most, for a missing one before them; 0 to 65536. With 0 nothing
        is put in order; a packet that k others of n tokens have overtaken needs k x n.
    max_gap : tokens that are concealed in a row, at most; 1 to 65536. 50 are 1 s at 50 Hz.
        Several packets long; who joins so early gets what was missed concealed, too.
    patience : packets in a row that make another stream the one to follow, >= 1.

    Attributes
    ----------
    header : what the sender says of its tokens, for `check_model`; None until a hello was received.
        It stays the same object until something else is said. Tokens may come before it.
    has_ended : whether all tokens of the stream have been given.
    counts : of packets and tokens so far.

    Raises
    ------
    ValueError : if a number is out of range.
    """

    def __init__(
        self,
        *,
        bits: int,
        conceal: Concealment = repeat_last,
        max_delay: int = 0,
        max_gap: int = 50,
        patience: int = 3,
    ) -> None:
        check_range("bits", bits, 1, MAX_BITS)
        check_range("max_delay", max_delay, 0, _MAX_WAIT)
        check_range("max_gap", max_gap, 1, _MAX_WAIT)
        check_range("patience", patience, 1, _MAX_WAIT)
        self.header: Header | None = None
        self.has_ended = False
        self.counts = Counts()
        self._bits, self._max_gap, self._patience = bits, max_gap, patience
        self._settings = {"conceal": conceal, "max_delay": max_delay, "max_gap": max_gap}
        self._stream: int | None = None
        self._sequencer: Sequencer | None = None
        self._is_idle = True  # no stream to follow
        self._strays: dict[bytes, Packet] = {}  # put aside

    @property
    def knows_end(self) -> bool:
        """Whether the packet that ends the stream has come; tokens may be missing before it."""
        return self._sequencer is not None and self._sequencer.end is not None

    def push(self, content: bytes) -> list[Chunk]:
        """Chunks of tokens that can be given now that this packet has come."""
        try:
            packet = packet_from_bytes(content := bytes(content))
        except PacketError:
            self.counts.corrupt += 1
            return []
        if packet.header is None and packet.bits != self._bits:
            self.counts.foreign += 1
            return []
        return self._admit(packet, content)

    def conceal(self, num_toks: int) -> list[Chunk]:
        """Chunks of the next ``num_toks`` tokens, whatever is missing, for when nothing comes.

        Fewer at the end of the stream, and after ``max_gap`` tokens nothing until a packet comes;
        nothing before the first packet. What is concealed here and comes later is late.
        """
        if self._sequencer is None or self.has_ended:
            return []
        chunks = self._sequencer.force(num_toks)
        self.has_ended = self._sequencer.has_ended
        self._is_idle |= sum(chunk.toks.numel() for chunk in chunks) < num_toks
        return chunks

    def finish(self) -> list[Chunk]:
        """Chunks of all the rest, for when nothing more will come; what is missing is concealed.

        These are the tokens up to the end, or if it is not known, up to the newest one that is.
        """
        chunks = self._sequencer.finish() if self._sequencer else []
        self.has_ended = self._is_idle = True
        return chunks

    def _admit(self, packet: Packet, content: bytes) -> list[Chunk]:
        if packet.stream != self._stream or self._goes_on_elsewhere(packet):
            return self._put_aside(packet, content)
        self._strays.clear()
        self._sequencer.take(packet)
        if packet.header not in (None, self.header):
            self.header = packet.header
        chunks = self._sequencer.due()
        self.has_ended |= self._sequencer.has_ended
        self._is_idle |= self.has_ended
        return chunks

    def _goes_on_elsewhere(self, packet: Packet) -> bool:
        """Whether a packet of the stream lies behind a gap that is not bridged."""
        if self._sequencer.end is not None:
            return False
        if self._is_idle:
            return self._sequencer.position(packet.first) >= self._sequencer.horizon
        return self._sequencer.gap(packet) > self._max_gap

    def _put_aside(self, packet: Packet, content: bytes) -> list[Chunk]:
        """Count a packet that does not continue the stream; follow it if enough of them do."""
        if not all(self._belong_together(packet, other) for other in self._strays.values()):
            self._strays.clear()
        self._strays[content] = packet  # a copy counts for nothing
        if self._is_idle or len(self._strays) >= self._patience:
            self._count_unused(packet, 1 - len(self._strays))  # the others get another chance
            return self._follow()
        self._count_unused(packet, 1)
        return []

    def _belong_together(self, packet: Packet, other: Packet) -> bool:
        distance = serial_difference(packet.first, other.first)
        reach = self._max_gap + self._patience * MAX_TOKS
        return packet.stream == other.stream and abs(distance) <= reach

    def _count_unused(self, packet: Packet, number: int) -> None:
        if packet.stream == self._stream:
            self.counts.outside += number
        else:
            self.counts.foreign += number

    def _follow(self) -> list[Chunk]:
        """Begin with the first of the packets put aside; what still waits is given before."""
        chunks = self.finish()
        base = next(iter(self._strays.values()))
        strays = sorted(
            self._strays.items(), key=lambda stray: serial_difference(stray[1].first, base.first)
        )
        self._strays = {}
        self._begin(strays[0][1])
        for content, packet in strays:
            chunks += self._admit(packet, content)
        return chunks

    def _begin(self, packet: Packet) -> None:
        start, passed_over = packet.first, self._max_gap
        if packet.stream == self._stream:
            start = self._sequencer.position(start)
            passed_over = min(passed_over, start - self._sequencer.horizon)
        else:
            self.header = None
            start = 0 if start <= self._max_gap else start
        self.counts.restarts += self._sequencer is not None
        self._stream, self.has_ended, self._is_idle = packet.stream, False, False
        self._sequencer = Sequencer(
            start, passed_over=passed_over, counts=self.counts, **self._settings
        )
