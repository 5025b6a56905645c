"""What a run folder of a student tells the stages after it, and what they refuse."""

from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from focalcodec import FocalCodec, hub
from recipes.common.encoders import load_encoder, load_student
from recipes.common.weights import find_parameters
from tests.stages import HPARAMS, build, train


@pytest.fixture(scope="module")
def student_run(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "encoder"
    train("encoder", corpus, folder)
    return folder


@pytest.fixture(scope="module")
def joint_run(student_run, corpus, tmp_path_factory) -> Path:
    """Folder of a run of the last stage, of several epochs, begun with the student."""
    folder = tmp_path_factory.mktemp("students") / "joint"
    train("joint", corpus, folder, student_checkpoint=student_run, number_of_epochs=2)
    return folder


def demo_encoder(block="wavlm_causal", **arguments):
    """Make an encoder of a block of the demo, some arguments of it replaced."""
    path = HPARAMS / f"demo/{block}.yaml"
    encoder = load_hyperpyyaml(f"encoder: !include:{path}")["encoder"]
    return type(encoder)(**hub.constructor_arguments(encoder) | arguments)


# The form of an encoder


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"lookahead_size": 1}, "a student with lookahead_size 3, .* has lookahead_size 1; take"),
        ({"window_size": 8}, "a student with window_size 32, .* has window_size 8; take"),
        (
            {"block": "wavlm"},
            "a student with causal True, window_size 32, .* has causal False, window_size 512",
        ),
    ],
    ids=["look-ahead", "window", "full context"],
)
def test_student_of_another_form_is_refused(encoder, message, student_run):
    encoder = demo_encoder(**encoder)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=rf"encoder \(encoder_checkpoint\) trained {message}"):
        load_encoder(encoder, str(student_run))
    with pytest.raises(ValueError, match=rf"encoder \(student_checkpoint\) trained {message}"):
        load_student(encoder, str(student_run), encoder=demo_encoder("wavlm"))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_student_of_the_same_form_is_taken_whatever_its_dropout(student_run):
    first, second = demo_encoder(), demo_encoder(dropout=0.1)
    load_encoder(first, str(student_run))
    load_student(second, str(student_run), encoder=demo_encoder("wavlm"))
    second = second.state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.state_dict().items())


def test_stage_refuses_the_full_context_form_of_its_encoder(student_run, corpus, tmp_path):
    with pytest.raises(ValueError, match="causal True, .* has causal False"):
        build(
            "causal_quantizer",
            corpus,
            tmp_path / "run",
            encoder="!include:demo/wavlm.yaml",
            encoder_checkpoint=student_run,
        )
    assert not (tmp_path / "run/run.json").exists()


# Parts that a joint stage has trained


def test_parts_of_a_joint_run_go_on_with_its_student(joint_run, corpus, tmp_path):
    begin = {"student_checkpoint": joint_run, "init_from": joint_run}
    brain = build("joint", corpus, tmp_path / "joint", **begin).brain
    begin = {"encoder_checkpoint": joint_run, "init_from": joint_run, "lookahead_size": 3}
    frozen = build("causal_quantizer", corpus, tmp_path / "quantizer", **begin).brain
    for name in ("student", "compressor", "decompressor"):
        file = find_parameters(joint_run, name=name, min_key="reconstruction")
        best = torch.load(file, weights_only=True)
        for codec in (brain.codec, frozen.codec):
            part = getattr(codec, "encoder" if name == "student" else name)
            assert all(torch.equal(value, best[key]) for key, value in part.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "encoder", "message"),
    [
        ("joint", {}, "features of encoder .*/joint itself if it trained a student"),
        ("causal_quantizer", {}, "features of encoder .*/joint itself if it trained a student"),
        (
            "causal_quantizer",
            {"encoder": "!include:demo/wavlm.yaml"},
            r"joint \(init_from\) trained a student with causal True, .* has causal False",
        ),
    ],
    ids=["student before it", "frozen encoder", "its teacher"],
)
def test_parts_of_a_joint_run_are_refused_by_other_encoders(
    stage, encoder, message, joint_run, corpus, tmp_path
):
    with pytest.raises(ValueError, match=message):
        build(stage, corpus, tmp_path / "run", init_from=joint_run, lookahead_size=3, **encoder)


# Parts of a codec


@pytest.fixture
def codec_folder(student_run, corpus, tmp_path) -> Path:
    """Folder of a codec of the stage before the joint one: it has no refiner."""
    brain = build(
        "causal_quantizer", corpus, tmp_path / "quantizer", encoder_checkpoint=student_run
    ).brain
    brain.codec.save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.mark.parametrize("student", ["run", "codec"])
def test_joint_stage_begins_with_a_codec_that_has_no_refiner(
    student, codec_folder, student_run, corpus, tmp_path
):
    begin = {"student_checkpoint": student_run if student == "run" else codec_folder}
    brain = build("joint", corpus, tmp_path / "run", init_from=codec_folder, **begin).brain
    expected = FocalCodec.from_pretrained(codec_folder).state_dict()
    parts = ("encoder.", "compressor.", "decompressor.")
    filled = {k: v for k, v in brain.codec.state_dict().items() if k.startswith(parts)}
    refiner = {key for key in filled if key.startswith("decompressor.refiner.")}
    assert refiner == filled.keys() - expected.keys() != set()
    assert all(torch.equal(filled[key], expected[key]) for key in filled.keys() - refiner)
    assert not brain.codec.decompressor.refiner.out_proj.weight.any()


def test_joint_stage_refuses_a_codec_of_another_student(codec_folder, corpus, tmp_path):
    with pytest.raises(ValueError, match="know other features; .* with --student_checkpoint"):
        build("joint", corpus, tmp_path / "run", init_from=codec_folder)


# A stage that was left out


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("encoder", "student_checkpoint"),
        ("causal_quantizer", "encoder_checkpoint"),
        ("joint", "init_from"),
    ],
)
def test_stage_says_which_run_before_it_is_missing(stage, key, corpus, tmp_path):
    missing = "results/no_such_run/1234"
    with pytest.raises(FileNotFoundError, match=f"{key} is {missing}, .* train the stage that"):
        build(stage, corpus, tmp_path / "run", **{key: missing})
