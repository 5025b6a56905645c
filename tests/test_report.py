"""Report: our numbers and the published ones as they are, audio of the same items, nothing else."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from recipes.common.bootstrap import paired_difference
from recipes.common.paper_tables import published_tables
from recipes.common.plots import write_mels
from recipes.report import main
from recipes.reporting.figures import Point, plot_bitrate, plot_code_usage, plot_curves
from recipes.reporting.folder import MARKER
from recipes.reporting.measures import MEASURES, measure_of
from recipes.reporting.runs import find_runs, labels, read_evaluation
from recipes.reporting.samples import shared_items, write_samples
from recipes.reporting.tables import score_table
from tests.evaluation_runs import (
    ITEMS,
    RATE,
    score_of,
    write_evaluation,
    write_plain,
    write_run_json,
    write_runs,
    write_unfinished,
)
from tests.pages import read_page, rows_of, shown

HOSTILE = "<script>alert('1')</script> \"&amp; {{ 7 * 7 }} $x_1$ ../../etc"


def make(output, *words) -> Path:
    """Make a report; its page."""
    assert main([*map(str, words), "-o", str(output)]) == 0
    return Path(output) / "index.html"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("evaluations"))


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """Folder of a report of two codecs on two test sets, and of more."""
    words = ["--mushra", "--mushra-set", "librispeech_test_clean"]
    return make(tmp_path_factory.mktemp("out") / "report", runs, *words).parent


@pytest.fixture(scope="module")
def page(report):
    return read_page(report / "index.html")


# Numbers


def test_our_numbers_are_those_of_the_run_with_their_intervals(page, runs):
    scores = metrics_of(runs / "clean/FocalCodec50")["scores"]
    (row,) = [
        row for row in rows_of(page, "set-1-table") if row["Codec"].text == "FocalCodec@50ours"
    ]
    for key in ("utmos", "dwer", "sim", "stoi"):
        measure, score = MEASURES[key], scores[f"hyp_{key}"]
        mean, low, high = (
            measure.text(score[name] * measure.scale) for name in ("mean", "low", "high")
        )
        cell = row[measure.title]
        assert shown(cell) == (mean, f"{low} to {high}"), key
        assert float(cell.attributes["data-value"]) == pytest.approx(score["mean"] * measure.scale)
    assert "3 utterances" in row["STOI"].text and "utterances" not in row["UTMOS"].text
    assert shown(row["Code usage (%)"])[0] == "75.0" and shown(row["Bitrate (kbit/s)"])[0] == "0.65"
    assert shown(row["RTF"])[0] == "21.4"


def test_published_numbers_stand_beside_ours_with_their_source(page):
    rows = {(row["Codec"].text, row["Source"].text): row for row in rows_of(page, "set-1-table")}
    (table,) = [t for t in published_tables() if t.title.endswith("LibriSpeech test-clean")][:1]
    assert table.source == "arXiv:2502.04465, Table 2"
    for published in table.rows:
        row = rows[published.codec, table.source]
        for key, cell in published.values.items():
            assert float(row[MEASURES[key].title].attributes["data-value"]) == cell.value
    assert ("TS3-Codec (X2)", "arXiv:2502.04465, Table 8") in rows
    assert ("FocalCodec@50", "arXiv:2502.04465, Table 8") not in rows, "Table 2 has it already"


def test_rows_come_in_the_papers_order_ours_below_the_codec_that_it_is(page):
    names = [row["Codec"].text for row in rows_of(page, "set-1-table")]
    assert names[:2] == ["Reference", "Referenceours"]
    assert names[2] == "EnCodec" and names[-1] == "Ours <b>ours"
    for codec in ("FocalCodec@50", "FocalCodec@12.5"):
        assert names.index(f"{codec}ours") == names.index(codec) + 1


def test_every_published_table_is_somewhere(page):
    text = page.text
    for table in published_tables():
        assert table.source in text
    titles = " ".join(node.text for node in page.all("summary"))
    for title in ("Discriminative downstream", "One-shot voice conversion", "Libri1Mix"):
        assert title in titles
    assert "Noisy speech resynthesis, VoiceBank" not in titles, "its rows stand beside runs"


def test_what_is_not_computed_says_so_and_why(page):
    (row,) = [r for r in rows_of(page, "set-2-table") if r["Codec"].text == "FocalCodec@12.5ours"]
    for title in ("UTMOS", "dWER (%)"):
        assert row[title].text.startswith("not computed")
        assert "data-value" not in row[title].attributes
    (link,) = row["UTMOS"].all("a")
    (note,) = page.all("li", id=link.attributes["href"][1:])
    assert note.text == "UTMOS: UTMOS needs its weights; pass --utmos_folder"
    assert row["Sim (%)"].text == "–", "nobody says that it should have been computed"


def test_paper_numbers_that_cannot_be_read_are_no_numbers(tmp_path):
    write_evaluation(tmp_path / "run", dataset="libri1mix")
    page = read_page(make(tmp_path / "out", tmp_path / "run"))
    (row,) = [r for r in rows_of(page, "set-1-table") if r["Codec"].text == "FocalCodec@12.5"]
    assert row["Sim (%)"].text.startswith("not legible")
    assert "which has “880”" in page.text


def test_streaming_shows_chunks_beside_table_9_and_whole_utterances(page):
    rows = rows_of(page, "set-3-table")
    chunks = {(row["Codec"].text, row["Chunk (samples)"].text): row for row in rows}
    assert shown(chunks["FocalCodec@25", "8000"]["dWER (%)"])[0] == "12.17"
    assert ("FocalCodec@50", "∞") in chunks
    ours = [row for row in rows if row["Codec"].text.endswith("ours")]
    assert {row["Chunk (samples)"].text for row in ours} >= {"2000", "8000", "∞"}


def test_speed_and_sizes_stand_beside_table_1(page):
    rows = rows_of(page, "codecs-table")
    (row,) = [
        r for r in rows if r["Codec"].text == "FocalCodec@50ours" and shown(r["RTF"])[0] != "–"
    ]
    assert shown(row["MACs (G/s)"])[0] == "9.1" and shown(row["RTF"])[0] == "23.4"
    assert shown(row["RTF encode"])[0] == "31" and shown(row["Parameters (M)"])[0] == "142"
    (semantic,) = [r for r in rows if r["Codec"].text == "SemantiCodec"]
    assert float(semantic["MACs (G/s)"].attributes["data-value"]) == 1599
    assert [r["Codec"].text for r in rows].count("FocalCodec@12.5ours") == 1, "of two runs"


def test_paired_differences_are_over_shared_utterances_with_their_weights(page, runs):
    files = [
        runs / "clean" / name / "utterances.csv" for name in ("FocalCodec12.5", "FocalCodec50")
    ]
    tables = [list(csv.DictReader(path.read_text().splitlines())) for path in files]
    values = [[float(row["hyp_dwer"]) for row in table] for table in tables]
    weights = [[float(row["hyp_dwer_words"]) for row in table] for table in tables]
    expected = paired_difference(*values, first_weights=weights[0], second_weights=weights[1])
    (row,) = [
        r
        for r in rows_of(page, "set-1-differences")
        if r["First − second"].text == "FocalCodec@12.5 − FocalCodec@50"
    ]
    measure = MEASURES["dwer"]
    bounds = [f"+{measure.text(100 * bound)}" for bound in (expected.low, expected.high)]
    text = f"+{measure.text(100 * expected.difference)}"
    assert shown(row["dWER (%)"]) == (text, " to ".join(bounds))
    assert row["dWER (%)"].attributes["class"] == "apart"
    assert "3 utterances" in row["STOI"].text, "one has no STOI"


def test_runs_that_share_no_utterance_have_no_difference(tmp_path):
    for name, item in (("a", "x"), ("b", "y")):
        write_evaluation(tmp_path / name, items=[item, f"{item}2"], codec=name, samples=False)
    page = read_page(make(tmp_path / "out", tmp_path))
    assert "the runs share no utterances" in page.text
    assert not list(page.all("table", id="set-1-differences"))


def test_references_inputs_and_unquantized_features_have_rows_of_their_own(tmp_path):
    score = {"mean": 2.5, "low": 2.4, "high": 2.6, "utterances": 4}
    for name, ref in (("a", 4.0), ("b", 3.0)):
        scores = {"hyp_utmos": score, "rec_utmos": score, "input_utmos": score}
        scores["ref_utmos"] = {"mean": ref}
        write_evaluation(tmp_path / name, codec=name, scores=scores, samples=False)
    table = score_table([read_evaluation(tmp_path / name) for name in "ab"])
    names = [row.name for row in table.rows if row.is_ours]
    assert names[:3] == ["Reference of a", "Reference of b", "Input"]
    assert names[3:] == ["a", "a, unquantized features", "b", "b, unquantized features"]


def test_a_score_that_is_no_number_is_none(tmp_path):
    scores = {"hyp_utmos": {"mean": None}, "hyp_sim": {"mean": float("nan")}, "hyp_stoi": 0.5}
    write_evaluation(tmp_path / "run", scores=scores)
    assert list(read_evaluation(tmp_path / "run").scores) == ["hyp_stoi"]


# Names


def test_runs_of_one_codec_are_told_apart_by_settings_or_folder(tmp_path):
    for name, topk in (("a/x", 4), ("a/y", 4), ("b/x", 8)):
        write_evaluation(tmp_path / name, settings={"topk": topk}, samples=False)
    write_evaluation(tmp_path / "c", codec="Other", samples=False)
    names = labels(find_runs([tmp_path]).evaluations)
    assert names == {
        tmp_path / "a/x": "FocalCodec@50 (topk 4, a/x)",
        tmp_path / "a/y": "FocalCodec@50 (topk 4, y)",
        tmp_path / "b/x": "FocalCodec@50 (topk 8)",
        tmp_path / "c": "Other",
    }
    page = read_page(make(tmp_path / "out", tmp_path))
    ours = [r["Codec"].text for r in rows_of(page, "set-1-table") if "ours" in r["Codec"].text]
    assert {f"{name}ours" for name in names.values()} <= set(ours)


def test_hostile_names_stay_text(tmp_path):
    items = [HOSTILE, "b"]
    for name in ("one", "two"):
        write_evaluation(
            tmp_path / name,
            seconds=0.1,
            codec=f"{name} {HOSTILE}",
            dataset=HOSTILE,
            items=items,
            settings={HOSTILE: HOSTILE},
            not_computed={HOSTILE: HOSTILE},
            failures=[{"id": HOSTILE, "metric": HOSTILE, "reason": HOSTILE}],
        )
    write_unfinished(tmp_path / "<img src=x onerror=alert(1)>")
    output = make(tmp_path / "out", tmp_path, "--mushra").parent
    page = read_page(output / "index.html")
    assert len(list(page.all("script"))) == 1 and not list(page.all("img", src="x"))
    assert page.text.count(HOSTILE) > 10
    test = read_page(output / "listening_test/index.html")
    assert len(list(test.all("script"))) == 2
    for name, content in files_of(output).items():
        assert re.fullmatch(r"[\w./-]+", name) and ".." not in name
        if name.endswith(".svg"):
            assert b"<script" not in content


# The page


def test_page_is_well_formed_with_ids_once_and_links_that_lead_somewhere(report):
    for path in (report / "index.html", report / "listening_test/index.html"):
        page = read_page(path)
        ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
        assert len(ids) == len(set(ids))
        for node in page.all():
            target = node.attributes.get("href") or node.attributes.get("src")
            if target and target.startswith("#"):
                assert target[1:] in ids
            elif target and not target.startswith("data:"):
                assert (path.parent / target).is_file(), target
            for name in ("aria-labelledby", "for"):
                assert node.attributes.get(name, ids[0]) in ids
            if node.tag == "img":
                assert "alt" in node.attributes


def test_nothing_is_asked_for_outside_the_folder(report):
    for path in (*report.rglob("*.html"), *report.rglob("*.svg")):
        text = path.read_text(encoding="utf-8")
        for attribute in re.findall(
            r"""(?:\s(?:src|href|srcset|action|xlink:href)=)["'](.*?)["']""", text
        ):
            assert not re.match(r"\w+:(?!,)|//|/", attribute), (path, attribute)
        assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text), path
        assert not re.search(r"fetch\(['\"`]|XMLHttpRequest|WebSocket|sendBeacon", text), path


def test_same_runs_give_the_same_bytes(runs, report, tmp_path):
    words = ["--mushra", "--mushra-set", "librispeech_test_clean"]
    again = make(tmp_path / "again", runs, *words).parent
    assert files_of(again) == files_of(report)


def test_every_run_tells_command_commit_seed_and_hardware(page, runs):
    details = {
        node.attributes["id"]: node.text
        for node in page.all("details")
        if node.attributes.get("id")
    }
    assert len(details) == len(find_runs([runs]).evaluations)
    for text in details.values():
        assert "python -m recipes.evaluate" in text and "c0ffee" in text and "Abacus" in text
        assert "Seed" in text and "utmos22_strong" in text
        assert "stoi: too short" in text


def test_unfinished_run_is_listed_with_the_reason(page, runs):
    (box,) = page.all("div", id="left-out")
    assert f"{runs / 'unfinished'}: it has no metrics.json: the run has not ended" in box.text


def test_nothing_is_written_into_runs(runs, tmp_path):
    before = files_of(runs)
    make(tmp_path / "out", runs)
    assert files_of(runs) == before


# Audio and pictures


def test_players_hold_the_runs_audio_of_the_same_items(page, runs, report):
    (table, *_) = page.all("table", class_="samples")
    titles = [cell.text for cell in next(table.all("thead")).all("th")]
    assert titles == ["Utterance", "Reference", "FocalCodec@12.5", "FocalCodec@50", "Ours <b>"]
    rows = list(next(table.all("tbody")).all("tr"))
    assert [next(row.all("th")).text for row in rows] == ITEMS
    for item, row in zip(ITEMS, rows, strict=True):
        files = ["clean/FocalCodec12.5/samples/{}/ref.wav"]
        files += [f"{run}/samples/{{}}/hyp.wav" for run in
                  ("clean/FocalCodec12.5", "clean/FocalCodec50", "other/ours")]  # fmt: skip
        players = [node.attributes["src"] for node in row.all("audio")]
        for player, file in zip(players, files, strict=True):
            assert (report / player).read_bytes() == (runs / file.format(item)).read_bytes()
        for picture in row.all("img"):
            with Image.open(report / picture.attributes["src"]) as image:
                assert image.size == (40, 80), "0.4 s in steps of 10 ms, 80 bands"


def test_only_shared_items_are_aligned_and_missing_cells_say_so(tmp_path):
    write_evaluation(tmp_path / "a", codec="a", items=["p", "q", "r"])
    write_evaluation(tmp_path / "b", codec="b", items=["r", "q", "s"])
    write_evaluation(tmp_path / "c", codec="c", items=["q", "r"], samples=False)
    place = tmp_path / "b/samples"
    shutil.copy(tmp_path / "a/samples/q/ref.wav", place / "q/ref.wav")
    found = find_runs([tmp_path]).evaluations
    assert shared_items(found) == ["q"], "r has another reference in b"
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


def test_figures_show_every_codec_ours_apart_and_follow_dark_mode(report):
    text = (report / "figures/1-utmos.svg").read_text()
    for name in ("BigCodec", "FocalCodec@50", "Ours &lt;b&gt;", "reference"):
        assert name in text
    assert "prefers-color-scheme:dark" in text and "#01" not in text.split("</style>")[1]
    usage = (report / "figures/1-codes.svg").read_text()
    assert "FocalCodec@12.5" in usage and "rank of the code" in usage


def test_figures_of_odd_content_can_be_drawn(tmp_path):
    points = [Point("$x_1$", 0.5, 3.0, True), Point("b" * 60, 0.5, 3.0, True, 2.9, 3.1)]
    points += [Point(f"p{number}", 0.5, 3.0, False) for number in range(30)]
    plot_bitrate("one bitrate", points, tmp_path / "a.svg", reference=3.0)
    assert "$x_1$" in (tmp_path / "a.svg").read_text()
    plot_code_usage({"none": [[0, 0]], "two books": [[1, 0], [3, 3]]}, tmp_path / "b.svg")
    plot_curves(
        [{"step": 1, "epoch": 1, "loss": 1.0}, {"step": 2, "other": 2.0}], tmp_path / "c.svg"
    )
    for name in "abc":
        assert (tmp_path / f"{name}.svg").stat().st_size > 1000


def test_training_runs_give_curves(decoder_run, tmp_path):
    page = read_page(make(tmp_path / "out", decoder_run))
    (section,) = page.all("section", aria_labelledby="trainings")
    (figure,) = section.all("img")
    text = (tmp_path / "out" / figure.attributes["src"]).read_text()
    assert "feature_matching" in text and "optimizer step" in text


def test_training_that_logged_nothing_has_no_curve(tmp_path):
    write_evaluation(tmp_path / "run")
    (tmp_path / "training").mkdir()
    (tmp_path / "training/steps.jsonl").write_text("")
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
    ],
    ids=["half", "no name", "list", "text", "failures"],
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


def test_measures_print_in_their_unit():
    assert measure_of("dwer").text(2.184) == "2.18" and measure_of("sim").arrow == "↑"
    assert measure_of("rtf").text(1599.4) == "1,599" and measure_of("rtf").text(0.62) == "0.62"
    assert measure_of("rtf").text(float("inf")) == "∞" and measure_of("pesq").text(-1) == "−1.00"
    assert measure_of("some_score").title == "some_score"


def test_means_of_the_builder_are_weighted():
    """What the tests compare with is itself a total over totals."""
    rows = [{"d": 0.0, "d_words": 1}, {"d": 1.0, "d_words": 3}, {"d": "", "d_words": 9}]
    assert score_of(rows, "d")["mean"] == 0.75
