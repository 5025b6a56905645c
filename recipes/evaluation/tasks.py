"""What is asked of a codec: resynthesis, voice conversion, chunk-wise inference.

A task turns the signals of one utterance into what the codec makes of them. Loading, scoring and
writing are the same for all of them (`recipes.evaluation.loop`).
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from recipes.codecs.chunked import Chunked
from recipes.codecs.codec import Codec
from recipes.codecs.conversion import convert
from recipes.codecs.live import Live
from recipes.common.known_metrics import METRICS

Manifest = Mapping[str, Mapping[str, Any]]


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

    def check(self, codec: Codec, manifest: Manifest, metrics: Iterable[str]) -> None:
        """Raise ValueError if the codec, the test set or a metric is not for this task."""

    def facts(self, codec: Codec) -> dict[str, float]:
        """Facts about the codec that differ under this task, such as its bitrate."""

    def run(self, codec: Codec, sig: Tensor, reference_sig: Tensor | None) -> Decoded:
        """Send a signal (1, T) at the codec's rate through the codec."""


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

    def check(self, codec: Codec, manifest: Manifest, metrics: Iterable[str]) -> None:
        """Refuse pairs of speakers, and a codec that has no features to decode."""
        del metrics
        _refuse_pairs(manifest, task=self.name)
        if self.decode_features and not codec.has_feats:
            raise ValueError(
                f"{codec.name} gives no features in front of its decoder; leave decode_features out"
            )

    def facts(self, codec: Codec) -> dict[str, float]:
        """Give none: this is what the codec is made for."""
        del codec
        return {}

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
    """Chunk-wise inference: live streams of a causal codec, windows of any other.

    Windows are those of arXiv:2502.04465, appendix F.3.

    Parameters
    ----------
    chunk_size : samples of the input that arrive at once.
    left_context, overlap : samples of the input, see `recipes.codecs.chunked.Chunked`; a causal
        codec needs neither.
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

    def check(self, codec: Codec, manifest: Manifest, metrics: Iterable[str]) -> None:
        """Refuse pairs of speakers, and sizes that cannot be."""
        del metrics
        _refuse_pairs(manifest, task=self.name)
        self._in_chunks(codec)

    def facts(self, codec: Codec) -> dict[str, float]:
        """Bitrates of what is sent, with overlaps and with all of the context, and latency."""
        chunked = self._in_chunks(codec)
        return {
            "bitrate": chunked.bitrate,
            "bitrate_with_context": chunked.bitrate_with_context,
            "latency_ms": chunked.latency_ms,
        }

    def run(self, codec: Codec, sig: Tensor, reference_sig: Tensor | None) -> Decoded:
        """Send a signal (1, T) through the codec chunk by chunk."""
        del reference_sig
        chunked = self._in_chunks(codec)
        clock = _Clock(codec.device)
        decoded = chunked.resynthesize(sig)
        clock.lap("total")
        return Decoded(decoded.toks[0], {"hyp": decoded.sig[0]}, clock.seconds)

    def _in_chunks(self, codec: Codec) -> Chunked | Live:
        if codec.latency_ms is not None:
            return Live(codec, chunk_size=self.settings["chunk_size"])
        return Chunked(codec, **self.settings)


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

    def check(self, codec: Codec, manifest: Manifest, metrics: Iterable[str]) -> None:
        """Refuse sets without references, metrics that compare samples, and one bare codebook."""
        for id, entry in manifest.items():
            if "reference" not in entry:
                raise ValueError(
                    f"{id} has no reference; voice conversion needs a test set of parallel "
                    "sentences, such as dataset/vctk_pairs.yaml or dataset/parallel.yaml"
                )
        if aligned := [name for name in metrics if name in METRICS and METRICS[name].is_aligned]:
            raise ValueError(
                f"{', '.join(aligned)} compare sample by sample, which two speakers' recordings of "
                "a sentence do not allow; leave them out of metrics"
            )
        if codec.num_codebooks == 1 and not codec.has_feats:
            raise ValueError(
                f"{codec.name} has one codebook and gives no features in front of its decoder: it "
                "cannot convert voices"
            )

    def facts(self, codec: Codec) -> dict[str, float]:
        """Give none: nothing is sent."""
        del codec
        return {}

    def run(self, codec: Codec, sig: Tensor, reference_sig: Tensor | None) -> Decoded:
        """Give a signal (1, T) the voice of ``reference_sig`` (1, T')."""
        clock = _Clock(codec.device)
        hyp_sig = convert(codec, sig, reference_sig, **self.settings)
        clock.lap("total")
        return Decoded(None, {"hyp": hyp_sig[0]}, clock.seconds)


def _refuse_pairs(manifest: Manifest, *, task: str) -> None:
    for id, entry in manifest.items():
        if "reference" in entry:
            raise ValueError(
                f"{id} is a pair of two speakers; {task} compares an output with its own input: "
                "use voice_conversion for this test set, or another test set"
            )


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
