"""One experiment from command line to ``metrics.json``: what the training scripts share.

The order matters. Nothing is written before the configuration is known to be sound and the run
folder to be its own; the frozen encoder is loaded on every rank (never on rank 0 alone, see
speechbrain's ``run_on_main``); collective calls run on every rank.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ruamel.yaml
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import ddp_init_group, if_main_process, run_on_main
from torch.utils.data import DistributedSampler

from recipes.common import dataio, known_data
from recipes.common.command_line import parse_command_line, resolved_hash
from recipes.common.crops import Crops
from recipes.common.encoder_form import form_of
from recipes.common.encoders import feature_space, load_encoder, load_student
from recipes.common.feature_cache import FeatureCache, build_cache, describe_encoder
from recipes.common.feature_cache.plan import merge_entries
from recipes.common.files import existing_folder, folder_outside
from recipes.common.fingerprint import fingerprint
from recipes.common.interruption import Interrupted, leaving_at_once
from recipes.common.run_folder import RunFolder, hardware

logger = logging.getLogger(__name__)

# A run may be continued with other values of these: they say how long and where, not what.
CONTINUABLE = (
    "data_folder",
    "encoder_checkpoint",  # the encoder's fingerprint is compared instead
    "student_checkpoint",  # likewise
    "decoder_checkpoint",  # only decodes what validation scores
    "centroid_tolerance",
    "output_folder",
    "save_folder",
    "num_workers",
    "number_of_epochs",
    "optimizer_step_limit",
    "log_interval_steps",
    "nonfinite_patience",
    "metrics",
    "score_models",
    "valid_metric_utterances",
    "num_audio_samples",
    "feature_cache",  # equal but for the precision that it is stored in
    "cost_steps",
    "recompute_activations",  # of equal gradients
    "on_changed_data",
)


class Experiment(NamedTuple):
    """A Brain that is ready to be trained, and its loaders."""

    brain: sb.Brain
    train: Any
    valid: Any
    test: Any


class OpenedRun(NamedTuple):
    """A run folder whose configuration is sound and its own, before anything is prepared."""

    folder: RunFolder
    hparams: dict[str, Any]
    run_opts: Any


def run_experiment(
    brain_class: type[sb.Brain],
    argv: Sequence[str],
    *,
    build: Callable[[type[sb.Brain], Sequence[str]], Experiment] | None = None,
) -> dict[str, Any]:
    """Parse, prepare, train, evaluate; arguments and errors as in `build_experiment`.

    After SIGTERM or SIGUSR1 the run saves, if it has begun to train, and raises
    `recipes.common.interruption.Interrupted`, whose exit status is 75.

    Parameters
    ----------
    brain_class, argv : as in `build_experiment`.
    build : what prepares the run; None for a stage of the codec, `build_experiment`.

    Returns
    -------
    What ``metrics.json`` holds.
    """
    try:
        with leaving_at_once():
            brain, train, valid, test = (build or build_experiment)(brain_class, argv)
    except Interrupted as interrupted:
        logger.warning("%s", interrupted)
        raise
    try:
        with brain.interruption:
            brain.fit(brain.hparams.epoch_counter, train, valid)
            brain.evaluate(test, min_key=brain.selection_key)
    except Interrupted as interrupted:
        logger.warning("%s", interrupted)
        raise
    finally:
        brain.run_log.close()
    return brain.run_log.metrics


def build_experiment(brain_class: type[sb.Brain], argv: Sequence[str]) -> Experiment:
    """Parse and prepare: everything up to the first batch.

    Parameters
    ----------
    brain_class : the stage's Brain.
    argv : command line without the program: a YAML file, SpeechBrain's run options, overrides of
        YAML keys.

    Raises
    ------
    ValueError : for an override that HyperPyYAML would silently ignore, or a run folder of another
        configuration.
    FileNotFoundError : if data, a split or weights are missing.
    """
    folder, hparams, run_opts = open_run(argv, config_hash=config_hash)
    run_on_main(prepare_run, kwargs={"hparams": hparams})
    encoder, student = hparams["encoder"], hparams.get("student")
    load_encoder(encoder, hparams["encoder_checkpoint"])
    weights = {"encoder": fingerprint(encoder)}
    if student is not None:
        load_student(student, hparams["student_checkpoint"], encoder=encoder)
        weights["student"] = fingerprint(student)  # before its training
    brain = brain_class(
        modules=hparams["modules"],
        opt_class=hparams.get("opt_class"),
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    # A test reads signals, so it fills no cache.
    cache = None if brain.test_only else open_feature_cache(hparams, device=brain.device)
    loaders = [make_loader(brain, hparams, stage, cache=cache) for stage in sb.Stage]
    seed_rank(hparams["seed"])
    # Last, so that a mistake found on the way leaves the folder free for the corrected command.
    facts = {
        "weights": weights,
        "features": feature_space(encoder, hparams["encoder_checkpoint"]),
        "student_form": None if student is None else form_of(student),
        "seed": hparams["seed"],
        "parameters": count_parameters(hparams),
        "hardware": hardware(brain.device),
    }
    run_on_main(folder.describe, kwargs=facts)
    return Experiment(brain, *loaders)


def open_run(argv: Sequence[str], *, config_hash: Callable[[str, str], str]) -> OpenedRun:
    """Parse a command line and make its run folder; every rank has to call it.

    Parameters
    ----------
    argv : as in `build_experiment`.
    config_hash : of main YAML and overrides: the fingerprint of a run's configuration.

    Raises
    ------
    ValueError, FileNotFoundError : as `build_experiment`.
    """
    param_file, run_opts, overrides = parse_command_line(argv)
    ddp_init_group(run_opts)
    with open(param_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    folder = RunFolder(
        hparams["output_folder"],
        command=[*_program(), *argv],
        config_hash=config_hash(param_file, overrides),
    )
    folder.refuse_other_configuration()
    if hparams["data_folder"] is not None:
        folder_outside(hparams["output_folder"], existing_folder(hparams["data_folder"]))
    folder.create(param_file, overrides)
    hparams["checkpointer"].config_hash = folder.config_hash
    return OpenedRun(folder, hparams, run_opts)


def seed_rank(seed: int) -> None:
    """Let what modules draw while they train differ by rank; their first weights do not."""
    if torch.distributed.is_initialized():
        sb.utils.seed.seed_everything(seed + torch.distributed.get_rank(), verbose=False)


def config_hash(param_file: str, overrides: str) -> str:
    """Short hash of a training's YAML without the keys that it may change when it goes on."""
    without = {*CONTINUABLE}
    with open(param_file, encoding="utf-8") as file:
        if "decoder_checkpoint" in ruamel.yaml.YAML().load(file):
            without.add("decoder")  # where the decoder is not what is trained
    return resolved_hash(param_file, overrides, without=without)


def count_parameters(hparams: dict[str, Any]) -> dict[str, int]:
    """Count the parameters of the whole codec, or of what the decoder stage has of it, by part."""
    if "codec" in hparams:
        parts = dict(hparams["codec"].named_children())
    else:
        parts = {"encoder": hparams["encoder"], **hparams["modules"]}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def prepare_run(
    hparams: dict[str, Any], prepare: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Prepare the data; a run that goes on has to find those that it began with.

    Parameters
    ----------
    hparams : keys of the YAML.
    prepare : what writes the manifests; None for a stage of the codec, `prepare_data`.

    Raises
    ------
    ValueError : if they changed, unless ``on_changed_data`` is "accept".
    """
    folder = Path(hparams["output_folder"])
    if hparams["on_changed_data"] not in ("raise", "accept"):
        raise ValueError(
            f"on_changed_data must be raise or accept, got {hparams['on_changed_data']!r}"
        )
    goes_on = bool(hparams["checkpointer"].list_checkpoints())
    earlier = known_data.read_data_files(folder)
    (prepare or prepare_data)(hparams)
    if goes_on and hparams["on_changed_data"] == "raise":
        known_data.refuse_changed(
            folder,
            earlier=earlier,
            hint="go on with what is there by --on_changed_data accept, or choose another folder "
            "with --output_folder",
        )


def prepare_data(hparams: dict[str, Any]) -> None:
    """Write the manifests of the corpus that the YAML names into the output folder."""
    splits = {
        key: hparams[key]
        for key in ("train_splits", "valid_splits", "test_splits")
        if hparams[key] is not None
    }
    hparams["dataset"](
        data_folder=hparams["data_folder"],
        save_folder=hparams["output_folder"],
        min_duration_s=hparams["min_duration_s"],
        max_duration_s=hparams["max_duration_s"],
        on_bad_file=hparams["on_bad_file"],
        **splits,
    )


def open_feature_cache(hparams: dict[str, Any], *, device: str) -> FeatureCache | None:
    """Features of the training and validation set, computed first where they are missing.

    Every rank calls it; they share the work.

    Raises
    ------
    ValueError : if signals are augmented, so that they are others in every epoch.
    CacheError : as `recipes.common.feature_cache.FeatureCache`; if the training and the validation
        set have other audio under one id.
    BadAudioError : with ``on_bad_file: raise``, for a file that the cache knows as bad.
    """
    folder = hparams.get("feature_cache")
    if folder is None:
        return None
    refuse_augmented(hparams)
    encoder = hparams["encoder"]
    entries = merge_entries(
        {
            stage.name.lower(): make_dataset(hparams, stage).data
            for stage in (sb.Stage.TRAIN, sb.Stage.VALID)
        }
    )
    key = fingerprint(encoder)
    bad_files = Path(hparams["output_folder"]) / "bad_files.tsv"
    report = build_cache(
        folder,
        entries,
        encoder=encoder,
        fingerprint=key,
        dtype=hparams["feature_cache_dtype"],
        device=device,
        on_bad_file=hparams["on_bad_file"],
        bad_files=bad_files,
        progress=if_main_process(),
    )
    # Those that another run's build has met, too.
    for utterance, reason in report.bad.items():
        error = dataio.BadAudioError(entries[utterance]["wav"], reason)
        if hparams["on_bad_file"] == "raise":
            raise error
        if dataio.record_bad_file(bad_files, error):
            logger.warning("bad file, not in the feature cache: %s", error)
    return FeatureCache(folder, encoder=describe_encoder(encoder, key))


def refuse_augmented(hparams: dict[str, Any]) -> None:
    """Raise ValueError if signals are augmented, so that no features of theirs can be kept."""
    if hparams.get("augment") is not None:
        raise ValueError(
            "feature_cache holds the features of the signals as they are on the disk, but augment "
            "changes them at every reading; set one of both to null"
        )


def make_dataset(hparams: dict[str, Any], stage: sb.Stage, **options: Any) -> dataio.SigDataset:
    """Dataset of one subset; ``options`` go to `recipes.common.dataio.make_dataset`."""
    return dataio.make_dataset(
        Path(hparams["output_folder"]) / f"{stage.name.lower()}.json",
        data_folder=hparams["data_folder"],
        sample_rate=hparams["encoder"].sample_rate,
        on_bad_file=hparams["on_bad_file"],
        bad_files=Path(hparams["output_folder"]) / "bad_files.tsv",
        sorting=hparams["sorting"] if stage == sb.Stage.TRAIN else "ascending",
        **options,
    )


def make_loader(
    brain: sb.Brain, hparams: dict[str, Any], stage: sb.Stage, *, cache: FeatureCache | None = None
) -> Any:
    """Loader of one subset: shuffled batches for training, the manifest's order otherwise.

    Training takes segments where the YAML has ``segment_frames``, whole utterances otherwise, and
    the signal only if the stage trains on it or has no cache.

    Raises
    ------
    ValueError : if sizes in the YAML do not fit each other or the data.
    """
    training = stage == sb.Stage.TRAIN
    options: dict[str, Any] = {
        "cache": cache if stage != sb.Stage.TEST else None,
        "target_rate": brain.target_rate,
    }
    batch_size = hparams["batch_size"]
    if training:
        options["with_sig"] = cache is None or brain.trains_on_sig
    if training and hparams.get("segment_frames") is not None:
        number = hparams["crops_per_utterance"]
        options["crops"] = Crops(
            hparams["segment_frames"],
            hop_length=hparams["encoder"].hop_length,
            per_utterance=number,
            seed=hparams["seed"],
        )
        if batch_size % number:
            raise ValueError(
                f"batch_size counts segments and must be a multiple of crops_per_utterance, got "
                f"{batch_size} and {number}"
            )
        batch_size //= number
    dataset = make_dataset(hparams, stage, **options)
    return load_dataset(brain, hparams, stage, dataset, batch_size=batch_size)


def load_dataset(
    brain: sb.Brain,
    hparams: dict[str, Any],
    stage: sb.Stage,
    dataset: DynamicItemDataset,
    *,
    batch_size: int,
) -> Any:
    """Loader of a dataset: in batches of so many utterances, or of ``batch_seconds`` for training.

    Raises
    ------
    ValueError : if sizes in the YAML do not fit each other or the data.
    """
    training = stage == sb.Stage.TRAIN
    kwargs = dataio.loader_kwargs(
        num_workers=hparams["num_workers"],
        seed=hparams["seed"],
        pin_memory=brain.device_type == "cuda",
    )
    if training and hparams.get("batch_seconds") is not None:
        kwargs["batch_sampler"] = brain.train_sampler = dataio.bucket_sampler(
            dataset, batch_seconds=hparams["batch_seconds"], seed=hparams["seed"]
        )
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if ranks > 1 and len(brain.train_sampler) <= ranks:
            raise ValueError(
                f"batch_seconds {hparams['batch_seconds']:g} makes {len(brain.train_sampler)} "
                f"batches of the training set for {ranks} processes, each of which needs two or "
                "more; lower it"
            )
    else:
        kwargs["batch_size"] = batch_size
        if training:
            kwargs["shuffle"] = hparams["sorting"] == "random"
    loader = brain.make_dataloader(
        dataset, stage, ckpt_prefix="dataloader-" if training else None, **kwargs
    )
    if training and isinstance(brain.train_sampler, DistributedSampler):
        brain.train_sampler.seed = hparams["seed"]  # SpeechBrain leaves it at 0
    return loader


def _program() -> list[str]:
    """Words that start this program: a script, or a module that ``python -m`` runs."""
    module = sys.modules["__main__"].__spec__
    return ["python", Path(sys.argv[0]).name] if module is None else ["python", "-m", module.name]
