"""Preparation of emotional speech (recipes/corpora: iemocap, emodb)."""

import csv
import logging
from pathlib import Path

import pytest

from recipes.common.dataio import BadAudioError, read_bad_files
from recipes.corpora import emodb, iemocap
from tests.corpus_trees import LIMITS, manifest, rows, tree_hash, write_sig, write_text

LABELS = ("ang", "hap", "sad", "neu", "exc", "xxx")
HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


def turn_line(name: str, label: str) -> str:
    return f"[6.2901 - 8.2357]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]\n"


# IEMOCAP


@pytest.fixture
def full_release(tmp_path) -> Path:
    """Write five sessions of one dialogue each; both speakers say six turns."""
    root = tmp_path / "IEMOCAP_full_release"
    for session in range(1, 6):
        folder, dialogue = root / f"Session{session}", f"Ses{session:02d}F_script01_1"
        evaluation, transcript = HEADER, "M: [LAUGHTER]\n"
        for sex in "FM":
            for i, label in enumerate(LABELS):
                name = f"{dialogue}_{sex}{i:03d}"
                write_sig(folder / "sentences/wav" / dialogue / f"{name}.wav")
                evaluation += turn_line(name, label) + "C-E2:\tNeutral; Anger;\t()\n\n"
                transcript += f"{name} [006.2901-008.2357]: Well, {{{i}}}. \n"
        write_text(folder / f"dialog/EmoEvaluation/{dialogue}.txt", evaluation)
        write_text(folder / f"dialog/EmoEvaluation/._{dialogue}.txt", "x")
        write_text(folder / f"dialog/EmoEvaluation/Categorical/{dialogue}_e2_cat.txt", "x")
        write_text(folder / f"dialog/transcriptions/{dialogue}.txt", transcript)
    return root


def test_iemocap_holds_out_the_woman_and_the_man_of_a_session(full_release, tmp_path):
    before = tree_hash(full_release)
    counts = iemocap.prepare(full_release, tmp_path / "run", **LIMITS)
    assert tree_hash(full_release) == before
    assert [count.utterances for count in counts] == [32, 4, 4]
    speakers = [
        {row["speaker"] for row in manifest(tmp_path / "run", subset).values()}
        for subset in ("train", "valid", "test")
    ]
    assert speakers[0] == {f"Ses0{session}{sex}" for session in range(1, 5) for sex in "FM"}
    assert speakers[1:] == [{"Ses05F"}, {"Ses05M"}]
    made = rows(tmp_path / "run", full_release)
    row = made["Ses05F_script01_1_M001"]
    assert (row["emotion"], row["text"]) == ("happiness", "Well, {1}.")
    assert row["wav"].endswith(
        "Session5/sentences/wav/Ses05F_script01_1/Ses05F_script01_1_M001.wav"
    )
    assert {row["emotion"] for row in made.values()} == {"anger", "happiness", "neutral", "sadness"}
    iemocap.prepare(full_release, tmp_path / "run", heldout_session=2, **LIMITS)
    assert {row["speaker"] for row in manifest(tmp_path / "run", "test").values()} == {"Ses02M"}


def test_excited_turns_are_happy_only_on_demand_and_the_others_are_counted(
    full_release, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    iemocap.prepare(full_release, tmp_path / "a", **LIMITS)
    assert "none agreed on are left out: 10 exc, 10 xxx" in caplog.text
    counts = iemocap.prepare(full_release, tmp_path / "b", merge_excited=True, **LIMITS)
    assert [count.utterances for count in counts] == [40, 5, 5]
    assert manifest(tmp_path / "b", "valid")["Ses05F_script01_1_F004"]["emotion"] == "happiness"


def test_iemocap_without_a_wav_file_is_bad_and_without_a_transcript_has_no_text(
    full_release, tmp_path
):
    (full_release / "Session5/sentences/wav/Ses05F_script01_1/Ses05F_script01_1_M000.wav").unlink()
    (full_release / "Session5/dialog/transcriptions/Ses05F_script01_1.txt").unlink()
    counts = iemocap.prepare(full_release, tmp_path / "run", **LIMITS)
    assert (counts.test.utterances, counts.test.bad) == (3, 1)
    assert not any("text" in row for row in manifest(tmp_path / "run", "test").values())
    (reason,) = read_bad_files(tmp_path / "run" / "bad_files.tsv").values()
    assert reason == "no such file"
    with pytest.raises(BadAudioError, match="_M000.wav"):
        iemocap.prepare(full_release, tmp_path / "run", on_bad_file="raise", **LIMITS)


def test_iemocap_says_what_is_missing_or_wrong(full_release, tmp_path):
    def prepare(**options):
        iemocap.prepare(full_release, tmp_path / "run", **options, **LIMITS)

    with pytest.raises(FileNotFoundError, match="'Session1' not found.*give that as data_folder"):
        iemocap.prepare(full_release.parent, tmp_path / "run", **LIMITS)
    with pytest.raises(ValueError, match="heldout_session must be one of 1 to 5, got 6"):
        prepare(heldout_session=6)
    evaluation = full_release / "Session4/dialog/EmoEvaluation/Ses04F_script01_1.txt"
    text = evaluation.read_text()
    write_text(evaluation, HEADER)
    with pytest.raises(ValueError, match=r"Ses04F_script01_1.txt has no line '\[start - end\]"):
        prepare()
    for name, label in (("Ses04F_script01_1_M000", "joy"), ("Ses04_M000", "neu")):
        write_text(evaluation, HEADER + turn_line(name, label))
        with pytest.raises(ValueError, match="line 3: a turn such as.*one of ang, hap"):
            prepare()
    evaluation.unlink()
    with pytest.raises(FileNotFoundError, match="no <dialogue>.txt in .*Session4"):
        prepare()
    write_text(evaluation, text)
    (full_release / "Session3").rename(full_release / "Session_3")
    with pytest.raises(FileNotFoundError, match="IEMOCAP folder 'Session3' not found"):
        prepare()


# EmoDB


@pytest.fixture
def berlin_root(tmp_path) -> Path:
    """Write seven emotions of four speakers, and a file of another corpus."""
    for speaker in ("03", "08", "11", "14"):
        for letter in "WLEAFTN":
            write_sig(tmp_path / "EmoDB" / "wav" / f"{speaker}a01{letter}b.wav")
    write_sig(tmp_path / "EmoDB" / "extra.wav")
    return tmp_path / "EmoDB"


def test_emodb_names_say_who_speaks_and_how(berlin_root, tmp_path):
    counts = emodb.prepare(berlin_root, tmp_path / "run", **LIMITS)
    assert [count.utterances for count in counts] == [4, 4, 8]
    assert {
        utt: (row["speaker"], row["emotion"], row["language"])
        for utt, row in manifest(tmp_path / "run", "train").items()
    } == {
        "03a01Fb": ("03", "happiness", "de"),
        "03a01Nb": ("03", "neutral", "de"),
        "03a01Tb": ("03", "sadness", "de"),
        "03a01Wb": ("03", "anger", "de"),
    }
    ((path, reason),) = read_bad_files(tmp_path / "run" / "bad_files.tsv").items()
    assert path.endswith("extra.wav") and reason.startswith("its name is none of EmoDB's")


def test_emodb_splits_and_emotions_can_be_chosen(berlin_root, tmp_path):
    emodb.prepare(
        berlin_root,
        tmp_path / "run",
        emotions=["boredom", "disgust", "fear"],
        valid_speakers=["14"],
        test_speakers=["03"],
        **LIMITS,
    )
    assert set(manifest(tmp_path / "run", "train")) == {
        f"{s}a01{x}b" for s in ("08", "11") for x in "LEA"
    }
    assert list(manifest(tmp_path / "run", "test")) == ["03a01Ab", "03a01Eb", "03a01Lb"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"emotions": ["joy"]}, "emotions must be a list of some of anger, boredom"),
        ({"test_speakers": [3]}, r"test_speakers must be .*got \[3\]; numbers need quotes"),
        ({"valid_speakers": []}, "valid_speakers must be a list"),
        ({"valid_speakers": ["11"]}, "speakers 11 are in valid_speakers and test_speakers"),
        ({"valid_speakers": ["16"]}, "no utterance left in subset 'valid'"),
    ],
    ids=str,
)
def test_emodb_says_which_argument_is_wrong(berlin_root, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        emodb.prepare(berlin_root, tmp_path / "run", **options, **LIMITS)


def test_real_recordings_have_the_labels_of_their_list(shared, tmp_path):
    counts = emodb.prepare(
        shared / "data" / "speech" / "emodb",
        tmp_path,
        emotions=list(emodb.EMOTIONS.values()),
        **LIMITS,
    )
    assert [count.utterances for count in counts] == [8, 6, 22]
    found = {
        utt: row["emotion"]
        for subset in ("train", "valid", "test")
        for utt, row in manifest(tmp_path, subset).items()
    }
    with open(shared / "data" / "speech" / "manifest.csv", encoding="utf-8", newline="") as file:
        listed = {Path(row["path"]).stem: row["label"] for row in csv.DictReader(file)}
    assert found == {utt: listed[utt] for utt in found}
