"""Tested runs of the quantizer stage, read from their folders: results, configuration, origin.

Only JSON and YAML nodes are read, nothing is built or executed and nothing is written. A test may
lie in a folder of its own (``--test_only`` with another run's ``save_folder``); the training's and
the decoder's folders then tell the rest.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.common.command_line import canonical
from recipes.common.experiment import CONTINUABLE
from recipes.common.files import file_crc, read_json
from recipes.common.paper import NO_DECODER, Row, order, row_of
from recipes.common.run_origin import RunFiles, Start, read_run_files, starts_of

# How long a run was trained says nothing about whether it may go on, but much about its results.
_LENGTH = {"number_of_epochs", "optimizer_step_limit"}
# The last two hold but paths, and parts that are compared by their own keys.
_UNCOMPARED = (set(CONTINUABLE) - _LENGTH) | {"seed", "__set_seed", "checkpointer", "train_logger"}
_DECODING = {"decoder", "codec"}  # no part of what the quantizer stage trains
_NEEDED = {"output_folder", "save_folder"}


class NoRowError(ValueError):
    """A run that no table can have as a row; a search leaves it out for this ``reason``."""

    reason: str


class UnfinishedRunError(NoRowError):
    """A run without a test."""

    reason = "without a test"


class OtherStageError(NoRowError):
    """A run of the decoder stage."""

    reason = "of the decoder stage"


class OtherModelError(NoRowError):
    """A run of a model that is no variant of the codec, such as a baseline."""

    reason = "of another model"


class QuantizerRun(NamedTuple):
    """A tested run.

    ``configuration`` holds everything that makes two results different beside the seed, by dotted
    path; ``test`` is the test's part of ``metrics.json``; ``parameters`` counts by part, None if
    the run is of a version that did not record them. ``trained_in`` is the training's folder,
    mostly its own.
    """

    folder: Path
    row: Row
    seed: int | None
    configuration: dict[str, str]
    test: dict[str, Any]
    parameters: dict[str, int] | None
    starts: list[Start]
    trained_in: Path


class SeedGroup(NamedTuple):
    """Runs that differ in their seed alone, in its order.

    ``differences`` is empty unless other groups have the same row; then it says what is this
    group's own, and ``variant`` numbers the groups of the row from 1.
    """

    row: Row
    runs: list[QuantizerRun]
    differences: dict[str, str]
    variant: int = 0


class FoundRuns(NamedTuple):
    """Runs, and how many were left out of a search, by reason."""

    runs: list[QuantizerRun]
    left_out: Counter[str]


def find_runs(paths: Iterable[Path]) -> FoundRuns:
    """Read run folders, and search other folders for them.

    Parameters
    ----------
    paths : run folders, or folders that hold some at any depth.

    Raises
    ------
    FileNotFoundError : if a path is no folder.
    ValueError : if there is no tested run of the quantizer stage, a file is damaged, or a run
        folder that was named itself has no test or is of the decoder stage.
    """
    runs: dict[Path, QuantizerRun] = {}
    left_out: dict[Path, str] = {}
    paths = list(paths)
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; name a run folder or one above it")
        is_run = (path / "run.json").is_file()
        folders = [path] if is_run else sorted(file.parent for file in path.rglob("run.json"))
        for folder in folders:
            try:
                runs.setdefault(folder.resolve(), read_run(folder))
            except NoRowError as error:
                if is_run:
                    raise
                left_out[folder.resolve()] = error.reason
    trainings = {run.trained_in for run in runs.values() if run.trained_in != run.folder.resolve()}
    for folder in trainings & runs.keys():
        if runs[folder].row.decoder == NO_DECODER and folder not in {p.resolve() for p in paths}:
            del runs[folder]
            left_out[folder] = "whose test with a decoder is in the table"
    counts = Counter(left_out.values())
    if not runs:
        beside = f"; there are {left_out_line(counts)}" if counts else ""
        raise ValueError(
            f"no tested run of train_quantizer.py in {', '.join(map(str, paths))}{beside}"
        )
    return FoundRuns(list(runs.values()), counts)


def left_out_line(counts: Mapping[str, int]) -> str:
    """Say how many runs were left out and why, such as ``2 run(s) without a test``."""
    return ", ".join(f"{number} run(s) {reason}" for reason, number in sorted(counts.items()))


def read_run(folder: Path) -> QuantizerRun:
    """Read one run folder, with what it names as its training and its decoder.

    Raises
    ------
    NoRowError : if it holds no test of the quantizer stage of a variant of the codec.
    ValueError : if a file is damaged.
    """
    tested = read_run_files(folder)
    nodes = tested.nodes
    if "quantizer" not in nodes:
        raise OtherStageError(
            f"{folder} is a run of the decoder stage; name a run folder of train_quantizer.py"
        )
    if missing := sorted(set(Row._fields) - set(nodes)):
        raise OtherModelError(
            f"{folder} is a run of another model: its YAML has no {', '.join(missing)}; name runs "
            "of hparams/bsq.yaml"
        )
    if missing := sorted(_NEEDED - set(nodes)):
        raise ValueError(f"{folder / 'hyperparams.yaml'} has no key {', '.join(missing)}")
    metrics = folder / "metrics.json"
    test = read_json(metrics).get("test") if metrics.is_file() else None
    if test is None:
        raise UnfinishedRunError(
            f"{folder} has no test in metrics.json; let the run end, or test its best checkpoint "
            "with --test_only"
        )
    training = _training(tested)
    decoder = _decoder(tested)
    trained = tested if training.description is None else training
    return QuantizerRun(
        folder=folder,
        row=row_of(nodes),
        seed=trained.seed,
        configuration=_configuration(tested, trained, decoder),
        test=test,
        parameters=tested.description.get("parameters"),
        starts=_starts(tested, training, decoder),
        trained_in=trained.folder.resolve(),
    )


def group_runs(runs: Iterable[QuantizerRun]) -> list[SeedGroup]:
    """Put together what differs in the seed alone, in the paper's order of rows.

    Raises
    ------
    ValueError : if two runs do not even differ in that.
    """
    groups: dict[tuple, list[QuantizerRun]] = {}
    for run in runs:
        members = groups.setdefault((run.row, *sorted(run.configuration.items())), [])
        for other in members:
            if other.seed == run.seed:
                raise ValueError(
                    f"{other.folder} and {run.folder} have the same row, configuration and seed "
                    f"({run.seed}); leave one of them out"
                )
        members.append(run)
    rows: dict[Row, list[list[QuantizerRun]]] = {}
    for members in groups.values():
        rows.setdefault(members[0].row, []).append(members)
    return [group for row in sorted(rows, key=order) for group in _variants(row, rows[row])]


def differences(configurations: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For each configuration its values of the keys in which they are not all the same.

    A nested key that differs just as a key above does, such as an optimizer's ``lr``, is left out:
    it refers to it.
    """
    keys = dict.fromkeys(key for configuration in configurations for key in configuration)
    found: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: key.count(".")):
        values = [configuration.get(key, "null") for configuration in configurations]
        if len(set(values)) > 1 and not ("." in key and values in found.values()):
            found[key] = values
    return [{key: values[i] for key, values in found.items()} for i in range(len(configurations))]


def _variants(row: Row, groups: Sequence[list[QuantizerRun]]) -> list[SeedGroup]:
    found = differences([members[0].configuration for members in groups])
    return [
        SeedGroup(row, sorted(members, key=_by_seed), own, number if len(groups) > 1 else 0)
        for number, (members, own) in enumerate(zip(groups, found, strict=True), 1)
    ]


def _by_seed(run: QuantizerRun) -> tuple[bool, int]:
    return run.seed is None, run.seed or 0


def _training(tested: RunFiles) -> RunFiles:
    """Run that trained what was tested: that whose checkpoints were read, mostly itself."""
    save = Path(tested.nodes["save_folder"])
    if save.is_relative_to(tested.nodes["output_folder"]):
        return tested
    return read_run_files(_named(save, by=tested).parent)


def _decoder(tested: RunFiles) -> RunFiles | None:
    """Run that ``decoder_checkpoint`` is, or lies in; None without one."""
    checkpoint = tested.nodes.get("decoder_checkpoint")
    if checkpoint is None:
        return None
    path = _named(Path(checkpoint), by=tested)
    above = (path, *path.parents[:3])  # RUN/save/CHECKPOINT/decoder.ckpt
    run = next((folder for folder in above if (folder / "run.json").is_file()), path)
    return read_run_files(run)


def _named(path: Path, *, by: RunFiles) -> Path:
    """Place of a path in a run's YAML, which is relative to where the run was started.

    That is where its own ``output_folder`` leads to the folder that it lies in; of a run that was
    moved it is not known, and the path is left as it is.
    """
    folder, output = by.folder.resolve(), Path(by.nodes["output_folder"])
    known = not output.is_absolute() and folder.parts[-len(output.parts) :] == output.parts
    return folder.parents[len(output.parts) - 1] / path if known else path


def _configuration(tested: RunFiles, trained: RunFiles, decoder: RunFiles | None) -> dict[str, str]:
    training = {key: value for key, value in trained.nodes.items() if key not in _DECODING}
    configuration = {
        **_compared(tested.nodes),
        **_compared(training, prefix="training."),
        "encoder_features": repr(tested.description["encoder"]),
    }
    if decoder is not None:
        configuration |= _compared(decoder.nodes, prefix="decoder_training.")
        if decoder.description is None:
            configuration["decoder_checkpoint"] = repr(str(decoder.folder))
    for role, run in (("training", trained), ("decoder_training", decoder)):
        if run is not None and run.description is not None and run.processes > 1:
            configuration[f"{role}.processes"] = str(run.processes)  # an older version counts none
    manifests = {
        "data.training": trained.folder / "train.json",
        "data.test": tested.folder / "test.json",
        "data.decoder_training": decoder and decoder.folder / "train.json",
    }
    for key, path in manifests.items():
        if path is not None and path.is_file():
            configuration[key] = f"CRC {file_crc(path):08x}"
    return configuration


def _compared(nodes: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    kept = {key: value for key, value in nodes.items() if key not in _UNCOMPARED}
    # An older version's YAML lacks keys that are null by default now.
    return {prefix + key: text for key, text in _leaves(kept) if text != "None"}


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths of a YAML's values, and of its tags, each with one text for all spellings."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag == "!apply:getattr":
        return  # a resolved reference, such as <encoder.dim>: what it refers to is compared
    if not isinstance(node, Mapping):
        without_arguments = tag and getattr(node, "value", None) == ""
        yield path, tag if without_arguments else canonical(node)
        return
    if tag:
        yield path, tag
    for key, value in node.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _starts(tested: RunFiles, training: RunFiles, decoder: RunFiles | None) -> list[Start]:
    if training is tested:
        starts = starts_of(tested, "training and test")
    else:
        starts = starts_of(tested, "test") + starts_of(training, "training")
    return starts if decoder is None else starts + starts_of(decoder, "decoder's training")
