"""The command line: what comes out is what the codec gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from focalcodec import FocalCodec
from focalcodec.bitstream import read as read_focal
from focalcodec.cli.inference import Inference
from focalcodec.conversion import knn
from focalcodec.windows import Windows, decode_blocks, encode_blocks
from tests.audio_files import write_noise
from tests.command_line import PCM_16, lengths, load, run


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
