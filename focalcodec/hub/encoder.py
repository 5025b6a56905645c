"""Pretrained weights for an encoder: whether they are of its kind, and their names here.

They come from a WavLM in the layout of transformers, from a codec of either published layout, or
from an encoder alone. Files are the business of ``files.py``.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from focalcodec.hub.arguments import Where, shown
from focalcodec.hub.config import KEYS, read_encoder
from focalcodec.hub.legacy import rename_encoder_weights
from focalcodec.wavlm import state_dict_from_transformers

# config.json of transformers -> attribute of our WavLM, for sizes that two models must share to
# share weights.
_TRANSFORMERS_KEYS = {
    "hidden_size": "dim",
    "intermediate_size": "ffn_dim",
    "num_attention_heads": "num_heads",
    "num_buckets": "num_buckets",
    "max_bucket_distance": "max_distance",
    "num_conv_pos_embeddings": "conv_pos",
    "num_conv_pos_embedding_groups": "conv_pos_groups",
    "conv_dim": "hidden_dims",
    "conv_kernel": "kernel_sizes",
    "conv_stride": "strides",
}
# What our WavLM computes; a transformers model with another value is another arithmetic.
_TRANSFORMERS_CHOICES = {
    "model_type": "wavlm",
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
}


def check_encoder_config(encoder: nn.Module, config: Mapping[str, Any], *, where: Where) -> None:
    """Compare what weights do not show (strides, heads, distances) beside what they do.

    Parameters
    ----------
    encoder : module that shall get the weights.
    config : content of the config.json beside them, of a codec or of a transformers model.
    where : where it comes from; every message names it.

    Raises
    ------
    ValueError : if the encoder is of another class or size, or needs more layers than are there.
    """
    if config.keys() & KEYS:
        cls, theirs = read_encoder(config, where=where)
        if not isinstance(encoder, cls):
            raise ValueError(
                f"encoder of {where} is a {cls.__name__}, not a {type(encoder).__name__}"
            )
        names = {key: key for key in theirs if key not in ("dropout", "num_layers")}
        depth = "num_layers"
    else:
        for key, needed in _TRANSFORMERS_CHOICES.items():
            if config.get(key, needed) != needed:
                raise ValueError(
                    f"{where} has {key} {shown(config[key])} in config.json, "
                    f"{type(encoder).__name__} needs {needed!r}"
                )
        theirs, names, depth = config, _TRANSFORMERS_KEYS, "num_hidden_layers"
    for key, name in names.items():
        ours = getattr(encoder, name)
        ours = list(ours) if isinstance(ours, tuple) else ours
        if key in theirs and theirs[key] != ours:
            raise ValueError(
                f"{where} has {key} {shown(theirs[key])}, but encoder.{name} is {ours}; "
                f"set encoder.{name} to {shown(theirs[key])}"
            )
    num_layers = theirs.get(depth, encoder.num_layers)
    if not isinstance(num_layers, int) or num_layers < encoder.num_layers:
        raise ValueError(
            f"{where} has {shown(num_layers)} layers, but encoder.num_layers is "
            f"{encoder.num_layers}"
        )


def encoder_weights(
    encoder: nn.Module, state: Mapping[str, Tensor], *, where: Where
) -> dict[str, Tensor]:
    """Pick an encoder's weights and name them as its own.

    Parameters
    ----------
    encoder : module that shall get the weights; layers beyond its ``num_layers`` are left out.
    state : weights by name of a transformers model, a codec or an encoder.
    where : where they come from; every message names it.

    Raises
    ------
    ValueError : if a part of a weight that has to be put together is missing.
    """
    if any(".conv_layers." in key or key.startswith("conv_layers.") for key in state):
        try:
            return state_dict_from_transformers(dict(state), encoder.num_layers)
        except (KeyError, ValueError, RuntimeError, IndexError) as error:  # the last two: shapes
            reason = " ".join(str(error.args[0]).split())
            raise ValueError(f"{where} does not fit: {reason}") from error
    prefix = "encoder."
    if not encoder.state_dict().keys() & state.keys():  # a whole codec
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state = rename_encoder_weights(state, where=where)
    return {key: value for key, value in state.items() if not _is_deeper(key, encoder)}


def _is_deeper(key: str, encoder: nn.Module) -> bool:
    layer = re.match(r"encoder\.layers\.(\d{1,9})\.", key)
    return layer is not None and int(layer[1]) >= encoder.num_layers
