"""Report: what it writes, audio and figures, and what it refuses to touch."""

import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from recipes.common.plots import read_steps, write_mels
from recipes.report import main
from recipes.reporting.figures import (
    Point,
    plot_bitrate,
    plot_code_usage,
    plot_curves,
    plot_ratings,
)
from recipes.reporting.folder import MARKER
from recipes.reporting.runs import find_runs, read_evaluation
from recipes.reporting.samples import shared_items, write_samples
from tests.evaluation_runs import (
    ITEMS,
    RATE,
    write_evaluation,
    write_plain,
    write_run_json,
    write_unfinished,
)
from tests.pages import files_of, make, read_page

# Audio and pictures


def test_only_shared_items_are_aligned_and_missing_cells_say_so(tmp_path):
    write_evaluation(tmp_path / "a", codec="a", items=["p", "q", "r"])
    write_evaluation(tmp_path / "b", codec="b", items=["r", "q", "s"])
    write_evaluation(tmp_path / "c", codec="c", items=["q", "r"], samples=False)
    place = tmp_path / "b/samples"
    shutil.copy(tmp_path / "a/samples/q/ref.wav", place / "q/ref.wav")
    found = find_runs([tmp_path]).evaluations
    assert shared_items(run.samples() for run in found) == ["q"], "r has another reference in b"
    written = write_samples(found, tmp_path, "audio", limit=3)
    assert [item.id for item in written.items] == ["q", "p", "r"]
    why = {item.id: [sample.why for sample in item.samples] for item in written.items}
    none = "this run wrote no samples"
    assert why == {
        "q": ["", "", "", none],
        "p": ["", "", "not among this run's samples", none],
        "r": ["", "", "this run has another reference under the same name", none],
    }


def test_input_target_speaker_and_unquantized_audio_have_columns(tmp_path):
    run = write_evaluation(tmp_path / "run")
    folder = run / "samples" / ITEMS[0]
    for kind in ("input", "reference", "rec"):
        shutil.copy(folder / "ref.wav", folder / f"{kind}.wav")
    written = write_samples([read_evaluation(run)], tmp_path, "audio", limit=2)
    name = "FocalCodec@50"
    assert written.columns == [
        "Input", "Target speaker", "Reference", name, f"{name}, unquantized features"
    ]  # fmt: skip
    assert all(sample.audio for sample in written.items[0].samples)
    assert [bool(sample.audio) for sample in written.items[1].samples] == [0, 0, 1, 1, 0]


def test_audio_that_cannot_be_read_says_so(tmp_path):
    run = write_evaluation(tmp_path / "run")
    (run / "samples" / ITEMS[0] / "hyp.wav").write_bytes(b"no audio")
    soundfile.write(run / "samples" / ITEMS[1] / "hyp.wav", torch.zeros(9, 2).numpy(), RATE)
    written = write_samples([read_evaluation(run)], tmp_path, "audio", limit=2)
    for item, why in zip(written.items, ("cannot be read", "must be mono"), strict=True):
        assert why in item.samples[1].why and item.samples[0].audio


def test_ids_with_slashes_come_back(tmp_path):
    run = write_evaluation(tmp_path / "run", items=["a/b--c/d"])
    assert list(read_evaluation(run).samples()) == ["a/b--c/d"]


def test_spectrograms_share_one_scale_bass_at_the_bottom(tmp_path):
    time = torch.arange(RATE) / RATE
    low = torch.sin(2 * torch.pi * 200 * time)
    signals = {tmp_path / "low.png": low, tmp_path / "soft.png": 0.01 * low}
    write_mels(signals, sample_rate=RATE)
    light = []
    for path in signals:
        with Image.open(path) as image:
            grey = torch.from_numpy(np.array(image.convert("L"))).float()
        light.append(grey)
    assert light[0][-10:].mean() > 2 * light[0][:40].mean()
    assert light[1].max() < light[0].max() - 20


@pytest.mark.parametrize("name", ["$x_1$", "_hidden", r"a\alpha\$b$", "$", "x"])
def test_figures_of_odd_content_can_be_drawn(name, tmp_path):
    """Names are written as they are, neither as formulas nor left out."""
    points = [Point(name, 0.5, 3.0, True), Point("other", 0.5, 3.0, True, 2.9, 3.1)]
    points += [Point(f"p{number}", 0.5, 3.0, False) for number in range(30)]
    draw = {
        "bitrate": lambda path: plot_bitrate(name, points, path, reference=3.0),
        "codes": lambda path: plot_code_usage({"y": [[0, 0]], name: [[1, 0], [3, 3]]}, path),
        "curves": lambda path: plot_curves([{"step": 1, "z": 1.0}, {"step": 2, name: 2.0}], path),
        "ratings": lambda path: plot_ratings({name: [1, 2], "w": [50]}, path),
    }
    for figure, drawn in draw.items():
        path = tmp_path / f"{figure}.svg"
        drawn(path)
        texts = [node.text for node in ElementTree.parse(path).iter() if node.tag.endswith("text")]
        assert texts.count(name) == (2 if figure == "bitrate" else 1), figure


def test_training_runs_give_curves(decoder_run, tmp_path):
    page = read_page(make(tmp_path / "out", decoder_run))
    (section,) = page.all("section", aria_labelledby="trainings")
    (figure,) = section.all("img")
    text = (tmp_path / "out" / figure.attributes["src"]).read_text()
    assert "feature_matching" in text and "optimizer step" in text


@pytest.mark.parametrize("bitrate", [0.1, 9.0], ids=["left", "right"])
def test_long_names_stay_inside_their_figures(bitrate, tmp_path):
    """A name loses its middle, and is written on the side where there is room."""
    name = "FocalCodec@50 (weights " + "/checkpoints/experiments" * 3 + ", topk 4)"
    other = Point("x", 9.1 - bitrate, 3.0, True)
    points = [Point(name, bitrate, 3.0 + 0.001 * place, True) for place in range(3)]
    plot_bitrate("title", [*points, other], tmp_path / "a.svg")
    plot_code_usage({name: [[1, 2]]}, tmp_path / "b.svg")
    plot_ratings({name: [1, 2]}, tmp_path / "c.svg")
    for path in tmp_path.glob("*.svg"):
        texts = [n for n in ElementTree.parse(path).iter() if n.tag.endswith("text")]
        found = [node for node in texts if node.text.startswith("FocalCodec@50")]
        assert found and all(
            node.text.endswith("topk 4)") and len(node.text) == 40 for node in found
        )
        if path.stem == "a":
            anchor = "start" if bitrate < 1 else "end"
            assert any(f"text-anchor: {anchor}" in node.get("style") for node in found)


def write_training(folder, *lines):
    folder.mkdir()
    (folder / "steps.jsonl").write_bytes(b"".join(lines))


STEP = b'{"step": 1, "epoch": 1, "loss": 2.5}\n'


@pytest.mark.parametrize("cut", [b'{"step": 2, "epo', STEP[:-1]], ids=["in it", "at its end"])
def test_line_that_is_being_written_is_left_out(cut, tmp_path):
    write_training(tmp_path / "run", STEP, cut)
    assert [entry["step"] for entry in read_steps(tmp_path / "run")] == [1]
    assert "Training curves" in make(tmp_path / "out", tmp_path / "run").read_text()


@pytest.mark.parametrize(
    "line",
    [b"{\n", b"\xff\n", b"[]\n", b'{"loss": 1.0}\n'],
    ids=["half", "no text", "list", "no step"],
)
def test_training_with_a_damaged_log_is_left_out_with_the_line(line, tmp_path):
    write_plain(tmp_path / "run")
    write_training(tmp_path / "training", STEP, line, STEP)
    (box,) = read_page(make(tmp_path / "out", tmp_path)).all("div", id="left-out")
    assert f"{tmp_path / 'training/steps.jsonl'}, line 2" in box.text


@pytest.mark.parametrize(
    "lines", [b"", b'{"step": 1, "epoch": 1}\n', b'{"step": 1, "note": "x"}\n']
)
def test_training_that_logged_no_term_has_no_curve(lines, tmp_path):
    write_plain(tmp_path / "run")
    write_training(tmp_path / "training", lines)
    assert "Training curves" not in make(tmp_path / "out", tmp_path).read_text()


# Errors


def fails(capsys, *words) -> str:
    """Run the command line; its one line of error."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("report: ") and error.count("\n") == 1
    return error


def test_output_in_a_run_is_refused(tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    before = files_of(run)
    assert "lies in the run folder" in fails(capsys, tmp_path, "-o", run / "report")
    unfinished = write_unfinished(tmp_path / "unfinished")
    assert "lies in the run folder" in fails(capsys, tmp_path, "-o", unfinished)
    assert files_of(run) == before


def test_output_that_is_no_report_is_refused_untouched(tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("all my work")
    assert f"there is no {MARKER}" in fails(capsys, run, "-o", tmp_path / "out")
    assert files_of(tmp_path / "out") == {"thesis.tex": b"all my work"}
    assert "is a file" in fails(capsys, run, "-o", tmp_path / "out/thesis.tex")


def test_report_is_replaced_but_not_what_others_put_there(tmp_path):
    old, new = write_plain(tmp_path / "old"), write_plain(tmp_path / "new", items=["x"])
    output = make(tmp_path / "out", old).parent
    (output / "ratings").mkdir()
    (output / "ratings/anna.csv").write_text("mine")
    make(output, new)
    clean = make(tmp_path / "clean", new).parent
    assert files_of(output) == files_of(clean) | {"ratings/anna.csv": b"mine"}
    assert not (output / "audio/1/02-0.wav").exists(), "the old one had two"


def test_listening_test_stays_until_another_is_made(tmp_path):
    run = write_plain(tmp_path / "run")
    output = make(tmp_path / "out", run, "--mushra").parent
    test = files_of(output / "listening_test")
    make(output, run)
    assert files_of(output / "listening_test") == test
    assert "listening_test/index.html" in (output / "index.html").read_text()
    make(output, run, "--mushra", "--mushra-anchor")
    other = files_of(output / "listening_test")
    assert len(other) == len(test) and other.keys() & test.keys() == {"index.html"}


def test_report_of_runs_is_not_replaced_by_one_of_ratings_alone(tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    output = make(tmp_path / "out", run).parent
    before = files_of(output)
    ratings = tmp_path / "ratings.csv"
    ratings.write_text(
        "test,participant,item,condition,kind,bitrate,rating,order,position,seconds,time\n"
        "t,anna,a,x,codec,650,80,1,1,9,2026\n"
    )
    error = fails(capsys, "--ratings", ratings, "-o", output)
    assert "a report of 1 runs" in error and "name the runs too, or another -o" in error
    assert files_of(output) == before
    make(output, run, "--ratings", ratings)
    alone = make(tmp_path / "alone", "--ratings", ratings).parent
    make(alone, "--ratings", ratings)


def test_failure_leaves_the_old_report_and_no_leftovers(tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    output = make(tmp_path / "out/report", run).parent
    before = files_of(output)
    (run / "code_counts.json").write_text('{"counts": [1, 2]}')
    assert "code_counts.json: counts must be" in fails(capsys, run, "-o", output)
    assert files_of(output) == before and list((tmp_path / "out").iterdir()) == [output]


def test_marker_that_points_outside_removes_nothing(tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    output = make(tmp_path / "out", run).parent
    (output / MARKER).write_text('{"report": ["../run/metrics.json"]}')
    assert "lies outside" in fails(capsys, run, "-o", output)
    assert (run / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"task": ', "is damaged"),
        ('{"task": "resynthesis", "codec": {}}', "codec has no name"),
        ('{"task": "resynthesis", "codec": []}', "codec must be an object, got list"),
        ('{"task": "x", "codec": {"name": "c"}, "scores": {"s": {"mean": "high"}}}', "scores.s"),
        ('{"task": "x", "codec": {"name": "c"}, "failures": {}}', "failures must be a list"),
        ('{"task": "x", "codec": {"name": "c"}, "failures": ["pesq"]}', "failures[0] must be"),
        ('{"task": "x", "codec": {"name": "c"}, "failures": [{"id": "a"}]}', "got {'id': 'a'}"),
        ('{"task": "x", "codec": {"name": "c"}, "dataset": {"hash": 7}}', "dataset.hash must be"),
        ('{"task": "x", "codec": {"name": "c"}, "dataset": {"options": []}}', "options must be"),
    ],
    ids="half|no name|list|text|failures|failure|no metric|hash|options".split("|"),
)
def test_damaged_metrics_are_named(content, message, tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    (run / "metrics.json").write_text(content)
    error = fails(capsys, run, "-o", tmp_path / "out")
    assert str(run / "metrics.json") in error and message in error


def test_utterances_without_ids_are_refused(tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    (run / "utterances.csv").write_text("utterance,hyp_stoi\na,1\n")
    assert "utterances.csv has no column id" in fails(capsys, run, "-o", tmp_path / "out")


@pytest.mark.parametrize("rest", ["", ",", ",0"], ids=["no column", "empty", "no words"])
def test_score_without_its_weight_is_named(rest, tmp_path, capsys):
    for name in ("a", "b"):
        write_plain(tmp_path / name, scores={"hyp_dwer": {"mean": 0.1}})
    column = ",hyp_dwer_words" if rest else ""
    (tmp_path / "b/utterances.csv").write_text(f"id,hyp_dwer{column}\na,0.1{rest}\n")
    error = fails(capsys, tmp_path, "-o", tmp_path / "out")
    assert f"{tmp_path / 'b/utterances.csv'}: a has hyp_dwer but no hyp_dwer_words" in error


@pytest.mark.parametrize("counts", ['["1", 2]', "[true]", "[-1]", "[0.5]", "[null]"])
def test_counts_that_are_none_are_named(counts, tmp_path, capsys):
    run = write_plain(tmp_path / "run")
    (run / "code_counts.json").write_text(f'{{"counts": [{counts}]}}')
    error = fails(capsys, run, "-o", tmp_path / "out")
    assert f"{run / 'code_counts.json'}: counts[0] must hold whole numbers" in error


def test_nothing_to_report_says_what_there_is(tmp_path, capsys):
    output = ["-o", tmp_path / "out"]
    assert "name run folders" in fails(capsys, *output)
    assert "is not a folder" in fails(capsys, tmp_path / "nowhere", *output)
    write_unfinished(tmp_path / "runs/one")
    assert "one: it has no metrics.json" in fails(capsys, tmp_path / "runs", *output)
    write_run_json(tmp_path / "runs/one", command="other")
    (tmp_path / "runs/one/metrics.json").write_text("{}")
    assert "has no task" in fails(capsys, tmp_path / "runs", *output)
    assert not (tmp_path / "out").exists()


def test_folder_given_twice_counts_once(tmp_path):
    run = write_plain(tmp_path / "run")
    assert len(find_runs([run, tmp_path, run / ".." / "run"]).evaluations) == 1


def test_summary_says_where_to_look_and_what_was_left_out(tmp_path, capsys):
    write_plain(tmp_path / "run")
    write_unfinished(tmp_path / "unfinished")
    make(tmp_path / "out", tmp_path, "--mushra")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"left out: {tmp_path / 'unfinished'}")
    assert "2 items (the runs share no more) in 2 conditions" in lines[1]
    assert lines[2].endswith(str(tmp_path / "out" / "index.html"))
