"""What a run folder says about itself: command, commit, versions, configuration (``run.json``).

Beside it lie ``hyperparams.yaml`` (resolved), ``log.txt``, ``env.log``, ``train_log.txt``,
``steps.jsonl``, ``metrics.json``, TensorBoard events, audio and manifests, each written by its own
part.
"""

import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from recipes.common.files import write_json

PACKAGES = (
    "torch",
    "torchaudio",
    "speechbrain",
    "hyperpyyaml",
    "transformers",
    "numpy",
    "soundfile",
    "pystoi",
    "pesq",
    "onnxruntime",
    "speechmos",
)
ROOT = Path(__file__).resolve().parents[2]


class RunFolder:
    """A folder that belongs to one configuration.

    Parameters
    ----------
    path : the YAML's ``output_folder``.
    command : words of the command line.
    config_hash : hash of the resolved configuration.
    """

    def __init__(self, path: str | Path, *, command: Sequence[str], config_hash: str) -> None:
        self.path = Path(path)
        self.command = list(command)
        self.config_hash = config_hash

    def refuse_other_configuration(self) -> None:
        """Raise ValueError if the folder holds a run of another configuration."""
        description = read_description(self.path)
        if description is not None and description["config_hash"] != self.config_hash:
            raise ValueError(
                f"{self.path} holds a run of another configuration (started with: "
                f"{description['command']}); choose another folder with --output_folder, or "
                "remove this one"
            )

    def describe(self, *, encoder: str) -> None:
        """Write ``run.json``; a resumed run adds its command to the list of starts.

        Raises
        ------
        ValueError : if the encoder's fingerprint is not the one that the run began with.
        """
        earlier = read_description(self.path)
        if earlier is not None and earlier["encoder"] != encoder:
            raise ValueError(
                f"{self.path} was trained on features of encoder {earlier['encoder']}, and the "
                f"weights at encoder_checkpoint now give {encoder}; put the old weights back or "
                "choose another folder with --output_folder"
            )
        starts = earlier["starts"] if earlier is not None else []
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        command = shlex.join(self.command)
        write_json(
            self.path / "run.json",
            {
                "command": command,
                "config_hash": self.config_hash,
                **git_state(),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "versions": {name: _version(name) for name in PACKAGES},
                "encoder": encoder,
                "starts": [*starts, {"time": started, "command": command}],
            },
        )


def read_description(path: Path) -> dict[str, Any] | None:
    """Content of ``run.json``, or None if the folder has none."""
    file = path / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it was modified; None where there is no git."""
    try:
        commit = _git("rev-parse", "HEAD")
        modified = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
    return {"commit": commit, "modified": modified}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
