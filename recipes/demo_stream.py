"""The streaming codec in a few minutes on two CPU cores, on speech that is synthesised here.

    make demo-stream

Makes a LibriTTS-shaped corpus, trains the five stages of FocalCodec-Stream (arXiv:2509.16195) in
small by the pipeline's own Snakefile, exports and evaluates a causal codec, and sends a file that
it never heard through its live stream, 80 ms at a time: the samples must be those that the whole
file gives. The teacher is a small WavLM with random weights, so nothing is downloaded and nothing
is learnt from pretraining; what such a codec says is no speech yet.
"""

import argparse
import importlib.util
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import soundfile

from recipes.codecs.focalcodec import FocalCodec
from recipes.codecs.live import Live
from recipes.common.dataio import load_sig
from recipes.common.files import read_json, write_json
from recipes.common.run_folder import git_state
from recipes.corpora import synthetic
from recipes.demo import first_and_last, loss_lines

logger = logging.getLogger("demo_stream")

TERMS = {
    "decoder": ["mel", "feature_matching", "adversarial", "discriminator"],
    "embedding": ["distillation"],
    "encoder": ["distillation", "layer_3"],
    "quantizer": ["reconstruction", "entropy"],
    "joint": ["reconstruction", "entropy"],
}
TOLERANCE = 1e-5  # of samples in [-1, 1]: float32 rounds chunks otherwise than whole files


def run(output: Path, *, utterances: int) -> dict[str, Any]:
    """Run the demo.

    Parameters
    ----------
    output : folder to write; what is finished there is not done again.
    utterances : training utterances per speaker.

    Returns
    -------
    Content of ``metrics.json``.

    Raises
    ------
    RuntimeError : if a job fails, or the stream gives other samples than the whole file.
    """
    started = time.monotonic()
    corpus = output / "corpus"
    logger.info("1/3 synthesise a corpus: %s", corpus)
    synthetic.generate(corpus, utterances=utterances)
    logger.info("2/3 five stages, export, evaluation: %s", output / "pipeline.log")
    run_pipeline(output, corpus)
    logger.info("3/3 stream a file: %s", output / "streamed.wav")
    source = min((corpus / "test-clean").rglob("*.wav"))
    difference = stream_file(source, output / "streamed.wav", codec=output / "codec")
    scores = {
        task: read_json(output / "evaluation" / task / "metrics.json")["scores"]
        for task in ("resynthesis", "streaming")
    }
    metrics = {
        "losses": {stage: first_and_last(output / stage, TERMS[stage]) for stage in TERMS},
        "mel_distance": {task: score["hyp_mel_distance"]["mean"] for task, score in scores.items()},
        "largest_difference": difference,
        "seconds": round(time.monotonic() - started, 1),
        **git_state(),
    }
    write_json(output / "metrics.json", metrics)
    return metrics


def run_pipeline(output: Path, corpus: Path) -> None:
    """Run the pipeline's demo configuration, two jobs at a time.

    Raises
    ------
    RuntimeError : if Snakemake is not installed, or a job fails; the end of the log is printed.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise RuntimeError(
            'Snakemake is not installed; it needs Python 3.11 or newer and pip install ".[sweep]"'
        )
    words = ["-s", "recipes/pipeline/Snakefile", "--configfile", "recipes/pipeline/demo.yaml"]
    words += ["--cores", "2", "--config", f"data_folder={corpus}", f"output_folder={output}"]
    bin_folder = str(Path(sys.executable).parent)  # of the python that the jobs call
    path = os.pathsep.join([bin_folder, os.environ.get("PATH", "")])
    with open(output / "pipeline.log", "w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path},
        )
    if done.returncode != 0:
        text = (output / "pipeline.log").read_text(encoding="utf-8")
        raise RuntimeError(f"the pipeline ended with {done.returncode}:\n{text[-3000:]}")


def stream_file(source: Path, target: Path, *, codec: Path, tolerance: float = TOLERANCE) -> float:
    """Send a file through a codec's live stream, chunk by chunk, and write what comes out.

    Parameters
    ----------
    source : audio file.
    target : wav file to write, 32-bit floats.
    codec : folder of a causal codec.
    tolerance : of samples, and of latents: one so near to 0 may become either bit, as chunks are
        not rounded like the whole.

    Returns
    -------
    Largest difference between a streamed sample and that of the whole file, decoded at once.

    Raises
    ------
    RuntimeError : if the stream gives another token, or samples differ by more than ``tolerance``.
    """
    adapter = FocalCodec(checkpoint=codec)
    sig = load_sig(source, sample_rate=adapter.sample_rate)[None]
    streamed = Live(adapter, chunk_size=adapter.model.chunk_size).resynthesize(sig)
    lats = adapter.model.sig_to_lats(sig)
    other_bits = adapter.model.toks_to_codes(streamed.toks[..., 0]).sign() != lats.sign()
    rate = adapter.sample_rate_output
    soundfile.write(target, streamed.sig[0].numpy(), rate, subtype="FLOAT")
    written = load_sig(target, sample_rate=rate)[None]
    whole = adapter.toks_to_sig(streamed.toks, num_samples=written.shape[1])
    difference = float((written - whole).abs().max())
    if bool((other_bits & (lats.abs() > tolerance)).any()) or difference > tolerance:
        raise RuntimeError(
            f"{source}: the stream gives {int(other_bits.sum())} bits and samples by up to "
            f"{difference:g} other than the whole file at once"
        )
    return difference


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results/demo_stream"))
    parser.add_argument(
        "--utterances", type=int, default=10, help="training utterances per speaker"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    arguments.output.mkdir(parents=True, exist_ok=True)
    metrics = run(arguments.output, utterances=arguments.utterances)
    distances = ", ".join(f"{name} {value:.3f}" for name, value in metrics["mel_distance"].items())
    print("\n".join([*loss_lines(metrics["losses"]), "", f"log-mel distance: {distances}"]))
    print(f"\n{metrics['seconds']:.0f} s. Out of the live stream: {arguments.output}/streamed.wav;")
    print(f"the whole file at once differs by {metrics['largest_difference']:.1e} at most.")
    print(f"The codec is {arguments.output / 'codec'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
