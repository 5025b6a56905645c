"""Compute the features of the frozen encoder once, into a folder that training reads them from.

    python -m recipes.cache_features hparams/bsq.yaml --data_folder /path/to/LibriTTS
    --feature_cache /fast/features [--workers 2] [--device cuda] [any key of the YAML]

The corpus, its splits and the encoder are those of the YAML; both stages' YAMLs fill one cache.
Killed, or out of disk space, the same command goes on where it was. Manifests go into the cache's
folder; the YAML's ``output_folder`` is not touched. Under ``torchrun`` each process is a worker.
SIGTERM and SIGUSR1 end it with exit status 75, as they do training.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAMLError
from speechbrain.utils.distributed import run_on_main

from recipes.common.command_line import parse_command_line
from recipes.common.dataio import make_dataset
from recipes.common.disk import size_text
from recipes.common.encoders import load_encoder
from recipes.common.experiment import config_hash, prepare_data, refuse_augmented
from recipes.common.feature_cache import FeatureCache
from recipes.common.feature_cache.build import build_cache
from recipes.common.feature_cache.format import CacheError, describe_encoder
from recipes.common.feature_cache.plan import (
    CachePlan,
    Entries,
    check_dtype,
    merge_entries,
    plan,
)
from recipes.common.feature_cache.progress import BuildProgress
from recipes.common.fingerprint import fingerprint
from recipes.common.programs import exit_status
from recipes.common.workers import run_workers, torchrun_rank, worker_device

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """What is to be cached, from the YAML."""

    encoder: torch.nn.Module
    fingerprint: str
    dtype: str
    entries: Entries
    on_bad_file: str
    bad_files: Path


def run(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Build, or verify, and say what was done.

    Parameters
    ----------
    options : of this program.
    words : the rest of the command line: the YAML and its overrides.

    Raises
    ------
    CacheError, ValueError, FileNotFoundError : for whatever the user can put right.
    """
    if options.workers < 1 or options.shard_mib <= 0:
        raise CacheError(
            "workers must be at least 1 and shard_mib above 0, got "
            f"{options.workers} and {options.shard_mib}"
        )
    worker_device(options.device, 0)
    if options.verify:
        _verify(options, words)
        return
    rank = torchrun_rank()
    if rank is not None and options.workers > 1:
        raise CacheError("under torchrun each process is a worker; leave --workers out")
    if rank is not None:
        torch.distributed.init_process_group("gloo")
    source = load_source(options, words, prepare=True)
    missing = _plan(options, source)
    started = time.monotonic()
    if options.workers == 1:
        local_rank = int(os.environ["LOCAL_RANK"]) if rank is not None else 0
        _build(options, source, number=local_rank, progress=not rank)
    else:
        logger.info("%s", missing)
        _run_workers(options, words, source, missing)
    if not rank:
        _summarize(options, source, missing.seconds, time.monotonic() - started)
    if rank is not None:
        torch.distributed.destroy_process_group()


def load_source(options: argparse.Namespace, words: Sequence[str], *, prepare: bool) -> Source:
    """Parse the YAML, load the encoder and list the utterances.

    Parameters
    ----------
    options, words : as in `run`.
    prepare : write the manifests; without, they are there already.
    """
    param_file, hparams, overrides = _hparams(words)
    refuse_augmented(hparams)
    dtype = check_dtype(hparams["feature_cache_dtype"])
    folder = options.feature_cache / "manifests" / config_hash(param_file, overrides)
    if prepare:
        run_on_main(prepare_data, kwargs={"hparams": hparams | {"output_folder": str(folder)}})
    encoder = hparams["encoder"]
    load_encoder(encoder, hparams["encoder_checkpoint"])
    subsets = {
        subset: make_dataset(
            folder / f"{subset}.json",
            data_folder=hparams["data_folder"],
            sample_rate=encoder.sample_rate,
        ).data
        for subset in options.subsets
    }
    return Source(
        encoder,
        fingerprint(encoder),
        dtype,
        merge_entries(subsets),
        hparams["on_bad_file"],
        folder / "bad_files.tsv",
    )


def _hparams(words: Sequence[str]) -> tuple[str, dict[str, Any], str]:
    try:
        param_file, _, overrides = parse_command_line(words)
        with open(param_file, encoding="utf-8") as file:
            return param_file, load_hyperpyyaml(file, overrides), overrides
    except (KeyError, YAMLError) as error:
        raise CacheError(
            f"{' '.join(words)}: {error}; give a YAML, then keys that it has, each once"
        ) from error


def _plan(options: argparse.Namespace, source: Source) -> CachePlan:
    return plan(
        options.feature_cache,
        source.entries,
        encoder=source.encoder,
        fingerprint=source.fingerprint,
        dtype=source.dtype,
    )


def _build(
    options: argparse.Namespace, source: Source, *, number: int, progress: bool = False
) -> None:
    build_cache(
        options.feature_cache,
        source.entries,
        encoder=source.encoder,
        fingerprint=source.fingerprint,
        dtype=source.dtype,
        device=worker_device(options.device, number),
        batch_seconds=options.batch_seconds,
        on_bad_file=source.on_bad_file,
        bad_files=source.bad_files,
        progress=progress,
        unit_bytes=int(options.shard_mib * 2**20),
    )


def _run_workers(
    options: argparse.Namespace, words: Sequence[str], source: Source, missing: CachePlan
) -> None:
    """Let workers do what is missing; the first that fails ends the others."""
    bar = BuildProgress(options.feature_cache, seconds=missing.seconds, encoder=source.encoder)
    with closing(bar):
        run_workers(
            partial(_work, options, list(words)),
            number=options.workers,
            shares_cpu=torch.device(options.device).type == "cpu",
            on_wait=bar.update,
        )
        bar.finish()
    left = _plan(options, source).missing
    if left:
        raise CacheError(f"the workers left {len(left)} utterances out; run the same command")


def _work(options: argparse.Namespace, words: Sequence[str], number: int) -> None:
    _build(options, load_source(options, words, prepare=False), number=number)


def _summarize(
    options: argparse.Namespace, source: Source, seconds: float, wall_seconds: float
) -> None:
    cache = FeatureCache(
        options.feature_cache, encoder=describe_encoder(source.encoder, source.fingerprint)
    )
    hours, pace = seconds / 3600, seconds / max(wall_seconds, 1e-9)
    logger.info(
        "encoded %.4g h of audio in %.1f s, %.4g h per second (%.4g x real time); %d utterances, "
        "%s in %s",
        hours,
        wall_seconds,
        pace / 3600,
        pace,
        len(cache),
        size_text(cache.num_bytes),
        options.feature_cache,
    )
    bad = {key: cache.bad[key] for key in source.entries if key in cache.bad}
    if bad:
        first = next(iter(bad))
        logger.warning("%d bad files have no features: %s (%s), ...", len(bad), first, bad[first])


def _verify(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Compare every utterance of the cache with its CRC-32; nothing is computed."""
    _, hparams, _ = _hparams(words)
    encoder = hparams["encoder"]
    load_encoder(encoder, hparams["encoder_checkpoint"])
    cache = FeatureCache(
        options.feature_cache, encoder=describe_encoder(encoder, fingerprint(encoder))
    )
    cache.verify()
    logger.info(
        "%s: %d utterances, %s, all as they were written",
        options.feature_cache,
        len(cache),
        size_text(cache.num_bytes),
    )


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: --data is no key of ours, and a key of the YAML must reach it.
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cache_features",
        usage="%(prog)s YAML --data_folder FOLDER --feature_cache FOLDER [options] [YAML keys]",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--feature_cache", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (workers in turn) or cuda:N")
    parser.add_argument(
        "--subsets", nargs="+", default=["train", "valid"], choices=["train", "valid", "test"]
    )
    parser.add_argument(
        "--batch_seconds", type=float, default=120.0, help="of audio in a batch, with padding"
    )
    parser.add_argument("--shard_mib", type=float, default=256.0, help="MiB of a shard")
    parser.add_argument(
        "--verify", action="store_true", help="compare everything with its CRC-32, compute nothing"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Command line."""
    options, words = _parser().parse_known_args(argv)
    return exit_status("cache_features", lambda: run(options, words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
