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
from recipes.codecs.conversion import convert
from recipes.codecs.focalcodec import FocalCodec as Adapter
from recipes.codecs.mimi import Mimi
from recipes.common.code_usage import CodeUsage
from recipes.common.dataio import load_sig, read_manifest
from recipes.common.files import locked_file
from recipes.common.reference_scores import mel_distance
from recipes.common.scoring import to_16k
from recipes.corpora import twins
from recipes.evaluate import main
from recipes.evaluation.rows import Rows
from tests.evaluations import run, words
from tests.saved_runs import free_port, in_children
from tests.tiny_checkpoints import save_utmos, save_whisper
from tests.tiny_codecs import write_mimi

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
def codec_24k(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mimi")
    write_mimi(folder)
    return folder


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
    return {**results, "scores": scores, "rtf_hardware": None}


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
    assert results["dataset"]["options"] == {}
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


def test_codec_of_another_rate_with_several_codebooks(codec_24k, clean, tmp_path):
    options = {**CLEAN, "codec": "!include:codec/mimi.yaml", "max_test_utterances": 2}
    options["codec_options"] = "{num_codebooks: 3}"
    results = run("resynthesis", codec_24k, clean, tmp_path / "run", **options)
    codec = Mimi(checkpoint=codec_24k, num_codebooks=3)
    manifest = read_manifest(tmp_path / "run/test.json", data_folder=clean)
    usage = CodeUsage(codec.codebook_size, num_codebooks=3)
    rows = {row["id"]: row for row in table_of(tmp_path / "run")}
    for id, entry in manifest.items():
        toks = codec.sig_to_toks(load_sig(entry["wav"], sample_rate=24_000)[None])
        hyp_sig = to_16k(codec.toks_to_sig(toks)[0], sample_rate=24_000)
        target = load_sig(entry["wav"], sample_rate=16_000)
        hyp_sig = torch.nn.functional.pad(hyp_sig, (0, len(target)))[: len(target)]
        distance = mel_distance(target, hyp_sig, sample_rate=16_000)
        assert float(rows[id]["hyp_mel_distance"]) == pytest.approx(distance, rel=1e-4)
        usage.append(toks)
    counts = json.loads((tmp_path / "run/code_counts.json").read_text())["counts"]
    assert len(counts) == 3 and counts == usage.counts.tolist()
    assert results["code_usage"] == pytest.approx(usage.summarize())


def test_every_utterance_is_transcribed_in_its_language(codec_folder, tmp_path):
    data = twins.generate("mls", tmp_path / "mls", speakers=1, utterances=1)
    english = save_whisper(tmp_path / "whisper", multilingual=False)
    options = {"dataset": "!include:dataset/mls700.yaml", "metrics": "[dwer]", "asr_model": english}
    options["dataset_options"] = "{languages: [nl, pl], utterances_per_language: 1}"
    results = run("resynthesis", codec_folder, data, tmp_path / "run", **options)
    reasons = {failure["reason"] for failure in results["failures"]}
    for language in ("nl", "pl"):
        assert any(f"does not know the language '{language}'" in reason for reason in reasons)


def test_a_metric_that_fails_everywhere_is_not_computed(codec_folder, tmp_path):
    path = tmp_path / "data/speaker/short.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(3200) / 20), 16_000)
    options = {"dataset": "!include:dataset/folder.yaml", "metrics": "[stoi, mel_distance]"}
    results = run("resynthesis", codec_folder, tmp_path / "data", tmp_path / "run", **options)
    assert "none of 1 utterances could be scored" in results["not_computed"]["stoi"]
    assert "hyp_mel_distance" in results["scores"] and "hyp_stoi" not in results["scores"]


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
    # 8 tokens of 320 samples for each chunk of 2000 and its overlap of 250
    assert results["codec"]["bitrate"] == pytest.approx(8 * 13 * 16_000 / 2000)
    assert results["codec"]["latency_ms"] == pytest.approx(1000 * 2250 / 16_000)


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
    (id,) = [id for id in manifest if id.replace("/", "--") == sample.name]
    entry = read_manifest(tmp_path / "run/test.json", data_folder=pairs)[id]
    names = {"ref": "target", "input": "wav", "reference": "reference"}
    loaded = {name: load_sig(entry[key], sample_rate=16_000) for name, key in names.items()}
    for name, sig in loaded.items():
        np.testing.assert_allclose(sigs[name], sig, atol=1e-4)  # 16-bit
    codec = Adapter(checkpoint=codec_folder)
    converted = convert(codec, loaded["input"][None], loaded["reference"][None])[0]
    np.testing.assert_allclose(sigs["hyp"], converted.clamp(-1, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        pytest.param(
            "voice_conversion",
            {**CLEAN, "metrics": "[]"},
            "has no reference; voice conversion needs a test set of",
            id="no references",
        ),
        pytest.param(
            "voice_conversion",
            {"metrics": "[sim, pesq]"},
            "pesq compare sample by sample",
            id="metrics of aligned signals",
        ),
        pytest.param(
            "resynthesis",
            {"dataset": "!include:dataset/vctk_pairs.yaml"},
            "is a pair of two speakers",
            id="pairs",
        ),
        pytest.param("streaming", {**CLEAN, "chunk_size": 100}, "overlap", id="sizes of chunks"),
        pytest.param(
            "resynthesis", {**CLEAN, "codec_options": "{nam: x}"}, "takes .*name", id="codec option"
        ),
        pytest.param(
            "resynthesis",
            {**CLEAN, "dataset_options": "{min_duration_s: 1}"},
            "min_duration_s in dataset_options",
            id="dataset option with a key of its own",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_refused_and_leaves_the_folder_free(
    task, options, message, codec_folder, clean, pairs, tmp_path
):
    data = clean if options.get("dataset") == CLEAN["dataset"] else pairs
    with pytest.raises(ValueError, match=message):
        run(task, codec_folder, data, tmp_path / "run", **options)
    assert not (tmp_path / "run/run.json").exists()


def test_the_draw_of_a_test_set_does_not_follow_the_seed(codec_folder, clean, tmp_path):
    options = {**CLEAN, "metrics": "[]", "max_test_utterances": 2}
    drawn = {}
    for name, more in {
        "one": {"seed": 1},
        "two": {"seed": 2},
        "other": {"dataset_options": "{seed: 3}"},
    }.items():
        run("resynthesis", codec_folder, clean, tmp_path / name, **options, **more)
        drawn[name] = (tmp_path / name / "test.json").read_text()
    assert drawn["one"] == drawn["two"] != drawn["other"]


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


def test_what_was_missing_is_computed_when_it_is_there(codec_folder, clean, tmp_path):
    folder, weights = tmp_path / "run", tmp_path / "utmos"
    options = {**CLEAN, "metrics": "[mel_distance, utmos]", "utmos_model": weights}
    weights.mkdir()
    first = run("resynthesis", codec_folder, clean, folder, **options)
    assert set(first["not_computed"]) == {"utmos"} and "hyp_utmos" not in first["scores"]
    (path,) = (folder / "rows").iterdir()
    number = len(path.read_text().splitlines())
    run("resynthesis", codec_folder, clean, folder, **options)  # it is still missing
    assert len(path.read_text().splitlines()) == number
    save_utmos(weights)
    second = run("resynthesis", codec_folder, clean, folder, **options)
    assert second["not_computed"] == {}
    assert second["scores"]["hyp_utmos"]["utterances"] == number
    assert second["scores"]["hyp_mel_distance"] == first["scores"]["hyp_mel_distance"]


def test_scores_of_two_models_never_meet_in_one_mean(codec_folder, clean, tmp_path):
    folder, weights = tmp_path / "run", tmp_path / "utmos"
    options = {**CLEAN, "metrics": "[utmos]", "utmos_model": weights, "max_test_utterances": 1}
    save_utmos(weights)
    run("resynthesis", codec_folder, clean, folder, **options)
    shutil.rmtree(weights)
    save_utmos(weights, gain=2.0)
    with pytest.raises(ValueError, match="utmos was computed with .* and would now be with"):
        run("resynthesis", codec_folder, clean, folder, **options)


def test_one_folder_takes_one_evaluation_at_a_time(codec_folder, clean, tmp_path):
    with locked_file(tmp_path / "run/.lock"):
        with pytest.raises(ValueError, match="another process is evaluating into"):
            run("resynthesis", codec_folder, clean, tmp_path / "run", **CLEAN)


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
    shutil.copy(clean / path.relative_to(data), path)  # mended, it is tried again
    results = run("resynthesis", codec_folder, data, tmp_path / "run", **CLEAN)
    assert results["failures"] == [] and results["dataset"]["utterances"] == 6
    path.write_bytes(path.read_bytes()[:-2000])
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
