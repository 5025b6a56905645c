"""The whole project in a few minutes on two CPU cores, on speech that it synthesises itself.

    make demo

Makes a LibriTTS-shaped corpus with espeak-ng, trains both stages with the real scripts and YAMLs
(small blocks, log-mel features), side by side as they would run on one GPU, exports one codec,
encodes and decodes an utterance of a speaker that it never heard, and writes ``results/demo``. The
codec is far too small and too briefly trained to sound good; everything it goes through is what a
real one goes through.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import soundfile
import torch

from focalcodec import FocalCodec
from recipes.common import dataio
from recipes.common.code_usage import CodeUsage
from recipes.common.files import write_json
from recipes.common.plots import plot_losses, plot_mels, read_steps
from recipes.common.run_folder import git_state
from recipes.corpora import synthetic
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


def run(output: Path, *, steps: dict[str, int], utterances: int) -> dict[str, Any]:
    """Run the demo.

    Parameters
    ----------
    output : folder to write; stages that are finished there are not trained again.
    steps : optimizer steps of each stage.
    utterances : training utterances per speaker.

    Returns
    -------
    Content of ``metrics.json``.
    """
    started = time.monotonic()
    corpus = output / "corpus"
    logger.info("1/4 synthesise a corpus: %s", corpus)
    synthetic.generate(corpus, utterances=utterances)
    logger.info("2/4 train both stages side by side: %s", output)
    train(output, corpus, steps)
    logger.info("3/4 export: %s", output / "codec")
    export(output / "decoder", output / "quantizer", output / "codec")
    logger.info("4/4 encode and decode a held-out speaker")
    metrics = {
        **use(output, corpus),
        "losses": {stage: first_and_last(output / stage, TERMS[stage]) for stage in STAGES},
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        **git_state(),
    }
    write_json(output / "metrics.json", metrics)
    plot_losses({stage: output / stage for stage in STAGES}, TERMS, output / "losses.png")
    return metrics


def train(output: Path, corpus: Path, steps: dict[str, int]) -> None:
    """Run both training scripts at once, one core each; their consoles go to ``STAGE.log``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = {}
    for stage, command in STAGES.items():
        options = [
            f"--data_folder={corpus}",
            f"--output_folder={output / stage}",
            f"--optimizer_step_limit={steps[stage]}",
        ]
        words = [sys.executable, *command, *COMMON, *options]
        with open(output / f"{stage}.log", "w", encoding="utf-8") as log:
            processes[stage] = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
    failed = {stage: code for stage, process in processes.items() if (code := process.wait()) != 0}
    for stage, code in failed.items():
        text = (output / f"{stage}.log").read_text(encoding="utf-8")
        logger.error("stage %s ended with status %d:\n%s", stage, code, text[-3000:])
    if failed:
        raise RuntimeError(f"training failed: {', '.join(failed)}; see {output}/STAGE.log")


def use(output: Path, corpus: Path) -> dict[str, Any]:
    """Encode and decode held-out speech with the exported folder alone; write the audio."""
    codec = FocalCodec.from_pretrained(output / "codec")
    manifest = json.loads((output / "quantizer" / "test.json").read_text(encoding="utf-8"))
    usage, seconds, elapsed = CodeUsage(codec.codebook_size), 0.0, {"encode": 0.0, "decode": 0.0}
    signals: dict[str, torch.Tensor] = {}
    shown = sorted(manifest, key=lambda name: manifest[name]["duration"])[len(manifest) // 2]
    for name, entry in manifest.items():
        path = entry["wav"].format(data_root=corpus)
        ref_sig = dataio.load_sig(path, sample_rate=codec.sample_rate)
        with torch.inference_mode():
            start = time.perf_counter()
            toks = codec.sig_to_toks(ref_sig[None])
            middle = time.perf_counter()
            hyp_sig = codec.toks_to_sig(toks, num_samples=len(ref_sig))[0]
            end = time.perf_counter()
            if name == shown:
                rec_sig = codec.feats_to_sig(codec.sig_to_feats(ref_sig[None]))[0, : len(ref_sig)]
                signals = {"reference": ref_sig, "features": rec_sig, "tokens": hyp_sig}
        usage.append(toks)
        seconds += len(ref_sig) / codec.sample_rate
        elapsed["encode"] += middle - start
        elapsed["decode"] += end - middle
    for name, sig in signals.items():
        soundfile.write(output / f"{name}.wav", sig.numpy(), codec.sample_rate)
    plot_mels(signals, output / "mels.png", sample_rate=codec.sample_rate)
    test = json.loads((output / "quantizer" / "metrics.json").read_text(encoding="utf-8"))["test"]
    return {
        "test_seconds": round(seconds, 2),
        "feature_mse": test["reconstruction"],
        "feature_variance": test["feature_variance"],
        **usage.summarize(),
        "token_rate": codec.token_rate,
        "bitrate": codec.bitrate,
        "real_time_factor": {name: value / seconds for name, value in elapsed.items()},
    }


def first_and_last(run_folder: Path, terms: list[str]) -> dict[str, dict[str, float]]:
    """First and last logged value of each term."""
    steps = read_steps(run_folder)
    return {term: {"first": steps[0][term], "last": steps[-1][term]} for term in terms}


def table(metrics: dict[str, Any]) -> str:
    """Lines to print at the end."""
    lines = [f"{'loss term':34}{'first':>12}{'last':>12}"]
    for stage, terms in metrics["losses"].items():
        for term, value in terms.items():
            lines.append(f"{stage + ' ' + term:34}{value['first']:12.4f}{value['last']:12.4f}")
    factor = metrics["real_time_factor"]
    lines += [
        "",
        f"feature MSE {metrics['feature_mse']:.4f}, variance {metrics['feature_variance']:.4f}",
        f"codes used {metrics['used_codes']:.0f} ({100 * metrics['code_usage']:.1f} %), "
        f"normalised entropy {metrics['normalised_entropy']:.3f}",
        f"{metrics['bitrate']:g} bit/s; real-time factor encode {factor['encode']:.4f}, "
        f"decode {factor['decode']:.4f}",
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
    print(f"\n{metrics['seconds']:.0f} s. Hear reference.wav, features.wav, tokens.wav; look at")
    print(f"losses.png and mels.png; use the codec folder codec: all in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
