"""Preparation of corpora: read-only, deterministic, clear errors (recipes/corpora)."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset

from recipes.common import dataio
from recipes.common.corpus_files import SUBSETS, find_audio
from recipes.common.dataio import BadAudioError
from recipes.corpora import folder, librispeech, libritts
from tests.corpus_trees import manifest, tree_hash

LIMITS = {"min_duration_s": 0.05, "max_duration_s": 1.0}
SPLITS = {"train_splits": ["train-a", "train-b"], "valid_splits": ["dev"], "test_splits": ["test"]}


def write_audio(path: Path, *, seconds: float = 0.1, sample_rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * sample_rate))
    soundfile.write(path, samples, sample_rate)


@pytest.fixture
def tts_root(tmp_path) -> Path:
    """Write a small LibriTTS: 4 splits x 2 speakers x 3 utterances at 24 kHz."""
    root = tmp_path / "LibriTTS"
    for i, split in enumerate(("train-a", "train-b", "dev", "test")):
        for speaker in (str(10 * i + 1), str(10 * i + 2)):
            for j in range(3):
                stem = root / split / speaker / "7" / f"{speaker}_7_{j:06d}_000000"
                write_audio(stem.with_suffix(".wav"), seconds=0.1 + 0.01 * j, sample_rate=24_000)
                stem.with_suffix(".normalized.txt").write_text(f"Words {{{j}}},\n by {speaker}. \n")
    return root


@pytest.fixture
def speech_root(tmp_path) -> Path:
    """Write a small LibriSpeech: 3 splits x 2 speakers x 3 utterances."""
    root = tmp_path / "LibriSpeech"
    for i, split in enumerate(("train-clean-100", "dev-clean", "test-clean")):
        for speaker in (f"{10 * i + 1}", f"{10 * i + 2}"):
            chapter = root / split / speaker / "5"
            names = [f"{speaker}-5-{j:04d}" for j in range(3)]
            for name in names:
                write_audio(chapter / f"{name}.flac")
            lines = [f"{name} SAID BY {speaker}" for name in names[:2]]
            (chapter / f"{speaker}-5.trans.txt").write_text("\n".join(lines) + "\n")
    return root


def test_libritts_manifests_hold_what_the_files_say(tts_root, tmp_path):
    run = tmp_path / "run"
    prepared = libritts.prepare(tts_root, run, **SPLITS, **LIMITS)
    assert [counts.utterances for counts in prepared] == [12, 6, 6]
    assert prepared.train.speakers == 4 and prepared.train.bad == 0
    assert prepared.train.hours == pytest.approx(4 * (0.1 + 0.11 + 0.12) / 3600)
    train = manifest(run, "train")
    assert list(train) == sorted(train)
    assert train["11_7_000002_000000"] == {
        "wav": "{data_root}/train-b/11/7/11_7_000002_000000.wav",
        "duration": 0.12,
        "num_samples": 2880,
        "sample_rate": 24_000,
        "speaker": "11",
        "text": "Words {{2}}, by 11.",  # doubled for SpeechBrain's str.format_map
    }
    dataset = DynamicItemDataset.from_json(
        run / "train.json", replacements={"data_root": str(tts_root)}, output_keys=["text"]
    )
    assert dataset[0]["text"] == "Words {0}, by 11."


def test_libritts_takes_flac_and_files_without_text(shared, tmp_path):
    prepared = libritts.prepare(
        shared / "data" / "speech",
        tmp_path,
        train_splits=["train-clean-100", "ljspeech", "vctk"],
        valid_splits=["dev-clean"],
        test_splits=["test-other"],
        min_duration_s=0.5,
        max_duration_s=60,
    )
    assert [counts.utterances for counts in prepared] == [114, 29, 50]
    assert [counts.speakers for counts in prepared] == [87, 1, 5]
    assert all("text" in entry for entry in manifest(tmp_path, "test").values())


def test_librispeech_reads_the_transcripts_of_chapters(speech_root, tmp_path):
    block = {
        f"{k}_splits": [v]
        for k, v in zip(
            ("train", "valid", "test"), ("train-clean-100", "dev-clean", "test-clean"), strict=True
        )
    }
    prepared = librispeech.prepare(speech_root, tmp_path / "run", **block, **LIMITS)
    assert [counts.utterances for counts in prepared] == [6, 6, 6]
    train = manifest(tmp_path / "run", "train")
    assert train["1-5-0001"]["text"] == "SAID BY 1" and train["1-5-0001"]["speaker"] == "1"
    assert "text" not in train["1-5-0002"]


@pytest.mark.parametrize("corpus", ["libritts", "librispeech", "folder"])
def test_preparation_leaves_the_data_folder_untouched(tts_root, speech_root, tmp_path, corpus):
    root = speech_root if corpus == "librispeech" else tts_root
    (root / "broken.wav").write_bytes(b"x")
    before = tree_hash(root)
    splits = {"train_splits": ["dev" if root == tts_root else "dev-clean"]}
    splits |= {"valid_splits": [], "test_splits": []}
    module = {"libritts": libritts, "librispeech": librispeech, "folder": folder}[corpus]
    counts = module.prepare(root, tmp_path / "run", **splits, **LIMITS).train
    assert counts.utterances == 6
    dataset = dataio.make_dataset(
        tmp_path / "run" / "train.json", data_folder=root, sample_rate=16_000
    )
    assert len(dataset[0]["sig"]) == 1600
    assert tree_hash(root) == before
    with pytest.raises(ValueError, match="lies inside data_folder"):
        module.prepare(root, root / "results", **splits, **LIMITS)
    assert tree_hash(root) == before


def test_missing_split_names_path_and_fix(tts_root, tmp_path):
    splits = SPLITS | {"train_splits": ["train-a", "train-other-500"]}
    with pytest.raises(FileNotFoundError) as caught:
        libritts.prepare(tts_root, tmp_path / "run", **splits, **LIMITS)
    message = str(caught.value)
    assert f"LibriTTS split 'train-other-500' not found in {tts_root}" in message
    assert "remove it from train_splits" in message and "dev, test, train-a, train-b" in message
    with pytest.raises(FileNotFoundError, match="give that as data_folder"):
        libritts.prepare(tts_root.parent, tmp_path / "run", **SPLITS, **LIMITS)
    with pytest.raises(FileNotFoundError, match="data_folder .*nowhere is not a folder"):
        libritts.prepare(tts_root / "nowhere", tmp_path / "run", **SPLITS, **LIMITS)


@pytest.mark.parametrize("names", ["train-a", [".."], ["/etc"], [""]], ids=str)
def test_splits_that_are_no_list_of_folder_names_are_refused(tts_root, tmp_path, names):
    with pytest.raises(ValueError, match="train_splits must be"):
        libritts.prepare(tts_root, tmp_path / "run", **SPLITS | {"train_splits": names}, **LIMITS)


def test_bad_and_filtered_files_are_counted_apart_and_listed(tts_root, tmp_path):
    chapter = tts_root / "dev" / "21" / "7"
    (chapter / "text.wav").write_text("this is text")
    (chapter / "empty.wav").write_bytes(b"")
    soundfile.write(chapter / "zero.wav", np.zeros(0), 16_000)
    write_audio(chapter / "short.wav", seconds=0.01)
    write_audio(chapter / "long.wav", seconds=1.5)
    write_audio(chapter / "._hidden.wav")
    write_audio(tts_root / "dev" / ".trash" / "1" / "gone.wav")
    counts = libritts.prepare(tts_root, tmp_path / "run", **SPLITS, **LIMITS).valid
    assert (counts.utterances, counts.bad, counts.too_short, counts.too_long) == (6, 3, 1, 1)
    listed = dataio.read_bad_files(tmp_path / "run" / "bad_files.tsv")
    assert {Path(path).name for path in listed} == {
        *("text.wav", "empty.wav", "zero.wav", "short.wav", "long.wav")
    }
    assert listed[str(chapter / "short.wav")].startswith("too short: 0.010 s")
    assert listed[str(chapter / "long.wav")].startswith("too long: 1.500 s")


def test_strict_policy_raises_for_bad_files_but_not_for_filters(tts_root, tmp_path):
    chapter = tts_root / "dev" / "21" / "7"
    write_audio(chapter / "short.wav", seconds=0.01)
    libritts.prepare(tts_root, tmp_path / "run", on_bad_file="raise", **SPLITS, **LIMITS)
    (chapter / "text.wav").write_text("this is text")
    with pytest.raises(BadAudioError, match="text.wav"):
        libritts.prepare(tts_root, tmp_path / "run", on_bad_file="raise", **SPLITS, **LIMITS)


def test_second_file_of_an_id_is_bad(tts_root, tmp_path):
    write_audio(tts_root / "dev" / "21" / "7" / "21_7_000000_000000.flac")
    counts = libritts.prepare(tts_root, tmp_path / "run", **SPLITS, **LIMITS).valid
    assert (counts.utterances, counts.bad) == (6, 1)


def test_empty_subset_says_why(tts_root, tmp_path):
    limits = {"min_duration_s": 0.5, "max_duration_s": 1.0}
    with pytest.raises(ValueError, match="subset 'train': of 12 audio files 0 are bad, 12 shorter"):
        libritts.prepare(tts_root, tmp_path / "run", **SPLITS, **limits)
    assert len(dataio.read_bad_files(tmp_path / "run" / "bad_files.tsv")) == 24


def test_subsets_are_drawn_by_seed_alone(tts_root, tmp_path, monkeypatch):
    def drawn(number, **options):
        save = tmp_path / f"run{number}"
        libritts.prepare(tts_root, save, max_train_utterances=number, **options, **SPLITS, **LIMITS)
        return list(manifest(save, "train")), (save / "bad_files.tsv").read_text()

    chapter = tts_root / "train-a" / "1" / "7"
    for suffix in (".wav", ".flac"):  # two files of one id: which one is bad must not vary
        write_audio(chapter / f"twice{suffix}")
        (chapter / f"broken{suffix}").write_text("x")

    random.seed(1)
    state = random.getstate()
    five, bad = drawn(5, seed=3)
    assert len(bad.splitlines()) == 3
    assert random.getstate() == state
    random.seed(2)
    scan = os.scandir

    class Backwards:
        def __init__(self, path):
            with scan(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return self.entries

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(os, "scandir", Backwards)
    assert drawn(5, seed=3) == (five, bad) and five == sorted(five) and len(five) == 5
    assert drawn(5, seed=4) != (five, bad)
    assert set(five) < set(drawn(8, seed=3)[0])
    assert len(drawn(100, seed=3)[0]) == 13


def test_same_arguments_write_nothing_twice_and_a_changed_tree_shows(tts_root, tmp_path):
    run = tmp_path / "run"
    libritts.prepare(tts_root, run, **SPLITS, **LIMITS)
    before = tree_hash(run), (run / "train.json").stat().st_mtime_ns
    libritts.prepare(tts_root, run, **SPLITS, **LIMITS)
    assert (tree_hash(run), (run / "train.json").stat().st_mtime_ns) == before
    assert sorted(path.name for path in run.iterdir()) == [
        *("bad_files.tsv", "test.json", "train.json", "valid.json")
    ]
    write_audio(tts_root / "train-a" / "1" / "7" / "new.wav")
    assert libritts.prepare(tts_root, run, **SPLITS, **LIMITS).train.utterances == 13


def test_unknown_argument_is_refused(tts_root, tmp_path):
    with pytest.raises(TypeError, match="min_durations"):
        libritts.prepare(tts_root, tmp_path / "run", **SPLITS, **LIMITS, min_durations=1)


# folder


@pytest.fixture
def own_root(tmp_path) -> Path:
    """Write ten speakers' folders with three files each, in several formats and rates."""
    root = tmp_path / "own"
    for i in range(10):
        write_audio(root / f"s{i}" / "a b.wav", sample_rate=8_000)
        write_audio(root / f"s{i}" / "ü{x}.FLAC", sample_rate=44_100)
        write_audio(root / f"s{i}" / "deep" / "c.ogg", sample_rate=48_000)
        (root / f"s{i}" / "notes.md").write_text("not audio")
        (root / f"s{i}" / "a b.txt").write_text("text of a b")
    return root


def speakers_and_ids(save: Path) -> list[tuple[set, set]]:
    entries = [manifest(save, subset) for subset in SUBSETS]
    return [({e["speaker"] for e in subset.values()}, set(subset)) for subset in entries]


def test_folder_by_speaker_keeps_speakers_apart(own_root, tmp_path):
    block = {"valid_fraction": 0.2, "test_fraction": 0.1, "speaker_level": 1}
    folder.prepare(own_root, tmp_path / "a", seed=1, **block, **LIMITS)
    first = speakers_and_ids(tmp_path / "a")
    speakers = [speakers for speakers, _ in first]
    assert "deep" in set.union(*speakers)  # the file's own folder, speaker_level 1
    assert sum(map(len, speakers)) == 11 == len(set.union(*speakers))
    assert [len(s) for s in speakers] == [8, 2, 1]
    assert sum(len(ids) for _, ids in first) == 30
    folder.prepare(own_root, tmp_path / "b", seed=1, **block, **LIMITS)
    assert speakers_and_ids(tmp_path / "b") == first
    folder.prepare(own_root, tmp_path / "c", seed=2, **block, **LIMITS)
    assert speakers_and_ids(tmp_path / "c") != first


def test_folder_by_utterance_deals_every_file_once(own_root, tmp_path):
    prepared = folder.prepare(
        own_root,
        tmp_path / "run",
        split_by="utterance",
        valid_fraction=0.1,
        test_fraction=0.2,
        **LIMITS,
    )
    assert [counts.utterances for counts in prepared] == [21, 3, 6]
    ids = [ids for _, ids in speakers_and_ids(tmp_path / "run")]
    assert len(set.union(*ids)) == 30 and "s0--deep--c" in set.union(*ids)


def test_folder_by_names_and_odd_file_names(own_root, tmp_path):
    prepared = folder.prepare(
        own_root,
        tmp_path / "run",
        train_splits=["s0", "s1"],
        valid_splits=["s2"],
        test_splits=[],
        **LIMITS,
    )
    assert [counts.utterances for counts in prepared] == [6, 3, 0]
    valid = manifest(tmp_path / "run", "valid")
    assert valid["s2--a b"]["text"] == "text of a b" and "text" not in valid["s2--ü{x}"]
    dataset = dataio.make_dataset(
        tmp_path / "run" / "valid.json", data_folder=own_root, sample_rate=16_000
    )
    assert [len(dataset[i]["sig"]) for i in range(3)] == [1600, 1600, 1600]
    assert dataset.data["s2--ü{x}"]["wav"] == str(own_root / "s2" / "ü{x}.FLAC")


def test_filters_move_nobody_to_another_subset(own_root, tmp_path):
    for i in range(10):
        write_audio(own_root / f"s{i}" / "long.wav", seconds=0.5)
    folder.prepare(own_root, tmp_path / "a", split_by="utterance", **LIMITS)
    folder.prepare(
        own_root, tmp_path / "b", split_by="utterance", min_duration_s=0.05, max_duration_s=0.3
    )
    for (_, more), (_, fewer) in zip(
        speakers_and_ids(tmp_path / "a"), speakers_and_ids(tmp_path / "b"), strict=True
    ):
        assert fewer <= more


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split_by": "sex"}, "split_by must be"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, "must leave some to train"),
        ({"speaker_level": 0}, "speaker_level must be"),
        ({"valid_fraction": 0.9}, "too few"),
    ],
    ids=str,
)
def test_folder_says_which_argument_is_wrong(own_root, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        folder.prepare(own_root, tmp_path / "run", **options, **LIMITS)


def test_links_are_followed_but_not_in_circles(own_root, tmp_path):
    (own_root / "s0" / "loop").symlink_to(own_root, target_is_directory=True)
    (tmp_path / "linked").symlink_to(own_root, target_is_directory=True)
    assert len(find_audio(own_root)) == 30
    prepared = folder.prepare(tmp_path / "linked", tmp_path / "run", **LIMITS)
    assert sum(counts.utterances for counts in prepared) == 30


# Blocks


@pytest.mark.parametrize(
    "name", ["libritts960", "libritts100", "librispeech100", "folder", "synthetic"]
)
def test_block_names_a_preparation(root, tmp_path, name):
    text = (root / "hparams" / "dataset" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    block = load_hyperpyyaml("dataset: " + text.split("\n", 1)[1].replace("\n", "\n  "))["dataset"]
    for i, split in enumerate(
        split for key in block.keywords if key.endswith("_splits") for split in block.keywords[key]
    ):
        for j in range(5):
            write_audio(tmp_path / "corpus" / split / f"{i}{j}" / "1" / f"{i}{j}_1_0.wav")
    if name == "folder":
        for i in range(5):
            write_audio(tmp_path / "corpus" / f"{i}" / "a.wav")
    prepared = block(tmp_path / "corpus", tmp_path / "run", on_bad_file="raise", **LIMITS)
    assert all(counts.utterances for counts in prepared)
