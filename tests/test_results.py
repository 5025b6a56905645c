"""Results: a table made from run folders, with nothing in it that was not computed."""

import csv
import io
import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch

from recipes.common.experiment import CONTINUABLE, run_experiment
from recipes.common.paper import TABLE_6, Row
from recipes.common.plots import plot_bars
from recipes.common.quantizer_runs import differences, find_runs, read_run
from recipes.common.result_table import make_table, not_computed
from recipes.common.run_folder import RunFolder, hardware, read_description
from recipes.results import comma_separated, latex, main, markdown
from tests.stages import options
from train_quantizer import QuantizerBrain

CLASSES = {
    "mixer": "!name:focalcodec.focalnet.FocalBlock",
    "activation": "!name:focalcodec.focalnet.Snake",
    "quantizer": "!new:focalcodec.quantizers.BinarySphericalQuantizer",
    "decoder": "!name:focalcodec.vocos.Vocos",
}
ROWS = [  # in another order than the paper's, which has all but the last
    ("LinearBlock", "Snake", "LookupFreeQuantizer", "HiFiGAN"),
    ("FocalBlock", "LeakyReLU", "LookupFreeQuantizer", "HiFiGAN"),
    ("FocalBlock", "Snake", "FiniteScalarQuantizer", "HiFiGAN"),
    ("AMPBlock", "Snake", "LookupFreeQuantizer", "HiFiGAN"),
    ("FocalBlock", "Snake", "BinarySphericalQuantizer", "HiFiGAN"),
    ("ConformerBlock", "Snake", "LookupFreeQuantizer", "HiFiGAN"),
    ("FocalBlock", "Snake", "BinarySphericalQuantizer", "Vocos"),
    ("FocalBlock", "Snake", "LookupFreeQuantizer", "HiFiGAN"),
    ("Mamba_2", "Snake", "LookupFreeQuantizer", "HiFiGAN"),
]
HARDWARE = {"device": "Abacus", "processes": 1, "cpu_cores": 2, "torch_threads": 1}
TEST = {"reconstruction": 0.1, "hyp_stoi": 0.9, "code_usage": 0.5, "not_computed": {}}


def write_run(folder: Path, *, seed=1, test=TEST, run=None, blocks=None, **keys) -> Path:
    """Make a small run folder by hand, as `recipes.common.experiment` leaves one behind."""
    folder.mkdir(parents=True)
    lines = [f"{kind}: &{kind} {tag}" for kind, tag in (CLASSES | (blocks or {})).items()]
    values = {
        "seed": seed,
        "__set_seed": f"!apply:speechbrain.utils.seed_everything [{seed}]",
        "lr": 0.0005,
        "number_of_epochs": 3,
        "data_folder": "/data",
        "output_folder": folder,
        "save_folder": folder / "save",
        "decoder_checkpoint": "decoder.ckpt",
    } | keys
    lines += [f"{key}: {value}" for key, value in values.items()]
    lines += ["compressor: !new:focalcodec.focalnet.Compressor", "  mixer: *mixer"]
    lines += ["scheduler: !new:speechbrain.nnet.schedulers.NewBobScheduler"]
    lines += [f"  initial_value: {values['lr']}"]
    (folder / "hyperparams.yaml").write_text("\n".join(lines) + "\n")
    start = {"time": "now", "command": f"train_quantizer.py --seed {seed}", "commit": "c0ffee"}
    start |= {"modified": False, "hardware": HARDWARE}
    parameters = {"encoder": 0, "compressor": 1_000_000, "decompressor": 500_000, "decoder": 10_000}
    description = {"encoder": "f00d", "seed": seed, "parameters": parameters, "starts": [start]}
    (folder / "run.json").write_text(json.dumps(start | description | (run or {})))
    if test is not None:
        (folder / "metrics.json").write_text(json.dumps({"valid": {}, "test": test}))
    return folder


def write_decoder_run(folder: Path, **run) -> Path:
    """Make a run folder of the decoder stage by hand."""
    folder.mkdir(parents=True)
    (folder / "hyperparams.yaml").write_text(f"seed: 7\nlr: {run.pop('lr', 0.0002)}\n")
    start = {"time": "now", "command": f"train_decoder.py {folder.name}", "commit": "decade"}
    start |= {"modified": True, "hardware": HARDWARE}
    description = {"encoder": "f00d", "seed": 7, "starts": [start]}
    (folder / "run.json").write_text(json.dumps(start | description | run))
    return folder


def write_rows(folder: Path, *, seeds=(1,)) -> Path:
    """Make runs of all `ROWS`."""
    for position, classes in enumerate(ROWS):
        tags = zip(CLASSES.items(), classes, strict=True)
        blocks = {kind: f"{tag.rpartition('.')[0]}.{name}" for (kind, tag), name in tags}
        for seed in seeds:
            test = TEST | {"reconstruction": 0.1 + 0.01 * position + 0.001 * seed**2}
            run = folder / f"{position}" / f"{seed}"
            write_run(run, seed=seed, blocks=blocks, test=test)
    return folder


def table_of(*paths, keys=None):
    return make_table(find_runs(paths).runs, keys=keys)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def read_markdown(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def files_of(*folders: Path) -> dict[Path, tuple[bytes, int]]:
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


# Real runs


def test_table_of_real_runs_holds_their_values_and_origins(quantizer_run, decoder_run, capsys):
    before = files_of(quantizer_run, decoder_run)
    assert main([str(quantizer_run), "--metrics", "reconstruction", "hyp_mel_distance"]) == 0
    out = capsys.readouterr().out
    (row,) = read_markdown(out)
    test = json.loads((quantizer_run / "metrics.json").read_text())["test"]
    assert row["mixer"] == "focal modulation" and row["decoder"] == "Vocos"
    assert float(row["feature MSE"]) == pytest.approx(test["reconstruction"], abs=5e-5)
    assert float(row["hyp_mel_distance"]) == pytest.approx(test["hyp_mel_distance"], rel=1e-3)
    for run in (quantizer_run, decoder_run):
        description = read_description(run)
        assert description["command"] in out and description["commit"] in out
        assert description["hardware"]["device"] in out
    assert files_of(quantizer_run, decoder_run) == before


def test_run_records_seed_hardware_and_parameters(quantizer_run, decoder_run):
    parts = {"encoder", "compressor", "decompressor", "decoder"}
    for run, names in ((quantizer_run, parts), (decoder_run, {"encoder", "decoder"})):
        description = read_description(run)
        assert description["seed"] == 1234
        assert description["hardware"] == hardware("cpu")
        assert description["starts"][0]["hardware"] == hardware("cpu")
        assert description["starts"][0]["commit"] == description["commit"]
        assert names <= set(description["parameters"])
    decoder = next((decoder_run / "save").glob("CKPT*/decoder.ckpt"))
    state = torch.load(decoder, weights_only=True)
    trained = read_description(decoder_run)["parameters"]
    assert trained["discriminator"] > 0
    assert trained["decoder"] == read_description(quantizer_run)["parameters"]["decoder"]
    assert 0 < trained["decoder"] <= sum(value.numel() for value in state.values())


def test_run_with_an_older_description_goes_on(corpus, quantizer_run, decoder_run, tmp_path):
    shutil.copytree(quantizer_run, tmp_path / "run")
    path = tmp_path / "run/run.json"
    older = json.loads(path.read_text())
    for key in ("seed", "hardware", "parameters"):
        del older[key]
    older["starts"] = [{key: older["starts"][0][key] for key in ("time", "command")}]
    path.write_text(json.dumps(older))
    folder = RunFolder(tmp_path / "run", command=["again"], config_hash=older["config_hash"])
    folder.refuse_other_configuration()
    folder.describe(weights={"encoder": older["encoder"]}, seed=5, parameters={}, hardware=HARDWARE)
    newer = read_description(tmp_path / "run")
    assert newer["starts"][0] == older["starts"][0] and len(newer["starts"]) == 2
    assert newer["seed"] == 5 and newer["starts"][1]["hardware"] == HARDWARE


def test_test_in_a_folder_of_its_own_names_training_and_decoder(
    corpus, quantizer_run, decoder_run, tmp_path
):
    folders = {"save_folder": quantizer_run / "save", "decoder_checkpoint": decoder_run}
    more = {"number_of_epochs": 3, "on_changed_data": "accept"}
    words = options("quantizer", corpus, tmp_path / "row", **folders, **more)
    run_experiment(QuantizerBrain, [*words, "--test_only"])
    run = read_run(tmp_path / "row")
    whole = read_run(quantizer_run)
    assert [start.role for start in run.starts] == ["test", "training", "decoder's training"]
    assert run.starts[1].command == read_description(quantizer_run)["command"]
    assert run.starts[2].command == read_description(decoder_run)["command"]
    assert run.test["reconstruction"] == pytest.approx(whole.test["reconstruction"])
    assert differences([run.configuration, whole.configuration]) == [{}, {}]
    with pytest.raises(ValueError, match="same row, configuration and seed") as caught:
        table_of(tmp_path / "row", quantizer_run)
    assert str(quantizer_run) in str(caught.value) and str(tmp_path / "row") in str(caught.value)


# Rows and seeds


def test_seeds_of_one_configuration_become_mean_and_sample_deviation(tmp_path):
    values = [0.1, 0.2, 0.6]
    for seed, value in enumerate(values):
        test = TEST | {"reconstruction": value}
        write_run(tmp_path / f"{seed}", seed=seed, test=test)
    (row,) = read_csv(comma_separated(table_of(tmp_path)))
    assert float(row["feature MSE mean"]) == pytest.approx(0.3)
    assert float(row["feature MSE std"]) == pytest.approx(statistics.stdev(values))
    assert row["number of seeds"] == row["feature MSE seeds"] == "3"
    assert row["seeds"] == "0; 1; 2"
    (row,) = read_markdown(markdown(table_of(tmp_path)))
    assert row["feature MSE"] == "0.3000 ± 0.2646" and row["seeds"] == "3"


def test_one_seed_has_no_deviation(tmp_path):
    write_run(tmp_path / "run")
    assert read_markdown(markdown(table_of(tmp_path)))[0]["feature MSE"] == "0.1000"
    assert read_csv(comma_separated(table_of(tmp_path)))[0]["feature MSE std"] == ""


def test_metric_that_some_seeds_lack_says_how_many_have_it(tmp_path):
    for seed in (1, 2, 3):
        test = TEST if seed < 3 else {"reconstruction": 0.1, "not_computed": {"stoi": "no speech"}}
        write_run(tmp_path / f"{seed}", seed=seed, test=test)
    text = markdown(table_of(tmp_path))
    assert read_markdown(text)[0]["STOI"] == "0.900 ± 0.000 (2 of 3 seeds)"
    assert "- STOI: no speech" in text


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.001), ("number_of_epochs", 100), ("mixer", None), ("data", None)]
)
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(key, value, tmp_path):
    other = {key: value} if value is not None else {}
    if key == "mixer":
        other["blocks"] = {"mixer": f"{CLASSES['mixer']}\n  window: 9"}
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2, **other)
    if key == "data":
        for run, text in (("a", "{}"), ("b", '{"utterance": {}}')):
            (tmp_path / run / "test.json").write_text(text)
    rows = read_markdown(markdown(table_of(tmp_path)))
    assert [row["seeds"] for row in rows] == ["1", "1"]
    configurations = {row["configuration"] for row in rows}
    assert len(configurations) == 2 and all(key in text for text in configurations)


def test_note_on_a_difference_leaves_out_what_refers_to_it(tmp_path):
    for seed, lr in enumerate((0.1, 0.2)):
        write_run(tmp_path / f"{lr}", seed=seed, lr=lr)
    groups = table_of(tmp_path).groups
    assert [group.differences for group in groups] == [{"lr": "0.1"}, {"lr": "0.2"}]
    assert [group.variant for group in groups] == [1, 2]


def test_where_and_how_a_run_went_on_tells_no_runs_apart(tmp_path):
    keys = set(CONTINUABLE) - {"number_of_epochs", "optimizer_step_limit", "decoder_checkpoint"}
    keys -= {"output_folder", "save_folder"}
    for seed in (1, 2):
        other = {key: f"{key}{seed}" for key in keys}
        write_run(tmp_path / f"{seed}", seed=seed, **other)
    (group,) = table_of(tmp_path).groups
    assert len(group.runs) == 2


def test_decoders_of_other_training_make_two_rows_and_other_seeds_of_one_do_not(tmp_path):
    for seed, lr in enumerate((0.1, 0.1, 0.2)):
        decoder = write_decoder_run(tmp_path / f"decoder{seed}", lr=lr)
        save = decoder / "save" / "CKPT" / "decoder.ckpt"
        write_run(tmp_path / f"run{seed}", seed=seed, decoder_checkpoint=save)
    groups = table_of(tmp_path).groups
    assert sorted(len(group.runs) for group in groups) == [1, 2]
    assert {tuple(group.differences) for group in groups} == {("decoder_training.lr",)}


def test_batches_of_more_processes_make_another_row(tmp_path):
    for seed, processes in enumerate((1, 4)):
        start = {
            "time": "now",
            "command": "torchrun",
            "hardware": HARDWARE | {"processes": processes},
        }
        write_run(tmp_path / f"{processes}", seed=seed, run={"starts": [start]})
    groups = table_of(tmp_path).groups
    assert {group.differences["training.processes"] for group in groups} == {"null", "4"}


def test_seed_is_that_of_the_training(tmp_path):
    for seed in (1, 2):
        trained = write_run(tmp_path / f"quantizer{seed}", seed=seed, decoder_checkpoint="null")
        write_run(
            tmp_path / f"row{seed}", seed=9, save_folder=trained / "save", decoder_checkpoint="d"
        )
    (group,) = table_of(tmp_path / "row1", tmp_path / "row2").groups
    assert [run.seed for run in group.runs] == [1, 2]


def test_runs_of_the_same_seed_are_refused_by_name(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name)
    with pytest.raises(ValueError, match=r"one and .*two have the same row"):
        table_of(tmp_path)


def test_folder_given_twice_counts_once(tmp_path):
    run = write_run(tmp_path / "run")
    (group,) = table_of(run, tmp_path, run / ".." / "run").groups
    assert len(group.runs) == 1


# The paper


def test_paths_in_a_run_are_relative_to_where_it_was_started(tmp_path, monkeypatch):
    """Not to where the table is made, where another run may have the same name."""
    folders = {"output_folder": "results/q", "save_folder": "results/trained/save"}
    names = {"theirs": "at home", "decoy": "elsewhere"}
    for place, command in names.items():
        run = write_decoder_run(tmp_path / place / "results/decoder")
        start = json.loads((run / "run.json").read_text())["starts"][0] | {"command": command}
        content = json.loads((run / "run.json").read_text()) | {"starts": [start]}
        (run / "run.json").write_text(json.dumps(content))
        write_run(tmp_path / place / "results/trained", seed=len(place))
    row = write_run(tmp_path / "theirs/results/q", decoder_checkpoint="results/decoder", **folders)
    monkeypatch.chdir(tmp_path / "decoy")
    run = read_run(row)
    assert run.seed == len("theirs")
    assert [start.command for start in run.starts if "decoder" in start.role] == ["at home"]


def test_training_whose_test_lies_elsewhere_is_no_row_of_its_own(tmp_path):
    trained = write_run(tmp_path / "trained", decoder_checkpoint="null")
    row = write_run(tmp_path / "row", save_folder=trained / "save")
    found = find_runs([tmp_path])
    assert [run.folder for run in found.runs] == [row]
    assert found.left_out == {"whose test with a decoder is in the table": 1}
    assert len(find_runs([tmp_path, trained]).runs) == 2, "unless it is named"


def test_runs_with_decoders_of_other_batches_are_not_averaged(tmp_path):
    for seed, processes in ((1, 1), (2, 4)):
        decoder = write_decoder_run(tmp_path / f"decoder{seed}")
        content = json.loads((decoder / "run.json").read_text())
        content["starts"][0]["hardware"] = HARDWARE | {"processes": processes}
        (decoder / "run.json").write_text(json.dumps(content))
        write_run(tmp_path / f"run{seed}", seed=seed, decoder_checkpoint=decoder)
    groups = table_of(tmp_path).groups
    assert [len(group.runs) for group in groups] == [1, 1]
    assert "decoder_training.processes" in groups[1].differences


def test_rows_come_in_the_papers_order_with_its_numbers_and_others_after_them(tmp_path):
    rows = read_markdown(markdown(table_of(write_rows(tmp_path))))
    names = [tuple(row[part] for part in Row._fields) for row in rows]
    assert names == [*TABLE_6, ("Mamba_2", "Snake", "LFQ", "HiFi-GAN")]
    titles = ("paper UTMOS", "paper dWER (%)", "paper Sim (%)")
    for row, published in zip(rows, TABLE_6.values(), strict=False):
        assert tuple(float(row[title]) for title in titles) == published
    assert [rows[-1][title] for title in titles] == ["not in the paper"] * 3


def test_reason_is_that_of_the_metric_which_gives_the_score(tmp_path):
    whole = TEST | {"hyp_dcer": 0.1, "hyp_sim_strict": 0.5, "models": {"dwer": "whisper"}}
    lacking = TEST | {"not_computed": {"dwer": "no Whisper", "sim": "no x-vectors"}}
    for seed, test in ((1, whole), (2, lacking)):
        write_run(tmp_path / f"{seed}", seed=seed, test=test)
    runs = find_runs([tmp_path]).runs
    keys = ["hyp_dwer", "hyp_dcer", "hyp_sim", "hyp_sim_strict"]
    reasons = not_computed(make_table(runs, keys=keys))
    assert "hyp_dcer: no Whisper" in reasons and "dWER (%): no Whisper" in reasons
    assert "Sim (%): no x-vectors" in reasons
    assert "hyp_sim_strict: no hyp_sim_strict among the metrics of the test" in reasons
    with pytest.raises(ValueError, match="unknown metrics models"):
        make_table(runs, keys=["models"])


def test_row_without_a_decoder_is_none_of_the_papers(tmp_path):
    text = markdown(table_of(write_run(tmp_path / "run", decoder_checkpoint="null")))
    (row,) = read_markdown(text)
    assert row["decoder"] == row["decoder (M)"] == "none"
    assert row["paper UTMOS"] == "not in the paper"
    assert "- UTMOS: decoder_checkpoint was null" in text


def test_class_is_told_by_its_name_wherever_its_module_is(tmp_path):
    blocks = {"activation": "!name:other.place.LeakyReLU\n  negative_slope: 0.1"}
    assert read_run(write_run(tmp_path / "run", blocks=blocks)).row.activation == "leaky ReLU"


# What is missing


def test_missing_metrics_say_so_and_why_once(tmp_path):
    reason = "pesq is not installed; python -m pip install pesq"
    missing = {"reconstruction": 0.1, "hyp_stoi": float("nan"), "not_computed": {"pesq": reason}}
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", seed=seed, test=missing)
    text = markdown(table_of(tmp_path))
    (row,) = read_markdown(text)
    for title in ("STOI", "PESQ-WB", "DNSMOS OVRL", "UTMOS", "dWER (%)", "Sim (%)"):
        assert row[title] == "not computed"
    assert text.count(reason) == 1
    (row,) = read_csv(comma_separated(table_of(tmp_path)))
    assert row["PESQ-WB mean"] == row["PESQ-WB std"] == row["PESQ-WB seeds"] == ""


def test_what_an_older_run_did_not_record_says_so(tmp_path):
    start = {"time": "now", "command": "first"}
    last = {"time": "now", "command": "second"}
    run = write_run(
        tmp_path / "run",
        run={"parameters": None, "hardware": None, "starts": [start, last]},
    )
    text = markdown(table_of(run))
    (row,) = read_markdown(text)
    assert row["compressor + decompressor (M)"] == row["decoder (M)"] == "not recorded"
    assert "seed 1, commit not recorded, hardware: not recorded\nfirst" in text
    assert "seed 1, commit c0ffee, hardware: not recorded\nsecond" in text
    assert "not recorded: no run.json in" in text  # of the decoder


def test_parameters_are_of_the_bottleneck_and_of_the_decoder(tmp_path):
    (row,) = read_markdown(markdown(table_of(write_run(tmp_path / "run"))))
    assert row["compressor + decompressor (M)"] == "1.50" and row["decoder (M)"] == "0.01"


# Formats


@pytest.mark.parametrize("format", ["markdown", "csv", "latex"])
def test_every_format_tells_commands_commits_seeds_and_hardware(format, tmp_path, capsys):
    decoder = write_decoder_run(tmp_path / "decoder")
    write_run(tmp_path / "run", seed=5, decoder_checkpoint=decoder)
    assert main([str(tmp_path), "--format", format]) == 0
    out, error = capsys.readouterr()
    assert out.endswith("\n")
    for text in ("train_quantizer.py --seed 5", "train_decoder.py decoder", "c0ffee", "Abacus"):
        assert text in out
    assert "decade (modified)" in out
    assert error == "results: left out: 1 run(s) of the decoder stage\n"


def test_csv_has_one_line_a_row_in_the_units_of_its_titles(tmp_path):
    write_rows(tmp_path, seeds=(1, 2))
    text = comma_separated(table_of(tmp_path))
    rows = read_csv(text)
    assert len(rows) == len(ROWS) == len(text.splitlines()) - 1
    for row in rows:
        assert float(row["code usage (%) mean"]) == 50
        assert float(row["compressor + decompressor (M) mean"]) == 1.5
        numbers = len(row["commands"].split("; "))
        assert numbers == len(row["commits"].split("; ")) == len(row["hardware"].split("; "))
    assert rows[0]["paper Sim (%)"] == "95.3" and rows[-1]["paper Sim (%)"] == ""


def test_latex_escapes_text_and_keeps_the_rest_in_comments(tmp_path):
    write_rows(tmp_path, seeds=(1, 2))
    text = latex(table_of(tmp_path))
    table, _, notes = text.partition("\\end{tabular}\n")
    assert table.startswith("\\begin{tabular}") and "\\toprule" in table
    assert "Mamba\\_2" in table and "code usage (\\%)" in table and " $\\pm$ " in table
    assert text.isascii() and "&" in table
    assert notes and all(line.startswith("% ") for line in notes.splitlines())


def test_metrics_choose_the_columns_in_their_order(tmp_path):
    test = TEST | {"rec_stoi": 0.75}
    runs = table_of(write_run(tmp_path / "run", test=test), keys=["rec_stoi", "code_usage"])
    (row,) = read_markdown(markdown(runs))
    assert list(row)[5:7] == ["rec_stoi", "code usage (%)"] and row["rec_stoi"] == "0.75"
    assert list(row)[7].startswith("paper")


def test_table_goes_to_a_file_and_bars_to_a_picture(tmp_path, capsys):
    write_rows(tmp_path / "runs", seeds=(1, 2))
    before = files_of(tmp_path / "runs")
    words = [tmp_path / "runs", "--output", tmp_path / "t.md", "--plot", tmp_path / "bars.png"]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out == ""
    assert len(read_markdown((tmp_path / "t.md").read_text())) == len(ROWS)
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert files_of(tmp_path / "runs") == before


def test_bars_need_a_value_but_not_everywhere(tmp_path):
    with pytest.raises(ValueError, match="no metric has a value"):
        plot_bars({}, tmp_path / "bars.png")
    plot_bars(
        {"MSE": {"a": [], "b": [1.0, 2.0]}, "STOI": {"a": [1.0], "b": []}}, tmp_path / "b.png"
    )
    assert (tmp_path / "b.png").stat().st_size > 0


# Errors


def fails(capsys, *words) -> str:
    """Run the command line; its one line of error."""
    assert main([str(word) for word in words]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("results: ") and error.count("\n") == 1
    return error


def test_run_without_a_test_is_left_out_of_a_search_and_refused_by_name(tmp_path, capsys):
    unfinished = write_run(tmp_path / "unfinished", test=None)
    assert "let the run end, or test" in fails(capsys, unfinished)
    assert "1 run(s) without a test" in fails(capsys, tmp_path)
    write_run(tmp_path / "run")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == "results: left out: 1 run(s) without a test\n"


def test_run_of_the_decoder_stage_is_refused_by_name(tmp_path, capsys):
    error = fails(capsys, write_decoder_run(tmp_path / "decoder"))
    assert "is a run of the decoder stage; name a run folder of train_quantizer.py" in error


def test_run_of_a_baseline_is_refused_by_name_and_left_out_of_a_search(tmp_path, capsys):
    baseline = write_run(tmp_path / "baseline")
    yaml = baseline / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("mixer: &mixer", "layer: &mixer"))
    assert "is a run of another model: its YAML has no mixer" in fails(capsys, baseline)
    write_run(tmp_path / "run")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == "results: left out: 1 run(s) of another model\n"


def test_folder_without_runs_and_no_folder_are_errors(tmp_path, capsys):
    assert "no tested run of train_quantizer.py in" in fails(capsys, tmp_path)
    assert "is not a folder" in fails(capsys, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "hyperparams.yaml"])
@pytest.mark.parametrize("content", [b'{"a": [', b"\xff\xfe\x00", b"- 1\n"], ids=str)
def test_damaged_file_is_named(name, content, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / name).write_bytes(content)
    assert main([str(tmp_path)]) == 1
    assert str(run / name) in capsys.readouterr().err


def test_unknown_metric_is_refused_with_those_that_are_known(tmp_path, capsys):
    error = fails(capsys, write_run(tmp_path / "run"), "--metrics", "stoi")
    assert "unknown metrics stoi" in error and "hyp_stoi" in error


def test_nothing_is_written_into_a_run(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert "lies in the run folder" in fails(capsys, run, "--output", run / "metrics.json")
