"""Run the command line as a user does, and make and measure what it works on."""

from dataclasses import replace
from pathlib import Path

import soundfile
import torch
from click.testing import CliRunner

from focalcodec.audio import AudioReader
from focalcodec.bitstream import Header, write
from focalcodec.cli import main
from focalcodec.cli.inference import Inference

PCM_16 = 1.01 / 32768  # libsndfile rounds down to a step of 16 bits


def run(*words, status=0):
    """Run a command; its standard output and the lines of its standard error."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr.splitlines()


def load(path, *, sample_rate=16000):
    return torch.cat(list(AudioReader(path, sample_rate=sample_rate)))


def write_toks(path, codec, *, num_samples):
    """Finished token file of noise; its header and tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    toks = torch.randint(codec.codebook_size, (codec.num_toks(num_samples),))
    header = replace(unfinished_header(codec), num_samples=num_samples)
    write(path, toks, header)
    return header, toks


def unfinished_header(codec):
    return Header(sample_rate=16000, **Inference(codec).tok_format)


def lengths(folder):
    return {path.name: soundfile.info(path).frames for path in Path(folder).rglob("*.wav")}
