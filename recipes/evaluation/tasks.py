"""What is asked of a codec: resynthesis, voice conversion, chunk-wise inference.

A task turns the signals of one utterance into what the codec makes of them. Loading, scoring and
writing are the same for all of them (`recipes.evaluation.scoring`).
"""

import time
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from recipes.codecs.chunked import Chunked
from recipes.codecs.codec import Codec
from recipes.codecs.conversion import convert


class Decoded(NamedTuple):
    """What a codec made of one utterance.

    toks (L, K), None where the output is not made of the input's tokens alone; signals by prefix,
    each (T,) at the codec's output rate: ``hyp`` from tokens, ``rec`` from unquantized features;
    seconds of work by name, ``total`` among them.
    """

    toks: Tensor | None
    sigs: dict[str, Tensor]
    seconds: dict[str, float]


class Task(Protocol):
    """What `recipes.evaluation.loop.Loop` asks of a task.

    Attributes
    ----------
    name : for the progress bar.
    is_aligned : whether the output's samples are those of the input, so that both can be compared.
    has_reference : whether a second signal says how the output shall sound.
    settings : numbers that tell two evaluations of one codec apart.
    """

    name: str
    is_aligned: bool
    has_reference: bool
    settings: dict[str, Any]

    def run(self, codec: Codec, sig: Tensor, reference_sig: Tensor | None) -> Decoded:
        """Decoded signals of a signal (1, T) at the codec's rate."""


class Resynthesis:
    """Encode and decode (arXiv:2502.04465, section 4.3).

    Parameters
    ----------
    decode_features : also decode the continuous features (``rec``), the bound of any quantizer;
        codecs without features have none.
    """

    name = "resynthesis"
    is_aligned = True
    has_reference = False

    def __init__(self, *, decode_features: bool = False) -> None:
        self.decode_features = decode_features
        self.settings: dict[str, Any] = {}

    def run(self, codec: Codec, sig: Tensor, reference_sig: Tensor | None) -> Decoded:
        """Encode and decode a signal (1, T) at the codec's rate."""
        del reference_sig
        clock = _Clock(codec.device)
        toks = codec.sig_to_toks(sig)
        clock.lap("encode")
        hyp_sig = codec.toks_to_sig(toks)
        clock.lap("decode")
        sigs = {"hyp": hyp_sig[0]}
        if self.decode_features and codec.has_feats:
            sigs["rec"] = codec.feats_to_sig(codec.sig_to_feats(sig))[0]
        return Decoded(toks[0], sigs, clock.seconds)


class Streaming:
    """Chunk-wise inference of a codec that is not causal (arXiv:2502.04465, appendix F.3).

    Parameters
    ----------
    chunk_size, left_context, overlap : samples of the input, see `recipes.codecs.chunked.Chunked`.
    """

    name = "streaming"
    is_aligned = True
    has_reference = False

    def __init__(
        self, *, chunk_size: int = 8000, left_context: int = 48_000, overlap: int = 250
    ) -> None:
        self.settings = {
            "chunk_size": chunk_size,
            "left_context": left_context,
            "overlap": overlap,
        }

    def run(self, codec: Codec, sig: Tensor, reference_sig: Tensor | None) -> Decoded:
        """Send a signal (1, T) through the codec chunk by chunk."""
        del reference_sig
        chunked = Chunked(codec, **self.settings)
        clock = _Clock(codec.device)
        decoded = chunked.resynthesize(sig)
        clock.lap("total")
        return Decoded(decoded.toks[0], {"hyp": decoded.sig[0]}, clock.seconds)


class VoiceConversion:
    """One-shot voice conversion (arXiv:2502.04465, section 4.4).

    Parameters
    ----------
    topk : nearest neighbours that are averaged, for codecs of one codebook.
    """

    name = "voice_conversion"
    is_aligned = False
    has_reference = True

    def __init__(self, *, topk: int = 4) -> None:
        self.settings = {"topk": topk}

    def run(self, codec: Codec, sig: Tensor, reference_sig: Tensor | None) -> Decoded:
        """Give a signal (1, T) the voice of ``reference_sig`` (1, T')."""
        clock = _Clock(codec.device)
        hyp_sig = convert(codec, sig, reference_sig, **self.settings)
        clock.lap("total")
        return Decoded(None, {"hyp": hyp_sig[0]}, clock.seconds)


class _Clock:
    """Seconds of the steps of one utterance, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = {"total": 0.0}
        self._start = self._now()

    def lap(self, step: str) -> None:
        end = self._now()
        self.seconds[step] = end - self._start
        if step != "total":
            self.seconds["total"] += end - self._start
        self._start = end

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
