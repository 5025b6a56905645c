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


def find_files(checkpoint: str | PathLike[str], names: Sequence[str]) -> list[Path]:
    """Files of a checkpoint, downloaded where they are not here and downloads are allowed.

    Parameters
    ----------
    checkpoint : local folder or hub id ``owner/name``.
    names : paths inside it.

    Raises
    ------
    FileNotFoundError : if a file is missing, here or on the hub, or the hub cannot be reached.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"checkpoint folder {folder} holds no {', '.join(missing)}; give the folder that "
                f"holds {', '.join(names)}"
            )
        return [folder / name for name in names]
    if not _HUB_ID.fullmatch(str(checkpoint)):
        raise FileNotFoundError(
            f"checkpoint {checkpoint} is no folder on this machine and no hub id owner/name"
        )
    return [_download(str(checkpoint), name) for name in names]


def load_transformers(model: str, checkpoint: str | PathLike[str]) -> torch.nn.Module:
    """Load a codec of transformers in float32 from safetensors, frozen and in evaluation mode.

    Parameters
    ----------
    model : name of its class, such as ``EncodecModel``.
    checkpoint : local folder or hub id.

    Raises
    ------
    FileNotFoundError : see `find_files`.
    ValueError : if the files are of another model or damaged; weights that a checkpoint lacks are
        refused, where transformers would make them up.
    """
    transformers = import_package("transformers", install="pip install 'transformers>=5.17,<6'")
    config = find_files(checkpoint, ["config.json", "model.safetensors"])[0]
    try:
        loaded, report = getattr(transformers, model).from_pretrained(
            config.parent,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers passes on whatever its readers raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint} is no checkpoint of {model}: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{checkpoint} is no checkpoint of {model}: {len(missing)} weights are missing, "
            f"such as {missing[0]}"
        )
    return loaded.eval().requires_grad_(False)


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


def _download(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=is_offline()))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = "downloads are forbidden (offline)"
        if not is_offline():
            reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name} of {repository} is not on this machine: {reason}; fetch it with "
            f"'hf download {repository}' where there is a network, or give a local folder as "
            "checkpoint"
        ) from error
