"""Manifests of corpora (recipes/common/manifests.py); more in test_corpora.py."""

import csv
import json
from pathlib import Path

import pytest
from speechbrain.dataio.dataset import DynamicItemDataset

from recipes.common import dataio
from recipes.common.corpus_files import Utterance, find_audio
from recipes.common.manifests import write_manifests
from tests.audio_files import RATE, REFUSED_BY_HEADER, REFUSED_WHEN_READ, write_noise


def test_preparation_refuses_the_edge_files_whose_headers_are_bad(shared, tmp_path):
    edge = (shared / "data" / "edge").resolve()
    utterances = [Utterance(path, path.name, "edge") for path in find_audio(edge)]
    counts = write_manifests(
        edge,
        tmp_path,
        subsets={"train": utterances},
        read_text=lambda path: None,
        min_duration_s=0.05,
        max_duration_s=60,
    ).train
    with open(edge / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    manifest = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    listed = {
        Path(path).name: why
        for path, why in dataio.read_bad_files(tmp_path / "bad_files.tsv").items()
    }
    assert set(manifest) | set(listed) == set(rows)
    assert {name for name, why in listed.items() if not why.startswith("too ")} == REFUSED_BY_HEADER
    assert {name for name, why in listed.items() if why.startswith("too long")} == {"long_68s.flac"}
    assert counts.bad + counts.too_short + counts.too_long == len(listed)
    for name, entry in manifest.items():
        row = rows[name]
        if row["soundfile"] == "ok":  # two FLAC files break only after the header
            rate, frames = int(row["rate"]), int(row["frames"])
            assert (entry["sample_rate"], entry["num_samples"]) == (rate, frames)
            assert entry["duration"] == pytest.approx(frames / rate)
    dataset = dataio.make_dataset(
        tmp_path / "train.json",
        data_folder=edge,
        sample_rate=RATE,
        bad_files=tmp_path / "bad_files.tsv",
    )
    items = [dataset[i] for i in range(len(dataset))]
    assert all(item["sig"].isfinite().all() for item in items)
    late = set(dataio.read_bad_files(tmp_path / "bad_files.tsv")) - {str(edge / n) for n in listed}
    assert {Path(path).name for path in late} == REFUSED_WHEN_READ


def test_manifest_is_read_by_speechbrain_itself(tmp_path):
    path = write_noise(tmp_path / "corpus" / "utt00.wav", num_samples=1600)
    write_manifests(
        path.parent,
        tmp_path / "run",
        subsets={"train": [Utterance(path, "utt00", "s")]},
        read_text=lambda path: None,
        min_duration_s=0.0,
        max_duration_s=1.0,
    )
    dataset = DynamicItemDataset.from_json(
        tmp_path / "run" / "train.json",
        replacements={"data_root": str(path.parent)},
        output_keys=["id", "wav", "duration"],
    )
    assert dataset[0] == {"id": "utt00", "wav": str(path), "duration": 0.1}
