"""Codecs and encoder weights on disk and on the Hugging Face hub.

A codec is a folder with ``config.json`` (what its five parts are, see ``config.py``) and
``model.safetensors`` (their weights), as published for lucadellalib/focalcodec. Both of its layouts
are read (see ``legacy.py``) and the newer one, v0.0.2, is written.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from focalcodec.hub.arguments import shown
from focalcodec.hub.config import PARTS, build_parts, describe_parts
from focalcodec.hub.encoder import check_encoder_config, encoder_weights
from focalcodec.hub.legacy import layout_of_weights, rename_codec_weights
from focalcodec.hub.weights import check_fit, load_strict, read_state

Source = str | os.PathLike[str]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_SUFFIXES = (".safetensors", ".pt")
_TRANSFORMERS_WEIGHTS = (
    _WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# owner/name (what ends in .json is a path) and, where it follows, the name of a configuration.
_HUB_ID = r"(\w[\w.-]*/\w[\w.-]*(?<!\.json))(?:/(\w[\w.-]*?)(?:\.json)?)?"
_MOST_WEIGHTS = 2**32  # of random ones, 16 GiB; the largest published codec has 2**28


def load_parts(
    source: Source,
    *,
    pretrained: bool = True,
    overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
    cache_dir: Source | None = None,
) -> dict[str, nn.Module]:
    """Build the five parts of a codec and load their weights.

    Parameters
    ----------
    source : folder with config.json and model.safetensors (or config.safetensors, or .pt of either
        name); ``X.json`` or ``X`` with ``X.safetensors`` or ``X.pt`` beside it; a hub id
        ``owner/name``; or ``owner/name/X.json`` or ``owner/name/X`` for a codec of another name
        than config.json in that repository. What is here, in a folder or in the hub's cache, is
        used without asking the network.
    pretrained : False for random weights; no file of weights is looked for.
    overrides : dotted key -> value that replaces what config.json says, such as
        ``{"encoder_config.dropout": 0.1}``.
    revision : branch, tag or commit of a hub id.
    cache_dir : cache of the hub; None for its own choice.

    Returns
    -------
    Part name -> module, the arguments of ``focalcodec.FocalCodec``. Weights are float32, whatever
    precision the file has.

    Raises
    ------
    FileNotFoundError : if the source or a file of it is missing.
    ValueError : if a file is damaged, the configuration has an unknown name, key or value, or the
        weights are not finite or do not fit it exactly.
    """
    place, config_path = _locate(source, revision=revision, cache_dir=cache_dir)
    config, where = _read_json(config_path), str(config_path)
    if overrides is not None:
        config, where = _override(config, overrides, where=where), f"{where} with overrides"
    # A sketch comes before any memory is taken that the configuration asks for, because numbers in
    # a configuration can be anything, while weights are only as large as their file.
    if not pretrained:
        sketch = nn.ModuleDict(build_parts(config, where=where, sketch=True))
        size = sum(parameter.numel() for parameter in sketch.parameters())
        if size > _MOST_WEIGHTS:
            raise ValueError(f"{where} asks for {size} weights, more than {_MOST_WEIGHTS}")
        return build_parts(config, where=where)
    weights_path = place.find(_codec_weights(config_path.name))
    state = read_state(weights_path)
    layout = layout_of_weights(state)
    state = rename_codec_weights(state, where=weights_path)
    sketch = nn.ModuleDict(build_parts(config, where=where, layout=layout, sketch=True))
    check_fit(sketch.state_dict(), state, where=weights_path)
    parts = build_parts(config, where=where, layout=layout)
    nn.ModuleDict(parts).load_state_dict(state)
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
    source : folder or hub id (``microsoft/wavlm-large``) of a WavLM in the layout of transformers;
        a codec, as in `load_parts`; or one .safetensors, .pt or .bin file with the weights of any
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
        _refuse_revision(source, revision)
        state = read_state(path)
    else:
        place, config_path = _locate(source, revision=revision, cache_dir=cache_dir)
        check_encoder_config(encoder, _read_json(config_path), where=source)
        names = _codec_weights(config_path.name)
        if config_path.name == _CONFIG:
            names = list(dict.fromkeys([*_TRANSFORMERS_WEIGHTS, *names]))
        state = _read_shards(place.find(names), place=place)
    load_strict(encoder, encoder_weights(encoder, state, where=source), where=source)


def _override(
    config: Mapping[str, Any], overrides: Mapping[str, Any], *, where: Source
) -> dict[str, Any]:
    """Replace some values of a configuration; unknown keys are added, for `build_parts` to refuse.

    Raises
    ------
    ValueError : if the overrides are no mapping of dotted keys or lead into what is no JSON object.
    """
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise ValueError(f"overrides must map dotted keys to values, got {shown(overrides)}")
    config = dict(config)
    for path, value in overrides.items():
        *outer, last = path.split(".")
        node = config
        for key in outer:
            if not isinstance(node.get(key, {}), dict):
                raise ValueError(
                    f"override {shown(path)} does not fit {where}: {shown(key)} is no JSON object"
                )
            node[key] = dict(node.get(key, {}))
            node = node[key]
        node[last] = value
    return config


# Where files are


class _Place(NamedTuple):
    """A folder, or a repository of the hub; ``source`` is what the user called it."""

    root: Path | str
    source: Source
    revision: str | None = None
    cache_dir: Source | None = None

    def find(self, names: Iterable[str]) -> Path:
        """Path of the first of ``names`` that is there."""
        names = list(names)
        if isinstance(self.root, str):
            return _download(self, names)
        for name in names:
            if (self.root / name).is_file():
                return self.root / name
        raise FileNotFoundError(f"{self.root} holds no {' or '.join(names)}")


def _locate(
    source: Source, *, revision: str | None, cache_dir: Source | None
) -> tuple[_Place, Path]:
    """Find the place of a model's files and the path of its configuration."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix != ".json":
        raise ValueError(
            f"{path} is not a codec; give the folder of config.json and {_WEIGHTS}, "
            "the .json file or a hub id"
        )
    for config_path in (path, Path(f"{path}.json")):
        if config_path.is_file():
            _refuse_revision(source, revision)
            return _Place(config_path.parent, source), config_path
    if path.is_dir():
        _refuse_revision(source, revision)
        place = _Place(path, source)
        return place, place.find([_CONFIG])
    match = re.fullmatch(_HUB_ID, str(source))
    if match is None:
        raise FileNotFoundError(
            f"{source} does not exist, and it is not a hub id of the form owner/name or "
            "owner/name/config.json either"
        )
    repo, stem = match.groups()
    place = _Place(repo, source, revision=revision, cache_dir=cache_dir)
    config_path = place.find([f"{stem}.json" if stem else _CONFIG])
    # The weights of the same commit, should the branch move between the two.
    return place._replace(revision=config_path.parent.name), config_path


def _refuse_revision(source: Source, revision: str | None) -> None:
    if revision is not None:
        raise ValueError(
            f"{source} is a file or folder here and has no revision {revision!r}; leave the "
            "revision out"
        )


def _codec_weights(config_name: str) -> list[str]:
    """Names that the weights of a codec may have beside a configuration of this name."""
    stems = ("model", "config") if config_name == _CONFIG else (Path(config_name).stem,)
    return [stem + suffix for suffix in _SUFFIXES for stem in stems]


def _download(place: _Place, names: list[str]) -> Path:
    """First of ``names`` in the hub's cache; asked of the network only if none is there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, at = place.root, {"revision": place.revision, "cache_dir": place.cache_dir}
    try:
        # Not hf_hub_download(local_files_only=True): version 2.4 asks the network even then.
        cached = [try_to_load_from_cache(repo, name, **at) for name in names]
    except ValueError as error:
        raise FileNotFoundError(
            f"{place.source} does not exist here, and {repo} is no hub id: {error}"
        ) from error
    for path in cached:
        if isinstance(path, str):
            return Path(path)
    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, **at))
        except EntryNotFoundError as error:
            reason = error
            if isinstance(error, LocalEntryNotFoundError):  # no answer: no use asking for the next
                break
        except (OSError, ValueError) as error:
            reason = error
            break
    raise FileNotFoundError(
        f"{place.source} does not exist here, and the hub gives no {' or '.join(names)} of {repo}: "
        f"{str(reason).strip().splitlines()[0]}"
    ) from reason


# Reading and writing files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not one JSON object")
    return config


def _read_shards(path: Path, *, place: _Place) -> dict[str, Tensor]:
    """Tensors of a file, or of all the files that an index names."""
    if path.suffix != ".json":
        return read_state(path)
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{path} has no weight_map of file names")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise ValueError(
                f"{path} names the shard {shown(shard)}, which is not a plain file name"
            )
        state |= read_state(place.find([shard]))
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
