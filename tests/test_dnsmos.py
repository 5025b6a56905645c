"""DNSMOS: published values and windows, odd audio, where its models are found."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from recipes.common.dnsmos import _windows, dnsmos, models_folder
from recipes.common.scoring import ScoreError
from tests.scores import RATE, add_noise, skip_unless_computed, voice


@pytest.fixture
def dnsmos_models():
    skip_unless_computed("dnsmos")


def test_dnsmos_equals_the_published_script(dnsmos_models):
    # speechmos 0.0.1.1 run(), librosa 0.11.0, onnxruntime 1.31.1, on the same samples
    published = {"sig": 2.334315, "bak": 3.737563, "ovrl": 2.060379, "p808": 2.443696}
    scores = dnsmos(voice(9.5), sample_rate=RATE)
    assert scores._asdict() == pytest.approx(published, abs=1e-3)


def test_dnsmos_repeats_a_short_clip(dnsmos_models):
    sig = voice(5.0)
    assert dnsmos(sig, sample_rate=RATE) == dnsmos(sig.repeat(2), sample_rate=RATE)


@pytest.mark.parametrize(
    ("num_samples", "num_windows"),
    [(1, 7), (5 * RATE, 1), (9 * RATE, 7), (144_160, 1), (11 * RATE - 1, 1), (11 * RATE, 2)]
    + [(20 * RATE, 7), (34 * RATE, 8)],
)
def test_dnsmos_takes_the_published_scripts_windows(num_samples, num_windows):
    windows = _windows(np.arange(num_samples, dtype=np.float32))
    assert [window.shape for window in windows] == [(144_160,)] * num_windows
    if num_samples >= 144_160:
        assert [window[0] / RATE for window in windows[:7]] == list(range(len(windows)))[:7]


def test_dnsmos_scores_odd_audio_or_says_why_not(dnsmos_models):
    loud = 1.5 * voice(9.5) / voice(9.5).abs().max()
    assert all(1 <= score <= 5 for score in dnsmos(loud, sample_rate=RATE))
    with pytest.raises(ScoreError, match="empty"):
        dnsmos(torch.zeros(0), sample_rate=RATE)
    with pytest.raises(ScoreError, match="not finite"):
        dnsmos(torch.full((RATE,), torch.nan), sample_rate=RATE)


def test_dnsmos_finds_its_models_beside_a_module_of_the_same_name(dnsmos_models, monkeypatch):
    hub_package = types.ModuleType("speechmos")  # what UTMOS' hub repository leaves behind
    hub_package.__spec__ = importlib.machinery.ModuleSpec("speechmos", None, origin="hub")
    monkeypatch.setitem(sys.modules, "speechmos", hub_package)
    assert (models_folder() / "model_v8.onnx").is_file()


def test_dnsmos_prefers_cleaner_speech(dnsmos_models, shared):
    files = sorted((shared / "data/speech/test-other").rglob("*.flac"))
    speech = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files[:2]])
    sig = torch.from_numpy(speech[: int(9.5 * RATE)])
    assert sig.numel() >= 9.01 * RATE
    clean, mild, strong = (
        dnsmos(hyp, sample_rate=RATE)
        for hyp in (sig, add_noise(sig, snr_db=10), add_noise(sig, snr_db=0))
    )
    for name in clean._fields:
        assert getattr(clean, name) > getattr(mild, name) > getattr(strong, name), name
