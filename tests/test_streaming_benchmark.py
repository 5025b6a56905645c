"""The benchmark of live streams at toy size, and the plain implementation in it."""

import re

import pytest
import soundfile
import torch

from benchmarks import soak
from benchmarks.plain_stream import PlainStream
from benchmarks.streaming import main
from tests.causal_codecs import make_causal_codec


@pytest.fixture(scope="module")
def codec():
    return make_causal_codec(refined=3)


def test_the_plain_implementation_computes_the_same(codec):
    plain, stream = PlainStream(codec), codec.open_stream()
    sig = 0.3 * torch.randn(1, 40 * codec.chunk_size)
    for chunk in sig.split(codec.chunk_size, dim=1):
        toks = stream.encode(chunk)
        assert torch.equal(plain.encode(chunk), toks)
        # float32 sums in another order
        torch.testing.assert_close(plain.decode(toks), stream.decode(toks), atol=1e-5, rtol=0)


def test_every_precision_is_measured_beside_it(codec, tmp_path, capsys):
    codec.save_pretrained(tmp_path / "codec")
    (tmp_path / "audio").mkdir()
    sig = 0.3 * torch.randn(60 * codec.chunk_size).clamp(-1, 1)
    soundfile.write(tmp_path / "audio/speech.flac", sig.numpy(), codec.sample_rate)
    words = ["--audio", tmp_path / "audio", "--checkpoint", tmp_path / "codec", "--threads", "1"]
    seconds = codec.chunk_size / codec.sample_rate
    words += ["--seconds", 60 * seconds, "--warm-up", 20 * seconds]
    assert main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    rows = {line[:20].strip(): line[20:].split() for line in text.splitlines() if " x " in line}
    assert list(rows) == ["plain, float32", "float32", "float16", "int8"]
    assert rows["plain, float32"][3] == "1.00" and float(rows["float32"][5]) == 0
    assert all(float(row[1]) >= float(row[0]) > 0 for row in rows.values())
    assert text.count("positional embedding") == text.count("decompressor") == 3


def test_a_soak_ends_as_the_whole_would(codec, tmp_path, capsys):
    codec.save_pretrained(tmp_path / "codec")
    num_samples = 100 * codec.chunk_size + 7
    sig = 0.3 * torch.randn(num_samples // 3).clamp(-1, 1)  # three times over
    soundfile.write(tmp_path / "speech.flac", sig.numpy(), codec.sample_rate)
    words = ["--audio", str(tmp_path), "--checkpoint", str(tmp_path / "codec")]
    assert soak.main([*words, "--hours", str(num_samples / codec.sample_rate / 3600)]) == 0
    *reports, compared = capsys.readouterr().out.splitlines()[1:]
    assert len(reports) == 12
    pattern = r"(\d+) tokens, 0 differ .*; (\d+) of (\d+) samples, .* by (.*) at most"
    found = re.fullmatch(pattern, compared)
    assert int(found[1]) == codec.num_toks(num_samples) and found[2] == found[3]
    assert 0 < float(found[4]) < 1e-5


def test_too_little_speech_is_refused(codec, tmp_path):
    codec.save_pretrained(tmp_path / "codec")
    soundfile.write(tmp_path / "a.flac", torch.zeros(4000).numpy(), codec.sample_rate)
    with pytest.raises(SystemExit):
        main(["--audio", str(tmp_path), "--checkpoint", str(tmp_path / "codec"), "--seconds", "11"])
