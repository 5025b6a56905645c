"""Inputs of jobs as tokens or on the way to them: audio files and token files, short and long.

A short file is read whole and joins a batch, a long one is read block by block.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from focalcodec.audio import AudioReader, estimate_seconds
from focalcodec.bitstream import Header, check_model, open_focal
from focalcodec.cli.inference import Inference
from focalcodec.cli.jobs import FOCAL_SUFFIX, Job


class AudioSource:
    """Audio file of a job; a short one is whole in memory.

    Attributes
    ----------
    size : samples at the codec's rate that are in memory.
    is_short : whether these are all.
    toks : (L,) once they are made of a short file.
    """

    def __init__(self, job: Job, model: Inference) -> None:
        self.job = job
        self.size = 0
        self.toks: Tensor | None = None
        self._model = model
        self._reader = AudioReader(job.source, sample_rate=model.codec.sample_rate)
        self._head: list[Tensor] = []
        for block in self._reader:
            self._head.append(block)
            self.size += block.shape[0]
            if self.size >= model.max_samples:
                break
        self.is_short = self.size < model.max_samples

    @staticmethod
    def estimate(path: Path) -> float:
        """Duration in seconds, as far as it shows without reading the file."""
        return estimate_seconds(path)

    @property
    def unfinished_header(self) -> Header:
        """Header of its tokens while they are being made."""
        return Header(sample_rate=self._reader.sample_rate, **self._model.tok_format)

    @property
    def header(self) -> Header:
        """Header of its tokens, right once the whole file has been read."""
        return replace(self.unfinished_header, num_samples=self._reader.num_samples)

    @property
    def sig(self) -> Tensor:
        """(T,) signal of a short file."""
        return torch.cat(self._head)

    def tok_blocks(self) -> Iterator[Tensor]:
        """(L,) tokens of a long file, block by block, only once."""
        return self._model.encode_stream(self._blocks())

    def _blocks(self) -> Iterator[Tensor]:
        while self._head:
            yield self._head.pop(0)
        yield from self._reader


class FocalSource:
    """Token file of a job; a short one is whole in memory.

    Attributes
    ----------
    header : without ``num_samples`` where not all of the tokens are there.
    size : samples at the codec's rate that the tokens stand for.
    is_short : whether they are in memory.
    toks : (L,) of a short file.
    """

    def __init__(self, job: Job, model: Inference) -> None:
        self.job = job
        with open_focal(job.source) as reader:
            check_model(reader.header, **model.tok_format)
            if not reader.num_toks:
                raise ValueError("holds no token")
            self.header = reader.header
            if not reader.complete:
                self.header = replace(reader.header, num_samples=None)
            self.size = reader.num_toks * reader.header.samples_per_tok
            self.is_short = reader.num_toks < model.max_toks
            self.toks = torch.cat(list(reader)) if self.is_short else None

    @staticmethod
    def estimate(path: Path) -> float:
        """Duration in seconds of the tokens that are there."""
        with open_focal(path) as reader:
            return reader.num_toks * reader.header.samples_per_tok / reader.header.codec_rate

    def tok_blocks(self) -> Iterator[Tensor]:
        """(L,) tokens, block by block."""
        with open_focal(self.job.source) as reader:
            yield from reader


Source = AudioSource | FocalSource


def kind_by_suffix(path: Path) -> type[Source]:
    """Token file by its extension, audio file by any other."""
    return FocalSource if path.suffix.lower() == FOCAL_SUFFIX else AudioSource
