"""Packets between two processes, over real sockets."""

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from focalcodec.bitstream import Chunk, PacketFinder, Receiver
from tests.packet_streams import (
    check_order,
    concealed_in,
    seen,
    send_bytes,
    send_datagrams,
    speech,
    toks_in,
)

COUNT = 400
PATIENCE_S = 60  # for a process that has to import PyTorch
HIT = (1, 9, 10, 27)  # places in the stream; 0 and 26 are hellos
HIT_POSITIONS = [*range(0, 4), *range(32, 40), *range(100, 104)]


@contextmanager
def running(send: Callable[..., None], *args: object) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=send, args=args)
    process.start()
    try:
        yield
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def check(receiver: Receiver, chunks: list[Chunk]) -> None:
    check_order(chunks, speech(COUNT))
    assert receiver.has_ended and len(toks_in(chunks)) == COUNT
    assert concealed_in(chunks) == HIT_POSITIONS
    assert seen(receiver.counts) == {"received": 101, "toks": COUNT - 16, "concealed": 16}


def test_lost_datagrams_are_concealed():
    receiver, chunks = Receiver(bits=12), []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE_S)
        with running(send_datagrams, sock.getsockname()[1], COUNT, HIT):
            while not receiver.has_ended:
                chunks += receiver.push(sock.recv(2048))
    check(receiver, chunks)


def test_damage_in_a_byte_stream_is_passed_over():
    receiver, finder, chunks = Receiver(bits=12), PacketFinder(), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        with running(send_bytes, server.getsockname()[1], COUNT, HIT):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                while content := connection.recv(64):
                    for packet in finder.push(content):
                        chunks += receiver.push(packet)
    finder.finish()
    check(receiver, chunks)
    assert finder.skipped == 4 * 23
