"""Libri1Mix, test set: the first speaker of LibriMix in the noise of WHAM!.

Source: github.com/JorisCos/LibriMix (Cosentino et al., 2020, arXiv:2005.11262). Its metadata name
LibriSpeech and WHAM! files and gains. `prepare` mixes from them on the fly
(`recipes.common.mixing`); `prepare_ready` reads a folder that LibriMix' scripts have written.

LibriMix publishes no metadata of one speaker (its generator never ends for test sets of one
speaker: issue 37), so those of Libri2Mix are read and its second speaker left out, as its script
does with ``--n_src 1``. A mixture then is as long as the first speaker's utterance, in LibriMix'
modes ``min`` and ``max`` alike: both differ for several speakers only.
"""

import csv
import functools
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import Utterance, corpus_folder, read_chapter
from recipes.common.files import existing_folder, folder_outside
from recipes.common.manifests import PreparedCorpus, write_manifests
from recipes.corpora.librimix import list_mixtures

COLUMNS = ("mixture_ID", "source_1_path", "source_1_gain", "noise_path", "noise_gain")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    metadata: str | Path = "LibriMix/metadata/Libri2Mix/libri2mix_test-clean.csv",
    speech_folder: str | Path = "LibriSpeech",
    noise_folder: str | Path = "wham_noise",
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifest of mixtures that are made on the fly; train and valid are empty.

    Defaults fit the ``storage_dir`` of LibriMix' ``generate_librimix.sh`` with a clone of LibriMix
    in it. The target is the first speaker's utterance times its gain. Gains are LibriMix', which
    has chosen them so that mixtures do not clip.

    Parameters
    ----------
    data_folder : root of the folders below.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    metadata : CSV file of LibriMix, of any number of speakers.
    speech_folder : LibriSpeech, which holds ``test-clean``.
    noise_folder : WHAM! noise, which holds ``tt``.
    filters : min_duration_s, max_duration_s, max_test_utterances, on_bad_file, seed, as in
        `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset; mixtures of which a file is missing are bad.

    Raises
    ------
    FileNotFoundError : if a folder or the metadata are missing.
    ValueError : if the metadata are none, or nothing is left; BadAudioError with
        ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    speech, noise = (
        corpus_folder(root, name, corpus="LibriMix", fix=f"name another one as {argument}")
        for name, argument in ((speech_folder, "speech_folder"), (noise_folder, "noise_folder"))
    )
    for folder in (speech, noise):
        folder_outside(save_folder, folder)
    utterances = [
        Utterance(
            speech / row["source_1_path"],
            row["mixture_ID"],
            row["mixture_ID"].split("-")[0],
            {
                "noise": noise / row["noise_path"],
                "speech_gain": row["source_1_gain"],
                "noise_gain": row["noise_gain"],
            },
        )
        for row in read_metadata(root / Path(metadata).expanduser())
    ]
    chapter = functools.cache(read_chapter)
    return write_manifests(
        root,
        save_folder,
        subsets={"test": utterances},
        read_text=lambda path: chapter(path.parent).get(path.stem),
        **filters,
    )


def prepare_ready(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    mixtures_folder: str | Path = "Libri1Mix/wav16k/min/test",
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifest of mixtures that LibriMix' scripts have written: ``target`` is ``s1``.

    Noisy are the files in ``mix_single``, one speaker and noise; of Libri1Mix also those in
    ``mix_both``, which are the same there.

    Parameters
    ----------
    data_folder : folder that holds ``Libri1Mix``.
    save_folder : receives {train,valid,test}.json and bad_files.tsv; train and valid are empty.
    mixtures_folder : below ``data_folder``, or an absolute path; of Libri2Mix, too.
    filters : as those of `prepare`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset; mixtures without a file in ``s1`` are bad.

    Raises
    ------
    FileNotFoundError : if a folder is missing.
    ValueError : if nothing is left; BadAudioError with ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    fix = "name another one as mixtures_folder"
    mixtures = corpus_folder(root, mixtures_folder, corpus="LibriMix", fix=fix)
    one_speaker = not (mixtures / "s2").is_dir()
    both = (mixtures / "mix_both").is_dir() and not (mixtures / "mix_single").is_dir()
    utterances = list_mixtures(
        mixtures,
        mixture="mix_both" if one_speaker and both else "mix_single",
        sources={"target": "s1"},
        fix=fix,
    )
    return write_manifests(
        root, save_folder, subsets={"test": utterances}, read_text=lambda path: None, **filters
    )


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file of LibriMix, gains as numbers.

    Raises
    ------
    FileNotFoundError : without the file.
    ValueError : if a column is missing or a gain is no number.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"LibriMix metadata {path} not found; clone github.com/JorisCos/LibriMix there, or "
            "give the path of libri1mix_test-clean.csv or libri2mix_test-clean.csv as metadata"
        )
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{path} has no columns {', '.join(missing)}; metadata of LibriMix are needed, "
                "such as libri2mix_test-clean.csv (not ..._info.csv)"
            )
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        for name in ("source_1_gain", "noise_gain"):
            try:
                row[name] = float(row[name])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}, line {number}: {name} is {row[name]!r}, no number"
                ) from None
    return rows
