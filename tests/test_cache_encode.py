"""What keeps an utterance or a shard from being written: values, bad audio, full disks."""

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from recipes.common.dataio import BadAudioError, read_bad_files
from recipes.common.feature_cache import encode as cache_encode
from recipes.common.feature_cache.format import CacheError
from tests.caches import build, child, content, make_encoder, open_cache, write_audio


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return write_audio(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def uninterrupted(entries, tmp_path_factory):
    """Files of the cache as one process writes them."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    build(folder, entries)
    return content(folder)


def test_features_beyond_float16_advise_bfloat16(entries, tmp_path):
    with pytest.raises(CacheError, match=r"utt\d\d.wav reach \d{6}, beyond what float16 holds.*bf"):
        build(tmp_path / "half", entries, encoder="loud")
    assert not list((tmp_path / "half").glob("shard-*"))
    build(tmp_path / "brain", entries, encoder="loud", dtype="bfloat16")
    assert open_cache(tmp_path / "brain", encoder="loud").read("utt00").abs().max() > 65504


def test_features_that_are_not_finite_are_refused(entries, tmp_path):
    module = make_encoder("loud")
    module.factor = float("nan")
    encoder = cache_encode.UnitEncoder(
        entries, encoder=module, dtype="bfloat16", device="cpu", batch_seconds=2.0
    )
    with open(tmp_path / "shard", "wb") as file, pytest.raises(CacheError, match="are not finite"):
        encoder.write(file, ids=["utt00"], on_batch=lambda: None)


def test_a_batch_beyond_the_memory_advises_a_smaller_one(entries, tmp_path):
    class Large(torch.nn.Module):
        sample_rate, hop_length, dim = 16000, 320, 4

        def num_samples(self, num_frames):
            return 320 * num_frames

        def num_frames(self, num_samples):
            return num_samples // 320

        def forward(self, sig, *, lens=None):
            raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = cache_encode.UnitEncoder(
        entries, encoder=Large(), dtype="float16", device="cpu", batch_seconds=3.0
    )
    with open(tmp_path / "shard", "wb") as file, pytest.raises(CacheError, match="batch_seconds"):
        encoder.write(file, ids=["utt00", "utt01"], on_batch=lambda: None)


@pytest.fixture
def with_bad(tmp_path):
    """Entries of which one file is no audio, one is shorter than it was, and one is not there."""
    entries = write_audio(tmp_path / "audio")
    Path(entries["utt02"]["wav"]).write_bytes(b"no audio")
    entries["utt04"]["num_samples"] += 5
    Path(entries["utt07"]["wav"]).unlink()
    return entries


def test_bad_files_are_listed_and_not_tried_again(with_bad, tmp_path, caplog):
    folder, listed = tmp_path / "cache", tmp_path / "bad_files.tsv"
    report = build(folder, with_bad, bad_files=listed)
    assert set(report.bad) == {"utt02", "utt04", "utt07"} and report.utterances == 7
    assert len(read_bad_files(listed)) == 3 and len(caplog.records) == 3
    assert "prepare the data again" in report.bad["utt04"]
    cache = open_cache(folder)
    assert cache.bad == report.bad and len(cache) == 7 and "utt02" not in cache
    cache.refuse_changed(with_bad)
    with pytest.raises(CacheError, match="utt07 has no features, .*No such file.*repair"):
        cache.read("utt07")
    before = content(folder)
    again = build(folder, with_bad)
    assert again.utterances == 0 and again.bad == report.bad and content(folder) == before


def test_a_repaired_file_is_encoded_once_its_shard_is_removed(with_bad, tmp_path):
    build(tmp_path / "cache", with_bad)
    repaired = with_bad | write_audio(tmp_path / "audio")
    with pytest.raises(CacheError, match=r"remove shard-00000\.\*"):
        open_cache(tmp_path / "cache").read("utt02")
    for path in (tmp_path / "cache").glob("shard-00000.*"):
        path.unlink()
    report = build(tmp_path / "cache", repaired)
    assert "utt02" not in report.bad and "utt02" in open_cache(tmp_path / "cache")


def test_the_policy_raise_stops_at_a_bad_file(with_bad, tmp_path):
    with pytest.raises(BadAudioError, match="utt02.wav|utt04.wav|utt07.wav"):
        build(tmp_path / "cache", with_bad, on_bad_file="raise")
    with pytest.raises(ValueError, match="on_bad_file must be skip or raise, got 'other'"):
        build(tmp_path / "cache", with_bad, on_bad_file="other")
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_a_corpus_that_is_gone_marks_nothing_as_bad(tmp_path):
    entries = write_audio(tmp_path / "audio")
    build(tmp_path / "cache", {"utt00": entries["utt00"]})
    shutil.rmtree(tmp_path / "audio")
    with pytest.raises(CacheError, match="9 utterances .*data_folder is complete and mounted"):
        build(tmp_path / "cache", dict(list(entries.items())[1:]), unit_bytes=2**20)
    assert open_cache(tmp_path / "cache").bad == {}


def test_audio_that_is_being_written_to_is_refused(tmp_path, monkeypatch):
    entries = write_audio(tmp_path / "audio", num=2)
    load = cache_encode.load_sig

    def touching_load(path, **options):
        os.utime(path, (1, 1))
        return load(path, **options)

    monkeypatch.setattr(cache_encode, "load_sig", touching_load)
    with pytest.raises(CacheError, match="is being written to"):
        build(tmp_path / "cache", entries)


def build_within_limit(folder, entries, path, limit):
    """Build where no file may become larger than ``limit`` bytes; note the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        build(folder, entries)
    except CacheError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        path.write_text(str(error))


@pytest.mark.parametrize("limit", [100, 4500, 5000])
def test_a_file_size_limit_leaves_no_partial_files(entries, uninterrupted, tmp_path, limit):
    folder = tmp_path / "cache"
    error = tmp_path / "error"
    with child(build_within_limit, folder, entries, error, limit) as process:
        process.join(60)
        assert process.exitcode == 0
    message = error.read_text()
    assert "File too large" in message
    for text in (
        "0.02 MiB are still needed",
        "free; finished shards are kept",
        "run the same command",
    ):
        assert text in message
    assert not list(folder.glob("*.tmp-*"))
    build(folder, entries)
    assert content(folder) == uninterrupted


def test_a_full_disk_keeps_the_finished_shards(entries, uninterrupted, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        filler = folder / "filler"
        filler.write_bytes(bytes(256 * 1024 - 40 * 1024))
        with pytest.raises(CacheError, match=r"No space left.* 0.0[12] MiB are still .* MiB free"):
            build(folder, entries)
        finished = {name: value for name, value in content(folder).items() if "shard" in name}
        assert finished and not list(folder.glob("*.tmp-*"))
        filler.unlink()
        build(folder, entries)
        assert content(folder) == uninterrupted and finished.items() <= uninterrupted.items()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_to_is_named(entries, tmp_path):
    (tmp_path / "locks").write_text("")
    with pytest.raises(CacheError, match=f"cannot write to {tmp_path}: File exists"):
        build(tmp_path, entries)
    with pytest.raises(CacheError, match="cannot read .*locks/cache.json: Not a directory"):
        build(tmp_path / "locks", entries)
