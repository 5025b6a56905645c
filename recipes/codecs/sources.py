"""Where adapters get packages and weights from: optional packages, hub ids, local folders."""

import importlib
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from recipes.common.offline import is_offline
from recipes.common.scoring import MissingPackageError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def import_package(name: str, *, install: str) -> ModuleType:
    """Import an optional package.

    Parameters
    ----------
    name : of the module.
    install : command that installs it.

    Raises
    ------
    MissingPackageError : if it is missing or does not load; the message holds the command.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise MissingPackageError(f"{name} cannot be loaded ({reason}); {install}") from error


def model_id(checkpoint: str | PathLike[str]) -> str:
    """Name of a checkpoint without the place where it lies on this machine."""
    folder = Path(checkpoint).expanduser()
    return folder.resolve().name if folder.is_dir() else str(checkpoint)


def find_files(
    checkpoint: str | PathLike[str], names: Sequence[str | tuple[str, ...]]
) -> list[Path]:
    """Files of a checkpoint; those in the hub's cache are used without asking the network.

    Others are downloaded where downloads are allowed, of the commit that the first file is of.

    Parameters
    ----------
    checkpoint : local folder or hub id ``owner/name``.
    names : paths inside it; in place of one, several of which the first that is there is taken.

    Raises
    ------
    FileNotFoundError : if a file is missing, here or on the hub, or the hub cannot be reached.
    """
    groups = [(name,) if isinstance(name, str) else name for name in names]
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return _files_in(folder, groups)
    if not _HUB_ID.fullmatch(str(checkpoint)):
        raise _neither(checkpoint)
    files: list[Path] = []
    commit = None
    for group in groups:
        name, file = _file_of_hub(str(checkpoint), group, revision=commit)
        commit = file.parents[name.count("/")].name  # even if the branch moves
        files.append(file)
    return files


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a PyTorch file that may hold tensors and plain values only: no pickled code is run.

    Raises
    ------
    ValueError : if the file is damaged or holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise almost anything
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read without running code that it holds ({reason}); save its "
            "tensors alone, with torch.save, on a machine where you trust it"
        ) from error


def check_num_codebooks(num_codebooks: int, *, choices: Sequence[int], name: str) -> None:
    """Raise ValueError unless a codec can be used with so many codebooks."""
    if num_codebooks not in choices:
        raise ValueError(
            f"{name}: num_codebooks is {num_codebooks} but this checkpoint takes "
            f"{', '.join(str(choice) for choice in choices)}"
        )


def _files_in(folder: Path, groups: Sequence[tuple[str, ...]]) -> list[Path]:
    found = [
        next((folder / name for name in group if (folder / name).is_file()), None)
        for group in groups
    ]
    missing = [_either(group) for group, file in zip(groups, found, strict=True) if file is None]
    if missing:
        raise FileNotFoundError(
            f"checkpoint folder {folder} holds no {', '.join(missing)}; give the folder that "
            f"holds {', '.join(map(_either, groups))}"
        )
    return [file for file in found if file is not None]


def _file_of_hub(
    repository: str, names: tuple[str, ...], *, revision: str | None
) -> tuple[str, Path]:
    """First of ``names`` in the cache, or else on the hub, and where it is now."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        # Not hf_hub_download(local_files_only=True): version 2.4 asks the network even then.
        cached = [try_to_load_from_cache(repository, name, revision=revision) for name in names]
    except ValueError as error:  # a name that the hub forbids
        raise _neither(repository) from error
    for name, path in zip(names, cached, strict=True):
        if isinstance(path, str):
            return name, Path(path)
    if is_offline():
        raise _missing(repository, names, "downloads are forbidden (offline)")
    reason: Exception | None = None
    for name in names:
        try:
            return name, Path(hf_hub_download(repository, name, revision=revision))
        except RemoteEntryNotFoundError as error:
            reason = error
        except Exception as error:  # of an HTTP client, which one depends on the hub's version
            reason = error
            break
    raise _missing(repository, names, " ".join(str(reason).split())) from reason


def _missing(repository: str, names: tuple[str, ...], reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{_either(names)} of {repository} is not on this machine: {reason}; fetch it with "
        f"'hf download {repository}' where there is a network, or give a local folder as checkpoint"
    )


def _neither(checkpoint: str | PathLike[str]) -> FileNotFoundError:
    return FileNotFoundError(
        f"checkpoint {checkpoint} is no folder on this machine and no hub id owner/name"
    )


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)
