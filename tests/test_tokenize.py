"""The program that tokenises a corpus, in real processes (recipes/tokenize.py)."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import soundfile
import torch

from focalcodec import FocalCodec
from recipes.common.dataio import load_sig
from recipes.common.shards import open_shards
from recipes.tokenize import main
from tests.caches import child
from tests.saved_runs import free_port
from tests.shards import content, write_rows
from tests.two_ranks import become


def block(folder, name="Blocks") -> str:
    """Give the include of a toy codec's block."""
    path = folder / f"{name}.yaml"
    path.write_text(f"# A toy.\n!name:tests.shards.{name}\n{{}}\n")
    return f"!include:{path}"


def command(folder, speech, *words, **keys) -> list[str]:
    """Command line; ``keys`` replace those of small shards, ``words`` are added."""
    keys = {
        "data_folder": speech,
        "dataset": "!include:dataset/folder.yaml",
        "codec": block(folder.parent),
        "shard_minutes": 0.02,
    } | keys
    return [str(folder), *(f"--{key}={value}" for key, value in keys.items()), *words]


@contextlib.contextmanager
def started(words, root) -> Iterator[subprocess.Popen]:
    """Run the program in a process of its own, which ends with the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    words = [sys.executable, "-m", "recipes.tokenize", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=root, env=environment, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Folder of nine short files."""
    folder = tmp_path_factory.mktemp("speech")
    write_rows(folder / "speaker")
    return folder


@pytest.fixture(scope="module")
def tokenized(speech, tmp_path_factory):
    """Folder that one process has filled."""
    folder = tmp_path_factory.mktemp("tokenized") / "shards"
    assert main(command(folder, speech)) == 0
    return folder


def test_tokens_are_those_of_the_codec_and_the_data_are_only_read(
    speech, make_codec, tmp_path, caplog
):
    make_codec(encoder="wavlm").save_pretrained(tmp_path / "codec")
    before = sorted((path, path.stat().st_mtime_ns) for path in speech.rglob("*"))
    focalcodec = {
        "codec": "!include:codec/focalcodec.yaml",
        "codec_checkpoint": tmp_path / "codec",
    }
    with caplog.at_level("INFO"):
        assert main(command(tmp_path / "shards", speech, **focalcodec)) == 0
    codec = FocalCodec.from_pretrained(tmp_path / "codec")
    shards = open_shards(tmp_path / "shards")
    read = shards.read("test")
    for path in speech.rglob("*.wav"):
        sig = load_sig(path, sample_rate=16_000)
        toks = read[f"speaker--{path.stem}"]["toks"]
        assert torch.equal(
            torch.from_numpy(toks[:, 0].astype("int64")), codec.sig_to_toks(sig[None])[0]
        )
    assert shards.codebooks.shape == (1, 64, 6) and shards.description["token_rate"] == 50
    assert sorted((path, path.stat().st_mtime_ns) for path in speech.rglob("*")) == before
    assert "0 there, 3 to write with 9 utterances" in caplog.text and "MiB free" not in caplog.text
    assert "9 utterances, 0.0007" in caplog.text and "x real time" in caplog.text


def test_two_workers_write_what_one_process_writes(speech, tokenized, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert main(command(tmp_path / "shards", speech, "--workers=2")) == 0
    assert "3 to write with 9 utterances" in caplog.text
    assert content(tmp_path / "shards") == content(tokenized)


def be_rank(rank, port, words, path):
    """Be the program as torchrun starts it; note what it says."""
    become(rank, port)
    with open(path, "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(main(words))


def test_under_torchrun_each_process_is_a_worker(speech, tokenized, tmp_path):
    words, port = command(tmp_path / "shards", speech), free_port()
    paths = [tmp_path / "printed0", tmp_path / "printed1"]
    with (
        child(be_rank, 0, port, words, paths[0]) as one,
        child(be_rank, 1, port, words, paths[1]) as two,
    ):
        one.join(120), two.join(120)
    errors = [path.read_text() for path in paths]
    assert [one.exitcode, two.exitcode] == [0, 0], errors
    assert "to write" in errors[0] and "to write" not in errors[1]
    assert content(tmp_path / "shards") == content(tokenized)


def test_a_signal_ends_it_with_the_status_of_trainings(root, speech, tmp_path):
    folder = tmp_path / "shards"
    words = command(folder, speech, codec=block(tmp_path, "Stuck"))
    with started(words, root) as process:
        deadline = time.monotonic() + 60
        while not list(folder.glob(".locks/test-*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "SIGTERM arrived" in error and "Traceback" not in error


def test_bad_files_are_skipped_or_end_it(speech, tmp_path, capsys, caplog):
    copy = shutil.copytree(speech, tmp_path / "speech")
    path = copy / "speaker" / "utt3.wav"
    # The header is right, so preparation lets it pass.
    soundfile.write(path, [float("nan")] * 4000, 16_000, subtype="FLOAT")
    assert main(command(tmp_path / "raise", copy, on_bad_file="raise")) == 1
    error = capsys.readouterr().err
    assert "utt3.wav: holds NaN" in error and error.count("\n") == 1
    assert main(command(tmp_path / "skip", copy)) == 0
    assert "1 bad files have no tokens: speaker--utt3 (holds NaN" in caplog.text
    assert len(open_shards(tmp_path / "skip").read("test")) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_folder": "/none"}, "data_folder /none is not a folder"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"device": "tpu9000"}, "device must be such as cpu, cuda or cuda:0, got 'tpu9000'"),
        ({"device": "cuda:99"}, "CUDA devices; pass --device cpu"),
        ({"codec": "mimi"}, "pass --codec '!include:mimi'"),
        (
            {"codec": "!include:codec/focalcodec.yaml", "codec_options": "{codebooks: 8}"},
            "unexpected keyword argument 'codebooks'",
        ),
        ({"worker": 2}, "worker"),
        ({"subsets": "[dev]"}, "subsets must be null or some of train, valid, test"),
        ({"subsets": "[train]"}, "train.json holds no utterance"),
        ({"min_duration_s": 0.25}, "begun with another corpus: its 9 utterances of test are not"),
        ({"codec": "Quadruples"}, "num_codebooks is 2 there and 4 here"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(
    speech, tokenized, tmp_path, capsys, options, message
):
    before = content(tokenized)
    if options.get("codec") == "Quadruples":
        options = {"codec": block(tmp_path, "Quadruples")}
    assert main(command(tokenized, speech, **options)) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("tokenize: ") and message in error and "\n" not in error
    assert content(tokenized) == before


def test_shards_do_not_lie_in_the_data(speech, tmp_path, capsys):
    folder = speech / "shards"
    assert main([*command(folder, speech, codec=block(tmp_path))]) == 1
    assert "lies inside data_folder" in capsys.readouterr().err and not folder.exists()


def test_workers_and_torchrun_exclude_each_other(speech, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(command(tmp_path / "shards", speech, "--workers=2")) == 1
    assert "under torchrun" in capsys.readouterr().err
    assert not torch.distributed.is_initialized()


def test_without_ray_its_package_is_named(speech, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command(tmp_path / "shards", speech, "--engine=ray")) == 1
    assert "install it with pip install 'ray[data]'" in capsys.readouterr().err


def test_ray_writes_what_one_process_writes(root, speech, tokenized, tmp_path):
    pytest.importorskip("ray")
    words = command(tmp_path / "shards", speech, "--engine=ray", "--workers=2")
    with started(words, root) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert content(tmp_path / "shards") == content(tokenized)


def test_an_error_under_ray_is_said_in_one_line(root, speech, tmp_path):
    pytest.importorskip("ray")
    copy = shutil.copytree(speech, tmp_path / "speech")
    path = copy / "speaker" / "utt3.wav"
    soundfile.write(path, [float("nan")] * 4000, 16_000, subtype="FLOAT")
    words = command(tmp_path / "shards", copy, "--engine=ray", on_bad_file="raise")
    with started(words, root) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "utt3.wav: holds NaN" in error.splitlines()[-1] and "Traceback" not in error
