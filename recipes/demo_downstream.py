"""All six downstream tasks in small, on synthetic twins of their corpora.

    make downstream

Speaks twins of LibriSpeech, IEMOCAP, VoiceBank and Libri2Mix with eSpeak NG, tokenises each once
with the demo's codec (`recipes.demo`, trained first where it is missing), trains every task with
its real script and YAML, models and epochs made small, and reports all that beside the paper's
numbers. What voices of a synthesiser can show is that everything works, not how good tokens are.
"""

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.files import read_json, write_json
from recipes.common.run_folder import git_state
from recipes.corpora import synthetic, twins
from recipes.demo import run_side_by_side, training_commands
from recipes.export import export

logger = logging.getLogger("demo_downstream")

CODEC_STEPS = {"decoder": 300, "quantizer": 300}
RECOGNIZER = {"unit": "char", "hidden_dim": 128, "lr": 0.003, "dropout": 0.2, "max_grad_norm": 1}
CLASSIFIER = {"hidden_dim": 64, "lr": 0.001, "dropout": 0.3, "max_grad_norm": 1}
CONFORMER = {"num_layers": 2, "dim": 128, "ffn_dim": 256, "lr": 0.002, "max_grad_norm": 1}
CONFORMER |= {"metrics": "[dnsmos, stoi]"}
LLAMA = {"num_layers": 3, "dim": 128, "num_heads": 4, "ffn_dim": 256, "lr": 0.002}
LLAMA |= {"max_grad_norm": 1, "metrics": "[sim]", "max_generated_s": 5}
COMMON = {"batch_size": 8, "cost_steps": 0, "log_interval_steps": 10, "device": "cpu"}


class Task(NamedTuple):
    """A task's script and YAML, the twin of its corpus, its tokens, and what makes it small."""

    script: str
    yaml: str
    corpus: str
    tokens: str  # two divisions of one corpus have shards of their own
    epochs: int
    small: Mapping[str, Any]


TASKS = {
    "asr": Task("train_asr", "asr", "librispeech460", "asr_and_tts", 48, RECOGNIZER),
    "tts": Task(
        "train_tts", "tts", "librispeech460", "asr_and_tts", 24, {**LLAMA, "paper_protocol": True}
    ),
    "speaker": Task("train_classifier", "speaker", "librispeech460", "speaker", 24, CLASSIFIER),
    "emotion": Task("train_classifier", "emotion", "iemocap", "emotion", 24, CLASSIFIER),
    "enhancement": Task(
        "train_separator", "enhancement", "voicebank_enhancement", "enhancement", 16, CONFORMER
    ),
    "separation": Task("train_separator", "separation", "libri2mix", "separation", 16, CONFORMER),
    "separation_features": Task(
        "train_separator",
        "separation",
        "libri2mix",
        "separation",
        16,
        {**CONFORMER, "read": "features"},
    ),
}
TWINS = {  # and their sizes
    "librispeech460": {"speakers": 10, "utterances": 10},
    "iemocap": {"utterances": 24},
    "voicebank_enhancement": {"speakers": 8, "utterances": 12},
    "libri2mix": {"speakers": 6, "utterances": 12},
}
SHOWN = ("asr_wer", "asr_cer", "si_error", "ser_error", "hyp_dnsmos_ovrl", "input_dnsmos_ovrl")
SHOWN += ("hyp_stoi", "input_stoi", "hyp_sim", "not_ended", "length_ratio")


def run(output: Path, *, codec: Path | None, tasks: list[str]) -> dict[str, Any]:
    """Run the demo; what is finished is not done again.

    Parameters
    ----------
    output : folder to write.
    codec : folder of an exported codec; None for the demo's.
    tasks : keys of `TASKS`.

    Returns
    -------
    Content of ``metrics.json``.

    Raises
    ------
    RuntimeError : if a task fails; the end of its log is printed.
    """
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    codec = codec or demo_codec(Path("results/demo"))
    logger.info("codec: %s", codec)
    for name in {TASKS[task].corpus for task in tasks}:
        logger.info("twin of %s: %s", name, output / "twins" / name)
        twins.generate(name, output / "twins" / name, **TWINS[name])
    speaker_model = save_speaker_model(output / "speaker_model")
    logger.info("tokenise and train: %s/NAME.log", output)
    commands = {task: command(task, output, codec, speaker_model) for task in tasks}
    while commands:
        pair = {name: commands.pop(name) for name in list(commands)[:2]}
        run_side_by_side(pair, logs=output)
        logger.info("finished: %s", ", ".join(pair))
    report = ["-m", "recipes.report", str(output), "-o", str(output / "report")]
    run_side_by_side({"report": report}, logs=output)
    metrics = {
        "scores": {task: scores_of(output / task) for task in tasks},
        "seconds": round(time.monotonic() - started, 1),
        **git_state(),
    }
    write_json(output / "metrics.json", metrics)
    return metrics


def demo_codec(folder: Path) -> Path:
    """Codec of ``make demo``, trained here if there is none."""
    codec = folder / "codec"
    if not (codec / "model.safetensors").is_file():
        logger.info("train the demo's codec first: %s", folder)
        synthetic.generate(folder / "corpus")
        run_side_by_side(training_commands(folder, folder / "corpus", CODEC_STEPS), logs=folder)
        export(folder / "decoder", folder / "quantizer", codec)
    return codec


def save_speaker_model(folder: Path) -> Path:
    """Write a small x-vector model with random weights, in the place of wavlm-base-sv.

    Its vectors differ from voice to voice, but nobody has taught it which differences matter.
    """
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector, set_seed

    if (folder / "model.safetensors").is_file():
        return folder
    set_seed(0)
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        tdnn_dim=(32, 32, 32, 32, 48),
        xvector_output_dim=32,
    )
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def command(task: str, output: Path, codec: Path, speaker_model: Path) -> list[str]:
    """Words after ``python`` of a task."""
    script, yaml, corpus, tokens, epochs, small = TASKS[task]
    options = {
        **COMMON,
        "data_folder": output / "twins" / corpus,
        "output_folder": output / task,
        "tokens_folder": output / "tokens" / tokens,
        "codec": "!include:codec/focalcodec.yaml",
        "codec_checkpoint": codec,
        "number_of_epochs": epochs,
        "valid_interval_epochs": max(1, epochs // 8),
        **small,
    }
    if yaml == "tts":
        options |= {"speaker_model": speaker_model}
        options |= {"score_models": f"{{speaker: {speaker_model}}}"}
    words = [f"--{key}={value}" for key, value in options.items()]
    return ["-m", f"recipes.{script}", f"recipes/hparams/{yaml}.yaml", "--noprogressbar", *words]


def scores_of(folder: Path) -> dict[str, dict[str, float]]:
    """Means of each evaluation of a task's run, by its folder's name."""
    found = {}
    for file in sorted(folder.glob("evaluation*/metrics.json")):
        scores = read_json(file)["scores"]
        found[file.parent.name] = {key: scores[key]["mean"] for key in SHOWN if key in scores}
    return found


def table(metrics: Mapping[str, Any]) -> str:
    """Lines to print at the end."""
    lines = []
    for task, evaluations in metrics["scores"].items():
        for name, scores in evaluations.items():
            shown = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
            lines.append(f"{task + name.removeprefix('evaluation'):22} {shown}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results/downstream"))
    parser.add_argument("--codec", type=Path, help="folder of an exported codec")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    metrics = run(arguments.output, codec=arguments.codec, tasks=arguments.tasks)
    print(table(metrics))
    print(f"\n{metrics['seconds']:.0f} s. Open {arguments.output / 'report' / 'index.html'} in a")
    print("browser: scores beside the paper's, audio, curves.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
