"""Evaluations of the small trained codec on twins of test sets, for the tests that need one."""

from pathlib import Path
from typing import Any

from recipes.evaluate import evaluate


def words(checkpoint: Path, data: Path, output: Path, **overrides: Any) -> list[str]:
    """Command line after the task; ``overrides`` replace its small sizes."""
    values = {
        "codec": "!include:codec/focalcodec.yaml",
        "codec_checkpoint": checkpoint,
        "data_folder": data,
        "output_folder": output,
        "metrics": "[mel_distance, stoi]",
        "num_audio_samples": 1,
        "offline": True,
    }
    texts = {key: str(value) for key, value in (values | overrides).items()}
    return ["--device=cpu", *(f"--{key}={text}" for key, text in texts.items())]


def run(task: str, checkpoint: Path, data: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    """Evaluate to the end; content of metrics.json."""
    return evaluate(task, words(checkpoint, data, output, **overrides))
