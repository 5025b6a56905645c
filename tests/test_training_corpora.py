"""Training sets of the downstream tasks (recipes/corpora: by speaker, enhancement, separation)."""

from pathlib import Path

import pytest
import torch

from recipes.common.corpus_files import SUBSETS
from recipes.common.dataio import read_bad_files
from recipes.common.mixing import load_input, load_targets
from recipes.corpora import libri2mix, librispeech, noisy, voicebank
from tests.corpus_trees import LIMITS, manifest, rows, tree_hash, write_sig, write_text


def ids_by_speaker(run: Path) -> dict[str, list[set[str]]]:
    """Utterances of each speaker in train, valid and test."""
    found = [manifest(run, subset) for subset in SUBSETS]
    speakers = {row["speaker"] for subset in found for row in subset.values()}
    return {
        speaker: [
            {utt for utt, row in subset.items() if row["speaker"] == speaker} for subset in found
        ]
        for speaker in speakers
    }


# Speakers of LibriSpeech


@pytest.fixture
def speech_root(tmp_path) -> Path:
    """Write speakers with 20, 10, 3 and 2 utterances in two splits."""
    for speaker, number in (("1", 20), ("2", 10), ("3", 3), ("4", 2)):
        split = "train-clean-100" if speaker < "3" else "train-clean-360"
        for i in range(number):
            write_sig(tmp_path / "speech" / split / speaker / "5" / f"{speaker}-5-{i:04d}.flac")
        text = f"{speaker}-5-0000 SAID\n"
        write_text(tmp_path / "speech" / split / speaker / "5" / f"{speaker}-5.trans.txt", text)
    return tmp_path / "speech"


def by_speaker(root: Path, run: Path, **options) -> dict[str, list[set[str]]]:
    options = {"splits": ["train-clean-100", "train-clean-360"]} | LIMITS | options
    librispeech.prepare_by_speaker(root, run, **options)
    return ids_by_speaker(run)


def test_speakers_are_divided_within_themselves(speech_root, tmp_path):
    before = tree_hash(speech_root)
    found = by_speaker(speech_root, tmp_path / "run")
    assert tree_hash(speech_root) == before
    sizes = {speaker: [len(ids) for ids in parts] for speaker, parts in found.items()}
    assert sizes == {"1": [16, 2, 2], "2": [8, 1, 1], "3": [1, 1, 1], "4": [2, 0, 0]}
    assert len(set.union(*(ids for parts in found.values() for ids in parts))) == 35
    texts = [
        row for s in SUBSETS for row in manifest(tmp_path / "run", s).values() if "text" in row
    ]
    assert len(texts) == 4


def test_division_by_speaker_is_of_seed_and_names_alone(speech_root, tmp_path):
    found = by_speaker(speech_root, tmp_path / "a")
    assert by_speaker(speech_root, tmp_path / "b") == found
    assert by_speaker(speech_root, tmp_path / "c", seed=1) != found
    alone = by_speaker(speech_root, tmp_path / "d", splits=["train-clean-100"])
    assert alone == {speaker: found[speaker] for speaker in "12"}
    write_sig(speech_root / "train-clean-100/1/5/1-5-0000.flac", seconds=0.2)
    filtered = by_speaker(speech_root, tmp_path / "e", max_duration_s=0.15)
    assert all(map(set.issubset, filtered["1"], found["1"])) and filtered["2"] == found["2"]


def test_division_by_speaker_says_which_argument_is_wrong(speech_root, tmp_path):
    with pytest.raises(ValueError, match="must leave some to train"):
        by_speaker(speech_root, tmp_path / "run", valid_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="splits names no split"):
        by_speaker(speech_root, tmp_path / "run", splits=[])
    with pytest.raises(ValueError, match=r"splits must be a list.*write \[train-clean-100\]"):
        by_speaker(speech_root, tmp_path / "run", splits="train-clean-100")
    with pytest.raises(FileNotFoundError, match="'dev-clean' not found.*remove it from splits"):
        by_speaker(speech_root, tmp_path / "run", splits=["dev-clean"])


# VoiceBank


@pytest.fixture
def bank_root(tmp_path) -> Path:
    for part, speakers in (
        ("trainset_28spk", ("p226", "p227", "p287")),
        ("testset", ("p232",)),
    ):
        for i, speaker in enumerate(speakers):
            name = f"{speaker}_001"
            for kind in ("clean", "noisy"):
                path = tmp_path / "bank" / f"{kind}_{part}_wav" / f"{name}.wav"
                write_sig(path, sample_rate=48_000, seed=2 * i + (kind == "noisy"))
            write_text(tmp_path / "bank" / f"{part}_txt" / f"{name}.txt", f"{part} {i}\n")
    return tmp_path / "bank"


def test_voicebank_is_trained_on_all_but_its_validation_speakers(bank_root, tmp_path):
    counts = voicebank.prepare_training(bank_root, tmp_path / "run", **LIMITS)
    assert [count.utterances for count in counts] == [1, 2, 1]
    made = [rows(tmp_path / "run", bank_root, subset=subset) for subset in SUBSETS]
    assert [set(subset) for subset in made] == [
        {"p227_001"},
        {"p226_001", "p287_001"},
        {"p232_001"},
    ]
    row = made[0]["p227_001"]
    assert row["text"] == "trainset_28spk 1" and made[2]["p232_001"]["text"] == "testset 0"
    assert row["wav"] == str(bank_root / "noisy_trainset_28spk_wav" / "p227_001.wav")
    assert row["target"] == str(bank_root / "clean_trainset_28spk_wav" / "p227_001.wav")
    voicebank.prepare(bank_root, tmp_path / "test", **LIMITS)
    assert manifest(tmp_path / "test", "test") == manifest(tmp_path / "run", "test")
    voicebank.prepare_training(bank_root, tmp_path / "run", valid_speakers=["p227"], **LIMITS)
    assert list(manifest(tmp_path / "run", "valid")) == ["p227_001"]


def test_voicebank_training_says_what_is_missing_or_wrong(bank_root, tmp_path):
    def prepare(**options):
        voicebank.prepare_training(bank_root, tmp_path / "run", **options, **LIMITS)

    with pytest.raises(ValueError, match="p999 are not in the training set.*p226, p227, p287"):
        prepare(valid_speakers=["p226", "p999"])
    with pytest.raises(ValueError, match="valid_speakers must be a list"):
        prepare(valid_speakers="p226")
    (bank_root / "noisy_trainset_28spk_wav").rename(bank_root / "noisy_trainset_56spk_wav")
    with pytest.raises(FileNotFoundError, match="name another one as noisy_train_folder"):
        prepare()
    with pytest.raises(FileNotFoundError, match="'x' not found.*as clean_train_folder"):
        prepare(noisy_train_folder="noisy_trainset_56spk_wav", clean_train_folder="x")


# Libri2Mix


SPLITS = {"train_splits": ["train-100"], "valid_splits": ["dev"], "test_splits": ["test"]}


@pytest.fixture
def mix_root(tmp_path) -> Path:
    for i, split in enumerate(("train-100", "dev", "test")):
        for j in range(2):
            for part in ("mix_clean", "s1", "s2"):
                folder = tmp_path / "Mix" / "Libri2Mix/wav16k/min" / split / part
                write_sig(folder / f"{i}{j}-70-0000_{i}9-8-0001.wav", seed=len(part) + ord(part[1]))
    return tmp_path / "Mix"


def test_libri2mix_rows_have_both_speakers_as_targets(mix_root, tmp_path):
    before = tree_hash(mix_root)
    counts = libri2mix.prepare(mix_root, tmp_path / "run", **SPLITS, **LIMITS)
    assert tree_hash(mix_root) == before
    assert [count.utterances for count in counts] == [2, 2, 2]
    made = rows(tmp_path / "run", mix_root, subset="train")
    row = made["01-70-0000_09-8-0001"]
    folder = mix_root / "Libri2Mix/wav16k/min/train-100"
    assert [Path(row[key]).parent for key in ("wav", "target", "target_2")] == [
        *(folder / "mix_clean", folder / "s1", folder / "s2")
    ]
    assert row["speaker"] == "01" and "text" not in row
    first, second = load_targets(row)
    assert len(first) == len(second) == len(load_input(row)) and not torch.equal(first, second)


@pytest.mark.parametrize("part", ["s1", "s2"])
def test_libri2mix_with_a_speaker_of_another_length_is_bad(mix_root, tmp_path, part):
    folder = mix_root / "Libri2Mix/wav16k/min/test" / part
    write_sig(folder / "20-70-0000_29-8-0001.wav", seconds=0.2)
    (folder / "21-70-0000_29-8-0001.wav").unlink()
    write_sig(mix_root / "Libri2Mix/wav16k/min/test/mix_clean" / "a-b.wav")
    for other in ("s1", "s2"):
        write_sig(mix_root / "Libri2Mix/wav16k/min/test" / other / "a-b.wav")
    counts = libri2mix.prepare(mix_root, tmp_path / "run", **SPLITS, **LIMITS)
    assert (counts.test.utterances, counts.test.bad) == (1, 2)
    reasons = read_bad_files(tmp_path / "run" / "bad_files.tsv").values()
    key = {"s1": "target", "s2": "target_2"}[part]
    assert any(f"1600 samples at 16000 Hz, but its {key} " in reason for reason in reasons)
    assert any(reason.startswith(f"its {key} ") and "no such file" in reason for reason in reasons)


def test_libri2mix_says_what_is_missing_or_wrong(mix_root, tmp_path):
    def prepare(**options):
        return libri2mix.prepare(mix_root, tmp_path / "run", **SPLITS | options, **LIMITS)

    with pytest.raises(FileNotFoundError, match="'train-360' not found.*from train_splits"):
        prepare(train_splits=["train-360"])
    with pytest.raises(ValueError, match=r"valid_splits must be a list.*write \[dev\]"):
        prepare(valid_splits="dev")
    with pytest.raises(
        FileNotFoundError, match="'mix_both' not found.*remove train-100 from train_"
    ):
        prepare(mixture="mix_both")
    with pytest.raises(FileNotFoundError, match="'wav8k' not found.*as mixtures_folder"):
        prepare(mixtures_folder="wav8k")
    assert prepare(train_splits=[]).train.utterances == 0


# Any speech in any noise


def test_noisy_sets_are_split_by_folders(tmp_path):
    root, noise = tmp_path / "corpus", tmp_path / "sounds"
    for i, name in enumerate(("a/1/x", "a/2/y", "b/3/x", "c/4/x")):
        write_sig(root / "speech" / f"{name}.wav", seconds=0.3, seed=i)
    for i in range(3):
        write_sig(noise / f"n{i}.wav", seconds=0.2, seed=50 + i)
    options = {"snrs_db": [0, 10], "noise_folder": noise, "language": "de", **LIMITS}
    folders = {"train_folders": ["a"], "valid_folders": ["b"], "test_folders": ["c"]}
    counts = noisy.prepare(root, tmp_path / "run", **options, **folders)
    assert [count.utterances for count in counts] == [2, 1, 1]
    noisy.prepare(root, tmp_path / "all", **options)
    together = manifest(tmp_path / "all", "test")
    assert together == {
        utt: row for subset in SUBSETS for utt, row in manifest(tmp_path / "run", subset).items()
    }
    assert {(row["speaker"], row["language"]) for row in together.values()} == {
        (speaker, "de") for speaker in "1234"
    }
    with pytest.raises(FileNotFoundError, match="'d' not found.*remove it from valid_folders"):
        noisy.prepare(root, tmp_path / "x", **options, **folders | {"valid_folders": ["d"]})
