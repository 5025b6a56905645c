"""Runs of both stages from their real YAMLs at toy size, for the tests that need a trained run."""

import json
import random
from pathlib import Path

import numpy as np
import soundfile
import speechbrain as sb

from recipes.common.experiment import Experiment, build_experiment, run_experiment
from recipes.train_kmeans import KMeansBrain
from train_decoder import DecoderBrain
from train_encoder import EncoderBrain
from train_quantizer import QuantizerBrain

HPARAMS = Path(__file__).resolve().parents[1] / "hparams"
STAGES = {"decoder": (DecoderBrain, "vocos.yaml"), "quantizer": (QuantizerBrain, "bsq.yaml")}
BASELINE = {  # of WavLM6-KM, beside its decoder
    "kmeans": (KMeansBrain, "kmeans.yaml"),
    "dequantizer": (QuantizerBrain, "wavlm6_km.yaml"),
}
STREAMING = {  # of FocalCodec-Stream, in their order
    "wavenext": (DecoderBrain, "wavenext.yaml"),
    "embedding": (EncoderBrain, "causal_embedding.yaml"),
    "encoder": (EncoderBrain, "causal_encoder.yaml"),
    "causal_quantizer": (QuantizerBrain, "bsq_causal.yaml"),
    "joint": (QuantizerBrain, "joint.yaml"),
}
_ALL = STAGES | BASELINE | STREAMING
_TEACHER = {"encoder": "!include:demo/wavlm.yaml", "encoder_checkpoint": "random"}
_STUDENT = _TEACHER | {"student": "!include:demo/wavlm_causal.yaml", "student_checkpoint": "null"}
_DECODER = {"decoder": "!include:demo/wavenext.yaml"}
_CAUSAL = _DECODER | {"mixer": "!include:demo/focal_causal.yaml", "hidden_dims": "[24, 16, 16]"}
_SMALL = {
    "decoder": {"discriminator": "!include:demo/discriminator.yaml", "lr": 0.001},
    "quantizer": {"hidden_dims": "[24, 16, 16]", "lr": 0.005},
    "kmeans": {"codebook_size": 16, "grad_accumulation_factor": 2},
    "dequantizer": {
        "codebook_size": 16,
        "hidden_dim": 32,
        "num_layers": 2,
        "ffn_dim": 32,
        "lr": 0.005,
    },
    "wavenext": {
        **_TEACHER,
        **_DECODER,
        "discriminator": "!include:demo/discriminator.yaml",
        "segment_frames": 20,
        "lr": 0.001,
    },
    "embedding": {**_STUDENT, "layer_weights": "[1, 0, 0, 0]", "lr": 0.002},
    "encoder": {**_STUDENT, "layer_weights": "[0, 0.5, 0.8, 1.0]", "lr": 0.002},
    "causal_quantizer": {
        **_CAUSAL,
        "encoder": "!include:demo/wavlm_causal.yaml",
        "encoder_checkpoint": "random",
        "lr": 0.002,
    },
    "joint": {**_STUDENT, **_CAUSAL, "init_from": "null", "lr": 0.002},
}
_DECODES_NOTHING = ("kmeans", "embedding", "encoder")


def write_corpus(folder: Path, *, rates: tuple[int, ...] = (16000,)) -> None:
    """LibriTTS-shaped tree of harmonic tones, 1 to 1.5 s, of lengths that no factor divides.

    What is to be trained on has the ``rates`` (Hz) in turn, the rest is at 16 kHz.
    """
    source = random.Random(0)
    for split, number in {"train-clean-100": 6, "dev-clean": 3, "test-clean": 2}.items():
        for index in range(number):
            rate = rates[index % len(rates)] if split == "train-clean-100" else 16000
            time = np.arange((16000 + source.randrange(8000)) * rate // 16000) / rate
            pitch = source.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time))
            phase = 2 * np.pi * np.cumsum(pitch) / rate
            sig = sum(np.sin(k * phase) / k for k in range(1, 12)) * np.hanning(len(time)) * 0.2
            path = folder / split / f"{index}" / "1" / f"{split}_{index}.wav"
            path.parent.mkdir(parents=True)
            soundfile.write(path, sig, rate)


def options(stage: str, corpus: Path, output: Path, **overrides) -> list[str]:
    """Command line of a stage; ``overrides`` replace its small sizes."""
    values = {
        "data_folder": corpus,
        "output_folder": output,
        "dataset": "!include:dataset/libritts100.yaml",
        "encoder": "!include:encoder/logmel.yaml",
        "num_workers": 0,
        "batch_size": 2,
        "number_of_epochs": 1,
        "log_interval_steps": 1,
        "cost_steps": 0,
    }
    if stage not in _DECODES_NOTHING:
        values |= {"decoder": "!include:demo/decoder.yaml", "metrics": "[mel_distance]"}
    values |= _SMALL[stage]
    words = [f"--{key}={value}" for key, value in (values | overrides).items()]
    return [str(HPARAMS / _ALL[stage][1]), "--noprogressbar", "--device=cpu", *words]


def train(stage: str, corpus: Path, output: Path, **overrides) -> dict:
    """Run a stage to its end; content of its metrics.json."""
    return run_experiment(_ALL[stage][0], options(stage, corpus, output, **overrides))


def build(stage: str, corpus: Path, output: Path, **overrides) -> Experiment:
    """Make a stage's Brain and loaders, up to the first batch."""
    return build_experiment(_ALL[stage][0], options(stage, corpus, output, **overrides))


def steps_of(run: Path) -> list[dict]:
    """Read the logged steps of a run folder."""
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def start(brain: sb.Brain) -> None:
    """Do what the loop does before the first batch."""
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    brain.modules.train()


def fit_one(brain: sb.Brain, batch) -> None:
    """Train on one batch."""
    brain.step += 1
    brain.fit_batch(batch)
