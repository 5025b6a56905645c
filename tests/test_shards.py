"""Shards of tokens: what is stored, who may read it, bad files, foreign folders."""

import json
import os
import time
from pathlib import Path

import datasets
import numpy
import pandas
import pyarrow
import pytest
import soundfile
import torch

from recipes.common.dataio import BadAudioError, read_bad_files
from recipes.common.mixing import load_input, load_targets
from recipes.common.shards import ShardError, SpeakerVectors, Tokens, build_shards, open_shards
from recipes.common.shards.format import make_schema, make_table, write_shard
from recipes.common.shards.plan import manifest_hash, plan_shards
from recipes.common.speaker_similarity import SpeakerModel
from tests.audio_files import RATE
from tests.shards import Blocks, Quadruples, build, content, make_row, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def uninterrupted(rows, tmp_path_factory):
    """Files as one process writes them."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    build(folder, rows)
    return content(folder)


def toks_of(sig) -> list:
    return Blocks().sig_to_toks(sig[None])[0].tolist()


def test_rows_hold_tokens_and_labels(tmp_path):
    rows = {
        "b": make_row(tmp_path / "b.wav", 3001, text="", emotion="sad"),
        "a": make_row(tmp_path / "a.wav", 2000, language="de"),
    }
    report = build(tmp_path / "shards", rows)
    shards = open_shards(tmp_path / "shards")
    read = shards.read("train")
    assert list(read) == ["a", "b"], "in the order of their ids"
    for key, row in rows.items():
        assert read[key]["toks"].tolist() == toks_of(load_input(row))
        assert read[key]["toks"].dtype == "uint16" and not read[key]["toks"].flags.owndata
        assert read[key]["duration"] == row["duration"] and read[key]["speaker"] == "s"
    assert (read["a"]["text"], read["b"]["text"]) == (None, ""), "unknown, and known to be empty"
    assert (read["a"]["language"], read["a"]["emotion"]) == ("de", None)
    assert "target_toks" not in read["a"]
    assert shards.subsets == ("train",) and shards.codebooks is None
    assert {"name": "PCM", "num_codebooks": 2, "codebook_size": 2**16}.items() <= (
        shards.description.items()
    )
    assert (report.utterances, report.rows, report.bad) == (2, 2, {})
    with pytest.raises(ShardError, match="has no subset test, only train"):
        shards.read("test")


def test_targets_have_tokens_too(tmp_path):
    first, second, noisy = (make_row(tmp_path / f"{i}.wav", 2000 + i) for i in range(3))
    second["wav"] = make_row(tmp_path / "other" / "1.wav", 2000)["wav"]
    rows = {
        "both": first | {"target": first["wav"], "target_2": second["wav"]},
        "clean": first,
        "noisy": noisy | {"noise": first["wav"], "speech_gain": 0.5, "noise_gain": 0.2},
    }
    build(tmp_path / "shards", rows)
    read = open_shards(tmp_path / "shards").read("train")
    assert [set(row) & {"target_toks", "target_2_toks"} for row in read.values()] == [
        {"target_toks", "target_2_toks"},
        set(),
        {"target_toks"},
    ]
    for key in ("both", "noisy"):
        assert read[key]["toks"].tolist() == toks_of(load_input(rows[key]))
        targets = [toks_of(sig) for sig in load_targets(rows[key])]
        found = [read[key].get(name) for name in ("target_toks", "target_2_toks")]
        assert [toks.tolist() for toks in found if toks is not None] == targets


def test_pandas_and_datasets_read_them(rows, uninterrupted, tmp_path):
    folder = tmp_path / "shards"
    build_shards(
        folder, {"train": rows, "valid": dict(list(rows.items())[:2])}, extractor=Tokens(Blocks())
    )
    wanted = open_shards(folder).read("train")
    frame = pandas.read_parquet(folder / "train-00000-of-00001.parquet")
    assert frame["id"].tolist() == sorted(rows)
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in found.items()} == {"train": 9, "validation": 2}
    for stored in (frame.to_dict("records"), found["train"]):
        for row in stored:
            assert list(row["toks"]) == wanted[row["id"]]["toks"].flatten().tolist()
            assert row["num_codebooks"] == 2 and row["text"] == rows[row["id"]]["text"]


def test_a_codebook_too_large_for_16_bits(rows, tmp_path):
    class Wide(Blocks):
        codebook_size = 2**20

        def embeddings(self):
            return torch.arange(6.0).view(2, 3, 1)

    build(tmp_path, rows, codec=Wide())
    shards = open_shards(tmp_path)
    assert shards.read("train")["utt0"]["toks"].dtype == "uint32"
    assert torch.equal(shards.codebooks, torch.arange(6.0).view(2, 3, 1))


@pytest.mark.parametrize(("size", "most"), [(8192, 14.0), (2**16, 16.3)])
def test_tokens_take_little_more_than_the_bits_they_need(tmp_path, size, most):
    toks = numpy.random.default_rng(0).integers(0, size, 50 * 3600).astype("uint16")
    schema = make_schema({"id": pyarrow.string(), "toks": pyarrow.list_(pyarrow.uint16())})
    rows = [{"id": str(n), "toks": part} for n, part in enumerate(toks.reshape(-1, 600))]
    with open(tmp_path / "shard", "wb") as file:
        write_shard(file, make_table(rows, schema))
    assert (tmp_path / "shard").stat().st_size * 8 < most * len(toks)
    stored = pandas.read_parquet(tmp_path / "shard")["toks"]
    assert numpy.array_equal(numpy.concatenate(stored.to_list()), toks)


def test_the_plan_depends_on_the_manifests_alone(rows):
    def moved(row):
        return row | {"wav": f"/elsewhere/{Path(row['wav']).name}"}

    shards = plan_shards({"train": rows, "test": {}}, shard_minutes=0.02)
    backwards = {key: moved(rows[key]) for key in sorted(rows, reverse=True)}
    assert plan_shards({"train": backwards}, shard_minutes=0.02) == shards
    assert [key for shard in shards for key in shard.ids] == sorted(rows)
    assert max(shard.seconds for shard in shards) <= 60 * 0.02 and len(shards) == 3
    assert [shard.name for shard in shards] == [f"train-0000{i}-of-00003" for i in range(3)]
    assert manifest_hash(backwards) == manifest_hash(rows)
    assert manifest_hash(rows | {"utt0": rows["utt0"] | {"text": "other"}}) != manifest_hash(rows)


def test_batches_change_nothing_but_are_within_their_limit(rows, uninterrupted, tmp_path):
    codec, lengths = Blocks(), []
    encode = codec.sigs_to_toks
    codec.sigs_to_toks = lambda sigs: lengths.append([len(sig) for sig in sigs]) or encode(sigs)
    build(tmp_path, rows, codec=codec, batch_seconds=0.6)
    assert content(tmp_path) == uninterrupted
    padded = [len(batch) * max(batch) / RATE for batch in lengths if len(batch) > 1]
    assert padded and max(padded) <= 0.6
    with pytest.raises(ShardError, match="batch_seconds must be above 0"):
        build(tmp_path, rows, batch_seconds=0)
    with pytest.raises(ShardError, match="shard_minutes must be above 0"):
        build(tmp_path, rows, shard_minutes=0)


def test_bad_files_are_listed_and_not_tried_again(rows, tmp_path):
    rows = {key: dict(row) for key, row in rows.items()}
    rows["utt1"]["wav"] = str(tmp_path / "gone.wav")
    rows["utt2"]["target"] = str(tmp_path / "clean.wav")
    changed = make_row(tmp_path / "changed.wav", 900)
    rows["utt4"] |= {"wav": changed["wav"]}
    with pytest.raises(BadAudioError, match="wav: no such file"):
        build(tmp_path / "raise", rows, on_bad_file="raise")
    reasons = {
        "utt1": "no such file",
        "utt2": f"{tmp_path / 'clean.wav'}: no such file",
        "utt4": "900 samples, but 6612 in the manifest; prepare the data again",
    }
    folder = tmp_path / "skip"
    reasons["utt4"] = reasons["utt4"].replace("6612", str(rows["utt4"]["num_samples"]))
    assert build(folder, rows).bad == reasons
    assert read_bad_files(folder / "bad_files.tsv") == {
        rows[key]["wav"]: reason for key, reason in reasons.items()
    }
    assert set(open_shards(folder).read("train")) == set(rows) - set(reasons)
    make_row(tmp_path / "gone.wav", rows["utt1"]["num_samples"])
    again = build(folder, rows)
    assert (again.utterances, again.bad) == (0, reasons)
    counts = json.loads((folder / "tokens.json").read_text())["subsets"]["train"]
    assert (counts["utterances"], counts["rows"], counts["bad"]) == (9, 6, 3)


def test_data_that_are_gone_end_it(rows, tmp_path):
    lost = {key: row | {"wav": "/gone/x.wav"} for key, row in rows.items()}
    with pytest.raises(ShardError, match="9 utterances up to .*data_folder is complete and mount"):
        build(tmp_path, lost, shard_minutes=60)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_folder_belongs_to_one_corpus_and_one_extractor(rows, uninterrupted, tmp_path):
    build(tmp_path, rows)

    more = rows | {"utt9": rows["utt0"]}
    for changes, message in [
        ({"codec": Quadruples()}, "num_codebooks is 2 there and 4 here.*or choose another folder"),
        ({"rows": more}, "another corpus: its 9 utterances of train are not the 10 of now"),
        ({"rows": {"utt0": rows["utt0"] | {"emotion": "sad"}}}, "has columns .*all subsets"),
        ({"shard_minutes": 1}, "has shard_minutes 0.02, and now they would be 1"),
    ]:
        with pytest.raises(ShardError, match=message):
            build(tmp_path, changes.pop("rows", rows), **changes)
    assert content(tmp_path) == uninterrupted
    build_shards(
        tmp_path,
        {"test": rows},
        extractor=Tokens(Blocks()),
        shard_minutes=0.02,
        progress=False,
    )
    assert open_shards(tmp_path).subsets == ("train", "test"), "a subset may come later"


def test_without_its_description_a_folder_takes_nobody_elses_shards(rows, tmp_path):
    build(tmp_path, rows)
    before = content(tmp_path)
    for changes in (
        {"codec": Quadruples()},
        {"rows": rows | {"utt0": rows["utt0"] | {"text": ""}}},
    ):
        (tmp_path / "tokens.json").unlink()
        with pytest.raises(ShardError, match="train-00000-of-00003.*another corpus or by another"):
            build(tmp_path, changes.pop("rows", rows), **changes)
        assert build(tmp_path, rows).utterances == 0
        assert content(tmp_path) == before


def test_audio_that_is_newer_than_its_shard_is_reported(tmp_path, caplog):
    rows = write_rows(tmp_path / "audio")
    build(tmp_path / "shards", rows)
    build(tmp_path / "shards", rows)
    assert not caplog.text
    make_row(tmp_path / "audio" / "utt5.wav", rows["utt5"]["num_samples"])
    os.utime(rows["utt5"]["wav"], (later := time.time() + 9, later))
    build(tmp_path / "shards", rows)
    assert "audio of 1 shards is newer than they are, such as" in caplog.text
    assert "utt5.wav; if" in caplog.text and "remove train-00001-of-00003.parquet" in caplog.text


def test_unfinished_and_damaged_folders_are_refused(rows, tmp_path):
    with pytest.raises(ShardError, match="holds no shards; make them with python -m recipes.tok"):
        open_shards(tmp_path)
    build(tmp_path, rows)
    shard = tmp_path / "train-00001-of-00003.parquet"
    stored = shard.read_bytes()
    shard.write_bytes(stored[:-20])
    with pytest.raises(ShardError, match="train-00001-of-00003.parquet is damaged"):
        open_shards(tmp_path).read("train")
    with pytest.raises(ShardError, match="train-00001-of-00003.parquet is damaged .*; remove it"):
        build(tmp_path, rows)
    middle = len(stored) // 2  # among tokens
    shard.write_bytes(stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :])
    with pytest.raises(ShardError, match="train-00001-of-00003.parquet is damaged"):
        open_shards(tmp_path).read("train")
    shard.unlink()
    with pytest.raises(ShardError, match="1 of 3 shards are missing .train-00001-of-00003.parq"):
        open_shards(tmp_path)
    build(tmp_path, rows)
    assert shard.read_bytes() == stored
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(ShardError, match="tokens.json is damaged .* finished shards are kept"):
        open_shards(tmp_path)


def test_what_does_not_fit_is_refused_before_the_start(rows, tmp_path):
    long = {"utt0": rows["utt0"] | {"duration": 1e15}}
    with pytest.raises(ShardError, match=r"needs \d+\.\d\d GiB and \d+\.\d\d GiB are free"):
        build(tmp_path / "shards", long)
    assert not (tmp_path / "shards").exists()


def test_a_batch_beyond_the_memory_advises_a_smaller_one(rows, tmp_path):
    class Large(Blocks):
        def sigs_to_toks(self, sigs):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(ShardError, match="batch_seconds lower than 0.7"):
        build(tmp_path, rows, codec=Large())


class Level(torch.nn.Module):
    """A voice is its level."""

    def forward(self, sig):
        return torch.stack([sig.abs().amax(1), sig.mean(1)], dim=1)


def test_vectors_are_of_the_target(tmp_path):
    loud = make_row(tmp_path / "loud.wav", 2000)
    soundfile.write(tmp_path / "soft.wav", [0.125] * 2000, RATE)
    rows = {
        "target": loud | {"target": str(tmp_path / "soft.wav")},
        "short": make_row(tmp_path / "short.wav", 99),
    }
    model = SpeakerModel(embed=Level(), min_samples=100, device="cpu")
    build(tmp_path / "shards", rows, extractor=SpeakerVectors(model, name="level"))
    shards = open_shards(tmp_path / "shards")
    read = shards.read("train")
    assert read["target"]["vector"].tolist() == [0.125, 0.125]
    assert read["target"]["vector"].dtype == "float32"
    assert shards.description["dim"] == 2 and shards.codebooks is None
    assert list(read) == ["target"], "one too short for the model is a bad file"
    reasons = read_bad_files(tmp_path / "shards" / "bad_files.tsv")
    assert "the speaker model needs 100" in reasons[rows["short"]["wav"]]


def test_many_utterances_too_short_for_a_model_are_no_lost_corpus(tmp_path):
    lengths = {"long": 400} | {f"short{n}": 50 for n in range(60)}
    rows = {key: make_row(tmp_path / f"{key}.wav", size) for key, size in lengths.items()}
    model = SpeakerModel(embed=Level(), min_samples=100, device="cpu")
    report = build(tmp_path / "shards", rows, extractor=SpeakerVectors(model))
    assert len(report.bad) == 60
    assert list(open_shards(tmp_path / "shards").read("train")) == ["long"]
