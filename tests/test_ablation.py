"""Every row of the paper's ablation trains, is exported, loads and decodes the right length."""

import math
from pathlib import Path

import pytest
import ruamel.yaml
import soundfile
import torch

from focalcodec import FocalCodec
from recipes.export import export
from tests.stages import HPARAMS, steps_of, train

ROWS = ruamel.yaml.YAML(typ="safe").load(HPARAMS.parent / "recipes/ablation/rows.yaml")["rows"]
TINY_HIFIGAN = """
!name:focalcodec.hifigan.HiFiGAN
dim: 32
upsample_factors: [10, 8, 2, 2]
upsample_kernel_sizes: [20, 16, 4, 4]
resblock_kernel_sizes: [3]
"""


@pytest.fixture(scope="module")
def decoder_runs(corpus, decoder_run, tmp_path_factory) -> dict[str, Path]:
    """Run of the decoder stage for each decoder of the ablation, at toy size."""
    folder = tmp_path_factory.mktemp("hifigan")
    block = folder / "block.yaml"
    block.write_text(TINY_HIFIGAN)
    train("decoder", corpus, folder / "run", decoder=f"!include:{block}", number_of_epochs=3)
    return {"vocos": decoder_run, "hifigan": folder / "run"}


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_row_trains_and_its_codec_decodes_as_many_samples(row, corpus, decoder_runs, tmp_path):
    mixer, activation, quantizer, decoder = row
    blocks = {"mixer": mixer, "activation": activation, "quantizer": quantizer}
    options = {key: f"!include:{key}/{name}.yaml" for key, name in blocks.items()}
    train("quantizer", corpus, tmp_path / "run", number_of_epochs=6, lr=0.01, **options)
    errors = [step["reconstruction"] for step in steps_of(tmp_path / "run")]
    assert len(errors) == 18 and all(map(math.isfinite, errors))
    assert sum(errors[-3:]) < 0.9 * sum(errors[:3])

    export(decoder_runs[decoder], tmp_path / "run", tmp_path / "codec")
    codec = FocalCodec.from_pretrained(tmp_path / "codec")
    files = sorted(corpus.glob("test-clean/*/*/*.wav"))
    sigs = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in files]
    sizes = torch.tensor([len(sig) for sig in sigs])
    batch = torch.nn.utils.rnn.pad_sequence(sigs, batch_first=True)
    toks = codec.sig_to_toks(batch, lens=sizes / batch.shape[1])
    decoded = codec.toks_to_sig(toks, num_samples=sizes)
    assert decoded.shape == batch.shape and decoded.isfinite().all()
    for sig, own, size in zip(sigs, toks, sizes.tolist(), strict=True):
        alone = codec.sig_to_toks(sig[None])[0]
        assert codec.toks_to_sig(alone[None]).abs().max() > 1e-4, "not silence"
        assert len(alone) == -(-size // 320)
        assert torch.equal(own[: len(alone)], alone), "padding changes no token"


def test_hifigan_learns(decoder_runs):
    mel = [step["mel"] for step in steps_of(decoder_runs["hifigan"])]
    assert sum(mel[-3:]) < sum(mel[:3])


def test_commitment_is_part_of_the_loss_of_lfq_and_of_no_other(corpus, quantizer_run, tmp_path):
    train("quantizer", corpus, tmp_path, quantizer="!include:quantizer/lfq_10bit.yaml")
    for step in steps_of(tmp_path):
        expected = step["reconstruction"] + 0.1 * step["entropy"] + 0.25 * step["commitment"]
        assert step["loss"] == pytest.approx(expected, abs=1e-5)
    assert not any("commitment" in step for step in steps_of(quantizer_run))


def test_fsq_logs_no_entropy_but_what_its_codes_have(corpus, tmp_path):
    metrics = train("quantizer", corpus, tmp_path, quantizer="!include:quantizer/fsq_10bit.yaml")
    steps = steps_of(tmp_path)
    assert all(step["loss"] == pytest.approx(step["reconstruction"]) for step in steps)
    assert not any("entropy" in name for step in steps for name in step)
    assert 0 < metrics["test"]["normalised_entropy"] <= 1
    assert metrics["test"]["bitrate"] == pytest.approx(50 * math.log2(1000))
