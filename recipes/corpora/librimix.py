"""Folders of mixtures that LibriMix' scripts have written, of one speaker or several.

Source: github.com/JorisCos/LibriMix (Cosentino et al., 2020, arXiv:2005.11262). What
`recipes.corpora.libri1mix` and `recipes.corpora.libri2mix` share.
"""

from collections.abc import Mapping
from pathlib import Path

from recipes.common.corpus_files import Utterance, corpus_folder, find_audio


def list_mixtures(
    folder: Path, *, mixture: str, sources: Mapping[str, str], fix: str
) -> list[Utterance]:
    """List the mixtures of one set; the speaker is the first one, whose name the id begins with.

    Parameters
    ----------
    folder : of the set, such as ``Libri2Mix/wav16k/min/dev``.
    mixture : folder of the mixtures in it.
    sources : folder of the files that belong to them, by the key of the manifest.
    fix : what can be done if one of these is missing, for the message.

    Raises
    ------
    FileNotFoundError : if a folder is missing.
    """
    mixtures = corpus_folder(folder, mixture, corpus="LibriMix", fix=fix)
    parts = {
        key: corpus_folder(folder, name, corpus="LibriMix", fix=fix)
        for key, name in sources.items()
    }
    return [
        Utterance(
            path,
            path.stem,
            path.stem.split("-")[0],
            {key: part / path.name for key, part in parts.items()},
        )
        for path in find_audio(mixtures, suffixes=(".wav", ".flac"))
    ]
