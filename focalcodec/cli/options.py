"""Options of the command line and what is made of them: codec, device, windows, file names."""

import math
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click
import torch

from focalcodec.audio import AUDIO_FORMATS
from focalcodec.cli.inference import Inference
from focalcodec.codec import FocalCodec
from focalcodec.windows import Windows, encode_blocks

_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_CHUNKS = Windows.chunks(1)
_CPU = torch.device("cpu")


def join_options(*options: Callable) -> Callable:
    """Several options as one decorator of a command, shown in this order."""
    return lambda command: reduce(lambda inner, option: option(inner), options[::-1], command)


input_and_output = join_options(
    click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
    click.argument("output", metavar="OUTPUT"),
)
checkpoint_options = join_options(
    click.option(
        "--checkpoint",
        default="lucadellalib/focalcodec_50hz",
        envvar="FOCALCODEC_CHECKPOINT",
        metavar="CODEC",
        show_default=True,
        show_envvar=True,
        help="Folder of config.json and model.safetensors, JSON file, or hub id.",
    ),
    click.option("--revision", help="Branch, tag or commit of a hub id."),
    click.option("--cache-dir", metavar="DIR", help="Where downloads are kept."),
)
codec_options = join_options(
    checkpoint_options,
    click.option("--device", default="cpu", show_default=True, help="Such as cuda or cuda:1."),
    click.option(
        "--dtype",
        type=click.Choice(list(_DTYPES)),
        default="float32",
        show_default=True,
        help="Precision of the network's arithmetic (autocast).",
    ),
)
telling_options = join_options(
    click.option("--overwrite", is_flag=True, help="Replace outputs that exist."),
    click.option("--quiet", is_flag=True, help="No progress and no summary."),
    click.option(
        "--progress/--no-progress", default=None, help="Progress bar.  [default: on a terminal]"
    ),
)
running_options = join_options(
    codec_options,
    click.option("--compile", "compiles", is_flag=True, help="Compile it; pays for long jobs."),
    click.option(
        "--batch-seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        help="Audio that goes through the codec at once, padding included.",
    ),
    click.option(
        "--window-seconds",
        type=click.FloatRange(min=0, min_open=True),
        help="Cut files that are longer into windows of this size.  [default: 30]",
    ),
    click.option(
        "--chunk-size",
        type=click.IntRange(min=1),
        metavar="SAMPLES",
        help="Cut every file into chunks of this size that see only the past, as a stream does.",
    ),
    click.option(
        "--left-context",
        type=click.IntRange(min=0),
        metavar="SAMPLES",
        help=f"How much of the past, with --chunk-size.  [default: {_CHUNKS.left}]",
    ),
    click.option(
        "--overlap",
        type=click.IntRange(min=0),
        metavar="SAMPLES",
        help=f"Cross-fade of decoded chunks, with --chunk-size.  [default: {_CHUNKS.overlap}]",
    ),
    click.option("--skip-existing", is_flag=True, help="Leave finished outputs as they are."),
    telling_options,
)
audio_options = join_options(
    click.option(
        "--format",
        "kind",
        metavar="FORMAT",
        help="wav, flac, ogg or another one that libsndfile writes.  [default: wav]",
    ),
    click.option(
        "--original-rate",
        is_flag=True,
        help="Resample to the rate of the source, with its exact number of samples.",
    ),
)


# From options to objects


def check_options(options: dict[str, Any]) -> None:
    """Refuse options that contradict each other, with `click.UsageError`."""
    if options["skip_existing"] and options["overwrite"]:
        raise click.UsageError("--skip-existing and --overwrite exclude each other")
    for name in ("batch_seconds", "window_seconds"):
        value = options[name]
        if value is not None and not math.isfinite(value):
            raise click.UsageError(f"--{name.replace('_', '-')} must be finite, got {value}")
    is_chunked = options["chunk_size"] is not None
    if is_chunked and options["window_seconds"] is not None:
        raise click.UsageError("--chunk-size and --window-seconds exclude each other")
    for name in ("left_context", "overlap"):
        if options[name] is not None and not is_chunked:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --chunk-size")


def what_if_existing(options: dict[str, Any]) -> str:
    """Policy of `focalcodec.cli.jobs.plan_jobs` on outputs that are there."""
    if options["overwrite"]:
        return "overwrite"
    return "skip" if options["skip_existing"] else "error"


def audio_suffix(output: str, kind: str | None) -> str:
    """Extension of decoded files in a folder; a file name as OUTPUT may not contradict --format."""
    suffix = "." + (kind or "wav").lower().removeprefix(".")
    if suffix not in AUDIO_FORMATS:
        known = " ".join(sorted(name[1:] for name in AUDIO_FORMATS))
        raise click.UsageError(f"--format {kind} is not written here; there are {known}")
    named = Path(output).suffix.lower()
    if kind and named in AUDIO_FORMATS and named != suffix and not Path(output).is_dir():
        raise click.UsageError(f"--format {kind} and OUTPUT {output} contradict each other")
    return suffix


def find_device(name: str) -> torch.device:
    """Device that was tried; `click.UsageError` if it does not work."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch without CUDA
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"--device {name} cannot be used here: {reason}") from error
    return device


def wants_progress(options: dict[str, Any]) -> bool:
    """Whether to show how far it is while it runs."""
    if options["progress"] is None:
        return sys.stderr.isatty() and not options["quiet"]
    return options["progress"]


def precision(options: dict[str, Any]) -> torch.dtype:
    """Precision of --dtype."""
    return _DTYPES[options["dtype"]]


def load_codec(options: dict[str, Any], *, device: torch.device = _CPU) -> FocalCodec:
    """Codec of --checkpoint; `click.ClickException` if it cannot be loaded."""
    try:
        codec = FocalCodec.from_pretrained(
            options["checkpoint"], revision=options["revision"], cache_dir=options["cache_dir"]
        )
        return codec.to(device)
    except torch.OutOfMemoryError as error:
        raise click.ClickException(f"the codec does not fit on {device}: {error}") from error
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def load_model(options: dict[str, Any], *, device: torch.device) -> Inference:
    """Codec of --checkpoint with the way of running that was asked for."""
    codec = load_codec(options, device=device)
    if options["compiles"]:
        codec.compile_parts()
    return Inference(
        codec,
        windows=_windows(codec, options),
        streams_all=options["chunk_size"] is not None,
        dtype=precision(options),
        topk=options.get("topk", 4),
    )


def _windows(codec: FocalCodec, options: dict[str, Any]) -> Windows:
    """How files are cut, tried on the codec."""
    if options["chunk_size"] is not None:
        given = {"left": options["left_context"], "overlap": options["overlap"]}
        given = {name: value for name, value in given.items() if value is not None}
        windows = Windows.chunks(options["chunk_size"], **given)
    elif options["window_seconds"] is not None:
        windows = Windows(size=round(options["window_seconds"] * codec.sample_rate))
    else:
        return Windows()
    sig = torch.zeros(1, device=next(codec.parameters()).device)
    try:
        with torch.inference_mode():
            next(encode_blocks(codec, [sig], windows=windows))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return windows
