"""A multi-speaker corpus in LibriTTS' layout, spoken by eSpeak NG: for the demo, trials and tests.

    python -m recipes.corpora.synthetic FOLDER --speakers 16 --utterances 20 --seed 0

24 kHz wav files with ``.normalized.txt`` in train-clean-100, dev-clean and test-clean; no speaker
and no sentence occurs in two of them. The library and its voices come in the ``espeakng-loader``
wheel and run in this process through ctypes, over a hundred times faster than real time. Prepared
by ``recipes.corpora.libritts`` (``hparams/dataset/synthetic.yaml``).
"""

import _ctypes
import argparse
import ctypes
import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from recipes.common.dataio import resample
from recipes.common.files import write_text

SAMPLE_RATE = 24_000  # Hz
SPLITS = ("train-clean-100", "dev-clean", "test-clean")

LANGUAGES = (
    "en-us en en-gb-scotland en-gb-x-rp en-029 en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc".split()
)
# Variants that sound like a person; robots, whisper and those that clip are left out.
LOW_VOICES = (
    "m1 m2 m3 m4 m5 m6 m7 m8 Alex Denis Diogo Lee Mario Michael Mike adam benjamin boris david "
    "edward max miguel norbert quincy robert".split()
)
HIGH_VOICES = "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda linda shelby steph".split()

# Parts of a sentence. Its number says which parts it has; each part's choice is independent of the
# others, and no two combinations read the same: all sentences differ.
_PARTS = {
    "opening": "Yesterday morning,|After the long meeting,|In the early spring,|Not long ago,"
    "|Just before midnight,|On the other side of town,|Without a single word,|As far as I know,"
    "|Every second Thursday,|For the first time in years,|When the storm had passed,"
    "|To everyone's surprise,|Once again,|At the old harbour,|During the summer,"
    "|By the end of the week,|In a quiet village,|Much to my regret,|While the others slept,",
    "determiner": "the|one|another|that|this|their|our|his|her|my|your|some|each|every|no",
    "adjective": "young|old|cheerful|tired|famous|clever|nervous|patient|quiet|generous|foreign"
    "|careful|stubborn|friendly|curious|grumpy|brave|lonely|polite|busy|honest|lazy|shy",
    "person": "doctor|farmer|teacher|sailor|engineer|gardener|painter|judge|baker|pilot|neighbour"
    "|violinist|shepherd|librarian|chemist|guide|mechanic|author|nurse|student|king|thief|child|uncle",
    "adverb": "slowly|quickly|carefully|secretly|finally|almost|always|never|happily|suddenly|often"
    "|gently|proudly|barely|usually",
    "verb": "carried|watched|painted|measured|found|opened|described|borrowed|repaired|collected"
    "|moved|photographed|sold|counted|admired|forgot|touched|wrapped|chose|noticed|cleaned|hid",
    "number": "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirty|forty|fifty"
    "|a hundred|several|a few|many",
    "colour": "yellow|heavy|broken|wooden|silver|tiny|beautiful|empty|frozen|ancient|smooth|purple"
    "|dusty|expensive|round|fragile|bright|useless|enormous",
    "thing": "boxes|letters|bicycles|clocks|apples|pictures|shells|chairs|bottles|stones|ships"
    "|flowers|maps|coins|horses|books|candles|engines|umbrellas|jackets|feathers|bridges|mirrors",
    "place": "near the river|behind the church|in the kitchen|under a large oak tree|at the station"
    "|across the valley|on the roof|beside the road|for the museum|with great pleasure"
    "|in front of the school|along the shore|between two houses|outside the theatre"
    "|above the clouds|through the fog|without any help|inside the cave",
    "ending": "and then went home|but nobody asked why|which was exactly what we needed"
    "|because the weather was fine|though it was getting dark|just as I had expected"
    "|so we all laughed|and the music began to play|as usual|if you believe the story"
    "|until the bell rang|or so they say",
}
_FORMS = (
    "determiner adjective person verb number thing",
    "opening determiner person verb number colour thing place",
    "determiner adjective person adverb verb number colour thing place",
    "opening determiner adjective person adverb verb number colour thing place ending",
)


class Speaker(NamedTuple):
    """One synthetic speaker: an eSpeak NG voice and how it is used."""

    id: str
    split: str
    voice: str
    pitch: int
    pitch_range: int
    words_per_minute: int
    volume: int


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
    engine = _Espeak()
    _claim(
        folder,
        {
            "speakers": speakers,
            "heldout_speakers": heldout_speakers,
            "utterances": utterances,
            "seed": seed,
            "espeak": engine.version,
        },
    )
    jobs = list(_jobs(folder, cast, utterances, seed))
    for path, speaker, text in tqdm(jobs, desc="synthesis", unit="utt", disable=None):
        if path.exists():
            continue
        sig = engine.speak(text, speaker=speaker)
        sig = resample(sig, sample_rate=engine.sample_rate, new_sample_rate=SAMPLE_RATE)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path.with_suffix(".normalized.txt"), text + "\n")
        partial = path.with_name(f".{path.name}.partial")
        soundfile.write(partial, sig.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
        os.replace(partial, path)
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
    rng = random.Random(seed)
    pools = [
        [f"{language}+{variant}" for language in LANGUAGES for variant in variants]
        for variants in (LOW_VOICES, HIGH_VOICES)
    ]
    for pool in pools:
        rng.shuffle(pool)
    wanted = [speakers, heldout_speakers, heldout_speakers]
    if sum(wanted) > 2 * min(map(len, pools)):
        raise ValueError(
            f"{sum(wanted)} speakers asked for, there are {2 * min(map(len, pools))} voices"
        )
    splits = [split for split, number in zip(SPLITS, wanted, strict=True) for _ in range(number)]
    return [
        Speaker(
            id=str(1001 + i),
            split=split,
            voice=pools[i % 2][i // 2],
            pitch=rng.randint(30, 70),
            pitch_range=rng.randint(30, 75),
            words_per_minute=rng.randint(140, 200),
            volume=rng.randint(35, 65),
        )
        for i, split in enumerate(splits)
    ]


def sentence(number: int, *, seed: int) -> str:
    """Give the ``number``-th sentence of a seed; two numbers below 10^8 never give the same."""
    index, form = divmod(number, len(_FORMS))
    rows = [_PARTS[part].split("|") for part in _FORMS[form].split()]
    total = math.prod(map(len, rows))
    rng = random.Random(seed)
    offset, step = rng.randrange(total), rng.randrange(total)
    while math.gcd(step, total) > 1:  # without common divisor every combination is met once
        step = rng.randrange(total)
    index = (offset + index * step) % total
    words = []
    for row in rows:
        index, choice = divmod(index, len(row))
        words.append(row[choice])
    if _FORMS[form].endswith("ending"):
        words[-2] += ","
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."


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


class _Espeak:
    """eSpeak NG through ctypes.

    The library keeps state (vibrato phase, noise) from one utterance to the next, also across
    ``espeak_Terminate``; it is unloaded after each utterance so that a file does not depend on
    which ones were made before it. That costs about 6 ms.
    """

    _RETRIEVAL = 1  # espeak_AUDIO_OUTPUT: samples go to the callback, none to a sound device
    _DONT_EXIT = 0x8000  # report a failure instead of ending the process
    _UTF8 = 1
    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the synthetic corpus needs eSpeak NG; pip install espeakng-loader"
            ) from error
        self._library = espeakng_loader.get_library_path()
        self._voices = espeakng_loader.get_data_path()
        library = ctypes.CDLL(self._library)
        library.espeak_Info.restype = ctypes.c_char_p
        self.version = library.espeak_Info(None).decode()
        self.sample_rate = self._initialize(library)
        self._unload(library)

    def speak(self, text: str, *, speaker: Speaker) -> Tensor:
        """Synthesise a text as (T,) float32 at ``self.sample_rate``."""
        chunks: list[bytes] = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        def receive(samples: int | None, number: int, events: int | None) -> int:
            if samples and number > 0:
                chunks.append(ctypes.string_at(samples, 2 * number))
            return 0

        library = ctypes.CDLL(self._library)
        self._initialize(library)
        library.espeak_SetSynthCallback(receive)
        self._check(library.espeak_SetVoiceByName(speaker.voice.encode()), speaker.voice)
        for parameter, value in (
            (self._RATE, speaker.words_per_minute),
            (self._VOLUME, speaker.volume),
            (self._PITCH, speaker.pitch),
            (self._RANGE, speaker.pitch_range),
        ):
            self._check(library.espeak_SetParameter(parameter, value, 0), speaker.voice)
        encoded = text.encode()
        self._check(
            library.espeak_Synth(
                encoded, ctypes.c_size_t(len(encoded) + 1), 0, 0, 0, self._UTF8, None, None
            ),
            text,
        )
        self._check(library.espeak_Synchronize(), text)
        self._unload(library)
        if not chunks:
            raise RuntimeError(f"eSpeak NG gave no samples for {text!r} in voice {speaker.voice}")
        pcm = torch.frombuffer(bytearray(b"".join(chunks)), dtype=torch.int16)
        return pcm.float() / 2**15

    def _initialize(self, library: ctypes.CDLL) -> int:
        sample_rate = library.espeak_Initialize(
            self._RETRIEVAL, 0, self._voices.encode(), self._DONT_EXIT
        )
        if sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG found no voices in {self._voices}; reinstall its wheel")
        return sample_rate

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status != 0:
            raise RuntimeError(f"eSpeak NG answered {status} for {what!r}")

    @staticmethod
    def _unload(library: ctypes.CDLL) -> None:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _jobs(
    folder: Path, cast: list[Speaker], utterances: int, seed: int
) -> Iterator[tuple[Path, Speaker, str]]:
    for i, speaker in enumerate(cast):
        chapter = str(10_000 + i)
        for j in range(utterances):
            name = f"{speaker.id}_{chapter}_{j:06d}_000000.wav"
            path = folder / speaker.split / speaker.id / chapter / name
            yield path, speaker, sentence(i * utterances + j, seed=seed)


def _claim(folder: Path, arguments: dict[str, Any]) -> None:
    """Refuse a folder that holds a corpus of other arguments."""
    record = folder / "synthetic.json"
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found != arguments:
            raise ValueError(
                f"{folder} holds a synthetic corpus made with {found}, asked for is {arguments}; "
                "choose another folder or remove this one"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(arguments) + "\n")


if __name__ == "__main__":
    main()
