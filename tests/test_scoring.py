"""Mel filters that audio scores share, against torchaudio's and against finer sampling."""

import torch
import torchaudio

from recipes.common.scoring import mel_filters
from tests.scores import RATE


def test_mel_filters_equal_torchaudio_where_n_fft_is_even():
    oracle = torchaudio.functional.melscale_fbanks(
        513, 0.0, 8000.0, 80, RATE, norm="slaney", mel_scale="slaney"
    )
    # float32 frequencies in torchaudio's
    torch.testing.assert_close(mel_filters(1024, 80), oracle, atol=1e-6, rtol=0)


def test_mel_filters_peak_at_the_tones_frequency_for_odd_n_fft():
    filters = mel_filters(321, 120)
    centres = (torch.arange(161)[:, None] * RATE / 321 * filters).sum(0) / filters.sum(0)
    wide = mel_filters(4096, 120)  # the same bands, finely sampled
    expected = (torch.arange(2049)[:, None] * RATE / 4096 * wide).sum(0) / wide.sum(0)
    torch.testing.assert_close(centres[90:], expected[90:], rtol=0.005, atol=0)  # bands of > 3 bins
