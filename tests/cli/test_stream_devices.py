"""Microphone and loudspeaker of the command stream, with stand-ins for the hardware."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from focalcodec.bitstream import read as read_focal
from focalcodec.resampling import resample
from tests import fake_sounddevice
from tests.audio_files import write_noise
from tests.command_line import PCM_16, load, run


@pytest.fixture
def devices(live_codec, monkeypatch):
    fake_sounddevice.reset()
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice)
    return fake_sounddevice


def speech(size):
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, (size, 1)).astype("float32")


def test_microphone_is_encoded_and_what_came_before_a_failure_is_kept(devices, live_codec):
    devices.heard = speech(16_000)
    _, errors = run("stream", "mic", "out.wav", status=1)
    assert len(errors) == 1 and "the microphone cannot be used: Device unavailable" in errors[0]
    assert errors[0].endswith("; out.wav got 1.0 s")
    sig = torch.from_numpy(devices.heard[:, 0])
    expected = live_codec.toks_to_sig(live_codec.sig_to_toks(sig[None]))[0]
    found = load("out.wav", sample_rate=24_000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + PCM_16)
    assert devices.opened == [("input", 16_000, None, None)] and devices.closed == ["input"]


def test_microphone_of_another_rate_is_resampled(devices, live_codec):
    devices.rates["input"] = (44_100,)
    devices.heard = speech(30_001)
    run("stream", "mic:3", "out.wav", status=1)
    sig = resample(
        torch.from_numpy(devices.heard[:, 0]), sample_rate=44_100, new_sample_rate=16_000
    )
    expected = live_codec.toks_to_sig(live_codec.sig_to_toks(sig[None]))[0]
    found = load("out.wav", sample_rate=24_000)
    expected = expected[: found.shape[0]]
    assert found.shape[0] == 16_327
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + PCM_16)
    assert devices.opened == [("input", 44_100, 3, None)]


def test_lost_sound_is_counted(devices):
    devices.heard = speech(16_000)
    devices.overflows |= {2, 7}
    out, _ = run("stream", "mic", "out.wav", status=1)
    assert "sound lost 2 times" in out


@pytest.mark.parametrize("rate", [16_000, 44_100, 8000])
def test_what_came_before_a_sample_that_is_not_finite_is_kept(devices, live_codec, rate):
    devices.rates["input"] = (rate,)
    devices.heard = speech(2 * rate)
    devices.heard[rate] = np.nan
    _, errors = run("stream", "mic", "out.focal", status=1)
    assert len(errors) == 1 and "not finite" in errors[0]
    header, toks = read_focal("out.focal")
    sig = torch.from_numpy(devices.heard[:rate, 0])
    sig = resample(sig, sample_rate=rate, new_sample_rate=16_000)
    assert toks.shape[0] in (44, 48) and header.duration == pytest.approx(
        toks.shape[0] / 50, abs=1e-3
    )
    assert torch.equal(toks, live_codec.sig_to_toks(sig[None])[0, : toks.shape[0]])


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_loudspeaker_plays_a_head_start_of_silence_and_then_the_speech(devices, live_codec, rate):
    devices.rates["output"] = (rate,)
    write_noise(Path("in.wav"), num_samples=20_000)
    run("stream", "in.wav", "offline.wav")
    run("stream", "in.wav", "speaker:USB", "--max-delay", 100)
    played = np.concatenate(devices.played)[:, 0]
    silence = rate // 10
    assert not played[:silence].any()
    expected = load("offline.wav", sample_rate=rate)
    found = torch.from_numpy(played[silence:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + 4 * PCM_16)
    assert devices.opened == [("output", rate, "USB", 0.1)] and devices.closed == ["output"]


def test_loudspeaker_gets_a_new_head_start_when_it_has_run_out(devices):
    write_noise(Path("in.wav"), num_samples=12_800)
    devices.gaps |= {4}  # silence, two chunks, and the third comes too late
    out, _ = run("stream", "in.wav", "speaker", "--max-delay", 100)
    sizes = [len(block) for block in devices.played]
    assert sizes == [2400, *[1920] * 3, 2400, *[1920] * 7]
    assert "nothing to play 1 times" in out


def test_microphone_to_loudspeaker(devices):
    devices.heard = speech(16_000)
    run("stream", "mic", "speaker", status=1)
    assert sum(map(len, devices.played)) == 24_000 + 3840
    assert sorted(devices.closed) == ["input", "output"]


@pytest.mark.parametrize("words", ["mic:abacus out.wav", "in.wav speaker:abacus"])
def test_device_that_is_not_there_is_one_line(devices, words):
    write_noise(Path("in.wav"), num_samples=2000)
    _, errors = run("stream", *words.split(), status=1)
    assert len(errors) == 1
    assert errors[0].endswith("abacus cannot be used: No device matching 'abacus'")


@pytest.mark.parametrize("words", ["mic out.wav", "in.wav speaker"])
def test_without_sounddevice_the_install_line_is_shown(live_codec, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    write_noise(Path("in.wav"), num_samples=2000)
    _, errors = run("stream", *words.split(), status=1)
    assert len(errors) == 1 and "pip install sounddevice" in errors[0]
    assert not Path("out.wav").exists()


def test_without_portaudio_the_package_is_named(live_codec, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    _, errors = run("stream", "mic", "out.wav", status=1)
    assert len(errors) == 1 and "PortAudio library not found; on Debian" in errors[0]


def test_stand_in_has_what_the_real_package_has():
    """Where the real one is installed, its names and arguments are those of the stand-in."""
    real = pytest.importorskip("sounddevice", exc_type=(ImportError, OSError))
    import inspect

    for name in ("check_input_settings", "check_output_settings", "query_devices"):
        wanted = set(inspect.signature(getattr(fake_sounddevice, name)).parameters)
        assert wanted <= set(inspect.signature(getattr(real, name)).parameters)
    for name, methods in {"InputStream": "read", "OutputStream": "write"}.items():
        for method in (methods, "start", "stop", "close", "stopped"):
            assert hasattr(getattr(real, name), method)
