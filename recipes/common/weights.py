"""Weights of one module from what another run has saved."""

import os
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import METAFNAME

from focalcodec.hub import load_strict
from recipes.common.checkpoints import AtomicCheckpointer


def find_parameters(path: str | os.PathLike, *, name: str, min_key: str | None) -> Path:
    """File of one module's weights.

    Parameters
    ----------
    path : the file itself; a checkpoint folder; a folder of checkpoints; or a run folder (whose
        checkpoints lie in ``save``).
    name : the module's name among the run's recoverables.
    min_key : of several checkpoints, take the one with the lowest value; None for the newest.

    Raises
    ------
    FileNotFoundError : if there is no such file or no checkpoint.
    RuntimeError : if there are checkpoints but no complete one.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; name a run folder or a file {name}.ckpt")
    folder = path
    if not (path / METAFNAME).is_file():
        folder = path / "save" if (path / "save").is_dir() else path
        found = AtomicCheckpointer(folder).find_checkpoint(min_key=min_key)
        if found is None:
            raise FileNotFoundError(f"no checkpoint with {min_key or 'weights'} in {folder} yet")
        folder = found.path
    file = folder / f"{name}.ckpt"
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint {folder} has no {name}.ckpt: it is of another stage")
    return file


def load_parameters(
    module: torch.nn.Module, path: str | os.PathLike, *, name: str, min_key: str | None
) -> None:
    """Load one module's weights strictly; arguments as in `find_parameters`.

    Raises
    ------
    FileNotFoundError, RuntimeError : as `find_parameters`.
    ValueError : if the weights are not those of a module of this class and size.
    """
    file = find_parameters(path, name=name, min_key=min_key)
    state = torch.load(file, map_location="cpu", weights_only=True)
    needed = f"the YAML's {name} ({type(module).__name__}) must be the one that was trained"
    load_strict(module, state, where=f"{needed}: {file}")
