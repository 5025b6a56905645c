"""The tokens of a task's corpus: read from shards, which are filled first where data are at hand.

With ``data_folder`` the task's dataset block says what the subsets are, and `build_shards` encodes
what the shards lack. Without, the shards of ``python -m recipes.tokenize`` are the corpus, and
neither audio nor, for tasks that decode nothing, the codec is needed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from recipes.codecs.codec import Codec
from recipes.common.blocks import load_codec, prepare_dataset
from recipes.common.corpus_files import SUBSETS
from recipes.common.dataio import read_manifest
from recipes.common.known_data import manifest_name
from recipes.common.shards import Extractor, Shards, Tokens, build_shards, open_shards

logger = logging.getLogger(__name__)

Rows = dict[str, dict[str, Any]]


class Corpus(NamedTuple):
    """Rows by subset and utterance id, and what their tokens are of.

    A row has ``toks`` (L, K), ``duration`` in seconds, ``text`` and labels as far as they are
    known, and the paths of its manifest where there is a ``data_folder``. ``description`` says what
    the codec is; the ``codec`` itself is there, on ``device``, if it was asked for.
    """

    rows: dict[str, Rows]
    description: dict[str, Any]
    codebooks: Tensor | None
    codec: Codec | None
    device: str


def prepare_manifests(hparams: Mapping[str, Any]) -> None:
    """Write the manifests of the dataset block, if there are data, into the output folder.

    Raises
    ------
    ValueError : if there are neither data nor shards, or the block takes no such options.
    """
    if hparams["data_folder"] is None:
        if hparams["tokens_folder"] is None:
            raise ValueError(
                "there is nothing to train on: pass --data_folder CORPUS, or --tokens_folder "
                "FOLDER with what python -m recipes.tokenize has written"
            )
        return
    prepare_dataset(hparams, hparams["output_folder"])


def open_corpus(hparams: Mapping[str, Any], *, device: str, with_codec: bool) -> Corpus:
    """Read the tokens, encoding first what is missing; every rank has to call it.

    Parameters
    ----------
    hparams : keys of the YAML; manifests are in ``output_folder`` if there is a ``data_folder``.
    device : of the codec.
    with_codec : whether the task decodes.

    Raises
    ------
    ValueError : if the shards are of another codec or corpus, or lack a subset.
    FileNotFoundError : if data or weights are missing.
    """
    folder = Path(hparams["tokens_folder"] or Path(hparams["output_folder"], "tokens"))
    manifests = read_manifests(hparams)
    codec = None
    if with_codec or manifests is not None:
        codec = load_codec(hparams).to(device)
        fill_shards(folder, manifests, hparams, extractor=Tokens(codec), device=device)
    shards = open_shards(folder)
    logger.info("tokens of %s in %s", shards.description["name"], folder)
    return Corpus(
        read_rows(shards, manifests),
        shards.description,
        shards.codebooks,
        codec if with_codec else None,
        device,
    )


def read_manifests(hparams: Mapping[str, Any]) -> dict[str, Rows] | None:
    """Manifests of a task by subset, with real paths; None if shards are all that there is."""
    if hparams["data_folder"] is None:
        return None
    folder = Path(hparams["output_folder"])
    return {
        subset: read_manifest(folder / manifest_name(subset), data_folder=hparams["data_folder"])
        for subset in SUBSETS
    }


def fill_shards(
    folder: Path,
    manifests: Mapping[str, Rows] | None,
    hparams: Mapping[str, Any],
    *,
    extractor: Extractor,
    device: str | torch.device,
) -> None:
    """Extract what shards lack; without data, only refuse those of another extractor.

    Raises
    ------
    ValueError : as `open_corpus`.
    """
    if manifests is None:
        refuse_other(open_shards(folder), extractor)
        return
    build_shards(
        folder,
        manifests,
        extractor=extractor,
        device=device,
        batch_seconds=hparams["tokens_batch_seconds"],
        on_bad_file=hparams["on_bad_file"],
        progress=if_main_process(),
    )


def refuse_other(shards: Shards, extractor: Extractor) -> None:
    """Raise ValueError if shards were extracted by other weights than those of ``extractor``."""
    found, wanted = shards.description, extractor.description
    if found["weights"] != wanted["weights"]:
        raise ValueError(
            f"{shards.folder} holds what {found['name']} gave (weights {found['weights']}), and "
            f"this run has {wanted['name']} (weights {wanted['weights']}); name the same "
            "--codec and --codec_checkpoint, or choose another folder"
        )


def read_rows(shards: Shards, manifests: Mapping[str, Rows] | None) -> dict[str, Rows]:
    """Rows of all subsets, with those of the manifests under them.

    Raises
    ------
    ValueError : if a subset is missing or empty.
    """
    rows = {}
    for subset in SUBSETS:
        if subset not in shards.subsets:
            raise ValueError(
                f"{shards.folder} has no tokens of subset '{subset}' (there are "
                f"{', '.join(shards.subsets) or 'none'}); tokenize it, too"
            )
        found = shards.read(subset)
        known = manifests[subset] if manifests is not None else {}
        rows[subset] = {utt_id: {**known.get(utt_id, {}), **row} for utt_id, row in found.items()}
    return rows


def keep(rows: Rows, reasons: Mapping[str, str], *, subset: str, most: float = 1.0) -> Rows:
    """Leave utterances out, and say so.

    Parameters
    ----------
    rows : by utterance id.
    reasons : why, by id, of those that are left out.
    subset : their name in messages.
    most : share of the subset that may be missing.

    Raises
    ------
    ValueError : if more are left out, or nothing remains.
    """
    if not reasons:
        return rows
    first = next(iter(reasons))
    message = f"{len(reasons)} of {len(rows)} utterances of {subset}: {first}: {reasons[first]}"
    if len(reasons) == len(rows) or len(reasons) > most * len(rows):
        raise ValueError(f"no training is possible without {message}")
    logger.warning("left out %s", message)
    return {utt_id: row for utt_id, row in rows.items() if utt_id not in reasons}
