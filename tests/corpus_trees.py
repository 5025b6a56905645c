"""Small corpora for the tests of preparation: files, their hashes, and manifests."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from recipes.common.dataio import read_manifest

LIMITS: dict[str, Any] = {"min_duration_s": 0.05, "max_duration_s": 60.0}


def write_sig(
    path: Path,
    *,
    seconds: float = 0.1,
    sample_rate: int = 16_000,
    channels: int = 1,
    level: float = 0.1,
    seed: int = 0,
) -> Path:
    """Write white noise with a root mean square of ``level``; Opus by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (round(seconds * sample_rate), channels)
    sig = np.random.default_rng(seed).uniform(-1, 1, size) * level * 3**0.5
    opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, sig, sample_rate, **opus)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def tree_hash(root: Path) -> dict[str, str]:
    """Content of the files and times of the folders below ``root``."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else str(path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
    }


def manifest(save_folder: Path, subset: str) -> dict[str, Any]:
    """Rows as they are written."""
    return json.loads((save_folder / f"{subset}.json").read_text(encoding="utf-8"))


def rows(
    save_folder: Path, data_folder: Path, *, subset: str = "test"
) -> dict[str, dict[str, Any]]:
    """Rows of a subset with real paths."""
    return read_manifest(save_folder / f"{subset}.json", data_folder=data_folder)
