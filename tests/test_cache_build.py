"""Filling a feature cache: plan, units, shared work, kills."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from recipes.common.experiment import fingerprint
from recipes.common.feature_cache import build as cache_build
from recipes.common.feature_cache import encode as cache_encode
from recipes.common.feature_cache.format import CacheError, is_finished
from recipes.common.feature_cache.plan import plan
from recipes.common.feature_cache.progress import BuildProgress
from recipes.common.feature_cache.units import locked, read_units, take_unit
from tests.caches import (
    FORK,
    RATE,
    MeetingLogMel,
    build,
    child,
    content,
    make_encoder,
    open_cache,
    write_audio,
)

SOURCES = Path(cache_encode.__file__).parent


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return write_audio(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def uninterrupted(entries, tmp_path_factory):
    """Files of the cache as one process writes them."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    build(folder, entries)
    return content(folder)


def plan_of(folder, entries, **options):
    module = make_encoder()
    return plan(folder, entries, encoder=module, fingerprint=fingerprint(module), **options)


def build_and_report(folder, entries, path, options):
    report = build(folder, entries, **options)
    path.write_text(json.dumps([report.utterances, sorted(open_cache(folder, **options)._rows)]))


def build_together(folder, entries, path, options, barrier):
    """Build with a first batch that waits until all processes are at work."""
    MeetingLogMel.barrier = barrier
    build_and_report(folder, entries, path, options)


def die_at_line(folder, entries, number):
    """Build, and be killed before the ``number``-th line that the cache's modules execute."""
    lines = 0

    def on_line(frame, event, _):
        nonlocal lines
        lines += event == "line"
        if lines == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame, *_):
        ours = ("/feature_cache/", "/common/disk.py", "/common/read_ahead.py")
        return on_line if any(name in frame.f_code.co_filename for name in ours) else None

    sys.settrace(on_call)
    build(folder, entries)
    sys.settrace(None)
    (folder.parent / "lines").write_text(str(lines))


def test_the_plan_tells_what_is_missing_before_and_after(entries, tmp_path):
    folder = tmp_path / "not" / "there"
    before = plan_of(folder, entries)
    assert not folder.parent.exists(), "planning writes nothing"
    assert set(before.missing) == set(entries) and before.num_known == 0
    assert before.seconds == sum(entry["num_samples"] for entry in entries.values()) / RATE
    report = build(folder, entries)
    assert report.num_bytes == before.num_bytes
    assert report.num_bytes == sum(path.stat().st_size for path in folder.glob("*.bin"))
    assert (report.utterances, report.seconds) == (len(entries), before.seconds)
    after = plan_of(folder, entries)
    assert (after.missing, after.num_known, after.num_bytes) == ((), len(entries), 0)


def test_what_does_not_fit_is_refused_before_the_start(entries, tmp_path):
    long = {f"utt{index}": {"wav": "none", "num_samples": 2**60} for index in range(3)}
    with pytest.raises(CacheError, match=r"needs \d+\.\d\d GiB for 3 .*\d GiB are free; make room"):
        build(tmp_path / "cache", long)
    assert not (tmp_path / "cache").exists()


def test_partial_files_count_as_free(entries, tmp_path):
    (tmp_path / "cache").mkdir()
    free = plan_of(tmp_path / "cache", entries).free_bytes
    with open(tmp_path / "cache" / "shard-00000.bin.tmp-gone-1", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2**27)
    assert abs(plan_of(tmp_path / "cache", entries).free_bytes - free) < 2**26


def test_units_are_of_the_wanted_size_and_batches_within_their_limit(entries, tmp_path):
    build(tmp_path, entries)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.bin")]
    assert len(sizes) > 2 and max(sizes) <= 6000
    planned = [key for ids in read_units(tmp_path).values() for key in ids]
    assert sorted(planned) == sorted(entries)
    encoder = cache_encode.UnitEncoder(
        entries, encoder=make_encoder(), dtype="float16", device="cpu", batch_seconds=2.5
    )
    batches = list(encoder._batches(list(entries)))
    assert sorted(key for batch in batches for key in batch) == sorted(entries)
    for batch in batches:
        longest = max(entries[key]["num_samples"] for key in batch)
        assert len(batch) == 1 or longest * len(batch) <= 2.5 * RATE
    assert max(map(len, batches)) == 2
    with pytest.raises(CacheError, match="batch_seconds must be above 0"):
        build(tmp_path / "other", entries, batch_seconds=0)


def test_building_again_does_nothing(entries, uninterrupted, tmp_path):
    build(tmp_path, entries)
    marks = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    assert build(tmp_path, entries).utterances == 0
    assert marks == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    assert content(tmp_path) == uninterrupted


def test_added_utterances_only_add_units(entries, tmp_path):
    first = {key: entries[key] for key in list(entries)[:6]}
    build(tmp_path, first)
    before = content(tmp_path)
    assert build(tmp_path, entries).utterances == 4
    after = content(tmp_path)
    shards = {name for name in before if name.startswith("shard-")}
    assert all(after[name] == before[name] for name in shards)
    assert read_units(tmp_path).items() > json_units(before).items()
    assert set(open_cache(tmp_path)._rows) == set(entries)


def json_units(files):
    return {int(key): ids for key, ids in json.loads(files["plan.json"])["units"].items()}


@pytest.mark.parametrize("suffix", ["bin", "json"])
def test_a_removed_shard_is_computed_again(entries, uninterrupted, tmp_path, suffix):
    build(tmp_path, entries)
    (tmp_path / f"shard-00001.{suffix}").unlink()
    assert 0 < build(tmp_path, entries).utterances < 5
    assert content(tmp_path) == uninterrupted


def test_a_lost_or_damaged_plan_keeps_the_finished_shards(entries, uninterrupted, tmp_path):
    build(tmp_path, entries)
    (tmp_path / "shard-00000.json").unlink()
    (tmp_path / "plan.json").write_text('{"units": {"0": ')
    with pytest.raises(CacheError, match="plan.json is damaged .*remove it and run the same"):
        build(tmp_path, entries)
    (tmp_path / "plan.json").unlink()
    assert build(tmp_path, entries).utterances == len(json_units(uninterrupted)[0])
    assert set(open_cache(tmp_path)._rows) == set(entries)
    assert content(tmp_path)["shard-00001.bin"] == uninterrupted["shard-00001.bin"]


def test_a_plan_that_counts_what_no_shard_holds_is_refused(entries, tmp_path):
    build(tmp_path, {key: entries[key] for key in list(entries)[:2]})
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"utt01"', '"utt01", "utt02"'))
    few = {key: entries[key] for key in list(entries)[:3]}
    with pytest.raises(CacheError, match=r"1 utterances \(utt02, .*remove plan.json"):
        build(tmp_path, few)
    (tmp_path / "plan.json").unlink()
    assert build(tmp_path, few).utterances == 1


def test_a_unit_planned_with_other_utterances_is_split(entries, tmp_path):
    build(tmp_path, entries)
    unit = read_units(tmp_path)[1]
    for number in (0, 1):
        (tmp_path / f"shard-{number:05d}.json").unlink()
    with locked(tmp_path, "shard-00000"):  # another process, with all utterances, is at work on it
        kept = {key: entries[key] for key in unit[1:]}
        assert build(tmp_path, kept).utterances == len(unit) - 1
    units = read_units(tmp_path)
    assert units[1] == unit[1:] and units[max(units)] == unit[:1]
    assert not is_finished(tmp_path, max(units)) and not is_finished(tmp_path, 0)
    build(tmp_path, entries)
    assert set(open_cache(tmp_path)._rows) == set(entries)
    assert take_unit(tmp_path, 99, entries) == []


@pytest.mark.parametrize("change", ["encoder", "dtype", "audio"])
def test_a_cache_of_something_else_is_not_added_to(entries, tmp_path, change):
    first = {key: entries[key] for key in list(entries)[:2]}
    build(tmp_path, first)
    before = content(tmp_path)
    if change == "encoder":
        with pytest.raises(CacheError, match="fingerprint is .* in the cache and"):
            build(tmp_path, entries, encoder="wavlm")
    elif change == "dtype":
        with pytest.raises(CacheError, match="holds float16 and bfloat16 is asked for"):
            build(tmp_path, entries, dtype="bfloat16")
        with pytest.raises(CacheError, match="dtype must be float16 or bfloat16, got 'float32'"):
            build(tmp_path, entries, dtype="float32")
    else:
        other = entries | {"utt00": entries["utt05"]}
        with pytest.raises(CacheError, match="1 .utt00 .*other audio"):
            build(tmp_path, other)
    assert content(tmp_path) == before


def test_two_processes_share_the_work_and_both_wait_for_all_of_it(entries, uninterrupted, tmp_path):
    folder, options, barrier = tmp_path / "cache", {"encoder": "meeting"}, FORK.Barrier(2)
    with (
        child(build_together, folder, entries, tmp_path / "report0", options, barrier) as one,
        child(build_together, folder, entries, tmp_path / "report1", options, barrier) as two,
    ):
        for process in (one, two):
            process.join(60)
            assert process.exitcode == 0
    reports = [json.loads((tmp_path / f"report{index}").read_text()) for index in range(2)]
    numbers = [number for number, _ in reports]
    assert sum(numbers) == len(entries) and min(numbers) > 0, "nothing is computed twice"
    assert all(keys == sorted(entries) for _, keys in reports), "each returns when all is there"
    for name, value in content(folder).items():
        if name.endswith(".bin"):
            assert value == uninterrupted[name]


def test_what_a_killed_process_held_is_taken_over(entries, tmp_path):
    folder, options = tmp_path / "cache", {"encoder": "slow"}
    with child(build_and_report, folder, entries, tmp_path / "report", options) as process:
        until(lambda: list(folder.glob("shard-00000.bin.tmp-*")))
        with locked(folder, "shard-00000", wait=False) as claimed:
            assert not claimed
        os.kill(process.pid, signal.SIGKILL)
    assert build(folder, entries, encoder="slow").utterances == len(entries)
    assert not list(folder.glob("*.tmp-*"))


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_unit_that_was_finished_just_before_its_claim_is_left_alone(
    entries, tmp_path, monkeypatch
):
    claim = cache_build.locked

    def late_claim(folder, name, **options):
        if name.startswith("shard-"):
            monkeypatch.undo()
            build(folder, entries)  # another process gets there first
        return claim(folder, name, **options)

    monkeypatch.setattr(cache_build, "locked", late_claim)
    assert build(tmp_path, entries).utterances == 0
    assert len(open_cache(tmp_path)) == len(entries)


def test_two_starts_with_different_dtypes_do_not_share_a_folder(entries, tmp_path, monkeypatch):
    announce = cache_build.plan

    def late_plan(folder, *arguments, **options):
        announced = announce(folder, *arguments, **options)
        monkeypatch.undo()
        build(folder, entries)  # another process starts here
        return announced

    monkeypatch.setattr(cache_build, "plan", late_plan)
    with pytest.raises(CacheError, match="holds float16 and bfloat16 is asked for"):
        build(tmp_path, entries, dtype="bfloat16")


def note_writes(folder, entries, path):
    """Build, and note the name of each file of the cache that is opened for writing."""
    names = set()

    def on_event(event, arguments):
        if event == "open" and str(arguments[0]).startswith(str(folder)):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR):
                names.add(os.path.relpath(arguments[0], folder))

    sys.addaudithook(on_event)
    build(folder, entries)
    path.write_text(json.dumps(sorted(names)))


def test_every_file_gets_its_name_when_it_is_complete(entries, uninterrupted, tmp_path):
    with child(note_writes, tmp_path / "cache", entries, tmp_path / "names") as process:
        process.join(60)
        assert process.exitcode == 0
    names = json.loads((tmp_path / "names").read_text())
    written = {name for name in names if not name.startswith("locks")}
    assert all(".tmp-" in name for name in written)
    assert {name.split(".tmp-")[0] for name in written} == set(uninterrupted)


def test_killed_at_any_line_it_ends_with_the_same_bytes(entries, uninterrupted, tmp_path):
    with child(die_at_line, tmp_path / "whole", entries, 0) as process:
        process.join(60)
    total = int((tmp_path / "lines").read_text())
    for seed in range(24):
        folder, source = tmp_path / f"killed{seed}", random.Random(seed)
        finished = {}
        for _ in range(1 + seed % 3):  # some starts are killed again
            with child(die_at_line, folder, entries, source.randrange(1, total)) as process:
                process.join(60)
                assert process.exitcode in (-signal.SIGKILL, 0)
            after = content(folder) if folder.exists() else {}
            names = {name[:11] for name in after if re.fullmatch(r"shard-\d+\.json", name)}
            shards = {name: after[name] for name in after if name[:11] in names}
            assert finished.items() <= shards.items(), "finished shards are kept"
            finished = {name: value for name, value in shards.items() if ".tmp-" not in name}
        build(folder, entries)
        assert content(folder) == uninterrupted


def test_killed_at_any_time_two_processes_end_with_the_same_bytes(entries, tmp_path):
    folder, source, killed = tmp_path / "cache", random.Random(0), 0
    arguments = folder, entries, tmp_path / "report", {"encoder": "slow"}
    for attempt in range(12):
        with child(build_and_report, *arguments) as one, child(build_and_report, *arguments) as two:
            time.sleep(source.uniform(0.05, 0.3))
            victim = source.choice([one, two])
            victim.kill()
            time.sleep(source.uniform(0.0, 0.1))
        killed += victim.exitcode == -signal.SIGKILL
        if attempt % 4 == 3:
            build(folder, entries, encoder="slow")
            if attempt == 3:
                build(tmp_path / "uninterrupted", entries, encoder="slow")
            assert content(folder) == content(tmp_path / "uninterrupted")
            shutil.rmtree(folder)
    assert killed > 0


def test_progress_counts_what_all_processes_have_written(entries, tmp_path):
    build(tmp_path, {key: entries[key] for key in list(entries)[:3]})
    (tmp_path / "shard-00077.bin.tmp-old-1").write_bytes(b"12" * 16 * 50)  # at work already
    bar = BuildProgress(tmp_path, seconds=20.0, encoder=make_encoder(), enabled=False)
    assert bar.seconds_done() == 1  # 50 frames a second
    (tmp_path / "shard-00078.bin.tmp-other-1").write_bytes(b"12" * 16 * 150)
    (tmp_path / "shard-00079.bin").write_bytes(b"12" * 16 * 100)
    assert bar.seconds_done() == 6
    (tmp_path / "shard-00078.bin.tmp-other-1").unlink()
    assert bar.seconds_done() == 3
