"""Mixtures and rows of test sets (recipes/common/mixing.py)."""

import numpy as np
import pytest
import soundfile
import torch

from recipes.common.dataio import BadAudioError, load_sig
from recipes.common.mixing import (
    MAX_PEAK,
    extend_noise,
    gains_at_snr,
    load_input,
    load_noise,
    load_reference,
    load_target,
    load_targets,
    mix,
    mix_at_snr,
)
from tests.corpus_trees import write_sig


def noise_of(num_samples: int, *, level: float = 0.05, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(num_samples, generator=generator)


def snr(speech: torch.Tensor, noise: torch.Tensor) -> float:
    return float(10 * torch.log10(speech.double().square().mean() / noise.double().square().mean()))


@pytest.mark.parametrize("snr_db", [-5, 0, 2.5, 15, 40])
def test_mixtures_have_the_stated_ratio(snr_db):
    speech, noise = noise_of(8000, level=0.1), noise_of(8000, level=0.003, seed=1)
    gains = gains_at_snr(speech, noise, snr_db=snr_db)
    assert gains.speech == 1.0
    assert snr(speech * gains.speech, noise * gains.noise) == pytest.approx(snr_db, abs=1e-4)
    assert torch.equal(mix_at_snr(speech, noise, snr_db=snr_db), mix(speech, noise, gains=gains))


def test_a_mixture_that_would_clip_is_lowered_and_keeps_its_ratio():
    speech, noise = noise_of(8000, level=0.3), noise_of(8000, level=0.3, seed=1)
    gains = gains_at_snr(speech, noise, snr_db=0)
    assert 0 < gains.speech < 1
    assert float(mix(speech, noise, gains=gains).abs().max()) == pytest.approx(MAX_PEAK, rel=1e-5)
    assert snr(speech * gains.speech, noise * gains.noise) == pytest.approx(0, abs=1e-4)


def test_silence_has_no_ratio_and_lengths_must_agree():
    speech, silence = noise_of(800), torch.full((800,), 1e-6)
    with pytest.raises(ValueError, match="noise is silent"):
        gains_at_snr(speech, silence, snr_db=0)
    with pytest.raises(ValueError, match="speech is silent"):
        gains_at_snr(silence, speech, snr_db=0)
    with pytest.raises(ValueError, match="use extend_noise"):
        gains_at_snr(speech, speech[1:], snr_db=0)


@pytest.mark.parametrize("size", [30_000, 16_500, 12_345])
def test_short_noise_is_extended_as_librimix_extends_it(size):
    noise, wanted = noise_of(size), 40_000
    window = np.hanning(16_001)  # one second and its middle sample
    joined = noise.numpy().astype(float)
    while len(joined) < wanted:
        end = joined[-8001:] * window[8000:] + noise[:8001].numpy() * window[:8001]
        joined = np.hstack([joined[:-8001], end, noise[8001:].numpy()])
    extended = extend_noise(noise, num_samples=wanted)
    assert extended.shape == (wanted,) and extended.dtype == torch.float32
    assert extended.numpy() == pytest.approx(joined[:wanted], abs=1e-6)


@pytest.mark.parametrize("size", [3, 100, 8001])
def test_noise_shorter_than_the_fade_is_extended_as_well(size):
    noise = noise_of(size)
    extended = extend_noise(noise, num_samples=10_000)
    assert extended.shape == (10_000,)
    kept = size - size // 2  # samples before the first fade
    assert torch.equal(extended[:kept], noise[:kept])
    assert extended[size:].abs().max() <= noise.abs().max()
    assert extended[size:].abs().max() > 0.3 * noise.abs().max()


def test_fades_keep_a_constant_and_long_noise_is_only_cut():
    constant = extend_noise(torch.full((9000,), 0.5), num_samples=40_000)
    assert constant.numpy() == pytest.approx(0.5, abs=1e-6)
    noise = noise_of(1000)
    assert torch.equal(extend_noise(noise, num_samples=400), noise[:400])
    assert torch.equal(extend_noise(noise[:1], num_samples=5), noise[:1].expand(5))


def test_noise_is_its_first_channel_from_its_beginning(tmp_path):
    path = write_sig(tmp_path / "n.wav", seconds=0.5, channels=2)
    both = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    assert torch.equal(load_noise(path, num_samples=1000), both[:1000, 0])
    assert torch.equal(load_sig(path, sample_rate=16_000, channel=1), both[:, 1])
    assert torch.equal(load_sig(path, sample_rate=16_000), both.mean(1))
    with pytest.raises(BadAudioError, match="no channel 2: it has 2"):
        load_sig(path, sample_rate=16_000, channel=2)
    assert len(load_noise(path, num_samples=20_000)) == 20_000


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_a_row_of_one_file_is_its_own_target(tmp_path, rate):
    path = write_sig(tmp_path / "a.wav", sample_rate=48_000)
    row = {"wav": str(path)}
    assert torch.equal(load_input(row, sample_rate=rate), load_sig(path, sample_rate=rate))
    assert torch.equal(load_target(row, sample_rate=rate), load_input(row, sample_rate=rate))
    with pytest.raises(ValueError, match="a.wav has no reference.*vctk_pairs"):
        load_reference(row)


def test_a_mixture_is_the_target_plus_noise_times_its_gain(tmp_path):
    speech = write_sig(tmp_path / "s.wav", seconds=0.2)
    noise = write_sig(tmp_path / "n.wav", seconds=0.3, seed=1)
    row = {"wav": str(speech), "noise": str(noise), "speech_gain": 0.5, "noise_gain": 0.25}
    rest = load_input(row) - load_target(row)
    assert rest.numpy() == pytest.approx(0.25 * soundfile.read(noise)[0][:3200], abs=1e-6)
    assert load_target(row).numpy() == pytest.approx(0.5 * soundfile.read(speech)[0], abs=1e-6)
    assert len(load_input(row, sample_rate=24_000)) == len(load_target(row, sample_rate=24_000))
    assert len(load_input(row, sample_rate=24_000)) == 4800


def test_target_and_reference_are_files_of_their_own(tmp_path):
    paths = {
        key: write_sig(tmp_path / f"{key}.wav", seconds=0.1 * (i + 1), seed=i)
        for i, key in enumerate(("wav", "target", "reference"))
    }
    row = {key: str(path) for key, path in paths.items()}
    for key, load in (("wav", load_input), ("target", load_target), ("reference", load_reference)):
        assert torch.equal(load(row), load_sig(paths[key], sample_rate=16_000))


def test_targets_are_one_signal_or_both_speakers(tmp_path):
    paths = [str(write_sig(tmp_path / f"{i}.wav", seed=i)) for i in range(3)]
    row = dict(zip(("wav", "target", "target_2"), paths, strict=True))
    sigs = [load_sig(path, sample_rate=24_000) for path in paths[1:]]
    assert all(map(torch.equal, load_targets(row, sample_rate=24_000), sigs))
    assert len(load_targets(row)) == 2
    del row["target_2"]
    (target,) = load_targets(row)
    assert torch.equal(target, load_target(row))
