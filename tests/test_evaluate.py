"""Evaluation of a codec from its command: results, resumption, refusals, what is left alone."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import soundfile
import torch

from focalcodec import FocalCodec
from recipes.common.code_usage import CodeUsage
from recipes.common.dataio import load_sig, read_manifest
from recipes.common.reference_scores import mel_distance
from recipes.corpora import twins
from recipes.evaluate import main
from recipes.evaluation.rows import Rows
from tests.evaluations import run, words
from tests.saved_runs import free_port, in_children

CLEAN = {"dataset": "!include:dataset/librispeech_test_clean.yaml"}
NOISY = {"dataset": "!include:dataset/voicebank.yaml"}


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    return twins.generate("librispeech", tmp_path_factory.mktemp("twins") / "librispeech")


@pytest.fixture(scope="session")
def noisy(clean):
    return twins.generate("voicebank", clean.parent / "voicebank", utterances=1)


@pytest.fixture(scope="session")
def noisy_parts(clean):
    return twins.generate("noisy", clean.parent / "noisy")


@pytest.fixture(scope="session")
def pairs(clean):
    return twins.generate("vctk", clean.parent / "vctk", utterances=3)


@pytest.fixture(scope="session")
def evaluated(codec_folder, clean, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations") / "resynthesis"
    run("resynthesis", codec_folder, clean, folder, **CLEAN)
    return folder


def results_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def table_of(folder) -> list[dict[str, str]]:
    with open(folder / "utterances.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def untimed(results: dict) -> dict:
    """Results without what depends on the machine's speed."""
    scores = {k: v for k, v in results["scores"].items() if not k.startswith("rtf")}
    return {**results, "scores": scores}


def state_of(folder) -> dict:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


# Resynthesis


def test_scores_are_those_of_the_codecs_own_decoding(evaluated, codec_folder, clean):
    codec = FocalCodec.from_pretrained(codec_folder)
    manifest = read_manifest(evaluated / "test.json", data_folder=clean)
    rows = {row["id"]: row for row in table_of(evaluated)}
    assert rows.keys() == manifest.keys()
    usage, distances = CodeUsage(codec.codebook_size), []
    for id, entry in manifest.items():
        sig = load_sig(entry["wav"], sample_rate=16_000)
        toks = codec.sig_to_toks(sig[None])
        hyp_sig = codec.toks_to_sig(toks, num_samples=len(sig))[0]
        usage.append(toks)
        distances.append(mel_distance(sig, hyp_sig, sample_rate=16_000))
        assert float(rows[id]["hyp_mel_distance"]) == pytest.approx(distances[-1], rel=1e-4)
        assert int(rows[id]["num_toks"]) == toks.shape[1]
    results = results_of(evaluated)
    assert results["scores"]["hyp_mel_distance"]["mean"] == pytest.approx(np.mean(distances), 1e-4)
    assert results["scores"]["hyp_mel_distance"]["utterances"] == len(manifest)
    assert results["code_usage"]["used_codes"] == usage.summarize()["used_codes"]
    counts = json.loads((evaluated / "code_counts.json").read_text())["counts"]
    assert counts == usage.counts.tolist()


def test_the_target_scores_best_and_intervals_hold_the_mean(evaluated):
    scores = results_of(evaluated)["scores"]
    assert scores["ref_mel_distance"]["mean"] == 0 and scores["ref_stoi"]["mean"] > 0.999
    for score in scores.values():
        assert score["low"] <= score["mean"] <= score["high"]
    assert scores["hyp_mel_distance"]["low"] < scores["hyp_mel_distance"]["high"]
    assert {"rtf", "rtf_encode", "rtf_decode"} <= scores.keys()


def test_results_say_what_was_evaluated(evaluated, codec_folder):
    results = results_of(evaluated)
    codec = FocalCodec.from_pretrained(codec_folder)
    assert results["task"] == "resynthesis"
    assert results["codec"] == {
        "name": "FocalCodec@50",
        "model_id": codec_folder.name,
        "sample_rate": 16_000,
        "sample_rate_output": 16_000,
        "token_rate": 50.0,
        "num_codebooks": 1,
        "codebook_size": codec.codebook_size,
        "bitrate": codec.bitrate,
        "embedding_dim": codec.quantizer.code_dim,
        "parameters": sum(p.numel() for p in codec.parameters()),
    }
    assert results["dataset"]["name"] == "librispeech_test_clean"
    assert results["dataset"]["options"] == {} and results["dataset"]["seed"] == 1234
    assert results["dataset"]["utterances"] == len(table_of(evaluated))
    description = json.loads((evaluated / "run.json").read_text())
    assert description["command"].startswith("python -m recipes.evaluate resynthesis --device=cpu")
    assert description["hardware"]["device"] and description["seed"] == 1234
    assert not (evaluated / "run_folder.py").exists()


def test_samples_are_the_signals_that_were_scored(evaluated):
    (folder,) = (evaluated / "samples").iterdir()
    (row,) = [row for row in table_of(evaluated) if row["id"].replace("/", "--") == folder.name]
    assert {path.name for path in folder.iterdir()} == {"ref.wav", "hyp.wav"}
    sigs = {}
    for path in folder.iterdir():
        sigs[path.stem], rate = soundfile.read(path, dtype="float32")
        assert rate == 16_000
    distance = mel_distance(*(torch.from_numpy(sigs[n]) for n in ("ref", "hyp")), sample_rate=rate)
    assert distance == pytest.approx(float(row["hyp_mel_distance"]), rel=0.02)  # 16-bit


def test_noisy_input_is_compared_with_its_clean_target(codec_folder, noisy, tmp_path):
    results = run("resynthesis", codec_folder, noisy, tmp_path / "run", **NOISY)
    scores = results["scores"]
    assert scores["ref_mel_distance"]["mean"] == 0
    assert scores["input_mel_distance"]["mean"] > 0.05
    (sample,) = (tmp_path / "run/samples").iterdir()
    assert {path.stem for path in sample.iterdir()} == {"ref", "hyp", "input"}


def test_another_draw_is_another_test_set(codec_folder, noisy_parts, tmp_path):
    hashes = set()
    for number, snr in enumerate([0, 10, 10]):
        options = {"dataset": "!include:dataset/noisy.yaml", "metrics": "[mel_distance]"}
        options |= {"dataset_options": f"{{snrs_db: [{snr}]}}", "max_test_utterances": 2}
        run("resynthesis", codec_folder, noisy_parts, tmp_path / str(number), **options)
        dataset = results_of(tmp_path / str(number))["dataset"]
        assert dataset["options"] == {"snrs_db": [snr]}
        hashes.add(dataset["hash"])
    assert len(hashes) == 2


def test_features_without_quantization_are_decoded_on_demand(codec_folder, clean, tmp_path):
    options = {**CLEAN, "decode_features": True, "max_test_utterances": 1}
    results = run("resynthesis", codec_folder, clean, tmp_path / "run", **options)
    assert "rec_mel_distance" in results["scores"]
    (sample,) = (tmp_path / "run/samples").iterdir()
    assert (sample / "rec.wav").is_file()


# Other tasks


def test_chunks_longer_than_the_signal_change_nothing(codec_folder, clean, evaluated, tmp_path):
    options = {**CLEAN, "chunk_size": 16_000 * 60}
    results = run("streaming", codec_folder, clean, tmp_path / "run", **options)
    offline = results_of(evaluated)
    assert results["settings"] == {"chunk_size": 960_000, "left_context": 48_000, "overlap": 250}
    assert results["scores"]["hyp_stoi"] == offline["scores"]["hyp_stoi"]
    assert results["code_usage"] == offline["code_usage"]


def test_short_chunks_are_another_result(codec_folder, clean, evaluated, tmp_path):
    options = {**CLEAN, "chunk_size": 2000}
    results = run("streaming", codec_folder, clean, tmp_path / "run", **options)
    assert results["scores"]["hyp_stoi"] != results_of(evaluated)["scores"]["hyp_stoi"]


def test_voice_conversion_takes_words_from_the_source_and_frames_from_the_reference(
    codec_folder, pairs, tmp_path
):
    results = run("voice_conversion", codec_folder, pairs, tmp_path / "run", metrics="[sim]")
    manifest = json.loads((tmp_path / "run/test.json").read_text())
    assert results["dataset"]["name"] == "vctk_pairs"
    assert results["dataset"]["utterances"] == len(manifest)
    assert "code_usage" not in results and "sim" in results["not_computed"]
    (sample,) = (tmp_path / "run/samples").iterdir()
    names = {"ref", "hyp", "input", "reference"}
    sigs = {name: soundfile.read(sample / f"{name}.wav")[0] for name in names}
    assert {path.stem for path in sample.iterdir()} == names
    assert abs(len(sigs["hyp"]) - len(sigs["input"])) <= 1
    assert len(sigs["ref"]) != len(sigs["reference"])


def test_voice_conversion_without_a_reference_is_refused(codec_folder, clean, tmp_path):
    with pytest.raises(ValueError, match="has no reference; voice conversion needs a test set of"):
        run("voice_conversion", codec_folder, clean, tmp_path / "run", **CLEAN, metrics="[]")


def test_speed_counts_parameters_and_operations(codec_folder, tmp_path, capsys):
    options = ["--audio_seconds=0.5", "--repeats=1", "--codec=!include:codec/focalcodec.yaml"]
    options += [f"--codec_checkpoint={codec_folder}", f"--output_folder={tmp_path / 'run'}"]
    assert main(["speed", "--device=cpu", "--offline", *options]) == 0
    scores = results_of(tmp_path / "run")["scores"]
    codec = FocalCodec.from_pretrained(codec_folder)
    assert scores["parameters"]["mean"] == sum(p.numel() for p in codec.parameters())
    assert (
        scores["macs_per_second"]["mean"]
        > 50 * sum(p.numel() for p in codec.compressor.parameters() if p.ndim > 1) / 2
    )
    assert scores["rtf"]["mean"] > 0
    assert "macs_per_second" in capsys.readouterr().out


# Resumption


@pytest.fixture
def half_done(evaluated, tmp_path):
    """Cut an evaluation off in the middle of a line, as a kill does."""
    folder = tmp_path / "half"
    shutil.copytree(evaluated, folder)
    for name in ("metrics.json", "utterances.csv", "code_counts.json"):
        (folder / name).unlink()
    (path,) = (folder / "rows").iterdir()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:40])
    return folder


def test_a_killed_evaluation_continues_to_the_same_results(
    half_done, evaluated, codec_folder, clean
):
    before = Rows(half_done).read()
    results = run("resynthesis", codec_folder, clean, half_done, **CLEAN)
    assert untimed(results) == untimed(results_of(evaluated))
    after = Rows(half_done).read()
    assert len(before) == 2 and all(after[id] == before[id] for id in before)


def test_a_finished_evaluation_is_not_repeated(evaluated, codec_folder, clean, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    rows = state_of(folder / "rows")
    results = run("resynthesis", codec_folder, clean, folder, **CLEAN)
    assert results == results_of(evaluated)
    assert state_of(folder / "rows") == rows


def test_several_processes_share_the_utterances(evaluated, codec_folder, clean, tmp_path):
    argv = ["resynthesis", "--distributed_backend=gloo"]
    argv += words(codec_folder, clean, tmp_path / "run", **CLEAN)
    outcomes = in_children(_rank, free_port(), argv, num=2)
    assert [tuple(outcome) for outcome in outcomes] == [(0, 0), (0, 0)]
    assert untimed(results_of(tmp_path / "run")) == untimed(results_of(evaluated))
    shares = [path.read_text().splitlines() for path in (tmp_path / "run" / "rows").iterdir()]
    assert [len(share) for share in shares] == [3, 3]


def _rank(rank, num, port, argv):
    """Do what torchrun starts: one of several processes of one command."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in place.items()}}
    return main(argv)


def test_what_was_missing_is_computed_when_it_is_there(evaluated, codec_folder, clean, tmp_path):
    folder = tmp_path / "run"
    options = {**CLEAN, "metrics": "[mel_distance, sim]"}
    first = run("resynthesis", codec_folder, clean, folder, **options)
    assert set(first["not_computed"]) == {"sim"} and "hyp_sim" not in first["scores"]
    assert "microsoft/wavlm-base-sv" in first["not_computed"]["sim"]
    (path,) = (folder / "rows").iterdir()
    number = len(path.read_text().splitlines())
    run("resynthesis", codec_folder, clean, folder, **options)  # it is still missing
    assert len(path.read_text().splitlines()) == number


# Refusals


def test_another_codec_in_the_same_folder_is_refused(evaluated, codec_folder, clean, tmp_path):
    shutil.copytree(codec_folder, tmp_path / "other")
    shutil.copytree(evaluated, tmp_path / "run")
    before = state_of(tmp_path / "run" / "rows")
    with pytest.raises(ValueError, match="another configuration"):
        run("resynthesis", tmp_path / "other", clean, tmp_path / "run", **CLEAN)
    assert state_of(tmp_path / "run" / "rows") == before


def test_other_weights_at_the_same_place_are_refused(codec_folder, clean, tmp_path):
    place, folder = tmp_path / "codec", tmp_path / "run"
    shutil.copytree(codec_folder, place)
    run("resynthesis", place, clean, folder, **CLEAN, max_test_utterances=1)
    codec = FocalCodec.from_pretrained(place)
    with torch.no_grad():
        next(codec.decoder.parameters()).add_(0.1)
    codec.save_pretrained(place)
    with pytest.raises(ValueError, match="begun with weights .* of the codec, and those at codec_"):
        run("resynthesis", place, clean, folder, **CLEAN, max_test_utterances=1)


def test_changed_data_are_refused(evaluated, codec_folder, clean, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(clean, data)
    shutil.copytree(evaluated, folder)
    next(data.rglob("*.flac")).unlink()
    with pytest.raises(ValueError, match="the data are not those that the run .* began with"):
        run("resynthesis", codec_folder, data, folder, **CLEAN)


def test_a_file_that_breaks_off_is_listed_and_the_rest_goes_on(codec_folder, clean, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(clean, data)
    path = sorted(data.rglob("*.flac"))[0]
    path.write_bytes(path.read_bytes()[:-2000])
    results = run("resynthesis", codec_folder, data, tmp_path / "run", **CLEAN)
    (failure,) = results["failures"]
    assert failure["metric"] == "audio" and path.name in failure["reason"]
    assert results["scores"]["hyp_stoi"]["utterances"] == 5 == results["dataset"]["utterances"]
    with pytest.raises(ValueError, match=path.name):
        run("resynthesis", codec_folder, data, tmp_path / "strict", **CLEAN, on_bad_file="raise")


def test_the_users_data_are_left_alone(codec_folder, clean, tmp_path):
    before = state_of(clean)
    run("resynthesis", codec_folder, clean, tmp_path / "run", **CLEAN, max_test_utterances=1)
    assert state_of(clean) == before
    with pytest.raises(ValueError, match="lies inside data_folder"):
        run("resynthesis", codec_folder, clean, clean / "run", **CLEAN)


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        pytest.param("--metric=[stoi]", "metric", id="misspelt key"),
        pytest.param("--metrics=[stoy]", "stoy", id="misspelt metric"),
        pytest.param("--codec=codec/mimi.yaml", "!include:codec/mimi.yaml", id="no include"),
        pytest.param("--codec_checkpoint=null", "names no weights", id="no weights"),
        pytest.param("--codec_checkpoint=/nowhere/codec", "/nowhere/codec", id="not there"),
    ],
)
def test_a_mistake_ends_with_one_line_and_leaves_the_folder_free(
    mistake, text, codec_folder, clean, tmp_path, capsys
):
    key = mistake.partition("=")[0]
    argv = words(codec_folder, clean, tmp_path / "run", **CLEAN)
    argv = [word for word in argv if word.partition("=")[0] != key]
    assert main(["resynthesis", *argv, mistake]) == 1
    error = capsys.readouterr().err
    assert error.startswith("evaluate: ") and text in error
    assert not (tmp_path / "run" / "run.json").exists()
