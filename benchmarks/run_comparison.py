"""Whether two run folders hold the same results, bit by bit, and if not, where they differ."""

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # says for every resumed run that it is

# What is written anew at every start, with times, paths and process ids in it.
PER_START = {"log.txt", "env.log", "run.json", "hyperparams.yaml", "tensorboard", "save"}


def differences(reference: Path, resumed: Path) -> list[str]:
    """Compare two run folders; one line for each file that differs, saying how; empty if none."""
    lines = different_files(reference, resumed)
    lines += _different_checkpoints(reference / "save", resumed / "save")
    lines += _different("TensorBoard", _curves(reference), _curves(resumed))
    return lines


def different_files(reference: Path, resumed: Path) -> list[str]:
    """Compare all files whose content does not depend on when and where the run was started."""
    names = [
        {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).parts[0] not in PER_START
        }
        for folder in (reference, resumed)
    ]
    lines = [f"{name}: missing" for name in sorted(names[0] - names[1])]
    lines += [f"{name}: left over" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        wanted, found = ((folder / name).read_bytes() for folder in (reference, resumed))
        if wanted != found:
            lines.append(f"{name}: {_first_difference(wanted, found)}")
    return lines


def _different_checkpoints(reference: Path, resumed: Path) -> list[str]:
    """Compare checkpoints in the order of their names, which begin with their time."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (reference, resumed)]
    if len(names[0]) != len(names[1]):
        return [f"save: {', '.join(names[1])} instead of {len(names[0])} checkpoint(s)"]
    lines = []
    for number, (wanted, found) in enumerate(zip(*names, strict=True), 1):
        if not found.startswith("CKPT"):
            lines.append(f"save/{found}: left over")
        contents = [_checkpoint(folder) for folder in (reference / wanted, resumed / found)]
        lines += _different(f"checkpoint {number} of {len(names[0])}", *contents)
    return lines


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint by file: tensors and plain values, never bytes of an archive."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if zipfile.is_zipfile(path):
            contents[path.name] = torch.load(path, map_location="cpu", weights_only=True)
        else:
            contents[path.name] = yaml.safe_load(path.read_text(encoding="utf-8"))
    meta = contents.get("CKPT.yaml", {})
    meta.pop("unixtime", None)
    meta["files"] = sorted(meta.get("files", ()))
    return contents


def _curves(run: Path) -> dict[str, dict[int, float]]:
    """Scalars that TensorBoard shows: value by step, by name of the curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def _different(where: str, wanted: Any, found: Any) -> list[str]:
    """Compare nested values; one line for each leaf that differs."""
    if type(wanted) is not type(found):
        return [f"{where}: {type(found).__name__} instead of {type(wanted).__name__}"]
    if isinstance(wanted, Mapping):
        lines = [f"{where}/{key}: missing" for key in wanted if key not in found]
        lines += [f"{where}/{key}: left over" for key in found if key not in wanted]
        for key in wanted:
            lines += _different(f"{where}/{key}", wanted[key], found[key]) if key in found else []
        return lines
    if isinstance(wanted, list | tuple):
        if len(wanted) != len(found):
            return [f"{where}: {len(found)} entries instead of {len(wanted)}"]
        pairs = enumerate(zip(wanted, found, strict=True))
        return [line for key, pair in pairs for line in _different(f"{where}/{key}", *pair)]
    if isinstance(wanted, Tensor):
        return _different_tensors(where, wanted, found)
    # repr tells -0.0 from 0.0, and takes NaN for NaN.
    return [] if repr(wanted) == repr(found) else [f"{where}: {found!r} instead of {wanted!r}"]


def _different_tensors(where: str, wanted: Tensor, found: Tensor) -> list[str]:
    if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
        kinds = [f"{value.dtype} {tuple(value.shape)}" for value in (found, wanted)]
        return [f"{where}: {kinds[0]} instead of {kinds[1]}"]
    bits = [value.contiguous().view(-1).view(torch.uint8) for value in (wanted, found)]
    if torch.equal(*bits):
        return []
    unequal = (bits[0] != bits[1]).view(wanted.numel(), -1).any(dim=1)
    error = (wanted.double() - found.double()).abs().max()
    return [
        f"{where}: {int(unequal.sum())} of {wanted.numel()} values differ, by {error:.2g} at most"
    ]


def _first_difference(wanted: bytes, found: bytes) -> str:
    """Say how two files differ: text by its first line that does."""
    try:
        texts = [content.decode().splitlines() for content in (wanted, found)]
    except UnicodeDecodeError:
        unequal = sum(a != b for a, b in zip(wanted, found, strict=False))
        return f"{len(found)} bytes instead of {len(wanted)}, {unequal} differ"
    pairs = enumerate(zip(*texts, strict=False), 1)
    line = next((number for number, (a, b) in pairs if a != b), min(map(len, texts)) + 1)
    shown = [text[line - 1] if line <= len(text) else "" for text in texts]
    start = max(0, len(os.path.commonprefix(shown)) - 30)
    shown = [repr(text[start : start + 100]) for text in shown]
    return (
        f"{len(texts[1])} lines instead of {len(texts[0])}, the first that differs is {line}: "
        f"{shown[1]} instead of {shown[0]}"
    )
