"""From file to file: the jobs of a command, one by one or in batches of similar length.

A file gives the same tokens, and the same audio up to rounding, whatever it shares a batch with. A
bad one costs nobody but itself: it is reported, and the rest goes on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from focalcodec.audio import AudioReader, write_audio
from focalcodec.cli.inference import Inference
from focalcodec.cli.jobs import Job
from focalcodec.cli.report import Report
from focalcodec.cli.sources import AudioSource, FocalSource, Source, kind_by_suffix
from focalcodec.cli.token_files import write_toks
from focalcodec.resampling import check_rate, resample_blocks


class Transcoder:
    """Runs jobs through a codec and tells a report of each.

    Parameters
    ----------
    model : codec with its way of running.
    report : told of every file.
    batch_seconds : of audio, padding included, in one batch.
    original_rate : give decoded audio the rate of its source.
    """

    def __init__(
        self,
        model: Inference,
        *,
        report: Report,
        batch_seconds: float = 60.0,
        original_rate: bool = False,
    ) -> None:
        self.model = model
        self.report = report
        self.original_rate = original_rate
        self._batch_samples = batch_seconds * model.codec.sample_rate

    def encode(self, jobs: Sequence[Job]) -> None:
        """Make token files of audio files."""
        for sources in self._batches(jobs, lambda path: AudioSource):
            self._run(sources, self._encode, AudioSource.tok_blocks, self._save_toks)

    def decode(self, jobs: Sequence[Job]) -> None:
        """Make audio files of token files."""
        self._decode_all(jobs, lambda path: FocalSource)

    def resynth(self, jobs: Sequence[Job]) -> None:
        """Make audio files of audio files, by way of tokens."""
        self._decode_all(jobs, lambda path: AudioSource)

    def read_references(self, paths: Iterable[Path]) -> None:
        """Take the voice to convert to from audio files; bad ones are reported.

        Raises
        ------
        ValueError : if none can be used.
        """
        feats = []
        for path in paths:
            with self.report.guard(path), self.model.switched_on():
                reader = AudioReader(path, sample_rate=self.model.codec.sample_rate)
                feats.append(self.model.features(reader))
        if not feats:
            raise ValueError("no reference file can be used, so there is no voice to convert to")
        self.model.matching_set = torch.cat(feats)

    def convert(self, jobs: Sequence[Job]) -> None:
        """Make audio files of audio or token files, in the voice of the references."""
        self._decode_all(jobs, kind_by_suffix)

    def _decode_all(self, jobs: Sequence[Job], kind: Callable[[Path], type[Source]]) -> None:
        for sources in self._batches(jobs, kind):
            self._run(sources, self._decode, self._decode_stream, self._save_sig)

    # From jobs to batches

    def _batches(
        self, jobs: Sequence[Job], kind: Callable[[Path], type[Source]]
    ) -> Iterator[list[Source]]:
        """Yield sources, the long ones each alone, the short ones in batches of similar length."""
        batch: list[Source] = []
        for job in self._by_length(jobs, kind):
            source = None
            with self.report.guard(job.source):
                source = kind(job.source)(job, self.model)
            if source is None:
                continue
            if not source.is_short:
                yield [source]
                continue
            size = max(other.size for other in [*batch, source])
            if batch and (len(batch) + 1) * size > self._batch_samples:
                yield batch
                batch = []
            batch.append(source)
        if batch:
            yield batch

    def _by_length(self, jobs: Sequence[Job], kind: Callable[[Path], type[Source]]) -> list[Job]:
        seconds = {}
        for job in jobs:
            with self.report.guard(job.source):
                seconds[job] = kind(job.source).estimate(job.source)
        self.report.bar.reset(total=sum(seconds.values()))
        return sorted(seconds, key=seconds.__getitem__, reverse=True)

    def _run(
        self,
        sources: list[Source],
        compute: Callable[[list[Source]], list[Tensor]],
        stream: Callable[[Source], Iterator[Tensor]],
        save: Callable[[Source, Iterable[Tensor]], None],
    ) -> None:
        """Compute and save one batch; if it fails, each of its files alone."""
        if not sources[0].is_short:
            with self.report.guard(sources[0].job.source), self.model.switched_on():
                save(sources[0], stream(sources[0]))
            return
        results = None
        try:
            with self.model.switched_on():
                results = compute(sources)
        except Exception as error:
            if len(sources) == 1:
                self.report.fail(sources[0].job.source, error)
                return
        if results is None:  # the error is gone by now, and with it the tensors that it held
            for source in sources:
                self._run([source], compute, stream, save)
            return
        for source, result in zip(sources, results, strict=True):
            with self.report.guard(source.job.source):
                save(source, [result])

    # From sources to tokens and signals

    def _encode(self, sources: list[Source]) -> list[Tensor]:
        return self.model.encode([source.sig for source in sources])

    def _decode(self, sources: list[Source]) -> list[Tensor]:
        speech = [source for source in sources if source.toks is None]
        if speech:
            for source, toks in zip(speech, self._encode(speech), strict=True):
                source.toks = toks
        return self.model.decode(
            [source.toks for source in sources],
            num_samples=[self._num_samples(source) for source in sources],
        )

    def _decode_stream(self, source: Source) -> Iterator[Tensor]:
        toks: Iterable[Tensor] = source.tok_blocks()
        if isinstance(source, AudioSource):
            toks = list(toks)  # its length is known at its end, and tokens are small
        return self.model.decode_stream(toks, num_samples=self._num_samples(source))

    def _num_samples(self, source: Source) -> int:
        """Output samples to decode, enough to give the source's number at its own rate."""
        header, rate = source.header, self.model.codec.sample_rate_output
        if header.num_samples is None:
            return source.size * rate // header.codec_rate
        if self.original_rate:
            return -(-header.num_samples * rate // header.sample_rate)
        return header.num_samples_at(rate)

    # To files

    def _save_toks(self, source: AudioSource, toks: Iterable[Tensor]) -> None:
        target = source.job.target
        header = write_toks(
            target,
            self._watched(toks, self.model.codec.token_rate),
            header=source.unfinished_header,
            num_samples=lambda: source.header.num_samples,
            overwrite=source.job.overwrite,
        )
        num_bytes = target.stat().st_size
        self.report.num_bytes += num_bytes
        self.report.payload_bytes += num_bytes - header.num_bytes
        self._count(source.header.duration)

    def _save_sig(self, source: Source, sig: Iterable[Tensor]) -> None:
        header, rate = source.header, self.model.codec.sample_rate_output
        sig = self._watched(sig, rate)
        if self.original_rate:
            check_rate(header.sample_rate)  # a token file can name any, and this much is allocated
            sig = resample_blocks(sig, sample_rate=rate, new_sample_rate=header.sample_rate)
            sig, rate = _first(sig, header.num_samples), header.sample_rate
        job = source.job
        count = write_audio(job.target, sig, sample_rate=rate, overwrite=job.overwrite)
        self._count(header.duration or count / rate)

    def _watched(self, blocks: Iterable[Tensor], rate: float) -> Iterator[Tensor]:
        for block in blocks:
            yield block
            # The last token may reach beyond the end of the audio, which tqdm would warn of.
            bar = self.report.bar
            bar.update(min(block.shape[0] / rate, bar.total - bar.n))

    def _count(self, seconds: float) -> None:
        self.report.done += 1
        self.report.seconds += seconds


def _first(blocks: Iterable[Tensor], count: int | None) -> Iterator[Tensor]:
    """Blocks up to ``count`` samples in all; everything for None."""
    for block in blocks:
        yield block[:count]
        if count is not None:
            count = max(0, count - block.shape[0])
