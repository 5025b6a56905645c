"""Entry point of ``torch.hub``: ``torch.hub.load(repository, "focalcodec", config=...)``."""

import os
from collections.abc import Mapping
from typing import Any

from focalcodec import FocalCodec

dependencies = ["torch", "huggingface_hub", "numpy", "safetensors"]


def focalcodec(
    config: str | os.PathLike[str] = "lucadellalib/focalcodec_50hz",
    *,
    pretrained: bool = True,
    overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FocalCodec:
    """Load a codec.

    Parameters
    ----------
    config : folder, JSON file or id on the Hugging Face hub, as in `FocalCodec.from_pretrained`.
    pretrained : False for random weights, ready to be trained.
    overrides : dotted key -> value that replaces what config.json says, such as
        ``{"encoder_config.dropout": 0.1}``.
    revision : branch, tag or commit of a hub id.
    cache_dir : where downloads are kept; None for the hub library's own choice.

    Raises
    ------
    FileNotFoundError : if a file is missing here or on the hub.
    ValueError : if the configuration or the weights do not fit.
    """
    load = FocalCodec.from_pretrained if pretrained else FocalCodec.from_config
    return load(config, overrides=overrides, revision=revision, cache_dir=cache_dir)
