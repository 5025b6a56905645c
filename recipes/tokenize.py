"""Turn a corpus into tokens once: shards of Parquet that every downstream task reads.

    python -m recipes.tokenize FOLDER --data_folder=/path/to/LibriSpeech
    --dataset='!include:dataset/librispeech_test_clean.yaml'
    --codec='!include:codec/focalcodec_50hz.yaml' [--workers 2] [--device cuda] [YAML keys]

Codec and dataset are blocks of ``recipes/hparams``, as in evaluations. FOLDER belongs to one corpus
and one codec; `recipes.common.shards.format` says what lies there. Killed, or out of disk space,
the same command goes on where it was and loses a batch at most. Under ``torchrun`` each process is
a worker; ``--engine ray`` uses the machines of a Ray cluster that share FOLDER and the data.
SIGTERM and SIGUSR1 end it with exit status 75, as they do training.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAMLError
from speechbrain.utils.distributed import run_on_main

from recipes.common.blocks import load_codec, prepare_dataset
from recipes.common.command_line import parse_command_line, resolved_hash
from recipes.common.corpus_files import SUBSETS
from recipes.common.dataio import read_manifest
from recipes.common.disk import size_text
from recipes.common.files import existing_folder, folder_outside, read_json
from recipes.common.known_data import manifest_name
from recipes.common.offline import go_offline
from recipes.common.programs import exit_status
from recipes.common.shards.build import ShardBuild, ShardReport
from recipes.common.shards.cluster import run_on_ray
from recipes.common.shards.extractors import Tokens
from recipes.common.shards.format import BAD_FILES, ShardError
from recipes.common.workers import run_workers, torchrun_rank, worker_device

logger = logging.getLogger(__name__)

HPARAMS = Path(__file__).resolve().parent / "hparams" / "tokenize.yaml"
# What the manifests do not depend on.
_INDIFFERENT = ("offline", "batch_seconds", "shard_minutes", "codec_checkpoint", "codec_options")


def run(options: argparse.Namespace, words: Sequence[str]) -> ShardReport:
    """Tokenise, or go on with it.

    Parameters
    ----------
    options : of this program.
    words : overrides of the YAML.

    Raises
    ------
    ValueError, FileNotFoundError : for whatever the user can put right.
    """
    rank = torchrun_rank()
    _check(options, rank)
    if rank is not None:
        torch.distributed.init_process_group("gloo")
    started = time.monotonic()
    index = int(os.environ["LOCAL_RANK"]) if rank is not None else 0
    build = make_build(options, words, index=index, prepare=True)
    if not rank:
        build.warn_of_newer_audio()
        logger.info("%s", build.announcement())
    with closing(build.progress_bar(enabled=not rank)) as bar:
        _fill(options, words, build, on_progress=bar.update)
        bar.finish()
        seconds = bar.bar.total
    report = build.finish()
    if not rank:
        _summarize(options.folder, report, seconds, time.monotonic() - started)
    if rank is not None:
        torch.distributed.destroy_process_group()
    return report


def make_build(
    options: argparse.Namespace, words: Sequence[str], *, index: int, prepare: bool = False
) -> ShardBuild:
    """Parse the YAML, list the utterances and load the codec.

    Parameters
    ----------
    options, words : as in `run`.
    index : of the worker on its machine.
    prepare : write the manifests; without, they are there already.
    """
    hparams, key = _hparams(words)
    if hparams["offline"]:
        go_offline()
    folder = options.folder / ".manifests" / key
    if prepare:
        run_on_main(prepare_manifests, args=[hparams, options.folder, folder])
    return ShardBuild(
        options.folder,
        read_manifests(hparams, folder),
        extractor=Tokens(load_codec(hparams)),
        device=_device(options, index),
        batch_seconds=hparams["batch_seconds"],
        on_bad_file=hparams["on_bad_file"],
        shard_minutes=hparams["shard_minutes"],
    )


def prepare_manifests(hparams: dict[str, Any], shards: Path, folder: Path) -> None:
    """Write the manifests of a dataset.

    Parameters
    ----------
    hparams : of the YAML.
    shards : folder of the shards, which must lie outside the data.
    folder : of the manifests.
    """
    folder_outside(shards, existing_folder(hparams["data_folder"]))
    prepare_dataset(hparams, folder)


def read_manifests(hparams: dict[str, Any], folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by utterance id, by subset.

    Raises
    ------
    ShardError : if a subset of the YAML is none, or has no utterance.
    """
    wanted = hparams["subsets"]
    if wanted is not None and (not wanted or not set(wanted) <= set(SUBSETS)):
        raise ShardError(f"subsets must be null or some of {', '.join(SUBSETS)}, got {wanted}")
    paths = {subset: folder / manifest_name(subset) for subset in wanted or SUBSETS}
    return {
        subset: read_manifest(path, data_folder=hparams["data_folder"])
        for subset, path in paths.items()
        if wanted is not None or read_json(path)
    }


def _hparams(words: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Keys of the YAML, and a name for the manifests that it gives."""
    words = ["--offline=True" if word == "--offline" else word for word in words]
    try:
        param_file, _, overrides = parse_command_line([str(HPARAMS), *words])
        with open(param_file, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, overrides)
    except (KeyError, YAMLError) as error:
        raise ShardError(
            f"{' '.join(words)}: {error}; give keys that {HPARAMS.name} has, each once"
        ) from error
    return hparams, resolved_hash(param_file, overrides, without=_INDIFFERENT)


def _check(options: argparse.Namespace, rank: int | None) -> None:
    if options.workers < 1:
        raise ShardError(f"workers must be at least 1, got {options.workers}")
    if rank is not None and (options.workers > 1 or options.engine == "ray"):
        raise ShardError(
            "under torchrun each process is a worker; leave --workers and --engine out"
        )
    _device(options, 0)


def _device(options: argparse.Namespace, index: int) -> torch.device:
    """Device of a worker; an actor of Ray sees none but its own GPU."""
    return worker_device(options.device, 0 if options.engine == "ray" else index)


def _fill(
    options: argparse.Namespace,
    words: Sequence[str],
    build: ShardBuild,
    *,
    on_progress: Callable[[], None],
) -> None:
    """Have the missing shards written by whatever the options say."""
    names = [shard.name for shard in build.pending]
    if options.engine == "ray" and names:
        run_on_ray(
            partial(make_build, options, list(words), index=0),
            names,
            workers=options.workers,
            gpus_per_worker=float(options.device.startswith("cuda")),
            on_shard=on_progress,
        )
    elif options.workers > 1 and names:
        run_workers(
            partial(_work, options, list(words)),
            number=options.workers,
            shares_cpu=torch.device(options.device).type == "cpu",
            on_wait=on_progress,
        )
    else:
        build.run(on_batch=on_progress)
    if left := build.pending:
        raise ShardError(f"the workers left {len(left)} shards out; run the same command")


def _work(options: argparse.Namespace, words: Sequence[str], index: int) -> None:
    make_build(options, words, index=index).run(on_batch=_nothing)


def _nothing() -> None:
    """Show no progress: the process that began the work does."""


def _summarize(folder: Path, report: ShardReport, seconds: float, wall_seconds: float) -> None:
    pace = seconds / max(wall_seconds, 1e-9)
    logger.info(
        "encoded %.4g h of audio in %.1f s (%.4g x real time); %d utterances, %.4g h, %s in %s",
        seconds / 3600,
        wall_seconds,
        pace,
        report.rows,
        report.seconds / 3600,
        size_text(report.num_bytes),
        folder,
    )
    if report.bad:
        first = next(iter(report.bad))
        logger.warning(
            "%d bad files have no tokens: %s (%s), ...; see %s",
            len(report.bad),
            first,
            report.bad[first],
            folder / BAD_FILES,
        )


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: --data is no key of ours, and a key of the YAML must reach it.
    parser = argparse.ArgumentParser(
        prog="python -m recipes.tokenize",
        usage="%(prog)s FOLDER --data_folder=FOLDER [options] [--KEY=VALUE of tokenize.yaml]",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="folder of the shards")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (workers in turn) or cuda:N")
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="what starts the workers"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Command line."""
    options, words = _parser().parse_known_args(argv)
    return exit_status("tokenize", lambda: run(options, words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
