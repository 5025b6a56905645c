"""The five stages of the streaming codec, one after the other from their real YAMLs."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import soundfile
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from focalcodec import FocalCodec
from focalcodec.logmel import LogMel
from focalcodec.wavlm import WavLM
from recipes.codecs.focalcodec import FocalCodec as Adapter
from recipes.common.dataio import collate, load_sig
from recipes.common.encoders import load_encoder
from recipes.common.files import file_crc
from recipes.common.student import Student, layer_feats
from recipes.common.weights import find_parameters
from recipes.demo_stream import stream_file
from recipes.evaluation.tasks import Streaming
from recipes.export import export
from tests.stages import STREAMING, build, start, steps_of, train, write_corpus

ERRORS = {
    "wavenext": "mel",
    "embedding": "distillation",
    "encoder": "distillation",
    "causal_quantizer": "reconstruction",
    "joint": "reconstruction",
}
TRAINED = ("feature_extractor.", "norm.", "feature_proj.", "encoder.layers.")
tiny = partial(
    WavLM,
    hidden_dims=(8,) * 7,
    num_layers=2,
    dim=16,
    ffn_dim=24,
    num_heads=2,
    conv_pos=8,
    conv_pos_groups=2,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Every third file to train on is at 24 kHz, as those of LibriTTS are."""
    folder = tmp_path_factory.mktemp("two_rates")
    write_corpus(folder, rates=(24000, 16000, 16000))
    return folder


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    """Folder with one run of each stage, each begun with the one before it."""
    folder = tmp_path_factory.mktemp("streaming")
    begin = {
        "wavenext": {},
        "embedding": {},
        "encoder": {"student_checkpoint": folder / "embedding"},
        "causal_quantizer": {"encoder_checkpoint": folder / "encoder"},
        "joint": {
            "student_checkpoint": folder / "encoder",
            "init_from": folder / "causal_quantizer",
        },
    }
    for stage, options in begin.items():
        if stage in ("causal_quantizer", "joint"):
            options["decoder_checkpoint"] = folder / "wavenext"
        train(stage, corpus, folder / stage, number_of_epochs=3, **options)
    return folder


def saved(run: Path, name: str) -> dict[str, torch.Tensor]:
    file = find_parameters(run, name=name, min_key=ERRORS[run.name])
    return torch.load(file, weights_only=True)


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("stage", STREAMING)
def test_stage_learns(stage, runs):
    steps = steps_of(runs / stage)
    assert len(steps) == 9
    assert steps[-1][ERRORS[stage]] < 0.99 * steps[0][ERRORS[stage]]


def test_total_of_the_distillation_is_weighted_as_the_yaml_says(runs):
    for step in steps_of(runs / "embedding"):
        assert step["distillation"] == step["layer_0"] and "layer_1" not in step
    for step in steps_of(runs / "encoder"):
        total = 0.5 * step["layer_1"] + 0.8 * step["layer_2"] + step["layer_3"]
        assert step["distillation"] == pytest.approx(total, rel=1e-5)


# What is trained, and what it begins with


def test_only_what_the_yaml_names_is_trained_and_all_of_it_is(runs, corpus, tmp_path):
    teacher = build("embedding", corpus, tmp_path / "run").brain.encoder.state_dict()
    stages = [saved(runs / name, "student") for name in ("embedding", "encoder", "joint")]
    assert changed(teacher, stages[0]) == {
        "encoder.positional_embedding.conv.weight",
        "encoder.positional_embedding.conv.bias",
    }
    for before, after in zip(stages, stages[1:], strict=False):
        named = {name for name in before if name.startswith(TRAINED)}
        assert changed(before, after) == named
        assert "encoder.relative_embedding.weight" in before.keys() - named


def test_joint_stage_trains_both_sides_of_the_quantizer_and_the_refiner(runs):
    for name in ("compressor", "decompressor"):
        before, after = (saved(runs / stage, name) for stage in ("causal_quantizer", "joint"))
        added = {key for key in after if key.startswith("refiner.")}
        assert bool(added) == (name == "decompressor")
        assert changed(before, {key: after[key] for key in after.keys() - added}) == set(before)
        assert all(after[key].abs().sum() > 0 for key in added)


def test_joint_stage_begins_with_what_the_stages_before_it_gave(runs, corpus, tmp_path):
    """Its refiner changes nothing at first, though it is not frozen by zeros on both sides."""
    joint = build(
        "joint",
        corpus,
        tmp_path / "joint",
        student_checkpoint=runs / "encoder",
        init_from=runs / "causal_quantizer",
    )
    quantizer = build(
        "causal_quantizer", corpus, tmp_path / "quantizer", encoder_checkpoint=runs / "encoder"
    )
    for name in ("compressor", "decompressor"):
        quantizer.brain.raw_modules[name].load_state_dict(saved(runs / "causal_quantizer", name))
    refiner = joint.brain.codec.decompressor.refiner
    assert not refiner.out_proj.weight.any() and refiner.in_proj.weight.all()
    batch = collate([joint.train.dataset[i] for i in range(3)])
    results = []
    for brain in (quantizer.brain, joint.brain):
        brain.modules.eval()
        with torch.no_grad():
            results.append(brain.quantize(batch))
    old, new = results
    assert torch.equal(old.toks, new.toks)
    torch.testing.assert_close(old.qfeats, new.qfeats, rtol=0, atol=1e-5)  # float32
    assert not torch.equal(old.feats, new.feats), "the target is the teacher's"


def test_student_without_a_checkpoint_begins_with_its_teachers_weights(corpus, tmp_path):
    brain = build("encoder", corpus, tmp_path / "run").brain
    assert not changed(brain.encoder.state_dict(), brain.hparams.student.state_dict())


def test_run_does_not_go_on_from_another_student(runs, corpus, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "encoder", folder)
    with pytest.raises(ValueError, match="begun with weights .* of the student, .*student_checkp"):
        build("encoder", corpus, folder, student_checkpoint="null", number_of_epochs=4)


def test_result_of_a_run_is_the_checkpoint_that_later_stages_take(runs, corpus, tmp_path):
    """A run that goes on and gets no better keeps it."""
    folder = tmp_path / "encoder"
    shutil.copytree(runs / "encoder", folder)
    brain = build("encoder", corpus, folder, student_checkpoint=runs / "embedding").brain
    start(brain)
    results = []
    for error in (None, 1e6, 0.0):
        if error is not None:
            brain.modules.student.encoder.norm.bias.data.add_(1)
            brain.checkpointer.save_checkpoint(meta={"distillation": error})
            brain.on_evaluate_start(min_key="distillation")
        results.append(json.loads((folder / "best_checkpoint.json").read_text()))
        file = find_parameters(folder, name="student", min_key="distillation")
        assert results[-1]["student.ckpt"] == file_crc(file)
    assert results[0] == results[1] != results[2]
    assert results[1]["student.ckpt"] != results[2]["student.ckpt"]


def test_parts_of_another_encoder_are_refused(runs, corpus, tmp_path):
    with pytest.raises(ValueError, match="init_from .* was trained on features of encoder"):
        build("joint", corpus, tmp_path / "run", init_from=runs / "causal_quantizer")


def test_decoder_of_the_teacher_decodes_its_student_and_no_stranger(runs, corpus, tmp_path):
    metrics = json.loads((runs / "causal_quantizer/metrics.json").read_text())
    assert metrics["test"]["hyp_mel_distance"] > 0
    with pytest.raises(ValueError, match="give both stages the same encoder"):
        build("causal_quantizer", corpus, tmp_path / "run", decoder_checkpoint=runs / "wavenext")


# Frames and padding


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 2500), min_size=1, max_size=4))
def test_teacher_and_student_agree_about_frames(sizes):
    sig = torch.randn(len(sizes), max(sizes), generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([size / max(sizes) for size in sizes])
    for encoder in (tiny().eval(), tiny(causal=True, window_size=8).eval(), LogMel()):
        with torch.no_grad():
            layers, mask = layer_feats(encoder, sig, lens=lens, depth=2)
        assert mask.sum(1).tolist() == [-(-size // 320) for size in sizes]
        assert {layer.shape[:2] for layer in layers} == {mask.shape} and len(layers) == 3


def _with_noise_behind_the_end(batch):
    sig, lens = batch.sig
    for row, part in zip(sig, lens, strict=True):
        row[round(float(part) * len(row)) :] = torch.nan
    return batch


@pytest.mark.parametrize(
    ("stage", "terms"),
    [
        ("embedding", ("distillation",)),
        ("encoder", ("layer_0", "layer_1", "layer_2", "layer_3", "distillation")),
        ("joint", ("reconstruction", "sample_entropy")),
    ],
)
def test_padding_counts_in_no_loss(stage, terms, corpus, tmp_path):
    """A batch's error is the mean of its utterances' errors, by their frames."""
    brain, loader, _, _ = build(stage, corpus, tmp_path / "run")
    start(brain)
    brain.modules.eval()
    items = [loader.dataset[i] for i in range(4)]
    assert len({len(item["sig"]) for item in items}) == 4
    with torch.no_grad():
        together, _ = brain.evaluate_terms(
            _with_noise_behind_the_end(collate(items)), sb.Stage.TRAIN
        )
        alone = [brain.evaluate_terms(collate([item]), sb.Stage.TRAIN) for item in items]
    total = sum(weight for _, weight in alone)
    for term in terms:
        mean = sum(weight * values[term] for values, weight in alone) / total
        assert together[term] == pytest.approx(mean, rel=1e-4), term  # float32 sums


@pytest.mark.parametrize("stage", ["embedding", "encoder", "joint"])
def test_gradients_reach_what_is_trained_and_nothing_else(stage, corpus, tmp_path):
    brain, loader, _, _ = build(stage, corpus, tmp_path / "run")
    start(brain)
    update = next(brain.updates(next(iter(loader))))
    update.loss.backward()
    for name, parameter in brain.modules.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == parameter.requires_grad, name
    assert all(parameter.grad is None for parameter in brain.encoder.parameters())


# Two rates


@pytest.mark.parametrize("size", [20, 90], ids=["part of the utterance", "longer than it"])
def test_segments_at_24_khz_are_those_of_the_features_frames(size, corpus, tmp_path):
    """One that is longer goes round: after the last frame comes the first, in both."""
    options = {"batch_size": 6, "segment_frames": size}
    brain, loader, _, _ = build("wavenext", corpus, tmp_path / "run", **options)
    start(brain)
    batch = next(iter(loader))
    feats, sig, _ = brain.segments(batch)
    assert feats.shape == (6, size, 64) and sig.shape == (6, size * 480)
    rates = [
        soundfile.info(loader.dataset.data[utterance]["wav"]).samplerate for utterance in batch.id
    ]
    assert sorted(rates) == [16000] * 4 + [24000] * 2
    whole = brain.features(batch).feats
    for row, (utterance, frames) in enumerate(zip(batch.id, batch.frames.data, strict=True)):
        path = loader.dataset.data[utterance]["wav"]
        full, heard = (load_sig(path, sample_rate=rate) for rate in (24000, 16000))
        assert abs(len(full) / 24000 - len(heard) / 16000) < 1e-4
        total = -(-len(heard) // 320)
        assert (size < total) == (size == 20)
        places = (int(frames[0, 0]) + torch.arange(size)) % total
        assert torch.equal(feats[row], whole[row, places])
        full = torch.nn.functional.pad(full, (0, total * 480 - len(full)))
        assert torch.equal(sig[row], full.unflatten(0, (total, 480))[places].flatten())


@pytest.mark.parametrize("stage", ["wavenext", "joint"])
def test_feature_cache_changes_no_loss(stage, corpus, tmp_path):
    options = {"number_of_epochs": 1, "lr": 0.0}
    for name, more in {"none": {}, "cache": {"feature_cache": tmp_path / "features"}}.items():
        train(stage, corpus, tmp_path / name, **options, **more)
    plain, cached = (steps_of(tmp_path / name) for name in ("none", "cache"))
    assert len(plain) == len(cached) == 3
    for one, other in zip(plain, cached, strict=True):
        # features are stored in float16
        assert one[ERRORS[stage]] == pytest.approx(other[ERRORS[stage]], rel=2e-3)


def test_decoder_is_scored_at_16_khz(runs):
    metrics = json.loads((runs / "wavenext/metrics.json").read_text())
    assert metrics["test"]["ref_mel_distance"] == pytest.approx(0, abs=1e-6)
    assert metrics["test"]["rec_mel_distance"] > 0
    lengths = {}
    for file in (runs / "wavenext/samples/valid").glob("*/*.wav"):
        lengths.setdefault(file.parent.name, set()).add(len(load_sig(file, sample_rate=16000)))
    assert len(lengths) == 3 and all(len(sizes) == 1 for sizes in lengths.values())


# Mistakes


def test_loss_of_another_rate_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="sample_rate is 24000 Hz, but the decoder gives 16000 Hz"):
        build("wavenext", corpus, tmp_path, decoder="!include:demo/decoder.yaml")


def test_decoder_of_other_frames_is_refused(corpus, tmp_path):
    block = tmp_path / "decoder.yaml"
    block.write_text(
        "!name:focalcodec.wavenext.WaveNeXt\ndim: 8\nhop_length: 400\nsample_rate: 24000\n"
    )
    with pytest.raises(ValueError, match="set decoder.hop_length to 480"):
        build("wavenext", corpus, tmp_path / "run", decoder=f"!include:{block}")


@pytest.mark.parametrize("weights", ["[1, 0, 0]", "[0, 0, 0, 0]", "[1, 0, 0, -1]"])
def test_layer_weights_that_cannot_be_are_refused(weights, corpus, tmp_path):
    with pytest.raises(ValueError, match="layer_weights must be 4 numbers"):
        build("encoder", corpus, tmp_path, layer_weights=weights)


def test_what_is_trained_has_to_exist():
    student = Student(tiny(), trained=["encoder.layers.1", "norm"])
    names = {n for n, p in student.encoder.named_parameters() if p.requires_grad}
    assert names and all(n.startswith(("encoder.layers.1.", "norm.")) for n in names)
    with pytest.raises(ValueError, match="'encoder.layer', but no parameter of WavLM begins so"):
        Student(tiny(), trained=["encoder.layer"])
    with pytest.raises(ValueError, match="student is a LogMel, which has no layers"):
        Student(LogMel(), trained=[])


def test_student_of_another_size_is_refused(corpus, tmp_path):
    block = tmp_path / "student.yaml"
    block.write_text("!new:focalcodec.wavlm.WavLM\nnum_layers: 3\ncausal: true\n")
    with pytest.raises(ValueError, match="student_checkpoint is null.*must have its size"):
        build("encoder", corpus, tmp_path / "run", student=f"!include:{block}")


# The codec


@pytest.mark.parametrize("stage", ["causal_quantizer", "joint"])
def test_exported_codec_streams_what_it_gives_offline(stage, runs, corpus, tmp_path):
    export(runs / "wavenext", runs / stage, tmp_path / "codec")
    codec = FocalCodec.from_pretrained(tmp_path / "codec")
    assert codec.causal and codec.sample_rate_output == 24000 and codec.latency_ms == 80
    source = "joint" if stage == "joint" else "encoder"
    assert not changed(saved(runs / source, "student"), codec.encoder.state_dict())
    speech, wav = next(corpus.glob("test-clean/*/*/*.wav")), tmp_path / "streamed.wav"
    difference = stream_file(speech, wav, codec=tmp_path / "codec")
    assert difference <= 1e-5  # float32
    assert soundfile.info(wav).frames == soundfile.info(speech).frames * 3 // 2
    with pytest.raises(RuntimeError, match="other than the whole file at once"):
        stream_file(speech, wav, codec=tmp_path / "codec", tolerance=-1)  # below any difference


def test_evaluation_of_a_causal_codec_uses_its_live_stream(runs, corpus, tmp_path):
    export(runs / "wavenext", runs / "joint", tmp_path / "codec")
    codec = Adapter(checkpoint=tmp_path / "codec")
    task = Streaming(chunk_size=777)
    assert task.facts(codec) == {
        "bitrate": 800.0,
        "bitrate_with_context": 800.0,
        "latency_ms": 128.5,  # 777 + 1280 - 1 samples
    }
    sig = load_sig(next(corpus.glob("test-clean/*/*/*.wav")), sample_rate=16000)[None]
    live = task.run(codec, sig, None)
    size = len(live.sigs["hyp"])
    assert size == sig.shape[1] * 3 // 2 and live.toks.shape == codec.sig_to_toks(sig)[0].shape
    whole = codec.toks_to_sig(live.toks[None], num_samples=size)
    torch.testing.assert_close(live.sigs["hyp"], whole[0], rtol=0, atol=1e-5)  # float32
    with pytest.raises(ValueError, match="chunk_size must be at least 1 sample, got 0"):
        Streaming(chunk_size=0).check(codec, {}, [])


def test_export_of_stages_that_do_not_know_each_other_is_refused(runs, corpus, tmp_path):
    train("causal_quantizer", corpus, tmp_path / "stranger")  # of random weights, no student
    with pytest.raises(ValueError, match="train both stages with the same encoder"):
        export(runs / "wavenext", tmp_path / "stranger", tmp_path / "codec")
    with pytest.raises(ValueError, match="is a run of another stage"):
        export(runs / "wavenext", runs / "encoder", tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


def test_student_of_any_stage_can_be_an_encoder(runs, root):
    block = root / "hparams/demo/wavlm_causal.yaml"
    for stage in ("embedding", "encoder", "joint"):
        encoder = load_hyperpyyaml(f"encoder: !include:{block}")["encoder"]
        load_encoder(encoder, str(runs / stage))
        assert not changed(saved(runs / stage, "student"), encoder.state_dict())
