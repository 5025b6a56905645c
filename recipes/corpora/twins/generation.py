"""Write a twin by its name: whole files, repeatable at any point."""

import argparse
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from recipes.common.files import write_text
from recipes.corpora.espeak import Espeak
from recipes.corpora.generated import claim, write_sig
from recipes.corpora.twins.clean_speech import librispeech, librispeech460, mls, vctk
from recipes.corpora.twins.emotional_speech import emodb, iemocap
from recipes.corpora.twins.mixtures import libri1mix, libri2mix
from recipes.corpora.twins.noisy_speech import noisy, voicebank, voicebank_enhancement
from recipes.corpora.twins.parts import Twin

TWINS: dict[str, Callable[..., Twin]] = {
    "librispeech": librispeech,
    "mls": mls,
    "voicebank": voicebank,
    "libri1mix": libri1mix,
    "vctk": vctk,
    "noisy": noisy,
    "librispeech460": librispeech460,
    "iemocap": iemocap,
    "emodb": emodb,
    "voicebank_enhancement": voicebank_enhancement,
    "libri2mix": libri2mix,
}


def generate(
    name: str,
    output_folder: str | Path,
    *,
    speakers: int | None = None,
    utterances: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a twin; an interrupted call can be repeated, files that are there are kept.

    The same arguments give the same bytes, whatever was there before.

    Parameters
    ----------
    name : a key of `TWINS`.
    output_folder : becomes the ``data_folder`` of the corpus.
    speakers : of ``mls`` in each language, of ``librispeech`` in each split, of training sets those
        that are trained on, of ``librispeech460`` in each split of these. ``emodb`` has up to ten
        in all; ``iemocap`` always has ten.
    utterances : of each speaker. None for this or ``speakers``: a few, made in seconds.
    seed : of voices, sentences and noise.

    Returns
    -------
    ``output_folder`` as a path.

    Raises
    ------
    ModuleNotFoundError : without the espeakng-loader wheel.
    ValueError : if the name is not known, a number is too small or not to be chosen, there are too
        few voices, or the folder holds a twin of other arguments.
    """
    if name not in TWINS:
        raise ValueError(f"there is no twin '{name}'; there are {', '.join(TWINS)}")
    sizes = {"speakers": speakers, "utterances": utterances}
    sizes = _sizes(name, {key: size for key, size in sizes.items() if size is not None})
    folder = Path(output_folder)
    engine = Espeak()
    twin = TWINS[name](engine, seed=seed, **sizes)
    arguments = {"name": name, **sizes, "seed": seed, "espeak": engine.version}
    claim(folder, arguments, record="twin.json", what="a synthetic twin")
    for path, text in twin.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / path, text)
    for recording in tqdm(twin.recordings, desc=f"twin {name}", unit="file", disable=None):
        path = folder / recording.path
        if not path.exists():
            write_sig(path, recording.make(), sample_rate=recording.sample_rate)
    return folder


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m recipes.corpora.twins NAME FOLDER``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpora.twins",
        description="Synthesise a small twin of a corpus, in its layout, with eSpeak NG.",
    )
    parser.add_argument("name", choices=list(TWINS))
    parser.add_argument("output_folder", help="becomes the data_folder of the corpus")
    parser.add_argument("--speakers", type=int, help="of mls: in each language; and so on")
    parser.add_argument("--utterances", type=int, help="of each speaker")
    parser.add_argument("--seed", type=int, default=0, help="of voices, sentences and noise")
    generate(**vars(parser.parse_args(argv)))


def _sizes(name: str, given: Mapping[str, int]) -> dict[str, int]:
    """Numbers of a twin's speakers and utterances, as far as it has a choice of them."""
    parameters = inspect.signature(TWINS[name]).parameters
    sizes = {
        key: parameters[key].default for key in ("speakers", "utterances") if key in parameters
    }
    if fixed := sorted(set(given) - set(sizes)):
        raise ValueError(f"the twin {name} has as many {fixed[0]} as its corpus; leave them out")
    sizes |= given
    if min(sizes.values()) < 1:
        raise ValueError(f"speakers and utterances must be at least 1, got {sizes}")
    return sizes
