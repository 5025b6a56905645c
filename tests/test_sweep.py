"""The ablation's sweep: what it would run, a small one that is killed, and one under SLURM."""

import json
import os
import re
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import ruamel.yaml

from recipes.common.command_line import parse_command_line
from recipes.common.experiment import config_hash
from tests import workflows
from tests.workflows import commands, options_of

pytestmark = pytest.mark.skipif(
    find_spec("snakemake") is None, reason="the sweep needs Snakemake 9, and that Python 3.11"
)

SNAKEFILE = "recipes/ablation/Snakefile"
BLOCKS = ("mixer", "activation", "quantizer", "decoder")
FOLDERS = ("output_folder", "save_folder", "decoder_checkpoint")
OUTPUT = "results/ablation"
SMALL = """
data_folder: {corpus}
seeds: [1]
rows:
  - [focal, snake, bsq_10bit, demo/decoder]
options:
  common:
    dataset: '!include:dataset/libritts100.yaml'
    encoder: '!include:encoder/logmel.yaml'
    device: cpu
    batch_size: 2
    num_workers: 0
    number_of_epochs: 3
    log_interval_steps: 1
    cost_steps: 0
    metrics: [mel_distance]
  decoder:
    discriminator: '!include:demo/discriminator.yaml'
  quantizer:
    hidden_dims: [24, 16, 16]
"""
# Runs each task at once, in a shell of its own as SLURM does; prints the array's number.
SBATCH = """#!/bin/bash
printf '%s\\n' "$@" >> calls
for word in "$@"; do
    case $word in
        --array=*) tasks=${word#--array=} ;;
        --wrap=*) script=${word#--wrap=} ;;
    esac
done
for task in $(seq ${tasks/-/ }); do
    export SLURM_JOB_ID=$((70 + task)) SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_MIN=${tasks%-*}
    sh -c "$script" >> slurm.log 2>&1 && state=COMPLETED || state=FAILED
    echo "70_$task|$state" >> states
done
echo 70
"""
STAND_INS = {
    "sbatch": SBATCH,
    "squeue": "#!/bin/sh\ncat states\n",
    "srun": '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n',
    "scontrol": '#!/bin/sh\necho "scontrol $*" >> scontrol.calls\necho MinJobAge = 300 sec\n',
    "timeout": '#!/bin/sh\necho timeout "$@"\nexit ${TIMEOUT_STATUS:-0}\n',  # and no training
} | dict.fromkeys(("sacct", "sacctmgr", "scancel", "sinfo", "sshare", "sleep"), "#!/bin/sh\n")


@pytest.fixture
def checkout(root, tmp_path) -> Path:
    """Working folder with the repository's code, where the sweep may leave its own files."""
    return workflows.link_code(root, tmp_path)


@pytest.fixture
def slurm(checkout) -> Path:
    """Stand-ins for SLURM's commands in the working folder."""
    for name, text in STAND_INS.items():
        (checkout / name).write_text(text)
        (checkout / name).chmod(0o755)
    return checkout


def start(checkout: Path, *options: str) -> subprocess.Popen:
    return workflows.start(checkout, SNAKEFILE, *options)


def sweep(checkout: Path, *options: str, status: int = 0) -> str:
    """Run the sweep to its end; what it prints."""
    return workflows.finish(checkout, SNAKEFILE, *options, status=status)


def test_default_sweep_is_table_6(root, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    printed = sweep(checkout, "--dry-run", "--cores", "2", "--config", "data_folder=/data/corpus")
    jobs = dict(re.findall(r"^(decoder|quantizer|row) +(\d+)$", printed, flags=re.MULTILINE))
    assert jobs == {"decoder": "6", "quantizer": "21", "row": "24"}
    options = {run: options_of(words) for run, words in commands(printed).items()}
    assert len(options) == 6 + 21 + 24
    rows = ruamel.yaml.YAML().load(root / "recipes/ablation/rows.yaml")["rows"]
    base = options[f"{OUTPUT}/rows/{'-'.join(rows[0])}/1"]
    for row in rows:
        mine = options[f"{OUTPUT}/rows/{'-'.join(row)}/1"]
        blocks = dict(zip(BLOCKS, row, strict=True))
        assert {kind: mine[kind] for kind in BLOCKS} == {
            kind: f"!include:{kind}/{name}.yaml" for kind, name in blocks.items()
        }
        assert {key for key in mine if mine[key] != base[key]} <= {*BLOCKS, *FOLDERS}


def test_a_row_fits_what_its_stages_trained(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    printed = sweep(checkout, "--dry-run", "--cores", "2", "--config", "data_folder=/data/corpus")
    words = commands(printed)
    for row in (run for run in words if run.startswith(f"{OUTPUT}/rows") and run.endswith("/1")):
        assert "--test_only" in words[row]
        options = options_of(words[row])
        quantizer = words[options["save_folder"].removesuffix("/save")]
        assert not any(word.startswith("--decoder") for word in quantizer), "it waits for none"
        hashes = {config_hash(*parse_command_line(run)[::2]) for run in (words[row], quantizer)}
        assert len(hashes) == 1, "checkpoints belong to one configuration"
        decoder = options_of(words[options["decoder_checkpoint"]])
        assert decoder["decoder"] == options["decoder"] and decoder["seed"] == options["seed"]


def test_without_data_it_says_so_in_one_line(checkout):
    printed = sweep(checkout, "--cores", "1", status=1)
    message = "data_folder is not set; add --config data_folder=FOLDER"
    assert printed.splitlines()[-1].startswith(message) and "Traceback" not in printed


def test_killed_sweep_goes_on_with_the_same_command(checkout, corpus):
    (checkout / "small.yaml").write_text(SMALL.format(corpus=corpus))
    options = ("--cores", "1", "--configfile", "small.yaml")
    output = checkout / OUTPUT
    process = start(checkout, *options)
    deadline = time.monotonic() + 120
    while not (found := list(output.glob("*/*/1/save/CKPT*"))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    killed = found[0].parents[1]
    assert not (killed / "finished").exists()

    printed = sweep(checkout, *options)
    assert (output / "table.md").read_text() in printed
    assert {"table.md", "table.csv", "bars.png"} <= {path.name for path in output.iterdir()}
    assert len(json.loads((killed / "run.json").read_text())["starts"]) == 2
    steps = [json.loads(line)["step"] for line in (killed / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10)), "three epochs of three steps, none of them twice"

    row = output / "rows/focal-snake-bsq_10bit-demo_decoder/1"
    assert "hyp_mel_distance" in json.loads((row / "metrics.json").read_text())["test"]
    assert not (row / "save").exists() and not (row / "steps.jsonl").exists(), "only a test"
    for stage in ("decoder", "quantizer"):
        (mark,) = output.glob(f"{stage}/*/1/finished")
        files = [path for path in mark.parent.rglob("*") if path.is_file()]
        assert max(files, key=lambda path: path.stat().st_mtime_ns) == mark, "then only read"

    assert "Nothing to be done" in sweep(checkout, *options)


def test_slurm_gets_one_array_for_a_stage(slurm):
    sweep(
        slurm,
        *("--profile", "recipes/ablation/profiles/slurm", "--until", "decoder"),
        *("--default-resources", "slurm_account=me", "slurm_partition=gpu"),
        *("--slurm-init-seconds-before-status-checks", "1"),
        *("--config", "data_folder=/data/corpus", "seeds=[1]"),
    )
    words = (slurm / "calls").read_text().splitlines()
    assert words.count("--parsable") == 1 and "--array=1-2" in words
    assert {"me", "gpu", "--gpus=1", "--cpus-per-task=8", "1440", "--requeue"} <= set(words)
    for name in ("vocos", "hifigan"):
        run = slurm / OUTPUT / "decoder" / name / "1"
        assert (run / "finished").exists()
        started = (run / "console.log").read_text()
        assert started.startswith("timeout --foreground 86100 python train_decoder.py")


@pytest.mark.parametrize(("status", "requeued"), [(124, True), (75, False), (1, False)])
def test_only_a_run_at_its_time_limit_is_queued_again(slurm, status, requeued):
    environment = {
        "PATH": f"{slurm}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "TIMEOUT_STATUS": str(status),
    }
    words = ["bash", "recipes/ablation/run.sh", "run", "60", "python", "train_decoder.py"]
    done = subprocess.run(words, cwd=slurm, env=environment, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout.splitlines()[0] == "timeout --foreground 3300 python train_decoder.py"
    calls = slurm / "scontrol.calls"
    assert (calls.read_text() if calls.exists() else "") == "scontrol requeue 7\n" * requeued


def test_a_second_process_waits_for_the_first(checkout):
    """One that survived its sweep and the one that goes on never work in one folder."""
    run = ["bash", "recipes/ablation/run.sh", "run", "60", "bash", "-c"]
    script = "echo begin; sleep 0.5; echo end"
    environment = {name: os.environ[name] for name in os.environ if name != "SLURM_JOB_ID"}
    with open(checkout / "order", "a") as order:
        both = [
            subprocess.Popen([*run, script], cwd=checkout, env=environment, stdout=order)
            for _ in range(2)
        ]
        assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert (checkout / "order").read_text() == "begin\nend\n" * 2
