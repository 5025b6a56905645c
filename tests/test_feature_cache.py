"""Reading cached features, and what is refused (recipes/common/feature_cache.py)."""

import json
import os
import pickle
import shutil
import zlib
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from focalcodec.encoding import encode
from recipes.common.dataio import load_sig
from recipes.common.feature_cache import FeatureCache, describe_encoder
from recipes.common.feature_cache import reader as feature_cache
from recipes.common.feature_cache.format import CacheError
from recipes.common.fingerprint import fingerprint
from tests.audio_files import RATE
from tests.caches import build, make_encoder, open_cache, write_audio


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of a cache that nobody changes, and its entries."""
    folder = tmp_path_factory.mktemp("built")
    entries = write_audio(folder / "audio")
    build(folder / "cache", entries)
    return folder / "cache", entries


@pytest.fixture
def copied(built, tmp_path):
    """Folder of a cache that may be damaged, and its entries, which may be changed."""
    shutil.copytree(built[0].parent, tmp_path / "copy")
    entries = {
        key: entry | {"wav": str(tmp_path / "copy" / "audio" / Path(entry["wav"]).name)}
        for key, entry in built[1].items()
    }
    return tmp_path / "copy" / "cache", entries


def first_frames(cache, key):
    return cache.read(key, num_frames=2)


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("encoder", ["logmel", "wavlm"])
@pytest.mark.parametrize(("dtype", "precision"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_a_whole_read_is_what_the_encoder_gives_alone(tmp_path, encoder, dtype, precision):
    entries = write_audio(tmp_path / "audio")
    build(tmp_path / "cache", entries, encoder=encoder, dtype=dtype)
    cache, module = open_cache(tmp_path / "cache", encoder=encoder), make_encoder(encoder)
    assert len(cache) == len(entries) and all(key in cache for key in entries)
    assert len(list((tmp_path / "cache").glob("shard-*.bin"))) > 2
    for key, entry in entries.items():
        sig = load_sig(entry["wav"], sample_rate=RATE)[None]
        with torch.inference_mode():
            feats, _ = encode(module, sig, lens=torch.ones(1))
        read = cache.read(key)
        assert read.dtype == torch.float32 and read.shape == feats[0].shape
        assert cache.num_frames(key) == len(read) == -(-entry["num_samples"] // 320)
        # Half a unit in the last place, and float32 rounding of the batch.
        torch.testing.assert_close(read, feats[0], rtol=1.01 * precision, atol=2e-5)
        assert not torch.equal(read, feats[0]), "it is stored in half precision"


def test_parts_are_slices_of_the_whole(built):
    cache = open_cache(built[0])
    for key in built[1]:
        whole = cache.read(key)
        size = len(whole)
        for start, num in [(0, 1), (0, size), (3, 7), (size - 1, 1), (size - 2, 50), (5, None)]:
            end = size if num is None else start + num
            part = cache.read(key, start=start, num_frames=num)
            assert torch.equal(part, whole[start:end])
    for start, num in [(size, 1), (-1, 3), (0, 0), (2, -1)]:
        with pytest.raises(ValueError, match="no frame in"):
            cache.read(key, start=start, num_frames=num)


def test_what_was_read_may_be_written_to(built):
    cache = open_cache(built[0])
    before = cache.read("utt00")
    cache.read("utt00").zero_()
    assert torch.equal(cache.read("utt00"), before) and before.abs().sum() > 0


def test_a_pickled_cache_takes_no_maps_along(built):
    cache = open_cache(built[0])
    feats = cache.read("utt03")
    again = pickle.loads(pickle.dumps(cache))
    assert cache._maps and not again._maps
    assert torch.equal(again.read("utt03"), feats)


def test_spawned_loader_workers_read_it(built):
    cache = open_cache(built[0])
    cache.read("utt00")
    loader = DataLoader(
        sorted(built[1]),
        batch_size=None,
        collate_fn=partial(first_frames, cache),
        num_workers=1,
        multiprocessing_context="spawn",
    )
    for key, feats in zip(sorted(built[1]), loader, strict=True):
        assert torch.equal(feats, cache.read(key)[:2])


def test_few_files_are_open_however_many_shards_are_read(built, monkeypatch):
    monkeypatch.setattr(feature_cache, "_MAX_MAPS", 2)
    cache = open_cache(built[0])
    before = len(os.listdir("/proc/self/fd"))
    whole = {key: cache.read(key) for key in built[1]}
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert all(torch.equal(cache.read(key), feats) for key, feats in whole.items())


@pytest.mark.parametrize(
    ("key", "value"),
    [("fingerprint", "0123"), ("sample_rate", 8000), ("hop_length", 160), ("dim", 17)],
)
def test_another_encoder_is_refused_with_both_values(built, key, value):
    module = make_encoder()
    encoder = describe_encoder(module, fingerprint(module))
    FeatureCache(built[0], encoder=encoder)
    with pytest.raises(CacheError, match=f"{key} is {encoder[key]} in the cache and {value} here"):
        FeatureCache(built[0], encoder=encoder | {key: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no feature cache"),
        ("{", "cache.json is damaged"),
        ("[]", "cache.json is damaged"),
        ({"version": 2}, "of version 2"),
        ({"dtype": "float64"}, "float64"),
        ({"byte_order": "big"}, "little-endian"),
    ],
    ids=["missing", "cut off", "list", "version", "dtype", "byte order"],
)
def test_another_form_is_refused(copied, text, message):
    path = copied[0] / "cache.json"
    if text is None:
        path.unlink()
    elif isinstance(text, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | text))
    else:
        path.write_text(text)
    with pytest.raises(CacheError, match=message):
        open_cache(copied[0])


def test_flipped_bits_are_found_by_whole_reads_and_by_verify(copied):
    cache = open_cache(copied[0])
    cache.verify()
    shard, row = cache._row("utt04")
    flip_byte(copied[0] / f"shard-{shard:05d}.bin", 2 * 16 * row.first + 5)
    cache = open_cache(copied[0])
    message = f"shard-{shard:05d}: utterance utt04 differs .*remove shard-{shard:05d}.*run the same"
    with pytest.raises(CacheError, match=message):
        cache.read("utt04")
    with pytest.raises(CacheError, match=message):
        cache.verify()
    assert len(cache.read("utt04", start=1)) == row.num_frames - 1
    others = [key for key in copied[1] if key != "utt04"]
    assert all(cache.read(key).isfinite().all() for key in others)


def test_verify_names_every_damaged_shard(copied):
    for number in (0, 2):
        flip_byte(copied[0] / f"shard-{number:05d}.bin", -1)
    with pytest.raises(CacheError, match=r"2 damaged .*shard-00000: .*shard-00002: "):
        open_cache(copied[0]).verify()


@pytest.mark.parametrize("change", ["shorter", "longer", "missing"])
def test_a_shard_of_another_size_is_refused(copied, change):
    path = copied[0] / "shard-00001.bin"
    size = path.stat().st_size
    if change == "missing":
        path.unlink()
    else:
        os.truncate(path, size + (2 if change == "longer" else -2))
    with pytest.raises(CacheError, match=r"shard-00001: .*remove shard-00001.\* .*run the same"):
        open_cache(copied[0])


def test_a_shard_cut_short_after_opening_is_refused(copied):
    cache = open_cache(copied[0])
    os.truncate(copied[0] / "shard-00000.bin", 10)
    with pytest.raises(CacheError, match="shard-00000: 10 bytes where"):
        cache.read("utt00")


def test_every_damaged_byte_of_an_index_is_refused(copied):
    path = copied[0] / "shard-00001.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(CacheError, match="shard-00001: "):
            open_cache(copied[0])
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CacheError, match="shard-00001: "):
            open_cache(copied[0])


def test_a_shard_of_another_cache_is_refused(copied, tmp_path):
    build(tmp_path / "other", copied[1], encoder="wavlm")
    for suffix in ("json", "bin"):
        shutil.copy(tmp_path / "other" / f"shard-00000.{suffix}", copied[0])
    with pytest.raises(CacheError, match="shard-00000: made with"):
        open_cache(copied[0])


def test_an_unknown_utterance_is_named(built):
    cache = open_cache(built[0])
    assert "utt99" not in cache
    for ask in (cache.read, cache.num_frames):
        with pytest.raises(CacheError, match="utterance utt99 is not among the 10"):
            ask("utt99")


def test_unchanged_audio_is_accepted_at_another_time_and_place(copied, built):
    cache = open_cache(built[0])
    cache.refuse_changed(built[1])
    cache.refuse_changed({})
    for entry in copied[1].values():
        os.utime(entry["wav"], (1, 1))
    cache.refuse_changed(copied[1])


def test_bytes_are_read_only_where_the_time_differs(copied, monkeypatch):
    cache, read = open_cache(copied[0]), []
    crc = feature_cache.file_crc
    monkeypatch.setattr(feature_cache, "file_crc", lambda path: read.append(path) or crc(path))
    os.utime(copied[1]["utt05"]["wav"], (1, 1))
    cache.refuse_changed(copied[1])
    assert read == [copied[1]["utt05"]["wav"]]


def test_changed_audio_is_refused_by_name(copied):
    cache, entries = open_cache(copied[0]), copied[1]
    flip_byte(Path(entries["utt01"]["wav"]), 1000)
    Path(entries["utt02"]["wav"]).unlink()
    soundfile.write(entries["utt03"]["wav"], [0.0] * 100, RATE)
    entries["utt04"]["num_samples"] += 1
    with pytest.raises(CacheError) as refused:
        cache.refuse_changed(entries | {"utt98": entries["utt00"]})
    message = str(refused.value)
    for text in (
        "1 (utt98) not in it",
        "4 (utt01",
        "utt01.wav: other bytes",
        "utt02.wav: No such file",
        "utt03.wav: 244 bytes, were",
        "samples, were",
        "shard-00000.*",
        "run recipes.cache_features",
    ):
        assert text in message


def test_many_changes_are_counted_and_five_are_named(copied):
    cache, entries = open_cache(copied[0]), copied[1]
    for entry in entries.values():
        flip_byte(Path(entry["wav"]), 2000)
    with pytest.raises(CacheError, match=r"10 \(utt00.*utt04.*\.\.\.\)") as refused:
        cache.refuse_changed(entries)
    assert "utt05" not in str(refused.value)
    with pytest.raises(CacheError, match=r"20 \(new00, .*new04, \.\.\.\) not in it"):
        cache.refuse_changed({f"new{index:02d}": {} for index in range(20)})


def test_the_crc_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10000)
    assert feature_cache.file_crc(path) == zlib.crc32(path.read_bytes())
