"""The command stream between two processes."""

import os
import re
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from focalcodec.bitstream import Header, Packetizer
from focalcodec.cli.inference import Inference
from tests.audio_files import write_noise
from tests.command_line import load, run
from tests.live_processes import started, wait_until

SAMPLES = 48_000  # 3 s: 150 tokens in 38 packets, and 2 hellos
OUT_SAMPLES = 72_000
NUM_TOKS, NUM_PACKETS, NUM_HELLOS = 150, 38, 2
BOTH = pytest.mark.parametrize("scheme", ["udp", "tcp"])


@pytest.fixture
def sent(live_codec):
    """Speech in in.wav, and what the codec makes of it offline in 16 bits."""
    write_noise(Path("in.wav"), num_samples=SAMPLES)
    run("stream", "in.wav", "offline.wav")
    return live_codec


def receiving(scheme, *options, name="receiver", target="out.wav"):
    return started("stream", f"{scheme}://127.0.0.1:0", target, *options, name=name)


def address_of(receiver):
    return receiver.hear(r"listening on (\S+)")[1]


def samples(path):
    return soundfile.read(path, dtype="int16")[0]


def counted(text):
    """Numbers by the words behind them."""
    return {word: int(number) for number, word in re.findall(r"(\d+) (\w[\w ]*)", text)}


@BOTH
def test_receiver_gets_what_the_codec_makes_offline(sent, scheme):
    with receiving(scheme) as receiver:
        out, _ = run("stream", "in.wav", address_of(receiver))
        assert receiver.status == 0
    assert np.array_equal(samples("out.wav"), samples("offline.wav"))
    assert (
        f"{NUM_TOKS} tokens, 0 concealed; {NUM_PACKETS + NUM_HELLOS + 1} packets received"
        in receiver.log
    )
    # The packets of four tokens have 20 bytes; the last of 2 tokens 19, an end 17.
    hello = 17 + 28 + len("codec")
    ends = 5 if scheme == "udp" else 1
    num_bytes = 37 * 20 + 19 + NUM_HELLOS * hello + ends * 17
    assert f"{NUM_PACKETS + NUM_HELLOS + ends} packets sent, {num_bytes} bytes" in out


@BOTH
@pytest.mark.parametrize(
    ("fraction", "conceal", "options"),
    [(0.05, "repeat", ()), (0.2, "zeros", ("--realtime",))],
    ids=["5 % repeat", "20 % zeros by the clock"],
)
def test_lost_packets_are_concealed_and_counted(sent, scheme, fraction, conceal, options):
    loss = ("--loss", fraction, "--seed", 3)
    with receiving(scheme, "--conceal", conceal, *options) as receiver:
        out, _ = run("stream", "in.wav", address_of(receiver), *loss, *options)
        assert receiver.status == 0, receiver.log
    assert soundfile.info("out.wav").frames == OUT_SAMPLES
    lost = counted(out)["packets lost on purpose"]
    assert 0 < lost < 2.5 * fraction * NUM_PACKETS + 3
    counts = counted(receiver.log)
    assert counts["tokens"] + counts["concealed"] == NUM_TOKS
    assert 0 < counts["concealed"] <= 4 * lost
    assert counts["concealed"] % 4 in (0, 2)  # whole packets
    assert counts["packets received"] + lost <= NUM_PACKETS + NUM_HELLOS + 5


def test_losses_of_a_seed_are_the_same_on_either_side(sent):
    found, loss = [], ("--loss", 0.2, "--seed", 5)
    for sender_options, receiver_options in [(loss, ()), ((), loss)]:
        with receiving("tcp", *receiver_options, "--overwrite") as receiver:
            run("stream", "in.wav", address_of(receiver), *sender_options)
            assert receiver.status == 0
        found.append((samples("out.wav").tobytes(), counted(receiver.log)["concealed"]))
    assert found[0] == found[1] and found[0][1] > 0


@BOTH
def test_killed_sender_leaves_a_sound_file(sent, scheme):
    write_noise(Path("long.wav"), num_samples=160_000)
    with receiving(scheme, "--end-after", 1, "--progress") as receiver:
        words = ("stream", "long.wav", address_of(receiver), "--realtime")
        with started(*words, name="sender") as sender:
            receiver.hear(r"1\.\d s of speech")
            sender.signal(signal.SIGKILL)
            assert sender.status == -signal.SIGKILL
        assert receiver.status == 0, receiver.log
        assert "nothing has come for 1 s, so this is the end" in receiver.log
    toks = sent.sig_to_toks(load("long.wav")[None])
    found = torch.from_numpy(soundfile.read("out.wav", dtype="float32")[0])
    assert 24_000 <= found.shape[0] < 240_000 and found.shape[0] % 1920 == 0
    expected = sent.toks_to_sig(toks)[0, : found.shape[0]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + 1.01 / 32768)


def test_killed_receiver_ends_a_sender_over_tcp(sent):
    write_noise(Path("long.wav"), num_samples=160_000)
    with receiving("tcp") as receiver:
        words = ("stream", "long.wav", address_of(receiver), "--realtime", "--progress")
        with started(*words, name="sender") as sender:
            sender.hear(r"\d s of speech")
            receiver.signal(signal.SIGKILL)
            assert sender.status == 1
            assert ": the connection broke: " in sender.log.splitlines()[-1]
    assert not Path("out.wav").exists()


def test_garbage_changes_nothing(sent):
    rubbish = [os.urandom(size) for size in (1, 13, 23, 500, 1400)] + [b"\xf0\xca" * 40, b""]
    with receiving("udp") as receiver:
        address = address_of(receiver)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for content in rubbish:
                sock.sendto(content, ("127.0.0.1", int(address.rpartition(":")[2])))
            run("stream", "in.wav", address)
        assert receiver.status == 0
    assert counted(receiver.log)["corrupt"] == len(rubbish)
    assert np.array_equal(samples("out.wav"), samples("offline.wav"))


def test_garbage_on_another_connection_changes_nothing(sent):
    with receiving("tcp") as receiver:
        address = address_of(receiver)
        host, port = "127.0.0.1", int(address.rpartition(":")[2])
        with (
            socket.create_connection((host, port)) as idle,
            socket.create_connection((host, port)) as loud,
        ):
            loud.sendall(b"\xf0\xca" * 1000)
            loud.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            loud.close()  # a reset
            idle.sendall(b"x")
            run("stream", "in.wav", address)
        assert receiver.status == 0
    assert np.array_equal(samples("out.wav"), samples("offline.wav"))
    assert re.search(r"\d bytes that were no packets", receiver.log)


def test_another_codec_is_refused(sent):
    tok_format = Inference(sent).tok_format | {"fingerprint": "0" * 32, "model_id": "other"}
    packets = Packetizer(Header(sample_rate=16_000, **tok_format)).push(torch.arange(8))
    with receiving("udp") as receiver:
        port = int(address_of(receiver).rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for packet in packets:
                sock.sendto(packet, ("127.0.0.1", port))
        assert receiver.status == 1
    last = receiver.log.splitlines()[-1]
    assert "the tokens are of model 'other', not of model 'codec': fingerprint is 0000" in last
    assert last.endswith("nothing was written") and not Path("out.wav").exists()


def test_receiver_that_is_interrupted_keeps_what_has_come(sent):
    with receiving("udp", "--progress") as receiver:
        address = address_of(receiver)
        header = Header(sample_rate=16_000, **Inference(sent).tok_format)
        toks = sent.sig_to_toks(load("in.wav")[None])[0, :40]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for packet in Packetizer(header).push(toks):
                sock.sendto(packet, ("127.0.0.1", int(address.rpartition(":")[2])))
            wait_until(lambda: any(path.stat().st_size > 30_000 for path in partial_files()))
        receiver.signal(signal.SIGINT)
        assert receiver.status == 130 and "interrupted; out.wav got 0.8 s" in receiver.log
    assert np.array_equal(samples("out.wav"), samples("offline.wav")[:19_200])


def partial_files():
    return list(Path().glob(".focalcodec-*/partial"))


def test_second_stream_begins_anew(sent):
    """The first sender dies without an end, another one takes its place."""
    header = Header(sample_rate=16_000, **Inference(sent).tok_format)
    toks = sent.sig_to_toks(load("in.wav")[None])[0]
    first = Packetizer(header).push(toks[:22])
    second = Packetizer(header)
    packets = first + second.push(toks[:40]) + second.finish()
    with receiving("tcp") as receiver:
        port = int(address_of(receiver).rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"".join(packets))
        assert receiver.status == 0
    assert "1 restarts" in receiver.log
    expected = torch.cat([sent.toks_to_sig(part[None])[0] for part in (toks[:22], toks[:40])])
    found = torch.from_numpy(soundfile.read("out.wav", dtype="float32")[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + 1.01 / 32768)
