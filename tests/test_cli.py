"""The command line, as a user runs it."""

import os
import re
import shlex
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
from click.testing import CliRunner

from focalcodec import FocalCodec
from focalcodec.audio import AudioReader
from focalcodec.bitstream import Header, Writer, open_focal, write
from focalcodec.bitstream import read as read_focal
from focalcodec.cli import main
from focalcodec.cli.inference import Inference
from focalcodec.cli.jobs import Job
from focalcodec.cli.report import Report
from focalcodec.cli.transcoding import Transcoder
from focalcodec.conversion import knn
from focalcodec.windows import Windows, decode_blocks, encode_blocks
from tests.audio_files import REFUSED_BY_HEADER, REFUSED_WHEN_READ, write_noise

PCM_16 = 1.01 / 32768  # libsndfile rounds down to a step of 16 bits


@pytest.fixture
def folder(make_codec, tmp_path, monkeypatch):
    """Folder of a codec of 6 bits at 25 Hz, which is the default of the command line."""
    make_codec(factors=(2, 1, 1), code_dim=6).save_pretrained(tmp_path / "codec")
    monkeypatch.setenv("FOCALCODEC_CHECKPOINT", str(tmp_path / "codec"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "codec"


@pytest.fixture
def codec(folder):
    return FocalCodec.from_pretrained(folder)


def run(*words, status=0):
    """Run a command; its standard output and the lines of its standard error."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr.splitlines()


def load(path, *, sample_rate=16000):
    return torch.cat(list(AudioReader(path, sample_rate=sample_rate)))


def write_toks(path, codec, *, num_samples):
    """Finished token file of noise; its header and tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    toks = torch.randint(codec.codebook_size, (codec.num_toks(num_samples),))
    header = replace(unfinished_header(codec), num_samples=num_samples)
    write(path, toks, header)
    return header, toks


def unfinished_header(codec):
    return Header(sample_rate=16000, **Inference(codec).tok_format)


def lengths(folder):
    return {path.name: soundfile.info(path).frames for path in Path(folder).rglob("*.wav")}


# What comes out


def test_a_hub_id_is_taken_from_the_given_cache_at_the_given_revision(
    folder, tmp_path, monkeypatch
):
    """The folder is in the cache as commit 1, a later one with other weights as branch main."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--someone--codec"
    codec = FocalCodec.from_pretrained(folder)
    for commit in ("1", "0"):
        codec.save_pretrained(repo / "snapshots" / (commit * 40))
        codec.compressor.out_proj.bias.add_(10.0)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    write_noise(Path("in.wav"), num_samples=16001)
    options = "--checkpoint", "someone/codec", "--cache-dir", tmp_path / "hub"
    run("encode", "in.wav", "here.focal")
    run("encode", "in.wav", "pinned.focal", *options, "--revision", "1" * 40)
    run("encode", "in.wav", "main.focal", *options)
    here, pinned, main_toks = (
        read_focal(f"{name}.focal")[1] for name in ("here", "pinned", "main")
    )
    assert torch.equal(pinned, here) and not torch.equal(main_toks, here)
    _, errors = run("encode", "in.wav", "no.focal", *options, "--revision", "2" * 40, status=1)
    assert len(errors) == 1 and "someone/codec" in errors[0] and not Path("no.focal").exists()


def test_a_compiled_codec_gives_the_same_files(folder, monkeypatch):
    """With the graph capture of a real compilation and no code generation, which takes minutes."""
    compiled = []

    def compile_part(part, **options):
        compiled.append(type(part).__name__)
        torch_compile(part, backend="aot_eager", **options)

    torch_compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", compile_part)
    write_noise(Path("in.wav"), num_samples=16001)
    for name, options in {"eager": (), "compiled": ("--compile",)}.items():
        run("encode", "in.wav", f"{name}.focal", *options)
        run("decode", "eager.focal", f"{name}.wav", *options)
    assert compiled == ["LogMel", "Compressor", "Decompressor", "Vocos"] * 2
    assert torch.equal(read_focal("eager.focal")[1], read_focal("compiled.focal")[1])
    difference = load(Path("eager.wav")) - load(Path("compiled.wav"))
    assert difference.abs().max() <= PCM_16


def test_module_runs_as_it_always_did(folder, root, tmp_path):
    source = write_noise(tmp_path / "in.wav", num_samples=16001)
    target = tmp_path / "out.wav"
    command = [sys.executable, "-m", "focalcodec", "resynth", source, target]
    left, right = os.pipe()
    os.write(right, b"y\n")
    done = subprocess.run(
        [*command, "--checkpoint", folder],
        cwd=root,
        stdin=left,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("1 done, 0 skipped, 0 failed\n") and not done.stderr
    assert os.read(left, 2) == b"y\n", "standard input is not read"
    samples, rate = soundfile.read(target)
    assert (samples.shape, rate) == ((16001,), 16000)
    assert np.abs(samples).max() > 0


SIZES = [(24000, 10001), (8000, 3333), (44100, 9999), (22050, 88201), (11025, 1), (48000, 1)]


@pytest.mark.parametrize(("rate", "size"), SIZES)
@pytest.mark.parametrize("options", [(), ("--chunk-size", 4000)], ids=["whole", "chunks"])
def test_audio_lasts_as_long_as_its_source(folder, rate, size, options):
    write_noise(Path("in.flac"), num_samples=size, sample_rate=rate, channels=2)
    run("encode", "in.flac", "in.focal", *options)
    run("decode", "in.focal", "out.wav", *options)
    run("decode", "in.focal", "back.flac", "--original-rate", *options)
    run("resynth", "in.flac", "both.wav", *options)
    run("resynth", "in.flac", "there", "--original-rate", *options)
    wanted = max(1, (2 * size * 16000 + rate) // (2 * rate))  # rounded half up
    for name, expected in {
        "out.wav": (wanted, 16000),
        "back.flac": (size, rate),
        "both.wav": (wanted, 16000),
        "there/in.wav": (size, rate),
    }.items():
        header = soundfile.info(name)
        assert (header.frames, header.samplerate) == expected, name
    assert Path("out.wav").read_bytes() == Path("both.wav").read_bytes()


def test_tokens_and_audio_are_those_of_the_codec(codec):
    sig = load(write_noise(Path("in.wav"), num_samples=20011, sample_rate=24000))
    run("encode", "in.wav", "in.focal")
    header, toks = read_focal("in.focal")
    assert torch.equal(toks, codec.sig_to_toks(sig[None])[0])
    assert (header.sample_rate, header.num_samples, header.bits) == (24000, 20011, 6)
    assert (header.fingerprint, header.model_id) == (codec.fingerprint, codec.model_id)
    run("decode", "in.focal", "out.wav")
    expected = codec.toks_to_sig(toks[None], num_samples=header.num_samples_at(16000))[0]
    torch.testing.assert_close(load("out.wav"), expected.clamp(-1, 1), rtol=0, atol=PCM_16)


def test_file_longer_than_a_window_goes_through_windows(codec):
    sig = load(write_noise(Path("in.wav"), num_samples=320_000))
    windows = Windows(size=80_000)
    run("encode", "in.wav", "in.focal", "--window-seconds", 5)
    toks = torch.cat(list(encode_blocks(codec, [sig], windows=windows)))
    assert torch.equal(read_focal("in.focal")[1], toks)
    run("decode", "in.focal", "out.wav", "--window-seconds", 5)
    expected = torch.cat(list(decode_blocks(codec, [toks], windows=windows, num_samples=320_000)))
    torch.testing.assert_close(load("out.wav"), expected.clamp(-1, 1), rtol=0, atol=PCM_16)


def test_resynthesis_is_encoding_and_decoding_at_the_edge_of_a_window(folder):
    # 5 s and 3 s of context are 200 tokens of 640 samples: from there on there are two windows.
    for size in (127_360, 127_361, 127_999, 128_001):
        write_noise(Path("in.wav"), num_samples=size)
        options = ("--window-seconds", 5, "--overwrite")
        run("encode", "in.wav", "in.focal", *options)
        run("decode", "in.focal", "out.wav", *options)
        run("resynth", "in.wav", "both.wav", *options)
        assert Path("out.wav").read_bytes() == Path("both.wav").read_bytes(), size


def test_chunks_see_only_the_past(codec):
    sig = load(write_noise(Path("in.wav"), num_samples=30_000))
    options = ("--chunk-size", 4000, "--left-context", 6400, "--overlap", 100)
    windows = Windows.chunks(4000, left=6400, overlap=100)
    run("encode", "in.wav", "in.focal", *options)
    toks = torch.cat(list(encode_blocks(codec, [sig], windows=windows)))
    assert torch.equal(read_focal("in.focal")[1], toks)
    run("decode", "in.focal", "out.wav", *options)
    expected = torch.cat(list(decode_blocks(codec, [toks], windows=windows, num_samples=30_000)))
    torch.testing.assert_close(load("out.wav"), expected.clamp(-1, 1), rtol=0, atol=PCM_16)


def test_file_gives_the_same_in_any_batch(folder):
    for index, size in enumerate([1, 639, 641, 9000, 16000, 16001, 40000, 90001]):
        write_noise(Path(f"in/{index}.wav"), num_samples=size)
    run("encode", "in", "batch")
    run("encode", "in", "pairs", "--batch-seconds", 2)
    run("decode", "batch", "batch")
    for path in sorted(Path("in").iterdir()):
        run("encode", path, "alone")
        name = path.with_suffix(".focal").name
        alone = Path("alone", name).read_bytes()
        assert alone == Path("batch", name).read_bytes() == Path("pairs", name).read_bytes()
        run("decode", Path("alone", name), "alone")
        expected = load(Path("alone", path.name))
        # float32: sums over a padded batch go in another order, and may be rounded to the next step
        torch.testing.assert_close(load(Path("batch", path.name)), expected, rtol=0, atol=PCM_16)


def test_conversion_is_knn_in_the_features_of_the_references(codec):
    sig = load(write_noise(Path("in.wav"), num_samples=20011))
    first = load(write_noise(Path("voice/a.wav"), num_samples=9000))
    second = load(write_noise(Path("voice/b.flac"), num_samples=12000))
    voice = torch.cat([codec.sig_to_feats(ref[None])[0] for ref in (first, second)])
    qfeats = codec.toks_to_qfeats(codec.sig_to_toks(sig[None]))
    expected = codec.feats_to_sig(knn(qfeats, voice, topk=3), num_samples=20011)[0].clamp(-1, 1)
    run("encode", "in.wav", "in.focal")
    options = ("--reference", "voice", "--topk", 3)
    for source, more in [("in.wav", ()), ("in.focal", ()), ("in.wav", ("--chunk-size", 48000))]:
        run("convert", source, "out.wav", *options, *more, "--overwrite")
        torch.testing.assert_close(load("out.wav"), expected, rtol=0, atol=2 * PCM_16)
    plain = codec.feats_to_sig(qfeats, num_samples=20011)[0].clamp(-1, 1)
    assert (plain - expected).abs().max() > 10 * PCM_16


def test_conversion_needs_one_good_reference(folder):
    write_noise(Path("in.wav"), num_samples=9000)
    write_noise(Path("good.wav"), num_samples=9000)
    Path("bad.wav").write_text("no audio")
    _, errors = run("convert", "in.wav", "out.wav", "--reference", "bad.wav", status=1)
    assert errors[0].startswith("focalcodec: bad.wav: is not readable as audio")
    assert "no reference file can be used" in errors[1] and len(errors) == 2
    assert not Path("out.wav").exists()
    references = ("--reference", "bad.wav", "--reference", "good.wav")
    _, errors = run("convert", "in.wav", "out.wav", *references, status=1)
    assert len(errors) == 1 and soundfile.info("out.wav").frames == 9000
    _, errors = run("convert", "in.wav", ".", "--reference", "*.wav", "--overwrite", status=1)
    assert any("same file as the input" in line for line in errors)


def test_long_reference_is_read_in_windows(codec):
    sig = torch.rand(20_000)
    pieces = [codec.sig_to_feats(part[None])[0] for part in sig.split(8000)]
    feats = Inference(codec, windows=Windows(size=8000)).features(sig.split(3001))
    assert torch.equal(feats, torch.cat(pieces))
    whole = Inference(codec, windows=Windows.chunks(8000), streams_all=True).features([sig])
    assert torch.equal(whole, codec.sig_to_feats(sig[None])[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_keeps_every_length(folder, dtype):
    write_noise(Path("in.wav"), num_samples=20011)
    run("resynth", "in.wav", "out.wav", "--dtype", dtype)
    run("resynth", "in.wav", "chunks.wav", "--dtype", dtype, "--chunk-size", 4000)
    found = lengths(".")
    assert found["out.wav"] == found["chunks.wav"] == 20011


# Which files


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


# Bad files


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


# What is said


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
