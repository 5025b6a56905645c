"""The paper's ablation: what a row of it is, how a run's YAML names one, and its published numbers.

All numbers are those of Table 6 of arXiv:2502.04465; the row with finite scalar quantization stands
in the camera-ready version (NeurIPS 2025) alone.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """What an ablation varies, by the names to print."""

    mixer: str
    activation: str
    quantizer: str
    decoder: str


class Published(NamedTuple):
    """Scores of a row: UTMOS, and dWER and Sim in percent."""

    utmos: float
    dwer: float
    sim: float


NO_DECODER = "none"  # the test decoded no audio
SOURCE = (
    "Table 6 of arXiv:2502.04465 (hidden sizes 512, 256, 128; 1024 codes; trained on LibriSpeech "
    "train-clean-100); the row with FSQ is in the camera-ready version alone (NeurIPS 2025)"
)
TABLE_6 = {
    Row("focal modulation", "Snake", "BSQ", "Vocos"): Published(4.14, 2.54, 95.3),
    Row("focal modulation", "Snake", "BSQ", "HiFi-GAN"): Published(3.73, 2.54, 95.7),
    Row("focal modulation", "Snake", "LFQ", "HiFi-GAN"): Published(3.74, 2.75, 95.4),
    Row("focal modulation", "leaky ReLU", "LFQ", "HiFi-GAN"): Published(3.72, 2.85, 95.2),
    Row("Conformer", "Snake", "LFQ", "HiFi-GAN"): Published(3.74, 3.58, 94.3),
    Row("AMP", "Snake", "LFQ", "HiFi-GAN"): Published(3.70, 4.52, 94.3),
    Row("linear", "Snake", "LFQ", "HiFi-GAN"): Published(2.55, 9.37, 82.5),
    Row("focal modulation", "Snake", "FSQ", "HiFi-GAN"): Published(3.71, 2.61, 94.8),
}
_NAMES = {
    "FocalBlock": "focal modulation",
    "ConformerBlock": "Conformer",
    "AMPBlock": "AMP",
    "LinearBlock": "linear",
    "LeakyReLU": "leaky ReLU",
    "BinarySphericalQuantizer": "BSQ",
    "LookupFreeQuantizer": "LFQ",
    "FiniteScalarQuantizer": "FSQ",
    "HiFiGAN": "HiFi-GAN",
}


def row_of(nodes: Mapping[str, Any]) -> Row:
    """Row that the parsed nodes of a quantizer stage's YAML describe.

    A class without a name in the paper goes by its own. Without ``decoder_checkpoint`` no audio is
    decoded, whatever the YAML's decoder is.
    """
    row = Row(**{part: _name(nodes[part]) for part in Row._fields})
    decodes = nodes.get("decoder_checkpoint") is not None
    return row if decodes else row._replace(decoder=NO_DECODER)


def order(row: Row) -> tuple[int, Row]:
    """Sort key: the paper's rows in its order, others after them."""
    rows = list(TABLE_6)
    return (rows.index(row) if row in TABLE_6 else len(rows)), row


def _name(node: Any) -> str:
    """Name of the class in a node's tag, such as ``!name:focalcodec.focalnet.Snake``."""
    tag = getattr(node, "tag", None)
    if tag is None or not tag.value:
        return str(node)
    name = tag.value.rpartition(":")[2].rpartition(".")[2]
    return _NAMES.get(name, name)
