"""One live session: the chain of `focalcodec.live` between a source and a sink."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from focalcodec.bitstream import Header
from focalcodec.cli.inference import Inference
from focalcodec.cli.live.endpoints import Sink, Source
from focalcodec.cli.live.sound import SoundSource
from focalcodec.cli.live.status import Status, describe
from focalcodec.cli.live.stop import Stop
from focalcodec.codec import FocalCodec
from focalcodec.live import Piece, cut, decoded, delivered, encoded, paced, resampled
from focalcodec.meter import Meter
from focalcodec.resampling import check_ratio
from focalcodec.stream import Stream

_EXPECTED = (OSError, ValueError, RuntimeError)


class Session:
    """Speech on its way from a source through the codec to a sink.

    What goes wrong on the way ends it, but what has come until then still goes to its end.

    Parameters
    ----------
    model : causal codec with its way of running.
    source : of sound or tokens.
    sink : for tokens or sound, not tokens if the source gives them.
    gives_toks : whether the sink takes tokens.
    stop : ends it.
    is_paced : let what is there at once, such as a file, come as if it were spoken just now.
    shows_status : show how fast it goes.

    Attributes
    ----------
    meter : what was processed how fast.
    error : what went wrong first; None if nothing did.

    Raises
    ------
    ValueError : if the rate of the source cannot be resampled to that of the codec.
    """

    def __init__(
        self,
        model: Inference,
        source: Source,
        sink: Sink,
        *,
        gives_toks: bool,
        stop: Stop,
        is_paced: bool = False,
        shows_status: bool = False,
    ) -> None:
        codec = model.codec
        self.meter = Meter(codec.chunk_size / codec.sample_rate)
        self.error: Exception | None = None
        self._model, self._source, self._sink = model, source, sink
        self._is_paced, self._stop = is_paced, stop
        self._rate = codec.token_rate if gives_toks else codec.sample_rate_output
        self._gives_toks, self._shows_status = gives_toks, shows_status
        if isinstance(source, SoundSource):
            check_ratio(source.sample_rate, codec.sample_rate)

    def run(self) -> None:
        """Go on until the source has ended, a signal has come, or something goes wrong."""
        status = Status(self.meter, notes=self._notes, shown=self._shows_status)
        try:
            with self._model.switched_on():
                pieces = self._guarded(self._chain())
                contents = self._watched(pieces, status)
                first = next(contents, None)
                if first is not None:
                    self._sink.consume(chain([first], contents))
        except _EXPECTED as error:
            self.error = self.error or error
        finally:
            status.close()

    def summary(self) -> str:
        """Lines on how fast it went."""
        return "\n".join(describe(self.meter, notes=self._notes()))

    def _chain(self) -> Iterator[Piece]:
        codec, pieces = self._model.codec, self._guarded(self._source.pieces())
        source_rate = getattr(self._source, "sample_rate", codec.token_rate)
        if self._is_paced:
            pieces = paced(pieces, rate=source_rate, wait=self._stop.wait)
        if isinstance(self._source, SoundSource):
            rates = {"sample_rate": source_rate, "new_sample_rate": codec.sample_rate}
            stream = _warm_stream(codec, encodes=True)
            pieces = encoded(resampled(pieces, **rates), stream=stream, meter=self.meter)
        if self._gives_toks:
            return pieces
        sig = decoded(pieces, stream=_warm_stream(codec, encodes=False), meter=self.meter)
        return cut(sig, num_samples=self._num_samples)

    def _num_samples(self) -> int | None:
        """Count the samples to decode, if the length of the source is known by now."""
        header = None
        if not isinstance(self._source, SoundSource):
            header = self._source.header
        elif self._source.has_ended:
            header = Header(
                sample_rate=self._source.sample_rate,
                num_samples=self._source.num_samples,
                **self._model.tok_format,
            )
        return (
            None if header is None else header.num_samples_at(self._model.codec.sample_rate_output)
        )

    def _guarded(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """End pieces where something goes wrong."""
        try:
            yield from pieces
        except _EXPECTED as error:
            self.error = self.error or error

    def _watched(self, pieces: Iterator[Piece], status: Status) -> Iterator[Tensor]:
        for content in delivered(pieces, rate=self._rate, meter=self.meter):
            yield content
            status.renew()

    def _notes(self) -> list[str]:
        return [self._source.notes(), self._sink.notes()]


def _warm_stream(codec: FocalCodec, *, encodes: bool) -> Stream:
    """Open a stream whose first chunk takes no longer than the others."""
    stream = codec.open_stream()
    device = next(codec.parameters()).device
    if encodes:
        stream.encode(torch.zeros(1, stream.chunk_size, device=device))
    else:
        stream.decode(torch.zeros(1, stream.chunk_toks, dtype=torch.int64, device=device))
    stream.reset()
    return stream
