"""Runs of the downstream tasks from their real YAMLs at toy size, on corpora of levels."""

import random
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.experiment import Experiment
from recipes.downstream.brain import TokenBrain
from recipes.downstream.experiment import Assemble, build_task, run_task
from recipes.train_asr import RecognitionBrain
from recipes.train_asr import assemble as assemble_asr
from recipes.train_classifier import ClassifierBrain
from recipes.train_classifier import assemble as assemble_classifier
from recipes.train_separator import SeparatorBrain
from recipes.train_separator import assemble as assemble_separator
from recipes.train_tts import TTSBrain
from recipes.train_tts import assemble as assemble_tts
from tests.level_codec import write_block, write_toks

HPARAMS = Path(__file__).resolve().parents[1] / "recipes" / "hparams"
SUBSETS = {"train": "train", "valid": "dev", "test": "test"}


class Toy(NamedTuple):
    """A task's Brain, what assembles it, its YAML and what makes it small."""

    brain: type[TokenBrain]
    assemble: Assemble
    yaml: str
    small: dict[str, Any]


_RECURRENT = {"hidden_dim": 24, "num_layers": 1, "lr": 0.01}
_SPLITS = "{train_splits: [train], valid_splits: [dev], test_splits: [test]}"
_TREE = {"dataset": "!include:../../hparams/dataset/librispeech460.yaml"}
_SCORED = {"metrics": "[mel_distance]", "num_audio_samples": 1}
_SEPARATOR = {**_SCORED, "num_layers": 1, "dim": 24, "num_heads": 2, "ffn_dim": 32, "lr": 0.01}
_SEPARATOR |= {"kernel_size": 3}
TASKS = {
    "asr": Toy(RecognitionBrain, assemble_asr, "asr", {**_RECURRENT, "unit": "char"}),
    "speaker": Toy(ClassifierBrain, assemble_classifier, "speaker", {**_RECURRENT, **_TREE}),
    "enhancement": Toy(SeparatorBrain, assemble_separator, "enhancement", _SEPARATOR),
    "separation": Toy(SeparatorBrain, assemble_separator, "separation", _SEPARATOR),
    "tts": Toy(
        TTSBrain,
        assemble_tts,
        "tts",
        {
            "metrics": "[]",
            "num_audio_samples": 2,
            "num_layers": 2,
            "dim": 32,
            "num_heads": 2,
            "ffn_dim": 64,
            "max_positions": 96,
            "max_generated_s": 1.2,
            "lr": 0.01,
        },
    ),
}
_IN_SPLITS = ("asr", "speaker", "tts")
_COMMON = {
    "batch_size": 4,
    "number_of_epochs": 1,
    "log_interval_steps": 1,
    "cost_steps": 0,
    "min_duration_s": 0.02,
    "dropout": 0.0,
    "max_grad_norm": 1.0,
}


def options(task: str, corpus: Path | None, output: Path, **overrides: Any) -> list[str]:
    """Command line of a task; ``overrides`` replace its small sizes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    codec = write_block(output.parent, num_codebooks=overrides.pop("num_codebooks", 1))
    values = {
        "data_folder": "null" if corpus is None else corpus,
        "output_folder": output,
        "codec": f"!include:{codec}",
        **_COMMON,
        **({"dataset_options": _SPLITS} if task in _IN_SPLITS else {}),
        **TASKS[task].small,
    }
    words = [f"--{key}={value}" for key, value in (values | overrides).items()]
    main = HPARAMS / f"{TASKS[task].yaml}.yaml"
    return [str(main), "--noprogressbar", "--device=cpu", *words]


def run(task: str, corpus: Path | None, output: Path, **overrides: Any) -> dict[str, Any]:
    """Run a task to its end; content of its metrics.json."""
    toy = TASKS[task]
    return run_task(toy.brain, toy.assemble, options(task, corpus, output, **overrides))


def build(task: str, corpus: Path | None, output: Path, **overrides: Any) -> Experiment:
    """Make a task's Brain and loaders, up to the first batch."""
    toy = TASKS[task]
    argv = options(task, corpus, output, **overrides)
    return build_task(toy.brain, argv, assemble=toy.assemble)


def write_spoken(folder: Path, *, number: int = 8) -> Path:
    """Speech in LibriSpeech's layout: each letter is three blocks of its level, parted by 0.

    All subsets hold the same utterances, so that a model which has learnt its training set makes no
    error in the test. Speakers differ by the level of the first ten blocks.
    """
    source = random.Random(0)
    texts = [
        "".join(source.choice("abcde") for _ in range(source.randint(2, 5))) for _ in range(number)
    ]
    for split in SUBSETS.values():
        for index, text in enumerate(texts):
            speaker = str(1 + index % 2)
            toks = [12 + index % 2] * 10
            for letter in text:
                toks += [1 + "abcde".index(letter)] * 3 + [0]
            name = f"{speaker}-1-{index:04d}"
            path = write_toks(folder / split / speaker / "1" / f"{name}.wav", toks)
            path.with_suffix(".txt").write_text(text)
    return folder


def write_noisy(folder: Path, *, number: int = 8) -> Path:
    """VoiceBank's layout: the noise raises every level by eight."""
    for subset, speakers in (
        ("trainset_28spk", ("p1", "p226", "p2", "p287")),
        ("testset", ("q1",)),
    ):
        for index in range(number):
            speaker = speakers[index % len(speakers)]
            source = random.Random(index)
            clean = [source.randrange(8) for _ in range(20 + index)]
            name = f"{speaker}_{index:03d}.wav"
            write_toks(folder / f"clean_{subset}_wav" / name, clean)
            write_toks(folder / f"noisy_{subset}_wav" / name, [tok + 8 for tok in clean])
    return folder


def write_mixtures(folder: Path, *, number: int = 8) -> Path:
    """Libri2Mix' layout: a mixture tells both voices, the higher one first or second."""
    for subset in ("train-100", "dev", "test"):
        source = random.Random(0)
        root = folder / "Libri2Mix" / "wav16k" / "min" / subset
        for index in range(number):
            high = [source.randrange(4) for _ in range(10 + index)]
            low = [source.randrange(4) for _ in high]
            voices = [[8 + tok for tok in high], low]
            name = f"{index}-1-0000_{index}-2-0000.wav"
            for voice, toks in zip(("s1", "s2"), voices[:: source.choice((1, -1))], strict=True):
                write_toks(root / voice / name, toks)
            mixed = [4 * a + b for a, b in zip(high, low, strict=True)]
            write_toks(root / "mix_clean" / name, mixed)
    return folder
