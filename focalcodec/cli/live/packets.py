"""Tokens in packets: the sender's sink and the receiver's source, which minds the clock."""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from focalcodec.bitstream import Chunk, Concealment, Header, Packetizer, Receiver, check_model
from focalcodec.cli.live.end import End
from focalcodec.cli.live.sockets import Inbox, Outbox
from focalcodec.cli.live.stop import SLICE_S, Stop
from focalcodec.live import Piece

_AFTER_END_S = 0.3  # that packets which the end has overtaken get, at least


class Loss:
    """Packets that are lost on purpose, to hear and count what becomes of it.

    Parameters
    ----------
    probability : of each packet, independent of the others.
    seed : for the same losses again; None for others each time.

    Attributes
    ----------
    count : packets lost so far.
    """

    def __init__(self, probability: float = 0.0, *, seed: int | None = None) -> None:
        self.count = 0
        self._probability, self._random = probability, random.Random(seed)

    def hits(self) -> bool:
        """Whether the next packet is lost."""
        is_hit = self._random.random() < self._probability
        self.count += is_hit
        return is_hit

    def notes(self) -> str:
        """How many were lost."""
        return f"{self.count} packets lost on purpose" if self.count else ""


class PacketSink(End):
    """Packets of tokens into a box.

    Parameters
    ----------
    outbox : where to put them.
    header : of the tokens.
    toks_per_packet : at most.
    loss : of packets.
    """

    def __init__(self, outbox: Outbox, *, header: Header, toks_per_packet: int, loss: Loss) -> None:
        self._outbox, self._loss = outbox, loss
        self._packetizer = Packetizer(header, toks_per_packet=toks_per_packet)
        self._num_packets = self._num_bytes = 0

    def consume(self, contents: Iterable[Tensor]) -> None:
        """Send tokens as they come, and at last that it was all.

        Raises
        ------
        OSError : if the other side cannot be reached any more.
        """
        for toks in contents:
            for packet in self._packetizer.push(toks):
                self._send(packet)
        for _ in range(self._outbox.num_ends):
            for packet in self._packetizer.finish():
                self._send(packet)
            self._outbox.pause()

    def _send(self, packet: bytes) -> None:
        if not self._loss.hits():
            self._outbox.send(packet)
            self._num_packets += 1
            self._num_bytes += len(packet)

    def notes(self) -> str:
        """How much was sent."""
        sent = f"{self._num_packets} packets sent, {self._num_bytes} bytes"
        return "; ".join(filter(None, [sent, self._loss.notes()]))

    def close(self) -> None:
        """Close the box."""
        self._outbox.close()


class PacketSource(End):
    """Tokens of the packets in a box, missing ones concealed.

    Tokens go on as soon as nothing before them is missing any more, or has been waited for long
    enough. Where it ``keeps_time``, as a loudspeaker needs it, the clock decides as well: when the
    next chunk is later than ``max_delay_s`` after its time, which is a chunk after the one before,
    it is concealed; what comes then is late. Otherwise packets alone decide, and a slow sender is
    waited for.

    Parameters
    ----------
    inbox : where packets come.
    tok_format : of the codec at hand, see `check_model`.
    codebook_size : of the codec; a larger token, which no codec made, becomes the last code.
    chunk_toks : tokens of a chunk.
    conceal : makes tokens for missing ones.
    max_delay_s : that a missing token is waited for.
    keeps_time : conceal by the clock.
    end_after_s : without a packet after the first one, until it ends.
    loss : of packets that come.
    stop : ends it.
    echo : takes a line about an end that nobody announced.

    Attributes
    ----------
    header : of the tokens; None until the sender has said it.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        tok_format: dict,
        codebook_size: int,
        chunk_toks: int,
        conceal: Concealment,
        max_delay_s: float,
        keeps_time: bool,
        end_after_s: float,
        loss: Loss,
        stop: Stop,
        echo: Callable[[str], None],
    ) -> None:
        tok_rate = tok_format["codec_rate"] / tok_format["samples_per_tok"]
        max_delay = math.ceil(max_delay_s * tok_rate)
        self._receiver = Receiver(
            bits=tok_format["bits"],
            conceal=conceal,
            max_delay=max_delay,
            max_gap=max(50, 2 * max_delay),
        )
        self.header: Header | None = None
        self._inbox, self._loss, self._stop, self._echo = inbox, loss, stop, echo
        self._tok_format, self._last_code = tok_format, codebook_size - 1
        self._chunk_toks, self._chunk_s = chunk_toks, chunk_toks / tok_rate
        self._max_delay_s, self._keeps_time = max_delay_s, keeps_time
        self._end_after_s = end_after_s
        self._heard: float | None = None  # when a packet of the stream has come
        self._due = math.inf  # when the next chunk is concealed

    def pieces(self) -> Iterator[Piece]:
        """Yield tokens until the stream ends, nothing comes any more, or a signal.

        Raises
        ------
        ModelError : if they are of another codec.
        """
        while not self._is_over():
            left = self._due - time.perf_counter()
            for packet in self._inbox.receive(min(SLICE_S, left)):
                if not self._loss.hits():
                    yield from self._pieces(self._take(packet))
            yield from self._pieces(self._conceal())
        yield from self._pieces(self._receiver.finish())

    def _take(self, packet: bytes) -> list[Chunk]:
        before = self._num_ours()
        chunks = self._receiver.push(packet)
        if self._receiver.header is not None and self._receiver.header is not self.header:
            check_model(self._receiver.header, **self._tok_format)
            self.header = self._receiver.header
        if self._num_ours() > before:
            self._heard = time.perf_counter()
        if chunks:
            self._due = time.perf_counter() + self._chunk_s + self._max_delay_s
        return chunks

    def _conceal(self) -> list[Chunk]:
        """Chunks that are due now."""
        if not self._keeps_time or time.perf_counter() < self._due:
            return []
        chunks = self._receiver.conceal(self._chunk_toks)
        self._due = self._due + self._chunk_s if chunks else math.inf
        return chunks

    def _pieces(self, chunks: list[Chunk]) -> Iterator[Piece]:
        for chunk in chunks:
            toks = chunk.toks.clamp(max=self._last_code)
            yield Piece(toks, time.perf_counter(), chunk.starts)

    def _is_over(self) -> bool:
        if self._stop.requested or self._receiver.has_ended:
            return True
        if self._heard is None:
            return False
        silent = time.perf_counter() - self._heard
        if self._receiver.knows_end:
            return silent > max(_AFTER_END_S, self._max_delay_s)
        if silent > self._end_after_s:
            self._echo(f"nothing has come for {self._end_after_s:g} s, so this is the end")
            return True
        return False

    def _num_ours(self) -> int:
        counts = self._receiver.counts
        return counts.received + counts.duplicate + counts.late + counts.outside

    def notes(self) -> str:
        """Say what became of the packets."""
        notes = [str(self._receiver.counts), self._inbox.notes(), self._loss.notes()]
        return "; ".join(filter(None, notes))

    def close(self) -> None:
        """Close the box."""
        self._inbox.close()
