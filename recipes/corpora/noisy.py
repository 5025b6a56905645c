"""Any speech mixed on the fly with any noise, at chosen signal-to-noise ratios: a noisy test set.

Two trees of audio files are read, nothing is written to them. Noise and ratio of an utterance are
drawn from the seed and its id alone, so they stay the same whatever else is in the set.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.corpus_files import (
    Utterance,
    corpus_folder,
    describe_tree,
    find_audio,
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
    speaker_level: int = 1,
    language: str | None = None,
    on_bad_file: str = "skip",
    seed: int = 0,
    **filters: Any,
) -> PreparedCorpus:
    """Write the manifest of a noisy test set; train and valid are empty.

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
    speaker_level : how many folders above a file its speaker's folder is (1 = its own, 2 for
        LibriSpeech's layout).
    language : ISO 639-1 code of the speech; None = English.
    on_bad_file : "skip" or "raise", for speech and noise.
    seed : of noise, ratios and draws.
    filters : min_duration_s, max_duration_s, max_test_utterances, as in
        `recipes.common.manifests.write_manifests`.

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
    speech_root = corpus_folder(
        root, speech_folder, corpus="speech", fix="name another one as speech_folder"
    )
    noise_root = corpus_folder(
        root, noise_folder, corpus="noise", fix="name another one as noise_folder"
    )
    for folder in (speech_root, noise_root):
        folder_outside(save_folder, folder)
    if isinstance(snrs_db, str) or not list(snrs_db):
        raise ValueError(f"snrs_db must be a list of ratios in dB, such as [0, 5], got {snrs_db!r}")
    headers, bad_noise = read_headers(find_audio(noise_root), on_bad_file=on_bad_file)
    if not headers:
        raise ValueError(
            f"no usable audio file in noise_folder {noise_root} ({len(bad_noise)} are bad); "
            "unpack the noise there or name another folder"
        )
    # By path below their own root: the same draw wherever the folders lie.
    noises = sorted(headers, key=lambda path: path.relative_to(noise_root).as_posix())

    def complete(utterance: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | _draw_mixture(
            row["wav"], noises, snrs_db, random.Random(f"{seed} {utterance}")
        )

    keys = {} if language is None else {"language": language}
    utterances = [
        Utterance(path, *describe_tree(path, root=speech_root, speaker_level=speaker_level), keys)
        for path in find_audio(speech_root)
    ]
    return write_manifests(
        root,
        save_folder,
        subsets={"test": utterances},
        read_text=tree_text_reader(),
        on_bad_file=on_bad_file,
        seed=seed,
        left_out=bad_noise,
        complete=complete,
        **filters,
    )


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
