"""What a codec's ``config.json`` says: parts from a configuration, a configuration from parts.

It holds names and constructor arguments of the five parts, in the layout of the published
checkpoints of lucadellalib/focalcodec, v0.0.2, whose names and keys are translated here and nowhere
else (``legacy.py`` holds what v0.0.1 had otherwise)::

    {"encoder_name": "WavLM", "encoder_config": {...}, "compressor_name": "FocalEncoder", ...}

What that layout has no words for is written under keys of ours (``mixer_name``, ``mixer_config``,
``activation_name``, ``activation_config``). A configuration comes from strangers: the names in it
select from the tables below and never import anything, and ``arguments.py`` checks every value.
Files are the business of ``files.py``.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from focalcodec.activations import LeakyReLU, Snake
from focalcodec.dequantizer import ConformerDecompressor, IdentityCompressor
from focalcodec.focalnet import Compressor, Decompressor, FocalBlock
from focalcodec.fsq import FiniteScalarQuantizer
from focalcodec.hifigan import HiFiGAN
from focalcodec.hub.arguments import Where, check_arguments, defaults_of, kinds_of, listed, shown
from focalcodec.hub.legacy import V001, V002, default_arguments, default_name, layout_of_config
from focalcodec.kmeans import KMeansQuantizer
from focalcodec.logmel import LogMel
from focalcodec.mixers import AMPBlock, ConformerBlock, LinearBlock
from focalcodec.quantizers import BinarySphericalQuantizer, LookupFreeQuantizer
from focalcodec.vocos import Vocos
from focalcodec.wavenext import FRAME_RATE, WaveNeXt
from focalcodec.wavlm import WavLM

# Part -> name in config.json -> class. A new module is usable in checkpoints once it stands here.
PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "encoder": {"WavLM": WavLM, "LogMel": LogMel},
    "compressor": {"FocalEncoder": Compressor, "IdentityCompressor": IdentityCompressor},
    "quantizer": {
        "BinarySphericalQuantizer": BinarySphericalQuantizer,
        "LookupFreeQuantizer": LookupFreeQuantizer,
        "FiniteScalarQuantizer": FiniteScalarQuantizer,
        "KMeansQuantizer": KMeansQuantizer,
    },
    "decompressor": {"FocalDecoder": Decompressor, "ConformerDecompressor": ConformerDecompressor},
    "decoder": {"Vocos": Vocos, "WaveNeXt": WaveNeXt, "HiFiGAN": HiFiGAN},
}
KEYS = {f"{part}_{field}" for part in PARTS for field in ("name", "config")}  # of config.json
_FACTORIES: dict[str, dict[str, type[nn.Module]]] = {
    "mixer": {
        "FocalBlock": FocalBlock,
        "ConformerBlock": ConformerBlock,
        "AMPBlock": AMPBlock,
        "LinearBlock": LinearBlock,
    },
    "activation": {"Snake": Snake, "LeakyReLU": LeakyReLU},
}
# Published keys that select one of several implementations of the same arithmetic, or nothing.
_WITHOUT_EFFECT = {
    WavLM: {"max_cached_steps", "use_flex_attention"},
    Vocos: {"padding"},
}
# Published keys of causal modules, which do nothing in others, with their published defaults.
_CAUSAL_DEFAULTS: dict[type[nn.Module], dict[str, Any]] = {
    WavLM: {"window_size": 512, "lookahead_size": 3},
    Compressor: {"window_size": 512, "tanhscale_init": 0.5},
    Decompressor: {
        "window_size": 512,
        "tanhscale_init": 0.5,
        "last_window_size": 512,
        "lookahead_size": 3,
    },
}
# Published flat keys of the focal blocks -> our argument of FocalBlock.
_FOCAL_KEYS = {
    "focal_window": "window",
    "focal_level": "level",
    "focal_factor": "factor",
    "use_post_norm": "post_norm",
    "normalize_modulator": "normalize_modulator",
}
_MIXER_KEYS = {"window_size", "last_window_size", "tanhscale_init"}  # of causal ones
_FLAT_KEYS = {*_FOCAL_KEYS, "use_layerscale", "layerscale_init"}
_LAYERSCALE_INIT = 1e-4  # published default
_TRAINING_ONLY = {"dropout", "layerscale_init", "tanhscale_init", "tanh_scale"}
_NO_DEFAULT = f", whose default is not the same in {V001} and {V002}"


def build_parts(
    config: Mapping[str, Any], *, where: Where, layout: str | None = None, sketch: bool = False
) -> dict[str, nn.Module]:
    """Build the five parts of a codec, with weights as their constructors draw them.

    What a configuration leaves out takes the default of the published version that wrote it. Where
    the defaults of the versions differ and neither ``layout`` nor a key that only one of them has
    tells which it was, the missing key is an error.

    Parameters
    ----------
    config : content of config.json, ours or a published one.
    where : where it comes from; every message names it.
    layout : version that wrote the weights beside it, from ``legacy.layout_of_weights``; None if
        there are none.
    sketch : build on the meta device: modules that have shapes but take no memory.

    Returns
    -------
    Part name -> module, the arguments of ``focalcodec.FocalCodec``.

    Raises
    ------
    ValueError : if a name or key is missing or unknown, or an argument does not fit.
    """
    if unknown := sorted(set(config) - KEYS):
        raise ValueError(
            f"{where} has the unknown key {shown(unknown[0])}, not one of {listed(KEYS)}"
        )
    layout = layout or layout_of_config(config)
    parts = {}
    for part in PARTS:
        cls, arguments = _read_part(part, config, layout=layout, where=where)
        key = f"{part}_config"
        parts[part] = _construct(cls, arguments, sketch=sketch, key=key, where=where)
    return parts


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
    ValueError : if a part is of a class that the tables of this file do not hold, or has an
        argument that no configuration may have.
    """
    config: dict[str, Any] = {}
    for part in PARTS:
        config[f"{part}_name"], config[f"{part}_config"] = _describe_part(part, parts[part])
    for part in PARTS:  # what is out of range could be saved, but not loaded
        _read_part(part, config, layout=V002, where="the codec to save")
    return config


def fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """Identity of a codec as far as its tokens are concerned, for the header of token files.

    The first half of a SHA-256 over names and arguments of all parts but the decoder (another one
    decodes the same tokens), in the words of config.json, and over the weights of the quantizer and
    of the projections next to it, in float32, which tell two trainings of one configuration apart.
    Left out are arguments with the published default, so that one that comes later with a default
    changes no fingerprint, and those that only matter in training.

    Parameters
    ----------
    parts : part name -> module.

    Returns
    -------
    32 hexadecimal digits, the same on every device, in float64 too, and after saving and loading. A
    codec in half precision is another one: its weights are rounded.

    Raises
    ------
    ValueError : if a part is of a class that the tables of this file do not hold.
    """
    described = {
        part: _distinctive(*_describe_part(part, parts[part]), cls=type(parts[part]))
        for part in ("encoder", "compressor", "quantizer", "decompressor")
    }
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode())
    for module in (parts["compressor"].out_proj, parts["quantizer"], parts["decompressor"].in_proj):
        for weights in module.parameters():
            digest.update(_float32_bytes(weights))
    return digest.hexdigest()[:32]


def read_encoder(
    config: Mapping[str, Any], *, where: Where
) -> tuple[type[nn.Module], dict[str, Any]]:
    """Read the encoder's section alone.

    Parameters
    ----------
    config : content of config.json of a codec.
    where : where it comes from; every message names it.

    Returns
    -------
    Class and all arguments of its constructor, as JSON values.

    Raises
    ------
    ValueError : as `build_parts`.
    """
    cls, arguments = _read_part("encoder", config, layout=None, where=where)
    return cls, {key: _plain(value) for key, value in (defaults_of(cls) | arguments).items()}


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments that make a module like this one, read from its attributes of the same names."""
    return {name: getattr(module, name) for name in kinds_of(type(module))}


# From config.json


def _read_part(
    part: str, config: Mapping[str, Any], *, layout: str | None, where: Where
) -> tuple[type[nn.Module], dict[str, Any]]:
    """Class of a part and its constructor's arguments."""
    name_key, key = f"{part}_name", f"{part}_config"
    name = config.get(name_key, default_name(part, layout))
    if name_key not in config:
        if name is None:
            raise ValueError(f"{where} lacks the key {name_key!r}{_NO_DEFAULT}")
        name_key = f"default {name_key}"
    cls = _select(PARTS[part], name, key=name_key, where=where)
    words = {} if config.get(key) is None else config[key]
    words = check_arguments(words, _kinds(cls), key=key, where=where)
    words = {k: v for k, v in words.items() if k not in _WITHOUT_EFFECT.get(cls, ())}
    causal_defaults = _CAUSAL_DEFAULTS.get(cls, {})
    if words.get("causal", False):
        left_out = _MIXER_KEYS if "mixer_name" in words else ()
        words = {k: v for k, v in causal_defaults.items() if k not in left_out} | words
    else:
        words = {k: v for k, v in words.items() if k not in causal_defaults}
    words = _with_defaults(words, name=name, layout=layout, key=key, where=where)
    if cls in (Compressor, Decompressor):
        return cls, _focal_from_published(words, key=key, where=where)
    if cls is BinarySphericalQuantizer:
        return cls, _bsq_from_published(words, key=key, where=where)
    if cls is Vocos and (input_dim := words.pop("input_channels", None)) is not None:
        words["input_dim"] = input_dim
    return cls, words


def _kinds(cls: type[nn.Module]) -> dict[str, Any]:
    """Type of everything that may stand in the ``<part>_config`` of a class."""
    kinds = kinds_of(cls) | dict.fromkeys(_WITHOUT_EFFECT.get(cls, ()), Any)
    if cls in (Compressor, Decompressor):
        del kinds["mixer"], kinds["activation"]
        kinds.pop("last_mixer", None)
        kinds |= {key: type(value) for key, value in _CAUSAL_DEFAULTS[cls].items()}
        block = kinds_of(FocalBlock)
        kinds |= {theirs: block[ours] for theirs, ours in _FOCAL_KEYS.items()}
        kinds |= {"use_layerscale": bool, "layerscale_init": float}
        kinds |= {f"{kind}_{field}": Any for kind in _FACTORIES for field in ("name", "config")}
    elif cls is BinarySphericalQuantizer:
        kinds = {"codebook_size": int}
    elif cls is Vocos:
        kinds["input_channels"] = int | None
    return kinds


def _with_defaults(
    words: dict[str, Any], *, name: str, layout: str | None, key: str, where: Where
) -> dict[str, Any]:
    """Arguments completed by what the published class of this name takes for those left out."""
    asked_for = default_arguments(name, V002).keys()
    if "mixer_name" in words:
        if flat := sorted((_FLAT_KEYS | _MIXER_KEYS) & words.keys()):
            raise ValueError(
                f"{key} of {where} has both mixer_name and {flat[0]}; move the latter to "
                f"{key}.mixer_config"
            )
        asked_for = asked_for - _FLAT_KEYS
    defaults = default_arguments(name, layout)
    words = {k: v for k, v in defaults.items() if k in asked_for} | words
    if missing := sorted(asked_for - words.keys()):
        raise ValueError(f"{key} of {where} lacks the key {missing[0]!r}{_NO_DEFAULT}")
    return words


def _focal_from_published(words: dict[str, Any], *, key: str, where: Where) -> dict[str, Any]:
    """Factories from the flat keys of the published layout, or from ours where these stand."""
    flat = {k: words.pop(k) for k in _FLAT_KEYS & words.keys()}
    if flat:
        settings = {ours: flat[theirs] for theirs, ours in _FOCAL_KEYS.items()}
        settings["layer_scale"] = flat["layerscale_init"] if flat["use_layerscale"] else None
        settings["dropout"] = words.get("dropout", 0.0)
        if words.get("causal", False):
            settings["causal"] = True
            settings["pool_size"] = words["window_size"]
            settings["tanh_scale"] = words["tanhscale_init"]
        words["mixer"] = functools.partial(FocalBlock, **settings)
        if (last := words.get("last_window_size")) not in (None, settings.get("pool_size")):
            words["last_mixer"] = functools.partial(FocalBlock, **settings | {"pool_size": last})
    words = {k: v for k, v in words.items() if k not in _MIXER_KEYS}
    words.setdefault("activation_name", "Snake")
    for kind, table in _FACTORIES.items():
        if f"{kind}_name" in words:
            cls = _select(table, words.pop(f"{kind}_name"), key=f"{key}.{kind}_name", where=where)
            settings = words.pop(f"{kind}_config", {})
            kinds = {k: v for k, v in kinds_of(cls).items() if k != "dim"}
            check_arguments(settings, kinds, key=f"{key}.{kind}_config", where=where)
            words[kind] = functools.partial(cls, **settings)
    return words


def _bsq_from_published(words: dict[str, Any], *, key: str, where: Where) -> dict[str, Any]:
    size = words["codebook_size"]
    if size & (size - 1):
        raise ValueError(f"{key}.codebook_size of {where} must be a power of 2, got {size}")
    return {"code_dim": size.bit_length() - 1}


def _construct(
    cls: type[nn.Module], arguments: dict[str, Any], *, sketch: bool, key: str, where: Where
) -> nn.Module:
    # LogMel looks at its filters while it is made, and has no weights to know the shapes of.
    meta = torch.device("meta") if sketch and cls is not LogMel else contextlib.nullcontext()
    try:
        with meta:
            return cls(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{key} of {where} does not make a {cls.__name__}: {reason}") from error


# To config.json


def _describe_part(part: str, module: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments in the words of the published layout."""
    cls = type(module)
    name = _name_of(PARTS[part], cls, what=part)
    arguments = constructor_arguments(module)
    if cls in (Compressor, Decompressor):
        arguments = _focal_to_published(arguments)
    elif cls is BinarySphericalQuantizer:
        arguments = {"codebook_size": module.codebook_size}
    elif cls is WaveNeXt and module.sample_rate == FRAME_RATE * module.hop_length:
        del arguments["sample_rate"]
    if not arguments.get("causal", False):
        without_effect = _CAUSAL_DEFAULTS.get(cls, {})
        arguments = {key: value for key, value in arguments.items() if key not in without_effect}
    return name, {key: _plain(value) for key, value in arguments.items()}


def _focal_to_published(arguments: dict[str, Any]) -> dict[str, Any]:
    mixer, mixer_config = _describe_factory(arguments.pop("mixer"), kind="mixer")
    last_mixer = arguments.pop("last_mixer", None)
    activation, activation_config = _describe_factory(
        arguments.pop("activation"), kind="activation"
    )
    beyond = {"ffn_ratio": 4, "dropout": arguments["dropout"]}
    if mixer == "FocalBlock" and beyond.items() <= mixer_config.items():
        scale = mixer_config["layer_scale"]
        arguments |= {theirs: mixer_config[ours] for theirs, ours in _FOCAL_KEYS.items()}
        arguments["use_layerscale"] = scale is not None
        arguments["layerscale_init"] = _LAYERSCALE_INIT if scale is None else scale
        if mixer_config["causal"]:
            arguments |= _causal_to_published(mixer_config, last_mixer, arguments)
    elif last_mixer is not None:
        raise ValueError("last_mixer has no name in checkpoints but beside the published mixer")
    else:
        arguments |= {"mixer_name": mixer, "mixer_config": mixer_config}
    if activation != "Snake":
        arguments |= {"activation_name": activation, "activation_config": activation_config}
    return arguments


def _causal_to_published(
    mixer_config: dict[str, Any], last_mixer: Any, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Name the windows of causal focal blocks; the last layer may have another one."""
    words = {
        "window_size": mixer_config["pool_size"],
        "tanhscale_init": mixer_config["tanh_scale"],
    }
    if "lookahead_size" not in arguments:  # a compressor
        return words
    last_config = mixer_config
    if last_mixer is not None:
        name, last_config = _describe_factory(last_mixer, kind="mixer")
        if name != "FocalBlock" or last_config | {"pool_size": 0} != mixer_config | {
            "pool_size": 0
        }:
            raise ValueError("last_mixer may differ from mixer in its pool_size only")
    return words | {"last_window_size": last_config["pool_size"]}


def _describe_factory(factory: Callable[[int], nn.Module], *, kind: str) -> tuple[str, dict]:
    """Name and all arguments but the first (``dim``) of a class or of a partial of one."""
    cls, given = factory, {}
    if isinstance(factory, functools.partial):
        cls, given = factory.func, factory.keywords
        if factory.args:
            raise ValueError(f"{kind} {factory} has positional arguments; give them by name")
    name = _name_of(_FACTORIES[kind], cls, what=kind)
    return name, {key: _plain(value) for key, value in (defaults_of(cls) | given).items()}


def _distinctive(name: str, words: dict[str, Any], *, cls: type[nn.Module]) -> list[Any]:
    """Name and arguments without those that have their default or only matter in training."""
    defaults = {"causal": False} | defaults_of(cls) | default_arguments(name, V002)
    for kind, table in _FACTORIES.items():
        if f"{kind}_name" in words:
            settings = _distinctive("", words[f"{kind}_config"], cls=table[words[f"{kind}_name"]])
            words = words | {f"{kind}_config": settings[1]}
    kept = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in words.items()
        if key not in _TRAINING_ONLY and (key not in defaults or value != _plain(defaults[key]))
    }
    return [name, kept]


def _float32_bytes(weights: Tensor) -> bytes:
    """Little-endian bytes, whatever the machine."""
    return weights.detach().to("cpu", torch.float32).numpy().astype("<f4").tobytes()


def _select(
    table: Mapping[str, type[nn.Module]], name: Any, *, key: str, where: Where
) -> type[nn.Module]:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{key} of {where} is {shown(name)}; known are {listed(table)}")
    return table[name]


def _name_of(table: Mapping[str, type[nn.Module]], cls: Any, *, what: str) -> str:
    for name, known in table.items():
        if cls is known:
            return name
    raise ValueError(
        f"{what} is {cls!r}, which checkpoints have no name for; "
        f"known are {listed(known.__name__ for known in table.values())}"
    )


def _plain(value: Any) -> Any:
    """JSON value of a constructor argument."""
    return list(value) if isinstance(value, tuple | list) else value
