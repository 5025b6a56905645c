"""Synthetic speech (recipes/corpora/{synthetic,espeak,sentences,noises}.py)."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from recipes.common.corpus_files import SUBSETS
from recipes.corpora import espeak, libritts, noises, sentences, synthetic
from tests.corpus_trees import manifest, tree_hash


def test_synthetic_corpus_is_libritts_shaped_and_deterministic(tmp_path):
    pytest.importorskip("espeakng_loader")
    size = {"speakers": 2, "heldout_speakers": 1, "utterances": 2, "seed": 5}
    root = synthetic.generate(tmp_path / "a", **size)
    first = tree_hash(root)
    wavs = sorted(root.rglob("*.wav"))
    assert len(wavs) == 8
    texts = [path.with_suffix(".normalized.txt").read_text() for path in wavs]
    assert len(set(texts)) == 8
    for path in wavs:
        header = soundfile.info(path)
        assert (header.samplerate, header.channels, header.subtype) == (24_000, 1, "PCM_16")
        assert 1.0 < header.duration < 12.0
        assert 0.05 < np.abs(soundfile.read(path)[0]).max() < 0.99
    prepared = libritts.prepare(
        root,
        tmp_path / "run",
        train_splits=["train-clean-100"],
        valid_splits=["dev-clean"],
        test_splits=["test-clean"],
        min_duration_s=1,
        max_duration_s=60,
    )
    assert [counts.speakers for counts in prepared] == [2, 1, 1]
    assert len({e["speaker"] for s in SUBSETS for e in manifest(tmp_path / "run", s).values()}) == 4

    # What an interrupted call left is completed to the same bytes; what is there is kept.
    wavs[3].unlink()
    kept = wavs[0].stat().st_mtime_ns
    synthetic.main([str(root), *(f"--{k}={v}" for k, v in size.items())])
    assert {k: v for k, v in tree_hash(root).items() if k.endswith((".wav", ".txt"))} == {
        k: v for k, v in first.items() if k.endswith((".wav", ".txt"))
    }
    assert wavs[0].stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="holds a synthetic corpus made with"):
        synthetic.generate(root, **size | {"seed": 6})


def test_synthetic_voices_differ_between_speakers():
    speakers = synthetic.draw_speakers(speakers=80, heldout_speakers=8, seed=0)
    assert len({speaker.voice for speaker in speakers}) == 96
    assert speakers == synthetic.draw_speakers(speakers=80, heldout_speakers=8, seed=0)
    assert speakers != synthetic.draw_speakers(speakers=80, heldout_speakers=8, seed=1)
    with pytest.raises(ValueError, match="voices"):
        synthetic.draw_speakers(speakers=1000, heldout_speakers=1, seed=0)


def test_synthetic_voices_exist_in_the_wheel():
    loader = pytest.importorskip("espeakng_loader")
    variants = {path.name for path in Path(loader.get_data_path(), "voices", "!v").iterdir()}
    assert set(espeak.LOW_VOICES) | set(espeak.HIGH_VOICES) <= variants


def test_synthetic_sentences_are_all_different():
    texts = [sentences.sentence(i, seed=0) for i in range(10_000)]
    assert len(set(texts)) == 10_000
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 6 and max(lengths) <= 32
    assert all(text[0].isupper() and text.endswith(".") for text in texts)


def test_synthetic_without_the_wheel_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        synthetic.generate(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("language", [code for code in sentences.GRAMMARS if code != "en"])
def test_sentences_of_other_languages_are_different_and_speakable(language):
    pytest.importorskip("espeakng_loader")
    texts = [sentences.sentence(i, seed=0, language=language) for i in range(10_000)]
    assert len(set(texts)) == 10_000
    assert all("  " not in text and text[0].isupper() and text.endswith(".") for text in texts)
    engine = espeak.Espeak()
    (voice,) = espeak.draw_voices(1, seed=0, languages=[language])
    said = engine.speak(texts[0], voice=voice, sample_rate=16_000)
    english = engine.speak(
        texts[0], voice=voice._replace(name=f"en-us+{voice.name.split('+')[1]}"), sample_rate=16_000
    )
    assert len(said) > 16_000
    assert said.shape != english.shape or not torch.allclose(said, english, atol=0.05)


def test_voices_with_breath_do_not_depend_on_the_clock():
    pytest.importorskip("espeakng_loader")
    engine, voice = espeak.Espeak(), espeak.Voice("en-us+f5", 50, 50, 170, 50)
    said = engine.speak("Breathe in.", voice=voice, sample_rate=16_000)
    time.sleep(1.05)  # eSpeak NG counts seconds
    assert torch.equal(engine.speak("Breathe in.", voice=voice, sample_rate=16_000), said)


@pytest.mark.parametrize("kind", noises.NOISES)
def test_noises_have_their_level_and_depend_on_the_seed_alone(kind):
    pytest.importorskip("espeakng_loader")
    engine = espeak.Espeak()
    sizes = {"num_samples": 16_000, "sample_rate": 16_000, "engine": engine}
    sig = noises.NOISES[kind](seed=1, **sizes)
    assert sig.shape == (16_000,) and sig.dtype == torch.float32
    assert float(sig.square().mean().sqrt()) == pytest.approx(noises.LEVEL, rel=1e-4)
    assert torch.equal(sig, noises.NOISES[kind](seed=1, **sizes))
    assert not torch.equal(sig, noises.NOISES[kind](seed=2, **sizes))


def test_pink_noise_loses_three_decibels_an_octave():
    sig = noises.pink(num_samples=2**18, sample_rate=16_000, seed=0, engine=None)
    power = torch.fft.rfft(sig.double()).abs().square()
    bands = [power[2**i : 2 ** (i + 1)].mean() for i in range(12, 17)]
    steps = [float(10 * torch.log10(a / b)) for a, b in zip(bands, bands[1:], strict=False)]
    assert steps == pytest.approx([3.01] * 4, abs=0.3)  # means over 4096 bins and more
