"""Size and speed of a codec: the columns of the paper's Table 1, and real-time factors."""

from typing import Any

from recipes.codecs.codec import Codec
from recipes.common.model_cost import macs_per_second, num_parameters, real_time_factors


def measure(codec: Codec, *, audio_seconds: float, repeats: int) -> dict[str, Any]:
    """Scores as ``metrics.json`` has them; operations are those of one second of audio.

    Parameters
    ----------
    codec : on its device.
    audio_seconds : of the noise that is timed.
    repeats : of the timing; the median counts.
    """
    macs = macs_per_second(codec)
    factors = real_time_factors(codec, seconds=audio_seconds, repeats=repeats)
    scores = {
        "parameters": num_parameters(codec),
        "macs_per_second": macs.total,
        "macs_per_second_encode": macs.encode,
        "macs_per_second_decode": macs.decode,
        "rtf": factors.total,
        "rtf_encode": factors.encode,
        "rtf_decode": factors.decode,
    }
    return {
        "scores": {
            name: {"mean": float(value), "low": None, "high": None}
            for name, value in scores.items()
        },
        "models": {"macs_per_second": macs.tool},
        "not_computed": {},
        "failures": [],
    }
