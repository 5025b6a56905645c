"""The benchmark of tokenising at toy size (benchmarks/tokenize.py)."""

import argparse
import math
import os
import random
import re
import time

import pandas
import pytest

from benchmarks.tokenize import command, content, kill_until_done, pace, print_sizes, token_bits
from recipes import tokenize
from recipes.common.shards import open_shards
from tests.shards import build, write_rows


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Folder of nine short files."""
    folder = tmp_path_factory.mktemp("speech")
    write_rows(folder)
    return folder


@pytest.fixture
def shards(tmp_path):
    """Folder of three shards of a toy codec with 16 bits a token, and their rows."""
    rows = write_rows(tmp_path / "audio")
    build(tmp_path / "shards", rows)
    return tmp_path / "shards", rows


def test_its_command_makes_shards_whose_pace_can_be_told(make_codec, speech, tmp_path):
    make_codec().save_pretrained(tmp_path / "codec")
    arguments = argparse.Namespace(
        audio=speech,
        checkpoint=tmp_path / "codec",
        shard_minutes=0.02,
        batch_seconds=0.7,
        device="cpu",
    )
    words = command(arguments, tmp_path / "shards", workers=1)
    assert words[1:3] == ["-m", "recipes.tokenize"] and tokenize.main(words[3:]) == 0
    assert pace(tmp_path / "shards") > 0
    assert {"test-00000-of-00003.parquet", "tokens.json"} <= set(content(tmp_path / "shards"))


def test_the_pace_is_that_behind_the_first_shard(shards):
    folder, rows = shards
    first, second, third = sorted(folder.glob("*.parquet"))
    for path, seconds in ((third, 100), (first, 101), (second, 104)):
        os.utime(path, (0, seconds))
    behind = set(rows) - set(pandas.read_parquet(third)["id"])
    assert pace(folder) == pytest.approx(sum(rows[key]["duration"] for key in behind) / 4)
    first.unlink(), second.unlink()
    with pytest.raises(ValueError, match="the only shard; lower --shard-minutes"):
        pace(folder)


def test_sizes_are_those_of_the_tokens_alone(shards, capsys):
    folder, rows = shards
    tokens, bits = token_bits(open_shards(folder))
    assert tokens == sum(2 * math.ceil(row["num_samples"] / 2) for row in rows.values())
    assert 16 <= bits < 17, "noise at 16 bits does not compress"
    print_sizes(open_shards(folder))
    found = re.fullmatch(
        r"(\d+) tokens at (\S+) bits: (\S+) of .*, (\S+) of 16 packed bits\n",
        capsys.readouterr().out,
    )
    assert int(found[1]) == tokens and float(found[2]) == pytest.approx(bits, abs=0.01)
    assert found[3] == found[4]


def test_runs_are_killed_with_all_that_they_started_and_the_last_one_ends(tmp_path):
    script = f"cd {tmp_path}; (sleep 0.7; touch outlived) & sleep 0.5; kill $!; touch ended"
    options = {"kills": 2, "within": 0.1, "source": random.Random(0)}
    assert kill_until_done(tmp_path, ["sh", "-c", script], **options) == 2
    assert (tmp_path / "ended").exists()
    time.sleep(0.2)
    assert not (tmp_path / "outlived").exists()


def test_a_run_that_ends_before_its_kill_begins_anew_and_one_that_fails_is_told(tmp_path):
    folder = tmp_path / "shards"
    words = ["sh", "-c", f"mkdir {folder}"]  # fails if it is still there
    options = {"within": 60.0, "source": random.Random(0)}
    assert kill_until_done(folder, words, kills=2, **options) == 0
    with pytest.raises(RuntimeError, match="exit status 3:\nbroken"):
        kill_until_done(folder, ["sh", "-c", "echo broken >&2; exit 3"], kills=1, **options)
