"""Microphone and loudspeaker, through sounddevice, which is optional."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from focalcodec.cli.live.end import End
from focalcodec.cli.live.sound import BLOCK_S, SoundSource
from focalcodec.cli.live.stop import Stop
from focalcodec.resampling import resample_blocks

_FORMAT = {"channels": 1, "dtype": "float32"}


class DeviceError(OSError):
    """A microphone or loudspeaker that cannot be used."""


class Microphone(SoundSource):
    """Sound of a microphone.

    Parameters
    ----------
    name : number or part of the name of a device; "" for the usual one.
    sample_rate : wanted, Hz; a device that does not have it gives its own.
    stop : ends it.

    Attributes
    ----------
    num_lost : times that sound was lost because nobody fetched it.

    Raises
    ------
    DeviceError : if sounddevice or the device is not there; while reading, if it fails.
    """

    def __init__(self, name: str, *, sample_rate: int, stop: Stop) -> None:
        sound = _sounddevice()
        self.num_lost = 0
        with _reported(sound, f"the microphone {name}"):
            device = _device(name)
            rate = _usable_rate(sound, "input", device, sample_rate)
            self._stream = sound.InputStream(samplerate=rate, device=device, **_FORMAT)
        self._reported = partial(_reported, sound, f"the microphone {name}")
        super().__init__(sample_rate=rate, stop=stop)

    def _blocks(self) -> Iterator[Tensor]:
        size = round(BLOCK_S * self.sample_rate)
        with self._reported():
            self._stream.start()
        while not self._stop.requested:
            with self._reported():
                frames, has_lost = self._stream.read(size)
            self.num_lost += bool(has_lost)
            yield torch.from_numpy(frames[:, 0].copy())

    def notes(self) -> str:
        """How often sound was lost."""
        return f"sound lost {self.num_lost} times" if self.num_lost else ""

    def close(self) -> None:
        """Give the device back."""
        with self._reported():
            self._stream.close()


class Speaker(End):
    """Sound to a loudspeaker.

    Parameters
    ----------
    name : as of `Microphone`.
    sample_rate : of the signals, Hz; they are resampled for a device that does not take it.
    in_hand_s : silence that is played first, and again whenever nothing was left to play, so that
        what comes later than expected by so much is still in time.

    Attributes
    ----------
    num_gaps : times that nothing was left to play.

    Raises
    ------
    DeviceError : as `Microphone`.
    """

    def __init__(self, name: str, *, sample_rate: int, in_hand_s: float) -> None:
        sound = _sounddevice()
        self.num_gaps = 0
        self._reported = partial(_reported, sound, f"the loudspeaker {name}")
        with self._reported():
            device = _device(name)
            self._rate = _usable_rate(sound, "output", device, sample_rate)
            latency = max(in_hand_s, BLOCK_S)
            self._stream = sound.OutputStream(
                samplerate=self._rate, device=device, latency=latency, **_FORMAT
            )
        self._sample_rate = sample_rate
        self._silence = torch.zeros(round(in_hand_s * self._rate))

    def consume(self, contents: Iterable[Tensor]) -> None:
        """Play signals as they come, and wait until they have been played."""
        rates = {"sample_rate": self._sample_rate, "new_sample_rate": self._rate}
        has_silence = False
        for sig in resample_blocks(contents, **rates):
            with self._reported():
                if not has_silence:
                    self._stream.start() if self._stream.stopped else None
                    self._play(self._silence)
                has_silence = not self._play(sig)
            self.num_gaps += not has_silence
        with self._reported():
            if not self._stream.stopped:
                self._stream.stop()

    def _play(self, sig: Tensor) -> bool:
        """Hand over (T,) samples; whether the device had run out of them."""
        return bool(self._stream.write(sig[:, None].numpy()))

    def notes(self) -> str:
        """How often there was nothing to play."""
        return f"nothing to play {self.num_gaps} times" if self.num_gaps else ""

    def close(self) -> None:
        """Give the device back."""
        with self._reported():
            self._stream.close()


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise DeviceError(
            'microphone and loudspeaker need sounddevice: pip install "focalcodec[live]" or '
            "pip install sounddevice"
        ) from error
    except OSError as error:
        raise DeviceError(
            f"sounddevice cannot be used: {error}; on Debian and Ubuntu: apt install libportaudio2"
        ) from error
    return sounddevice


@contextmanager
def _reported(sound: ModuleType, what: str) -> Iterator[None]:
    """Turn what the library raises into a DeviceError."""
    try:
        yield
    except (sound.PortAudioError, ValueError) as error:  # ValueError: no device of that name
        raise DeviceError(f"{what.strip()} cannot be used: {error}") from error


def _device(name: str) -> int | str | None:
    return int(name) if name.isdecimal() else name or None


def _usable_rate(sound: ModuleType, kind: str, device: Any, wanted: int) -> int:
    check: Callable = getattr(sound, f"check_{kind}_settings")
    try:
        check(device=device, samplerate=wanted, **_FORMAT)
    except sound.PortAudioError:
        return int(sound.query_devices(device, kind)["default_samplerate"])
    return wanted
