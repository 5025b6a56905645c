"""Command line of the codec, ``python -m focalcodec``: the only place with audio files.

``resynth IN OUT --checkpoint DIR`` encodes a file to tokens and decodes these again; ``info`` says
what a checkpoint is. Errors are one line on stderr and exit status 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch import Tensor

from focalcodec.codec import FocalCodec


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"focalcodec: error: {reason}", file=sys.stderr)
        return 1
    return 0


def read_mono(path: Path, *, sample_rate: int) -> tuple[Tensor, int, int]:
    """Read an audio file as one channel.

    Parameters
    ----------
    path : anything that soundfile reads.
    sample_rate : rate to resample to, Hz.

    Returns
    -------
    (1, T) mean of the channels at ``sample_rate``, samples in the file, rate of the file in Hz.

    Raises
    ------
    FileNotFoundError : if the file is missing.
    ValueError : if it is not readable as audio, empty, or holds values that are not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw, without a header
        raise ValueError(f"{path} is not readable as audio: {error}") from error
    if samples.shape[0] == 0:
        raise ValueError(f"{path} holds no samples")
    sig = torch.from_numpy(samples).mean(dim=1)[None]
    # Before resampling, which would spread one bad sample over its neighbours.
    if not bool(sig.isfinite().all()):
        raise ValueError(f"{path} holds samples that are not finite")
    sig = torchaudio.functional.resample(sig, rate, sample_rate)
    return sig, samples.shape[0], rate


def _resynth(args: argparse.Namespace) -> None:
    _check_output(args.output)
    device = _device(args.device)
    codec = FocalCodec.from_pretrained(args.checkpoint).to(device)
    sig, size, rate = read_mono(args.input, sample_rate=codec.sample_rate)
    out_rate = codec.sample_rate_output
    with torch.inference_mode():
        toks = codec.sig_to_toks(sig.to(device))
        num_samples = max(1, round(size * out_rate / rate))
        hyp_sig = codec.toks_to_sig(toks, num_samples=num_samples)[0].cpu()
    soundfile.write(args.output, hyp_sig.numpy(), out_rate)
    print(
        f"{args.output}: {num_samples} samples at {out_rate} Hz from {toks.shape[1]} tokens, "
        f"{codec.bitrate / 1000:g} kbit/s"
    )


def _info(args: argparse.Namespace) -> None:
    codec = FocalCodec.from_pretrained(args.checkpoint)
    rows = {
        "sample rate": f"{codec.sample_rate} Hz in, {codec.sample_rate_output} Hz out",
        "token rate": f"{codec.token_rate:g} Hz",
        "codebook": f"{codec.codebook_size} codes",
        "bitrate": f"{codec.bitrate:g} bit/s",
    }
    parts = {name: (part, _num_parameters(part)) for name, part in codec.named_children()}
    for name, (part, count) in parts.items():
        rows[name] = f"{count:,} parameters ({type(part).__name__})"
    rows["total"] = f"{_num_parameters(codec):,} parameters"
    for name, value in rows.items():
        print(f"{name:<12}  {value}")


def _check_output(path: Path) -> None:
    """Fail before the work is done, not after."""
    if path.suffix[1:].upper() not in soundfile.available_formats():
        raise ValueError(f"{path} has no extension of an audio format; name it for example .wav")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} does not exist; make it first")


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} is asked for but PyTorch sees no CUDA device here")
    return device


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="focalcodec", description="Speech to tokens and back with a trained codec."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="folder of config.json and model.safetensors, or a hub id",
    )

    resynth = commands.add_parser(
        "resynth", parents=[checkpoint], help="encode an audio file and decode its tokens"
    )
    resynth.add_argument("input", type=Path, metavar="IN", help="audio file, any rate")
    resynth.add_argument(
        "output", type=Path, metavar="OUT", help="audio file to write, format by its extension"
    )
    resynth.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    resynth.set_defaults(command=_resynth)

    show = commands.add_parser("info", parents=[checkpoint], help="rates and sizes of a codec")
    show.set_defaults(command=_info)
    return parser


if __name__ == "__main__":
    sys.exit(main())
