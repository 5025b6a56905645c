"""The command line: what it says."""

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from focalcodec.bitstream import Writer
from tests.audio_files import write_noise
from tests.command_line import run, unfinished_header, write_toks


def test_summary_counts_audio_bytes_and_time(folder):
    for index in range(2):
        write_noise(Path(f"in/{index}.wav"), num_samples=160_000 * (index + 1))
    out, errors = run("encode", "in", "out")
    counts, speed, size = out.splitlines()
    assert counts == "2 done, 0 skipped, 0 failed" and not errors
    hours, seconds, rate, factor = map(float, re.findall(r"[\d.]+(?:e-\d+)?", speed))
    assert hours == pytest.approx(30 / 3600, rel=1e-3)  # printed with four digits
    assert seconds > 0 and rate * 3600 * factor == pytest.approx(1, rel=0.01)
    num_bytes = sum(path.stat().st_size for path in Path("out").iterdir())
    payload = -(-250 * 6 // 8) + -(-500 * 6 // 8)
    kbits = [count * 8 / 30 / 1000 for count in (num_bytes, payload)]
    assert size == (
        f"{num_bytes} bytes, {kbits[0]:.3f} kbit/s; of these {payload} bytes of tokens, "
        f"{kbits[1]:.3f} kbit/s"
    )
    assert run("encode", "in", "out", "--quiet", "--overwrite") == ("", [])


def test_progress_is_shown_on_demand(folder):
    write_noise(Path("in.wav"), num_samples=16000)
    assert run("encode", "in.wav", "a.focal")[1] == []
    assert "100%" in "".join(run("encode", "in.wav", "b.focal", "--progress")[1])


def test_progress_ends_with_the_audio_and_without_a_warning(folder):
    """A fraction above 1 makes tqdm warn, and a warning is an error here."""
    for index in range(3):
        write_noise(Path(f"in/{index}.wav"), num_samples=16001)  # 26 tokens last 1.04 s
    out, errors = run("encode", "in", "out", "--progress")
    assert out.startswith("3 done, 0 skipped, 0 failed") and "100%" in "".join(errors)


def test_info_tells_what_a_codec_is(codec):
    text, _ = run("info")
    size = sum(parameter.numel() for parameter in codec.decoder.parameters())
    for words in ("25 Hz", "150 bit/s", "64 codes", f"{size:,} parameters (Vocos)"):
        assert words in text
    assert codec.fingerprint in text


def test_info_tells_what_files_hold_without_a_codec(codec, monkeypatch):
    monkeypatch.setenv("FOCALCODEC_CHECKPOINT", "absent")
    write_toks(Path("in/good.focal"), codec, num_samples=20000)
    with Writer("in/open.focal", unfinished_header(codec)) as writer:
        writer.write(torch.arange(40))
    Path("in/text.focal").write_text("no tokens")
    text, errors = run("info", "in", status=1)
    assert len(errors) == 1 and errors[0].startswith("focalcodec: in/text.focal: ")
    good, unfinished = text.split("in/open.focal")
    size = Path("in/good.focal").stat().st_size
    for words in (
        "in/good.focal",
        "16000 Hz, 20000 samples",
        "32 of 6 bits, 0.15 kbit/s",
        "1.25 s",
        "yes",
        f"{size} bytes, {size * 8 / 1250:.3f} kbit/s",
        codec.fingerprint,
    ):
        assert words in good
    assert "no, this is what is there" in unfinished and "40 of 6 bits" in unfinished


def test_names_and_reasons_stay_in_one_line(folder):
    name = os.fsdecode(b"two\nlines \xff.wav")
    Path(name).write_text("no audio")
    _, errors = run("encode", name, "out", status=1)
    assert errors[0].startswith(r"focalcodec: two\nlines \udcff.wav: is not readable")
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("encode in.wav", "Missing argument"),
        ("encode in.wav out --bits 3", "No such option"),
        ("sing in.wav out", "No such command 'sing'"),
        ("encode in.wav out --device abacus", "--device abacus cannot be used here"),
        ("encode in.wav out --device cuda:99", "--device cuda:99 cannot be used here"),
        ("encode in.wav out --dtype int8", "'int8' is not one of"),
        ("encode in.wav out --overwrite --skip-existing", "exclude each other"),
        ("encode in.wav out --chunk-size 4000 --window-seconds 9", "exclude each other"),
        ("encode in.wav out --overlap 9", "--overlap needs --chunk-size"),
        ("encode in.wav out --chunk-size 100", "one token has 640"),
        ("encode in.wav out --window-seconds 0.001", "one token has 640"),
        ("encode in.wav out --window-seconds nan", "--window-seconds must be finite"),
        ("encode in.wav out --window-seconds inf", "--window-seconds must be finite"),
        ("encode in.wav out --batch-seconds nan", "--batch-seconds must be finite"),
        ("encode in.wav in.wav out.focal --batch-seconds 0", "--batch-seconds"),
        ("encode in.wav ''", "the name of the output is empty"),
        ("encode in.wav codec out.focal", "needs one input file"),
        ("encode codec out.focal", "needs one input file"),
        ("encode in.wav out.wav", "not written here; use .focal"),
        ("decode in.focal out.m4a", "not written here; use .flac .mp3 .ogg .wav"),
        ("decode in.focal out.focal", "not written here"),
        ("decode in.focal codec/config.json", "is a file; give a folder"),
        ("decode in.focal out --format m4a", "--format m4a is not written here"),
        ("decode in.focal out.wav --format flac", "contradict each other"),
        ("convert in.wav out", "Missing option '--reference'"),
        ("convert in.wav out --reference in.wav --topk 0", "--topk"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(folder, words, message):
    write_noise(Path("in.wav"), num_samples=2000)
    before = set(folder.parent.rglob("*"))
    out, errors = run(*shlex.split(words), status=2)
    assert out == "" and len(errors) == 1 and message in errors[0]
    assert errors[0].startswith("focalcodec: ")
    assert set(folder.parent.rglob("*")) == before


def test_codec_that_cannot_be_loaded_is_one_line(folder):
    write_noise(Path("in.wav"), num_samples=2000)
    for words in ("encode in.wav out", "info"):
        out, errors = run(*words.split(), "--checkpoint", "absent", status=1)
        assert out == "" and len(errors) == 1 and "absent does not exist" in errors[0]


@pytest.mark.parametrize("command", ["", "encode", "decode", "resynth", "convert", "info"])
def test_help_needs_nothing(command):
    text, errors = run(*command.split(), "--help")
    assert text.startswith("Usage: ") and not errors
    assert all(len(line) <= 80 for line in text.splitlines())
