"""Any speech mixed on the fly with any noise, at chosen signal-to-noise ratios.

A noisy test set, or all three sets of an enhancement. Two trees of audio files are read, nothing is
written to them. Noise and ratio of an utterance are drawn from the seed and its id alone, so they
stay the same whatever else is in the set.
"""

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import (
    AUDIO_SUFFIXES,
    Utterance,
    corpus_folder,
    describe_tree,
    find_audio,
    list_splits,
    tree_text_reader,
)
from recipes.common.dataio import BadAudioError, load_sig
from recipes.common.files import existing_folder, folder_outside
from recipes.common.manifests import PreparedCorpus, read_headers, write_manifests
from recipes.common.mixing import (
    SAMPLE_RATE,
    SILENCE,
    gains_at_snr,
    load_noise,
    root_mean_square,
)

_TRIES = 20  # noises that are drawn for an utterance before it is given up


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    *,
    snrs_db: Sequence[float],
    speech_folder: str | Path = "speech",
    noise_folder: str | Path = "noise",
    train_folders: Sequence[str] | None = None,
    valid_folders: Sequence[str] | None = None,
    test_folders: Sequence[str] | None = None,
    speaker_level: int = 1,
    language: str | None = None,
    on_bad_file: str = "skip",
    seed: int = 0,
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifests of mixtures that are made on the fly.

    Noise starts at its beginning, its first channel is taken, and what is shorter than the speech
    is repeated (`recipes.common.mixing.extend_noise`). Noise that is silent over the length of an
    utterance is not drawn for it.

    Parameters
    ----------
    data_folder : root; may hold speech and noise, or just one of them.
    save_folder : receives {train,valid,test}.json and bad_files.tsv.
    snrs_db : signal-to-noise ratios to draw from, in dB.
    speech_folder, noise_folder : below ``data_folder``, or absolute paths, with nothing but speech
        and nothing but noise in them (no impulse responses). A file outside of ``data_folder`` has
        an absolute path in the manifest.
    train_folders, valid_folders, test_folders : below ``speech_folder``; where none is given, all
        of it is the test set. All three sets hear the same noises.
    speaker_level : how many folders above a file its speaker's folder is (1 = its own, 2 for
        LibriSpeech's layout).
    language : ISO 639-1 code of the speech; None = English.
    on_bad_file : "skip" or "raise", for speech and noise.
    seed : of noise, ratios and draws.
    filters : min_duration_s, max_duration_s, max_train_utterances, max_valid_utterances,
        max_test_utterances, as in `recipes.common.manifests.write_manifests`.

    Returns
    -------
    PreparedCorpus : counts and hours of each subset.

    Raises
    ------
    FileNotFoundError : if a folder is missing.
    ValueError : if there is no ratio, no noise or no utterance; BadAudioError with
        ``on_bad_file="raise"``.
    """
    root = existing_folder(data_folder)
    speech_root, noise_root = (
        corpus_folder(root, name, corpus=kind, fix=f"name another one as {kind}_folder")
        for kind, name in (("speech", speech_folder), ("noise", noise_folder))
    )
    for folder in (speech_root, noise_root):
        folder_outside(save_folder, folder)
    if isinstance(snrs_db, str) or not list(snrs_db):
        raise ValueError(f"snrs_db must be a list of ratios in dB, such as [0, 5], got {snrs_db!r}")
    noises, bad_noise = _list_noises(noise_root, on_bad_file=on_bad_file)

    def complete(utterance: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | _draw_mixture(
            row["wav"], noises, snrs_db, random.Random(f"{seed} {utterance}")
        )

    subsets = _list_speech(
        speech_root,
        folders=(train_folders, valid_folders, test_folders),
        speaker_level=speaker_level,
        keys={} if language is None else {"language": language},
    )
    return write_manifests(
        root,
        save_folder,
        subsets=subsets,
        read_text=tree_text_reader(),
        on_bad_file=on_bad_file,
        seed=seed,
        left_out=bad_noise,
        complete=complete,
        **filters,
    )


def _list_speech(
    speech_root: Path,
    *,
    folders: tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None],
    speaker_level: int,
    keys: dict[str, Any],
) -> dict[str, list[Utterance] | None]:
    describe = functools.partial(describe_tree, root=speech_root, speaker_level=speaker_level)
    if any(folders):
        subsets = list_splits(
            speech_root,
            corpus="speech",
            splits=folders,
            suffixes=AUDIO_SUFFIXES,
            describe=describe,
            arguments=("train_folders", "valid_folders", "test_folders"),
        )
    else:
        subsets = {"test": [Utterance(path, *describe(path)) for path in find_audio(speech_root)]}
    return {
        subset: utterances and [utterance._replace(keys=keys) for utterance in utterances]
        for subset, utterances in subsets.items()
    }


def _list_noises(noise_root: Path, *, on_bad_file: str) -> tuple[list[Path], dict[str, str]]:
    """Usable files, and the reasons by path of the others; ValueError if none can be used."""
    headers, bad = read_headers(find_audio(noise_root), on_bad_file=on_bad_file)
    if not headers:
        raise ValueError(
            f"no usable audio file in noise_folder {noise_root} ({len(bad)} are bad); "
            "unpack the noise there or name another folder"
        )
    # By path below their own root: the same draw wherever the folders lie.
    return sorted(headers, key=lambda path: path.relative_to(noise_root).as_posix()), bad


def _draw_mixture(
    path: Path, noises: Sequence[Path], snrs_db: Sequence[float], rng: random.Random
) -> dict[str, Any]:
    """Keys of the manifest that say what an utterance is mixed with, and how."""
    speech = load_sig(path, sample_rate=SAMPLE_RATE)
    if root_mean_square(speech) < SILENCE:
        raise BadAudioError(path, "is silent: there is no ratio to mix it at")
    snr_db = rng.choice(list(snrs_db))
    for _ in range(_TRIES):
        noise = rng.choice(noises)
        try:
            sig = load_noise(noise, num_samples=len(speech))
        except BadAudioError as error:
            raise BadAudioError(path, f"its noise {error}") from error
        if root_mean_square(sig) >= SILENCE:
            gains = gains_at_snr(speech, sig, snr_db=snr_db)
            return {
                "noise": noise,
                "snr_db": snr_db,
                "speech_gain": gains.speech,
                "noise_gain": gains.noise,
            }
    raise BadAudioError(path, f"{_TRIES} noises drawn for it are silent, the last one {noise}")
