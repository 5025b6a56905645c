"""What is extracted from the signals of a corpus: tokens of a codec, or vectors of speakers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import Tensor

from recipes.common.dataio import TooShortError
from recipes.common.fingerprint import weights_hash
from recipes.common.mixing import load_input, load_target, load_targets
from recipes.common.speaker_similarity import SpeakerModel

Row = Mapping[str, Any]
Signals = dict[str, Tensor]


class Extractor(Protocol):
    """From the signals of utterances to columns of a shard; batches never change a result.

    Attributes
    ----------
    sample_rate : Hz of the signals.
    description : what the results depend on, for ``tokens.json``; has a ``name``.
    """

    sample_rate: int
    description: dict[str, Any]

    def columns(self, row: Row) -> dict[str, pa.DataType]:
        """Columns that an utterance fills."""
        ...

    def num_bytes(self, row: Row) -> float:
        """About how many bytes an utterance takes."""
        ...

    def codebooks(self) -> Tensor | None:
        """(K, size, H) vectors of the tokens; None where there are none."""
        ...

    def to(self, device: str | torch.device) -> None:
        """Move the model."""
        ...

    def load(self, row: Row) -> Signals:
        """Load the signals of an utterance by column, each (T,); BadAudioError if that fails."""
        ...

    def __call__(self, batch: Sequence[Signals]) -> list[dict[str, Any]]:
        """Values of the columns for each utterance."""
        ...


class Tokens:
    """Tokens ``toks`` of the signal, and of its targets where a row has them.

    Lists are flat, frame after frame; ``num_codebooks`` says how many tokens a frame has.

    Parameters
    ----------
    codec : `recipes.codecs.codec.Codec`.
    """

    def __init__(self, codec: torch.nn.Module) -> None:
        self.codec = codec
        self.sample_rate = codec.sample_rate
        self.description = {
            "name": codec.name,
            "model_id": codec.model_id,
            "weights": weights_hash(codec),
            "sample_rate": codec.sample_rate,
            "sample_rate_output": codec.sample_rate_output,
            "token_rate": codec.token_rate,
            "num_codebooks": codec.num_codebooks,
            "codebook_size": codec.codebook_size,
        }
        self._type = pa.list_(pa.uint16() if codec.codebook_size <= 2**16 else pa.uint32())

    def columns(self, row: Row) -> dict[str, pa.DataType]:
        """``toks``, ``num_codebooks``, and ``target_toks`` and ``target_2_toks`` where needed."""
        return {
            "toks": self._type,
            "num_codebooks": pa.int32(),
            **dict.fromkeys(_target_columns(row), self._type),
        }

    def num_bytes(self, row: Row) -> float:
        """Tokens at log2(codebook size) bits."""
        seconds = row["duration"] * (1 + len(_target_columns(row)))
        bits = self.codec.num_codebooks * math.log2(self.codec.codebook_size)
        return seconds * self.codec.token_rate * bits / 8

    def codebooks(self) -> Tensor | None:
        """Codebooks of the codec; None if it does not give them."""
        try:
            return self.codec.embeddings().detach().float().cpu().contiguous()
        except NotImplementedError:
            return None

    def to(self, device: str | torch.device) -> None:
        """Move the codec."""
        self.codec.to(device)

    def load(self, row: Row) -> Signals:
        """Load the signal, or mix it, and load its targets."""
        signals = {"toks": load_input(row, sample_rate=self.sample_rate)}
        if names := _target_columns(row):
            targets = load_targets(row, sample_rate=self.sample_rate)
            signals |= zip(names, targets, strict=True)
        return signals

    def __call__(self, batch: Sequence[Signals]) -> list[dict[str, Any]]:
        """Tokens of all signals of a batch, encoded together."""
        device = next((value.device for value in self.codec.parameters()), "cpu")
        sigs = [sig.to(device) for signals in batch for sig in signals.values()]
        toks = iter(self.codec.sigs_to_toks(sigs))
        return [
            {name: next(toks).flatten().cpu().numpy() for name in signals}
            | {"num_codebooks": self.codec.num_codebooks}
            for signals in batch
        ]


class SpeakerVectors:
    """One float32 ``vector`` of the voice of each utterance: of its target where it has one.

    Utterances too short for the model are bad files.

    Parameters
    ----------
    model : of `recipes.common.speaker_similarity.load_speaker_model`.
    name : to print.
    """

    sample_rate = 16_000

    def __init__(self, model: SpeakerModel, *, name: str = "speaker vectors") -> None:
        self.model = model
        self.dim = len(model(torch.zeros(max(self.sample_rate, model.min_samples))))
        self.description = {
            "name": name,
            "weights": weights_hash(model.embed),
            "sample_rate": self.sample_rate,
            "dim": self.dim,
        }

    def columns(self, row: Row) -> dict[str, pa.DataType]:
        """``vector``."""
        return {"vector": pa.list_(pa.float32())}

    def num_bytes(self, row: Row) -> float:
        """Four bytes a number."""
        return 4.0 * self.dim

    def codebooks(self) -> Tensor | None:
        """None: vectors are no tokens."""
        return None

    def to(self, device: str | torch.device) -> None:
        """Move the model."""
        self.model.embed.to(device)
        self.model.device = device

    def load(self, row: Row) -> Signals:
        """Load the target, or the signal itself."""
        sig = load_target(row, sample_rate=self.sample_rate)
        if len(sig) < self.model.min_samples:
            raise TooShortError(
                row["wav"],
                f"{len(sig)} samples, and the speaker model needs {self.model.min_samples}",
            )
        return {"vector": sig}

    def __call__(self, batch: Sequence[Signals]) -> list[dict[str, Any]]:
        """Vectors, worked out one after the other."""
        return [{"vector": self.model(item["vector"]).float().numpy()} for item in batch]


def _target_columns(row: Row) -> list[str]:
    has_target = "target" in row or "noise" in row
    return ["target_toks"] * has_target + ["target_2_toks"] * ("target_2" in row)
