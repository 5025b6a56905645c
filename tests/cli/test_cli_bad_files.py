"""The command line: bad files are named, interruptions cost nothing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from focalcodec.bitstream import Writer, open_focal, write
from focalcodec.cli.inference import Inference
from focalcodec.cli.jobs import Job
from focalcodec.cli.report import Report
from focalcodec.cli.transcoding import Transcoder
from focalcodec.windows import Windows, decode_blocks
from tests.audio_files import REFUSED_BY_HEADER, REFUSED_WHEN_READ, write_noise
from tests.command_line import PCM_16, lengths, load, run, unfinished_header, write_toks


def test_bad_audio_is_named_and_the_rest_goes_on(folder):
    for index in range(3):
        write_noise(Path(f"in/{index}.wav"), num_samples=9000 + index)
    Path("in/text.wav").write_text("no audio")
    Path("in/none.wav").symlink_to("nowhere")
    soundfile.write("in/empty.wav", np.zeros(0), 16000)
    bad = np.zeros(320_000)
    soundfile.write("in/short_nan.wav", np.append(bad[:9001], np.nan), 16000, subtype="FLOAT")
    soundfile.write("in/long_nan.wav", np.append(bad, np.nan), 16000, subtype="FLOAT")
    for command in ("encode", "resynth"):
        out, errors = run(command, "in", command, "--window-seconds", 5, status=1)
        assert out.startswith("3 done, 0 skipped, 5 failed")
        named = {line.split(": ")[1] for line in errors}
        names = ("empty", "long_nan", "none", "short_nan", "text")
        assert named == {f"in/{name}.wav" for name in names} and len(errors) == 5
        assert sorted(path.stem for path in Path(command).iterdir()) == ["0", "1", "2"]
        assert "focalcodec: in/long_nan.wav: sample 320000 is not finite" in errors


def test_bad_token_files_are_named_and_the_rest_goes_on(codec, make_codec):
    header, _ = write_toks(Path("in/good.focal"), codec, num_samples=9000)
    for name in ("damaged", "long_damaged", "too_long"):
        size = 320_000 if name.startswith("long") else 9000
        path = Path(f"in/{name}.focal")
        write_toks(path, codec, num_samples=size)
        raw = bytearray(path.read_bytes())
        raw[header.num_bytes + 2] ^= 1
        path.write_bytes(raw + b"x" if name == "too_long" else raw)
    Path("in/text.focal").write_text("no tokens")
    write_toks(Path("in/other.focal"), make_codec(dim=8), num_samples=9000)
    with Writer("in/nothing.focal", unfinished_header(codec)):
        pass
    out, errors = run("decode", "in", "out", "--window-seconds", 5, status=1)
    assert out.startswith("1 done, 0 skipped, 6 failed") and len(errors) == 6
    reasons = {line.split(": ")[1]: line for line in errors}
    for name, reason in {
        "damaged": "is damaged",
        "long_damaged": "is damaged",
        "too_long": "bytes after its",
        "text": "not a .focal file",
        "other": "are of model",
        "nothing": "holds no token",
    }.items():
        assert reason in reasons[f"in/{name}.focal"]
    assert [path.name for path in Path("out").iterdir()] == ["good.wav"]


@pytest.mark.parametrize("size", [9000, 200_000], ids=["short", "long"])
@pytest.mark.parametrize("state", ["cut", "unfinished"])
def test_cut_token_file_is_decoded_up_to_the_cut(codec, state, size):
    header, toks = write_toks(Path("in.focal"), codec, num_samples=size)
    count = toks.numel() - 3
    if state == "cut":
        raw = Path("in.focal").read_bytes()
        Path("in.focal").write_bytes(raw[: header.num_bytes + count * 6 // 8 + 1])
    else:
        with Writer("in.focal", unfinished_header(codec), overwrite=True) as writer:
            writer.write(toks[:count])
    with open_focal("in.focal") as reader:
        count = reader.num_toks
    out, errors = run("decode", "in.focal", "out.wav", "--window-seconds", 5)
    assert out.startswith("1 done, 0 skipped, 0 failed")
    assert len(errors) == 1 and errors[0].startswith("focalcodec: in.focal: is ")
    sig = decode_blocks(codec, [toks[:count]], windows=Windows(size=80_000))
    expected = torch.cat(list(sig)).clamp(-1, 1)
    torch.testing.assert_close(load("out.wav"), expected, rtol=0, atol=PCM_16)
    run("decode", "in.focal", "slow.wav", "--original-rate")
    assert soundfile.info("slow.wav").frames == count * 640


def test_rate_of_a_token_file_is_not_believed(codec):
    # Less than a second of tokens, but gigabytes of samples at the rate that the header names.
    header = replace(unfinished_header(codec), sample_rate=2_000_000_000, num_samples=10**9)
    write("in.focal", torch.zeros(header.num_toks, dtype=torch.long), header)
    _, errors = run("decode", "in.focal", "out.wav", "--original-rate", status=1)
    assert len(errors) == 1 and "sample rate 2000000000 Hz is not in" in errors[0]
    assert not Path("out.wav").exists()
    run("decode", "in.focal", "out.wav")
    assert soundfile.info("out.wav").frames == 8000


def test_file_that_breaks_the_codec_does_not_break_its_batch(codec):
    for index in range(4):
        write_noise(Path(f"{index}.wav"), num_samples=9000 + index)
    soundfile.write("2.wav", np.full(9002, 0.99), 16000)

    def refuse_loud(encoder, inputs):
        if inputs[0].max() > 0.9:
            raise torch.OutOfMemoryError("out of memory\nin two lines")

    codec.encoder.register_forward_pre_hook(refuse_loud)
    lines = []
    report = Report(echo=lines.append)
    jobs = [Job(Path(f"{index}.wav"), Path(f"{index}.focal")) for index in range(4)]
    Transcoder(Inference(codec), report=report).encode(jobs)
    assert lines == ["2.wav: out of memory in two lines"]
    assert (report.done, report.failed) == (3, 1)
    assert sorted(Path().glob("*.focal")) == [Path(f"{index}.focal") for index in (0, 1, 3)]


def test_every_edge_file_is_right_or_named(folder, shared):
    edge = shared / "data" / "edge"
    refused = {str(edge / name) for name in REFUSED_BY_HEADER | REFUSED_WHEN_READ}
    out, errors = run("encode", edge, "toks", status=1)
    assert {line.split(": ")[1] for line in errors} == refused
    assert len(errors) == len(refused)
    assert out.startswith(f"{67 - len(refused)} done, 0 skipped, {len(refused)} failed")
    run("decode", "toks", "wavs")
    expected = {}
    for path in edge.iterdir():
        if str(path) not in refused and path.suffix != ".csv":
            header = soundfile.info(path)
            size = (2 * header.frames * 16000 + header.samplerate) // (2 * header.samplerate)
            expected[f"{path.stem}.wav"] = max(1, size)
    assert lengths("wavs") == expected


def test_interruption_leaves_a_readable_token_file(folder, root, tmp_path):
    write_noise(tmp_path / "in.wav", num_samples=3_000_000)
    options = ["--chunk-size", "1000", "--checkpoint", folder]
    process = subprocess.Popen(
        [sys.executable, "-m", "focalcodec", "encode", "in.wav", "out.focal", *options],
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    path, deadline = tmp_path / "out.focal", time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > 200):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors.strip()) == (130, "", "focalcodec: interrupted")
    with open_focal(path) as reader:
        assert not reader.complete and reader.num_toks > 0


def test_interruption_of_a_replacement_leaves_what_was_there(codec):
    write_noise(Path("in.wav"), num_samples=40_000)
    run("encode", "in.wav", "out/in.focal")
    before = Path("out/in.focal").read_bytes()
    calls = []

    def interrupt(encoder, inputs):
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt

    codec.encoder.register_forward_pre_hook(interrupt)
    model = Inference(codec, windows=Windows.chunks(4000, left=5120), streams_all=True)
    job = Job(Path("in.wav"), Path("out/in.focal"), overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        Transcoder(model, report=Report(echo=print)).encode([job])
    assert Path("out/in.focal").read_bytes() == before
    assert [path.name for path in Path("out").iterdir()] == ["in.focal"]
