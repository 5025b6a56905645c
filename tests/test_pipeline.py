"""The pipeline of all stages: what it would run, and a small one: killed, finished, changed."""

import json
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import ruamel.yaml
import soundfile

from recipes.common.command_line import parse_command_line
from recipes.common.experiment import config_hash
from recipes.demo_stream import stream_file
from tests import workflows

pytestmark = pytest.mark.skipif(
    find_spec("snakemake") is None, reason="the pipeline needs Snakemake 9, and that Python 3.11"
)

SNAKEFILE = "recipes/pipeline/Snakefile"
CONFIGS = ("streaming", "offline", "small", "demo")
STEPS = {"decoder": 3, "embedding": 3, "encoder": 6, "quantizer": 3, "joint": 3}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return workflows.link_code(
        Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("pipeline")
    )


def dry_run(checkout: Path, *options: str) -> dict[str, list[str]]:
    printed = workflows.finish(checkout, SNAKEFILE, "--dry-run", "--cores", "2", *options)
    return workflows.commands(printed)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_command_of_a_configuration_is_accepted(name, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    file = f"recipes/pipeline/{name}.yaml"
    words = dry_run(checkout, "--configfile", file, "--config", "data_folder=/data/speech")
    stages = ruamel.yaml.YAML(typ="safe").load(checkout / file)["stages"]
    assert {Path(folder).name for folder in words} == set(stages)
    for folder, command in words.items():
        options = workflows.options_of(command)
        assert options["output_folder"] == folder and options["seed"] == "1234"
        param_file, _, overrides = parse_command_line(command)
        keys = ruamel.yaml.YAML().load(Path(param_file).read_text(encoding="utf-8"))
        assert set(ruamel.yaml.YAML().load(overrides)) <= set(keys) | {"device"}
        assert config_hash(param_file, overrides)


def test_streaming_stages_take_the_runs_that_their_yamls_name(checkout):
    words = dry_run(
        checkout,
        *("--configfile", "recipes/pipeline/streaming.yaml"),
        *("--config", "data_folder=/data/speech", "output_folder=out"),
    )
    options = {Path(run).name: workflows.options_of(command) for run, command in words.items()}
    assert options["encoder"]["student_checkpoint"] == "out/embedding"
    assert options["quantizer"]["encoder_checkpoint"] == "out/encoder"
    assert options["joint"]["student_checkpoint"] == "out/encoder"
    assert options["joint"]["init_from"] == "out/quantizer"
    for stage in ("decoder", "embedding"):  # they wait for nothing
        assert not [word for word in words[f"out/{stage}"] if "=out/" in word][1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config", "data_folder=x"), "no stages; add --configfile recipes/pipeline/streaming"),
        (("--configfile", "recipes/pipeline/demo.yaml"), "data_folder is not set; add --config"),
    ],
    ids=["configuration", "data"],
)
def test_what_is_missing_is_said_in_one_line(options, message, checkout):
    printed = workflows.finish(checkout, SNAKEFILE, "--cores", "1", *options, status=1)
    assert printed.splitlines()[-1].startswith(message) and "Traceback" not in printed


def small_options(checkout: Path, corpus: Path, **more_steps: int) -> tuple[str, ...]:
    """Write what makes the demo's configuration smaller still; options of a run in ``run``."""
    numbers = STEPS | more_steps
    small = {
        "options": {"batch_size": 2, "log_interval_steps": 1, "ckpt_interval_steps": 1},
        "stages": {
            stage: {"options": {"optimizer_step_limit": steps}} for stage, steps in numbers.items()
        },
    }
    (checkout / "smaller.yaml").write_text(json.dumps(small))
    files = ("recipes/pipeline/demo.yaml", "smaller.yaml")
    given = (f"data_folder={corpus}", "output_folder=run")
    return ("--cores", "1", "--configfile", *files, "--config", *given)


def step_numbers(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "steps.jsonl").read_text().splitlines()]


def test_killed_pipeline_goes_on_and_begins_anew_what_has_changed(checkout, corpus):
    options, output = small_options(checkout, corpus), checkout / "run"
    process = workflows.start(checkout, SNAKEFILE, *options)
    deadline = time.monotonic() + 300
    while not list(output.glob("encoder/save/CKPT*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in five minutes"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (output / "embedding/finished").exists() and not (output / "encoder/finished").exists()

    workflows.finish(checkout, SNAKEFILE, *options)
    for stage, steps in STEPS.items():
        assert step_numbers(output / stage) == list(range(1, steps + 1)), "none of them twice"
        starts = json.loads((output / stage / "run.json").read_text())["starts"]
        assert stage == "decoder" or len(starts) == 1 + (stage == "encoder")
    codec = json.loads((output / "evaluation/streaming/metrics.json").read_text())["codec"]
    assert codec["latency_ms"] == 80 and codec["bitrate"] == 550

    source = next(corpus.glob("test-clean/*/*/*.wav"))
    assert stream_file(source, checkout / "streamed.wav", codec=output / "codec") <= 1e-5
    assert soundfile.info(checkout / "streamed.wav").samplerate == 24000

    dry = ("--dry-run", *options)
    assert "Nothing to be done" in workflows.finish(checkout, SNAKEFILE, *dry)

    # The encoder is trained for longer: it goes on, and what was begun with it begins anew.
    before = (output / "joint/run.json").read_text()
    small_options(checkout, corpus, encoder=12)
    printed = workflows.finish(checkout, SNAKEFILE, *dry)
    due = {Path(folder).name for folder in workflows.commands(printed)}
    assert due == {"encoder", "quantizer", "joint"}
    assert printed.count("-m recipes.export") == 1 and printed.count("-m recipes.evaluate") == 2
    upto_joint = ("run/joint/finished", *options)
    workflows.finish(checkout, SNAKEFILE, *upto_joint)
    assert step_numbers(output / "encoder") == list(range(1, 13))
    (aside,) = output.glob("joint.*")
    assert (aside / "run.json").read_text() == before
    assert len(json.loads((output / "joint/run.json").read_text())["starts"]) == 1
    assert len(list(output.glob("quantizer.*"))) == 1
    assert not list(output.glob("decoder.*")) and not list(output.glob("embedding.*"))
    assert "Nothing to be done" in workflows.finish(checkout, SNAKEFILE, "--dry-run", *upto_joint)
