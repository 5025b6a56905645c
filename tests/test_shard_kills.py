"""Shards that several processes fill, and that kills and full disks interrupt."""

import json
import os
import resource
import signal
import sys

import pyarrow
import pytest
import soundfile

from recipes.common.shards import ShardError, Tokens, open_shards
from recipes.common.shards.build import ShardBuild
from tests.audio_files import RATE
from tests.caches import child
from tests.shards import Blocks, Quadruples, build, content, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def uninterrupted(rows, tmp_path_factory):
    """Files as one process writes them."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    build(folder, rows)
    return content(folder)


def build_until(folder, rows, dies_at):
    """Build, and be killed while a batch is encoded."""
    codec = Blocks()
    codec.dies_at = dies_at
    build(folder, rows, codec=codec, batch_seconds=0.3)


def test_a_kill_costs_no_more_than_the_batch_at_work(rows, uninterrupted, tmp_path):
    for dies_at in (3, 2, 1, 4):  # one more each time, but for the one that dies at once
        with child(build_until, tmp_path, rows, dies_at) as process:
            process.join(60)
        assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".parts/*/*.arrow")), "finished batches of an unfinished shard"
    before = Blocks.encoded
    report = build(tmp_path, rows)
    assert report.utterances == Blocks.encoded - before == len(rows) - (2 + 1 + 0 + 3)
    assert content(tmp_path) == uninterrupted


def test_a_bad_file_of_a_killed_build_is_not_tried_again(rows, tmp_path):
    rows = rows | {"utt3": rows["utt3"] | {"wav": "/gone/utt3.wav"}}  # the first shard's longest
    with child(build_until, tmp_path, rows, 2) as process:
        process.join(60)
    report = build(tmp_path, rows)
    assert report.utterances == len(rows) - 2, "it, and the one behind it, are known"
    assert report.bad == {"utt3": "no such file"}


def die_before_change(folder, rows, number):
    """Build, and be killed before the ``number``-th change to the file system; their number."""
    changes = 0

    def on_event(event, args):
        nonlocal changes
        writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
        if not writes and event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if changes == number:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1

    sys.addaudithook(on_event)
    build(folder, rows)
    return changes


def forked(function, *args):
    """Call in a copy of this process; its result, below 256, or -9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            status = function(*args)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_everywhere(folder, rows, path):
    """Kill one build before each of its changes, let another end it; note the outcomes."""
    os.fsync = lambda descriptor: None  # no kill needs it, and most of the time goes there
    build(folder / "whole", rows)
    wanted, outcomes = content(folder / "whole"), []
    for number in range(forked(die_before_change, folder / "counted", rows, -1)):
        trial = folder / str(number)
        killed = forked(die_before_change, trial, rows, number)
        build(trial, rows)
        outcomes.append([killed, content(trial) == wanted])
    path.write_text(json.dumps(outcomes))


def test_killed_between_any_two_changes_it_ends_with_the_same_bytes(rows, tmp_path):
    rows = {key: rows[key] for key in sorted(rows)[:4]}
    rows["utt1"] = rows["utt1"] | {"wav": "/gone/utt1.wav"}
    with child(die_everywhere, tmp_path, rows, tmp_path / "outcomes") as process:
        process.join(120)
    outcomes = json.loads((tmp_path / "outcomes").read_text())
    assert len(outcomes) > 25 and outcomes == [[-signal.SIGKILL, True]] * len(outcomes)


def test_a_damaged_part_is_computed_again(rows, uninterrupted, tmp_path):
    with child(build_until, tmp_path, rows, 3) as process:
        process.join(60)
    part = next(tmp_path.glob(".parts/*/*.arrow"))
    part.write_bytes(part.read_bytes()[:100])
    build(tmp_path, rows)
    assert content(tmp_path) == uninterrupted


def test_a_part_with_older_audio_is_computed_again(tmp_path):
    rows = write_rows(tmp_path / "audio")
    folder = tmp_path / "shards"
    with child(build_until, folder, rows, 2) as process:
        process.join(60)
    (part,) = folder.glob(".parts/*/*.arrow")
    (first,) = pyarrow.ipc.open_file(part).read_all()["id"].to_pylist()
    os.utime(part, (0, 0))
    soundfile.write(rows[first]["wav"], [0.25] * rows[first]["num_samples"], RATE)
    with child(build_until, folder, rows, 3) as process:
        process.join(60)
    before = Blocks.encoded
    build(folder, rows)
    assert Blocks.encoded - before == len(rows) - 2, (
        "what was computed again, and one more, is kept"
    )
    assert set(open_shards(folder).read("train")[first]["toks"].flatten()) == {40959}


def test_a_part_of_another_codec_is_not_read(rows, tmp_path):
    with child(build_until, tmp_path, rows, 3) as process:
        process.join(60)
    (tmp_path / "tokens.json").unlink()
    assert build(tmp_path, rows, codec=Quadruples()).utterances == len(rows)


def test_processes_share_a_folder(rows, uninterrupted, tmp_path):
    with child(build, tmp_path, rows) as one, child(build, tmp_path, rows) as two:
        one.join(60), two.join(60)
    assert (one.exitcode, two.exitcode) == (0, 0)
    assert content(tmp_path) == uninterrupted


def test_a_claimed_shard_is_left_to_its_holder(rows, tmp_path):
    parts = [
        ShardBuild(tmp_path, {"train": rows}, extractor=Tokens(Blocks()), shard_minutes=0.02)
        for _ in range(2)
    ]
    shard = parts[0].shards[0]
    others = []
    parts[0].write(shard, on_batch=lambda: others.append(parts[1].write(shard, on_batch=print)))
    assert others == [None] and shard not in parts[1].pending


def build_within_limit(folder, rows, path, limit):
    """Build where no file may become larger than ``limit`` bytes; note the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        build(folder, rows)
    except ShardError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        path.write_text(str(error))


def test_a_full_disk_is_explained_and_costs_nothing(rows, uninterrupted, tmp_path):
    with child(build_within_limit, tmp_path / "shards", rows, tmp_path / "error", 8000) as process:
        process.join(60)
    message = (tmp_path / "error").read_text()
    assert "MiB are still needed" in message and "make room and run the same command" in message
    build(tmp_path / "shards", rows)
    assert content(tmp_path / "shards") == uninterrupted
