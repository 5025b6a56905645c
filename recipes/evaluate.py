"""Evaluate a codec: resynthesis, voice conversion, chunk-wise streaming, speed.

    python -m recipes.evaluate resynthesis --codec='!include:codec/mimi.yaml' \
        --dataset='!include:dataset/voicebank.yaml' --data_folder=/path/to/VoiceBank
    torchrun --nproc_per_node=4 -m recipes.evaluate voice_conversion --data_folder=/path/to/VCTK

A task is a YAML file of ``recipes/hparams``; its codec and its test set are blocks that the command
line swaps. The processes share the utterances, and every result is written at once: the same
command continues an evaluation that was killed. The run folder receives ``metrics.json``,
``utterances.csv``, ``code_counts.json`` and audio samples; ``python -m recipes.report`` makes pages
of such folders.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_init_group,
    get_local_rank,
    if_main_process,
    infer_device,
    run_on_main,
)

from recipes.codecs.codec import Codec
from recipes.common import known_data
from recipes.common.audio_scores import evenly_spaced
from recipes.common.blocks import load_codec, prepare_dataset
from recipes.common.command_line import block_name, parse_command_line, resolved_hash
from recipes.common.dataio import read_manifest
from recipes.common.files import (
    existing_folder,
    folder_outside,
    locked_file,
    read_json,
    write_json,
)
from recipes.common.fingerprint import weights_hash
from recipes.common.interruption import leaving_at_once
from recipes.common.model_cost import num_parameters
from recipes.common.offline import go_offline
from recipes.common.run_folder import RunFolder, hardware, hardware_line
from recipes.common.scoring import MissingPackageError
from recipes.evaluation.loop import Loop
from recipes.evaluation.rows import Rows
from recipes.evaluation.scores import Scorer
from recipes.evaluation.speed import measure
from recipes.evaluation.summary import describe, summarize, usage, write_table

logger = logging.getLogger(__name__)

TASKS = ("resynthesis", "voice_conversion", "streaming", "speed")
HPARAMS = Path(__file__).resolve().parent / "hparams"
# An evaluation may go on with other values of these: they say where, not what.
CONTINUABLE = ("data_folder", "output_folder", "offline")


def evaluate(task: str, words: Sequence[str]) -> dict[str, Any]:
    """Evaluate, or go on with an evaluation that was killed.

    Parameters
    ----------
    task : one of `TASKS`.
    words : overrides of the task's YAML and SpeechBrain's run options.

    Returns
    -------
    What ``metrics.json`` holds.

    Raises
    ------
    ValueError : for an override that would be lost, or a folder of another configuration, other
        weights or other data.
    FileNotFoundError : if data or weights are missing.
    """
    words = ["--offline=True" if word == "--offline" else word for word in words]
    param_file, run_opts, overrides = parse_command_line([str(HPARAMS / f"{task}.yaml"), *words])
    refuse_shared_device(run_opts)
    ddp_init_group(run_opts)
    with open(param_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    if hparams["offline"]:
        go_offline()
    if hparams["output_folder"] is None:
        hparams["output_folder"] = default_folder(task, param_file, overrides, hparams)
        overrides += f"\noutput_folder: {hparams['output_folder']}"
    folder = RunFolder(
        hparams["output_folder"],
        command=["python", "-m", "recipes.evaluate", task, *words],
        config_hash=resolved_hash(param_file, overrides, without=CONTINUABLE),
    )
    folder.refuse_other_configuration()
    if "data_folder" in hparams:
        folder_outside(folder.path, existing_folder(hparams["data_folder"]))
    device = run_opts["device"] or infer_device()
    codec = load_codec(hparams).to(device)
    about = {"task": task, "codec": describe(codec)}
    if "dataset" in hparams:
        about["dataset"] = {
            "name": block_name(param_file, overrides, "dataset"),
            "options": dict(hparams["dataset_options"]),
        }
    with alone_in(folder.path):
        folder.create(param_file, overrides)
        facts = {
            "weights": {"codec": weights_hash(codec)},
            "seed": hparams["seed"],
            "parameters": {name: num_parameters(part) for name, part in codec.named_children()},
            "hardware": hardware(device),
        }
        if "dataset" in hparams:
            evaluate_dataset(codec, hparams, folder, facts=facts, about=about)
        else:
            run_on_main(folder.describe, kwargs=facts)
            run_on_main(write_speed, args=[folder.path, codec, hparams, about])
        return read_json(folder.path / "metrics.json")


def refuse_shared_device(run_opts: Any) -> None:
    """Raise ValueError for a process of torchrun's that has no GPU of its own.

    SpeechBrain ends it with several lines that do not name the option to use.
    """
    rank, backend = get_local_rank(), run_opts["distributed_backend"]
    if rank is not None and backend != "gloo" and rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {rank} has no GPU of its own ({torch.cuda.device_count()} here); start fewer "
            "processes, or share CPU cores with --distributed_backend=gloo --device=cpu"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other evaluations out of a run folder until this one ends.

    Raises
    ------
    ValueError : if another one is at work there.
    """
    if not if_main_process():
        yield
        return
    with locked_file(folder / ".lock", wait=False) as is_alone:
        if not is_alone:
            raise ValueError(
                f"another process is evaluating into {folder}; wait until it ends, or choose "
                "another folder with --output_folder"
            )
        yield


def default_folder(task: str, param_file: str, overrides: str, hparams: dict[str, Any]) -> str:
    """Folder named after task, codec and test set."""
    codec = block_name(param_file, overrides, "codec")
    if hparams["codec_checkpoint"] is not None:
        codec += f"-{Path(hparams['codec_checkpoint']).name}"
    names = [task, codec]
    if "chunk_size" in hparams:
        names[0] += f"-{hparams['chunk_size']}"
    if "dataset" in hparams:
        names.append(block_name(param_file, overrides, "dataset"))
    return str(Path("results", "evaluate", *names))


def evaluate_dataset(
    codec: Codec,
    hparams: dict[str, Any],
    folder: RunFolder,
    *,
    facts: dict[str, Any],
    about: dict[str, Any],
) -> None:
    """Work on every utterance of a test set; the main process summarises.

    Parameters
    ----------
    codec : on its device.
    hparams : keys of the task's YAML.
    folder : the run's.
    facts : for ``run.json``, which is written when the data are found to be sound.
    about : task, codec and dataset, for ``metrics.json``.
    """
    run_on_main(prepare, args=[hparams, folder.path])
    manifest = read_manifest(folder.path / "test.json", data_folder=hparams["data_folder"])
    task = hparams["task"]()
    # Before run.json, so that a mistake leaves the folder free for the corrected command.
    task.check(codec, manifest, hparams["metrics"])
    models = hparams["score_models"]._replace(device=str(codec.device))
    scorer = Scorer(hparams["metrics"], models=models)
    run_on_main(folder.describe, kwargs=facts)
    run_on_main(note_models, args=[folder.path, scorer.model_lines])
    distributed = torch.distributed.is_initialized()
    loop = Loop(
        codec,
        task,
        scorer,
        folder=folder.path,
        written=evenly_spaced(list(manifest), hparams["num_audio_samples"]),
        on_bad_file=hparams["on_bad_file"],
        hardware=hardware_line(facts["hardware"]),
        seed=hparams["seed"],
        rank=torch.distributed.get_rank() if distributed else 0,
        world_size=torch.distributed.get_world_size() if distributed else 1,
    )
    loop.run(manifest)
    ddp_barrier()
    if if_main_process():
        about["codec"] |= task.facts(codec)
        about = {**about, "settings": task.settings, "models": scorer.model_lines}
        options = {"metrics": scorer.names, "seed": hparams["seed"], "hardware": loop.hardware}
        write_results(folder.path, manifest, codec=codec, about=about, **options)
    ddp_barrier()


def note_models(folder: Path, lines: dict[str, str]) -> None:
    """Keep what scores are computed with; rows of two versions must not meet in one mean.

    Raises
    ------
    ValueError : if a metric was computed with something else so far.
    """
    path = folder / "score_models.json"
    earlier = read_json(path) if path.exists() else {}
    for metric, line in lines.items():
        if earlier.get(metric, line) != line:
            raise ValueError(
                f"{metric} was computed with {earlier[metric]} in {folder}, and would now be with "
                f"{line}; put that back, or choose another folder with --output_folder"
            )
    write_json(path, earlier | lines)


def prepare(hparams: dict[str, Any], folder: Path) -> None:
    """Write the manifest; an evaluation that goes on has to find the test set it began with.

    Raises
    ------
    ValueError : if it has changed.
    """
    earlier = known_data.read_data_files(folder)
    limit = hparams["max_test_utterances"]
    prepare_dataset(hparams, folder, max_test_utterances=limit)
    if Rows(folder).read():
        known_data.refuse_changed(
            folder, earlier=earlier, hint="choose another folder with --output_folder"
        )


def write_results(
    folder: Path,
    manifest: dict[str, Any],
    *,
    codec: Codec,
    about: dict[str, Any],
    metrics: Sequence[str],
    hardware: str,
    seed: int,
) -> None:
    """Write the folder's tables from its rows; ``metrics.json``, the sign of the end, last.

    Parameters
    ----------
    folder : of the run.
    manifest : test set by utterance id.
    codec, metrics, hardware, seed : as `recipes.evaluation.summary.summarize` takes them.
    about : what ``metrics.json`` says beside scores.
    """
    found = Rows(folder).read()
    rows = [found[id] for id in manifest]
    heard = [row for row in rows if row.seconds]
    hours = sum(manifest[row.id]["duration"] for row in heard) / 3600
    dataset = {
        **about.pop("dataset"),
        "hash": hashlib.sha256((folder / "test.json").read_bytes()).hexdigest()[:16],
        "utterances": len(heard),
        "hours": hours,
    }
    write_table(folder / "utterances.csv", rows, manifest)
    if (counted := usage(rows, codec)) is not None:
        write_json(folder / "code_counts.json", {"counts": counted.counts.tolist()})
    results = summarize(rows, manifest, metrics=metrics, codec=codec, hardware=hardware, seed=seed)
    write_json(folder / "metrics.json", {**about, "dataset": dataset, **results})


def write_speed(folder: Path, codec: Codec, hparams: dict[str, Any], about: dict[str, Any]) -> None:
    """Measure and write what the task ``speed`` is about."""
    settings = {"audio_seconds": hparams["audio_seconds"], "repeats": hparams["repeats"]}
    torch.manual_seed(hparams["seed"])
    results = measure(codec, **settings)
    write_json(folder / "metrics.json", {**about, "settings": settings, **results})


def lines(results: dict[str, Any]) -> list[str]:
    """Scores for the console."""
    printed = [f"{results['codec']['name']}, {results['codec']['bitrate']:.0f} bit/s"]
    for name, score in results["scores"].items():
        bounds = [score["low"], score["high"]]
        interval = "" if None in bounds else "  [{:.4g}, {:.4g}]".format(*bounds)
        printed.append(f"{name:24} {score['mean']:.4g}{interval}")
    for name, value in results.get("code_usage", {}).items():
        printed.append(f"{name:24} {value}")
    for metric, reason in results.get("not_computed", {}).items():
        printed.append(f"{metric:24} not computed: {reason}")
    if failures := results.get("failures"):
        printed.append(f"{len(failures)} single scores could not be computed, see metrics.json")
    return printed


def main(argv: Sequence[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Everything else overrides a key of recipes/hparams/TASK.yaml: --KEY=VALUE.",
        allow_abbrev=False,
    )
    parser.add_argument("task", choices=TASKS)
    arguments, words = parser.parse_known_args(argv)
    try:
        with leaving_at_once():
            results = evaluate(arguments.task, words)
    except (OSError, ValueError, KeyError, MissingPackageError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    if if_main_process():
        print("\n".join(lines(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
