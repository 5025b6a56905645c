"""Tokenising a corpus: speed of one and of two workers, size of the shards, kills.

    python -m benchmarks.tokenize --audio /data/speech --checkpoint results/real/codec --kills 10

One and two workers run ``recipes.tokenize`` in turns, each into a new folder. Speed is that between
the first and the last shard, so that the start of processes, which is all that a small corpus
shows, does not count.
Sizes are those of the tokens' column alone. A killed run has its whole process group killed at a
random time, is started again until it ends, and must hold the same bytes as the others.
"""

import argparse
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.measuring import machine
from recipes.common.shards import Shards, open_shards

ROOT = Path(__file__).resolve().parents[1]


def command(arguments: argparse.Namespace, folder: Path, *, workers: int) -> list[str]:
    """Command line of one run."""
    return [
        sys.executable,
        *("-m", "recipes.tokenize", str(folder)),
        f"--data_folder={arguments.audio.resolve()}",
        "--dataset=!include:dataset/folder.yaml",
        "--codec=!include:codec/focalcodec.yaml",
        f"--codec_checkpoint={arguments.checkpoint}",
        f"--shard_minutes={arguments.shard_minutes}",
        f"--batch_seconds={arguments.batch_seconds}",
        f"--workers={workers}",
        f"--device={arguments.device}",
    ]


def start(words: list[str]) -> subprocess.Popen:
    """Start a run with a process group and one thread of its own."""
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, *, timeout: float | None = None) -> None:
    """Wait for a run.

    Raises
    ------
    subprocess.TimeoutExpired : if it takes more than ``timeout`` seconds.
    RuntimeError : if it does not end well; with what it printed.
    """
    _, printed = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise RuntimeError(f"exit status {process.returncode}:\n{printed}")


def pace(folder: Path) -> float:
    """Seconds of audio per second between the first and the last shard of a run.

    Raises
    ------
    ValueError : if there is no second shard.
    """
    first, *others = sorted(folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    if not others:
        raise ValueError(f"{first.name} is the only shard; lower --shard-minutes")
    columns = [pq.read_table(path, columns=["duration"])["duration"] for path in others]
    seconds = sum(sum(column.to_pylist()) for column in columns)
    return seconds / (others[-1].stat().st_mtime - first.stat().st_mtime)


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of the visible files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def kill_until_done(
    folder: Path, words: list[str], *, kills: int, within: float, source: random.Random
) -> int:
    """Start a run again and again, killed at random times, then once to its end; kills delivered.

    One that has ended before its kill begins anew, so that later kills have something to interrupt.

    Parameters
    ----------
    folder : of the shards.
    words : of the command.
    kills : to be delivered.
    within : seconds of a start in which a kill may come.
    source : of the times.

    Raises
    ------
    RuntimeError : if a run does not end well.
    """
    delivered = 0
    for _ in range(kills):
        process = start(words)
        try:
            finish(process, timeout=source.uniform(0.2, 1.0) * within)
            shutil.rmtree(folder)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            delivered += 1
    finish(start(words))
    return delivered


def token_bits(shards: Shards) -> tuple[int, float]:
    """Tokens of all subsets, and bits that one takes in its shards."""
    tokens = num_bytes = 0
    for path in shards.folder.glob("*.parquet"):
        group = pq.read_metadata(path).row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
        column = next(one for one in columns if one.path_in_schema.startswith("toks."))
        tokens += column.num_values
        num_bytes += column.total_compressed_size
    return tokens, 8 * num_bytes / tokens


def print_sizes(shards: Shards) -> None:
    """Compare the stored tokens with 16 bits each and with as many as they need."""
    tokens, stored = token_bits(shards)
    needed = math.log2(shards.description["codebook_size"])
    print(
        f"{tokens} tokens at {stored:.2f} bits: {stored / 16:.3f} of 16-bit storage, "
        f"{stored / needed:.3f} of {needed:g} packed bits"
    )


def print_speeds(arguments: argparse.Namespace, folder: Path) -> dict[str, bytes]:
    """Run one and two workers in turns; the shards, which must all be equal.

    Raises
    ------
    RuntimeError : if two runs differ.
    """
    paces: dict[int, list[float]] = {1: [], 2: []}
    wanted: dict[str, bytes] = {}
    for repeat in range(arguments.repeats):
        for workers, found in paces.items():
            place = folder / f"{workers}-{repeat}"
            finish(start(command(arguments, place, workers=workers)))
            found.append(pace(place))
            wanted = wanted or content(place)
            if content(place) != wanted:
                raise RuntimeError(f"{place} differs from the first run")
    one, two = (statistics.median(found) for found in paces.values())
    print(f"hours of audio per hour: one worker {one:.1f}, two {two:.1f}: {two / one:.2f} x")
    return wanted


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="folder of audio files")
    parser.add_argument("--checkpoint", required=True, help="folder of a codec, or hub id")
    parser.add_argument("--shard-minutes", type=float, default=4.0)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="tokenize-"))
    try:
        print(f"{machine(arguments.device)}, one thread a worker")
        began = time.monotonic()
        wanted = print_speeds(arguments, folder)
        within = (time.monotonic() - began) / (2 * arguments.repeats)
        print_sizes(open_shards(folder / "1-0"))
        killed = folder / "killed"
        delivered = kill_until_done(
            killed,
            command(arguments, killed, workers=2),
            kills=arguments.kills,
            within=within,
            source=random.Random(arguments.seed),
        )
        same = content(killed) == wanted
        print(f"{delivered} kills of all processes: {'the same' if same else 'OTHER'} bytes")
        return 0 if same else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
