"""Weights of other runs: where they are found, and what is said where they are not."""

import re

import pytest
import torch

from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.weights import find_parameters, load_parameters, refuse_missing_run

MEL = {"first": 2.0, "best": 1.0, "last": 3.0}  # errors of three checkpoints, in their order


def make_decoder(value=0.0, *, dim=3):
    decoder = torch.nn.Linear(dim, 2)
    torch.nn.init.constant_(decoder.weight, value)
    return decoder


@pytest.fixture
def run(tmp_path):
    """Folder of a run with three checkpoints; the decoder's weights are the error of each."""
    decoder = make_decoder()
    checkpointer = AtomicCheckpointer(tmp_path / "run" / "save", {"decoder": decoder})
    for name, mel in MEL.items():
        torch.nn.init.constant_(decoder.weight, mel)
        checkpointer.save_checkpoint(meta={"mel": mel}, name=name)
    return tmp_path / "run"


def loaded(path, *, min_key=None):
    """Return the value of the weights that are loaded from ``path``."""
    decoder = make_decoder()
    load_parameters(decoder, path, name="decoder", min_key=min_key)
    (value,) = decoder.weight.unique().tolist()
    return value


@pytest.mark.parametrize("folder", [".", "save"], ids=["run", "checkpoints"])
def test_a_folder_gives_its_best_checkpoint_or_its_last(run, folder):
    assert loaded(run / folder, min_key="mel") == MEL["best"]
    assert loaded(run / folder) == MEL["last"]


@pytest.mark.parametrize("min_key", ["mel", None])
def test_a_checkpoint_or_file_that_is_named_is_taken_whatever_its_error(run, min_key):
    assert loaded(run / "save" / "CKPT+first", min_key=min_key) == MEL["first"]
    assert loaded(run / "save" / "CKPT+first" / "decoder.ckpt", min_key=min_key) == MEL["first"]
    assert loaded(str(run / "save" / "CKPT+last"), min_key=min_key) == MEL["last"]


def test_a_file_may_have_any_name(run, tmp_path):
    file = (run / "save" / "CKPT+best" / "decoder.ckpt").rename(tmp_path / "mine.pt")
    assert find_parameters(file, name="decoder", min_key="mel") == file
    assert loaded(file) == MEL["best"]


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(run):
    (run / "save" / "CKPT+best" / "decoder.ckpt").write_bytes(b"")
    assert loaded(run, min_key="mel") == MEL["first"]


def test_what_is_missing_is_named(run, tmp_path):
    (tmp_path / "empty" / "save").mkdir(parents=True)
    for path, min_key, message in [
        (tmp_path / "absent", None, r"absent does not exist; name a run folder or .*decoder\.ckpt"),
        (tmp_path / "empty", None, "no checkpoint with weights in .*empty/save yet"),
        (tmp_path / "empty", "mel", "no checkpoint with mel in .*empty/save yet"),
        (run, "reconstruction", "no checkpoint with reconstruction in .*run/save yet"),
    ]:
        with pytest.raises(FileNotFoundError, match=message):
            find_parameters(path, name="decoder", min_key=min_key)


@pytest.mark.parametrize("folder", [".", "save/CKPT+best"], ids=["run", "checkpoint"])
def test_a_run_of_another_stage_is_named(run, folder):
    with pytest.raises(FileNotFoundError, match=r"CKPT\+best has no compressor\.ckpt: .*stage"):
        find_parameters(run / folder, name="compressor", min_key="mel")


@pytest.mark.parametrize(
    "module",
    [make_decoder(dim=4), torch.nn.Linear(3, 2, bias=False), torch.nn.LSTM(3, 2)],
    ids=["size", "bias", "class"],
)
def test_a_module_that_was_not_trained_is_refused(run, module):
    before = [parameter.clone() for parameter in module.parameters()]
    message = rf"decoder \({type(module).__name__}\) .*CKPT\+best/decoder\.ckpt does not fit: it "
    with pytest.raises(ValueError, match=message) as error:
        load_parameters(module, run, name="decoder", min_key="mel")
    assert "\n" not in str(error.value)
    assert all(map(torch.equal, module.parameters(), before))


def test_a_file_of_something_else_is_refused(run):
    torch.save([torch.ones(2, 3), torch.ones(2)], run / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt does not fit: it is not a state dict"):
        load_parameters(make_decoder(), run / "list.pt", name="decoder", min_key=None)


@pytest.mark.parametrize(
    "source",
    [
        "results/causal_encoder/1234",
        "results/mine",
        "./mine",
        "../mine/1",
        "~/none/1",
        "trials/a/1",
    ],
)
def test_a_run_that_was_not_trained_yet_is_said_to_be_missing(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trials").mkdir()
    message = f"student_checkpoint is {re.escape(source)}, which does not exist; train the stage"
    with pytest.raises(FileNotFoundError, match=message):
        refuse_missing_run(source, key="student_checkpoint")


def test_what_is_there_or_on_the_hub_is_not_said_to_be_missing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/codec.json").write_text("{}")
    for source in (run, run / "save", "./run", "results/codec", "results/codec.json"):
        refuse_missing_run(source, key="init_from")
    for source in (
        "microsoft/wavlm-large",
        "owner/name/codec.json",
        "owner/name/codec",
        "run/name",
    ):
        refuse_missing_run(source, key="init_from")
