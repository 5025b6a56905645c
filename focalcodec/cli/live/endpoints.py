"""What INPUT and OUTPUT of ``stream`` name: checked as words, then opened for a codec."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from focalcodec.audio import AUDIO_FORMATS
from focalcodec.bitstream import Concealment, Header, repeat_last, zeros
from focalcodec.cli.inference import Inference
from focalcodec.cli.jobs import FOCAL_SUFFIX
from focalcodec.cli.live.devices import Microphone, Speaker
from focalcodec.cli.live.files import AudioFileSink, AudioFileSource, FocalSink, FocalSource
from focalcodec.cli.live.packets import Loss, PacketSink, PacketSource
from focalcodec.cli.live.pipes import PipeSink, PipeSource
from focalcodec.cli.live.sockets import Address, open_inbox, open_outbox, parse_address
from focalcodec.cli.live.sound import SoundSource
from focalcodec.cli.live.stop import Stop

CONCEALMENTS: dict[str, Concealment] = {"repeat": repeat_last, "zeros": zeros}
Source = SoundSource | FocalSource | PacketSource
Sink = AudioFileSink | FocalSink | PipeSink | Speaker | PacketSink


class Endpoint(NamedTuple):
    """What a word names.

    ``kind`` is "pipe", "device", "packets", "toks" or "sound" (the last two are files); ``name`` is
    that of a device.
    """

    word: str
    kind: str
    name: str = ""
    address: Address | None = None

    @property
    def path(self) -> Path:
        """Path of a file."""
        return Path(self.word)

    @property
    def holds_toks(self) -> bool:
        """Whether tokens come or go there."""
        return self.kind in ("toks", "packets")


def parse_endpoint(word: str, *, device: str) -> Endpoint:
    """Endpoint of a word; ``device`` is what the word of a device begins with, mic or speaker.

    Raises
    ------
    ValueError : if it names nothing that is known.
    """
    if not word:
        raise ValueError("the name is empty; give a file, - or an address")
    if word == "-":
        return Endpoint(word, "pipe")
    kind, _, name = word.partition(":")
    if kind == device:
        return Endpoint(word, "device", name=name)
    if address := parse_address(word):
        return Endpoint(word, "packets", address=address)
    return Endpoint(word, "toks" if Path(word).suffix.lower() == FOCAL_SUFFIX else "sound")


def check_endpoints(origin: Endpoint, target: Endpoint, *, overwrite: bool) -> None:
    """Refuse what cannot be before anything is loaded.

    Raises
    ------
    ValueError : saying what to do.
    """
    if origin.holds_toks and target.holds_toks:
        raise ValueError(
            f"{origin.word} and {target.word} are both tokens, so there is nothing to encode or "
            "decode; one of them must be sound"
        )
    for end, terminal in ((origin, sys.stdin), (target, sys.stdout)):
        if end.kind == "pipe" and (terminal is None or terminal.isatty()):
            what = "closed" if terminal is None else "a terminal"
            raise ValueError(f"- is {what} here; use a pipe or redirect it")
    if target.kind in ("toks", "sound"):
        _check_file(origin, target.path, overwrite=overwrite)


def _check_file(origin: Endpoint, path: Path, *, overwrite: bool) -> None:
    suffix = path.suffix.lower()
    if suffix not in AUDIO_FORMATS and suffix != FOCAL_SUFFIX:
        raise ValueError(
            f"OUTPUT {path} is no audio file that is written here, such as .wav or .flac, no "
            ".focal file, and not -, speaker, udp://HOST:PORT or tcp://HOST:PORT"
        )
    if path.is_dir():
        raise ValueError(f"OUTPUT {path} is a folder; give the name of a file")
    if not path.exists():
        return
    if origin.kind in ("toks", "sound") and os.path.exists(origin.word):
        if os.path.samefile(origin.word, path):
            raise ValueError(f"OUTPUT {path} is the same file as INPUT; choose another one")
    if not overwrite:
        raise ValueError(f"OUTPUT {path} exists; give --overwrite")


class Opener:
    """Opens both ends of a session.

    Parameters
    ----------
    model : codec with its way of running.
    options : of the command.
    stop : ends sources.
    echo : takes lines for people.
    """

    def __init__(
        self,
        model: Inference,
        *,
        options: dict[str, Any],
        stop: Stop,
        echo: Callable[[str], None],
    ) -> None:
        self._model, self._options, self._stop, self._echo = model, options, stop, echo
        self._chunk_toks = model.codec.chunk_size // model.codec.samples_per_tok
        self._loss = Loss(options["loss"], seed=options["seed"])

    def source(self, origin: Endpoint, target: Endpoint) -> Source:
        """Open INPUT; what goes wrong is an OSError or a ValueError that names it."""
        codec, stop = self._model.codec, self._stop
        if origin.kind == "pipe":
            rate = self._options["rate"] or codec.sample_rate
            return PipeSource(sys.stdin.fileno(), sample_rate=rate, stop=stop, echo=self._echo)
        if origin.kind == "device":
            return Microphone(origin.name, sample_rate=codec.sample_rate, stop=stop)
        if origin.kind == "toks":
            return FocalSource(
                origin.path,
                tok_format=self._model.tok_format,
                chunk_toks=self._chunk_toks,
                stop=stop,
            )
        if origin.kind == "packets":
            return self._packet_source(origin, keeps_time=target.kind == "device")
        return AudioFileSource(origin.path, stop=stop)

    def sink(self, target: Endpoint, source: Source) -> Sink:
        """Open OUTPUT for a source; errors are as with `source`."""
        codec, options = self._model.codec, self._options
        rate = codec.sample_rate_output
        if target.kind == "pipe":
            return PipeSink(sys.stdout.fileno(), stop=self._stop)
        if target.kind == "device":
            in_hand_s = options["max_delay"] / 1000
            return Speaker(target.name, sample_rate=rate, in_hand_s=in_hand_s)
        if target.kind == "sound":
            return AudioFileSink(target.path, sample_rate=rate, overwrite=options["overwrite"])
        header = Header(sample_rate=source.sample_rate, **self._model.tok_format)
        if target.kind == "toks":
            return FocalSink(
                target.path,
                header=header,
                num_samples=lambda: source.num_samples,
                overwrite=options["overwrite"],
            )
        outbox = open_outbox(target.address)
        return PacketSink(outbox, header=header, toks_per_packet=self._chunk_toks, loss=self._loss)

    def _packet_source(self, origin: Endpoint, *, keeps_time: bool) -> PacketSource:
        inbox = open_inbox(origin.address)
        self._echo(f"listening on {inbox.address}")
        return PacketSource(
            inbox,
            tok_format=self._model.tok_format,
            codebook_size=self._model.codec.codebook_size,
            chunk_toks=self._chunk_toks,
            conceal=CONCEALMENTS[self._options["conceal"]],
            max_delay_s=self._options["max_delay"] / 1000,
            keeps_time=keeps_time or self._options["realtime"],
            end_after_s=self._options["end_after"],
            loss=self._loss,
            stop=self._stop,
            echo=self._echo,
        )
