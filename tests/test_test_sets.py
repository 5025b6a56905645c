"""Test sets of an evaluation (recipes/corpora: mls, voicebank, libri1mix, noisy, folder)."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from recipes.common import dataio
from recipes.common.dataio import BadAudioError, read_bad_files
from recipes.common.mixing import load_input, load_target
from recipes.corpora import folder, libri1mix, librispeech, mls, noisy, voicebank
from tests.corpus_trees import LIMITS, manifest, rows, tree_hash, write_sig, write_text


def bad_files(run: Path) -> dict[str, str]:
    listed = read_bad_files(run / "bad_files.tsv")
    return {Path(path).name: reason for path, reason in listed.items()}


def snr_of(row: dict) -> float:
    target = load_target(row).double()
    noise = load_input(row).double() - target
    return float(10 * torch.log10(target.square().mean() / noise.square().mean()))


# Multilingual LibriSpeech


@pytest.fixture
def mls_root(tmp_path) -> Path:
    """Write Dutch as FLAC and Polish as Opus: 2 speakers x 4 utterances each."""
    root = tmp_path / "MLS"
    for name, suffix in (("mls_dutch", ".flac"), ("mls_polish_opus", ".opus")):
        lines = []
        for number in range(8):
            speaker, utt = f"{number // 4 + 1}", f"{number // 4 + 1}_20_{number:06d}"
            write_sig(root / name / "test" / "audio" / speaker / "20" / f"{utt}{suffix}")
            lines.append(f"{utt}\tsłowa {{{number}}} \n")
        write_text(root / name / "test" / "transcripts.txt", "".join(lines))
    return root


def drawn(root: Path, run: Path, **options) -> list[str]:
    mls.prepare(root, run, languages=["nl", "pl"], **options, **LIMITS)
    return list(manifest(run, "test"))


def test_mls_rows_hold_language_text_and_speaker(mls_root, tmp_path):
    before = tree_hash(mls_root)
    assert len(drawn(mls_root, tmp_path / "run")) == 16
    assert tree_hash(mls_root) == before
    assert manifest(tmp_path / "run", "train") == {} == manifest(tmp_path / "run", "valid")
    row = rows(tmp_path / "run", mls_root)["pl_2_20_000005"]
    assert (row["language"], row["speaker"], row["text"]) == ("pl", "2", "słowa {5}")
    assert row["wav"].endswith("mls_polish_opus/test/audio/2/20/2_20_000005.opus")
    assert load_input(row).shape == (1600,) == load_target(row).shape


def test_mls_draws_are_reproducible_and_more_is_a_superset(mls_root, tmp_path):
    two = drawn(mls_root, tmp_path / "a", utterances_per_language=2, seed=1)
    assert len(two) == 4 and [utt[:2] for utt in two] == ["nl", "nl", "pl", "pl"]
    assert drawn(mls_root, tmp_path / "b", utterances_per_language=2, seed=1) == two
    assert set(two) < set(drawn(mls_root, tmp_path / "c", utterances_per_language=5, seed=1))
    others = [drawn(mls_root, tmp_path / "d", utterances_per_language=2, seed=s) for s in (2, 3, 4)]
    assert any(other != two for other in others)


def test_mls_list_given_back_makes_the_same_set_from_either_format(mls_root, tmp_path):
    two = drawn(mls_root, tmp_path / "a", utterances_per_language=2, seed=1)
    kept = tmp_path / "a" / mls.LIST_NAME
    assert len(kept.read_text().splitlines()) == 4
    for path in list(mls_root.rglob("*.flac")):
        write_sig(path.with_suffix(".opus"))
        path.unlink()
    assert drawn(mls_root, tmp_path / "b", utterance_list=kept, seed=9) == two
    assert (tmp_path / "b" / mls.LIST_NAME).read_text() == kept.read_text()
    next(mls_root.rglob(f"{two[0][3:]}.opus")).unlink()
    with pytest.raises(ValueError, match=f"1 utterances of utterance_list.*{two[0][3:]}"):
        drawn(mls_root, tmp_path / "c", utterance_list=kept)


def test_mls_takes_flac_where_there_are_both(mls_root, tmp_path):
    write_sig(mls_root / "mls_dutch" / "test" / "audio" / "1" / "20" / "1_20_000000.opus")
    assert len(drawn(mls_root, tmp_path / "run")) == 16
    assert manifest(tmp_path / "run", "test")["nl_1_20_000000"]["wav"].endswith(".flac")


def test_mls_says_what_is_missing_or_wrong(mls_root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mls_french/test.*remove fr from languages"):
        mls.prepare(mls_root, tmp_path / "run", **LIMITS)
    with pytest.raises(FileNotFoundError, match="give that as data_folder"):
        mls.prepare(mls_root.parent, tmp_path / "run", languages=["nl"], **LIMITS)
    with pytest.raises(ValueError, match="languages must be a list of some of nl"):
        mls.prepare(mls_root, tmp_path / "run", languages=["en"], **LIMITS)
    with pytest.raises(FileNotFoundError, match="utterance_list .*nowhere not found"):
        drawn(mls_root, tmp_path / "run", utterance_list=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="list.txt, line 1: 'nl 1' is not"):
        drawn(mls_root, tmp_path / "run", utterance_list=write_text(tmp_path / "list.txt", "nl 1"))


# VoiceBank


@pytest.fixture
def bank_root(tmp_path) -> Path:
    root = tmp_path / "VoiceBank"
    for number in range(3):
        name = f"p232_{number:03d}"
        write_sig(root / "clean_testset_wav" / f"{name}.wav", sample_rate=48_000, seed=number)
        write_sig(root / "noisy_testset_wav" / f"{name}.wav", sample_rate=48_000, seed=9)
        write_text(root / "testset_txt" / f"{name}.txt", f"Sentence\n{number}.\n")
    return root


def test_voicebank_rows_are_noisy_with_a_clean_target(bank_root, tmp_path):
    before = tree_hash(bank_root)
    counts = voicebank.prepare(bank_root, tmp_path / "run", **LIMITS).test
    assert (counts.utterances, counts.speakers, counts.bad) == (3, 1, 0)
    assert tree_hash(bank_root) == before
    row = rows(tmp_path / "run", bank_root)["p232_001"]
    assert row["text"] == "Sentence 1." and row["speaker"] == "p232"
    assert row["wav"] == str(bank_root / "noisy_testset_wav" / "p232_001.wav")
    assert row["target"] == str(bank_root / "clean_testset_wav" / "p232_001.wav")
    assert not torch.equal(load_input(row), load_target(row))


def test_voicebank_without_a_clean_recording_of_that_length_is_bad(bank_root, tmp_path):
    clean = bank_root / "clean_testset_wav"
    (clean / "p232_000.wav").unlink()
    write_sig(clean / "p232_001.wav", sample_rate=48_000, seconds=0.2)
    counts = voicebank.prepare(bank_root, tmp_path / "run", **LIMITS).test
    assert (counts.utterances, counts.bad) == (1, 2)
    listed = bad_files(tmp_path / "run")
    assert listed["p232_000.wav"].startswith("its target") and "no such" in listed["p232_000.wav"]
    assert "its target" in listed["p232_001.wav"] and "9600 at" in listed["p232_001.wav"]
    with pytest.raises(BadAudioError, match=r"noisy_testset_wav/p232_000\.wav: its target"):
        voicebank.prepare(bank_root, tmp_path / "run", on_bad_file="raise", **LIMITS)


def test_voicebank_without_a_folder_names_it_and_the_fix(bank_root, tmp_path):
    (bank_root / "clean_testset_wav").rename(bank_root / "clean")
    with pytest.raises(FileNotFoundError) as caught:
        voicebank.prepare(bank_root, tmp_path / "run", **LIMITS)
    for part in (
        "'clean_testset_wav' not found",
        str(bank_root),
        "as clean_folder",
        "clean, noisy",
    ):
        assert part in str(caught.value)
    voicebank.prepare(bank_root, tmp_path / "run", clean_folder="clean", **LIMITS)
    with pytest.raises(FileNotFoundError, match="give that as data_folder"):
        voicebank.prepare(bank_root.parent, tmp_path / "run", **LIMITS)


# Libri1Mix


GAINS = {"0": (0.5, 0.25), "1": (1.25, 0.75)}


@pytest.fixture
def mix_root(tmp_path) -> Path:
    """Write two utterances, noise of two channels (the second too short) and metadata."""
    root = tmp_path / "storage"
    lines = ["mixture_ID,source_1_path,source_1_gain,noise_path,noise_gain"]
    for i, (name, (speech_gain, noise_gain)) in enumerate(GAINS.items()):
        utt = f"61-70-000{name}"
        write_sig(root / "LibriSpeech/test-clean/61/70" / f"{utt}.flac", seconds=1.3, seed=i)
        seconds = (1.5, 1.0)[i]
        write_sig(root / "wham_noise/tt" / f"n{i}.wav", seconds=seconds, channels=2, seed=5 + i)
        path = f"test-clean/61/70/{utt}.flac"
        lines.append(f"{utt}_260-1-0000,{path},{speech_gain},tt/n{i}.wav,{noise_gain}")
    write_text(root / "LibriSpeech/test-clean/61/70/61-70.trans.txt", "61-70-0000 SAID\n")
    write_text(root / "md.csv", "\n".join(lines) + "\n")
    return root


def write_ready(root: Path, ready: Path) -> None:
    """Mix what the metadata say with numpy alone and write it as LibriMix does, 16 bits."""
    with open(root / "md.csv", encoding="utf-8", newline="") as file:
        facts = list(csv.DictReader(file))
    for fact in facts:
        speech = soundfile.read(root / "LibriSpeech" / fact["source_1_path"])[0]
        noise = soundfile.read(root / "wham_noise" / fact["noise_path"])[0][: len(speech), 0]
        if len(noise) < len(speech):
            fall = 0.5 + 0.5 * np.cos(np.pi * np.arange(8001) / 8000)
            joint = noise[-8001:] * fall + noise[:8001] * (1 - fall)
            noise = np.concatenate([noise[:-8001], joint, noise[8001:]])[: len(speech)]
        speech = speech * float(fact["source_1_gain"])
        noise = noise * float(fact["noise_gain"])
        for name, sig in (("s1", speech), ("noise", noise), ("mix_single", speech + noise)):
            path = ready / name / f"{fact['mixture_ID']}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sig, 16_000)


def test_mixing_on_the_fly_gives_the_ready_files(mix_root, tmp_path):
    write_ready(mix_root, tmp_path / "Mix" / "Libri1Mix" / "wav16k" / "min" / "test")
    before = tree_hash(mix_root)
    libri1mix.prepare(mix_root, tmp_path / "fly", metadata="md.csv", **LIMITS)
    libri1mix.prepare_ready(tmp_path / "Mix", tmp_path / "ready", **LIMITS)
    assert tree_hash(mix_root) == before
    fly, ready = rows(tmp_path / "fly", mix_root), rows(tmp_path / "ready", tmp_path / "Mix")
    assert list(fly) == list(ready) == ["61-70-0000_260-1-0000", "61-70-0001_260-1-0000"]
    for utt in fly:
        for load in (load_input, load_target):
            # Ready files are rounded to 16 bits.
            assert load(fly[utt]).numpy() == pytest.approx(load(ready[utt]).numpy(), abs=2**-15)
        assert fly[utt]["speaker"] == ready[utt]["speaker"] == "61"
    assert fly["61-70-0000_260-1-0000"]["text"] == "SAID"


def test_metadata_of_several_speakers_give_the_first_one(mix_root, tmp_path):
    text = (mix_root / "md.csv").read_text()
    text = text.replace(",noise_path", ",source_2_path,source_2_gain,noise_path")
    write_text(mix_root / "md2.csv", text.replace(",tt/", ",test-clean/none.flac,0.5,tt/"))
    libri1mix.prepare(mix_root, tmp_path / "one", metadata="md.csv", **LIMITS)
    libri1mix.prepare(mix_root, tmp_path / "two", metadata=mix_root / "md2.csv", **LIMITS)
    assert manifest(tmp_path / "one", "test") == manifest(tmp_path / "two", "test")


def test_noise_outside_of_the_data_folder_has_an_absolute_path(mix_root, tmp_path):
    elsewhere = tmp_path / "no{i}se"
    (mix_root / "wham_noise").rename(elsewhere)
    before = tree_hash(elsewhere)
    libri1mix.prepare(
        mix_root, tmp_path / "run", metadata="md.csv", noise_folder=elsewhere, **LIMITS
    )
    written = manifest(tmp_path / "run", "test")["61-70-0000_260-1-0000"]
    assert written["noise"] == str(elsewhere / "tt" / "n0.wav").replace("{i}", "{{i}}")
    row = rows(tmp_path / "run", mix_root)["61-70-0000_260-1-0000"]
    assert row["noise"] == str(elsewhere / "tt" / "n0.wav") and len(load_input(row)) == 20_800
    assert tree_hash(elsewhere) == before
    with pytest.raises(ValueError, match="nothing is ever written"):
        libri1mix.prepare(
            mix_root, elsewhere / "run", metadata="md.csv", noise_folder=elsewhere, **LIMITS
        )


def test_mixtures_whose_files_are_missing_are_bad(mix_root, tmp_path):
    (mix_root / "wham_noise/tt/n1.wav").unlink()
    counts = libri1mix.prepare(mix_root, tmp_path / "run", metadata="md.csv", **LIMITS).test
    assert (counts.utterances, counts.bad) == (1, 1)
    reason = bad_files(tmp_path / "run")["61-70-0001.flac"]
    assert reason.startswith("its noise") and "n1.wav: no such file" in reason


def test_libri1mix_says_what_is_missing(mix_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="metadata .*clone github.com/JorisCos/LibriMix"):
        libri1mix.prepare(mix_root, tmp_path / "run", **LIMITS)
    write_text(mix_root / "info.csv", "mixture_ID,speaker_1_ID\n")
    with pytest.raises(ValueError, match="no columns source_1_path, source_1_gain, noise_path"):
        libri1mix.prepare(mix_root, tmp_path / "run", metadata="info.csv", **LIMITS)
    write_text(mix_root / "odd.csv", (mix_root / "md.csv").read_text().replace("0.75", "x"))
    with pytest.raises(ValueError, match="odd.csv, line 3: noise_gain is 'x'"):
        libri1mix.prepare(mix_root, tmp_path / "run", metadata="odd.csv", **LIMITS)
    with pytest.raises(FileNotFoundError, match="'WHAM' not found.*as noise_folder"):
        libri1mix.prepare(
            mix_root, tmp_path / "run", metadata="md.csv", noise_folder="WHAM", **LIMITS
        )
    with pytest.raises(FileNotFoundError, match="Libri1Mix/wav16k/min/test.*as mixtures_folder"):
        libri1mix.prepare_ready(mix_root, tmp_path / "run", **LIMITS)


def test_ready_mixtures_of_one_speaker_may_be_called_mix_both(mix_root, tmp_path):
    ready = tmp_path / "Mix" / "Libri1Mix" / "wav16k" / "min" / "test"
    write_ready(mix_root, ready)
    (ready / "mix_single").rename(ready / "mix_both")
    libri1mix.prepare_ready(tmp_path / "Mix", tmp_path / "run", **LIMITS)
    (ready / "s2").mkdir()
    with pytest.raises(FileNotFoundError, match="'mix_single' not found"):  # two speakers and noise
        libri1mix.prepare_ready(tmp_path / "Mix", tmp_path / "run", **LIMITS)


# Any speech in any noise


@pytest.fixture
def two_roots(tmp_path) -> tuple[Path, Path]:
    speech, noise = tmp_path / "corpus", tmp_path / "sounds"
    for i in range(12):
        path = write_sig(speech / f"s{i % 3}" / f"u{i:02d}.flac", seconds=0.4, seed=i)
        write_text(path.with_suffix(".txt"), f"text {i}")
    for i in range(4):
        write_sig(noise / "kind" / f"n{i}.wav", seconds=0.2, level=0.01, seed=50 + i)
    return speech, noise


def noisy_rows(roots, run: Path, **options) -> dict:
    options = {"snrs_db": [0, 5, 10, 15], "speech_folder": ".", "noise_folder": roots[1]} | options
    noisy.prepare(roots[0], run, **options, **LIMITS)
    return rows(run, roots[0])


def test_noisy_sets_have_the_ratios_that_their_rows_state(two_roots, tmp_path):
    before = tree_hash(two_roots[0]), tree_hash(two_roots[1])
    made = noisy_rows(two_roots, tmp_path / "run")
    assert (tree_hash(two_roots[0]), tree_hash(two_roots[1])) == before
    assert len(made) == 12 and made["s1--u01"]["text"] == "text 1"
    assert len({row["snr_db"] for row in made.values()}) > 1
    assert len({row["noise"] for row in made.values()}) > 1
    for row in made.values():
        assert snr_of(row) == pytest.approx(row["snr_db"], abs=1e-3)
        assert len(load_input(row)) == len(load_target(row)) == row["num_samples"]


def test_an_utterance_keeps_its_noise_whatever_else_is_in_the_set(two_roots, tmp_path):
    made = noisy_rows(two_roots, tmp_path / "a", seed=3)
    assert noisy_rows(two_roots, tmp_path / "b", seed=3) == made
    few = noisy_rows(two_roots, tmp_path / "c", seed=3, max_test_utterances=4)
    more = noisy_rows(two_roots, tmp_path / "d", seed=3, max_test_utterances=7)
    assert len(few) == 4 and few.items() <= more.items() <= made.items()
    assert noisy_rows(two_roots, tmp_path / "e", seed=4) != made
    (two_roots[0] / "s0" / "u00.flac").unlink()
    assert noisy_rows(two_roots, tmp_path / "f", seed=3).items() <= made.items()


def test_bad_and_silent_noise_is_not_drawn_and_bad_noise_is_listed(two_roots, tmp_path):
    speech, noise = two_roots
    for i in range(3):
        write_sig(noise / "kind" / f"n{i}.wav", seconds=0.2, level=1e-6)
    write_text(noise / "broken.wav", "x")
    write_sig(speech / "s0" / "quiet.wav", level=1e-6)
    made = noisy_rows(two_roots, tmp_path / "run")
    assert len(made) == 12
    assert {Path(row["noise"]).name for row in made.values()} == {"n3.wav"}
    listed = bad_files(tmp_path / "run")
    assert set(listed) == {"broken.wav", "quiet.wav"} and "is silent" in listed["quiet.wav"]
    with pytest.raises(BadAudioError, match="broken.wav"):
        noisy_rows(two_roots, tmp_path / "run", on_bad_file="raise")
    for path in noise.rglob("n3.wav"):
        path.unlink()
    with pytest.raises(ValueError, match="no utterance left"):
        noisy_rows(two_roots, tmp_path / "run")


def test_noisy_says_what_is_missing_or_wrong(two_roots, tmp_path):
    with pytest.raises(FileNotFoundError, match="noise folder 'nowhere' not found.*noise_folder"):
        noisy_rows(two_roots, tmp_path / "run", noise_folder="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no usable audio file in noise_folder"):
        noisy_rows(two_roots, tmp_path / "run", noise_folder=tmp_path / "empty")
    with pytest.raises(ValueError, match="snrs_db must be a list"):
        noisy_rows(two_roots, tmp_path / "run", snrs_db=[])
    with pytest.raises(ValueError, match="nothing is ever written"):
        noisy_rows(two_roots, two_roots[1] / "run")


def test_mixtures_are_not_trained_on(two_roots, tmp_path):
    noisy_rows(two_roots, tmp_path / "run")
    with pytest.raises(ValueError, match="is to be mixed with noise, which is for evaluation"):
        dataio.make_dataset(
            tmp_path / "run" / "test.json", data_folder=two_roots[0], sample_rate=16_000
        )


# Folders and LibriSpeech as test sets


def test_folder_may_be_all_test_with_languages_by_path(tmp_path):
    root = tmp_path / "own"
    for name in ("german-1", "german-swiss-2", "dutch-3"):
        write_sig(root / name / "5" / "a.wav")
    write_text(root / "dutch-3" / "5" / "5.trans.txt", "a DAG IEDEREEN\n")
    languages = {"german": "de", "dutch": "nl", "german-swiss": "gsw"}
    counts = folder.prepare(root, tmp_path / "run", all_in="test", languages=languages, **LIMITS)
    assert [count.utterances for count in counts] == [0, 0, 3]
    made = manifest(tmp_path / "run", "test")
    assert [row["language"] for row in made.values()] == ["nl", "de", "gsw"]
    assert made["dutch-3--5--a"]["text"] == "DAG IEDEREEN"
    folder.prepare(root, tmp_path / "run", all_in="test", language="fr", **LIMITS)
    assert {row["language"] for row in manifest(tmp_path / "run", "test").values()} == {"fr"}
    with pytest.raises(ValueError, match="no language is known for dutch-3/5/a.wav"):
        folder.prepare(root, tmp_path / "run", all_in="test", languages={"german": "de"}, **LIMITS)
    with pytest.raises(ValueError, match="all_in must be one of"):
        folder.prepare(root, tmp_path / "run", all_in="tests", **LIMITS)
    with pytest.raises(ValueError, match="takes every file"):
        folder.prepare(root, tmp_path / "run", all_in="test", test_splits=["dutch-3"], **LIMITS)


def test_real_speech_is_prepared_and_mixed(shared, tmp_path):
    speech = shared / "data" / "speech"
    none = {"train_splits": [], "valid_splits": []}
    limits = LIMITS | {"min_duration_s": 0.5}
    counts = librispeech.prepare(
        speech, tmp_path / "other", **none, test_splits=["test-other"], **limits
    )
    assert counts.test.utterances == 50
    assert any("text" in row for row in manifest(tmp_path / "other", "test").values())
    noisy.prepare(
        speech,
        tmp_path / "noisy",
        snrs_db=[0, 5, 10, 15],
        speech_folder="test-other",
        noise_folder=shared / "data" / "noise" / "esc10",
        speaker_level=2,
        max_test_utterances=6,
        **limits,
    )
    made = rows(tmp_path / "noisy", speech)
    assert len(made) == 6
    for row in made.values():
        assert snr_of(row) == pytest.approx(row["snr_db"], abs=1e-3)
        assert float(load_input(row).abs().max()) <= 0.991
    counts = folder.prepare(
        speech / "voicebank-noisy48", tmp_path / "bank", all_in="test", **limits
    )
    assert (counts.test.utterances, counts.test.speakers) == (3, 3)
    languages = {"french": "fr", "german": "de", "spanish": "es"}
    folder.prepare(speech / "mls", tmp_path / "mls", all_in="test", languages=languages, **limits)
    text = (tmp_path / "mls" / "test.json").read_text()
    assert sorted(row["language"] for row in json.loads(text).values()) == ["de", "es", "fr"]
