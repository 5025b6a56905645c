"""Scores that compare sample by sample: known values, and what cannot be scored."""

import math

import pytest
import torch
import torchaudio

from recipes.common import reference_scores
from recipes.common.reference_scores import mel_distance, pesq, stft_distance, stoi
from recipes.common.scoring import ScoreError
from tests.scores import RATE, add_noise, skip_unless_computed, voice

INTRUSIVE = {
    "stoi": stoi,
    "pesq": pesq,
    "mel_distance": mel_distance,
    "stft_distance": stft_distance,
}
IDENTICAL = {"stoi": 1.0, "pesq": 4.6439, "mel_distance": 0.0, "stft_distance": 0.0}


@pytest.fixture(params=INTRUSIVE)
def metric(request) -> str:
    """Name of a metric with a reference whose package is installed."""
    skip_unless_computed(request.param)
    return request.param


@pytest.fixture
def sig() -> torch.Tensor:
    return voice(3.0)


def test_identical_audio_scores_best(metric, sig):
    score = INTRUSIVE[metric](sig, sig, sample_rate=RATE)
    assert score == pytest.approx(IDENTICAL[metric], abs=1e-4)


def test_noise_makes_the_score_worse(metric, sig):
    clean, mild, strong = (
        abs(INTRUSIVE[metric](sig, hyp, sample_rate=RATE) - IDENTICAL[metric])
        for hyp in (sig, add_noise(sig, snr_db=20), add_noise(sig, snr_db=0))
    )
    assert clean < mild < strong


def test_arrays_and_half_precision_score_like_tensors(metric, sig):
    hyp = add_noise(sig, snr_db=10).bfloat16()
    score = INTRUSIVE[metric](sig, hyp.float(), sample_rate=RATE)
    assert INTRUSIVE[metric](sig.numpy(), hyp.float().numpy(), sample_rate=RATE) == score
    assert INTRUSIVE[metric](sig, hyp, sample_rate=RATE) == score


def test_other_sample_rates_are_resampled(metric):
    sig = voice(3.0, sample_rate=24_000)
    assert INTRUSIVE[metric](sig, sig, sample_rate=24_000) == pytest.approx(
        IDENTICAL[metric], abs=1e-4
    )
    hyp = 0.5 * sig + 0.1
    resampled = [torchaudio.functional.resample(x, 24_000, RATE) for x in (sig, hyp)]
    assert INTRUSIVE[metric](sig, hyp, sample_rate=24_000) == pytest.approx(
        INTRUSIVE[metric](*resampled, sample_rate=RATE), abs=1e-5
    )


def test_samples_beyond_unity_are_scored(metric, sig):
    assert math.isfinite(INTRUSIVE[metric](sig, 9 * sig, sample_rate=RATE))


@pytest.mark.parametrize(
    ("ref", "hyp"),
    [
        pytest.param(torch.zeros(0), torch.zeros(0), id="empty"),
        pytest.param(torch.ones(RATE), torch.full((RATE,), torch.nan), id="nan"),
        pytest.param(torch.full((RATE,), torch.inf), torch.ones(RATE), id="inf"),
    ],
)
def test_empty_or_not_finite_audio_has_no_score(metric, ref, hyp):
    with pytest.raises(ScoreError, match="empty|not finite"):
        INTRUSIVE[metric](ref, hyp, sample_rate=RATE)


@pytest.mark.parametrize("name", ["stoi", "pesq"])
@pytest.mark.parametrize("num_samples", [1, 300, 500, 3000])
def test_too_short_audio_has_no_score(name, num_samples, sig):
    skip_unless_computed(name)
    with pytest.raises(ScoreError, match="at least"):
        INTRUSIVE[name](sig[-num_samples:], sig[-num_samples:], sample_rate=RATE)


def test_speech_too_short_between_silence_has_no_stoi(sig):
    skip_unless_computed("stoi")
    sig = torch.cat([torch.zeros(RATE), sig[:4000], torch.zeros(RATE)])
    with pytest.raises(ScoreError, match="0.4 s of speech"):
        stoi(sig, sig, sample_rate=RATE)


@pytest.mark.parametrize("name", ["stoi", "pesq"])
def test_silent_reference_has_no_score(name, sig):
    skip_unless_computed(name)
    with pytest.raises(ScoreError, match="silent"):
        INTRUSIVE[name](torch.zeros_like(sig), sig, sample_rate=RATE)


def test_silent_decoded_audio_has_no_pesq(sig):
    skip_unless_computed("pesq")
    with pytest.raises(ScoreError, match="silent"):
        pesq(sig, torch.zeros_like(sig), sample_rate=RATE)


def test_pesq_in_its_own_process_gives_the_same_score(monkeypatch, sig):
    skip_unless_computed("pesq")
    hyp = add_noise(sig, snr_db=10)
    score = pesq(sig, hyp, sample_rate=RATE)
    monkeypatch.setattr(reference_scores, "_PESQ_SAFE_SAMPLES", 0)
    assert pesq(sig, hyp, sample_rate=RATE) == score


def test_pesq_with_too_many_pauses_does_not_kill_this_process():
    skip_unless_computed("pesq")
    burst = torch.cat([0.1 * torch.randn(4800), torch.zeros(4000)])
    sig = burst.repeat(60)  # the package has room for 50 and checks nothing
    try:
        assert 1 <= pesq(sig, sig, sample_rate=RATE) <= 4.65
    except ScoreError as error:
        assert "crashed" in str(error)


def test_shapes_and_integers_are_refused(metric, sig):
    with pytest.raises(ValueError, match="same shape"):
        INTRUSIVE[metric](sig, sig[1:], sample_rate=RATE)
    with pytest.raises(ValueError, match=r"one utterance.*\(1, 48000\)"):
        INTRUSIVE[metric](sig[None], sig[None], sample_rate=RATE)
    with pytest.raises(ValueError, match="floating point.*int16"):
        INTRUSIVE[metric](sig.short(), sig.short(), sample_rate=RATE)


def test_mel_distance_of_a_gain_is_its_logarithm():
    sig = 0.1 * torch.randn(RATE)  # noise: no band at the floor
    assert mel_distance(sig, 2 * sig, sample_rate=RATE) == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("num_samples", [1, 319, 1025])
def test_distances_take_any_length(num_samples):
    sig = torch.ones(num_samples)
    assert mel_distance(sig, sig, sample_rate=RATE) == 0
    assert stft_distance(sig, sig, sample_rate=RATE) == 0


def test_stft_distance_of_a_gain_is_its_logarithm_and_its_magnitude():
    sig = torch.randn(RATE)
    distance = stft_distance(sig, 2 * sig, sample_rate=RATE)
    magnitudes = [
        float(torch.stft(sig, n, n // 4, window=torch.hann_window(n), return_complex=True,
                         pad_mode="constant").abs().mean())
        for n in (2048, 512)
    ]  # fmt: skip
    assert distance == pytest.approx(sum(magnitudes) + 2 * 2 * math.log10(2), rel=1e-3)


@pytest.mark.parametrize("score", [mel_distance, stft_distance])
def test_distances_of_silence_are_known(score):
    silence, sig = torch.zeros(RATE), 0.1 * torch.randn(RATE)
    assert score(silence, silence, sample_rate=RATE) == 0
    assert math.isfinite(score(silence, sig, sample_rate=RATE))
    assert score(silence, sig, sample_rate=RATE) == score(sig, silence, sample_rate=RATE) > 1
