"""The README's commands and code are true."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import ruamel.yaml
import torch
from speechbrain.utils.run_opts import RunOptions

from focalcodec.cli import main as cli
from recipes.common.command_line import parse_command_line
from recipes.common.experiment import config_hash
from recipes.common.known_metrics import METRICS
from tests.causal_codecs import make_live_codec

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "recipes/README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README + RECIPES, flags=re.DOTALL)
    for line in re.sub(r" \\\n +", " ", block).splitlines()  # continued lines are one command
    if line.strip()
]
LAUNCHERS = ("python train_", "torchrun ", "sbatch ")
TRAINING = [line for line in COMMANDS if line.startswith(LAUNCHERS) and " -m " not in line]
CODEC = [line for line in COMMANDS if line.startswith("python -m focalcodec ")]
SWEEPS = [line for line in COMMANDS if line.startswith("snakemake ")]
PROGRAMS = {  # whose YAML is no task of recipes.evaluate
    "tokenize": "recipes.tokenize FOLDER",
    "asr": "recipes.train_asr recipes/hparams/asr.yaml",
    "speaker": "recipes.train_classifier recipes/hparams/speaker.yaml",
    "emotion": "recipes.train_classifier recipes/hparams/emotion.yaml",
    "enhancement": "recipes.train_separator recipes/hparams/enhancement.yaml",
    "separation": "recipes.train_separator recipes/hparams/separation.yaml",
    "tts": "recipes.train_tts recipes/hparams/tts.yaml",
}
MODULES = [line for line in COMMANDS if " -m " in line and line not in CODEC]


def test_every_command_is_of_a_known_kind():
    assert len(TRAINING) >= 5 and len(MODULES) >= 4 and len(CODEC) >= 5 and len(SWEEPS) >= 3
    others = set(COMMANDS) - set(TRAINING) - set(MODULES) - set(CODEC) - set(SWEEPS)
    made = {"make demo", "make test", "make downstream"}
    assert {line.split("#")[0].strip() for line in others} == made


@pytest.mark.parametrize("command", TRAINING)
def test_training_command_is_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    script = next(word for word in words if word.startswith("train_"))
    argv = words[words.index(script) + 1 :]
    assert Path(script).is_file()
    if words[0] == "sbatch":
        assert "tools/train.sbatch" in words
    param_file, _, overrides = parse_command_line(argv)
    yaml = ruamel.yaml.YAML()
    keys = set(yaml.load(Path(param_file).read_text(encoding="utf-8")))
    assert set(yaml.load(overrides)) <= keys
    assert config_hash(param_file, overrides)  # resolves every include


@pytest.mark.parametrize("command", CODEC)
def test_codec_command_is_accepted(command):
    name, *argv = shlex.split(command)[3:]
    cli.commands[name].make_context(name, argv)


@pytest.mark.parametrize("command", MODULES)
def test_module_command_names_options_that_exist(command):
    module, *argv = shlex.split(command.partition(" -m ")[2])
    spec = importlib.util.find_spec(module)
    assert spec is not None
    folder = Path(spec.origin).parent
    sources = [Path(spec.origin), folder / "__main__.py"]
    sources += [ROOT / word for word in argv if word.endswith(".yaml")]
    names = [module.rpartition(".")[2], *argv[:1]]  # a program's YAML, or a task's
    sources += [ROOT / "recipes/hparams" / f"{name}.yaml" for name in names]
    source = "".join(path.read_text(encoding="utf-8") for path in sources if path.is_file())
    for option in (word for word in argv if word.startswith("--")):
        name = option.removeprefix("--")
        in_yaml = f"\n{name}: " in source
        assert in_yaml or f'"{option}"' in source or name in RunOptions().as_dict(), option


@pytest.mark.parametrize("command", SWEEPS)
def test_sweep_command_names_files_and_keys_that_exist(command):
    words = shlex.split(command)
    for path in (word for word in words if word.startswith("recipes/")):
        assert (ROOT / path).exists(), path
    snakefile = ROOT / words[words.index("-s") + 1]
    defaults = {"ablation": "rows.yaml", "pipeline": "streaming.yaml"}[snakefile.parent.name]
    known = ruamel.yaml.YAML(typ="safe").load(snakefile.parent / defaults)
    given = words[words.index("--config") + 1 :]
    assert {word.partition("=")[0] for word in given} <= set(known)


def test_lines_fit_and_continued_ones_are_joined():
    assert max(map(len, README.splitlines())) <= 130
    assert not [command for command in COMMANDS if "\\" in command or command.startswith("--")]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_python_example_runs(codec_folder, corpus, tmp_path, monkeypatch, capsys):
    shutil.copytree(codec_folder, tmp_path / "codec")
    speech = next(corpus.glob("test-clean/*/*/*.wav"))
    shutil.copy(speech, tmp_path / "speech.wav")
    monkeypatch.chdir(tmp_path)
    exec(compile(python_blocks()[0], "README.md", "exec"), {})
    assert re.fullmatch(r"\d+ tokens, 650 bit/s\n", capsys.readouterr().out)


def test_streaming_example_runs():
    codec, sig = make_live_codec(), torch.rand(1, 3000) - 0.5
    names = {"codec": codec, "sig": sig}
    example = python_blocks()[1]
    exec(compile(example, "README.md", "exec"), names)
    assert (names["toks"].shape, names["sig"].shape) == ((1, 2), (1, 0)), "440 samples were left"


def test_files_that_the_readme_names_exist():
    pattern = r"`((?:hparams|focalcodec|recipes|tools|tests)/[\w./]*)`"
    for path in re.findall(pattern, README + RECIPES):
        assert (ROOT / path).exists(), path
    for block in re.findall(r"`(\w+/\w+\.yaml)`", README):
        assert (ROOT / "hparams" / block).is_file(), block


def test_every_block_of_evaluations_has_a_place_in_the_tables():
    for block in (ROOT / "recipes/hparams").glob("*/*.yaml"):
        assert f"`{block.stem}`" in RECIPES, block
    for task in (ROOT / "recipes/hparams").glob("*.yaml"):
        command = PROGRAMS.get(task.stem, f"recipes.evaluate {task.stem}")
        assert f"python -m {command}`" in RECIPES, task
    for metric in METRICS:
        assert re.search(rf"^\| .*`{metric}`", RECIPES, flags=re.MULTILINE), metric
