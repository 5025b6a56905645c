"""The whole project in a few minutes on two CPU cores, on speech that it synthesises itself.

    make demo

Makes a LibriTTS-shaped corpus with espeak-ng, trains both stages with the real scripts and YAMLs
(small blocks, log-mel features), side by side as they would run on one GPU, exports one codec,
evaluates it on speakers that it never heard, on noisy speech, on voice conversion and chunk by
chunk, and makes the report of all that. The codec is far too small and too briefly trained to sound
good; everything it goes through is what a real one goes through.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.codecs.focalcodec import FocalCodec
from recipes.common.files import read_json, write_json
from recipes.common.fingerprint import weights_hash
from recipes.common.plots import plot_losses, read_steps
from recipes.common.run_folder import git_state, read_description
from recipes.corpora import synthetic, twins
from recipes.export import export

logger = logging.getLogger("demo")

STAGES = {
    "decoder": [
        "train_decoder.py",
        "hparams/vocos.yaml",
        "--decoder=!include:demo/decoder.yaml",
        "--discriminator=!include:demo/discriminator.yaml",
        "--lr=0.001",
    ],
    "quantizer": [
        "train_quantizer.py",
        "hparams/bsq.yaml",
        "--hidden_dims=[128, 96, 64]",
        "--lr=0.001",
    ],
}
COMMON = [
    "--dataset=!include:dataset/synthetic.yaml",
    "--encoder=!include:encoder/logmel.yaml",
    "--batch_size=8",
    "--num_workers=0",
    "--number_of_epochs=1000",
    "--valid_interval_epochs=10",
    "--log_interval_steps=5",
    "--metrics=[mel_distance]",
]
TERMS = {
    "decoder": ["mel", "feature_matching", "adversarial", "discriminator"],
    "quantizer": ["reconstruction", "entropy", "sample_entropy", "codebook_entropy"],
}
# Name -> task, test set's block, and the twin to make for it; None: speakers of the demo's corpus.
EVALUATIONS = {
    "resynthesis": ("resynthesis", "synthetic", None),
    "noisy": ("resynthesis", "voicebank", "voicebank"),
    "voice_conversion": ("voice_conversion", "vctk_pairs", "vctk"),
    "streaming": ("streaming", "synthetic", None),
    "speed": ("speed", None, None),
}


def run(output: Path, *, steps: dict[str, int], utterances: int) -> dict[str, Any]:
    """Run the demo.

    Parameters
    ----------
    output : folder to write; what is finished there is not done again.
    steps : optimizer steps of each stage.
    utterances : training utterances per speaker.

    Returns
    -------
    Content of ``metrics.json``.
    """
    started = time.monotonic()
    corpus = output / "corpus"
    logger.info("1/5 synthesise a corpus: %s", corpus)
    synthetic.generate(corpus, utterances=utterances)
    logger.info("2/5 train both stages side by side: %s", output)
    run_side_by_side(training_commands(output, corpus, steps), logs=output)
    logger.info("3/5 export: %s", output / "codec")
    export(output / "decoder", output / "quantizer", output / "codec")
    logger.info("4/5 evaluate on test sets that it never heard: %s", output / "evaluation")
    evaluate(output, corpus)
    logger.info("5/5 report: %s", output / "report")
    folders = [str(output / name) for name in ("evaluation", "decoder", "quantizer")]
    report = ["-m", "recipes.report", *folders, "-o", str(output / "report")]
    run_side_by_side({"report": report}, logs=output)
    metrics = {
        **results(output),
        "losses": {stage: first_and_last(output / stage, TERMS[stage]) for stage in STAGES},
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        **git_state(),
    }
    write_json(output / "metrics.json", metrics)
    plot_losses({stage: output / stage for stage in STAGES}, TERMS, output / "losses.png")
    return metrics


def training_commands(output: Path, corpus: Path, steps: dict[str, int]) -> dict[str, list[str]]:
    """Words after ``python`` of each stage."""
    return {
        stage: [
            *command,
            *COMMON,
            f"--data_folder={corpus}",
            f"--output_folder={output / stage}",
            f"--optimizer_step_limit={steps[stage]}",
        ]
        for stage, command in STAGES.items()
    }


def evaluate(output: Path, corpus: Path) -> None:
    """Run every evaluation, two at a time; those of a codec that has changed since begin anew."""
    codec = weights_hash(FocalCodec(checkpoint=output / "codec"))
    for folder in (output / "evaluation").glob("*/"):
        description = read_description(folder)
        if description is not None and description["codec"] != codec:
            shutil.rmtree(folder)
    commands = {}
    for name, (task, dataset, twin) in EVALUATIONS.items():
        words = [
            "-m",
            "recipes.evaluate",
            task,
            "--codec=!include:codec/focalcodec.yaml",
            f"--codec_checkpoint={output / 'codec'}",
            f"--output_folder={output / 'evaluation' / name}",
            "--offline",
            "--device=cpu",
        ]
        if dataset is not None:
            data = corpus if twin is None else output / "twins" / twin
            if twin is not None:
                twins.generate(twin, data)
            words += [f"--data_folder={data}", f"--dataset=!include:dataset/{dataset}.yaml"]
            words.append("--max_test_utterances=8")
        commands[name] = words
    names = list(commands)
    for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
        run_side_by_side({name: commands[name] for name in pair}, logs=output / "evaluation")


def run_side_by_side(commands: Mapping[str, Sequence[str]], *, logs: Path) -> None:
    """Run Python commands at once, one core each; their consoles go to ``NAME.log``.

    Raises
    ------
    RuntimeError : if one of them fails; the end of its log is printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    logs.mkdir(parents=True, exist_ok=True)
    processes = {}
    for name, words in commands.items():
        with open(logs / f"{name}.log", "w", encoding="utf-8") as log:
            processes[name] = subprocess.Popen(
                [sys.executable, *words], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
    failed = {name: code for name, process in processes.items() if (code := process.wait()) != 0}
    for name, code in failed.items():
        text = (logs / f"{name}.log").read_text(encoding="utf-8")
        logger.error("%s ended with status %d:\n%s", name, code, text[-3000:])
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}; see {logs}/NAME.log")


def results(output: Path) -> dict[str, Any]:
    """Facts about the codec, from the files of its runs."""
    test = read_json(output / "quantizer" / "metrics.json")["test"]
    found = {name: read_json(output / "evaluation" / name / "metrics.json") for name in EVALUATIONS}
    codec = found["resynthesis"]["codec"]
    speed = found["speed"]["scores"]
    return {
        "feature_mse": test["reconstruction"],
        "feature_variance": test["feature_variance"],
        **found["resynthesis"]["code_usage"],
        "token_rate": codec["token_rate"],
        "bitrate": codec["bitrate"],
        "real_time_factor": {step: speed[f"rtf_{step}"]["mean"] for step in ("encode", "decode")},
        "mel_distance": {
            name: result["scores"]["hyp_mel_distance"]["mean"]
            for name, result in found.items()
            if "hyp_mel_distance" in result["scores"]
        },
    }


def first_and_last(run_folder: Path, terms: list[str]) -> dict[str, dict[str, float]]:
    """First and last logged value of each term."""
    steps = read_steps(run_folder)
    return {term: {"first": steps[0][term], "last": steps[-1][term]} for term in terms}


def loss_lines(losses: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Table of the first and last value of each stage's terms."""
    lines = [f"{'loss term':34}{'first':>12}{'last':>12}"]
    for stage, terms in losses.items():
        for term, value in terms.items():
            lines.append(f"{stage + ' ' + term:34}{value['first']:12.4f}{value['last']:12.4f}")
    return lines


def table(metrics: dict[str, Any]) -> str:
    """Lines to print at the end."""
    lines = loss_lines(metrics["losses"])
    factor = metrics["real_time_factor"]
    distances = ", ".join(f"{name} {value:.3f}" for name, value in metrics["mel_distance"].items())
    lines += [
        "",
        f"feature MSE {metrics['feature_mse']:.4f}, variance {metrics['feature_variance']:.4f}",
        f"codes used {metrics['used_codes']:.0f} ({100 * metrics['code_usage']:.1f} %), "
        f"normalised entropy {metrics['normalised_entropy']:.3f}",
        f"{metrics['bitrate']:g} bit/s; {factor['encode']:.0f} and {factor['decode']:.0f} times "
        "faster than real time at encoding and decoding",
        f"log-mel distance: {distances}",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results/demo"))
    parser.add_argument("--decoder-steps", type=int, default=300)
    parser.add_argument("--quantizer-steps", type=int, default=300)
    parser.add_argument(
        "--utterances", type=int, default=20, help="training utterances per speaker"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    arguments.output.mkdir(parents=True, exist_ok=True)
    steps = {"decoder": arguments.decoder_steps, "quantizer": arguments.quantizer_steps}
    metrics = run(arguments.output, steps=steps, utterances=arguments.utterances)
    print(table(metrics))
    print(f"\n{metrics['seconds']:.0f} s. Open {arguments.output / 'report' / 'index.html'} in a")
    print(f"browser: scores, audio, spectrograms. The codec is {arguments.output / 'codec'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
