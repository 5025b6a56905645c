"""Synthetic twins of corpora (recipes/corpora/twins), prepared by the real blocks."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hyperpyyaml import load_hyperpyyaml

from recipes.common.corpus_files import SUBSETS
from recipes.common.mixing import load_input, load_reference, load_target, load_targets
from recipes.corpora import synthetic, twins
from tests.corpus_trees import LIMITS, manifest, rows, tree_hash

SIZE = {"speakers": 2, "utterances": 2, "seed": 3}
SIZES = {
    "vctk": {"speakers": 3, "utterances": 3, "seed": 3},
    "librispeech460": {"speakers": 1, "utterances": 3, "seed": 3},
    "iemocap": {"utterances": 6, "seed": 3},
    "emodb": {"speakers": 4, "utterances": 7, "seed": 3},
    "voicebank_enhancement": {"speakers": 1, "utterances": 2, "seed": 3},
}
AUDIO = (".wav", ".flac")
# Block, the twin that it reads, and how many utterances and speakers it finds there.
BLOCKS = {
    "librispeech_test_clean": ("librispeech", 4, 2),
    "librispeech_test_other": ("librispeech", 4, 2),
    "libritts_test_clean": ("synthetic", 4, 2),
    "mls700": ("mls", 28, 14),
    "voicebank": ("voicebank", 4, 2),
    "libri1mix": ("libri1mix", 4, 2),
    "libri1mix_ready": ("libri1mix", 4, 2),
    "vctk_pairs": ("vctk", 5, 2),
    "noisy": ("noisy", 4, 2),
    "folder": ("noisy/speech", 4, 2),
    "multilingual_folder": ("mls", 28, 14),
    "parallel": ("vctk", 5, 2),
    "synthetic": ("synthetic", 4, 2),
}
# Block of a training set, its twin, utterances of train, valid and test, keys of its rows.
TRAINING_BLOCKS = {
    "librispeech460": ("librispeech460", (6, 3, 3), {"text"}),
    "librispeech460_speakers": ("librispeech460", (2, 2, 2), {"text"}),
    "iemocap": ("iemocap", (32, 4, 4), {"text", "emotion"}),
    "emodb": ("emodb", (4, 4, 8), {"language", "emotion"}),
    "voicebank_enhancement": ("voicebank_enhancement", (2, 2, 2), {"text", "target"}),
    "libri2mix": ("libri2mix", (4, 4, 4), {"target", "target_2"}),
    "noisy_training": ("noisy", (2, 1, 1), {"text", "noise", "speech_gain", "noise_gain"}),
}


@pytest.fixture(scope="module")
def twin_folder(tmp_path_factory):
    """Maker of twins, each made once."""
    pytest.importorskip("espeakng_loader")
    root = tmp_path_factory.mktemp("twins")

    def make(name: str) -> Path:
        if name == "synthetic":  # the demo's corpus, of which a part is held out
            return synthetic.generate(
                root / name, speakers=1, heldout_speakers=2, utterances=2, seed=3
            )
        return twins.generate(name, root / name, **SIZES.get(name, SIZE))

    return make


def data_of(block: str, twin: Path, folder: Path) -> Path:
    """Folder that the block reads: the twin's, or its files in a tree of the block's kind."""
    if block == "multilingual_folder":
        folder.mkdir()
        for path in twin.glob("mls_*"):
            (folder / path.name.removeprefix("mls_")).symlink_to(path, target_is_directory=True)
    elif block == "parallel":
        for path in twin.glob("wav48_silence_trimmed/*/*_mic1.flac"):
            speaker, number, _ = path.stem.split("_")
            (folder / speaker).mkdir(parents=True, exist_ok=True)
            (folder / speaker / f"{number}.flac").symlink_to(path)
            text = twin / "txt" / "p225" / f"p225_{number}.txt"  # p315 has none of its own
            (folder / speaker / f"{number}.txt").symlink_to(text)
    elif block == "noisy_training":
        (folder / "speech").mkdir(parents=True)
        (folder / "noise").symlink_to(twin / "noise", target_is_directory=True)
        for path in sorted(twin.glob("speech/*/*")):
            speaker, number = path.stem.split("_")
            split = {"1001": "train", "1002": "valid" if number == "0000" else "test"}[speaker]
            (folder / "speech" / split / speaker).mkdir(parents=True, exist_ok=True)
            (folder / "speech" / split / speaker / path.name).symlink_to(path)
    else:
        return twin
    return folder


def test_every_block_is_tried(root):
    files = {path.stem for path in (root / "recipes" / "hparams" / "dataset").glob("*.yaml")}
    assert files | {"librispeech460"} == set(BLOCKS) | set(TRAINING_BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_prepares_its_twin_as_an_evaluation_calls_it(root, twin_folder, tmp_path, name):
    path = root / "recipes" / "hparams" / "dataset" / f"{name}.yaml"
    assert path.read_text(encoding="utf-8").startswith("# ")
    prepare = load_hyperpyyaml(f"block: !include:{path}")["block"]
    twin, utterances, speakers = BLOCKS[name]
    made, *below = twin.split("/")
    data = data_of(name, twin_folder(made).joinpath(*below), tmp_path / "data")
    before = tree_hash(data)
    options = {**LIMITS, "on_bad_file": "raise", "max_test_utterances": None, "seed": 0}
    counts = prepare(data, tmp_path / "run", **options)
    assert (counts.test.utterances, counts.test.speakers) == (utterances, speakers)
    assert counts.train.utterances == counts.valid.utterances == 0
    made = rows(tmp_path / "run", data)
    for row in made.values():
        sigs = [load_input(row), load_target(row)]
        sigs += [load_reference(row)] if "reference" in row else []
        assert all(sig.isfinite().all() and len(sig) > 8000 for sig in sigs)
        assert "reference" in row or len(sigs[0]) == len(sigs[1])
        assert max(float(sig.abs().max()) for sig in sigs) < 1
    assert tree_hash(data) == before
    if "noisy" in name or name in ("voicebank", "libri1mix", "libri1mix_ready"):
        assert name == "libri1mix_ready" or all("text" in row for row in made.values())
    few = prepare(data, tmp_path / "few", **options | {"max_test_utterances": 3})
    assert few.test.utterances == 3
    assert manifest(tmp_path / "few", "test").items() <= manifest(tmp_path / "run", "test").items()


@pytest.mark.parametrize("name", TRAINING_BLOCKS)
def test_training_block_prepares_its_twin(root, twin_folder, tmp_path, name):
    blocks = root if name == "librispeech460" else root / "recipes"  # the codec's trainings have it
    path = blocks / "hparams" / "dataset" / f"{name}.yaml"
    assert path.read_text(encoding="utf-8").startswith("# ")
    prepare = load_hyperpyyaml(f"block: !include:{path}")["block"]
    twin, utterances, keys = TRAINING_BLOCKS[name]
    data = data_of(name, twin_folder(twin), tmp_path / "data")
    before = tree_hash(data)
    counts = prepare(data, tmp_path / "run", **LIMITS, on_bad_file="raise")
    assert tuple(count.utterances for count in counts) == utterances
    assert tree_hash(data) == before
    for subset in SUBSETS:
        for row in rows(tmp_path / "run", data, subset=subset).values():
            assert keys <= set(row)
            sigs = [load_input(row), *load_targets(row)]
            assert all(sig.isfinite().all() and len(sig) == len(sigs[0]) > 8000 for sig in sigs)
            assert max(float(sig.abs().max()) for sig in sigs) < 1


def test_both_speakers_of_a_twin_add_up_to_their_mixture(twin_folder):
    for path in twin_folder("libri2mix").rglob("mix_clean/*.wav"):
        mixture, *speakers = (
            soundfile.read(path.parents[1] / part / path.name)[0]
            for part in ("mix_clean", "s1", "s2")
        )
        assert np.abs(sum(speakers) - mixture).max() <= 2 * 2**-15  # rounded to 16 bits
        assert all(np.square(speaker).mean() > 1e-5 for speaker in speakers)


def test_emotions_of_a_twin_can_be_heard(twin_folder):
    """A speaker says a sentence slowly and softly when sad, fast and loudly when angry."""
    twin = twin_folder("emodb") / "wav"
    for speaker in ("03", "08", "11", "14"):
        sad, neutral, angry = (soundfile.read(twin / f"{speaker}a01{x}a.wav")[0] for x in "TNW")
        assert len(sad) > 1.2 * len(neutral) > 1.2 * len(angry)
        assert np.std(sad) < np.std(neutral) < np.std(angry)


def test_mixtures_on_the_fly_are_those_of_the_ready_folder(root, twin_folder, tmp_path):
    data = twin_folder("libri1mix")
    made = {}
    for name in ("libri1mix", "libri1mix_ready"):
        path = root / "recipes" / "hparams" / "dataset" / f"{name}.yaml"
        load_hyperpyyaml(f"block: !include:{path}")["block"](data, tmp_path / name, **LIMITS)
        made[name] = rows(tmp_path / name, data)
    for utt, row in made["libri1mix"].items():
        for load in (load_input, load_target):
            ready = load(made["libri1mix_ready"][utt])
            # Speech, noise and the ready files are each rounded to 16 bits; gains are below 1.
            assert float((load(row) - ready).abs().max()) <= 3 * 2**-16


def test_voicebank_twin_has_its_ratios(root, twin_folder):
    data = twin_folder("voicebank")
    found = []
    for path in sorted(data.glob("noisy_testset_wav/*.wav")):
        noisy, clean = (
            soundfile.read(path)[0],
            soundfile.read(data / "clean_testset_wav" / path.name)[0],
        )
        found.append(10 * np.log10((clean**2).mean() / ((noisy - clean) ** 2).mean()))
    assert found == pytest.approx([2.5, 7.5, 12.5, 17.5], abs=0.05)  # rounded to 16 bits


@pytest.mark.parametrize("name", twins.TWINS)
def test_twins_are_repeatable_after_an_interruption(twin_folder, tmp_path, name):
    twin = twin_folder(name)
    size = [f"--{k}={v}" for k, v in SIZES.get(name, SIZE).items()]
    whole = {k: v for k, v in tree_hash(twin).items() if len(v) == 64}
    kept = next(iter(path for path in sorted(twin.rglob("*.*")) if path.suffix in AUDIO))
    time = kept.stat().st_mtime_ns
    lost = [path for path in sorted(twin.rglob("*.*")) if path.suffix in AUDIO][1::3]
    for path in lost:
        path.unlink()
    lost[0].with_name(f".{lost[0].name}.partial").write_bytes(b"half")
    twins.main([name, str(twin), *size])
    assert {k: v for k, v in tree_hash(twin).items() if len(v) == 64} == whole
    assert kept.stat().st_mtime_ns == time
    with pytest.raises(ValueError, match="holds a synthetic twin made with"):
        twins.generate(name, twin, seed=99)


def test_another_seed_says_other_things(twin_folder, tmp_path):
    other = twins.generate("noisy", tmp_path / "other", **SIZE | {"seed": 4})
    texts = [
        sorted(path.read_text() for path in folder.rglob("*.txt"))
        for folder in (twin_folder("noisy"), other)
    ]
    assert len(texts[0]) == 4 and not set(texts[0]) & set(texts[1])


def test_twins_say_what_is_wrong(tmp_path):
    pytest.importorskip("espeakng_loader")
    with pytest.raises(ValueError, match="there is no twin 'tedlium'; there are librispeech, mls"):
        twins.generate("tedlium", tmp_path / "a")
    with pytest.raises(ValueError, match="at least 1"):
        twins.generate("vctk", tmp_path / "a", speakers=0)
    with pytest.raises(ValueError, match="iemocap has as many speakers as its corpus"):
        twins.generate("iemocap", tmp_path / "a", speakers=2)
    with pytest.raises(ValueError, match="at least 2 are needed, got 1"):
        twins.generate("libri2mix", tmp_path / "a", speakers=1)
    with pytest.raises(ValueError, match="up to 10 speakers and 70 utterances.* got 11 and 7"):
        twins.generate("emodb", tmp_path / "a", speakers=11, utterances=7)
    with pytest.raises(ValueError, match="200 speakers asked for, there are 28 voices"):
        twins.generate("mls", tmp_path / "a", speakers=200)
    assert not (tmp_path / "a").exists()
