"""The benchmark of lost packets: two processes, and scores of what arrives."""

import re

import pytest

from benchmarks import packet_loss
from recipes.common.dnsmos import Dnsmos
from tests.audio_files import write_noise
from tests.causal_codecs import save_live_codec


def test_lost_packets_are_counted_beside_the_scores(tmp_path, monkeypatch, capsys):
    save_live_codec(tmp_path / "codec")
    (tmp_path / "speech").mkdir()
    for name, size in (("a", 24_000), ("b", 20_001)):
        write_noise(tmp_path / f"speech/{name}.flac", num_samples=size)
    # Noise is no speech for the real ones; these tell what they were given.
    monkeypatch.setattr(packet_loss, "stoi", lambda ref, hyp, **_: len(hyp) / len(ref))
    monkeypatch.setattr(
        packet_loss, "dnsmos", lambda hyp, **_: Dnsmos(1, 1, float(hyp.abs().max() > 0), 4)
    )
    words = ["--audio", tmp_path / "speech", "--checkpoint", tmp_path / "codec", "--loss", "0.5"]
    assert packet_loss.main([str(word) for word in words]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    conceal, loss, *means = row.split()[:5]
    assert (conceal, loss) == ("repeat", "50%")
    assert [float(mean) for mean in means] == [1, 1, 4]
    toks, concealed = map(int, re.search(r"(\d+) tokens, (\d+) concealed", row).groups())
    assert toks + concealed == -(-44_001 // 320) and toks > 0 and concealed > 0


def test_a_folder_without_speech_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        packet_loss.main(["--audio", str(tmp_path), "--checkpoint", "codec"])
