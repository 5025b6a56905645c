"""Stand-in for the package sounddevice, which needs sound hardware: the part that is used of it.

The microphone hears `heard` and then fails; the loudspeaker keeps what it plays in `played`.
"""

import numpy as np

heard = np.zeros((0, 1), dtype="float32")
played: list[np.ndarray] = []
rates = {
    "input": (16_000, 48_000),
    "output": (24_000, 48_000),
}  # that devices take; the last: usual
opened: list[tuple] = []
gaps: set[int] = set()  # writes before which the loudspeaker had run out
overflows: set[int] = set()  # reads that come too late
closed: list[str] = []


class PortAudioError(Exception):
    """What PortAudio reports."""


def reset() -> None:
    global heard
    heard = np.zeros((0, 1), dtype="float32")
    for things in (played, opened, gaps, overflows, closed):
        things.clear()
    rates.update(input=(16_000, 48_000), output=(24_000, 48_000))


def check_input_settings(*, device, samplerate, channels, dtype):
    _check("input", device, samplerate)


def check_output_settings(*, device, samplerate, channels, dtype):
    _check("output", device, samplerate)


def query_devices(device, kind):
    return {"default_samplerate": float(rates[kind][-1])}


def _check(kind, device, samplerate):
    if device == "abacus":
        raise ValueError("No device matching 'abacus'")
    if samplerate not in rates[kind]:
        raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")


class _Stream:
    kind = ""

    def __init__(self, *, samplerate, device, channels, dtype, latency=None):
        _check(self.kind, device, samplerate)
        assert (channels, dtype) == (1, "float32")
        opened.append((self.kind, samplerate, device, latency))
        self.stopped = True

    def start(self):
        assert self.stopped
        self.stopped = False

    def stop(self):
        self.stopped = True

    def close(self):
        closed.append(self.kind)


class InputStream(_Stream):
    kind = "input"

    def __init__(self, **settings):
        super().__init__(**settings)
        self.place = self.count = 0

    def read(self, frames):
        assert not self.stopped
        block = heard[self.place : self.place + frames]
        if not len(block):
            raise PortAudioError("Device unavailable [PaErrorCode -9985]")
        self.place, self.count = self.place + frames, self.count + 1
        return block, self.count in overflows


class OutputStream(_Stream):
    kind = "output"

    def write(self, frames):
        assert not self.stopped and frames.ndim == 2 and frames.dtype == np.float32
        played.append(frames.copy())
        return len(played) in gaps
