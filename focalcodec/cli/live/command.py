"""The command ``stream``: its options, and one session of it."""

import math
from contextlib import ExitStack
from typing import Any, NoReturn

import click

from focalcodec.cli.inference import Inference
from focalcodec.cli.live.endpoints import (
    CONCEALMENTS,
    Endpoint,
    Opener,
    check_endpoints,
    parse_endpoint,
)
from focalcodec.cli.live.session import Session
from focalcodec.cli.live.stop import Stop
from focalcodec.cli.options import (
    codec_options,
    find_device,
    join_options,
    load_codec,
    precision,
    telling_options,
    wants_progress,
)
from focalcodec.cli.report import Report, echo, printable
from focalcodec.packing import PRECISIONS, pack

_live_options = join_options(
    click.option(
        "--rate",
        type=click.IntRange(min=1),
        metavar="HZ",
        help="Sample rate of - as INPUT.  [default: the codec's]",
    ),
    click.option(
        "--realtime",
        is_flag=True,
        help="Let a file come as if it were spoken now; as a receiver, conceal by the clock.",
    ),
    click.option(
        "--conceal",
        type=click.Choice(list(CONCEALMENTS)),
        default="repeat",
        show_default=True,
        help="What stands in for lost tokens: the last packet again, or token 0.",
    ),
    click.option(
        "--max-delay",
        type=click.FloatRange(min=0, max=10_000),
        default=160.0,
        metavar="MS",
        show_default=True,
        help="How long lost tokens are waited for, and the head start of a speaker.",
    ),
    click.option(
        "--end-after",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        metavar="SECONDS",
        show_default=True,
        help="End a receiver when so long nothing has come, once something has.",
    ),
    click.option(
        "--loss",
        type=click.FloatRange(min=0, max=1),
        default=0.0,
        metavar="FRACTION",
        show_default=True,
        help="Lose packets on purpose, at random, to hear what becomes of it.",
    ),
    click.option("--seed", type=int, help="Lose the same packets each time."),
    click.option(
        "--pack",
        type=click.Choice(list(PRECISIONS)),
        help="Keep the weights in fewer bits: faster on a CPU. int8 changes tokens.",
    ),
)


@click.command()
@click.argument("origin", metavar="INPUT")
@click.argument("target", metavar="OUTPUT")
@_live_options
@codec_options
@telling_options
def stream(origin: str, target: str, **options: Any) -> NoReturn:
    """Encode and decode live speech, chunk by chunk, with a causal codec.

    INPUT is an audio file, - (raw 16-bit little-endian mono samples on standard input), mic or
    mic:NAME, a .focal file, or udp://HOST:PORT or tcp://HOST:PORT to receive tokens there.

    OUTPUT is an audio file, - (raw samples at the codec's output rate), speaker or speaker:NAME, a
    .focal file, or udp://HOST:PORT or tcp://HOST:PORT to send tokens there.

    From sound to sound it does both ways, from sound to tokens it encodes, from tokens to sound it
    decodes. Ctrl-C ends it and keeps what is there.
    """
    try:
        ends = parse_endpoint(origin, device="mic"), parse_endpoint(target, device="speaker")
        _check_options(*ends, options)
        check_endpoints(*ends, overwrite=options["overwrite"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    device = find_device(options["device"])
    codec = load_codec(options, device=device)
    if not codec.causal:
        raise click.ClickException(
            f"{options['checkpoint']} is no causal codec: it needs what comes later, and cannot "
            "stream. Take a causal one, or resynth, with --chunk-size to see only the past"
        )
    model = Inference(codec, dtype=precision(options))  # takes the fingerprint of what is packed
    if options["pack"]:
        pack(codec, precision=options["pack"])
    with Stop() as stop:
        status = _run(model, *ends, options=options, stop=stop)
    click.get_current_context().exit(status)


def _check_options(origin: Endpoint, target: Endpoint, options: dict[str, Any]) -> None:
    for name in ("loss", "max_delay", "end_after"):
        if not math.isfinite(options[name]):
            raise ValueError(f"--{name.replace('_', '-')} must be finite, got {options[name]}")
    if options["loss"] and "packets" not in (origin.kind, target.kind):
        raise ValueError("--loss is about packets; INPUT or OUTPUT must be udp:// or tcp://")
    if options["rate"] and origin.kind != "pipe":
        raise ValueError("--rate is that of - as INPUT; all others know their own")
    if options["pack"] and (options["device"], options["dtype"]) != ("cpu", "float32"):
        raise ValueError("--pack is for the CPU and activations in float32, the defaults")


def _run(
    model: Inference, origin: Endpoint, target: Endpoint, *, options: dict[str, Any], stop: Stop
) -> int:
    """Run one session and tell how it went; the exit status."""
    report = Report(echo=echo)
    opener = Opener(model, options=options, stop=stop, echo=echo)
    with ExitStack() as opened:
        try:
            source = opener.source(origin, target)
            opened.callback(source.close)
            sink = opener.sink(target, source)
            opened.callback(sink.close)
            session = Session(
                model,
                source,
                sink,
                gives_toks=target.holds_toks,
                stop=stop,
                is_paced=options["realtime"] and origin.kind != "packets",
                shows_status=wants_progress(options),
            )
        except (OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        with report.guard(origin.word):
            session.run()
        summary = session.summary()
    is_there = session.meter.seconds > 0
    if is_there and not options["quiet"]:
        click.echo(summary, err=target.kind == "pipe")
    held = f"{target.word} got {session.meter.seconds:.1f} s" if is_there else "nothing was written"
    if report.failed:
        return 1
    if session.error is not None:
        reason = str(session.error) or type(session.error).__name__
        echo(printable(f"{' '.join(reason.split())}; {held}"))
        return 1
    if stop.signum is not None:
        echo(printable(f"interrupted; {held}"))
        return 128 + stop.signum
    if not is_there:
        raise click.ClickException(f"{origin.word} gave nothing, so nothing was written")
    return 0
