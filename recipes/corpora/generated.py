"""Folders of generated audio: one set of arguments each, whole files, repeatable at any point."""

import json
import os
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from recipes.common.files import write_text

_SUFFIXES = {".wav": "WAV", ".flac": "FLAC"}


def claim(folder: Path, arguments: dict[str, Any], *, record: str, what: str) -> None:
    """Make a folder and note the arguments in it; refuse one that was made with others.

    Parameters
    ----------
    folder : to be filled.
    arguments : of the generation, JSON values.
    record : file in the folder that holds them.
    what : such as "a synthetic corpus", for the message.

    Raises
    ------
    ValueError : if the folder holds what other arguments made.
    """
    path = folder / record
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != arguments:
            raise ValueError(
                f"{folder} holds {what} made with {found}, asked for is {arguments}; "
                "choose another folder or remove this one"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(arguments) + "\n")


def write_sig(path: Path, sig: Tensor, *, sample_rate: int) -> None:
    """Write a 16-bit wav or FLAC file whole or not at all; ``sig`` is (T,) or (T, channels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    audio_format = _SUFFIXES[path.suffix]
    soundfile.write(partial, sig.numpy(), sample_rate, format=audio_format, subtype="PCM_16")
    os.replace(partial, path)
