"""Audio files in blocks: same samples as at once, clear refusals, files that appear whole."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from focalcodec import audio
from focalcodec.audio import (
    AudioError,
    AudioReader,
    estimate_seconds,
    write_audio,
)
from focalcodec.resampling import resample_blocks
from tests.audio_files import write_noise

RATES = [8000, 11025, 22050, 24000, 44100, 48000]


def read(path, *, sample_rate=16000):
    reader = AudioReader(path, sample_rate=sample_rate)
    return torch.cat(list(reader)), reader


def resample_whole(sig, rate, new_rate):
    """Whole-file resampling; torchaudio rounds the length in float32, so make more and cut."""
    padded = torch.nn.functional.pad(sig, (0, rate))
    size = -(-sig.shape[0] * new_rate // rate)
    return torchaudio.functional.resample(padded, rate, new_rate)[:size]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("to_codec", [True, False], ids=["to_16k", "from_16k"])
def test_resampling_in_blocks_equals_resampling_at_once(rate, to_codec):
    rates = (rate, 16000) if to_codec else (16000, rate)
    for num_samples in (1, 2, 159, 441, 442, 5000, 30011):
        sig = torch.rand(num_samples) * 2 - 1
        expected = resample_whole(sig, *rates)
        for size in (7, 1000, 2**18)[num_samples > 5000 :]:
            blocks = resample_blocks(
                sig.split(size), sample_rate=rates[0], new_sample_rate=rates[1]
            )
            pieces = list(blocks)
            assert all(piece.numel() for piece in pieces)
            # float32: the order of summation depends on the size of the block
            torch.testing.assert_close(torch.cat(pieces), expected, rtol=0, atol=1e-6)


def test_resampling_keeps_its_precision_inside_autocast():
    sig = torch.rand(5000)
    rates = {"sample_rate": 44100, "new_sample_rate": 16000}
    expected = torch.cat(list(resample_blocks([sig], **rates)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resampled = torch.cat(list(resample_blocks([sig], **rates)))
    assert torch.equal(resampled, expected)


@pytest.mark.parametrize("rate", [*RATES, 16000])
@pytest.mark.parametrize("num_samples", [1, 999, 1000, 1001, 20011])
def test_file_in_blocks_equals_whole_file(tmp_path, monkeypatch, rate, num_samples):
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 2000)  # blocks of 1000 in stereo
    samples = np.random.default_rng(0).uniform(-1, 1, (num_samples, 2)).astype("float32")
    soundfile.write(tmp_path / "in.wav", samples, rate, subtype="FLOAT")
    sig, reader = read(tmp_path / "in.wav")
    expected = resample_whole(torch.from_numpy(samples).mean(1), rate, 16000)
    torch.testing.assert_close(sig, expected, rtol=0, atol=1e-6)
    assert (reader.num_samples, reader.sample_rate) == (num_samples, rate)


def test_channels_are_averaged_and_peaks_kept(tmp_path):
    samples = np.array([[0.5, 0.0], [0.25, -0.25], [6.0, 2.0]])
    soundfile.write(tmp_path / "in.wav", samples, 16000, subtype="FLOAT")
    assert read(tmp_path / "in.wav")[0].tolist() == [0.25, 0.0, 4.0]


def test_bad_files_are_refused_by_name(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for a writer
    (tmp_path / "empty.wav").touch()
    for name in ("text.wav", "headerless.raw"):
        (tmp_path / name).write_text("this is no audio")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "coprime.wav", np.zeros(100), 22051)
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 500)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    stereo = np.array([[0.0, 0.0], [np.inf, -np.inf]])
    soundfile.write(tmp_path / "inf.wav", stereo, 16000, subtype="FLOAT")
    for name, reason in {
        "none.wav": "does not exist",
        "folder.wav": "is a folder",
        "pipe.wav": "is not a regular file",
        "empty.wav": "is not readable as audio",
        "text.wav": "is not readable as audio",
        "headerless.raw": "is not readable as audio",
        "nothing.wav": "holds no samples",
        "coprime.wav": "their common divisor is only 1; convert the file to a usual rate",
        "slow.wav": r"sample rate 500 Hz is not in \[1000, 768000\]",
        "nan.wav": "sample 1 is not finite",
        "inf.wav": "sample 1 is not finite",
    }.items():
        with pytest.raises(AudioError, match=f"{name}: .*{reason}"):
            read(tmp_path / name)


def write_wav_header(path, *, data_size, num_samples):
    """WAV of 16 bits whose header says ``data_size`` bytes, whatever follows."""
    fields = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", data_size, b"WAVE", b"fmt ", 16, 1, 1, 16000,
                         32000, 2, 16)  # fmt: skip
    samples = np.arange(num_samples, dtype="<i2").tobytes()
    path.write_bytes(fields + struct.pack("<4sI", b"data", data_size) + samples)


@pytest.mark.parametrize("data_size", [0xFFFFFFFF, 0x7FFFFFFE, 20000])
def test_header_that_promises_too_much_gives_what_is_there(tmp_path, data_size):
    write_wav_header(tmp_path / "in.wav", data_size=data_size, num_samples=5000)
    tracemalloc.start()
    sig, reader = read(tmp_path / "in.wav")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(sig * 32768, torch.arange(5000.0))
    assert reader.num_samples == 5000
    assert peak < 2**22  # bytes: a block of float32, not what the header says
    assert 0 < estimate_seconds(tmp_path / "in.wav") <= 1e7


def test_memory_does_not_grow_with_the_file(tmp_path):
    with soundfile.SoundFile(tmp_path / "in.flac", "w", 48000, 2) as file:
        for _ in range(120):
            file.write(np.zeros((48000, 2)))
    tracemalloc.start()
    size = sum(block.shape[0] for block in AudioReader(tmp_path / "in.flac", sample_rate=16000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 120 * 16000
    assert peak < 2**22  # bytes, of 46 MB as float32


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.aif"])
def test_written_file_holds_the_signal_clipped_to_its_format(tmp_path, name):
    path = tmp_path / "new" / name
    sig = torch.tensor([0.5, -0.25, 3.0, -3.0])
    assert write_audio(path, sig.split(3), sample_rate=24000) == 4
    samples, rate = soundfile.read(path)
    assert (samples.tolist(), rate) == ([0.5, -0.25, 32767 / 32768, -1.0], 24000)
    assert soundfile.info(path).subtype == "PCM_16"


def test_long_vorbis_is_written_in_pieces(tmp_path):
    write_audio(tmp_path / "out.ogg", [torch.zeros(4_000_000)], sample_rate=16000)
    assert soundfile.info(tmp_path / "out.ogg").frames == 4_000_000


def break_off():
    yield torch.zeros(1000)
    raise RuntimeError("the decoder failed")


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.wav"
    with pytest.raises(RuntimeError, match="the decoder failed"):
        write_audio(path, break_off(), sample_rate=16000)
    with pytest.raises(AudioError, match=r"out.wav: the decoded signal is not finite"):
        write_audio(path, [torch.zeros(3), torch.tensor([torch.nan])], sample_rate=16000)
    for name, rate in [("out.mp3", 17000), ("out.m4a", 16000), ("out", 16000)]:
        with pytest.raises(AudioError, match=f"{name}: cannot be written"):
            write_audio(tmp_path / name, [torch.zeros(9)], sample_rate=rate)
    assert not list(tmp_path.iterdir())


def test_file_that_is_there_is_only_replaced_on_demand(tmp_path):
    path = tmp_path / "out.wav"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_audio(path, [torch.zeros(9)], sample_rate=16000)
    with pytest.raises(RuntimeError):
        write_audio(path, break_off(), sample_rate=16000, overwrite=True)
    assert path.read_text() == "mine"
    write_audio(path, [torch.zeros(9)], sample_rate=16000, overwrite=True)
    assert soundfile.info(path).frames == 9
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.wav"]


@pytest.mark.parametrize("sample_rate", [16_000, 44_100, None])
def test_small_blocks_are_read_when_they_are_asked_for(tmp_path, sample_rate):
    path = write_noise(tmp_path / "in.wav", num_samples=100_000, sample_rate=44_100, channels=2)
    reader = AudioReader(path, sample_rate=sample_rate, block_s=0.02)
    blocks = []
    for block in reader:
        blocks.append(block)
        assert reader.num_samples <= 882 * (len(blocks) + 2)
    whole = torch.cat(list(AudioReader(path, sample_rate=sample_rate or 44_100)))
    torch.testing.assert_close(torch.cat(blocks), whole, rtol=0, atol=2e-6)
    assert max(block.shape[0] for block in blocks) <= 882
