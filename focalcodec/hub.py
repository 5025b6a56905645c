"""Codecs and encoder weights on disk and on the Hugging Face hub.

A codec is a folder with ``config.json`` (constructor arguments of its five parts) and
``model.safetensors`` (their weights). Both follow the layout of the published checkpoints of
lucadellalib/focalcodec, v0.0.2, whose names and keys are translated here and nowhere else::

    {"encoder_name": "WavLM", "encoder_config": {...}, "compressor_name": "FocalEncoder", ...}

What that layout has no words for is written under keys of ours (``mixer_name``, ``mixer_config``,
``activation_name``, ``activation_config``). A configuration comes from strangers: the names in it
select from the tables below and never import anything, and weights are safetensors, or pickles read
with ``weights_only``.
"""

import functools
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from focalcodec.focalnet import Compressor, Decompressor, FocalBlock, LeakyReLU, Snake
from focalcodec.logmel import LogMel
from focalcodec.quantizers import BinarySphericalQuantizer, LookupFreeQuantizer
from focalcodec.vocos import Vocos
from focalcodec.wavlm import WavLM, state_dict_from_transformers

Source = str | os.PathLike[str]

# Part -> name in config.json -> class. A new module is usable in checkpoints once it stands here.
_PARTS: dict[str, dict[str, type[nn.Module]]] = {
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
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_CODEC_WEIGHTS = (_WEIGHTS, "model.pt")
_TRANSFORMERS_WEIGHTS = (
    _WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def load_parts(
    source: Source, *, revision: str | None = None, cache_dir: Source | None = None
) -> dict[str, nn.Module]:
    """Build the five parts of a codec and load their weights.

    Parameters
    ----------
    source : folder with config.json and model.safetensors; ``X.json`` or ``X`` with
        ``X.safetensors`` beside it; or a hub id ``owner/name``. Files that are here, in a folder or
        in the hub's cache, are used without asking the network.
    revision : branch, tag or commit of a hub id.
    cache_dir : cache of the hub; None for its own choice.

    Returns
    -------
    Part name -> module, the arguments of ``focalcodec.FocalCodec``.

    Raises
    ------
    FileNotFoundError : if the source or a file of it is missing.
    ValueError : if the configuration has an unknown name or key, or the weights do not fit it
        exactly.
    """
    config_path, weights_path = _codec_files(source, revision=revision, cache_dir=cache_dir)
    config = _read_json(config_path)
    known = {f"{part}_{field}" for part in _PARTS for field in ("name", "config")}
    if unknown := sorted(set(config) - known):
        raise ValueError(
            f"{config_path} has the unknown key {unknown[0]!r}, not one of {_list(known)}"
        )
    parts = {part: _build_part(part, config, where=config_path) for part in _PARTS}
    _load_strict(nn.ModuleDict(parts), _read_state(weights_path), where=weights_path)
    return parts


def save_parts(parts: Mapping[str, nn.Module], folder: Source) -> None:
    """Write config.json and model.safetensors of a codec.

    The same parts give the same bytes. Each file appears whole or not at all, the configuration
    last.

    Parameters
    ----------
    parts : part name -> module.
    folder : made if it is not there.

    Raises
    ------
    ValueError : if a part is of a class that the tables of this file do not hold.
    """
    from safetensors.torch import save_file

    config: dict[str, Any] = {}
    for part in _PARTS:
        config[f"{part}_name"], config[f"{part}_config"] = _describe_part(part, parts[part])
    state = nn.ModuleDict({part: parts[part] for part in _PARTS}).state_dict()
    state = {key: state[key].detach().cpu().contiguous() for key in sorted(state)}
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / _WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    text = json.dumps(config, indent=2) + "\n"
    _write_whole(folder / _CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def load_encoder_weights(
    encoder: nn.Module,
    source: Source,
    *,
    revision: str | None = None,
    cache_dir: Source | None = None,
) -> None:
    """Load pretrained weights into an encoder, in place.

    Parameters
    ----------
    encoder : module to fill; of a deeper model its first ``encoder.num_layers`` layers are kept.
    source : folder or hub id (``microsoft/wavlm-large``) of a WavLM in the layout of transformers,
        folder or hub id of a codec, or one .safetensors, .pt or .bin file with the weights of any
        of these or of an encoder alone. From the hub only the configuration and one set of weights
        are fetched.
    revision, cache_dir : as in `load_parts`.

    Raises
    ------
    FileNotFoundError : if the source or a file of it is missing.
    ValueError : if the encoder has no weights, or the source is of another kind, size or depth.
    """
    if not encoder.state_dict():
        raise ValueError(f"{type(encoder).__name__} has no weights to load; leave the source out")
    path = Path(source).expanduser()
    if path.is_file() and path.suffix != ".json":
        state = _read_state(path)
    elif path.is_file():
        _check_encoder_config(encoder, _read_json(path), where=source)
        state = _read_state(_weights_beside(path))
    else:
        find = functools.partial(_find, source, revision=revision, cache_dir=cache_dir)
        _check_encoder_config(encoder, _read_json(find([_CONFIG])), where=source)
        state = _read_shards(find([*_TRANSFORMERS_WEIGHTS, "model.pt"]), find=find)
    _load_strict(encoder, _encoder_state(encoder, state, where=source), where=source)


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments that make a module like this one, read from its attributes of the same names."""
    return {name: getattr(module, name) for name in _parameters(type(module))}


# Where files are


def _codec_files(
    source: Source, *, revision: str | None, cache_dir: Source | None
) -> tuple[Path, Path]:
    """Paths of configuration and weights."""
    path = Path(source).expanduser()
    for config_path in (path, Path(f"{path}.json")):
        if config_path.is_file():
            return config_path, _weights_beside(config_path)
    find = functools.partial(_find, source, revision=revision, cache_dir=cache_dir)
    return find([_CONFIG]), find(_CODEC_WEIGHTS)


def _weights_beside(config_path: Path) -> Path:
    if config_path.suffix != ".json":
        raise ValueError(
            f"{config_path} is not a codec; give the folder of config.json and {_WEIGHTS}, "
            "the .json file or a hub id"
        )
    names = [config_path.stem + suffix for suffix in (".safetensors", ".pt")]
    if config_path.name == _CONFIG:
        names += _CODEC_WEIGHTS
    return _find(config_path.parent, names, revision=None, cache_dir=None)


def _find(
    source: Source, names: Iterable[str], *, revision: str | None, cache_dir: Source | None
) -> Path:
    """First of ``names`` that a folder or a hub repository has."""
    names = list(names)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return _download(str(source), names, revision=revision, cache_dir=cache_dir)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no {' or '.join(names)}")


def _download(
    repo: str, names: list[str], *, revision: str | None, cache_dir: Source | None
) -> Path:
    """First of ``names`` in the hub's cache; asked of the network only if none is there."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise FileNotFoundError(
            f"{repo} does not exist, and it is not a hub id of the form owner/name either"
        )
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        # Not hf_hub_download(local_files_only=True): version 2.4 asks the network even then.
        cached = [
            try_to_load_from_cache(repo, name, revision=revision, cache_dir=cache_dir)
            for name in names
        ]
    except ValueError as error:
        raise FileNotFoundError(f"{repo} is not a folder here and no hub id: {error}") from error
    for path in cached:
        if isinstance(path, str):
            return Path(path)
    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir))
        except EntryNotFoundError as error:
            reason = error
            if isinstance(error, LocalEntryNotFoundError):  # no answer: no use asking for the next
                break
        except (OSError, ValueError) as error:
            reason = error
            break
    raise FileNotFoundError(
        f"{repo} is not a folder here, and the hub gives no {' or '.join(names)} of that name: "
        f"{str(reason).strip().splitlines()[0]}"
    ) from reason


# Reading and writing files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not one JSON object")
    return config


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of one file; pickles are read as tensors and nothing else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged or not a file of weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} is not a state dict of tensors")
    return state


def _read_shards(path: Path, *, find: Callable[[list[str]], Path]) -> dict[str, Tensor]:
    """Tensors of a file, or of all the files that an index names."""
    if path.suffix != ".json":
        return _read_state(path)
    shards = sorted(set(_read_json(path).get("weight_map", {}).values()))
    state: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{path} names the shard {shard!r}, which is not a plain file name")
        state |= _read_state(find([shard]))
    return state


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path``, then rename: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)  # safetensors makes files that only their owner may read
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# Parts from configurations, configurations from parts


def _build_part(part: str, config: Mapping[str, Any], *, where: Path) -> nn.Module:
    name_key, config_key = f"{part}_name", f"{part}_config"
    if name_key not in config:
        raise ValueError(f"{where} lacks the key {name_key!r}")
    arguments = config.get(config_key, {})
    if not isinstance(arguments, dict):
        raise ValueError(f"{config_key} of {where} must be a JSON object, got {arguments!r}")
    cls = _select(_PARTS[part], config[name_key], key=name_key, where=where)
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
    name = _name_of(_PARTS[part], cls, what=part)
    arguments = constructor_arguments(module)
    if cls in (Compressor, Decompressor):
        arguments = _focal_to_published(arguments)
    elif cls is BinarySphericalQuantizer:
        arguments = {"codebook_size": module.codebook_size}
    if part != "quantizer" and cls is not LogMel:
        arguments["causal"] = False
    return name, {key: _plain(value) for key, value in arguments.items()}


def _focal_from_published(arguments: dict[str, Any], *, key: str, where: Path) -> dict[str, Any]:
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


def _bsq_from_published(arguments: dict[str, Any], *, key: str, where: Path) -> dict[str, Any]:
    _check_keys(arguments, ["codebook_size"], key=key, where=where)
    size = arguments.get("codebook_size")
    if not isinstance(size, int) or size < 2 or size & (size - 1):
        raise ValueError(f"{key}.codebook_size of {where} must be a power of 2, got {size!r}")
    return {"code_dim": size.bit_length() - 1}


def _construct(
    cls: type[nn.Module], arguments: dict[str, Any], *, key: str, where: Path
) -> nn.Module:
    _check_keys(arguments, _parameters(cls), key=key, where=where)
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} of {where} does not make a {cls.__name__}: {error}") from error


def _check_keys(arguments: Any, known: Iterable[str], *, key: str, where: Path) -> None:
    if not isinstance(arguments, dict):
        raise ValueError(f"{key} of {where} must be a JSON object, got {arguments!r}")
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(
            f"{key} of {where} has the unknown key {unknown[0]!r}; known are {_list(known)}"
        )


def _parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls).parameters)


def _select(
    table: Mapping[str, type[nn.Module]], name: Any, *, key: str, where: Path
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


# Weights into modules


def _load_strict(module: nn.Module, state: Mapping[str, Tensor], *, where: Source) -> None:
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing:
        raise ValueError(
            f"{where} lacks {len(missing)} of {len(own)} weights, the first is {missing[0]}"
        )
    if unexpected:
        raise ValueError(
            f"{where} has {len(unexpected)} weights with no place, the first is {unexpected[0]}"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{where} has {key} of shape {tuple(value.shape)}, but the configuration asks for "
                f"{tuple(own[key].shape)}"
            )
    module.load_state_dict(state)


def _encoder_state(
    encoder: nn.Module, state: dict[str, Tensor], *, where: Source
) -> dict[str, Tensor]:
    """Name the weights of a codec's, a transformers model's or an encoder's encoder as ours."""
    if any(".conv_layers." in key or key.startswith("conv_layers.") for key in state):
        try:
            return state_dict_from_transformers(state, encoder.num_layers)
        except KeyError as error:
            raise ValueError(f"{where}: {error.args[0]}") from error
    prefix = "encoder."
    if not encoder.state_dict().keys() & state.keys():  # a whole codec
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {key: value for key, value in state.items() if not _is_deeper(key, encoder)}


def _is_deeper(key: str, encoder: nn.Module) -> bool:
    layer = re.match(r"encoder\.layers\.(\d+)\.", key)
    return layer is not None and int(layer[1]) >= encoder.num_layers


def _check_encoder_config(encoder: nn.Module, config: Mapping[str, Any], *, where: Source) -> None:
    """Compare what weights do not show (strides, heads, distances) beside what they do."""
    if "encoder_config" in config:
        cls = _select(
            _PARTS["encoder"], config.get("encoder_name"), key="encoder_name", where=where
        )
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
                    f"{where} has {key} {config[key]!r} in {_CONFIG}, "
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
