"""VCTK, voice conversion pairs: the first 24 sentences, which every speaker reads.

Source: datashare.ed.ac.uk/handle/10283/3443 (CSTR VCTK Corpus 0.92): 110 speakers, 48 kHz,
``wav48_silence_trimmed/<speaker>/<speaker>_<number>_mic1.flac`` with
``txt/<speaker>/<speaker>_<number>.txt``; releases before 0.92 have
``wav48/<speaker>/<speaker>_<number>.wav``. The text of p315 is lost; its recordings are paired by
their numbers, as all are.

The FocalCodec paper has 2521 pairs. Each sentence gives one pair less than it has speakers, so 110
speakers x 24 sentences would give 2616; 2521 pairs mean 2545 recordings, so 95 of 2640 have to be
missing in 0.92 (some speakers skipped sentences; we could not count them).
"""

import re
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import corpus_folder, find_audio, read_text
from recipes.common.files import existing_folder
from recipes.common.manifests import PreparedCorpus
from recipes.corpora.parallel import Sentence, write_pairs

LAYOUTS = ("wav48_silence_trimmed", "wav48")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    num_sentences: int = 24,
    microphone: str = "mic1",
    on_bad_file: str = "skip",
    **filters: Any,
) -> PreparedCorpus:
    """Write the pairs of parallel sentences; train and valid are empty.

    Parameters
    ----------
    data_folder : folder that holds ``wav48_silence_trimmed`` or ``wav48``, and ``txt``.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    num_sentences : sentences 1 to this number.
    microphone : "mic1" or "mic2" of release 0.92; mic2 has no p280 and no p315.
    on_bad_file : "skip" or "raise".
    filters : min_duration_s, max_duration_s (of the source), max_test_utterances, seed, as in
        `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if the data folder or its audio is missing.
    ValueError : if an argument is wrong, or there is no pair; BadAudioError with
        ``on_bad_file="raise"``.
    """
    if microphone not in ("mic1", "mic2"):
        raise ValueError(f"microphone must be mic1 or mic2, got {microphone!r}")
    root = existing_folder(data_folder)
    layout = next((name for name in LAYOUTS if (root / name).is_dir()), LAYOUTS[0])
    audio = corpus_folder(root, layout, corpus="VCTK", fix="give its parent as data_folder")
    sentences = []
    for path in find_audio(audio, suffixes=(".flac", ".wav")):
        match = re.fullmatch(r"(\w+?)_(\d+)(?:_(mic[12]))?", path.stem)
        if match is None or match[3] not in (None, microphone) or int(match[2]) > num_sentences:
            continue
        speaker, number = match[1], match[2]
        text = read_text(root / "txt" / speaker / f"{speaker}_{number}.txt")
        sentences.append(Sentence(path, f"{speaker}_{number}", speaker, int(number), text))
    return write_pairs(root, save_folder, sentences, on_bad_file=on_bad_file, **filters)
