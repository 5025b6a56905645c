"""The command line, as a user runs it."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from focalcodec.__main__ import main, read_mono


@pytest.fixture
def folder(make_codec, tmp_path):
    make_codec(factors=(2, 1, 1), code_dim=6).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def write_noise(path, *, size, rate, channels=1):
    samples = 0.1 * np.random.default_rng(0).standard_normal((size, channels))
    soundfile.write(path, samples, rate)
    return path


def test_resynth_end_to_end(folder, root, tmp_path):
    source = write_noise(tmp_path / "in.wav", size=16001, rate=16000)
    target = tmp_path / "out.wav"
    command = [sys.executable, "-m", "focalcodec", "resynth", source, target]
    done = subprocess.run(
        [*command, "--checkpoint", folder], cwd=root, capture_output=True, text=True, check=True
    )
    assert "16001 samples at 16000 Hz from 26 tokens, 0.15 kbit/s" in done.stdout
    samples, rate = soundfile.read(target)
    assert (samples.shape, rate) == ((16001,), 16000)
    assert np.abs(samples).max() > 0


@pytest.mark.parametrize(
    ("rate", "size"), [(24000, 10001), (8000, 3333), (44100, 9999), (11025, 1), (48000, 1)]
)
def test_output_lasts_as_long_as_input_of_another_rate(folder, tmp_path, rate, size):
    source = write_noise(tmp_path / "in.flac", size=size, rate=rate, channels=2)
    target = tmp_path / "out.flac"
    assert main(["resynth", str(source), str(target), "--checkpoint", str(folder)]) == 0
    assert soundfile.info(target).samplerate == 16000
    assert soundfile.info(target).frames == max(1, round(size * 16000 / rate))


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.array([[0.5, 0.0], [0.25, -0.25]]), 16000)
    sig, size, rate = read_mono(tmp_path / "in.wav", sample_rate=16000)
    assert (sig.tolist(), size, rate) == ([[0.25, 0.0]], 2, 16000)


def test_info_tells_rates_and_sizes(folder, make_codec, capsys):
    assert main(["info", "--checkpoint", str(folder)]) == 0
    text = capsys.readouterr().out
    codec = make_codec(factors=(2, 1, 1), code_dim=6)
    size = sum(parameter.numel() for parameter in codec.decoder.parameters())
    for words in ("25 Hz", "150 bit/s", "64 codes", f"{size:,} parameters (Vocos)"):
        assert words in text


def run_with_error(capsys, *words):
    assert main([str(word) for word in words]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_errors_are_one_line(folder, tmp_path, capsys):
    good = write_noise(tmp_path / "in.wav", size=400, rate=16000)
    out, checkpoint = tmp_path / "out.wav", ["--checkpoint", folder]
    absent = ["--checkpoint", tmp_path / "absent"]
    for name in ("text.wav", "headerless.raw"):
        (tmp_path / name).write_text("this is no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    for words, message in [
        ([good, out, *absent], "absent does not exist"),
        ([tmp_path / "none.wav", out, *checkpoint], "none.wav does not exist"),
        ([tmp_path / "text.wav", out, *checkpoint], "text.wav is not readable as audio"),
        ([tmp_path / "headerless.raw", out, *checkpoint], "headerless.raw is not readable"),
        ([tmp_path / "empty.wav", out, *checkpoint], "empty.wav holds no samples"),
        ([tmp_path / "nan.wav", out, *checkpoint], "nan.wav holds samples that are not finite"),
        ([good, tmp_path / "out", *checkpoint], "no extension of an audio format"),
        ([good, tmp_path / "no" / "out.wav", *checkpoint], "does not exist; make it first"),
        ([good, out, *checkpoint, "--device", "abacus"], "abacus"),
    ]:
        assert message in run_with_error(capsys, "resynth", *words)
        assert not out.exists()
    assert "absent" in run_with_error(capsys, "info", *absent)
