"""Export: two runs become one codec folder that behaves as the training code does."""

import json
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from focalcodec import FocalCodec, activations
from recipes.common.dataio import load_sig
from recipes.common.weights import load_parameters
from recipes.export import export, main
from tests.stages import build


@pytest.fixture
def speech(corpus):
    return sorted(corpus.glob("test-clean/*/*/*.wav"))[0]


def test_exported_tokens_equal_those_of_the_training_code(
    codec_folder, decoder_run, quantizer_run, corpus, tmp_path
):
    codec = FocalCodec.from_pretrained(codec_folder)
    brain, _, _, test = build("quantizer", corpus, tmp_path, decoder_checkpoint=decoder_run)
    for name in ("compressor", "decompressor"):
        module = brain.raw_modules[name]
        load_parameters(module, quantizer_run, name=name, min_key="reconstruction")
    brain.modules.eval()
    compared = 0
    for batch in test:
        with torch.no_grad():
            quantized = brain.quantize(batch)
        for row, (sig, part) in enumerate(zip(*batch.sig, strict=True)):
            sig = sig[: round(float(part) * len(sig))]
            toks = codec.sig_to_toks(sig[None])[0]
            assert torch.equal(toks, quantized.toks[row][quantized.tok_mask[row]])
            compared += len(toks)
    assert compared > 100


def test_exported_codec_decodes_to_the_inputs_number_of_samples(codec_folder, speech):
    codec = FocalCodec.from_pretrained(codec_folder)
    sig = load_sig(speech, sample_rate=16000)[None, :-7]
    assert codec(sig).rec_sig.shape == sig.shape
    toks = codec.sig_to_toks(sig)
    assert codec.toks_to_sig(toks, num_samples=sig.shape[1]).shape == sig.shape


def test_exported_decoder_is_the_trained_one(codec_folder, decoder_run):
    state = torch.load(next((decoder_run / "save").glob("CKPT*/decoder.ckpt")), weights_only=True)
    decoder = FocalCodec.from_pretrained(codec_folder).decoder
    assert all(torch.equal(state[name], value) for name, value in decoder.state_dict().items())


def test_export_and_resynthesis_from_the_command_line(
    decoder_run, quantizer_run, speech, tmp_path, root
):
    def run(*words):
        subprocess.run([sys.executable, "-m", *map(str, words)], cwd=root, check=True)

    folder, wav = tmp_path / "codec", tmp_path / "out.wav"
    run(
        "recipes.export", "--decoder", decoder_run, "--quantizer", quantizer_run, "--output", folder
    )
    run("focalcodec", "resynth", speech, wav, "--checkpoint", folder)
    assert soundfile.info(wav).frames == soundfile.info(speech).frames


def test_stages_trained_on_different_features_are_refused(decoder_run, quantizer_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(decoder_run, other)
    description = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(description | {"features": "0" * 16}))
    with pytest.raises(ValueError, match="train both stages with the same encoder"):
        export(other, quantizer_run, tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


def test_swapped_runs_are_refused(decoder_run, quantizer_run, tmp_path):
    with pytest.raises(ValueError, match="run of another stage; --decoder takes"):
        export(quantizer_run, decoder_run, tmp_path / "codec")


def test_folder_that_is_no_run_is_named_in_one_line(quantizer_run, tmp_path, capsys):
    words = ["--decoder", tmp_path, "--quantizer", quantizer_run, "--output", tmp_path / "codec"]
    assert main([str(word) for word in words]) == 1
    error = capsys.readouterr().err
    assert "is no run folder" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["Snake", "LeakyReLU"])
def test_runs_of_earlier_versions_find_their_activations(name):
    """Their hyperparams.yaml names the module that these were in."""
    text = f"activation: !name:focalcodec.focalnet.{name}"
    assert load_hyperpyyaml(text)["activation"] is getattr(activations, name)
