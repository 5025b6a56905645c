"""Codecs and encoder weights on disk and on the Hugging Face hub.

A codec is a folder with ``config.json`` (what its five parts are, see ``config.py``) and
``model.safetensors`` (their weights), as published for lucadellalib/focalcodec, v0.0.2. Weights are
safetensors, or pickles read with ``weights_only``.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from focalcodec.config import PARTS, build_parts, check_encoder_config, describe_parts
from focalcodec.wavlm import state_dict_from_transformers

Source = str | os.PathLike[str]

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
    parts = build_parts(config, where=config_path)
    load_strict(nn.ModuleDict(parts), _read_state(weights_path), where=weights_path)
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
    ValueError : if a part is of a class that config.json has no name for.
    """
    from safetensors.torch import save_file

    config = describe_parts(parts)
    state = nn.ModuleDict({part: parts[part] for part in PARTS}).state_dict()
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
        check_encoder_config(encoder, _read_json(path), where=source)
        state = _read_state(_weights_beside(path))
    else:
        find = functools.partial(_find, source, revision=revision, cache_dir=cache_dir)
        check_encoder_config(encoder, _read_json(find([_CONFIG])), where=source)
        state = _read_shards(find([*_TRANSFORMERS_WEIGHTS, "model.pt"]), find=find)
    load_strict(encoder, _encoder_state(encoder, state, where=source), where=source)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, where: Source) -> None:
    """Load weights into a module, in place; nothing may be missing, left over or of another shape.

    A module that refuses the weights keeps those it has.

    Parameters
    ----------
    module : module to fill.
    state : weights by name, as of ``module.state_dict()``.
    where : where they come from; every message names it.

    Raises
    ------
    ValueError : if the weights do not fit exactly.
    """
    if not _is_state(state):
        raise ValueError(f"{where} does not fit: it is not a state dict of tensors")
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing:
        raise ValueError(
            f"{where} does not fit: it lacks {len(missing)} of {len(own)} weights, "
            f"the first is {missing[0]}"
        )
    if unexpected:
        raise ValueError(
            f"{where} does not fit: it has {len(unexpected)} weights with no place, "
            f"the first is {unexpected[0]}"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{where} does not fit: it has {key} of shape {tuple(value.shape)}, "
                f"but the configuration asks for {tuple(own[key].shape)}"
            )
    module.load_state_dict(state)


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
    if not _is_state(state):
        raise ValueError(f"{path} is not a state dict of tensors")
    return state


def _is_state(state: Any) -> bool:
    return isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())


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


# Names of an encoder's weights


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
