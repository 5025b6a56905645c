"""A run folder belongs to one run: budgets, resumption, refusals."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.run_comparison import differences
from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.encoders import load_encoder
from recipes.common.experiment import build_experiment, run_experiment
from recipes.common.run_log import RunLog
from recipes.common.weights import find_parameters
from tests.stages import STAGES, build, options, steps_of, train
from train_quantizer import QuantizerBrain


def test_step_budget_ends_the_run_with_a_validation(corpus, tmp_path):
    metrics = train(
        "quantizer", corpus, tmp_path / "run", optimizer_step_limit=4, number_of_epochs=9
    )
    assert steps_of(tmp_path / "run")[-1]["step"] == 4
    assert metrics["valid"]["step"] == 4


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_the_validation_at_the_budget_it_ends_as_if_it_had_not_been(
    stage, corpus, tmp_path
):
    class Killed(STAGES[stage][0]):
        def evaluate_terms(self, batch, stage):
            raise KeyboardInterrupt

    budget = {"optimizer_step_limit": 2, "number_of_epochs": 3}  # of three steps an epoch
    train(stage, corpus, tmp_path / "whole", **budget)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Killed, options(stage, corpus, tmp_path / "killed", **budget))
    train(stage, corpus, tmp_path / "killed", **budget)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.mark.parametrize("stage", STAGES)
def test_continued_run_equals_an_uninterrupted_one(stage, corpus, tmp_path):
    train(stage, corpus, tmp_path / "cut", number_of_epochs=1)
    train(stage, corpus, tmp_path / "cut", number_of_epochs=2)
    train(stage, corpus, tmp_path / "whole", number_of_epochs=2)
    assert steps_of(tmp_path / "cut") == steps_of(tmp_path / "whole")
    name = {"decoder": "decoder", "quantizer": "compressor"}[stage]
    cut, whole = (
        torch.load(find_parameters(tmp_path / run, name=name, min_key=None), weights_only=True)
        for run in ("cut", "whole")
    )
    assert all(torch.equal(cut[key], whole[key]) for key in whole)
    starts = json.loads((tmp_path / "cut/run.json").read_text())["starts"]
    assert len(starts) == 2


class WorseningQuantizer(QuantizerBrain):
    """Validation error that grows with every epoch."""

    def evaluate_terms(self, batch, stage):
        terms, weight = super().evaluate_terms(batch, stage)
        return terms | {"reconstruction": float(self.epoch)}, weight


def test_best_and_last_checkpoint_are_kept_and_the_best_is_tested(corpus, tmp_path):
    arguments = options("quantizer", corpus, tmp_path / "run", number_of_epochs=3)
    metrics = run_experiment(WorseningQuantizer, arguments)
    kept = AtomicCheckpointer(tmp_path / "run/save").list_checkpoints()
    assert sorted(ckpt.meta["epoch"] for ckpt in kept) == [1, 3]
    assert metrics["test"]["step"] == 3  # three steps an epoch


def test_kill_between_logging_and_saving_repeats_the_validation(corpus, tmp_path):
    """The log then knows of a validation of step 6 whose checkpoint was never written."""
    train("quantizer", corpus, tmp_path / "run", number_of_epochs=1)
    path = tmp_path / "run/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["valid"]["step"] = 6
    path.write_text(json.dumps(metrics))
    train("quantizer", corpus, tmp_path / "run", number_of_epochs=2)
    kept = AtomicCheckpointer(tmp_path / "run/save").list_checkpoints()
    assert max(ckpt.meta["epoch"] for ckpt in kept) == 2


def test_test_only_keeps_the_log(corpus, tmp_path):
    """Also the lines after the best checkpoint, which is what the test loads."""
    folder = tmp_path / "run"
    arguments = options("quantizer", corpus, folder, number_of_epochs=3)
    run_experiment(WorseningQuantizer, arguments)
    steps, metrics = steps_of(folder), json.loads((folder / "metrics.json").read_text())
    run_experiment(WorseningQuantizer, [*arguments, "--test_only"])
    assert steps_of(folder) == steps
    again = json.loads((folder / "metrics.json").read_text())
    assert (again["train"], again["valid"]) == (metrics["train"], metrics["valid"])


def test_debug_leaves_the_run_folder_alone(corpus, tmp_path):
    folder = tmp_path / "run"
    train("quantizer", corpus, folder)
    logs = ("steps.jsonl", "metrics.json", "train_log.txt")
    before = [(folder / name).read_bytes() for name in logs]
    arguments = [*options("quantizer", corpus, folder), "--debug"]
    brain, loader, valid, test = build_experiment(QuantizerBrain, arguments)
    assert brain.remaining_steps() == 2  # of 3, in each of as many epochs as there are
    brain.fit(brain.hparams.epoch_counter, loader, valid)
    assert brain.remaining_steps() == 0
    brain.evaluate(test, min_key="reconstruction")
    brain.run_log.close()
    brain.checkpointer.tempdir.cleanup()
    assert [(folder / name).read_bytes() for name in logs] == before


def test_decoder_checkpoint_may_be_added_later(decoder_run, corpus, tmp_path):
    train("quantizer", corpus, tmp_path / "run")
    later = {"number_of_epochs": 2, "decoder_checkpoint": decoder_run}
    metrics = train("quantizer", corpus, tmp_path / "run", **later)
    assert metrics["valid"]["hyp_mel_distance"] > 0


def test_mistake_leaves_the_folder_free_for_the_corrected_command(corpus, tmp_path):
    with pytest.raises(ValueError, match="stoy"):
        build("quantizer", corpus, tmp_path / "run", metrics="[stoy]")
    build("quantizer", corpus, tmp_path / "run", lr=0.1)


def test_output_inside_the_users_data_is_refused_before_anything_is_written(corpus):
    with pytest.raises(ValueError, match="nothing is ever written there"):
        build("quantizer", corpus, corpus / "results")
    assert not (corpus / "results").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer_step_limit", 0), ("valid_interval_epochs", 0), ("log_interval_steps", 0)],
)
def test_counts_below_one_are_refused_by_name(key, value, corpus, tmp_path):
    with pytest.raises(ValueError, match=f"{key} must be at least 1"):
        build("quantizer", corpus, tmp_path / "run", **{key: value})


def test_step_limit_can_be_lifted_on_the_command_line(corpus, tmp_path):
    experiment = build("decoder", corpus, tmp_path / "run", optimizer_step_limit="null")
    assert experiment.brain.optimizer_step_limit is None


def test_other_configuration_in_the_same_folder_is_refused(corpus, tmp_path):
    train("quantizer", corpus, tmp_path / "run")
    saved = (tmp_path / "run/hyperparams.yaml").read_bytes()
    with pytest.raises(ValueError, match="another configuration.*--output_folder"):
        train("quantizer", corpus, tmp_path / "run", entropy_weight=5.0)
    assert (tmp_path / "run/hyperparams.yaml").read_bytes() == saved


@pytest.fixture
def data(corpus, tmp_path):
    """Copy the corpus for one test."""
    return Path(shutil.copytree(corpus, tmp_path / "data"))


def test_a_file_that_was_found_bad_stays_listed_when_the_run_goes_on(data, tmp_path):
    for split in ("train-clean-100", "dev-clean"):
        cut = next((data / split).rglob("*.wav")).with_name(f"cut_{split}.flac")
        soundfile.write(cut, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
        cut.write_bytes(cut.read_bytes()[:9000])  # with its header
    once = train("quantizer", data, tmp_path / "once", number_of_epochs=2)
    train("quantizer", data, tmp_path / "twice", number_of_epochs=1)
    twice = train("quantizer", data, tmp_path / "twice", number_of_epochs=2)
    lists = [(tmp_path / name / "bad_files.tsv").read_text() for name in ("once", "twice")]
    assert lists[0] == lists[1] and len(lists[0].splitlines()) == 2
    assert once == twice and once["test"]["bad_files"] == 2


@pytest.mark.parametrize("change", ["lost", "gained", "changed"])
def test_a_run_does_not_go_on_with_other_data(change, data, tmp_path):
    train("quantizer", data, tmp_path / "run")
    files = ("train.json", "valid.json", "test.json", "bad_files.tsv")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files}
    wav = next((data / "train-clean-100").rglob("*.wav"))
    if change == "lost":
        wav.write_bytes(b"")
        message = rf"train lost 1 utterances \({wav.stem}\); left out: {wav}: "
    elif change == "gained":
        shutil.copy(wav, wav.with_name("more.wav"))
        message = r"train gained 1 utterances \(more\). Put"
    else:
        soundfile.write(wav, np.zeros(16000), 16000)
        message = rf"train has changed 1 utterances \({wav.stem}\)"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            train("quantizer", data, tmp_path / "run", number_of_epochs=2)
        assert before == {name: (tmp_path / "run" / name).read_bytes() for name in files}
    accepted = {"number_of_epochs": 2, "on_changed_data": "accept"}
    metrics = train("quantizer", data, tmp_path / "run", **accepted)
    assert metrics["train"]["epoch"] == 2


def test_a_policy_on_changed_data_that_is_none_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="on_changed_data must be raise or accept, got 'ask'"):
        build("quantizer", corpus, tmp_path / "run", on_changed_data="ask")


def test_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, sample_rate=16000)
    log.resume(0)
    for step in (1, 2, 3):
        log.step(step, {"mel": 1.0}, epoch=1)
    log.close()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 4, "ep')
    again = RunLog(tmp_path, sample_rate=16000)
    again.resume(2)
    again.close()
    assert [step["step"] for step in steps_of(tmp_path)] == [1, 2]


def test_wrong_decoder_checkpoint_is_refused(decoder_run, corpus, tmp_path):
    wrong = next((decoder_run / "save").glob("CKPT*/discriminator.ckpt"))
    with pytest.raises(ValueError, match="does not fit"):
        build("quantizer", corpus, tmp_path / "run", decoder_checkpoint=wrong)


def test_decoder_of_another_size_is_refused(decoder_run, corpus, tmp_path):
    with pytest.raises(ValueError, match="does not fit"):
        build(
            "quantizer",
            corpus,
            tmp_path / "run",
            decoder="!include:decoder/vocos.yaml",
            decoder_checkpoint=decoder_run,
        )


def test_missing_decoder_checkpoint_names_the_path(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build("quantizer", corpus, tmp_path / "run", decoder_checkpoint="nowhere")


def test_test_only_without_a_checkpoint_is_refused(corpus, tmp_path):
    arguments = [*options("quantizer", corpus, tmp_path / "run"), "--test_only"]
    with pytest.raises(RuntimeError, match="no checkpoint with reconstruction"):
        run_experiment(QuantizerBrain, arguments)


def test_encoder_with_weights_needs_a_checkpoint():
    from focalcodec.wavlm import WavLM

    tiny = partial(
        WavLM,
        hidden_dims=[8] * 7,
        num_layers=1,
        dim=16,
        ffn_dim=16,
        num_heads=2,
        conv_pos=4,
        conv_pos_groups=2,
    )
    with pytest.raises(ValueError, match="encoder_checkpoint is null"):
        load_encoder(tiny(), None)
    first, second = tiny(), tiny()
    load_encoder(first, "random")
    load_encoder(second, "random")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
