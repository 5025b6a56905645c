"""Generated noise: pink noise, mains hum, babble. Deterministic by seed."""

from collections.abc import Callable

import torch
from torch import Tensor

from recipes.corpora.espeak import Espeak, draw_voices
from recipes.corpora.sentences import sentence

LEVEL = 0.05  # root mean square of all noises
_TALKERS = 5


def pink(*, num_samples: int, sample_rate: int, seed: int, engine: Espeak) -> Tensor:
    """Noise (T,) whose power falls by 3 dB an octave, from 20 Hz on."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(num_samples, generator=generator))
    freqs = torch.fft.rfftfreq(num_samples, 1 / sample_rate).clamp_min(20)
    return _levelled(torch.fft.irfft(spectrum / freqs.sqrt(), n=num_samples))


def hum(*, num_samples: int, sample_rate: int, seed: int, engine: Espeak) -> Tensor:
    """Hum (T,) of 50 Hz and nine harmonics with random phases, over a little white noise."""
    generator = torch.Generator().manual_seed(seed)
    seconds = torch.arange(num_samples, dtype=torch.float64) / sample_rate
    sig = 0.05 * torch.randn(num_samples, generator=generator, dtype=torch.float64)
    for harmonic in range(1, 11):
        phase = 2 * torch.pi * torch.rand((), generator=generator, dtype=torch.float64)
        sig += torch.sin(2 * torch.pi * 50 * harmonic * seconds + phase) / harmonic
    return _levelled(sig)


def babble(*, num_samples: int, sample_rate: int, seed: int, engine: Espeak) -> Tensor:
    """Five voices (T,) that speak at once, each on and on."""
    sig = torch.zeros(num_samples)
    for talker, voice in enumerate(draw_voices(_TALKERS, seed=f"babble {seed}")):
        said, number = 0, 0
        while said < num_samples:
            text = sentence(_TALKERS * number + talker, seed=seed)
            part = engine.speak(text, voice=voice, sample_rate=sample_rate)[: num_samples - said]
            sig[said : said + len(part)] += part
            said, number = said + len(part), number + 1
    return _levelled(sig)


NOISES: dict[str, Callable[..., Tensor]] = {"pink": pink, "hum": hum, "babble": babble}


def _levelled(sig: Tensor) -> Tensor:
    return (LEVEL * sig / sig.square().mean().sqrt()).float()
