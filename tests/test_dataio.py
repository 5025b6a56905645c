"""Loading, the policy on bad files, datasets and loaders (recipes/common/dataio.py)."""

import csv
import json
import logging
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
import torchaudio
from speechbrain.dataio.dataloader import SaveableDataLoader, make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset

from recipes.common import dataio, manifests
from recipes.common.dataio import BadAudioError, SigDataset, bucket_sampler, load_sig
from tests.audio_files import RATE, REFUSED_BY_HEADER, REFUSED_WHEN_READ, write_noise

# Python 3.12 warns of every fork of a process with threads, and torch has some.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Write twelve utterances of 0.10 to 0.21 s and their manifest, as preparation leaves them."""
    root = tmp_path / "corpus"
    utterances = [
        manifests.Utterance(
            write_noise(root / f"utt{i:02d}.wav", num_samples=1600 + 160 * i), f"utt{i:02d}", "s"
        )
        for i in range(12)
    ]
    manifests.write_manifests(
        root,
        tmp_path / "run",
        subsets={"train": utterances, "valid": None, "test": None},
        read_text=lambda path: None,
        min_duration_s=0.0,
        max_duration_s=1.0,
    )
    return root


def dataset_of(corpus: Path, **options):
    run = corpus.parent / "run"
    options = {"sample_rate": RATE, "bad_files": run / "bad_files.tsv", **options}
    return dataio.make_dataset(run / "train.json", data_folder=corpus, **options)


def break_file(corpus: Path, name: str) -> str:
    path = corpus / f"{name}.wav"
    path.write_bytes(b"no longer audio")
    return str(path)


def test_every_edge_file_is_right_or_refused_by_name(shared):
    started = time.monotonic()
    with open(shared / "data" / "edge" / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    refused = set()
    for row in rows:
        path = shared / "data" / "edge" / row["path"]
        try:
            sig = load_sig(path, sample_rate=RATE)
        except BadAudioError as error:
            assert str(path) in str(error) and error.reason
            refused.add(row["path"])
            continue
        rate, frames = int(row["rate"]), int(row["frames"])
        assert sig.shape == (-(-frames * RATE // rate),) and sig.dtype == torch.float32
        assert sig.isfinite().all()
        if rate == RATE and row["channels"] == "1":
            assert sig.abs().max().item() == pytest.approx(float(row["peak"]), abs=1e-4)
    assert refused == REFUSED_BY_HEADER | REFUSED_WHEN_READ
    assert time.monotonic() - started < 60


# load_sig


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("start, num_samples", [(0, 500), (1, 1), (777, 2_000), (3_000, None)])
def test_part_equals_the_slice_of_the_whole(tmp_path, sample_rate, start, num_samples):
    path = write_noise(tmp_path / "a.wav", num_samples=sample_rate // 2, sample_rate=sample_rate)
    whole = load_sig(path, sample_rate=RATE)
    part = load_sig(path, sample_rate=RATE, start=start, num_samples=num_samples)
    end = None if num_samples is None else start + num_samples
    tolerance = 0.0 if sample_rate == RATE else 1e-6  # float32, another shape of convolution
    torch.testing.assert_close(part, whole[start:end], rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("name", ["gsm_8k.wav", "opus_16k.opus", "mp3_24k.mp3", "vorbis.ogg"])
def test_part_equals_the_slice_of_the_whole_in_compressed_formats(shared, name):
    path = shared / "data" / "edge" / name
    whole = load_sig(path, sample_rate=RATE)
    for start in (1, 36_266, 80_000):  # libsndfile's own seek fails for Opus at the second
        part = load_sig(path, sample_rate=RATE, start=start, num_samples=10_000)
        torch.testing.assert_close(part, whole[start : start + 10_000], rtol=0.0, atol=1e-6)


def test_part_at_the_end_is_cut_and_behind_it_refused(tmp_path):
    path = write_noise(tmp_path / "a.wav", num_samples=100)
    assert len(load_sig(path, sample_rate=RATE, start=90, num_samples=20)) == 10
    with pytest.raises(BadAudioError, match="a.wav"):
        load_sig(path, sample_rate=RATE, start=100)


def test_channels_are_averaged(tmp_path):
    path = write_noise(tmp_path / "a.wav", num_samples=400, channels=2)
    stereo, _ = soundfile.read(path, dtype="float32")
    torch.testing.assert_close(
        load_sig(path, sample_rate=RATE), torch.from_numpy(stereo.mean(axis=1))
    )


def test_resampling_keeps_a_tone_and_equals_torchaudio(tmp_path):
    seconds = torch.arange(24_000) / 24_000
    tone = (0.5 * (2 * torch.pi * 440 * seconds).sin()).numpy()
    soundfile.write(tmp_path / "tone.wav", tone, 24_000, subtype="FLOAT")
    sig = load_sig(tmp_path / "tone.wav", sample_rate=RATE)
    expected = 0.5 * (2 * torch.pi * 440 * torch.arange(16_000) / 16_000).sin()
    # 200 samples at either end miss half of the interpolation window
    torch.testing.assert_close(sig[200:-200], expected[200:-200], rtol=0.0, atol=2e-3)
    reference = torchaudio.functional.resample(torch.from_numpy(tone), 24_000, RATE)
    torch.testing.assert_close(
        sig, reference, rtol=0.0, atol=1e-5
    )  # kernel in float64, not float32


def test_resampled_length_is_exact_where_float32_is_not():
    length = 2**24 + 2**23 + 1  # times 2/3 is no integer and not a float32
    sig = dataio.resample(torch.zeros(length), sample_rate=24_000, new_sample_rate=RATE)
    assert len(sig) == -(-2 * length // 3)


@pytest.mark.parametrize(
    "content", ["missing", "folder", "fifo", "text", "nan", "inf", "empty", "cut"]
)
def test_unusable_file_is_named(tmp_path, content):
    path = tmp_path / "bad one.wav"
    if content == "folder":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif content == "text":
        path.write_text("hello")
    elif content == "cut":  # libsndfile announces the length that stands in the MP3's header
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
        soundfile.write(tmp_path / "whole.mp3", samples, RATE)
        path.write_bytes((tmp_path / "whole.mp3").read_bytes()[:3000])
    elif content != "missing":
        samples = {"nan": [0.0, np.nan], "inf": [np.inf, 0.0], "empty": []}[content]
        soundfile.write(path, np.array(samples), RATE, subtype="FLOAT")
    with pytest.raises(BadAudioError, match="bad one.wav") as caught:
        load_sig(path, sample_rate=RATE)
    assert caught.value.path == str(path) and caught.value.reason


def test_rates_that_would_take_gigabytes_are_refused(tmp_path):
    path = write_noise(tmp_path / "odd.wav", num_samples=100, sample_rate=22_051)
    with pytest.raises(BadAudioError, match="odd.wav.*22051 Hz"):
        load_sig(path, sample_rate=RATE)


# Dataset


def test_items_hold_id_sig_and_its_number_of_samples(corpus):
    dataset = dataset_of(corpus, sample_rate=24_000)
    assert isinstance(dataset, DynamicItemDataset) and len(dataset) == 12
    item = dataset[3]
    assert set(item) == {"id", "language", "sig", "num_samples"}
    assert item["id"] == "utt03" and item["num_samples"] == 2080 * 3 // 2 == len(item["sig"])


def test_batches_hold_the_language_that_the_manifest_names(corpus):
    manifest = corpus.parent / "run" / "test.json"
    rows = json.loads((corpus.parent / "run" / "train.json").read_text())
    rows = {utt_id: rows[utt_id] for utt_id in ("utt00", "utt01")}
    rows["utt01"]["language"] = "nl"
    manifest.write_text(json.dumps(rows))
    dataset = dataio.make_dataset(manifest, data_folder=corpus, sample_rate=RATE)
    assert dataio.collate([dataset[0], dataset[1]]).language == ["en", "nl"]


@pytest.mark.parametrize("sorting", ["random", "ascending", "descending"])
def test_sorting_is_by_duration(corpus, sorting):
    dataset = dataset_of(corpus, sorting=sorting)
    expected = sorted(dataset.data_ids, reverse=sorting == "descending")
    assert dataset.data_ids == expected


def test_max_utterances_keeps_the_first_ids(corpus):
    assert dataset_of(corpus, sorting="descending", max_utterances=2).data_ids == ["utt01", "utt00"]


def test_unknown_sorting_policy_and_empty_manifest_are_refused(corpus):
    with pytest.raises(ValueError, match="sorting must be"):
        dataset_of(corpus, sorting="alphabetical")
    with pytest.raises(ValueError, match="on_bad_file must be skip or raise"):
        dataset_of(corpus, on_bad_file="ignore")
    with pytest.raises(ValueError, match="valid.json holds no utterance"):
        dataio.make_dataset(
            corpus.parent / "run" / "valid.json", data_folder=corpus, sample_rate=RATE
        )


@forks
@pytest.mark.parametrize("num_workers", [0, 2])
def test_file_that_became_bad_is_replaced_and_listed_once(corpus, num_workers):
    bad = {break_file(corpus, name) for name in ("utt04", "utt05", "utt11")}
    dataset = dataset_of(corpus)
    for _ in range(2):  # two epochs
        loader = make_dataloader(
            dataset, **dataio.loader_kwargs(seed=0, batch_size=4, num_workers=num_workers)
        )
        batches = list(loader)
        assert [len(batch.id) for batch in batches] == [4, 4, 4]
        assert all(batch.sig.data.isfinite().all() for batch in batches)
        ids = [utt_id for batch in batches for utt_id in batch.id]
        assert ids[4:6] == ["utt06", "utt06"] and ids[11] == "utt00"
        for batch in batches:
            lengths = (batch.sig.lengths * batch.sig.data.shape[1]).round().long()
            assert lengths.tolist() == batch.num_samples.tolist()
    lines = (corpus.parent / "run" / "bad_files.tsv").read_text().splitlines()
    assert {line.split("\t")[0] for line in lines} == bad and len(lines) == 3


def test_bad_file_is_warned_of_once(corpus, caplog):
    path = break_file(corpus, "utt00")
    dataset = dataset_of(corpus)
    with caplog.at_level(logging.WARNING):
        assert dataset[0]["id"] == dataset[0]["id"] == "utt01"
    assert [path in record.getMessage() for record in caplog.records] == [True]


@forks
@pytest.mark.parametrize("num_workers", [0, 2])
def test_strict_policy_raises_with_the_name(corpus, num_workers):
    path = break_file(corpus, "utt04")
    kwargs = dataio.loader_kwargs(seed=0, batch_size=4, num_workers=num_workers)
    batches = iter(make_dataloader(dataset_of(corpus, on_bad_file="raise"), **kwargs))
    with pytest.raises(BadAudioError, match=path):
        list(batches)
    if num_workers:  # left to the garbage collector, torch waits 5 s for each worker
        batches._shutdown_workers()


def test_nothing_left_ends_with_an_error_instead_of_a_search_for_ever(corpus):
    for path in corpus.glob("*.wav"):
        path.unlink()
    with pytest.raises(BadAudioError, match="12 utterances .* in a row"):
        dataset_of(corpus)[5]


def test_file_changed_since_preparation_is_bad(corpus):
    write_noise(corpus / "utt02.wav", num_samples=999)
    dataset = dataset_of(corpus)
    assert dataset[2]["id"] == "utt03"
    reason = dataio.read_bad_files(corpus.parent / "run" / "bad_files.tsv")[
        str(corpus / "utt02.wav")
    ]
    assert "999 samples" in reason and "prepare" in reason


@forks
def test_bad_files_are_recorded_once_by_processes_side_by_side(tmp_path):
    bad_files = tmp_path / "bad_files.tsv"
    children = []
    wait, start = os.pipe()
    for _ in range(6):
        child = os.fork()
        if child == 0:
            os.close(start)
            os.read(wait, 1)  # returns at once for all when the parent closes its end
            for i in range(80):
                dataio.record_bad_file(bad_files, BadAudioError(f"{i}.wav", "tab\tand\nnewline"))
            os._exit(0)
        children.append(child)
    os.close(start)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    os.close(wait)
    lines = bad_files.read_text().splitlines()
    assert sorted(lines) == sorted(f"{i}.wav\ttab and newline" for i in range(80))


# Loaders


@forks
def test_loader_draws_nothing_from_global_random_states(corpus):
    dataset = dataset_of(corpus)
    brain = sb.Brain(run_opts={"device": "cpu"})
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for num_workers in (0, 1):
        loader = brain.make_dataloader(
            dataset,
            sb.Stage.TRAIN,
            **dataio.loader_kwargs(seed=1, num_workers=num_workers, batch_size=5, shuffle=True),
        )
        assert isinstance(loader, SaveableDataLoader)
        assert sum(len(batch) for batch in loader) == 12
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_collate_pads_with_zeros():
    examples = [
        {"id": "a", "sig": torch.ones(3), "num_samples": 3},
        {"id": "b", "sig": torch.ones(4), "num_samples": 4},
    ]
    batch = dataio.collate(examples)
    assert batch.id == ["a", "b"] and batch.num_samples.tolist() == [3, 4]
    assert batch.sig.data.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.sig.lengths.tolist() == [0.75, 1.0]


@forks
def test_workers_compute_on_one_thread(corpus):
    dataset = dataset_of(corpus)
    dataset.add_dynamic_item(
        lambda utt_id: torch.get_num_threads(), takes=["id"], provides="num_threads"
    )
    dataset.set_output_keys(["num_threads"])
    torch.set_num_threads(2)
    loader = make_dataloader(dataset, **dataio.loader_kwargs(seed=0, num_workers=2))
    assert {batch.num_threads.item() for batch in loader} == {1}


# Batches by seconds


def _entries(durations):
    return {
        f"{i:04}": {"wav": "none.wav", "duration": seconds, "num_samples": round(16000 * seconds)}
        for i, seconds in enumerate(durations)
    }


@pytest.fixture
def lengths() -> list[float]:
    """Lengths like those of LibriTTS, 1 to 25 s."""
    source = random.Random(0)
    return [min(25, max(1, source.lognormvariate(1.5, 0.7))) for _ in range(4000)]


def test_batches_by_seconds_are_full_and_hardly_padded(lengths):
    dataset = SigDataset(_entries(lengths), sample_rate=16000)
    sampler = bucket_sampler(dataset, batch_seconds=160, seed=1)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(4000))
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert max(padded) <= 160
    assert 1 - sum(lengths) / sum(padded) < 0.05
    assert sum(lengths) / len(batches) > 0.8 * 160


def test_batches_by_seconds_depend_on_seed_and_epoch_alone(lengths):
    dataset = SigDataset(_entries(lengths[:300]), sample_rate=16000)

    def batches(epoch, *, after=(), seed=1):
        sampler = bucket_sampler(dataset, batch_seconds=100, seed=seed)
        for earlier in after:
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(3) == batches(3, after=(1, 2))
    assert batches(3) != batches(2) and batches(3) != batches(3, seed=2)
    assert len(batches(3)) == len(batches(2))  # what "steps per epoch" relies on


def test_a_batch_shorter_than_an_utterance_is_refused():
    dataset = SigDataset(_entries([2.0, 31.5]), sample_rate=16000)
    with pytest.raises(ValueError, match="batch_seconds is 30, but the longest utterance has 31.5"):
        bucket_sampler(dataset, batch_seconds=30, seed=0)
