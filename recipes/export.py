r"""Put the two stages of a training together into one codec folder.

    python -m recipes.export --decoder results/vocos/1234 --quantizer results/bsq/1234 \
        --output codec

Reads the best checkpoint and the resolved ``hyperparams.yaml`` of both runs, which are the user's
own files, and writes ``config.json`` and ``model.safetensors``, which
``FocalCodec.from_pretrained`` loads without SpeechBrain. The encoder is the one that the quantizer
stage compresses the features of, as that stage has left it where it trains it (stage "joint").
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml
from torch import nn

from focalcodec import FocalCodec
from recipes.common.encoders import features_of, load_encoder
from recipes.common.fingerprint import fingerprint
from recipes.common.run_folder import read_description
from recipes.common.weights import load_parameters

logger = logging.getLogger(__name__)


def export(decoder_run: Path, quantizer_run: Path, output: Path) -> FocalCodec:
    """Write the codec folder; returns the codec, in evaluation mode.

    Raises
    ------
    FileNotFoundError : if a run has no description or no checkpoint yet.
    ValueError : if the stages were trained on different features, or the parts do not fit together.
    """
    descriptions = {run: _description(run) for run in (decoder_run, quantizer_run)}
    features = {run: features_of(content) for run, content in descriptions.items()}
    if features[decoder_run] != features[quantizer_run]:
        raise ValueError(
            f"{decoder_run} was trained on features of encoder {features[decoder_run]}, "
            f"{quantizer_run} on those of {features[quantizer_run]}; train both stages with the "
            "same encoder and encoder_checkpoint, or with a student of it"
        )
    decoder_stage, quantizer_stage = _hparams(decoder_run), _hparams(quantizer_run)
    for run, stage, key in (
        (decoder_run, decoder_stage, "discriminator"),
        (quantizer_run, quantizer_stage, "quantizer"),
    ):
        if key not in stage:
            raise ValueError(
                f"{run} is a run of another stage; --decoder takes one of train_decoder.py, "
                "--quantizer one of train_quantizer.py"
            )
    decoder = decoder_stage["modules"]["decoder"]
    load_parameters(decoder, decoder_run, name="decoder", min_key="mel")
    for name in ("compressor", "quantizer", "decompressor"):
        if quantizer_stage[name].state_dict():
            load_parameters(
                quantizer_stage[name], quantizer_run, name=name, min_key="reconstruction"
            )
    codec = FocalCodec(
        _encoder(quantizer_run, quantizer_stage, known=descriptions[quantizer_run]["encoder"]),
        quantizer_stage["compressor"],
        quantizer_stage["quantizer"],
        quantizer_stage["decompressor"],
        decoder,
    ).eval()
    codec.save_pretrained(output)
    return codec


def _encoder(run: Path, stage: dict[str, Any], *, known: str) -> nn.Module:
    """Give a quantizer run's encoder: the student that it trained, or the frozen one it had.

    ``known`` is the fingerprint of the latter.
    """
    if "student" in stage:
        load_parameters(stage["student"], run, name="student", min_key="reconstruction")
        return stage["student"]
    encoder = stage["encoder"]
    load_encoder(encoder, stage["encoder_checkpoint"])
    if fingerprint(encoder) != known:
        raise ValueError(
            f"the weights at encoder_checkpoint ({stage['encoder_checkpoint']}) are not those that "
            f"{run} was trained with; put the old ones back"
        )
    return encoder


def _description(run: Path) -> dict[str, Any]:
    description = read_description(run)
    if description is None:
        raise FileNotFoundError(
            f"{run} is no run folder: it has no run.json; name a stage's output_folder"
        )
    return description


def _hparams(run: Path) -> dict[str, Any]:
    with open(run / "hyperparams.yaml", encoding="utf-8") as file:
        return load_hyperpyyaml(file)


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--decoder", type=Path, required=True, help="run folder of train_decoder.py"
    )
    parser.add_argument(
        "--quantizer", type=Path, required=True, help="run folder of train_quantizer.py"
    )
    parser.add_argument("--output", type=Path, required=True, help="codec folder to write")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        codec = export(arguments.decoder, arguments.quantizer, arguments.output)
    except (FileNotFoundError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    logger.info(
        "%s: %g tokens/s of %d codes, %g bit/s",
        arguments.output,
        codec.token_rate,
        codec.codebook_size,
        codec.bitrate,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
