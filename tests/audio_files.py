"""Audio files for the tests of preparation and loading: noise, and the edge files of ../shared."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000

# The edge files: neither their headers nor their samples may stop, hang or poison a run.
REFUSED_BY_HEADER = {
    "aac.m4a",
    "channels_zero.wav",
    "data_size_zero.wav",
    "empty_0byte.wav",
    "headerless_s16le_16k.raw",
    "ps_awful.wav",
    "ps_bad.wav",
    "ps_evil.wav",
    "ps_null.wav",
    "sample_rate_zero.wav",
    "text_named.wav",
    "truncated_header_20B.wav",
    "vorbis2.webm",
    "zero_samples.wav",
}
REFUSED_WHEN_READ = {
    "corrupt_middle.flac",
    "float_inf.wav",
    "float_nan.wav",
    "truncated_60pct.flac",
}


def write_noise(
    path: Path, *, num_samples: int, sample_rate: int = RATE, channels: int = 1
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(num_samples)
    soundfile.write(path, rng.uniform(-0.5, 0.5, (num_samples, channels)), sample_rate)
    return path
