"""The SLURM script, run with stand-ins for SLURM's commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRUN = """#!/bin/bash
worst=0
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) "$@" || worst=$?
done
exit $worst
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> calls
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; fi
"""
TASK = """
import os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
print(*(os.environ.get(name) for name in names), *sys.argv[1:], file=open("tasks", "a"))
sys.exit(int(sys.argv[1]))
"""


def submit(
    root: Path, folder: Path, *, tasks: int, status: int
) -> tuple[int, list[str], list[str]]:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    (folder / "task.py").write_text(TASK)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_NTASKS": str(tasks),
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    words = ["bash", str(root / "tools/train.sbatch"), "task.py", str(status), "two words"]
    done = subprocess.run(words, cwd=folder, env=environment, check=False)
    calls = folder / "calls"
    seen = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, (folder / "tasks").read_text().splitlines(), seen


def test_each_task_is_a_rank(root, tmp_path):
    status, tasks, calls = submit(root, tmp_path, tasks=3, status=0)
    assert status == 0
    assert tasks == [f"{i} {i % 2} 3 node7 20123 0 two words" for i in range(3)]
    assert calls == ["scontrol show hostnames node[7-8]"]


def test_one_task_is_no_distributed_run(root, tmp_path):
    _, tasks, _ = submit(root, tmp_path, tasks=1, status=0)
    assert tasks == ["None None None None None 0 two words"]


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (1, False)])
def test_only_a_run_that_saved_is_queued_again(root, tmp_path, status, requeued):
    code, _, calls = submit(root, tmp_path, tasks=1, status=status)
    assert code == status
    assert calls == (["scontrol requeue 123"] if requeued else [])
