r"""Put the two stages of a training together into one codec folder.

    python -m recipes.export --decoder results/vocos/1234 --quantizer results/bsq/1234 \
        --output codec

Reads the best checkpoint and the resolved ``hyperparams.yaml`` of both runs, which are the user's
own files, and writes ``config.json`` and ``model.safetensors``, which
``FocalCodec.from_pretrained`` loads without SpeechBrain.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml

from focalcodec import FocalCodec
from recipes.common.encoders import load_encoder
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
    encoders = {run: content["encoder"] for run, content in descriptions.items()}
    if encoders[decoder_run] != encoders[quantizer_run]:
        raise ValueError(
            f"{decoder_run} was trained on features of encoder {encoders[decoder_run]}, "
            f"{quantizer_run} on those of {encoders[quantizer_run]}; train both stages with the "
            "same encoder and encoder_checkpoint"
        )
    decoder_stage, quantizer_stage = _hparams(decoder_run), _hparams(quantizer_run)
    encoder = quantizer_stage["encoder"]
    load_encoder(encoder, quantizer_stage["encoder_checkpoint"])
    if fingerprint(encoder) != encoders[quantizer_run]:
        raise ValueError(
            f"the weights at encoder_checkpoint ({quantizer_stage['encoder_checkpoint']}) are not "
            f"those that {quantizer_run} was trained with; put the old ones back"
        )
    for run, stage, key in (
        (decoder_run, decoder_stage, "discriminator"),
        (quantizer_run, quantizer_stage, "quantizer"),
    ):
        if key not in stage:
            raise ValueError(f"{run} is a run of the other stage; swap --decoder and --quantizer")
    decoder = decoder_stage["modules"]["decoder"]
    load_parameters(decoder, decoder_run, name="decoder", min_key="mel")
    for name in ("compressor", "quantizer", "decompressor"):
        if quantizer_stage[name].state_dict():
            load_parameters(
                quantizer_stage[name], quantizer_run, name=name, min_key="reconstruction"
            )
    codec = FocalCodec(
        encoder,
        quantizer_stage["compressor"],
        quantizer_stage["quantizer"],
        quantizer_stage["decompressor"],
        decoder,
    ).eval()
    codec.save_pretrained(output)
    return codec


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
