"""Both stages read the feature cache, and learn from it what they learn without."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch

from recipes.common.dataio import BadAudioError, read_bad_files
from recipes.common.experiment import build_experiment
from recipes.common.feature_cache.format import CacheError
from tests.stages import STAGES, build, options, steps_of, train


def cached(folder, **overrides):
    return {"feature_cache": folder / "cache", "number_of_epochs": 2, **overrides}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_without_a_cache_within_its_precision(stage, dtype, corpus, tmp_path):
    options = cached(tmp_path, feature_cache_dtype=dtype, num_workers=1)
    with_cache = train(stage, corpus, tmp_path / "with", **options)
    without = train(stage, corpus, tmp_path / "without", number_of_epochs=2)
    first, second = steps_of(tmp_path / "with"), steps_of(tmp_path / "without")
    assert len(first) == len(second) == 6
    names = {"decoder": ["mel", "discriminator"], "quantizer": ["reconstruction", "entropy"]}
    precision = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for ours, plain in zip(first, second, strict=True):
        for name in names[stage]:
            # Later losses are those of weights that have drifted apart.
            tolerance = 2 * precision if ours["step"] == 1 else max(0.02, 16 * precision)
            assert ours[name] == pytest.approx(plain[name], rel=tolerance), (ours["step"], name)
        assert ours[names[stage][0]] != plain[names[stage][0]]  # the cache was in use
    key = names[stage][0]
    assert with_cache["valid"][key] == pytest.approx(without["valid"][key], rel=8 * precision)


def test_segments_from_the_cache_are_those_of_the_encoded_utterance(corpus, tmp_path):
    """In the same epoch, also of utterances that are shorter than a segment."""
    for size in (22, 60):
        rows = {}
        for name, folder in (("with", tmp_path / "cache"), ("without", "null")):
            brain, loader, _, _ = build(
                "decoder",
                corpus,
                tmp_path / f"{name}{size}",
                feature_cache=folder,
                segment_frames=size,
                batch_size=4,
                crops_per_utterance=2,
            )
            brain.on_stage_start(sb.Stage.TRAIN, 1)
            for batch in loader:
                feats, sig, _ = brain.segments(batch)
                pairs = zip(feats.unflatten(0, (-1, 2)), sig.unflatten(0, (-1, 2)), strict=True)
                rows.setdefault(name, {}).update(zip(batch.id, pairs, strict=True))
        assert rows["with"].keys() == rows["without"].keys() and len(rows["with"]) == 6
        for utterance, (feats, sig) in rows["with"].items():
            expected_feats, expected_sig = rows["without"][utterance]
            assert torch.equal(sig, expected_sig)
            torch.testing.assert_close(feats, expected_feats, rtol=2**-11, atol=1e-3)


def test_quantizer_training_with_a_cache_reads_no_audio(corpus, tmp_path):
    options = cached(tmp_path, num_workers=0)
    brain, loader, _, _ = build("quantizer", corpus, tmp_path / "run", **options)
    assert not hasattr(next(iter(loader)), "sig")
    brain, loader, valid, test = build("decoder", corpus, tmp_path / "other", **options)
    batch = next(iter(loader))
    assert batch.segments.data.shape == (2, 1, 7040) and not hasattr(batch, "sig")
    assert hasattr(next(iter(valid)), "feats") and hasattr(next(iter(valid)), "sig")
    assert not hasattr(next(iter(test)), "feats")


def test_both_stages_share_one_cache(corpus, tmp_path):
    for stage in STAGES:
        train(stage, corpus, tmp_path / stage, **cached(tmp_path))
        shards = {
            path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("shard-*")
        }
        assert shards
        if stage == "decoder":
            first = shards
    assert shards == first


def test_one_id_for_two_utterances_is_refused(corpus, tmp_path):
    data = shutil.copytree(corpus, tmp_path / "data")
    source = next((data / "train-clean-100").rglob("*.wav"))
    shutil.copy(source, next((data / "dev-clean").rglob("*.wav")).with_name(source.name))
    with pytest.raises(CacheError, match=f"utterance {source.stem} of valid is .* by their id"):
        build("quantizer", data, tmp_path / "run", **cached(tmp_path))


def test_augmented_signals_have_no_cached_features(corpus, tmp_path):
    block = tmp_path / "noise.yaml"
    block.write_text("!name:tests.test_cached_training.louder\n")
    with pytest.raises(ValueError, match="feature_cache holds the features .* but augment"):
        build(
            "quantizer", corpus, tmp_path / "run", augment=f"!include:{block}", **cached(tmp_path)
        )


def louder(sig, lens):
    return 2 * sig, lens


def longer(sig, lens):
    return torch.cat([sig, sig], dim=1), lens


def test_augmentation_changes_what_is_encoded_while_training_only(corpus, tmp_path):
    (tmp_path / "louder.yaml").write_text("!name:tests.test_cached_training.louder\n")
    brain, loader, _, _ = build(
        "quantizer", corpus, tmp_path / "run", augment=f"!include:{tmp_path}/louder.yaml"
    )
    batch = next(iter(loader))
    brain.modules.eval()
    plain = brain.features(batch).feats
    brain.modules.train()
    assert not torch.allclose(brain.features(batch).feats, plain)
    brain.hparams.augment = longer
    with pytest.raises(ValueError, match="frames have to stay where they are"):
        brain.features(batch)


def test_audio_that_changed_under_a_cache_is_refused(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    build("quantizer", copy, tmp_path / "run", **cached(tmp_path))
    path = next(copy.rglob("train-clean-100_0.wav"))
    sig, rate = soundfile.read(path)
    soundfile.write(path, sig[::-1], rate)
    with pytest.raises(ValueError, match="train-clean-100_0"):
        build("quantizer", copy, tmp_path / "again", **cached(tmp_path))


def test_bad_audio_of_a_cache_is_listed_by_every_run_and_refused_by_a_strict_one(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    path = next(copy.rglob("train-clean-100_0.wav"))
    sig, rate = soundfile.read(path)
    soundfile.write(path, np.full_like(sig, np.nan), rate, subtype="FLOAT")
    for name in ("first", "second"):
        build("quantizer", copy, tmp_path / name, **cached(tmp_path))
        assert read_bad_files(tmp_path / name / "bad_files.tsv").keys() == {str(path)}
    with pytest.raises(BadAudioError, match="train-clean-100_0.wav: holds NaN"):
        build("quantizer", copy, tmp_path / "strict", **cached(tmp_path, on_bad_file="raise"))


def test_a_test_alone_fills_no_cache(corpus, tmp_path):
    words = options("quantizer", corpus, tmp_path / "run", **cached(tmp_path))
    build_experiment(STAGES["quantizer"][0], [*words, "--test_only"])
    assert not (tmp_path / "cache").exists()


def test_dynamic_batches_train_the_quantizer(corpus, tmp_path):
    metrics = train("quantizer", corpus, tmp_path / "run", batch_seconds=4, number_of_epochs=2)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    assert 0 <= metrics["train"]["padding"] < 0.5
