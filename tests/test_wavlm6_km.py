"""The baseline WavLM6-KM from its real YAMLs: k-means, dequantizer, decoder, export, speech."""

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from focalcodec import FocalCodec
from recipes.common.experiment import run_experiment
from recipes.common.kmeans import CENTROIDS
from recipes.export import export
from recipes.train_kmeans import KMeansBrain
from tests.stages import build, options, start, steps_of, train


@pytest.fixture(scope="module")
def kmeans_run(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("baseline") / "kmeans"
    train("kmeans", corpus, folder, number_of_epochs=40, centroid_tolerance=0.1)
    return folder


@pytest.fixture(scope="module")
def dequantizer_run(corpus, decoder_run, kmeans_run) -> Path:
    folder = kmeans_run.parent / "dequantizer"
    train(
        "dequantizer",
        corpus,
        folder,
        kmeans_checkpoint=kmeans_run,
        decoder_checkpoint=decoder_run,
        segment_frames="null",
        number_of_epochs=8,
        valid_interval_epochs=8,
    )
    return folder


def files_of(run: Path) -> dict[str, bytes]:
    """Content of what a run of k-means leaves behind but logs with times."""
    names = (CENTROIDS, "metrics.json", "steps.jsonl", "test.json", "train_log.txt")
    return {name: (run / name).read_bytes() for name in names}


# k-means


def test_centroids_settle_and_the_run_tells_how_good_they_are(kmeans_run):
    metrics = json.loads((kmeans_run / "metrics.json").read_text())
    steps = steps_of(kmeans_run)
    assert len(steps) == metrics["valid"]["step"] < 2 * 40, "stopped before the last epoch"
    assert metrics["valid"]["centroid_shift"] < 0.1
    for stage in ("valid", "test"):
        values = metrics[stage]
        assert 0 < values["quantization_error"] < values["feature_variance"]
        assert values["inertia"] == pytest.approx(80 * values["quantization_error"])
        assert 0 < values["code_usage"] <= 1 and values["used_codes"] <= 16
    errors = [step["quantization_error"] for step in steps if "quantization_error" in step]
    assert len(errors) == len(steps) - 1, "all but the first, which places the centroids"
    assert sum(errors[-4:]) < 1.02 * sum(errors[:4])


def test_run_folder_says_what_was_run_on_what(kmeans_run):
    description = json.loads((kmeans_run / "run.json").read_text())
    assert description["parameters"] == {"encoder": 0, "kmeans": 16 * 80}
    assert description["command"].startswith("python ")
    assert "hparams/kmeans.yaml" in description["command"]


def test_settled_run_goes_no_further_and_a_lower_tolerance_lets_it(corpus, kmeans_run, tmp_path):
    folder = tmp_path / "run"
    before = train("kmeans", corpus, folder, number_of_epochs=40, centroid_tolerance=0.1)
    again = train("kmeans", corpus, folder, number_of_epochs=40, centroid_tolerance=0.1)
    assert again == before
    assert files_of(folder) == files_of(kmeans_run)
    lower = train("kmeans", corpus, folder, number_of_epochs=40, centroid_tolerance=0.03)
    assert lower["valid"]["step"] > before["valid"]["step"]


def test_estimate_of_the_cost_changes_nothing(corpus, tmp_path):
    """Of a run that goes on: its centroids are placed, and a batch could move them."""
    runs = {steps: tmp_path / f"{steps}" for steps in (0, 2)}
    for steps, folder in runs.items():
        train("kmeans", corpus, folder, number_of_epochs=1)
        train("kmeans", corpus, folder, number_of_epochs=2, cost_steps=steps)
    assert files_of(runs[0]) == files_of(runs[2])


class Killed(RuntimeError):
    """Stands for a power cut: nothing is saved for it."""


class Dying(KMeansBrain):
    """Run that dies in its 14th batch, in the middle of an epoch and of an update."""

    batches = 0

    def train_on(self, batch, **kwargs):
        self.batches += 1
        if self.batches == 14:
            raise Killed
        return super().train_on(batch, **kwargs)


def test_killed_run_ends_as_if_it_had_not_been(corpus, tmp_path):
    runs = {name: tmp_path / name for name in ("whole", "killed")}
    words = {
        name: [
            *options(
                "kmeans", corpus, folder, batch_size=1, number_of_epochs=4, centroid_tolerance=0
            ),
            "--ckpt_interval_steps=1",
        ]
        for name, folder in runs.items()
    }
    run_experiment(KMeansBrain, words["whole"])
    with pytest.raises(Killed):
        run_experiment(Dying, words["killed"])
    saved = list((runs["killed"] / "save").glob("CKPT*"))
    assert saved and len(steps_of(runs["killed"])) == 6
    run_experiment(KMeansBrain, words["killed"])
    assert files_of(runs["killed"]) == files_of(runs["whole"])


def test_update_with_features_that_are_not_finite_is_left_out_and_listed(corpus, tmp_path):
    brain, loader, _, _ = build("kmeans", corpus, tmp_path, grad_accumulation_factor=1)
    start(brain)
    brain.kmeans.quantizer.centroids.fill_(0.5)
    brain.kmeans.start()
    for index, batch in enumerate(loader):
        if index == 1:
            batch.sig.data[0, 4000:] = math.nan
        brain.step += 1
        before = brain.kmeans.quantizer.centroids.clone()
        brain.fit_batch(batch)
        assert torch.equal(before, brain.kmeans.quantizer.centroids) == (index == 1)
    (line,) = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2
    brain.run_log.close()


def test_features_from_the_cache_give_the_same_segments(corpus, tmp_path):
    cache = {"feature_cache": tmp_path / "cache", "crops_per_utterance": 2}
    metrics = [
        train("kmeans", corpus, tmp_path / name, number_of_epochs=2, **values)["valid"]
        for name, values in (("with", cache), ("without", {"crops_per_utterance": 2}))
    ]
    # float16 features
    assert metrics[0]["quantization_error"] == pytest.approx(
        metrics[1]["quantization_error"], rel=0.02
    )
    assert metrics[0] != metrics[1], "the cache was in use"


def test_k_means_goes_on_from_the_centroids_of_a_codec(baseline_codec, corpus, tmp_path):
    brain, *_ = build("kmeans", corpus, tmp_path, init_from=baseline_codec)
    expected = FocalCodec.from_pretrained(baseline_codec).codebook
    assert torch.equal(brain.kmeans.quantizer.centroids, expected) and brain.kmeans.is_placed
    brain.run_log.close()


# Dequantizer


def test_dequantizer_learns_and_leaves_the_centroids_alone(kmeans_run, dequantizer_run):
    errors = [step["reconstruction"] for step in steps_of(dequantizer_run)]
    assert len(errors) == 24 and all(map(math.isfinite, errors))
    assert sum(errors[-3:]) < 0.7 * sum(errors[:3])
    assert not any("entropy" in name for step in steps_of(dequantizer_run) for name in step)
    (checkpoint,) = (dequantizer_run / "save").glob("CKPT*/quantizer.ckpt")
    trained = torch.load(checkpoint, weights_only=True)["centroids"]
    assert torch.equal(trained, load_file(kmeans_run / CENTROIDS)["centroids"])


@pytest.mark.parametrize("cached", [False, True], ids=["encoded", "cached"])
def test_segments_train_the_dequantizer(cached, kmeans_run, corpus, tmp_path):
    brain, loader, valid, _ = build(
        "dequantizer",
        corpus,
        tmp_path / "run",
        kmeans_checkpoint=kmeans_run,
        crops_per_utterance=2,
        batch_size=4,
        feature_cache=tmp_path / "cache" if cached else "null",
    )
    start(brain)
    batch = next(iter(loader))
    assert hasattr(batch, "sig") != cached and not hasattr(batch, "segments")
    quantized = brain.quantize(batch)
    assert quantized.qfeats.shape == (4, 22, 80) and quantized.mask.all()
    feats, frames = brain.features(next(iter(valid))).feats, 22
    assert feats.shape[1] > frames, "whole utterances are validated"
    brain.step += 1
    brain.fit_batch(batch)
    brain.run_log.close()


def test_dequantizer_without_centroids_says_where_they_come_from(corpus, tmp_path):
    with pytest.raises(ValueError, match="kmeans_checkpoint is null; name a run folder of recipes"):
        build("dequantizer", corpus, tmp_path)


def test_resumed_dequantizer_needs_no_run_of_k_means(kmeans_run, corpus, tmp_path):
    moved = tmp_path / CENTROIDS
    moved.write_bytes((kmeans_run / CENTROIDS).read_bytes())
    train("dequantizer", corpus, tmp_path / "run", kmeans_checkpoint=moved)
    moved.unlink()
    metrics = train(
        "dequantizer", corpus, tmp_path / "run", kmeans_checkpoint=moved, number_of_epochs=2
    )
    assert metrics["train"]["step"] == 6


# The codec


@pytest.fixture(scope="module")
def baseline_codec(decoder_run, dequantizer_run) -> Path:
    folder = dequantizer_run.parent / "codec"
    export(decoder_run, dequantizer_run, folder)
    return folder


def test_exported_codec_has_the_tokens_and_features_of_the_training(
    baseline_codec, kmeans_run, corpus, tmp_path
):
    codec = FocalCodec.from_pretrained(baseline_codec)
    assert torch.equal(codec.codebook, load_file(kmeans_run / CENTROIDS)["centroids"])
    assert codec.bitrate == 200 and codec.token_rate == 50
    brain, _, _, test = build(
        "dequantizer", corpus, tmp_path, init_from=baseline_codec, segment_frames="null"
    )
    brain.modules.eval()
    for batch in test:
        with torch.no_grad():
            quantized = brain.quantize(batch)
        toks = codec.feats_to_toks(quantized.feats, lens=quantized.mask.float().mean(dim=1))
        assert torch.equal(toks, quantized.toks)
        assert torch.allclose(
            codec.toks_to_qfeats(toks, lens=quantized.mask.float().mean(dim=1)),
            quantized.qfeats,
            atol=1e-6,
        )
    brain.run_log.close()


def test_speech_comes_back_with_its_number_of_samples(baseline_codec, corpus):
    codec = FocalCodec.from_pretrained(baseline_codec)
    path = min(corpus.glob("test-clean/*/*/*.wav"))
    sig = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None, :-7]
    toks = codec.sig_to_toks(sig)
    assert 0 <= int(toks.min()) and int(toks.max()) < 16 and toks.unique().numel() > 2
    decoded = codec.toks_to_sig(toks, num_samples=sig.shape[1])
    assert decoded.shape == sig.shape and decoded.isfinite().all() and decoded.abs().max() > 1e-4
