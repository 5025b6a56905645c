"""What a run folder says about itself (``run.json``): command, commit, seed, hardware, sizes.

Beside it lie ``hyperparams.yaml`` (resolved), ``log.txt``, ``env.log``, ``train_log.txt``,
``steps.jsonl``, ``metrics.json``, TensorBoard events, audio and manifests, each written by its own
part.
"""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process

from recipes.common.files import read_json, write_json

PACKAGES = (
    "torch",
    "torchaudio",
    "speechbrain",
    "hyperpyyaml",
    "transformers",
    "huggingface_hub",
    "numpy",
    "scipy",
    "soundfile",
    "jiwer",
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

    def create(self, param_file: str, overrides: str) -> None:
        """Make the folder with ``hyperparams.yaml`` and the logs; every rank has to call it."""
        sb.create_experiment_directory(
            experiment_directory=str(self.path), hyperparams_to_save=param_file, overrides=overrides
        )
        if if_main_process():  # leave no copy of this file, which SpeechBrain makes of its caller
            (self.path / Path(__file__).name).unlink(missing_ok=True)

    def describe(
        self,
        *,
        weights: dict[str, str],
        seed: int,
        parameters: dict[str, int],
        hardware: dict[str, Any],
        features: str | None = None,
        data: str | None = None,
        student_form: dict[str, Any] | None = None,
    ) -> None:
        """Write ``run.json``; a resumed run adds itself to the list of starts.

        Every start keeps its own commit and hardware: a run may be trained on one machine and
        tested on another.

        Parameters
        ----------
        weights : fingerprint of each part whose weights the run takes as they are, such as the
            frozen encoder's.
        seed : of the YAML.
        parameters : number of parameters by part.
        hardware : see `hardware`.
        features : fingerprint of the encoder whose features the frozen one gives; None for a run
            that trains nothing on features.
        data : fingerprint of what was made of the corpus; None for a run that keeps none.
        student_form : of `recipes.common.encoder_form`; None for a run without a student.

        Raises
        ------
        ValueError : if a fingerprint is not the one that the run began with.
        """
        earlier = read_description(self.path)
        for part, found in weights.items():
            if earlier is not None and earlier[part] != found:
                raise ValueError(
                    f"{self.path} was begun with weights {earlier[part]} of the {part}, and those "
                    f"at {part}_checkpoint are now {found}; put the old weights back or choose "
                    "another folder with --output_folder"
                )
        starts = earlier["starts"] if earlier is not None else []
        start = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(self.command),
            **git_state(),
            "hardware": hardware,
        }
        write_json(
            self.path / "run.json",
            {
                "command": start["command"],
                "config_hash": self.config_hash,
                "commit": start["commit"],
                "modified": start["modified"],
                "seed": seed,
                "hardware": hardware,
                "parameters": parameters,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "versions": {name: _version(name) for name in PACKAGES},
                **weights,
                **({} if features is None else {"features": features}),
                **({} if data is None else {"data": data}),
                **({} if student_form is None else {"student_form": student_form}),
                "starts": [*starts, start],
            },
        )


def read_description(path: Path) -> dict[str, Any] | None:
    """Content of ``run.json``, or None if the folder has none."""
    file = path / "run.json"
    return read_json(file) if file.is_file() else None


def hardware(device: str | torch.device) -> dict[str, Any]:
    """Describe what a run on ``device`` computes with; equal for all starts on one machine."""
    on_gpu = torch.device(device).type == "cuda"
    distributed = torch.distributed.is_initialized()
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "processes": torch.distributed.get_world_size() if distributed else 1,
        "cpu_cores": _usable_cores(),
        "torch_threads": torch.get_num_threads(),
    }


def hardware_line(hardware: dict[str, Any]) -> str:
    """One line of what `hardware` describes."""
    return (
        f"{hardware['device']}, {hardware['processes']} process(es), "
        f"{hardware['cpu_cores']} CPU cores, {hardware['torch_threads']} torch threads"
    )


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


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


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
