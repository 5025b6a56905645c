"""What a codec's ``config.json`` says: parts from a configuration, a configuration from parts.

It holds names and constructor arguments of the five parts, in the layout of the published
checkpoints of lucadellalib/focalcodec, v0.0.2, whose names and keys are translated here and nowhere
else::

    {"encoder_name": "WavLM", "encoder_config": {...}, "compressor_name": "FocalEncoder", ...}

What that layout has no words for is written under keys of ours (``mixer_name``, ``mixer_config``,
``activation_name``, ``activation_config``). A configuration comes from strangers: the names in it
select from the tables below and never import anything. Files are the business of ``hub.py``.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from focalcodec.focalnet import Compressor, Decompressor, FocalBlock, LeakyReLU, Snake
from focalcodec.logmel import LogMel
from focalcodec.quantizers import BinarySphericalQuantizer, LookupFreeQuantizer
from focalcodec.vocos import Vocos
from focalcodec.wavlm import WavLM

Where = str | os.PathLike[str]  # where a configuration comes from, for messages

# Part -> name in config.json -> class. A new module is usable in checkpoints once it stands here.
PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "encoder": {"WavLM": WavLM, "LogMel": LogMel},
    "compressor": {"FocalEncoder": Compressor},
    "quantizer": {
        "BinarySphericalQuantizer": BinarySphericalQuantizer,
        "LookupFreeQuantizer": LookupFreeQuantizer,
    },
    "decompressor": {"FocalDecoder": Decompressor},
    "decoder": {"Vocos": Vocos},
}
_FACTORIES: dict[str, dict[str, type[nn.Module]]] = {
    "mixer": {"FocalBlock": FocalBlock},
    "activation": {"Snake": Snake, "LeakyReLU": LeakyReLU},
}
# Published keys that do nothing in full-context modules, or select one of several implementations
# of the same arithmetic.
_WITHOUT_EFFECT = {
    WavLM: {"max_cached_steps", "window_size", "lookahead_size", "use_flex_attention"},
    Compressor: {"tanhscale_init", "window_size"},
    Decompressor: {"tanhscale_init", "window_size", "last_window_size", "lookahead_size"},
}
# Published flat keys of the focal blocks -> our argument of FocalBlock, with the published
# defaults.
_FOCAL_KEYS = {
    "focal_window": ("window", 14),
    "focal_level": ("level", 2),
    "focal_factor": ("factor", 4),
    "use_post_norm": ("post_norm", False),
    "normalize_modulator": ("normalize_modulator", False),
}
_LAYERSCALE_INIT = 1e-4  # published default
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


def build_parts(config: Mapping[str, Any], *, where: Where) -> dict[str, nn.Module]:
    """Build the five parts of a codec, with weights as their constructors draw them.

    Parameters
    ----------
    config : content of config.json, ours or a published one.
    where : where it comes from; every message names it.

    Returns
    -------
    Part name -> module, the arguments of ``focalcodec.FocalCodec``.

    Raises
    ------
    ValueError : if a name or key is missing or unknown, or an argument does not fit.
    """
    known = {f"{part}_{field}" for part in PARTS for field in ("name", "config")}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}, not one of {_list(known)}")
    return {part: _build_part(part, config, where=where) for part in PARTS}


def describe_parts(parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Content of the config.json that builds parts like these.

    Parameters
    ----------
    parts : part name -> module.

    Returns
    -------
    Names and constructor arguments in the words of the published layout, as JSON values.

    Raises
    ------
    ValueError : if a part is of a class that the tables of this file do not hold.
    """
    config: dict[str, Any] = {}
    for part in PARTS:
        config[f"{part}_name"], config[f"{part}_config"] = _describe_part(part, parts[part])
    return config


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
    if "encoder_config" in config:
        cls = _select(PARTS["encoder"], config.get("encoder_name"), key="encoder_name", where=where)
        if not isinstance(encoder, cls):
            raise ValueError(
                f"encoder of {where} is a {cls.__name__}, not a {type(encoder).__name__}"
            )
        theirs = config["encoder_config"]
        if theirs.get("causal", False):
            raise ValueError(f"encoder of {where} is causal, {cls.__name__} has full context")
        names = {key: key for key in _parameters(cls) if key not in ("dropout", "num_layers")}
        depth = "num_layers"
    else:
        for key, needed in _TRANSFORMERS_CHOICES.items():
            if config.get(key, needed) != needed:
                raise ValueError(
                    f"{where} has {key} {config[key]!r} in config.json, "
                    f"{type(encoder).__name__} needs {needed!r}"
                )
        theirs, names, depth = config, _TRANSFORMERS_KEYS, "num_hidden_layers"
    for key, name in names.items():
        ours = _plain(getattr(encoder, name))
        if key in theirs and theirs[key] != ours:
            raise ValueError(
                f"{where} has {key} {theirs[key]}, but encoder.{name} is {ours}; "
                f"set encoder.{name} to {theirs[key]}"
            )
    if theirs.get(depth, encoder.num_layers) < encoder.num_layers:
        raise ValueError(
            f"{where} has {theirs[depth]} layers, but encoder.num_layers is {encoder.num_layers}"
        )


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments that make a module like this one, read from its attributes of the same names."""
    return {name: getattr(module, name) for name in _parameters(type(module))}


def _build_part(part: str, config: Mapping[str, Any], *, where: Where) -> nn.Module:
    name_key, config_key = f"{part}_name", f"{part}_config"
    if name_key not in config:
        raise ValueError(f"{where} lacks the key {name_key!r}")
    arguments = config.get(config_key, {})
    if not isinstance(arguments, dict):
        raise ValueError(f"{config_key} of {where} must be a JSON object, got {arguments!r}")
    cls = _select(PARTS[part], config[name_key], key=name_key, where=where)
    arguments = {k: v for k, v in arguments.items() if k not in _WITHOUT_EFFECT.get(cls, ())}
    if arguments.pop("causal", False):
        raise ValueError(
            f"{config_key}.causal of {where} is true, but {cls.__name__} has full context only"
        )
    if cls in (Compressor, Decompressor):
        arguments = _focal_from_published(arguments, key=config_key, where=where)
    elif cls is BinarySphericalQuantizer:
        arguments = _bsq_from_published(arguments, key=config_key, where=where)
    return _construct(cls, arguments, key=config_key, where=where)


def _describe_part(part: str, module: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments in the words of the published layout."""
    cls = type(module)
    name = _name_of(PARTS[part], cls, what=part)
    arguments = constructor_arguments(module)
    if cls in (Compressor, Decompressor):
        arguments = _focal_to_published(arguments)
    elif cls is BinarySphericalQuantizer:
        arguments = {"codebook_size": module.codebook_size}
    if part != "quantizer" and cls is not LogMel:
        arguments["causal"] = False
    return name, {key: _plain(value) for key, value in arguments.items()}


def _focal_from_published(arguments: dict[str, Any], *, key: str, where: Where) -> dict[str, Any]:
    """Factories from the flat keys of the published layout, or from ours where these stand."""
    arguments = dict(arguments)
    flat = {ours: arguments.pop(theirs, default) for theirs, (ours, default) in _FOCAL_KEYS.items()}
    scale = arguments.pop("layerscale_init", _LAYERSCALE_INIT)
    flat["layer_scale"] = scale if arguments.pop("use_layerscale", False) else None
    flat["dropout"] = arguments.get("dropout", 0.0)
    for kind, cls, settings in (("mixer", FocalBlock, flat), ("activation", Snake, {})):
        if f"{kind}_name" in arguments:
            name = arguments.pop(f"{kind}_name")
            cls = _select(_FACTORIES[kind], name, key=f"{key}.{kind}_name", where=where)
            settings = arguments.pop(f"{kind}_config", {})
        _check_keys(settings, _parameters(cls), key=f"{key}.{kind}_config", where=where)
        arguments[kind] = functools.partial(cls, **settings)
    return arguments


def _focal_to_published(arguments: dict[str, Any]) -> dict[str, Any]:
    mixer, mixer_config = _describe_factory(arguments.pop("mixer"), kind="mixer")
    activation, activation_config = _describe_factory(
        arguments.pop("activation"), kind="activation"
    )
    beyond = {"ffn_ratio": 4, "dropout": arguments["dropout"]}
    if mixer == "FocalBlock" and beyond.items() <= mixer_config.items():
        scale = mixer_config["layer_scale"]
        arguments |= {theirs: mixer_config[ours] for theirs, (ours, _) in _FOCAL_KEYS.items()}
        arguments["use_layerscale"] = scale is not None
        arguments["layerscale_init"] = _LAYERSCALE_INIT if scale is None else scale
    else:
        arguments |= {"mixer_name": mixer, "mixer_config": mixer_config}
    if activation != "Snake":
        arguments |= {"activation_name": activation, "activation_config": activation_config}
    return arguments


def _describe_factory(factory: Callable[[int], nn.Module], *, kind: str) -> tuple[str, dict]:
    """Name and all arguments but the first (``dim``) of a class or of a partial of one."""
    cls, given = factory, {}
    if isinstance(factory, functools.partial):
        cls, given = factory.func, factory.keywords
        if factory.args:
            raise ValueError(f"{kind} {factory} has positional arguments; give them by name")
    name = _name_of(_FACTORIES[kind], cls, what=kind)
    defaults = {key: p.default for key, p in list(_parameters(cls).items())[1:]}
    return name, {key: _plain(value) for key, value in (defaults | given).items()}


def _bsq_from_published(arguments: dict[str, Any], *, key: str, where: Where) -> dict[str, Any]:
    _check_keys(arguments, ["codebook_size"], key=key, where=where)
    size = arguments.get("codebook_size")
    if not isinstance(size, int) or size < 2 or size & (size - 1):
        raise ValueError(f"{key}.codebook_size of {where} must be a power of 2, got {size!r}")
    return {"code_dim": size.bit_length() - 1}


def _construct(
    cls: type[nn.Module], arguments: dict[str, Any], *, key: str, where: Where
) -> nn.Module:
    _check_keys(arguments, _parameters(cls), key=key, where=where)
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} of {where} does not make a {cls.__name__}: {error}") from error


def _check_keys(arguments: Any, known: Iterable[str], *, key: str, where: Where) -> None:
    if not isinstance(arguments, dict):
        raise ValueError(f"{key} of {where} must be a JSON object, got {arguments!r}")
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(
            f"{key} of {where} has the unknown key {unknown[0]!r}; known are {_list(known)}"
        )


def _parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls).parameters)


def _select(
    table: Mapping[str, type[nn.Module]], name: Any, *, key: str, where: Where
) -> type[nn.Module]:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{key} of {where} is {name!r}; known are {_list(table)}")
    return table[name]


def _name_of(table: Mapping[str, type[nn.Module]], cls: Any, *, what: str) -> str:
    for name, known in table.items():
        if cls is known:
            return name
    raise ValueError(
        f"{what} is {cls!r}, which checkpoints have no name for; "
        f"known are {_list(known.__name__ for known in table.values())}"
    )


def _plain(value: Any) -> Any:
    """JSON value of a constructor argument."""
    return list(value) if isinstance(value, tuple | list) else value


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
