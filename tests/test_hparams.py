"""Every YAML and every block loads, every key is read, every documented swap changes the class."""

import ast
import re
from functools import partial
from pathlib import Path

import pytest
import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.run_opts import RunOptions

from focalcodec.activations import LeakyReLU, Snake
from focalcodec.focalnet import FocalBlock
from focalcodec.fsq import FiniteScalarQuantizer
from focalcodec.hifigan import HiFiGAN
from focalcodec.logmel import LogMel
from focalcodec.mixers import AMPBlock, ConformerBlock, LinearBlock
from focalcodec.quantizers import BinarySphericalQuantizer, LookupFreeQuantizer
from focalcodec.wavlm import WavLM
from recipes.codecs.codec import Codec
from recipes.common.command_line import canonical, parse_command_line
from recipes.common.experiment import config_hash

ROOT = Path(__file__).resolve().parents[1]
MAINS = sorted((ROOT / "hparams").glob("*.yaml"))
TASKS = sorted((ROOT / "recipes/hparams").glob("*.yaml"))
BLOCKS = sorted(path for path in ROOT.glob("**/hparams/*/*.yaml") if ".venv" not in path.parts)
CAUSAL = {
    "wavenext.yaml": "train_decoder.py",
    "causal_embedding.yaml": "train_encoder.py",
    "causal_encoder.yaml": "train_encoder.py",
    "bsq_causal.yaml": "train_quantizer.py",
    "joint.yaml": "train_quantizer.py",
}
DOWNSTREAM = {
    "asr.yaml": "recipes/train_asr.py",
    "speaker.yaml": "recipes/train_classifier.py",
    "emotion.yaml": "recipes/train_classifier.py",
    "enhancement.yaml": "recipes/train_separator.py",
    "separation.yaml": "recipes/train_separator.py",
    "tts.yaml": "recipes/train_tts.py",
}
SCRIPTS = {
    "vocos.yaml": "train_decoder.py",
    "bsq.yaml": "train_quantizer.py",
    "kmeans.yaml": "recipes/train_kmeans.py",
    "wavlm6_km.yaml": "train_quantizer.py",
    **CAUSAL,
    **{path.name: "recipes/evaluate.py" for path in TASKS},
    "tokenize.yaml": "recipes/tokenize.py",
    **DOWNSTREAM,
}
SMALL = """
data_folder: nowhere
encoder: !include:encoder/logmel.yaml
discriminator: !include:demo/discriminator.yaml
decoder: !include:demo/decoder.yaml
hidden_dims: [8, 8, 8]
"""
SMALL_CAUSAL = """
data_folder: nowhere
encoder: !include:demo/wavlm.yaml
student: !include:demo/wavlm_causal.yaml
discriminator: !include:demo/discriminator.yaml
decoder: !include:demo/wavenext.yaml
mixer: !include:demo/focal_causal.yaml
hidden_dims: [8, 8, 8]
"""


def small(main: str, overrides: str = "") -> str:
    """Give the overrides that make a YAML small, and further ones."""
    text = (ROOT / "hparams" / main).read_text(encoding="utf-8")
    small_text = SMALL_CAUSAL if main in CAUSAL else SMALL
    lines = [line for line in small_text.strip().splitlines() if f"\n{line.split(':')[0]}:" in text]
    keys = {line.split(":")[0] for line in overrides.splitlines()}
    lines = [line for line in lines if line.split(":")[0] not in keys]
    return "\n".join(lines) + "\n" + overrides


def load(main: str, overrides: str = "") -> dict:
    with open(ROOT / "hparams" / main, encoding="utf-8") as file:
        return load_hyperpyyaml(file, small(main, overrides))


def nodes(main: str, overrides: str = "") -> dict:
    """Resolve the keys of a YAML and build nothing."""
    with open(ROOT / "hparams" / main, encoding="utf-8") as file:
        return ruamel.yaml.YAML().load(resolve_references(file, small(main, overrides)))


@pytest.mark.parametrize("main", MAINS, ids=lambda path: path.name)
def test_main_yaml_loads_without_touching_the_disk(main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hparams = load(main.name)
    assert hparams["modules"]
    assert not list(tmp_path.iterdir()), "parsing a YAML does no I/O"


@pytest.mark.parametrize("main", TASKS, ids=lambda path: path.name)
def test_task_loads_without_touching_the_disk_or_a_codec(main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(main, encoding="utf-8") as file:
        overrides = "data_folder: nowhere" if "data_folder" in file.read() else ""
        file.seek(0)
        hparams = load_hyperpyyaml(file, overrides)
    assert callable(hparams["codec"]) and not isinstance(hparams["codec"], Codec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_block_is_one_tagged_mapping_without_references(block):
    text = block.read_text(encoding="utf-8")
    assert text.startswith("# "), "one comment line with the source"
    assert "!ref" not in text
    node = ruamel.yaml.YAML().load(text)
    assert node.tag.value.startswith(("!new:", "!name:"))
    assert load_hyperpyyaml(f"block: !include:{block}")["block"] is not None


def test_every_yaml_is_short():
    for path in MAINS + TASKS + BLOCKS:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 140, path


def _keys_read_by_the_code(script: str) -> set[str]:
    """Names after ``.hparams.``, constant keys of ``hparams[...]`` and of calls with hparams."""
    keys = set()
    shared = [*(ROOT / "recipes/common").rglob("*.py")]
    if Path(script).name in {Path(name).name for name in DOWNSTREAM.values()}:
        shared += (ROOT / "recipes/downstream").rglob("*.py")
    for path in [ROOT / script, *shared]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("hparams"):
                keys.add(node.attr)
            elif isinstance(node, ast.Subscript) and "hparams" in ast.unparse(node.value):
                if isinstance(node.slice, ast.Constant):
                    keys.add(node.slice.value)
            elif isinstance(node, ast.Call) and "hparams" in ast.unparse(node):
                keys |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return keys | {"train_splits", "valid_splits", "test_splits"}  # read in a loop


@pytest.mark.parametrize("main", MAINS + TASKS, ids=lambda path: path.name)
def test_no_key_is_dead(main):
    """Keys of a script's YAML must be read by that script or by what all share."""
    text = main.read_text(encoding="utf-8")
    keys = set(ruamel.yaml.YAML().load(text)) - {"__set_seed"}
    referred = {re.split(r"[.\[]", name)[0] for name in re.findall(r"<([^>]+)>", text)}
    # Run options of SpeechBrain that our Brain acts on, each with a test of its effect.
    options = {
        "optimizer_step_limit",
        "max_grad_norm",
        "grad_accumulation_factor",
        "nonfinite_patience",
        "precision",
        "eval_precision",
    }
    assert options <= set(RunOptions().as_dict())
    dead = keys - referred - _keys_read_by_the_code(SCRIPTS[main.name]) - options
    assert not dead, f"{main.name}: nobody reads {sorted(dead)}"


@pytest.mark.parametrize(
    ("main", "key", "block", "expected"),
    [
        ("bsq.yaml", "encoder", "encoder/logmel.yaml", LogMel),
        ("vocos.yaml", "encoder", "encoder/logmel.yaml", LogMel),
        ("bsq.yaml", "encoder", "encoder/wavlm6.yaml", WavLM),
        ("bsq.yaml", "quantizer", "quantizer/lfq.yaml", LookupFreeQuantizer),
        ("bsq.yaml", "quantizer", "quantizer/bsq_10bit.yaml", BinarySphericalQuantizer),
        ("bsq.yaml", "quantizer", "quantizer/lfq_10bit.yaml", LookupFreeQuantizer),
        ("bsq.yaml", "quantizer", "quantizer/fsq_10bit.yaml", FiniteScalarQuantizer),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_swap_changes_the_class(main, key, block, expected):
    hparams = load(main, f"{key}: !include:{block}")
    assert type(hparams[key]) is expected


def test_swap_of_the_encoder_resizes_what_follows():
    assert load("kmeans.yaml")["quantizer"].code_dim == 80
    baseline = load("wavlm6_km.yaml")["codec"]
    assert baseline.compressor.dim == baseline.quantizer.code_dim == 80
    assert baseline.decompressor.output_dim == 80
    assert load("bsq.yaml")["compressor"].input_dim == 80
    assert load("vocos.yaml")["modules"]["decoder"].input_dim == 80


@pytest.mark.parametrize(
    ("key", "block", "old", "new"),
    [
        ("activation", "activation/leaky_relu.yaml", {Snake}, {LeakyReLU}),
        ("mixer", "mixer/conformer.yaml", {FocalBlock}, {ConformerBlock}),
        ("mixer", "mixer/amp.yaml", {FocalBlock}, {AMPBlock}),
        ("mixer", "mixer/linear.yaml", {FocalBlock}, {LinearBlock}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_swap_of_a_factory_reaches_both_sides(key, block, old, new):
    base, swapped = load("bsq.yaml"), load("bsq.yaml", f"{key}: !include:{block}")
    for part in ("compressor", "decompressor"):
        before, after = (
            {n: type(m) for n, m in hparams[part].named_modules() if type(m) in old | new}
            for hparams in (base, swapped)
        )
        assert set(before.values()) == old and set(after.values()) == new
        assert before.keys() == after.keys()


@pytest.mark.parametrize("block", ["hifigan", "hifigan_small"])
@pytest.mark.parametrize("main", ["vocos.yaml", "bsq.yaml"])
def test_swap_of_the_decoder_reaches_both_stages(main, block):
    hparams = load(main, f"decoder: !include:decoder/{block}.yaml")
    modules = hparams["modules"] if main == "vocos.yaml" else hparams["codec"]._modules
    assert type(modules["decoder"]) is HiFiGAN
    assert modules["decoder"].hop_length == hparams["encoder"].hop_length


SWAPPED = [path for path in BLOCKS if path.parent.name in {"mixer", "activation", "quantizer"}]
DECODERS = [path for path in BLOCKS if path.parent.name == "decoder"]


@pytest.mark.parametrize(
    ("main", "block"),
    [("bsq.yaml", block) for block in SWAPPED + DECODERS]
    + [("vocos.yaml", block) for block in DECODERS],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_swap_changes_the_block_wherever_it_is_used_and_nothing_else(main, block):
    key = block.parent.name
    base, swapped = nodes(main), nodes(main, f"{key}: !include:{key}/{block.name}")
    assert base.keys() == swapped.keys()
    before, after = (canonical(keys[key]) for keys in (base, swapped))
    for name in base:
        texts = canonical(base[name]), canonical(swapped[name])
        assert texts[0].replace(before, "BLOCK") == texts[1].replace(after, "BLOCK"), name


@pytest.mark.parametrize("factors", [[1, 1, 1], [2, 1, 1], [2, 2, 1]], ids=str)
def test_token_rate_follows_the_downscale_factors(factors):
    codec = load("bsq.yaml", f"downscale_factors: {factors}")["codec"]
    assert codec.token_rate == 50 / (factors[0] * factors[1] * factors[2])
    assert list(codec.decompressor.upscale_factors) == factors[::-1]


def test_dataset_block_is_a_function_that_is_not_called_at_parse_time():
    assert isinstance(load("bsq.yaml")["dataset"], partial)


BSQ = str(ROOT / "hparams/bsq.yaml")


def test_tagged_mapping_override_is_refused():
    value = "!new:focalcodec.quantizers.LookupFreeQuantizer {code_dim: 4}"
    with pytest.raises(ValueError, match="--quantizer is the tagged mapping.*!include:FILE"):
        parse_command_line([BSQ, "--quantizer", value])


def test_arguments_over_an_include_are_refused():
    with pytest.raises(ValueError, match="--quantizer is a mapping, but quantizer is an include"):
        parse_command_line([BSQ, "--quantizer", "{code_dim: 4}"])


def test_block_without_include_is_refused():
    with pytest.raises(ValueError, match="--quantizer '!include:quantizer/lfq.yaml'"):
        parse_command_line([BSQ, "--quantizer", "quantizer/lfq.yaml"])


def test_equals_sign_inside_a_value_is_refused():
    with pytest.raises(ValueError, match="'--output_folder=lr=1'"):
        parse_command_line([BSQ, "--output_folder=lr=1"])


def test_misspelt_key_is_refused():
    with pytest.raises(KeyError, match="learning_rate"):
        load("bsq.yaml", "learning_rate: 1")


def test_run_option_on_the_command_line_enters_the_saved_yaml():
    _, options, overrides = parse_command_line([BSQ, "--max_grad_norm", "3", "--lr", "0.1"])
    assert "max_grad_norm: 3.0" in overrides
    assert options["max_grad_norm"] == 3.0


def test_config_hash_ignores_how_long_and_sees_what():
    base = config_hash(BSQ, "lr: 0.1")
    assert config_hash(BSQ, "lr: 0.1\nnumber_of_epochs: 3\noutput_folder: x") == base
    assert config_hash(BSQ, "lr: 1e-1") == base
    assert config_hash(BSQ, "lr: 0.1\ndecoder_checkpoint: run") == base
    assert config_hash(BSQ, "lr: 0.2") != base
    assert config_hash(BSQ, "lr: 0.1\nquantizer: !include:quantizer/lfq.yaml") != base


def test_tasks_share_their_keys_and_defaults():
    keys = {}
    for path in TASKS:
        keys[path.stem] = ruamel.yaml.YAML().load(path.read_text(encoding="utf-8"))
    tasks = [keys[name] for name in ("resynthesis", "streaming", "voice_conversion")]
    own = {"task", "dataset", "metrics", "decode_features", "topk"}
    own |= {"chunk_size", "left_context", "overlap"}
    shared = [{key: canonical(keys[key]) for key in keys if key not in own} for keys in tasks]
    assert shared[0] == shared[1] == shared[2]
    for key in ("seed", "offline", "codec", "codec_checkpoint", "codec_options", "output_folder"):
        assert canonical(keys["speed"][key]) == shared[0][key], key


def test_downstream_tasks_share_their_keys_and_the_papers_settings():
    keys = {
        name: ruamel.yaml.YAML().load((ROOT / "recipes/hparams" / name).read_text(encoding="utf-8"))
        for name in DOWNSTREAM
    }
    shared = set.intersection(*map(set, keys.values())) - {"dataset", "output_folder", "model"}
    assert len(shared) > 35
    for key in shared - {"metrics", "num_layers", "num_heads"}:
        assert len({canonical(one[key]) for one in keys.values()}) == 1, key
    asr = keys["asr.yaml"]
    paper = {"lr": 0.0001, "batch_size": 16, "dropout": 0.1, "max_grad_norm": 0.01, "seed": 0}
    assert {key: asr[key] for key in paper} == paper
    assert list(asr["betas"]) == [0.8, 0.99] and asr["weight_decay"] == 0.01
    assert (asr["lr_factor"], asr["max_duration_s"], asr["sorting"]) == (0.9, 60, "ascending")
