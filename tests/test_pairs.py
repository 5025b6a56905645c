"""Voice conversion pairs (recipes/corpora/parallel.py, vctk.py)."""

from pathlib import Path

import pytest
import soundfile

from recipes.common.dataio import BadAudioError, read_bad_files
from recipes.common.mixing import load_input, load_reference, load_target
from recipes.corpora import parallel, vctk
from tests.corpus_trees import LIMITS, manifest, rows, tree_hash, write_sig, write_text

SECONDS = {1: 0.1, 2: 0.4, 3: 0.2, 24: 0.3, 25: 0.9}


def write_vctk(root: Path, *, speakers: tuple[str, ...], layout: str) -> Path:
    for i, speaker in enumerate(speakers):
        for number, seconds in SECONDS.items():
            name = f"{speaker}_{number:03d}"
            if layout == "wav48":
                names = [f"{name}.wav"]
            else:
                names = [f"{name}_mic1.flac", f"{name}_mic2.flac"]
            for file in names:
                path = root / layout / speaker / file
                write_sig(path, seconds=seconds + 0.01 * i, sample_rate=48_000, seed=number + i)
            if speaker != "p315":
                write_text(root / "txt" / speaker / f"{name}.txt", f"Sentence {number}.\n")
    return root


@pytest.fixture(params=["wav48_silence_trimmed", "wav48"])
def vctk_root(tmp_path, request) -> Path:
    speakers = ("p225", "p226", "p315", "s5")
    return write_vctk(tmp_path / "VCTK", speakers=speakers, layout=request.param)


def number_of(path: str) -> int:
    return int(Path(path).stem.split("_")[1])


def test_pairs_are_parallel_and_references_the_longest_others(vctk_root, tmp_path):
    before = tree_hash(vctk_root)
    counts = vctk.prepare(vctk_root, tmp_path / "run", **LIMITS).test
    assert counts.utterances == (4 - 1) * 4  # sentence 25 is not parallel
    assert tree_hash(vctk_root) == before
    assert manifest(tmp_path / "run", "train") == {}
    made = rows(tmp_path / "run", vctk_root)
    line = {"p225": "p226", "p226": "p315", "p315": "s5"}
    for utt, row in made.items():
        target, reference = Path(row["target"]), Path(row["reference"])
        assert number_of(row["wav"]) == number_of(target) != number_of(reference)
        assert target.parent.name == reference.parent.name == row["reference_speaker"]
        assert row["reference_speaker"] == line[row["speaker"]]
        assert utt == f"{row['speaker']}_{number_of(target):03d}--{row['reference_speaker']}"
        others = [
            soundfile.info(path).duration
            for path in target.parent.glob(f"*{'_mic1' * ('mic1' in target.name)}.*")
            if number_of(path) not in (number_of(target), 25)
        ]
        assert soundfile.info(reference).duration == max(others)
        assert "mic2" not in row["wav"] + row["target"] + row["reference"]
        assert len(load_reference(row)) > 0 and len(load_target(row)) > len(load_input(row))
    assert made["p225_001--p226"]["text"] == "Sentence 1."
    assert "text" not in made["p315_001--s5"]


@pytest.mark.parametrize("microphone", ["mic1", "mic2"])
def test_all_recordings_of_a_set_are_of_one_microphone(tmp_path, microphone):
    layout = "wav48_silence_trimmed"
    root = write_vctk(tmp_path / "VCTK", speakers=("p1", "p2"), layout=layout)
    vctk.prepare(root, tmp_path / "run", microphone=microphone, **LIMITS)
    for row in rows(tmp_path / "run", root).values():
        files = [Path(row[key]).stem for key in ("wav", "target", "reference")]
        assert all(file.endswith(f"_{microphone}") for file in files)


def test_a_missing_sentence_joins_its_neighbours(tmp_path):
    root = write_vctk(tmp_path / "VCTK", speakers=("p1", "p2", "p3"), layout="wav48")
    (root / "wav48" / "p2" / "p2_001.wav").unlink()
    vctk.prepare(root, tmp_path / "run", **LIMITS)
    made = set(manifest(tmp_path / "run", "test"))
    assert "p1_001--p3" in made and not made & {"p1_001--p2", "p2_001--p3"}
    assert len(made) == 2 * 4 - 1  # each sentence: one pair less than it has speakers


def test_bad_recordings_are_listed_and_not_paired(tmp_path):
    root = write_vctk(tmp_path / "VCTK", speakers=("p1", "p2", "p3"), layout="wav48")
    write_text(root / "wav48" / "p2" / "p2_002.wav", "no audio")
    vctk.prepare(root, tmp_path / "run", **LIMITS)
    made = manifest(tmp_path / "run", "test")
    assert "p1_002--p3" in made and "p1_002--p2" not in made
    assert not any("p2_002" in row["reference"] for row in made.values())
    assert [Path(p).name for p in read_bad_files(tmp_path / "run" / "bad_files.tsv")] == [
        "p2_002.wav"
    ]
    with pytest.raises(BadAudioError, match="p2_002.wav"):
        vctk.prepare(root, tmp_path / "run", on_bad_file="raise", **LIMITS)


def test_recordings_of_different_texts_are_no_pair(tmp_path):
    root = write_vctk(tmp_path / "VCTK", speakers=("p1", "p2", "p3"), layout="wav48")
    write_text(root / "txt" / "p2" / "p2_003.txt", "Something else.")
    write_text(root / "txt" / "p2" / "p2_002.txt", "SENTENCE  2")
    vctk.prepare(root, tmp_path / "run", **LIMITS)
    made = set(manifest(tmp_path / "run", "test"))
    assert "p1_002--p2" in made and not made & {"p1_003--p2", "p2_003--p3"}
    listed = read_bad_files(tmp_path / "run" / "bad_files.tsv")
    assert {Path(p).name for p in listed} == {"p1_003.wav", "p2_003.wav"}
    assert all("not parallel" in reason for reason in listed.values())


def test_draws_of_pairs_are_reproducible_and_more_is_a_superset(tmp_path):
    root = write_vctk(tmp_path / "VCTK", speakers=("p1", "p2", "p3"), layout="wav48")

    def drawn(number: int, seed: int) -> set:
        vctk.prepare(root, tmp_path / "run", max_test_utterances=number, seed=seed, **LIMITS)
        return set(manifest(tmp_path / "run", "test"))

    assert drawn(3, 0) == drawn(3, 0) and len(drawn(3, 0)) == 3
    assert drawn(3, 0) < drawn(6, 0)
    assert any(drawn(3, 0) != drawn(3, seed) for seed in (1, 2, 3))


def test_vctk_says_what_is_missing(tmp_path):
    root = write_vctk(tmp_path / "VCTK", speakers=("p1", "p2"), layout="wav48")
    with pytest.raises(FileNotFoundError, match=r"wav48_silence_trimmed' not found.*data_folder"):
        vctk.prepare(root / "txt", tmp_path / "run", **LIMITS)
    with pytest.raises(ValueError, match="microphone must be"):
        vctk.prepare(root, tmp_path / "run", microphone="mic3", **LIMITS)
    with pytest.raises(ValueError, match="no pair of parallel sentences.*2 recordings"):
        vctk.prepare(root, tmp_path / "run", num_sentences=1, **LIMITS)


def test_parallel_finds_sentences_by_their_texts(tmp_path):
    root = tmp_path / "arctic"
    texts = {
        "ann": ["One, two!", "Three four", "Alone"],
        "bob": ["three four.", "ONE TWO", "One two"],
    }
    for speaker, said in texts.items():
        for i, text in enumerate(said):
            path = write_sig(root / speaker / "wav" / f"a{i}.wav", seconds=0.1 + 0.1 * i)
            write_text(path.with_suffix(".normalized.txt"), text)
    write_sig(root / "ann" / "wav" / "without_text.wav", seconds=1)
    parallel.prepare(root, tmp_path / "run", speaker_level=2, language="fr", **LIMITS)
    made = rows(tmp_path / "run", root)
    assert list(made) == ["ann--wav--a0--bob", "ann--wav--a1--bob"]
    row = made["ann--wav--a0--bob"]
    assert row["target"] == str(root / "bob" / "wav" / "a1.wav")  # the first of two recordings
    assert row["reference"] == str(root / "bob" / "wav" / "a0.wav")
    assert (row["speaker"], row["reference_speaker"], row["language"]) == ("ann", "bob", "fr")
    with pytest.raises(ValueError, match="of 1 speakers.*is speaker_level right"):
        parallel.prepare(root, tmp_path / "run", speaker_level=1, **LIMITS)


def test_real_vctk_sentences_are_paired(shared, tmp_path):
    root = shared / "data" / "speech" / "vctk"
    counts = parallel.prepare(root, tmp_path, **LIMITS).test
    assert (counts.utterances, counts.speakers) == (9, 1)
    for row in rows(tmp_path, root).values():
        assert number_of(row["wav"]) == number_of(row["target"]) != number_of(row["reference"])
        assert Path(row["reference"]).name == "p226_023.flac" or number_of(row["target"]) == 23
