"""The command stream with files: what comes out is the codec offline; what it says."""

import re
import shlex
import socket
import time
from pathlib import Path

import pytest
import soundfile
import torch

from focalcodec.bitstream import Writer
from focalcodec.bitstream import read as read_focal
from tests.audio_files import write_noise
from tests.causal_codecs import save_live_codec
from tests.command_line import PCM_16, load, run, unfinished_header, write_toks


@pytest.mark.parametrize(
    ("rate", "channels", "size"),
    [(16_000, 1, 20_011), (48_000, 2, 61_442), (44_100, 1, 40_001), (8000, 1, 1), (48_000, 2, 3)],
)
def test_file_to_file_is_the_codec_offline(live_codec, rate, channels, size):
    source = write_noise(Path("in.flac"), num_samples=size, sample_rate=rate, channels=channels)
    sig = load(source)
    run("stream", "in.flac", "out.wav")
    run("stream", "in.flac", "out.focal")
    run("stream", "out.focal", "back.wav")
    header, toks = read_focal("out.focal")
    assert torch.equal(toks, live_codec.sig_to_toks(sig[None])[0])
    assert (header.sample_rate, header.num_samples) == (rate, size)
    expected = live_codec.toks_to_sig(toks[None], num_samples=header.num_samples_at(24_000))[0]
    assert expected.shape[0] == max(1, int(size * 24_000 / rate + 0.5))
    found = load("out.wav", sample_rate=24_000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + PCM_16)
    assert Path("back.wav").read_bytes() == Path("out.wav").read_bytes()


def test_files_last_as_long_as_those_of_other_commands(live_codec):
    write_noise(Path("in.wav"), num_samples=9999, sample_rate=44_100)
    run("stream", "in.wav", "live.wav")
    run("resynth", "in.wav", "whole.wav")
    run("stream", "in.wav", "live.focal")
    run("encode", "in.wav", "whole.focal")
    assert soundfile.info("live.wav").frames == soundfile.info("whole.wav").frames == 5442
    assert Path("live.focal").read_bytes() == Path("whole.focal").read_bytes()


def test_unfinished_token_file_is_played_up_to_its_end(live_codec):
    with Writer("in.focal", unfinished_header(live_codec)) as writer:
        writer.write(torch.arange(42))
    _, errors = run("stream", "in.focal", "out.wav")
    assert len(errors) == 1 and "41 tokens are there" in errors[0]
    assert soundfile.info("out.wav").frames == 41 * 480


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_keeps_the_length(live_codec, dtype):
    write_noise(Path("in.wav"), num_samples=20_011)
    run("stream", "in.wav", "out.wav", "--dtype", dtype)
    assert soundfile.info("out.wav").frames == 30_017


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_packed_weights_serve_the_same_codec(live_codec, precision):
    write_noise(Path("in.wav"), num_samples=20_011)
    run("stream", "in.wav", "packed.focal", "--pack", precision)
    run("stream", "packed.focal", "out.wav")
    run("stream", "packed.focal", "packed.wav", "--pack", precision)
    header, toks = read_focal("packed.focal")
    assert header.fingerprint == live_codec.fingerprint
    same = toks == live_codec.sig_to_toks(load("in.wav")[None])[0]
    assert same.float().mean() > 0.7
    assert soundfile.info("out.wav").frames == soundfile.info("packed.wav").frames == 30_017
    assert Path("packed.wav").read_bytes() != Path("out.wav").read_bytes(), "nothing was packed"


def test_damaged_file_gives_what_comes_before_the_damage(live_codec):
    whole = write_noise(Path("whole.flac"), num_samples=48_000).read_bytes()
    Path("in.flac").write_bytes(whole[: len(whole) * 6 // 10])
    _, errors = run("stream", "in.flac", "out.wav", status=1)
    assert len(errors) == 1 and "in.flac: is not readable as audio" in errors[0]
    seconds = float(re.search(r"; out\.wav got ([\d.]+) s$", errors[0])[1])
    found = load("out.wav", sample_rate=24_000)
    assert 1 < seconds < 2 and found.shape[0] / 24_000 == pytest.approx(seconds, abs=0.06)
    sig = load("whole.flac")[: found.shape[0] * 2 // 3]
    expected = live_codec.toks_to_sig(live_codec.sig_to_toks(sig[None]))[0]
    whole = found.shape[0] // 1920 * 1920
    torch.testing.assert_close(found[:whole], expected[:whole], rtol=0, atol=1e-5 + PCM_16)


def test_realtime_takes_the_time_of_the_speech_and_measures_latency(live_codec):
    write_noise(Path("in.wav"), num_samples=24_000)
    start = time.perf_counter()
    out, errors = run("stream", "in.wav", "out.wav", "--realtime", "--progress")
    assert time.perf_counter() - start > 1.5
    speech, processing, latency = out.splitlines()
    factor = float(re.fullmatch(r"1\.5 s of speech, real-time factor ([\d.]+)", speech)[1])
    quantiles = r"([\d.]+) ms \(median\) and ([\d.]+) ms \(99 %\)"
    found = re.match(rf"chunks of 80 ms processed in {quantiles}", processing)
    median, high = map(float, found.groups())
    delay, _ = map(float, re.fullmatch(rf"given {quantiles} .*", latency).groups())
    assert 0 < median <= high and factor > 0
    assert delay >= 0.9 * median  # what was spoken last is processed before it is given
    assert re.search(r"[01]\.\d s of speech, real-time factor", "".join(errors))


def test_only_the_summary_is_said_and_with_quiet_nothing(live_codec):
    write_noise(Path("in.wav"), num_samples=2000)
    out, errors = run("stream", "in.wav", "out.wav")
    assert len(out.splitlines()) == 3 and errors == []
    assert run("stream", "in.wav", "out.wav", "--quiet", "--overwrite") == ("", [])


def test_codec_that_is_not_causal_is_refused(folder):
    write_noise(Path("in.wav"), num_samples=2000)
    _, errors = run("stream", "in.wav", "out.wav", status=1)
    assert len(errors) == 1 and "is no causal codec" in errors[0] and "resynth" in errors[0]
    assert not Path("out.wav").exists()


def test_tokens_of_another_codec_are_refused(live_codec, tmp_path):
    other = save_live_codec(tmp_path / "other", code_dim=7)
    write_toks(Path("in.focal"), other, num_samples=9000)
    _, errors = run("stream", "in.focal", "out.wav", status=1)
    assert len(errors) == 1 and "model 'other'" in errors[0] and "bits is 7, not 6" in errors[0]
    assert not Path("out.wav").exists()


def test_no_output_is_replaced_unasked(live_codec):
    write_noise(Path("in.wav"), num_samples=2000)
    for name in ("out.wav", "out.focal"):
        Path(name).write_text("mine")
        _, errors = run("stream", "in.wav", name, status=2)
        assert errors == [f"focalcodec: OUTPUT {name} exists; give --overwrite"]
        assert Path(name).read_text() == "mine"
        run("stream", "in.wav", name, "--overwrite")
        assert Path(name).stat().st_size > 50
    before = Path("in.wav").read_bytes()
    _, errors = run("stream", "in.wav", "./in.wav", "--overwrite", status=2)
    assert "same file as INPUT" in errors[0] and Path("in.wav").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("in.wav", "Missing argument 'OUTPUT'"),
        ("'' out.wav", "the name is empty"),
        ("in.wav out", "is no audio file that is written here"),
        ("in.wav mic", "OUTPUT mic is no audio file"),
        ("in.wav codec", "OUTPUT codec is no audio file"),
        ("in.wav udp://here", "give udp://HOST:PORT or tcp://HOST:PORT"),
        ("in.wav http://here:80", "give udp://HOST:PORT or tcp://HOST:PORT"),
        ("in.wav udp://here:99999", "give udp://HOST:PORT"),
        ("in.wav tcp://here:80/path", "give udp://HOST:PORT"),
        ("in.focal out.focal", "both tokens"),
        ("udp://:5004 tcp://here:5004", "both tokens"),
        ("in.wav out.wav --loss 0.1", "--loss is about packets"),
        ("in.wav udp://here:1 --loss 2", "--loss"),
        ("in.wav udp://here:1 --loss nan", "--loss"),
        ("udp://:1 out.wav --end-after inf", "--end-after must be finite"),
        ("in.wav out.wav --rate 8000", "--rate is that of - as INPUT"),
        ("in.wav out.wav --conceal silence", "'silence' is not one of"),
        ("in.wav out.wav --pack int8 --dtype bfloat16", "--pack is for the CPU"),
        ("in.wav out.wav --device abacus", "--device abacus cannot be used here"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(live_codec, words, message):
    write_noise(Path("in.wav"), num_samples=2000)
    before = set(Path().rglob("*"))
    out, errors = run("stream", *shlex.split(words), status=2)
    assert out == "" and len(errors) == 1 and message in errors[0]
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("absent.wav out.wav", "absent.wav: does not exist"),
        ("absent.focal out.wav", "No such file or directory: 'absent.focal'"),
        ("codec out.wav", "codec: is a folder"),
        ("text.wav out.wav", "text.wav: is not readable as audio"),
        ("empty.wav out.wav", "empty.wav: holds no samples; nothing was written"),
        ("text.focal out.wav", "text.focal: not a .focal file"),
        ("in.wav out.wav --checkpoint absent", "absent does not exist"),
        ("in.wav udp://nowhere.invalid:5004", "udp://nowhere.invalid:5004: "),
        ("nowhere.invalid.wav udp://127.0.0.1:5004", "does not exist"),
        ("in.wav udp://:5004", "names no host and port to send to"),
        ("in.wav udp://255.255.255.255:9", "udp://255.255.255.255:9: Permission denied"),
        ("udp://203.0.113.7:5004 out.wav", "udp://203.0.113.7:5004: Cannot assign requested"),
        ("tcp://203.0.113.7:5004 out.wav", "tcp://203.0.113.7:5004: Cannot assign requested"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_1(live_codec, words, message):
    write_noise(Path("in.wav"), num_samples=2000)
    write_noise(Path("empty.wav"), num_samples=0)
    for name in ("text.wav", "text.focal"):
        Path(name).write_text("neither sound nor tokens")
    out, errors = run("stream", *words.split(), status=1)
    assert len(errors) == 1 and message in errors[0]
    assert not Path("out.wav").exists()


@pytest.mark.parametrize("scheme", ["udp", "tcp"])
def test_port_in_use_is_one_line(live_codec, scheme):
    kind = socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if scheme == "tcp":
            sock.listen()
        address = f"{scheme}://127.0.0.1:{sock.getsockname()[1]}"
        _, errors = run("stream", address, "out.wav", status=1)
    assert len(errors) == 1
    assert errors[0].startswith(f"focalcodec: {address}: Address already in use")


def test_nobody_listening_over_tcp_is_one_line(live_codec):
    write_noise(Path("in.wav"), num_samples=2000)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        _, errors = run("stream", "in.wav", address, status=1)
    assert errors == [f"focalcodec: {address}: Connection refused"]


def test_help_needs_nothing():
    text, errors = run("stream", "--help")
    assert text.startswith("Usage: ") and not errors
    assert all(len(line) <= 80 for line in text.splitlines())
