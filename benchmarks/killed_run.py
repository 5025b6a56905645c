"""Real runs at toy size, ended where it is planned and started again; for `benchmarks.kill_resume`.

Only for Linux: what a run has started is found in ``/proc``.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile
import yaml

from recipes.common.checkpoints import AtomicCheckpointer
from recipes.common.interruption import INTERRUPTED
from recipes.corpora import synthetic

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "decoder": ("train_decoder.py", "vocos.yaml"),
    "quantizer": ("train_quantizer.py", "bsq.yaml"),
    "encoder": ("train_encoder.py", "causal_encoder.yaml"),
    "joint": ("train_quantizer.py", "joint.yaml"),
}
_STUDENT = {
    "encoder": "!include:demo/wavlm.yaml",
    "encoder_checkpoint": "random",
    "student": "!include:demo/wavlm_causal.yaml",
    "student_checkpoint": "null",
    "lr": 0.002,
}
_SMALL = {
    "decoder": {"discriminator": "!include:demo/discriminator.yaml", "lr": 0.002},
    "quantizer": {"hidden_dims": "[24, 16, 16]", "lr": 0.005},
    "encoder": {"layer_weights": "[0, 0.5, 0.8, 1.0]", **_STUDENT},
    "joint": {
        "hidden_dims": "[24, 16, 16]",
        "mixer": "!include:demo/focal_causal.yaml",
        "init_from": "null",
        **_STUDENT,
    },
}
SIGNALS = {name: getattr(signal, f"SIG{name}") for name in ("KILL", "TERM", "USR1")}

_MARK = "KILL_RESUME_TRIAL"  # environment variable that all processes of a run inherit

DECODER = """# Vocos at toy size.
!name:focalcodec.vocos.Vocos
num_layers: 1
dim: 16
ffn_dim: 32
n_fft: 1024
hop_length: 320  # samples
"""

# Read by the interpreter of the run as its first module. The main process notes its operations in
# the trial's folder, and signals its process group before the one that the environment names.
HOOK = """
import os, sys

main, trial = os.getpid(), os.environ["KILL_RESUME_TRIAL"]
left, _, text = os.environ["KILL_RESUME_OPERATION"].partition(" ")
left = int(left or 0)
signum = int(os.environ["KILL_RESUME_SIGNAL"])
trace = os.open(os.environ["KILL_RESUME_TRACE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def hook(event, arguments):
    global left
    if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        return
    if os.getpid() != main or os.environ.get("RANK", "0") != "0":
        return
    if event == "open" and not arguments[2] & writing or isinstance(arguments[0], int):
        return
    path = os.fsdecode(arguments[0])
    if event in ("os.remove", "os.rmdir") and arguments[-1] >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), path)
    path = os.path.abspath(path)
    # TensorBoard writes in a thread of its own, whenever that gets its turn.
    if path.startswith(trial + "/") and not path.startswith(trial + "/run/tensorboard"):
        operation = f"{event} {path[len(trial) + 1:]}"
        os.write(trace, f"{operation}\\n".encode())
        if text in operation:
            left -= 1
            if left == 0:
                os.killpg(0, signum)


sys.addaudithook(hook)
"""


class Setting(NamedTuple):
    """What is trained: paths of this benchmark's inputs, and options of the command."""

    stage: str
    inputs: Path
    workers: int = 1
    accumulation: int = 2
    epochs: int = 3
    ranks: int = 1
    feature_cache: bool = False
    listens: bool = True  # the quantizer stage decodes audio in its validation


class Kill(NamedTuple):
    """When a start is ended, and by which signal.

    ``at`` is a number of seconds after the start, or a text such as "3 open run/steps": immediately
    before the third file operation with "open run/steps" in it.
    """

    at: float | str
    signal_name: str = "KILL"


class Death(NamedTuple):
    """One end before the end: seconds after the start, phase, exit status, step to go on from."""

    seconds: float
    phase: str
    status: int
    step: int

    def __str__(self) -> str:
        """Say it in a few words."""
        end = "" if self.status == -signal.SIGKILL else f" (exit status {self.status})"
        start = f"resumed from step {self.step}" if self.step else "started again"
        return f"killed at {self.seconds:.1f} s in {self.phase}{end}, {start}"


def prepare(setting: Setting) -> None:
    """Make the inputs: corpus, toy blocks, and a decoder for the quantizer stage to listen with."""
    corpus = setting.inputs / "corpus"
    synthetic.generate(corpus, speakers=7, heldout_speakers=2, utterances=2)
    for split in ("train-clean-100", "dev-clean"):
        break_first_file(corpus / split)
    (setting.inputs / "decoder.yaml").write_text(DECODER, encoding="utf-8")
    if setting.stage == "quantizer" and setting.listens:
        decoder = Setting("decoder", setting.inputs, epochs=1)
        finish(decoder, setting.inputs / "listening")


def break_first_file(split: Path) -> None:
    """Put half of a FLAC file in place of the first wav file; its header promises the whole."""
    path = min(split.rglob("*.wav"))
    broken = path.with_suffix(".flac")
    soundfile.write(broken, *soundfile.read(path, dtype="int16"))
    os.truncate(broken, broken.stat().st_size // 2)
    path.unlink()


def command(setting: Setting, trial: Path) -> list[str]:
    """Words of the stage's command, with ``trial/run`` as its run folder.

    14 utterances of training in batches of 2, or without the broken one 13: 7 batches an epoch on
    one rank, so that the last accumulation group is shorter.
    """
    script, hparams = SCRIPTS[setting.stage]
    values = {
        "data_folder": setting.inputs / "corpus",
        "output_folder": trial / "run",
        "dataset": "!include:dataset/synthetic.yaml",
        "encoder": "!include:encoder/logmel.yaml",
        "num_workers": setting.workers,
        "batch_size": 2 // setting.ranks,
        "grad_accumulation_factor": setting.accumulation,
        "number_of_epochs": setting.epochs,
        "ckpt_interval_steps": 2,
        "log_interval_steps": 1,
    }
    if setting.stage != "encoder":  # which decodes nothing
        values |= {
            "decoder": f"!include:{setting.inputs / 'decoder.yaml'}",
            "num_audio_samples": 2,
            "metrics": "[mel_distance]",
        }
    values |= _SMALL.get(setting.stage, {})
    if setting.stage == "quantizer" and setting.listens:
        values["decoder_checkpoint"] = setting.inputs / "listening" / "run"
    if setting.feature_cache:
        values["feature_cache"] = trial / "cache"
    if setting.ranks > 1:
        values["distributed_backend"] = "gloo"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={setting.ranks}"]
    words = [f"--{name}={value}" for name, value in values.items()]
    return [
        sys.executable,
        *(launcher if setting.ranks > 1 else ()),
        script,
        f"hparams/{hparams}",
        "--noprogressbar",
        "--device=cpu",
        *words,
    ]


def finish(setting: Setting, trial: Path) -> float:
    """Run the command to its end; seconds it took.

    Raises
    ------
    RuntimeError : if it does not end well; with the end of what it printed.
    """
    began = time.monotonic()
    run = Run(setting, trial)
    status = run.wait(600)
    if status != 0:
        raise RuntimeError(f"exit status {status} of {run.command}:\n{run.printed()[-4000:]}")
    return time.monotonic() - began


def resume_until_done(setting: Setting, trial: Path, kills: Sequence[Kill]) -> list[Death]:
    """Start the command, end it as planned, and start it again until it ends by itself.

    Returns
    -------
    Where it died; fewer than planned if it ended before.

    Raises
    ------
    RuntimeError : if it fails by itself, or if a signal other than SIGKILL makes it fail.
    TimeoutError : if it does not end.
    """
    deaths: list[Death] = []
    for kill in [*kills, None]:
        began, started = time.monotonic(), time.time()
        run = Run(setting, trial, kill=kill)
        if kill is not None and isinstance(kill.at, float):
            status = run.wait(kill.at, then=SIGNALS[kill.signal_name])
        else:
            status = run.wait(600)
        if status == 0:
            break
        # A launcher has an exit status of its own for all that happens to its processes.
        stopped = status < 0 or status == INTERRUPTED or setting.ranks > 1
        if not (run.signalled and stopped):
            when = "" if kill is None or run.signalled else f", before its kill at {kill.at}"
            raise RuntimeError(
                f"exit status {status}{when}, after {[*map(str, deaths)]}:\n{run.printed()[-4000:]}"
            )
        phase = run.phase(since=started)
        deaths.append(Death(time.monotonic() - began, phase, status, next_step(trial / "run")))
    return deaths


def resume_killed(setting: Setting, trial: Path, draws: Sequence[Sequence[Kill]]) -> list[Death]:
    """Do `resume_until_done` with the first of several draws of kills of which one is delivered.

    Raises
    ------
    RuntimeError : if none is, or as `resume_until_done`.
    TimeoutError : as `resume_until_done`.
    """
    for kills in draws:
        if deaths := resume_until_done(setting, trial, kills):
            return deaths
        shutil.rmtree(trial)
    raise RuntimeError(f"no kill was delivered: {len(draws)} runs ended before their first one")


class Run:
    """One process of the command, with all that it starts.

    Parameters
    ----------
    setting : what is run.
    trial : folder of its outputs: ``run``, ``printed.txt``, ``operations.txt``.
    kill : what will end it, if that is to be done before one of its file operations.
    """

    def __init__(self, setting: Setting, trial: Path, *, kill: Kill | None = None) -> None:
        self.trial = trial
        self.command = command(setting, trial)
        self._operation = kill.at if kill is not None and isinstance(kill.at, str) else ""
        self._sent = False
        hook = trial / "hook"
        hook.mkdir(parents=True, exist_ok=True)
        (hook / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        (trial / "operations.txt").unlink(missing_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")]).strip(":"),
            "KILL_RESUME_TRACE": str(trial / "operations.txt"),
            "KILL_RESUME_OPERATION": self._operation,
            "KILL_RESUME_SIGNAL": str(int(SIGNALS[kill.signal_name if kill else "KILL"])),
            _MARK: str(trial),
        }
        with open(trial / "printed.txt", "ab") as printed:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float, *, then: signal.Signals | None = None) -> int:
        """Exit status, once no process of the run is left.

        Parameters
        ----------
        seconds : how long it may run.
        then : signal to all its processes after that time; None: it must have ended.

        Raises
        ------
        TimeoutError : if it still runs, without ``then`` or a minute after the signal.
        """
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            if then is None or not self._end(then):
                raise TimeoutError(
                    f"{self.command} did not end:\n{self.printed()[-4000:]}"
                ) from None
        finally:
            self._kill_all()
        return self._process.returncode

    @property
    def signalled(self) -> bool:
        """Whether the signal of its kill was sent while it lived."""
        return self._sent or self._fatal_operation() is not None

    def printed(self) -> str:
        """Read what all starts of this trial have printed."""
        return (self.trial / "printed.txt").read_text(encoding="utf-8", errors="replace")

    def phase(self, *, since: float) -> str:
        """Say what the run was last seen doing, by its newest file since a time stamp."""
        if operation := self._fatal_operation():
            return f"before {operation}"
        run = self.trial / "run"
        if any(run.glob("save/tmp-*")):
            return "saving"
        found = {name: _newest(run.glob(name)) for name in _PHASES}
        name = max(found, key=found.get)
        if found[name] < since:
            return "start-up"
        lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        return f"{_PHASES[name]} after step {json.loads(lines[-1])['step'] if lines else 0}"

    def _fatal_operation(self) -> str | None:
        """Operation before which the run signalled itself; None if it did not come to it."""
        if not self._operation:
            return None
        number, _, text = self._operation.partition(" ")
        matching = [line for line in operations(self.trial) if text in line]
        return matching[int(number) - 1] if len(matching) >= int(number) else None

    def _end(self, signum: signal.Signals) -> bool:
        """Signal all processes; whether the main one has ended a minute later."""
        for process in self._processes():
            _signal(process, signum)
            self._sent = True
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill_all(self) -> None:
        while processes := self._processes():
            for process in processes:
                _signal(process, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)
        self._process.wait()

    def _processes(self) -> list[int]:
        """Ids of the living processes with this run's mark, the launcher's own sessions included.

        A zombie's environment is empty.
        """
        mark = f"{_MARK}={self.trial}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environment = (folder / "environ").read_bytes()
                except OSError:
                    continue
                if mark in environment.split(b"\0"):
                    found.append(int(folder.name))
        return found


_PHASES = {
    "steps.jsonl": "training",
    "samples/valid/*/*": "validation",
    "train_log.txt": "the end of a validation or test",
    "save/CKPT*": "what follows a checkpoint",
    "samples/test/*/*": "test",
    "test_*.csv": "the end of the test",
}


def _newest(paths: Iterator[Path]) -> float:
    return max((path.stat().st_mtime for path in paths), default=0.0)


def _signal(process: int, signum: signal.Signals) -> None:
    try:
        os.kill(process, signum)
    except ProcessLookupError:
        pass


def operations(trial: Path) -> list[str]:
    """File operations of the last start, one line each."""
    path = trial / "operations.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def next_step(run: Path) -> int:
    """Optimizer step that the run will continue from; 0 if from the beginning."""
    if not (run / "save").is_dir():
        return 0
    found = AtomicCheckpointer(run / "save").find_checkpoint()
    if found is None:
        return 0
    return yaml.safe_load((found.path / "brain.ckpt").read_text(encoding="utf-8"))["optimizer_step"]
