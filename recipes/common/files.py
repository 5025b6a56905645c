"""Files and folders of a run: content that is there whole or not at all."""

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; leave it alone if it already holds these bytes."""
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill inside `write_bytes` has left in a folder that no other process writes."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON object; ValueError that names the file if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(
            f"{path} is damaged ({error}); restore it, or leave its folder out"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def file_crc(path: str | Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_file(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a file's lock over all processes; without ``wait`` False if another has it.

    The kernel frees it when its holder dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def existing_folder(data_folder: str | Path) -> Path:
    """Absolute path of the data folder; FileNotFoundError if it is none."""
    root = Path(data_folder).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_folder {data_folder} is not a folder; give the path of the unpacked corpus"
        )
    return root


def folder_outside(output_folder: str | Path, root: Path) -> Path:
    """Absolute path of an output folder; ValueError if it lies inside the user's data ``root``."""
    folder = Path(output_folder).expanduser().resolve()
    if folder.is_relative_to(root):
        raise ValueError(
            f"output_folder {folder} lies inside data_folder {root}, and nothing is ever written "
            "there; choose an output_folder elsewhere"
        )
    return folder
