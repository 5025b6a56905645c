"""The command line: which files it reads and writes."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from focalcodec.bitstream import Writer
from tests.audio_files import write_noise
from tests.command_line import run, unfinished_header


def test_folders_keep_their_structure(folder):
    for name in ("in/a.wav", "in/sub/b.FLAC", "in/sub/.hidden.wav", "in/.git/c.wav"):
        write_noise(Path(name), num_samples=2000)
    Path("in/notes.txt").write_text("no audio")
    Path("in/sub/circle").symlink_to(Path("in").resolve(), target_is_directory=True)
    Path("in/itself").symlink_to("itself")
    run("encode", "in", "in/out")
    made = sorted(str(path) for path in Path("in/out").rglob("*") if path.is_file())
    assert made == ["in/out/a.focal", "in/out/sub/b.focal"]
    run("resynth", "in", "in/out", "--format", "flac")
    run("resynth", "in", "in/out", "--format", "flac", "--overwrite")  # outputs are no inputs
    assert len(list(Path("in/out").rglob("*.flac"))) == 2


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in/*.wav", {"a.focal", "[b].focal"}),
        ("in/**/*.wav", {"a.focal", "[b].focal", "sub/c.focal", "sub/deep/d.focal"}),
        ("in/s*", {"sub/c.focal", "sub/deep/d.focal"}),
        ("i*/sub", {"in/sub/c.focal", "in/sub/deep/d.focal"}),
        ("in/[b].wav", {"[b].focal"}),  # the name of a file
        ("in/[a].wav", {"a.focal"}),
    ],
)
def test_globs_are_expanded(folder, pattern, names):
    for name in ("a", "[b]", "sub/c", "sub/deep/d"):
        write_noise(Path(f"in/{name}.wav"), num_samples=2000)
    run("encode", pattern, "out")
    assert {str(path.relative_to("out")) for path in Path("out").rglob("*.focal")} == names


def test_globs_follow_links_but_not_in_circles(folder):
    for name in ("in/a", "in/sub/b", "other/c"):
        write_noise(Path(f"{name}.wav"), num_samples=2000)
    Path("in/sub/circle").symlink_to(Path("in").resolve(), target_is_directory=True)
    Path("in/link").symlink_to(Path("other").resolve(), target_is_directory=True)
    for pattern in ("in/**/*.wav", "in/**", "in/*", "i*"):
        run("encode", pattern, "out", "--overwrite")
    made = {str(path.relative_to("out")) for path in Path("out").rglob("*.focal")}
    names = {"a.focal", "sub/b.focal", "link/c.focal"}
    assert made == names | {f"in/{name}" for name in names}


def test_what_is_not_found_is_reported(folder):
    write_noise(Path("in.wav"), num_samples=2000)
    Path("empty").mkdir()
    words = ("none.wav", "*.mp3", "empty", "", "in.wav", "in.wav")
    out, errors = run("encode", *words, "out", status=1)
    assert out.startswith("1 done, 0 skipped, 4 failed")
    assert [line.split(": ")[1] for line in errors] == ["*.mp3", "empty", "''", "none.wav"]
    assert "does not exist" in errors[3]


def test_same_output_of_two_inputs_is_refused(folder):
    for name in ("a.wav", "a.flac", "b.wav"):
        write_noise(Path("in", name), num_samples=2000)
    out, errors = run("encode", "in", "out", status=1)
    assert out.startswith("1 done, 0 skipped, 2 failed")
    assert "in/a.flac: " in errors[0] and "would be that of in/a.wav too" in errors[0]
    assert "in/a.wav: " in errors[1] and "would be that of in/a.flac too" in errors[1]
    assert [path.name for path in Path("out").iterdir()] == ["b.focal"]


@pytest.mark.parametrize("kind", ["same", "symlink", "hardlink", "folder"])
def test_inputs_are_never_written_to(folder, kind):
    write_noise(Path("in/a.wav"), num_samples=2000)
    write_noise(Path("in/b.wav"), num_samples=3000)
    contents = {path: path.read_bytes() for path in Path("in").iterdir()}
    Path("out").mkdir()
    output = "out"
    if kind == "same":
        output = "in"
    elif kind == "folder":
        Path("link").symlink_to(Path("in").resolve())
        output = "link"
    else:
        link = {"symlink": Path.symlink_to, "hardlink": Path.hardlink_to}[kind]
        link(Path("out/b.wav"), Path("in/a.wav").resolve())
    _, errors = run("resynth", "in", output, "--overwrite", status=1)
    assert len(errors) == (1 if kind in ("symlink", "hardlink") else 2)
    assert all("is the same file as the input in/" in line for line in errors)
    assert {path: path.read_bytes() for path in Path("in").iterdir()} == contents


@pytest.mark.parametrize("command", ["encode", "resynth"])
def test_an_output_that_is_a_link_to_nothing_stays(folder, command):
    write_noise(Path("in/a.wav"), num_samples=2000)
    link = Path("out", "a.focal" if command == "encode" else "a.wav")
    link.parent.mkdir()
    link.symlink_to("elsewhere")
    _, errors = run(command, "in", "out", "--overwrite", status=1)
    assert "is a link to nothing" in errors[0] and link.is_symlink()


def test_existing_outputs_stay_unless_asked(folder):
    write_noise(Path("in/a.wav"), num_samples=2000)
    for command in ("encode", "resynth"):
        run(command, "in", command)
    write_noise(Path("in/b.wav"), num_samples=3000)
    for command, name in [("encode", "a.focal"), ("resynth", "a.wav")]:
        path = Path(command, name)
        out, errors = run(command, "in", command, status=1)
        assert out.startswith("1 done, 0 skipped, 1 failed") and len(errors) == 1
        assert "exists; give --overwrite or --skip-existing" in errors[0]
        os.utime(path, ns=(0, 0))
        out, _ = run(command, "in", command, "--skip-existing")
        assert out.startswith("0 done, 2 skipped, 0 failed")
        assert path.stat().st_mtime == 0
        out, _ = run(command, "in", command, "--overwrite")
        assert out.startswith("2 done, 0 skipped, 0 failed")
        assert path.stat().st_mtime > 0


def test_unfinished_token_file_is_made_again(codec):
    write_noise(Path("in/a.wav"), num_samples=20000)
    run("encode", "in", "out")
    right = Path("out/a.focal").read_bytes()
    with Writer("out/a.focal", unfinished_header(codec), overwrite=True) as writer:
        writer.write(torch.tensor([1, 2, 3]))
    for damage in (lambda path: None, lambda path: path.write_bytes(b"")):
        damage(Path("out/a.focal"))
        out, _ = run("encode", "in", "out", "--skip-existing")
        assert out.startswith("1 done, 0 skipped, 0 failed")
        assert Path("out/a.focal").read_bytes() == right
    Path("out/a.focal").write_text("my diary")
    _, errors = run("encode", "in", "out", "--skip-existing", status=1)
    assert "out/a.focal" in errors[0] and Path("out/a.focal").read_text() == "my diary"


def test_a_bad_source_does_not_cost_the_tokens_that_are_there(codec):
    write_noise(Path("in/a.wav"), num_samples=900_000)  # long: written as it is read
    run("encode", "in", "out")
    before = Path("out/a.focal").read_bytes()
    samples = np.zeros(900_000, dtype="float32")
    samples[-1] = np.nan
    soundfile.write("in/a.wav", samples, 16000, subtype="FLOAT")
    _, errors = run("encode", "in", "out", "--overwrite", status=1)
    assert "sample 899999 is not finite" in errors[0]
    assert Path("out/a.focal").read_bytes() == before
    assert [path.name for path in Path("out").iterdir()] == ["a.focal"]
    _, errors = run("encode", "in", "new", status=1)
    assert list(Path("new").iterdir()) == []  # what was written of it is gone
