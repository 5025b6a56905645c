"""The receiver's source: what it does with packets over real sockets, by the clock and without."""

import socket
import threading
import time
from contextlib import closing, contextmanager

import pytest
import torch

from focalcodec.bitstream import Header, ModelError, Packetizer, repeat_last
from focalcodec.cli.live.packets import Loss, PacketSource
from focalcodec.cli.live.sockets import open_inbox, parse_address
from focalcodec.cli.live.stop import Stop

TOK_FORMAT = {
    "bits": 6,
    "codec_rate": 16_000,
    "samples_per_tok": 320,
    "fingerprint": "0" * 32,
    "model_id": "tiny",
}
TOKS = torch.arange(40) % 61


class Sender:
    """Datagrams to a source; ``packets`` are a hello and ten packets of 4 tokens."""

    def __init__(self, port, *, tok_format=TOK_FORMAT):
        packetizer = Packetizer(Header(sample_rate=16_000, **tok_format))
        self.packets, self.end = packetizer.push(TOKS), packetizer.finish()[0]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.port = port

    def send(self, *packets):
        for packet in packets:
            self._socket.sendto(packet, ("127.0.0.1", self.port))

    def close(self):
        self._socket.close()


@contextmanager
def connected(**settings):
    """Source, sender to it, and the lines that the source says."""
    lines = []
    inbox = open_inbox(parse_address("udp://127.0.0.1:0"))
    settings = {
        "tok_format": TOK_FORMAT,
        "codebook_size": 64,
        "conceal": repeat_last,
        "max_delay_s": 0.16,
        "keeps_time": False,
        "end_after_s": 5.0,
        "loss": Loss(),
        "stop": Stop(),
    } | settings
    source = PacketSource(inbox, chunk_toks=4, echo=lines.append, **settings)
    with closing(source), closing(Sender(inbox.address.port)) as sender:
        yield source, sender, lines


def toks_of(pieces):
    return torch.cat([piece.content for piece in pieces])


def test_tokens_come_as_soon_as_their_packet():
    with connected() as (source, sender, _):
        pieces = source.pieces()
        for index, packet in enumerate(sender.packets[1:]):
            sender.send(*sender.packets[:1] * (index == 0), packet)
            before = time.perf_counter()
            piece = next(pieces)
            assert torch.equal(piece.content, TOKS[4 * index : 4 * index + 4])
            assert before - 0.1 < piece.arrived <= time.perf_counter()
            assert piece.starts == (index == 0)
        sender.send(sender.end)
        assert list(pieces) == []
    assert source.header.model_id == "tiny"


def test_overtaken_packet_is_put_in_its_place():
    with connected() as (source, sender, _):
        hello, a, b, *rest = sender.packets
        sender.send(hello, b, a, *rest, sender.end)
        assert torch.equal(toks_of(source.pieces()), TOKS)
    assert "1 reordered" in source.notes() and "0 concealed" in source.notes()


def test_lost_end_of_the_tokens_is_concealed_once_the_end_is_known():
    with connected(end_after_s=60) as (source, sender, _):
        sender.send(*sender.packets[:-1], sender.end)
        start = time.perf_counter()
        toks = toks_of(source.pieces())
        assert time.perf_counter() - start < 5
    assert torch.equal(toks, torch.cat([TOKS[:36], TOKS[32:36]]))
    assert "4 concealed" in source.notes()


def test_by_the_clock_what_is_late_is_concealed_and_counted_late():
    with connected(keeps_time=True, max_delay_s=0.1) as (source, sender, _):
        sender.send(*sender.packets[:4])
        pieces, start = source.pieces(), time.perf_counter()
        assert torch.equal(toks_of([next(pieces) for _ in range(3)]), TOKS[:12])
        first = next(pieces)
        assert torch.equal(first.content, TOKS[8:12])  # the last packet again
        # a chunk of 80 ms after the one before, and 100 ms of patience
        assert first.arrived - start > 0.17
        second = next(pieces)
        assert second.arrived - start > 0.25
        sender.send(*sender.packets[4:], sender.end)
        assert torch.equal(toks_of(pieces), TOKS[20:])
    assert "2 late" in source.notes() and "8 concealed" in source.notes()


def test_without_the_clock_a_slow_sender_is_waited_for():
    with connected(max_delay_s=0) as (source, sender, _):
        sender.send(*sender.packets[:4])
        late = threading.Timer(0.5, sender.send, [*sender.packets[4:], sender.end])
        late.start()
        assert torch.equal(toks_of(source.pieces()), TOKS)
        late.join()
    assert "0 concealed" in source.notes()


def test_the_clock_does_not_conceal_for_ever():
    """At most a second of it, and then the next stream may come."""
    with connected(keeps_time=True, max_delay_s=0, end_after_s=2) as (source, sender, lines):
        sender.send(*sender.packets[:3])
        toks = toks_of(source.pieces())
        assert toks.shape[0] == 8 + 50
    assert lines == ["nothing has come for 2 s, so this is the end"]


def test_first_packet_is_waited_for_and_garbage_does_not_count():
    with connected(end_after_s=0.2) as (source, sender, lines):
        sender.send(b"garbage")
        late = threading.Timer(0.6, sender.send, [*sender.packets, sender.end])
        late.start()
        assert torch.equal(toks_of(source.pieces()), TOKS)
        late.join()
    assert lines == [] and "1 corrupt" in source.notes()


def test_garbage_does_not_keep_a_dead_stream_alive():
    with connected(end_after_s=0.5) as (source, sender, lines):
        sender.send(*sender.packets)
        rubbish = [threading.Timer(0.1 * i, sender.send, [b"garbage"]) for i in range(20)]
        for timer in rubbish:
            timer.start()
        start = time.perf_counter()
        assert torch.equal(toks_of(source.pieces()), TOKS)
        assert time.perf_counter() - start < 2.2
        for timer in rubbish:
            timer.cancel()
            timer.join()
    assert len(lines) == 1


def test_signal_ends_it_with_what_was_waiting():
    stop = Stop()
    with connected(stop=stop) as (source, sender, _):
        hello, a, b, *_ = sender.packets
        sender.send(hello, a, sender.packets[3])  # the second one is missing
        pieces = source.pieces()
        assert torch.equal(next(pieces).content, TOKS[:4])
        later = threading.Timer(0.3, setattr, [stop, "signum", 2])
        later.start()
        assert torch.equal(toks_of(pieces), torch.cat([TOKS[:4], TOKS[8:12]]))
        later.join()


def test_another_codec_is_refused_when_its_hello_comes():
    with connected() as (source, sender, _):
        with closing(
            Sender(sender.port, tok_format=TOK_FORMAT | {"samples_per_tok": 640})
        ) as other:
            other.send(*other.packets)
            with pytest.raises(ModelError, match="samples_per_tok is 640, not 320"):
                list(source.pieces())


def test_tokens_that_no_codec_made_become_the_last_code():
    with connected(codebook_size=10) as (source, sender, _):
        sender.send(*sender.packets, sender.end)
        assert torch.equal(toks_of(source.pieces()), TOKS.clamp(max=9))


@pytest.mark.parametrize(
    ("fraction", "least", "most"), [(0, 0, 0), (0.2, 150, 250), (1, 1000, 1000)]
)
def test_losses_are_as_many_as_asked_for(fraction, least, most):
    loss, again = Loss(fraction, seed=1), Loss(fraction, seed=1)
    hits = [loss.hits() for _ in range(1000)]
    assert least <= sum(hits) == loss.count <= most
    assert hits == [again.hits() for _ in range(1000)]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("udp://127.0.0.1:5004", "udp://127.0.0.1:5004"),
        ("tcp://[::1]:80/", "tcp://[::1]:80"),
        ("udp://:5004", "udp://:5004"),
    ],
)
def test_addresses_are_read(word, text):
    assert str(parse_address(word)) == text
    assert parse_address("speech.wav") is None
