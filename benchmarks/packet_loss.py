"""Lost packets between two processes: what a listener gets.

    python -m benchmarks.packet_loss --audio /data/speech --checkpoint codec --loss 0 0.01 0.05 0.2

For each share of lost packets a sender and a receiver run as processes of their own, ``python -m
focalcodec stream``, over TCP on this machine: the sender loses packets on purpose, and nothing else
is lost. Utterances go one after the other in one stream. STOI against the original and DNSMOS are
means over the utterances; what the receiver counted stands beside them.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import soundfile
import torch
from torch import Tensor

from benchmarks.measuring import machine
from focalcodec.resampling import resample
from recipes.common.dnsmos import dnsmos
from recipes.common.reference_scores import stoi

SAMPLE_RATE = 16000  # Hz, of the scores
PATIENCE_S = 60.0  # for the receiver to listen


def stream(*words: str | Path | float) -> list[str]:
    """Command line of one process."""
    return [sys.executable, "-m", "focalcodec", "stream", *map(str, words)]


def transmit(
    source: Path, target: Path, *, checkpoint: str, loss: float, conceal: str, seed: int
) -> str:
    """Send a file from one process to another one; what the receiver says of the packets.

    Raises
    ------
    RuntimeError : if one of them fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    codec = ("--checkpoint", checkpoint)
    receiver = subprocess.Popen(
        stream(address, target, *codec, "--conceal", conceal, "--max-delay", 0, "--overwrite"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _send(stream(source, address, *codec, "--loss", loss, "--seed", seed, "--quiet"))
        said, _ = receiver.communicate(timeout=PATIENCE_S)
    finally:
        receiver.kill()
    if receiver.returncode != 0:
        raise RuntimeError(f"the receiver ended with {receiver.returncode}")
    return said


def _send(command: list[str]) -> None:
    """Run the sender, again and again as long as nobody listens yet."""
    end = time.monotonic() + PATIENCE_S
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
        if "refused" not in done.stderr or time.monotonic() > end:
            raise RuntimeError(f"the sender failed: {done.stderr}")


def scores(sig: Tensor, utterances: Sequence[Tensor]) -> tuple[float, float, float]:
    """Means of STOI, DNSMOS OVRL and P.808 over the utterances that follow each other in (T,)."""
    rows, place = [], 0
    for ref in utterances:
        hyp = sig[place : place + ref.shape[0]]
        place += ref.shape[0]
        mos = dnsmos(hyp, sample_rate=SAMPLE_RATE)
        rows.append((stoi(ref, hyp, sample_rate=SAMPLE_RATE), mos.ovrl, mos.p808))
    return tuple(statistics.fmean(column) for column in zip(*rows, strict=True))


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="folder of mono 16 kHz speech")
    parser.add_argument("--checkpoint", required=True, help="causal codec")
    parser.add_argument("--loss", type=float, nargs="+", default=[0, 0.01, 0.05, 0.2])
    parser.add_argument("--conceal", nargs="+", default=["repeat"], help="repeat, zeros or both")
    parser.add_argument("--utterances", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the losses")
    arguments = parser.parse_args(argv)
    files = sorted(path for path in arguments.audio.rglob("*") if path.suffix in (".flac", ".wav"))
    files = files[:: max(1, len(files) // arguments.utterances)][: arguments.utterances]
    if not files:
        parser.error(f"{arguments.audio} holds no .flac or .wav file")
    utterances = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in files]
    print(f"{machine('cpu')}, {len(files)} utterances")
    print(f"{'conceal':10}{'loss':>6}{'STOI':>8}{'DNSMOS':>8}{'P.808':>8}  counted")
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "speech.wav"), Path(folder, "decoded.wav")
        soundfile.write(source, torch.cat(utterances).numpy(), SAMPLE_RATE, "FLOAT")
        for conceal in arguments.conceal:
            for loss in arguments.loss:
                how = {"loss": loss, "conceal": conceal, "seed": arguments.seed}
                said = transmit(source, target, checkpoint=arguments.checkpoint, **how)
                sig, rate = soundfile.read(target, dtype="float32")
                sig = resample(torch.from_numpy(sig), sample_rate=rate, new_sample_rate=SAMPLE_RATE)
                means = "".join(f"{mean:8.3f}" for mean in scores(sig, utterances))
                print(f"{conceal:10}{loss:6.0%}{means}  {said.splitlines()[-1]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
