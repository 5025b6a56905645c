"""Who may import whom (DESIGN: a lower layer never knows a higher one), read from the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {
    f"focalcodec.{name}"
    for name in "masking streaming fastconv linear_map activations entropy".split()
}
WAVLM = {
    f"focalcodec.wavlm{name}"
    for name in ("", ".encoder", ".features", ".transformer", ".blocks", ".transformers_weights")
}
MODELS = WAVLM | {
    f"focalcodec.{name}"
    for name in (
        "logmel focal_block focalnet mixers convnext vocos wavenext hifigan dequantizer".split()
    )
}
QUANTIZERS = {f"focalcodec.{name}" for name in "quantizers fsq kmeans".split()}
ALONE = {f"focalcodec.{name}" for name in ("conversion", "checks", "stream")}
BUILT_ON = {  # a module that is made of another one's parts
    "focalcodec.fsq": {"focalcodec.quantizers"},
    "focalcodec.kmeans": {"focalcodec.quantizers"},
    "focalcodec.dequantizer": {"focalcodec.mixers"},
    "focalcodec.focalnet": {"focalcodec.focal_block"},
    "focalcodec.vocos": {"focalcodec.convnext"},
    "focalcodec.wavenext": {"focalcodec.convnext"},
    "focalcodec.streaming": {"focalcodec.fastconv", "focalcodec.linear_map"},
    "focalcodec.checks": {"focalcodec.masking"},
    "focalcodec.stream": {"focalcodec.checks", "focalcodec.streaming"},
} | dict.fromkeys(WAVLM, WAVLM)
WORDS = {"focalcodec.hub.arguments", "focalcodec.hub.legacy", "focalcodec.hub.config"}
FILES = WORDS | {f"focalcodec.hub{name}" for name in ("", ".weights", ".encoder", ".files")}
BITSTREAM = [  # of `focalcodec.bitstream`, each only knows those before it
    {"errors"},
    {"fields"},
    {"packing", "header"},
    {"files", "packets"},
    {"concealment", "counts", "framing"},
    {"sequencer"},
    {"receiver"},
]
COMMAND_LINE = {"focalcodec.__main__", "focalcodec.cli"} | {
    f"focalcodec.cli.{name}"
    for name in (
        "commands options transcoding sources inference report jobs token_files live live.command "
        "live.devices live.end live.endpoints live.files live.packets live.pipes live.session "
        "live.sockets live.sound live.status live.stop"
    ).split()
}
AUDIO = {"focalcodec.audio", "focalcodec.resampling"}
TOP = {
    f"focalcodec{name}"
    for name in ("", ".codec", ".windows", ".stream", ".packing", ".live", ".meter")
} | COMMAND_LINE
TRAINING = {"speechbrain", "hyperpyyaml", "recipes", "train_decoder", "train_quantizer"}
THIRD_PARTY = {"torchaudio", "soundfile", "numpy", "click", "tqdm"}
LAZY_IN_DEVICES = {"sounddevice"}
LAZY_IN_HUB = {"huggingface_hub", "safetensors", "transformers"}
LAZY_IN_CODECS = LAZY_IN_HUB | set(
    "speechtokenizer semanticodec wavtokenizer bigcodec stable_codec stable_audio_tools".split()
)
SOURCES = sorted(
    path
    for folder in ("focalcodec", "recipes", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
) + sorted(ROOT.glob("train_*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _not_below(module: str, names: set[str]) -> set[str]:
    """Modules of the bitstream that one of them imports although they are not below it."""
    package = "focalcodec.bitstream."
    below: set[str] = set()
    for level in BITSTREAM:
        if module.removeprefix(package) in level:
            own = {".".join(name.split(".")[:3]) for name in names if name.startswith(package)}
            return own - {package + name for name in below}
        below |= level
    assert module == "focalcodec.bitstream", f"{module} has no level in BITSTREAM"
    return set()


def _within(names: set[str], packages: set[str]) -> set[str]:
    return {name for name in names if name in packages or name.split(".")[0] in packages}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_their_layer(path):
    module, names = _module(path), _imports(path)
    if module.split(".")[0] == "focalcodec":
        assert not _within(names, TRAINING), "the codec runs without the training side"
    if module == "focalcodec.stream":
        for_annotations = {"focalcodec.codec", "focalcodec.codec.FocalCodec"}
        assert not _imports(path, top_level_only=True) & for_annotations
        names = names - for_annotations
    if module.startswith("focalcodec.bitstream"):
        ours = {name for name in names if name.startswith("focalcodec")}
        assert all(name.startswith("focalcodec.bitstream") for name in ours), ours
        assert not _within(names, THIRD_PARTY), "a format needs no more than tensors"
        assert not _not_below(module, names), "files and packets share what lies below both"
    if module in BASE | QUANTIZERS | ALONE:
        allowed = BASE if module in QUANTIZERS else set()
        allowed = allowed | BUILT_ON.get(module, set())
        ours = {name for name in names if name.startswith("focalcodec")}
        assert all(any(name.startswith(base) for base in allowed) for name in ours), ours
    if module in MODELS:
        others = (MODELS | TOP | FILES | QUANTIZERS) - {module} - BUILT_ON.get(module, set())
        assert not {name for name in names if name in others}, "models are independent"
    if module in WORDS:
        above = TOP | FILES - WORDS
        assert not names & above, "what a configuration says does not depend on where it lies"
    if module in {"focalcodec.hub.arguments", "focalcodec.hub.legacy", "focalcodec.hub.weights"}:
        assert not names & (MODELS | {"focalcodec.hub.config"}), "they know no module of the codec"
    if module in FILES:
        assert "focalcodec.codec" not in names
        assert not _within(_imports(path, top_level_only=True), LAZY_IN_HUB), (
            "hub imports them lazily"
        )
    if module not in COMMAND_LINE:
        assert not names & COMMAND_LINE, "nothing else knows the commands"
    if module == "focalcodec.cli.live.devices":
        assert not _within(_imports(path, top_level_only=True), LAZY_IN_DEVICES)
    else:
        assert not _within(names, LAZY_IN_DEVICES)
    if module in AUDIO:
        ours = {name for name in names if name.startswith("focalcodec")}
        assert all(name.startswith("focalcodec.resampling") for name in ours), ours
    if module == "focalcodec.codec":
        assert not names & AUDIO, "the codec reads no audio files"
    if module.startswith("recipes.common"):
        assert not {name for name in names if name.startswith("recipes.train_")}
        assert not _within(names, {"train_decoder", "train_quantizer"})
        assert not {name for name in names if name.startswith("recipes.corpora")}
    if module.startswith("recipes.corpora"):
        ours = {name for name in names if name.startswith(("recipes", "focalcodec"))}
        assert all(name.startswith(("recipes.common", "recipes.corpora")) for name in ours), ours
        assert "torch.nn" not in names, "corpora know no models"
    if module.startswith("recipes.codecs"):
        ours = {name for name in names if name.startswith("recipes")}
        allowed = ("recipes.codecs", "recipes.common.offline", "recipes.common.scoring")
        assert all(name.startswith(allowed) for name in ours - {"recipes.common"}), ours
        assert not _within(_imports(path, top_level_only=True), LAZY_IN_CODECS)
    if module.startswith("recipes.evaluation"):
        lower = ("recipes.common", "recipes.codecs", "recipes.evaluation")
        assert all(name.startswith(lower) for name in names if name.startswith("recipes"))
    if module.startswith("recipes.downstream"):
        lower = ("recipes.common", "recipes.codecs", "recipes.downstream")
        lower += ("recipes.evaluation.scores",)
        assert all(name.startswith(lower) for name in names if name.startswith("recipes"))
        assert "transformers" not in _imports(path, top_level_only=True)
    if module.startswith("recipes.train_") or module.startswith("recipes.tokenize"):
        scripts = {
            name for name in names if name.startswith(("recipes.train_", "recipes.tokenize"))
        }
        assert not scripts, "scripts share through recipes.common and recipes.downstream"
    if module.startswith("recipes.reporting"):
        lower = ("recipes.common", "recipes.reporting")  # it reads files, whoever wrote them
        assert all(name.startswith(lower) for name in names if name.startswith("recipes"))
    if module.startswith("train_"):
        assert not _within(names, {"train_decoder", "train_quantizer"} - {module})


def test_every_module_of_the_encoder_has_its_rule():
    assert WAVLM == {_module(path) for path in SOURCES if "focalcodec/wavlm/" in path.as_posix()}


def test_every_package_is_installed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = ast.literal_eval(re.search(r"^packages = (\[.*?\])$", text, re.M | re.S)[1])
    folders = {path.parent for path in (ROOT / "focalcodec").rglob("*.py")}
    assert sorted(packages) == sorted(".".join(f.relative_to(ROOT).parts) for f in folders)


def test_no_source_reads_the_folder_beside_the_checkout():
    assert not [path for path in SOURCES if "../shared" in path.read_text(encoding="utf-8")]
