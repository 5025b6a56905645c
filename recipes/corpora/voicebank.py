"""VoiceBank-DEMAND, test set: noisy speech beside the clean recordings.

Source: datashare.ed.ac.uk/handle/10283/2791 (Valentini-Botinhao et al., 2016): p232 and p257, 824
utterances (the FocalCodec paper's appendix says 872), 48 kHz, ratios of 2.5, 7.5, 12.5 and 17.5 dB.
``noisy_testset_wav/<speaker>_<number>.wav``, the same in ``clean_testset_wav``, and texts in
``testset_txt/<speaker>_<number>.txt``.
"""

from pathlib import Path
from typing import Any

from recipes.common.corpus_files import Utterance, corpus_folder, find_audio, read_text
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus, write_manifests


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    noisy_folder: str | Path = "noisy_testset_wav",
    clean_folder: str | Path = "clean_testset_wav",
    text_folder: str | Path = "testset_txt",
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifest of the test set: ``wav`` is noisy, ``target`` clean.

    Parameters
    ----------
    data_folder : folder that holds the unpacked archives.
    save_folder : receives {train,valid,test}.json and bad_files.tsv; train and valid are empty.
    noisy_folder, clean_folder, text_folder : below ``data_folder``, or absolute paths. A folder of
        texts that is not there is no error: the utterances then have none.
    filters : min_duration_s, max_duration_s, max_test_utterances, on_bad_file, seed, as in
        `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset; utterances without a clean recording of the
        same length are bad.

    Raises
    ------
    FileNotFoundError : if a folder of audio is missing.
    ValueError : if nothing is left; BadAudioError with ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    noisy, clean = (
        corpus_folder(root, name, corpus="VoiceBank", fix=f"name another one as {argument}")
        for name, argument in ((noisy_folder, "noisy_folder"), (clean_folder, "clean_folder"))
    )
    texts = root / Path(text_folder).expanduser()
    utterances = [
        Utterance(
            path,
            path.stem,
            path.stem.split("_")[0],
            {"target": clean / path.relative_to(noisy)},
        )
        for path in find_audio(noisy, suffixes=(".wav", ".flac"))
    ]
    return write_manifests(
        root,
        save_folder,
        subsets={"test": utterances},
        read_text=lambda path: read_text(texts / f"{path.stem}.txt"),
        **filters,
    )
