"""What a command tells its user: one line for each odd file, progress, and a summary."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from focalcodec.bitstream import CutFileWarning

# Their messages speak for themselves; of others the kind is named as well.
_EXPECTED = (OSError, ValueError, RuntimeError)


@dataclass
class Report:
    """What became of the files: a line about each that is odd, counts for the end.

    Attributes
    ----------
    echo : takes the lines.
    bar : progress in seconds of audio.
    done, skipped, failed : files.
    seconds : of audio that is done.
    num_bytes, payload_bytes : of the token files that were written.
    """

    echo: Callable[[str], None]
    bar: tqdm = field(default_factory=partial(tqdm, disable=True))
    done: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    payload_bytes: int = 0

    def fail(self, path: str | Path, reason: str | Exception) -> None:
        """Count a file as failed and say why."""
        self.failed += 1
        if isinstance(reason, Exception):
            kind = "" if isinstance(reason, _EXPECTED) and str(reason) else type(reason).__name__
            reason = f"{kind} {reason}"
        self.warn(path, reason.strip())

    def warn(self, path: str | Path, reason: str) -> None:
        """Say something about a file, in one line."""
        rest = reason.removeprefix(str(path))
        text = rest if rest.startswith((":", " ")) else reason  # "a" is no prefix of "after"
        self.echo(printable(f"{path}: {' '.join(text.lstrip(':').split())}"))

    @contextmanager
    def guard(self, path: str | Path) -> Iterator[None]:
        """Report whatever goes wrong with one file and go on behind the block."""
        with warnings.catch_warnings():
            show_others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
                if issubclass(category, CutFileWarning):
                    self.warn(path, str(message))
                else:
                    show_others(message, category, *place)

            warnings.simplefilter("always", CutFileWarning)
            warnings.showwarning = show
            try:
                yield
            except Exception as error:
                self.fail(path, error)

    def summary(self, elapsed: float) -> str:
        """Lines on all files, ``elapsed`` s after the start."""
        lines = [f"{self.done} done, {self.skipped} skipped, {self.failed} failed"]
        if self.done:
            hours = self.seconds / 3600
            lines.append(
                f"{hours:.4g} h of audio in {elapsed:.2f} s: {hours / elapsed:.3g} h/s, "
                f"real-time factor {elapsed / self.seconds:.3g}"
            )
        if self.num_bytes:
            kbits = [
                size * 8 / 1000 / self.seconds for size in (self.num_bytes, self.payload_bytes)
            ]
            lines.append(
                f"{self.num_bytes} bytes, {kbits[0]:.3f} kbit/s; of these {self.payload_bytes} "
                f"bytes of tokens, {kbits[1]:.3f} kbit/s"
            )
        return "\n".join(lines)


def echo(line: str) -> None:
    """Write a line on stderr, above a progress bar that may be there."""
    tqdm.write(f"focalcodec: {line}", file=sys.stderr)


def printable(text: str) -> str:
    """Text in one line that every terminal takes: control characters, undecodable bytes escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
