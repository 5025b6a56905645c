"""The program that fills a feature cache, in real processes (recipes/cache_features.py)."""

import contextlib
import json
import math
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

from recipes.cache_features import main
from recipes.common.feature_cache import FeatureCache
from tests.saved_runs import free_port

OPTIONS = {
    "dataset": "!include:dataset/libritts100.yaml",
    "encoder": "!include:encoder/logmel.yaml",
    "shard_mib": 0.02,  # each holds one utterance or two
}


def command(root, corpus, folder, *words, yaml="bsq.yaml", **options) -> list[str]:
    """Command line; ``options`` replace the small sizes, ``words`` are added."""
    options = {"data_folder": corpus, "feature_cache": folder} | OPTIONS | options
    return [
        str(root / "hparams" / yaml),
        *(f"--{key}={value}" for key, value in options.items()),
        *words,
    ]


@contextlib.contextmanager
def started(words, root, **variables) -> Iterator[subprocess.Popen]:
    """Run the program in a process of its own, which ends with the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    words = [sys.executable, "-m", "recipes.cache_features", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=root, env=environment, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def shards(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


def encoder_of(folder) -> dict:
    return json.loads((folder / "cache.json").read_text())["encoder"]


@pytest.fixture(scope="module")
def cached(corpus, tmp_path_factory, request):
    """Folder that one process has filled."""
    folder = tmp_path_factory.mktemp("cached") / "cache"
    assert main(command(request.config.rootpath, corpus, folder)) == 0
    return folder


def test_augmented_signals_are_refused(root, corpus, tmp_path, capsys):
    block = tmp_path / "louder.yaml"
    block.write_text("!name:tests.test_cached_training.louder\n")
    assert main(command(root, corpus, tmp_path / "cache", augment=f"!include:{block}")) == 1
    assert "but augment changes them at every reading" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_it_caches_train_and_valid_and_touches_neither_data_nor_output(
    root, corpus, tmp_path, monkeypatch, caplog, capsys
):
    before = sorted((path, path.stat().st_mtime_ns) for path in corpus.rglob("*"))
    folder, output = tmp_path / "cache", tmp_path / "run"
    with caplog.at_level("INFO"):
        assert main(command(root, corpus, folder, f"--output_folder={output}")) == 0
    cache = FeatureCache(folder, encoder=encoder_of(folder))
    assert len(cache) == 9 and "dev-clean_0" in cache and "test-clean_0" not in cache
    assert sorted((path, path.stat().st_mtime_ns) for path in corpus.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [folder]
    assert "0 utterances there, 9 to encode" in caplog.text and "MiB to write" in caplog.text
    assert "9 utterances, 0.09 MiB" in caplog.text and "h per second" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        assert main(command(root, corpus, folder, "--subsets", "train", "test")) == 0
    assert "6 utterances there, 2 to encode" in caplog.text
    assert "test-clean_0" in FeatureCache(folder, encoder=encoder_of(folder))


def test_both_stages_fill_one_cache(root, corpus, cached):
    before = shards(cached)
    assert main(command(root, corpus, cached, yaml="vocos.yaml")) == 0
    assert shards(cached) == before


def test_two_workers_write_what_one_process_writes(root, corpus, cached, tmp_path):
    with started(command(root, corpus, tmp_path / "cache", "--workers", "2"), root) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "9 to encode" in error and "9 utterances, 0.09 MiB" in error
    assert shards(tmp_path / "cache") == shards(cached)


def test_under_torchrun_each_process_is_a_worker(root, corpus, cached, tmp_path):
    port = str(free_port())
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = command(root, corpus, tmp_path / "cache")
    with (
        started(words, root, RANK="0", LOCAL_RANK="0", **common) as one,
        started(words, root, RANK="1", LOCAL_RANK="1", **common) as two,
    ):
        errors = [process.communicate(timeout=120)[1] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], errors
    assert "to encode" in errors[0] and "to encode" not in errors[1]
    assert shards(tmp_path / "cache") == shards(cached)


def test_verify_computes_nothing_and_finds_damage(root, corpus, cached, tmp_path, capsys, caplog):
    folder = tmp_path / "cache"
    with caplog.at_level("INFO"):
        assert main(command(root, corpus, cached, "--verify")) == 0
    assert "9 utterances, 0.09 MiB, all as they were written" in caplog.text
    assert main(command(root, corpus, folder, "--verify")) == 1
    assert "holds no feature cache" in capsys.readouterr().err and not folder.exists()
    shutil.copytree(cached, folder)
    damaged = folder / "shard-00002.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert main(command(root, corpus, folder, "--verify")) == 1
    error = capsys.readouterr().err
    assert "shard-00002: utterance" in error and "remove shard-00002.*" in error
    assert error.count("\n") == 1
    for path in folder.glob("shard-00002.*"):
        path.unlink()
    assert main(command(root, corpus, folder)) == 0
    assert shards(folder) == shards(cached)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_folder": "/none"}, "data_folder /none is not a folder"),
        ({"feature_cache_dtype": "float32"}, "dtype must be float16 or bfloat16, got 'float32'"),
        (
            {"feature_cache_dtype": "bfloat16"},
            "holds float16 and bfloat16 is asked for; pass --feature_cache_dtype float16",
        ),
        ({"workers": 0}, "workers must be at least 1"),
        ({"device": "tpu9000"}, "device must be such as cpu, cuda or cuda:0, got 'tpu9000'"),
        ({"device": "cuda:99"}, "CUDA devices; pass --device cpu"),
        ({"encoder": "wavlm"}, "pass --encoder '!include:wavlm'"),
        ({"worker": 2}, "worker"),
        ({"min_duration_s": 99}, "no utterance left"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(root, corpus, cached, capsys, options, message):
    before = shards(cached)
    assert main(command(root, corpus, cached, **options)) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("cache_features: ") and message in error and "\n" not in error
    assert shards(cached) == before


def test_an_error_of_a_worker_is_said_once(root, corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    path = next(copy.glob("train-clean-100/*/*/*.wav"))
    # The header is right, so preparation lets it pass.
    soundfile.write(path, [math.nan] * 20000, 16000, subtype="FLOAT")
    words = command(root, copy, tmp_path / "cache", "--workers=2", "--on_bad_file=raise")
    with started(words, root) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.count("cache_features: ") == 1 and path.name in error
    assert "Traceback" not in error


def test_an_id_that_two_subsets_share_is_refused(root, corpus, tmp_path, capsys):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    source = next(copy.glob("train-clean-100/*/*/*.wav"))
    shutil.copy(source, copy / "dev-clean" / "0" / "1" / source.name)
    assert main(command(root, copy, tmp_path / "cache")) == 1
    assert "in another subset, but a cache knows utterances by their id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "interrupted; the same command goes on"),
        (signal.SIGTERM, 75, "SIGTERM arrived"),
        (signal.SIGUSR1, 75, "SIGUSR1 arrived"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_no_worker_outlives_its_parent(root, corpus, tmp_path, number, status, message):
    block = tmp_path / "stuck.yaml"
    block.write_text("# Never ends.\n!new:tests.caches.StuckLogMel\nn_mels: 16\n")
    options = {"encoder": f"!include:{block}", "shard_mib": 0.005, "workers": 2}
    with started(command(root, corpus, tmp_path / "cache", **options), root) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("cache/shard-*.bin.tmp-*"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == status
    assert message in error and "Traceback" not in error
    while any("spawn_main" in command_line(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(parent) -> list[int]:
    """Process ids of the workers of a process."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        children = [int(word) for word in file.read().split()]
    return [child for child in children if "spawn_main" in command_line(child)]


def command_line(process) -> str:
    try:
        with open(f"/proc/{process}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def test_workers_and_torchrun_exclude_each_other(root, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(command(root, corpus, tmp_path / "cache", "--workers=2")) == 1
    assert "under torchrun" in capsys.readouterr().err
    assert not torch.distributed.is_initialized()
