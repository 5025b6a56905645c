"""The command stream in processes of its own: pipes, signals, readers that go away."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from focalcodec.bitstream import open_focal
from focalcodec.cli.live.endpoints import check_endpoints, parse_endpoint
from focalcodec.resampling import resample
from tests.audio_files import write_noise
from tests.command_line import load
from tests.live_processes import num_waiting, started, wait_until

HALF_STEP = 0.51 / 32768  # of 16 bits


def raw(size, *, seed=0):
    """Noise as bytes, and as the signal that they are."""
    samples = np.random.default_rng(seed).integers(-16_000, 16_000, size).astype("<i2")
    return samples.tobytes(), torch.from_numpy(samples.astype(np.float32) / 32768)


def feed(descriptor, content):
    def write() -> None:
        with os.fdopen(descriptor, "wb") as pipe:
            pipe.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_pipe_to_pipe_is_the_codec_offline(live_codec, root):
    content, sig = raw(40_003)
    done = subprocess.run(
        [sys.executable, "-m", "focalcodec", "stream", "-", "-", "--rate", "48000"],
        input=content,
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    found = torch.from_numpy(np.frombuffer(done.stdout, "<i2").astype(np.float32) / 32768)
    resampled = resample(sig, sample_rate=48_000, new_sample_rate=16_000)
    expected = live_codec.toks_to_sig(live_codec.sig_to_toks(resampled[None]))[0, :20_002]
    expected = expected.clamp(max=1 - 2**-15)  # the largest sample of 16 bits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + HALF_STEP)
    assert done.stderr.startswith(b"0.8 s of speech, real-time factor ")


def test_half_a_sample_is_left_out(live_codec):
    content, _ = raw(3000)
    left, right = os.pipe()
    with started("stream", "-", "out.wav", name="half", stdin=left) as command:
        thread = feed(right, content + b"\1")
        assert command.status == 0 and "half a sample" in command.log
        thread.join()
    os.close(left)
    assert soundfile.info("out.wav").frames == 4500


def test_no_sample_makes_no_file(live_codec):
    with started("stream", "-", "out.wav", name="empty") as command:
        assert command.status == 1
        assert command.log == "focalcodec: - gave nothing, so nothing was written\n"
    assert not Path("out.wav").exists()


@pytest.mark.parametrize(
    ("signum", "status", "target"),
    [(signal.SIGINT, 130, "out.wav"), (signal.SIGTERM, 143, "out.focal")],
    ids=["INT", "TERM"],
)
def test_signal_keeps_what_is_there(live_codec, signum, status, target):
    write_noise(Path("in.wav"), num_samples=480_000, sample_rate=48_000, channels=2)
    words = ("stream", "in.wav", target, "--realtime", "--progress")
    with started(*words, name="interrupted") as command:
        command.hear(r"1\.\d s of speech")
        command.signal(signum)
        assert command.status == status
        assert f"interrupted; {target} got " in command.log
    toks = live_codec.sig_to_toks(load("in.wav")[None])
    if target == "out.focal":
        with open_focal(target) as reader:
            found = torch.cat(list(reader))
            assert reader.complete and 50 < found.shape[0] < 500
        whole = found.shape[0] // 4 * 4 - 4  # the last chunk ends where the source was stopped
        assert torch.equal(found[:whole], toks[0, :whole])
    else:
        found, _ = soundfile.read(target, dtype="float32")
        assert 24_000 < found.shape[0] < 240_000
        whole = found.shape[0] // 1920 * 1920 - 1920
        expected = live_codec.toks_to_sig(toks)[0, :whole]
        atol = 1e-5 + 2 * HALF_STEP
        torch.testing.assert_close(torch.from_numpy(found[:whole]), expected, rtol=0, atol=atol)
    assert not list(Path().glob(".focalcodec-*"))


def test_signal_ends_a_pipe_that_nothing_comes_through(live_codec):
    left, right = os.pipe()
    with started("stream", "-", "out.wav", "--progress", name="idle", stdin=left) as command:
        os.write(right, raw(32_000)[0])
        wait_until(lambda: not num_waiting(right))
        command.signal(signal.SIGINT)
        assert command.status == 130 and "interrupted; out.wav got 2.0 s" in command.log
    os.close(left)
    os.close(right)
    assert soundfile.info("out.wav").frames == 48_000


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_terminal_and_closed_standard_streams_are_refused(name, monkeypatch):
    ends = [
        parse_endpoint("-" if name == "stdin" else "in.wav", device="mic"),
        parse_endpoint("-" if name == "stdout" else "out.wav", device="speaker"),
    ]
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(ValueError, match="- is closed here"):
        check_endpoints(*ends, overwrite=False)
    leader, follower = os.openpty()
    with os.fdopen(leader), os.fdopen(follower) as terminal:
        monkeypatch.setattr(sys, name, terminal)
        with pytest.raises(ValueError, match="- is a terminal here"):
            check_endpoints(*ends, overwrite=False)


@pytest.mark.parametrize("reads", [True, False], ids=["then closes", "never"])
def test_reader_that_has_gone_is_one_line(live_codec, reads):
    write_noise(Path("in.wav"), num_samples=160_000)
    left, right = os.pipe()
    with started("stream", "in.wav", "-", name="gone", stdout=right) as command:
        os.close(right)
        if reads:
            assert len(os.read(left, 1000)) == 1000
        os.close(left)
        assert command.status == 1
        lines = command.log.splitlines()
        assert lines[-1].startswith("focalcodec: the reader of standard output has gone; ")


def test_signal_ends_a_full_pipe_that_nobody_reads(live_codec):
    write_noise(Path("in.wav"), num_samples=160_000)
    left, right = os.pipe()
    with started("stream", "in.wav", "-", "--progress", name="full", stdout=right) as command:
        os.close(right)
        wait_until(lambda: num_waiting(left) > 60_000)
        command.signal(signal.SIGTERM)
        assert command.status == 1
        assert "does not read any more" in command.log
    os.close(left)
