"""What `make downstream` starts: commands that the tasks take, and a table of what they found."""

from pathlib import Path

import pytest
import ruamel.yaml

from recipes.common.command_line import parse_command_line
from recipes.common.files import write_json
from recipes.common.speaker_similarity import load_speaker_model
from recipes.corpora.twins import TWINS as KNOWN_TWINS
from recipes.demo_downstream import TASKS, TWINS, command, save_speaker_model, scores_of, table


@pytest.mark.parametrize("task", TASKS)
def test_command_overrides_keys_that_the_yaml_has(task, root, monkeypatch):
    monkeypatch.chdir(root)
    flag, module, *argv = command(task, Path("out"), Path("codec"), Path("speaker"))
    assert flag == "-m" and (root / f"{module.replace('.', '/')}.py").is_file()
    param_file, _, overrides = parse_command_line(argv)
    yaml = ruamel.yaml.YAML()
    keys = set(yaml.load(Path(param_file).read_text(encoding="utf-8")))
    assert set(yaml.load(overrides)) <= keys


def test_every_task_has_a_twin():
    assert {task.corpus for task in TASKS.values()} == set(TWINS) <= set(KNOWN_TWINS)


def test_speaker_model_is_one_that_loads_and_is_written_once(tmp_path):
    folder = save_speaker_model(tmp_path / "speaker")
    model = load_speaker_model(folder, field="speaker", device="cpu")
    assert model.min_samples < 16_000
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert save_speaker_model(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_table_has_a_line_for_each_evaluation(tmp_path):
    for name, wer in (("evaluation", 0.25), ("evaluation_paper", 0.5)):
        (tmp_path / "asr" / name).mkdir(parents=True)
        scores = {"asr_wer": {"mean": wer}, "unknown": {"mean": 1.0}}
        write_json(tmp_path / "asr" / name / "metrics.json", {"scores": scores})
    lines = table({"scores": {"asr": scores_of(tmp_path / "asr")}}).splitlines()
    assert [line.split() for line in lines] == [
        ["asr", "asr_wer", "0.250"],
        ["asr_paper", "asr_wer", "0.500"],
    ]
