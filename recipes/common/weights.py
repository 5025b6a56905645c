"""Weights of modules from what another run has saved, or a codec has."""

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import METAFNAME

from focalcodec import FocalCodec
from focalcodec.hub import load_strict
from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.encoder_form import check_form
from recipes.common.fingerprint import fingerprint
from recipes.common.run_folder import read_description

logger = logging.getLogger(__name__)


def find_parameters(path: str | os.PathLike, *, name: str, min_key: str | None) -> Path:
    """File of one module's weights; of their moving average, if the run keeps one.

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
    averaged = folder / f"{name}_ema.ckpt"
    file = averaged if averaged.is_file() else folder / f"{name}.ckpt"
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint {folder} has no {name}.ckpt: it is of another stage")
    return file


def refuse_missing_run(source: str | os.PathLike, *, key: str) -> None:
    """Refuse a path at which there is nothing, before the hub is asked for a model of that name.

    What begins with results/, where the YAMLs put runs, or as no name of a model does is a path;
    so is what has several parts, the first of them a folder that is here.

    Parameters
    ----------
    source : a path, or a name on the hub.
    key : of the YAML that it stands under.

    Raises
    ------
    FileNotFoundError : if it is a path and does not exist.
    """
    source, path = os.fspath(source), Path(source).expanduser()
    is_path = source.startswith(("results/", ".", "/", "~"))
    is_path = is_path or (source.count("/") > 1 and Path(path.parts[0]).is_dir())
    if is_path and not path.exists() and not path.with_name(f"{path.name}.json").is_file():
        raise FileNotFoundError(
            f"{key} is {source}, which does not exist; train the stage that gives it first (see "
            "README.md, Streaming codec), or name the folder that it is in"
        )


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


def fill_from(
    modules: Mapping[str, torch.nn.Module],
    source: str | os.PathLike,
    *,
    encoder: torch.nn.Module,
    min_key: str,
) -> None:
    """Load the weights of parts that were trained before, to train them further.

    Parameters
    ----------
    modules : what to fill, by its name in a codec and among a run's recoverables.
    source : run folder, or what ``FocalCodec.from_pretrained`` takes.
    encoder : of this run, whose features the parts have to know.
    min_key : of several checkpoints of a run, take the one with the lowest value.

    Raises
    ------
    FileNotFoundError, RuntimeError, ValueError : as `fill_from_run` and `fill_from_codec`.

    Notes
    -----
    A decompressor with a refiner takes the weights of one without: the refiner then begins by
    changing nothing.
    """
    refuse_missing_run(source, key="init_from")
    if (Path(source) / "run.json").is_file():
        fill_from_run(modules, Path(source), encoder=encoder, min_key=min_key)
    else:
        fill_from_codec(modules, source, encoder=encoder)
    logger.info("start from %s: %s", source, ", ".join(modules))


def fill_from_run(
    modules: Mapping[str, torch.nn.Module], run: Path, *, encoder: torch.nn.Module, min_key: str
) -> None:
    """Load the weights of a run's parts; arguments as in `fill_from`.

    Raises
    ------
    FileNotFoundError, RuntimeError : as `find_parameters`.
    ValueError : if the run's encoder is another or a part has another class or size.
    """
    known = _known_encoder(run, encoder=encoder, min_key=min_key)
    if known != fingerprint(encoder):
        raise ValueError(
            f"init_from {run} was trained on features of encoder {known}, this run gives its parts "
            f"those of {fingerprint(encoder)}; name the same weights in both, or {run} itself if "
            "it trained a student"
        )
    for name, module in modules.items():
        if module.state_dict():
            file = find_parameters(run, name=name, min_key=min_key)
            state = torch.load(file, map_location="cpu", weights_only=True)
            _fill_part(module, state, name=name, source=file)


def fill_from_codec(
    modules: Mapping[str, torch.nn.Module], codec: str | os.PathLike, *, encoder: torch.nn.Module
) -> None:
    """Load the weights of a codec's parts, to fine-tune them.

    Parameters
    ----------
    modules : what to fill, by its attribute in `FocalCodec`.
    codec : what ``FocalCodec.from_pretrained`` takes: a hub id or a folder, exported or published.
    encoder : of this run, whose features the parts have to know.

    Raises
    ------
    FileNotFoundError, ValueError : as ``from_pretrained``; ValueError also if the codec's encoder
        is another or a part has another class or size.
    """
    source = FocalCodec.from_pretrained(codec)
    if fingerprint(source.encoder) != fingerprint(encoder):
        raise ValueError(
            f"init_from {codec} has encoder {fingerprint(source.encoder)}, this run has "
            f"{fingerprint(encoder)}, so its parts know other features; take its encoder with "
            f"--encoder_checkpoint {codec}, for a student with --student_checkpoint"
        )
    for name, module in modules.items():
        _fill_part(module, getattr(source, name).state_dict(), name=name, source=codec)


def _known_encoder(run: Path, *, encoder: torch.nn.Module, min_key: str) -> str:
    """Fingerprint of the encoder whose features a run's parts know: its student, if it trains one.

    Arguments and errors as of `fill_from_run`; the student is that of the checkpoint of the parts.
    """
    description = read_description(run)
    if "student" not in description:
        return description["encoder"]
    check_form(encoder, description, where=f"{run} (init_from)")
    student = copy.deepcopy(encoder)
    load_parameters(student, run, name="student", min_key=min_key)
    return fingerprint(student)


def _fill_part(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    name: str,
    source: str | os.PathLike,
) -> None:
    where = f"the YAML's {name} ({type(module).__name__}) must be that of init_from {source}"
    load_strict(module, _without_effect(module) | state, where=where)


def _without_effect(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a module's refiner by name, its result 0; empty for a module without one."""
    state = module.state_dict()
    refiner = {name: state[name].clone() for name in state if name.startswith("refiner.")}
    return {
        name: torch.zeros_like(value) if name.startswith("refiner.out_proj.") else value
        for name, value in refiner.items()
    }
