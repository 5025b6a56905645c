"""A multi-speaker corpus in LibriTTS' layout, spoken by eSpeak NG: for the demo, trials and tests.

    python -m recipes.corpora.synthetic FOLDER --speakers 16 --utterances 20 --seed 0

24 kHz wav files with ``.normalized.txt`` in train-clean-100, dev-clean and test-clean; no speaker
and no sentence occurs in two of them. Needs the ``espeakng-loader`` wheel. Prepared
by ``recipes.corpora.libritts`` (``hparams/dataset/synthetic.yaml``).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from recipes.common.files import write_text
from recipes.corpora.espeak import Espeak, Voice, draw_voices
from recipes.corpora.generated import claim, write_sig
from recipes.corpora.sentences import sentence

SAMPLE_RATE = 24_000  # Hz
SPLITS = ("train-clean-100", "dev-clean", "test-clean")


class Speaker(NamedTuple):
    """One synthetic speaker."""

    id: str
    split: str
    voice: Voice


def generate(
    output_folder: str | Path,
    *,
    speakers: int = 16,
    heldout_speakers: int = 2,
    utterances: int = 20,
    seed: int = 0,
) -> Path:
    """Write the corpus; an interrupted call can be repeated, files that are there are kept.

    The same arguments give the same bytes, whatever was there before.

    Parameters
    ----------
    output_folder : becomes the ``data_folder`` of a recipe.
    speakers : of train-clean-100.
    heldout_speakers : of dev-clean, and as many others of test-clean.
    utterances : of each speaker, 2 to 9 s each.
    seed : of voices and sentences.

    Returns
    -------
    ``output_folder`` as a path.

    Raises
    ------
    ModuleNotFoundError : without the espeakng-loader wheel.
    ValueError : if the folder holds a corpus of other arguments, or there are too few voices.
    """
    folder = Path(output_folder)
    cast = draw_speakers(speakers=speakers, heldout_speakers=heldout_speakers, seed=seed)
    engine = Espeak()
    arguments = {
        "speakers": speakers,
        "heldout_speakers": heldout_speakers,
        "utterances": utterances,
        "seed": seed,
        "espeak": engine.version,
    }
    claim(folder, arguments, record="synthetic.json", what="a synthetic corpus")
    jobs = list(_jobs(folder, cast, utterances, seed))
    for path, speaker, text in tqdm(jobs, desc="synthesis", unit="utt", disable=None):
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path.with_suffix(".normalized.txt"), text + "\n")
        sig = engine.speak(text, voice=speaker.voice, sample_rate=SAMPLE_RATE)
        write_sig(path, sig, sample_rate=SAMPLE_RATE)
    return folder


def draw_speakers(*, speakers: int, heldout_speakers: int, seed: int) -> list[Speaker]:
    """Draw the speakers of the three splits, low and high voices in turn, no voice twice.

    Raises
    ------
    ValueError : if a number is less than 1 or there are fewer voices than speakers.
    """
    if min(speakers, heldout_speakers) < 1:
        raise ValueError(
            "speakers and heldout_speakers must be at least 1, got "
            f"{speakers} and {heldout_speakers}"
        )
    wanted = [speakers, heldout_speakers, heldout_speakers]
    splits = [split for split, number in zip(SPLITS, wanted, strict=True) for _ in range(number)]
    voices = draw_voices(sum(wanted), seed=seed)
    return [
        Speaker(id=str(1001 + i), split=split, voice=voice)
        for i, (split, voice) in enumerate(zip(splits, voices, strict=True))
    ]


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m recipes.corpora.synthetic FOLDER``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpora.synthetic",
        description="Synthesise a multi-speaker corpus in LibriTTS' layout with eSpeak NG.",
    )
    parser.add_argument("output_folder", help="becomes the data_folder of a recipe")
    parser.add_argument("--speakers", type=int, default=16, help="of train-clean-100")
    parser.add_argument("--heldout_speakers", type=int, default=2, help="of dev-clean, test-clean")
    parser.add_argument("--utterances", type=int, default=20, help="of each speaker")
    parser.add_argument("--seed", type=int, default=0, help="of voices and sentences")
    generate(**vars(parser.parse_args(argv)))


def _jobs(
    folder: Path, cast: list[Speaker], utterances: int, seed: int
) -> Iterator[tuple[Path, Speaker, str]]:
    for i, speaker in enumerate(cast):
        chapter = str(10_000 + i)
        for j in range(utterances):
            name = f"{speaker.id}_{chapter}_{j:06d}_000000.wav"
            path = folder / speaker.split / speaker.id / chapter / name
            yield path, speaker, sentence(i * utterances + j, seed=seed)


if __name__ == "__main__":
    main()
