"""eSpeak NG in this process: many voices and languages, over a hundred times faster than real time.

The library and its data come in the ``espeakng-loader`` wheel and are driven through ctypes. What
synthetic corpora (`recipes.corpora.synthetic`, `recipes.corpora.twins`) are spoken by.
"""

import _ctypes
import ctypes
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.common.dataio import resample

ENGLISH = (
    "en-us en en-gb-scotland en-gb-x-rp en-029 en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc".split()
)
# Variants that sound like a person; robots, whisper and those that clip are left out.
LOW_VOICES = (
    "m1 m2 m3 m4 m5 m6 m7 m8 Alex Denis Diogo Lee Mario Michael Mike adam benjamin boris david "
    "edward max miguel norbert quincy robert".split()
)
HIGH_VOICES = "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda linda shelby steph".split()


class Voice(NamedTuple):
    """A voice of eSpeak NG, ``<language>+<variant>``, and how it speaks."""

    name: str
    pitch: int
    pitch_range: int
    words_per_minute: int
    volume: int


def draw_voices(number: int, *, seed: int | str, languages: Sequence[str] = ENGLISH) -> list[Voice]:
    """Draw voices, low and high ones in turn, none twice.

    Raises
    ------
    ValueError : if there are fewer voices than wanted.
    """
    rng = random.Random(seed)
    pools = [
        [f"{language}+{variant}" for language in languages for variant in variants]
        for variants in (LOW_VOICES, HIGH_VOICES)
    ]
    for pool in pools:
        rng.shuffle(pool)
    if number > 2 * min(map(len, pools)):
        raise ValueError(
            f"{number} speakers asked for, there are {2 * min(map(len, pools))} voices"
        )
    return [
        Voice(
            name=pools[i % 2][i // 2],
            pitch=rng.randint(30, 70),
            pitch_range=rng.randint(30, 75),
            words_per_minute=rng.randint(140, 200),
            volume=rng.randint(35, 65),
        )
        for i in range(number)
    ]


class Espeak:
    """eSpeak NG through ctypes.

    The library keeps state (vibrato phase, noise) from one utterance to the next, also across
    ``espeak_Terminate``; it is unloaded after each utterance so that a file does not depend on
    which ones were made before it. That costs about 6 ms. The noise of voices with breath is seeded
    by the clock when the library is loaded, and anew by us.

    Attributes
    ----------
    version : of the library.

    Raises
    ------
    ModuleNotFoundError : without the espeakng-loader wheel.
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
                "synthetic speech needs eSpeak NG; pip install espeakng-loader"
            ) from error
        self._library = espeakng_loader.get_library_path()
        self._voices = espeakng_loader.get_data_path()
        library = ctypes.CDLL(self._library)
        library.espeak_Info.restype = ctypes.c_char_p
        self.version = library.espeak_Info(None).decode()
        self._sample_rate = self._initialize(library)
        self._unload(library)

    def speak(self, text: str, *, voice: Voice, sample_rate: int) -> Tensor:
        """Synthesise a text as (T,) float32 at ``sample_rate`` Hz."""
        chunks: list[bytes] = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        def receive(samples: int | None, number: int, events: int | None) -> int:
            if samples and number > 0:
                chunks.append(ctypes.string_at(samples, 2 * number))
            return 0

        library = ctypes.CDLL(self._library)
        self._initialize(library)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(receive)
        self._check(library.espeak_SetVoiceByName(voice.name.encode()), voice.name)
        for parameter, value in (
            (self._RATE, voice.words_per_minute),
            (self._VOLUME, voice.volume),
            (self._PITCH, voice.pitch),
            (self._RANGE, voice.pitch_range),
        ):
            self._check(library.espeak_SetParameter(parameter, value, 0), voice.name)
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
            raise RuntimeError(f"eSpeak NG gave no samples for {text!r} in voice {voice.name}")
        pcm = torch.frombuffer(bytearray(b"".join(chunks)), dtype=torch.int16)
        return resample(
            pcm.float() / 2**15, sample_rate=self._sample_rate, new_sample_rate=sample_rate
        )

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
