"""Which runs the pipeline puts aside, and that it waits for those that still work."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.saved_runs import names

ENVIRONMENT = {name: os.environ[name] for name in os.environ if name != "SLURM_JOB_ID"}


def set_aside(root: Path, *folders: Path) -> subprocess.Popen:
    """Start the script: a run's folder, then its sources."""
    words = ["bash", "recipes/pipeline/set_aside.sh", *folders]
    return subprocess.Popen(words, cwd=root, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def write_codec(folder: Path, content: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(content)
    return folder


def write_stage(folder: Path, *, best: int) -> Path:
    """Run folder with the checksum of its best checkpoint."""
    (folder / "save/CKPT+best").mkdir(parents=True, exist_ok=True)
    (folder / "best_checkpoint.json").write_text(json.dumps({"student.ckpt": best}))
    return folder


def test_run_goes_on_where_its_sources_have_no_better_checkpoint(root, tmp_path):
    run, sources = tmp_path / "run", [write_stage(tmp_path / f"{i}", best=i) for i in (1, 2)]
    ended(set_aside(root, run, *sources))
    (sources[1] / "save/CKPT+last").mkdir()  # it went on, and got worse
    (sources[1] / "save/tmp-machine-1-CKPT+x").mkdir()
    ended(set_aside(root, run, *sources))
    assert names(tmp_path) == [".run.lock", "1", "2", "run"]
    write_stage(sources[1], best=3)
    ended(set_aside(root, run, *sources))
    assert len(list(tmp_path.glob("run.*"))) == 1


def test_only_a_run_begun_with_other_results_is_put_aside(root, tmp_path):
    run, codec = tmp_path / "run", write_codec(tmp_path / "codec", "first")
    for _ in range(2):
        ended(set_aside(root, run, codec))
        (run / "run.json").write_text("begun")
    assert names(tmp_path) == [".run.lock", "codec", "run"]
    write_codec(codec, "second")
    ended(set_aside(root, run, codec))
    (aside,) = tmp_path.glob("run.*")
    assert (aside / "run.json").read_text() == "begun" and names(run) == ["sources.txt"]


def test_source_without_a_result_stops_the_stage_that_needs_it(root, tmp_path):
    (tmp_path / "stage/save").mkdir(parents=True)
    (tmp_path / "codec").mkdir()
    for name, missing in {"stage": "best_checkpoint.json", "codec": "*.json"}.items():
        process = set_aside(root, tmp_path / "run", tmp_path / name)
        assert missing in process.communicate(timeout=60)[1]
        assert process.returncode != 0 and not (tmp_path / "run/sources.txt").exists()


def test_folder_is_not_moved_from_under_a_run_that_survived(root, tmp_path):
    run, codec = tmp_path / "run", write_codec(tmp_path / "codec", "first")
    ended(set_aside(root, run, codec))
    write_codec(codec, "second")
    script = f"echo begun > {run}/log; read; echo done >> {run}/log"
    train = ["bash", "recipes/ablation/run.sh", run, "60", "bash", "-c"]
    survivor = subprocess.Popen([*train, script], cwd=root, env=ENVIRONMENT, stdin=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (run / "log").exists():
        assert time.monotonic() < deadline and survivor.poll() is None
        time.sleep(0.01)
    mover = set_aside(root, run, codec)
    with pytest.raises(subprocess.TimeoutExpired):
        mover.wait(timeout=0.5)
    assert names(tmp_path) == [".run.lock", "codec", "run"]
    survivor.communicate(b"\n", timeout=60)
    ended(mover)
    (aside,) = tmp_path.glob("run.*")
    assert (aside / "log").read_text() == "begun\ndone\n" and names(run) == ["sources.txt"]
