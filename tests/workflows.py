"""Run the Snakefiles as a user does, in a working folder of their own, and read what they print."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from recipes.common.command_line import parse_command_line


def link_code(root: Path, folder: Path) -> Path:
    """Put the repository's code into a working folder, where a workflow may leave its own files."""
    for path in (root / "focalcodec", root / "hparams", root / "recipes", *root.glob("train_*.py")):
        (folder / path.name).symlink_to(path)
    return folder


def start(checkout: Path, snakefile: str, *options: str) -> subprocess.Popen:
    """Start Snakemake in a process group of its own."""
    words = [sys.executable, "-m", "snakemake", "-s", snakefile, *options]
    environment = os.environ | {
        "PATH": f"{checkout}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(checkout),
    }
    return subprocess.Popen(
        words,
        cwd=checkout,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(checkout: Path, snakefile: str, *options: str, status: int = 0) -> str:
    """Run Snakemake to its end; what it prints."""
    process = start(checkout, snakefile, *options)
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == status, printed
    return printed


def commands(printed: str) -> dict[str, list[str]]:
    """Command lines of the training scripts without the script, by run folder."""
    lines = re.findall(r"python train_\w+\.py (.*) >> (\S+)/console\.log", printed)
    return {folder: shlex.split(words) for words, folder in lines}


def options_of(words: list[str]) -> dict[str, str]:
    """Options by name, of words that the training scripts accept."""
    assert parse_command_line(words)
    return dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
