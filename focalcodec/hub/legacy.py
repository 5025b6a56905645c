"""What differs between the two layouts of published checkpoints: defaults and names of weights.

The public files of 50, 25 and 12.5 Hz were written by v0.0.1 of lucadellalib/focalcodec, those of
the causal codecs are in the layout of v0.0.2. This project reads both and writes the newer one.

=========================  ======================================  ================================
what                       v0.0.1                                  v0.0.2
=========================  ======================================  ================================
queries, keys, values      ``q_proj``, ``k_proj``, ``v_proj``      ``qkv_proj``, in this order
layer i of compressor      ``layers.i.0``, ``layers.i.1``          ``.downscale``, ``.focal_block``
layer i of decompressor    ``layers.i.0``, ``layers.i.1``          ``.focal_block``, ``.upscale``
never used                 ``quantizer.mask``, the encoder's norm  not there
                           behind its last layer
Vocos in config.json       ``input_channels``, ``padding``         ``input_dim``
arguments left out         see `default_arguments`                 see `default_arguments`
=========================  ======================================  ================================
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from focalcodec.hub.arguments import Where

V001 = "v0.0.1"
V002 = "v0.0.2"

_DEFAULT_NAMES = {
    "encoder": "WavLM",
    "compressor": "FocalEncoder",
    "quantizer": "BinarySphericalQuantizer",
    "decompressor": "FocalDecoder",
}
_DEFAULT_DECODERS = {V001: "Vocos", V002: "WaveNeXt"}
_FOCAL = {
    "focal_level": 2,
    "use_post_norm": False,
    "normalize_modulator": False,
    "use_layerscale": False,
    "layerscale_init": 1e-4,
}
_FOCAL_V001 = {**_FOCAL, "focal_window": 7, "focal_factor": 2}
_FOCAL_V002 = {**_FOCAL, "focal_window": 14, "focal_factor": 4}
_DEFAULT_ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    V001: {
        "FocalEncoder": {
            **_FOCAL_V001,
            "input_dim": 1024,
            "output_dim": 13,
            "hidden_dims": [1024, 512, 256],
            "downscale_factors": [1, 1, 1],
        },
        "BinarySphericalQuantizer": {"codebook_size": 8192},
        "FocalDecoder": {
            **_FOCAL_V001,
            "input_dim": 13,
            "output_dim": 1024,
            "hidden_dims": [256, 512, 1024],
            "upscale_factors": [1, 1, 1],
        },
    },
    V002: {
        "FocalEncoder": {
            **_FOCAL_V002,
            "input_dim": 1024,
            "output_dim": 12,
            "hidden_dims": [1024, 1024, 1024],
            "downscale_factors": [1, 1, 1],
        },
        "BinarySphericalQuantizer": {"codebook_size": 4096},
        "FocalDecoder": {
            **_FOCAL_V002,
            "input_dim": 12,
            "output_dim": 1024,
            "hidden_dims": [1024, 1024, 1024],
            "upscale_factors": [1, 1, 1],
        },
    },
}
_WORDS_OF_V001 = {"input_channels", "padding"}
_WORDS_OF_V002 = {
    "causal",
    "last_window_size",
    "lookahead_size",
    "max_cached_steps",
    "tanhscale_init",
    "use_flex_attention",
    "window_size",
}
_QKV = re.compile(r"(.*\battention)\.([qkv])_proj\.(weight|bias)")
_LAYER = re.compile(r"(compressor|decompressor)\.layers\.(\d+)\.([01])\.(.+)")
_LAYER_NAMES = {
    "compressor": ("downscale", "focal_block"),
    "decompressor": ("focal_block", "upscale"),
}
_UNUSED = {"quantizer.mask", "encoder.encoder.norm.weight", "encoder.encoder.norm.bias"}


def layout_of_config(config: Mapping[str, Any]) -> str | None:
    """Version whose words a configuration has; None if it has those of neither or of both."""
    words = {word for part in config.values() if isinstance(part, dict) for word in part}
    old, new = bool(words & _WORDS_OF_V001), bool(words & _WORDS_OF_V002)
    if old == new:
        return None
    return V001 if old else V002


def layout_of_weights(keys: Iterable[str]) -> str:
    """Version that wrote weights of these names, of a codec or of an encoder alone."""
    return V001 if any(_QKV.fullmatch(key) or _LAYER.fullmatch(key) for key in keys) else V002


def default_name(part: str, layout: str | None) -> str | None:
    """Class that a published configuration means where it has no ``<part>_name``.

    None where the versions differ and ``layout`` is None.
    """
    return _DEFAULT_NAMES.get(part) or _DEFAULT_DECODERS.get(layout)


def default_arguments(name: str, layout: str | None) -> dict[str, Any]:
    """Arguments that a published class takes where its ``<part>_config`` lacks them.

    Only those that our constructors have no default for, or another one. A wrong choice cannot go
    unnoticed with weights: every value that differs between the versions is a shape of some weight,
    or the size of a codebook, which has to fit the compressor.

    Parameters
    ----------
    name : published name of the class.
    layout : version that wrote the configuration; None for the arguments on which both agree.
    """
    if layout is not None:
        return dict(_DEFAULT_ARGUMENTS[layout].get(name, {}))
    old, new = (_DEFAULT_ARGUMENTS[version].get(name, {}) for version in (V001, V002))
    return {word: value for word, value in new.items() if old[word] == value}


def rename_codec_weights(state: Mapping[str, Tensor], *, where: Where) -> dict[str, Tensor]:
    """Weights of a whole codec under the names of v0.0.2; those are left as they are.

    Parameters
    ----------
    state : weights by name, of either layout.
    where : where they come from; every message names it.

    Raises
    ------
    ValueError : if only some of a layer's queries, keys and values are there or their shapes or
        types differ, or a weight is there under both of its names.
    """
    return _rename(state, unused=_UNUSED, where=where)


def rename_encoder_weights(state: Mapping[str, Tensor], *, where: Where) -> dict[str, Tensor]:
    """Weights of an encoder alone, as `rename_codec_weights`."""
    unused = {key.removeprefix("encoder.") for key in _UNUSED if key.startswith("encoder.")}
    return _rename(state, unused=unused, where=where)


def _rename(state: Mapping[str, Tensor], *, unused: set[str], where: Where) -> dict[str, Tensor]:
    if layout_of_weights(state) == V002:
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        if match := _QKV.fullmatch(key):
            attention, letter, kind = match.groups()
            if letter != "q" and f"{attention}.q_proj.{kind}" in state:
                continue  # taken together with the queries
            name = f"{attention}.qkv_proj.{kind}"
            value = _joined(state, [f"{attention}.{one}_proj.{kind}" for one in "qkv"], where=where)
        elif match := _LAYER.fullmatch(key):
            part, layer, entry, rest = match.groups()
            name = f"{part}.layers.{layer}.{_LAYER_NAMES[part][int(entry)]}.{rest}"
        elif key in unused:
            continue
        if name in renamed or (name != key and name in state):
            raise ValueError(f"{where} does not fit: it has {name} under its name of {V001} too")
        renamed[name] = value
    return renamed


def _joined(state: Mapping[str, Tensor], keys: list[str], *, where: Where) -> Tensor:
    """Join queries, keys and values as the rows of one weight."""
    present = [key for key in keys if key in state]
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"{where} does not fit: it has {present[0]} but lacks {missing[0]}")
    kinds = [f"{tuple(state[key].shape)} of {state[key].dtype}" for key in keys]
    if len(set(kinds)) > 1 or state[keys[0]].ndim == 0:
        raise ValueError(
            f"{where} does not fit: {keys[0]}, {keys[1]} and {keys[2]} must be alike, "
            f"got {kinds[0]}, {kinds[1]} and {kinds[2]}"
        )
    return torch.cat([state[key] for key in keys])
