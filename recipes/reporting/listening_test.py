"""A MUSHRA-like listening test: one static page that a participant opens, rates and saves from.

How blind it is: names of codecs stand neither in what is shown, nor in file names, nor in the text
of any file; audio of one item has one format, and goes by names drawn from a hash. The names that
the ratings are saved with are in the page's data, base64-coded: who decodes them on purpose, or
compares audio data with the labelled reference's, finds out.

References
----------
[1] ITU-R BS.1534-3, 2015: method, anchors.
[2] arXiv:2502.04465, appendix F.1: hidden and labelled reference, no anchor, ten items.
"""

import base64
import functools
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from torch import Tensor

from recipes.common.files import file_crc, write_text
from recipes.reporting.page import ASSETS, render
from recipes.reporting.ratings import ANCHOR, CODEC, REFERENCE
from recipes.reporting.runs import Evaluation, labels
from recipes.reporting.samples import SAMPLE_RATE, load, shared_items

ANCHOR_NAME = "3.5 kHz anchor"


class Written(NamedTuple):
    """How large a listening test came out."""

    items: int
    conditions: int


class _Heard(NamedTuple):
    """A codec to rate: its name, its bitrate in bit/s, its samples by item."""

    name: str
    bitrate: float | None
    samples: dict[str, dict[str, Path]]


def write_listening_test(
    runs: Sequence[Evaluation], output: Path, *, num_items: int, with_anchor: bool
) -> Written:
    """Write the page and its audio into an empty folder.

    Items are spread evenly over those that all runs share. One more, if there is one, is for the
    training that comes before; else the first is heard there too.

    Parameters
    ----------
    runs : of one task on one test set, each a condition.
    output : folder to write.
    num_items : at most so many items are rated.
    with_anchor : whether the reference low-passed at 3.5 kHz is a condition too.

    Raises
    ------
    ValueError : if the runs share no item, or audio cannot be read.
    """
    names = labels(runs)
    heard = [
        _Heard(names[run.folder], run.codec.get("bitrate"), samples)
        for run in runs
        if (samples := run.samples())
    ]
    shared = shared_items(codec.samples for codec in heard)
    shared = [item for item in shared if "ref" in heard[0].samples[item]]
    if not shared:
        raise ValueError("the runs share no item to listen to, with a reference of the same audio")
    chosen = _spread(shared, num_items)
    training = next((item for item in shared if item not in chosen), chosen[0])
    (output / "audio").mkdir(parents=True)
    key: dict[str, list[Any]] = {}
    salt = _salt(heard, chosen, with_anchor)
    write = functools.partial(_write_trial, heard=heard, output=output, with_anchor=with_anchor)
    trials = [write(item, salt=salt, key=key) for item in chosen]
    content = {
        "test": salt[:12],
        "trials": trials,
        "training": write(training, salt=salt + "training", key={}),
        "key": base64.b64encode(json.dumps(key).encode()).decode(),
    }
    page = render(
        "listening_test.html",
        {
            "css": (ASSETS / "listening_test.css").read_text(encoding="utf-8"),
            "js": (ASSETS / "listening_test.js").read_text(encoding="utf-8"),
            "content": content,
        },
    )
    write_text(output / "index.html", page)
    return Written(len(trials), len(trials[0]["stimuli"]))


def low_pass(sig: Tensor) -> Tensor:
    """Low anchor of a signal (T,) at 16 kHz: flat to 3.5 kHz, at least 50 dB down from 4 kHz."""
    taps = 401
    time = torch.arange(taps, dtype=torch.float64) - taps // 2
    cutoff = 3750 / SAMPLE_RATE
    window = torch.kaiser_window(taps, periodic=False, beta=7, dtype=torch.float64)
    kernel = 2 * cutoff * torch.sinc(2 * cutoff * time) * window
    kernel = kernel / kernel.sum()
    filtered = torch.nn.functional.conv1d(
        sig.double()[None, None], kernel[None, None], padding=taps // 2
    )
    return filtered[0, 0].float()


def _write_trial(
    item: str,
    *,
    heard: Sequence[_Heard],
    output: Path,
    with_anchor: bool,
    salt: str,
    key: dict[str, list[Any]],
) -> dict[str, Any]:
    """Write one item's audio; what the page knows of it. The identities go into ``key``."""
    ref_sig = load(heard[0].samples[item]["ref"])
    stimuli: dict[str, Tensor] = {}

    def add(condition: str, kind: str, bitrate: float | None, sig: Tensor) -> None:
        name = _opaque(salt, item, kind, condition)
        stimuli[name] = sig
        key[name] = [condition, kind, bitrate]

    add(REFERENCE, REFERENCE, None, ref_sig)
    if with_anchor:
        add(ANCHOR_NAME, ANCHOR, None, low_pass(ref_sig))
    for codec in heard:
        add(codec.name, CODEC, codec.bitrate, load(codec.samples[item]["hyp"]))
    labelled = _opaque(salt, item, "labelled")
    length = max(len(sig) for sig in stimuli.values())
    trial = _opaque(salt, item)
    audio = {name: _wav(sig, length) for name, sig in {**stimuli, labelled: ref_sig}.items()}
    content = json.dumps({name: audio[name] for name in sorted(audio)})
    write_text(output / "audio" / f"{trial}.js", f'deliver("{trial}", {content});\n')
    return {"id": trial, "item": item, "reference": labelled, "stimuli": sorted(stimuli)}


def _wav(sig: Tensor, length: int) -> str:
    """Base64 of a 16-bit WAV file of ``length`` samples."""
    padded = torch.nn.functional.pad(sig, (0, length - len(sig)))
    buffer = io.BytesIO()
    soundfile.write(buffer, padded.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()


def _spread(items: Sequence[str], number: int) -> list[str]:
    """Evenly spaced choice of at most ``number`` items."""
    if len(items) <= number:
        return list(items)
    return [items[place * len(items) // number] for place in range(number)]


def _salt(heard: Sequence[_Heard], items: Sequence[str], with_anchor: bool) -> str:
    """Hash of everything that is heard, so that another test has other names and other storage."""
    audio = [
        [file_crc(codec.samples[item][kind]) for kind in ("ref", "hyp")]
        for item in items
        for codec in heard
    ]
    content = [[codec.name for codec in heard], audio, list(items), with_anchor]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _opaque(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
