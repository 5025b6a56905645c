"""Command line of the codec, ``focalcodec`` or ``python -m focalcodec``: commands and options.

What is odd about a file is one line on stderr, and the rest goes on. Exit status: 0, 1 if a file
failed or the codec cannot be loaded, 2 for wrong usage, 130 after an interruption.
"""

import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import torch
from tqdm import tqdm

from focalcodec import __version__
from focalcodec.audio import AUDIO_FORMATS, AUDIO_SUFFIXES
from focalcodec.bitstream import open_focal
from focalcodec.cli.jobs import FOCAL_SUFFIX, Found, Job, find_files, plan_jobs
from focalcodec.cli.live import stream
from focalcodec.cli.options import (
    audio_options,
    audio_suffix,
    check_options,
    checkpoint_options,
    find_device,
    input_and_output,
    load_codec,
    load_model,
    running_options,
    wants_progress,
    what_if_existing,
)
from focalcodec.cli.report import Report, echo, printable
from focalcodec.cli.transcoding import Transcoder
from focalcodec.codec import FocalCodec

_NOTHING = Found([], [])


class _Commands(click.Group):
    """Commands whose errors are one line."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        extra["standalone_mode"] = False
        try:
            status = super().main(*args, **extra)
        except click.ClickException as error:
            echo(printable(" ".join(error.format_message().split())))
            status = error.exit_code
        except click.Abort:
            echo("interrupted")
            status = 130
        sys.exit(status)


@click.group(cls=_Commands, invoke_without_command=True)
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Speech to tokens and back with a trained codec.

    INPUT are files, folders, which are searched with their subfolders, and globs. OUTPUT is a
    folder or, for one input file, the name of a file. Inputs are never changed. The command stream
    is about live speech, and other things are inputs and outputs there.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@main.command()
@input_and_output
@running_options
def encode(inputs: Sequence[str], output: str, **options: Any) -> None:
    """Make .focal token files of audio files."""
    _execute(
        inputs,
        output,
        options,
        suffixes=AUDIO_SUFFIXES,
        run=Transcoder.encode,
        makes_audio=False,
    )


@main.command()
@input_and_output
@audio_options
@running_options
def decode(inputs: Sequence[str], output: str, **options: Any) -> None:
    """Make audio files of .focal token files.

    They last exactly as long as the sources did, at the codec's rate.
    """
    _execute(inputs, output, options, suffixes=[FOCAL_SUFFIX], run=Transcoder.decode)


@main.command()
@input_and_output
@audio_options
@running_options
def resynth(inputs: Sequence[str], output: str, **options: Any) -> None:
    """Encode audio files and decode them again."""
    _execute(inputs, output, options, suffixes=AUDIO_SUFFIXES, run=Transcoder.resynth)


@main.command()
@input_and_output
@click.option(
    "--reference",
    "references",
    multiple=True,
    required=True,
    metavar="PATH",
    help="Audio of the voice to convert to: file, folder or glob; may be repeated.",
)
@click.option(
    "--topk",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Reference frames that replace one of the source.",
)
@audio_options
@running_options
def convert(inputs: Sequence[str], output: str, references: Sequence[str], **options: Any) -> None:
    """Say audio or .focal files in another voice.

    Each frame of the source is replaced by the nearest ones of the reference.
    """
    found = find_files(references, suffixes=AUDIO_SUFFIXES)
    paths = [path for path, _ in found.files]

    def run(transcoder: Transcoder, jobs: Sequence[Job]) -> None:
        try:
            transcoder.read_references(paths)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        transcoder.convert(jobs)

    _execute(
        inputs,
        output,
        options,
        suffixes={*AUDIO_SUFFIXES, FOCAL_SUFFIX},
        references=found,
        run=run,
    )


@main.command()
@click.argument("files", nargs=-1, metavar="[FILES]...")
@checkpoint_options
def info(files: Sequence[str], **options: Any) -> None:
    """Tell what .focal files hold, or without any, what the codec is.

    Of files only the headers are read, and the codec is not loaded.
    """
    if not files:
        _print_rows(_describe_codec(load_codec(options)))
        return
    report = Report(echo=echo)
    found = find_files(files, suffixes=[FOCAL_SUFFIX])
    for failure in found.failures:
        report.fail(*failure)
    for path, _ in found.files:
        with report.guard(path):
            rows = _describe_file(path)
            click.echo(printable(str(path)))
            _print_rows(rows, indent="  ")
    click.get_current_context().exit(int(report.failed > 0))


main.add_command(stream)


def _execute(
    inputs: Sequence[str],
    output: str,
    options: dict[str, Any],
    *,
    suffixes: Collection[str],
    run: Callable[[Transcoder, Sequence[Job]], None],
    makes_audio: bool = True,
    references: Found = _NOTHING,
) -> NoReturn:
    """Plan, run and sum up the jobs of one command."""
    check_options(options)
    device = find_device(options["device"])
    try:
        plan = plan_jobs(
            inputs,
            output,
            suffixes=suffixes,
            target_suffix=audio_suffix(output, options["kind"]) if makes_audio else FOCAL_SUFFIX,
            target_suffixes=AUDIO_FORMATS if makes_audio else [FOCAL_SUFFIX],
            references=[path for path, _ in references.files],
            existing=what_if_existing(options),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    report = Report(echo=echo, skipped=len(plan.skipped))
    for failure in (*references.failures, *plan.failures):
        report.fail(*failure)
    elapsed = 0.0
    if plan.jobs:
        model = load_model(options, device=device)
        bar = tqdm(disable=not wants_progress(options), desc="audio", unit="s", unit_scale=True)
        with bar as report.bar:
            start = time.perf_counter()
            run(
                Transcoder(
                    model,
                    report=report,
                    batch_seconds=options["batch_seconds"],
                    original_rate=options.get("original_rate", False),
                ),
                plan.jobs,
            )
            elapsed = time.perf_counter() - start
    if not options["quiet"]:
        click.echo(report.summary(elapsed))
    click.get_current_context().exit(int(report.failed > 0))


# What info tells


def _describe_codec(codec: FocalCodec) -> dict[str, str]:
    rows = {
        "model": codec.model_id,
        "fingerprint": codec.fingerprint,
        "sample rate": f"{codec.sample_rate} Hz in, {codec.sample_rate_output} Hz out",
        "token rate": f"{codec.token_rate:g} Hz",
        "codebook": f"{codec.codebook_size} codes",
        "bitrate": f"{codec.bitrate:g} bit/s",
    }
    for name, part in codec.named_children():
        rows[name] = f"{_num_parameters(part):,} parameters ({type(part).__name__})"
    return rows | {"total": f"{_num_parameters(codec):,} parameters"}


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _describe_file(path: Path) -> dict[str, str]:
    with open_focal(path) as reader:
        header, num_toks, is_complete = reader.header, reader.num_toks, reader.complete
    num_bytes = path.stat().st_size
    samples = "unknown" if header.num_samples is None else header.num_samples
    seconds = (
        header.duration if is_complete else num_toks * header.samples_per_tok / header.codec_rate
    )
    kbits = f", {num_bytes * 8 / 1000 / seconds:.3f} kbit/s" if seconds else ""
    return {
        "source": f"{header.sample_rate} Hz, {samples} samples",
        "tokens": f"{num_toks} of {header.bits} bits, {header.bitrate / 1000:g} kbit/s",
        "duration": f"{seconds:.6g} s",
        "complete": "yes" if is_complete else "no, this is what is there",
        "size": f"{num_bytes} bytes{kbits}",
        "model": header.model_id,
        "fingerprint": header.fingerprint,
    }


def _print_rows(rows: dict[str, str], *, indent: str = "") -> None:
    for name, value in rows.items():
        click.echo(printable(f"{indent}{name:<12}  {value}"))
