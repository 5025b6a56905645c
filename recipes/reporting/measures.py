"""How a score is called, in which unit it is printed, and which direction is better."""

import math
from typing import NamedTuple


class Measure(NamedTuple):
    """One column of a table.

    ``spec`` is a format, or "about" for three digits and no fractions above 100. ``scale`` turns a
    run's value into the printed unit; ``better`` is +1 where more is better, -1 where less is, 0
    where neither is.
    """

    key: str
    title: str
    spec: str = ".4g"
    scale: float = 1
    better: int = 0

    @property
    def arrow(self) -> str:
        """Sign of the better direction, for the column's title."""
        return {1: "↑", -1: "↓", 0: ""}[self.better]

    def text(self, value: float) -> str:
        """Print a value that is in the printed unit."""
        if not math.isfinite(value):
            return "∞" if value > 0 else "−∞"
        if self.spec == "about":
            return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
        return format(value, self.spec).replace("-", "−")


# In the order of a table's columns: quality first, then what a codec is and costs.
_MEASURES = (
    Measure("bitrate", "Bitrate (kbit/s)", ".2f", 1e-3),
    Measure("sample_rate", "Sample rate (kHz)", ".3g", 1e-3),
    Measure("token_rate", "Token rate (Hz)", ".1f"),
    Measure("num_codebooks", "Codebooks", ".0f"),
    Measure("codebook_size", "Codes", ".0f"),
    Measure("embedding_dim", "Code size", ".0f"),
    Measure("parameters", "Parameters (M)", "about", 1e-6),
    Measure("macs_per_second", "MACs (G/s)", "about", 1e-9),
    Measure("macs_per_second_encode", "MACs encode (G/s)", "about", 1e-9),
    Measure("macs_per_second_decode", "MACs decode (G/s)", "about", 1e-9),
    Measure("chunk_size", "Chunk (samples)", ".0f"),
    Measure("utmos", "UTMOS", ".2f", 1, 1),
    Measure("dnsmos_ovrl", "DNSMOS", ".2f", 1, 1),
    Measure("dnsmos_sig", "DNSMOS SIG", ".2f", 1, 1),
    Measure("dnsmos_bak", "DNSMOS BAK", ".2f", 1, 1),
    Measure("dnsmos_p808", "DNSMOS P.808", ".2f", 1, 1),
    Measure("dwer", "dWER (%)", ".2f", 100, -1),
    Measure("dcer", "dCER (%)", ".2f", 100, -1),
    Measure("sim", "Sim (%)", ".1f", 100, 1),
    Measure("sim_strict", "Sim, strict model (%)", ".1f", 100, 1),
    Measure("pesq", "PESQ-WB", ".2f", 1, 1),
    Measure("stoi", "STOI", ".3f", 1, 1),
    Measure("mel_distance", "Mel distance", ".3f", 1, -1),
    Measure("stft_distance", "STFT distance", ".3f", 1, -1),
    Measure("code_usage", "Code usage (%)", ".1f", 100, 1),
    Measure("normalised_entropy", "Norm. entropy (%)", ".1f", 100, 1),
    Measure("normalised_entropy_used", "Norm. entropy of used codes (%)", ".1f", 100, 1),
    Measure("rtf", "RTF", "about", 1, 1),
    Measure("rtf_encode", "RTF encode", "about", 1, 1),
    Measure("rtf_decode", "RTF decode", "about", 1, 1),
    Measure("asr_wer", "ASR WER (%)", ".2f", 100, -1),
    Measure("asr_cer", "ASR CER (%)", ".2f", 100, -1),
    Measure("si_error", "Speaker error (%)", ".2f", 100, -1),
    Measure("ser_error", "Emotion error (%)", ".2f", 100, -1),
    Measure("not_ended", "Cut, not ended (%)", ".1f", 100, -1),
    Measure("length_ratio", "Length / reference", ".2f"),
)
MEASURES = {measure.key: measure for measure in _MEASURES}
QUALITY = (
    "utmos",
    "dnsmos_ovrl",
    "dwer",
    "dcer",
    "sim",
    "sim_strict",
    "pesq",
    "stoi",
    "mel_distance",
    "stft_distance",
)


def measure_of(key: str) -> Measure:
    """Measure of a score; one that is not known keeps its own name and unit."""
    return MEASURES.get(key) or Measure(key, key)


def in_order(keys: set[str]) -> list[Measure]:
    """Measures of keys, in the order of columns, those that are not known last."""
    order = list(MEASURES)
    ranked = sorted(
        keys, key=lambda key: (order.index(key) if key in MEASURES else len(order), key)
    )
    return [measure_of(key) for key in ranked]
