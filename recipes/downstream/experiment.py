"""One task from command line to ``metrics.json``: what the four scripts share.

As `recipes.common.experiment` for the stages of the codec, with tokens in the place of features.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import infer_device, run_on_main
from torch import nn

from recipes.common import experiment as stages
from recipes.common.command_line import block_name, resolved_hash
from recipes.common.experiment import (
    Experiment,
    load_dataset,
    open_run,
    prepare_run,
    run_experiment,
    seed_rank,
)
from recipes.common.model_cost import num_parameters
from recipes.common.run_folder import hardware, read_description
from recipes.common.shards.format import LABELS
from recipes.downstream.brain import Task, TokenBrain
from recipes.downstream.corpus import Corpus, Rows, open_corpus, prepare_manifests

# A run may be continued with other values of these, as with those of the stages of the codec.
CONTINUABLE = (
    *stages.CONTINUABLE,
    "tokens_folder",  # the weights of the codec and what is in it are compared instead
    "tokens_batch_seconds",
    "vectors_folder",
    "paper_protocol",  # a test beside the other one
)
Assemble = Callable[[dict[str, Any], Corpus], Task]


def run_task(
    brain_class: type[TokenBrain], assemble: Assemble, argv: Sequence[str]
) -> dict[str, Any]:
    """Parse, tokenize what is missing, train, test.

    Parameters
    ----------
    brain_class : the task's Brain.
    assemble : makes model and datasets of the YAML's keys and the corpus.
    argv : command line without the program: a YAML file, SpeechBrain's run options, overrides.

    Returns
    -------
    What ``metrics.json`` holds.

    Raises
    ------
    ValueError : for an override that would be lost, a folder of another configuration, or data
        that the task cannot be trained on.
    FileNotFoundError : if data or weights are missing.
    """
    return run_experiment(brain_class, argv, build=partial(build_task, assemble=assemble))


def build_task(
    brain_class: type[TokenBrain], argv: Sequence[str], *, assemble: Assemble
) -> Experiment:
    """Everything up to the first batch; arguments and errors as of `run_task`."""
    block: dict[str, str] = {}

    def config_hash(param_file: str, overrides: str) -> str:
        block["name"] = block_name(param_file, overrides, "dataset")
        return resolved_hash(param_file, overrides, without=CONTINUABLE)

    folder, hparams, run_opts = open_run(argv, config_hash=config_hash)
    brain_class.check(hparams)
    run_on_main(prepare_run, kwargs={"hparams": hparams, "prepare": prepare_manifests})
    device = run_opts["device"] or infer_device()
    corpus = open_corpus(hparams, device=device, with_codec=brain_class.decodes)
    task = assemble(hparams, corpus)
    checkpointer = hparams["checkpointer"]
    checkpointer.add_recoverable("model", task.model)
    brain = brain_class(
        task=task,
        corpus=corpus,
        dataset={**block, "options": dict(hparams["dataset_options"])},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    loaders = [
        load_dataset(brain, hparams, stage, task.datasets[stage], batch_size=hparams["batch_size"])
        for stage in sb.Stage
    ]
    seed_rank(hparams["seed"])
    data = data_hash(task.datasets)
    if hparams["on_changed_data"] == "raise":
        refuse_other_data(folder.path, data)
    # Last, so that a mistake found on the way leaves the folder free for the corrected command.
    facts = {
        "weights": {"codec": corpus.description["weights"]},
        "data": data,
        "seed": hparams["seed"],
        "parameters": {"model": num_parameters(task.model)},
        "hardware": hardware(brain.device),
    }
    run_on_main(folder.describe, kwargs=facts)
    return Experiment(brain, *loaders)


def make_model(hparams: Mapping[str, Any], corpus: Corpus, **sizes: Any) -> nn.Module:
    """Model of the YAML for a corpus' tokens, with weights that the seed alone draws.

    What was drawn before depends on what there was to load and to encode.

    Parameters
    ----------
    hparams : keys of the YAML.
    corpus : gives the codebooks that embeddings start from.
    sizes : further arguments of the YAML's ``model``.

    Raises
    ------
    ValueError : if the codec has no codebooks.
    """
    if corpus.codebooks is None:
        raise ValueError(
            f"{corpus.description['name']} gives no codebooks, from which embeddings start; write "
            "its adapter's embeddings()"
        )
    sb.utils.seed.seed_everything(hparams["seed"], verbose=False)
    return hparams["model"](corpus.codebooks, **sizes)


def make_dataset(
    rows: Rows,
    *,
    items: Mapping[str, Callable[[dict[str, Any]], Any]],
    sorting: str = "ascending",
) -> DynamicItemDataset:
    """Dataset of a subset's rows.

    Parameters
    ----------
    rows : by utterance id.
    items : what an example has beside ``id``, each a function of its row.
    sorting : "ascending" or "descending" by duration; "random" keeps the order of ids and leaves
        shuffling to the loader.

    Raises
    ------
    ValueError : if ``sorting`` is none of the three.
    """
    if sorting not in ("random", "ascending", "descending"):
        raise ValueError(f"sorting must be random, ascending or descending, got {sorting!r}")
    ids = sorted(rows)
    if sorting != "random":
        ids.sort(key=lambda utt_id: rows[utt_id]["duration"], reverse=sorting == "descending")
    dataset = DynamicItemDataset(
        {utt_id: {"duration": rows[utt_id]["duration"], "row": rows[utt_id]} for utt_id in ids}
    )
    for name, make in items.items():
        dataset.add_dynamic_item(make, takes="row", provides=name)
    dataset.set_output_keys(["id", *items])
    return dataset


def make_datasets(
    corpus: Corpus,
    *,
    items: Mapping[str, Callable[[dict[str, Any]], Any]],
    sorting: str,
) -> dict[sb.Stage, DynamicItemDataset]:
    """Datasets of all stages; ``sorting`` is that of the training set, see `make_dataset`."""
    return {
        stage: make_dataset(
            corpus.rows[stage.name.lower()],
            items=items,
            sorting=sorting if stage == sb.Stage.TRAIN else "ascending",
        )
        for stage in sb.Stage
    }


def data_hash(datasets: Mapping[sb.Stage, DynamicItemDataset]) -> str:
    """Fingerprint of utterances, labels, tokens and vectors, wherever audio and shards lie."""
    digest = hashlib.sha256()
    for stage, dataset in datasets.items():
        for utt_id, entry in sorted(dataset.data.items()):
            row = entry["row"]
            known = [row.get(name) for name in ("duration", *LABELS)]
            arrays = {name: row[name] for name in sorted(row) if isinstance(row[name], np.ndarray)}
            shapes = {name: array.shape for name, array in arrays.items()}
            digest.update(json.dumps([stage.name, utt_id, known, shapes]).encode())
            for array in arrays.values():
                digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def refuse_other_data(folder: Path, found: str) -> None:
    """Raise ValueError if a run in ``folder`` was begun with data of another `data_hash`."""
    earlier = read_description(folder)
    if earlier is not None and earlier.get("data") != found:
        raise ValueError(
            f"{folder} was begun with other utterances, labels, tokens or speaker vectors than "
            "there are now; put tokens_folder and vectors_folder back, go on with what is there by "
            "--on_changed_data accept, or choose another folder with --output_folder"
        )
