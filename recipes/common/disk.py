"""Files that appear whole or not at all, and the space that they need.

What feature caches and token shards share, which many processes fill for hours.
"""

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from recipes.common.files import flush

TEMPORARY = ".tmp-"  # between a file's name and who is writing it
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_Result = TypeVar("_Result")


def publish(path: Path, write: Callable[[BinaryIO], _Result]) -> _Result:
    """Let ``write`` fill a file that appears under its name whole and on the disk, or not at all.

    Only one process may publish a path at a time: callers hold a lock. Gives what ``write`` gives.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{socket.gethostname()}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)
    return result


def publish_text(path: Path, text: str) -> None:
    """Publish a text file."""
    publish(path, lambda file: file.write(text.encode()))


def remove_unpublished(folder: Path, name: str) -> None:
    """Remove the temporary files that a dead process left of ``name``."""
    for path in list(folder.glob(f"{name}{TEMPORARY}*")):
        path.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Free bytes where the folder is, or will be."""
    place = folder.absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def size_text(num_bytes: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.2f} MiB"


@contextmanager
def explaining_disk_errors(
    folder: Path, *, needed: Callable[[], float], refuse: type[ValueError]
) -> Iterator[None]:
    """Turn an OSError into one that says what is kept and what is missing.

    Parameters
    ----------
    folder : that is written to.
    needed : gives the bytes that are still to be written.
    refuse : what to raise.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno not in _DISK_FULL:
            raise refuse(f"cannot write to {folder}: {reason}; finished shards are kept") from error
        raise refuse(
            f"cannot write to {folder}: {reason}; {size_text(needed())} are still needed, "
            f"{size_text(free_bytes(folder))} free; finished shards are kept: make room "
            "and run the same command"
        ) from error
