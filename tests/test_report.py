"""Report: our numbers and the published ones as they are, audio of the same items, nothing else."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from recipes.common.bootstrap import paired_difference
from recipes.common.paper_tables import published_tables
from recipes.report import main
from recipes.reporting.differences import difference_table
from recipes.reporting.groups import grouped, set_titles
from recipes.reporting.measures import MEASURES, measure_of
from recipes.reporting.runs import find_runs, labels, read_evaluation
from recipes.reporting.tables import score_table
from tests.evaluation_runs import (
    ITEMS,
    score_of,
    write_evaluation,
    write_plain,
    write_runs,
    write_unfinished,
)
from tests.pages import files_of, make, read_page, rows_of, shown

HOSTILE = "<script>alert('1')</script> \"&amp; {{ 7 * 7 }} $x_1$ ../../etc"


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
    for title in ("Speech recognition on tokens", "One-shot voice conversion", "Libri1Mix"):
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


def test_reason_stands_in_every_column_of_a_metric(tmp_path):
    names = [f"hyp_dnsmos_{part}" for part in ("ovrl", "sig", "bak", "p808")]
    scores = {name: {"mean": 3.0} for name in (*names, "hyp_dwer", "hyp_dcer")}
    write_evaluation(tmp_path / "a", codec="a", scores=scores, samples=False)
    reasons = {"dnsmos": "no package", "dwer": "no weights"}
    write_evaluation(tmp_path / "b", codec="b", scores={}, not_computed=reasons, samples=False)
    runs = [read_evaluation(tmp_path / name) for name in "ab"]
    table = score_table(runs, title="set")
    (row,) = [row for row in table.rows if row.codec == "b"]
    shown_keys = {measure.key for measure in table.columns}
    for key in (name.removeprefix("hyp_") for name in scores):
        assert key in shown_keys and row.cells[key].text == "not computed", key
    assert table.notes == ["DNSMOS: no package", "dWER (%): no weights"]
    alone = {measure.key for measure in score_table(runs[1:], title="set").columns}
    assert "dnsmos_ovrl" in alone and "dnsmos_sig" not in alone, "nobody has it"


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
    share = row["dWER: first larger (%)"].attributes["data-value"]
    assert float(share) == pytest.approx(100 * expected.share_positive)
    assert "3 utterances" in row["STOI"].text, "one has no STOI"


def test_runs_that_share_no_utterance_have_no_difference(tmp_path):
    for name, item in (("a", "x"), ("b", "y")):
        write_evaluation(tmp_path / name, items=[item, f"{item}2"], codec=name, samples=False)
    page = read_page(make(tmp_path / "out", tmp_path))
    assert "the runs have no score of the same utterances" in page.text
    assert not list(page.all("table", id="set-1-differences"))


def test_difference_needs_a_score_that_both_runs_computed(tmp_path):
    """A score of some utterances alone is in the CSV, but it is no result."""
    for name in "ab":
        write_evaluation(tmp_path / name, codec=name, samples=False)
    run = read_evaluation(tmp_path / "a")
    columns = difference_table([run, read_evaluation(tmp_path / "b")]).columns
    assert [measure.key for measure in columns[::2]] == ["utmos", "dwer", "sim", "stoi"]
    content = metrics_of(tmp_path / "b")
    del content["scores"]["hyp_utmos"]
    (tmp_path / "b/metrics.json").write_text(json.dumps(content))
    columns = difference_table([run, read_evaluation(tmp_path / "b")]).columns
    assert [measure.key for measure in columns[::2]] == ["dwer", "sim", "stoi"]


def test_references_inputs_and_unquantized_features_have_rows_of_their_own(tmp_path):
    score = {"mean": 2.5, "low": 2.4, "high": 2.6, "utterances": 4}
    for name, ref in (("a", 4.0), ("b", 3.0)):
        scores = {"hyp_utmos": score, "rec_utmos": score, "input_utmos": score}
        scores["ref_utmos"] = {"mean": ref}
        write_evaluation(tmp_path / name, codec=name, scores=scores, samples=False)
    table = score_table([read_evaluation(tmp_path / name) for name in "ab"], title="set")
    names = [row.name for row in table.rows if row.is_ours]
    assert names[:3] == ["Reference of a", "Reference of b", "Input"]
    assert names[3:] == ["a", "a, unquantized features", "b", "b, unquantized features"]


def test_a_score_that_is_no_number_is_none(tmp_path):
    scores = {"hyp_utmos": {"mean": None}, "hyp_sim": {"mean": float("nan")}, "hyp_stoi": 0.5}
    write_evaluation(tmp_path / "run", scores=scores)
    assert list(read_evaluation(tmp_path / "run").scores) == ["hyp_stoi"]


# Test sets


def noisy(folder, codec, level, hash, **data):
    about = {"options": {"snrs_db": [level], "noise_folder": "/n"}, "seed": 0, "hash": hash}
    return write_evaluation(folder, codec=codec, dataset="noisy", data=about | data)


def test_test_sets_of_one_name_are_kept_apart_and_told_apart(tmp_path):
    """The same utterances with other noise are another test set."""
    for level, hash in ((0, "aa"), (10, "bb")):
        for codec in ("x", "y"):
            noisy(tmp_path / f"runs/{level}/{codec}", codec, level, hash)
    page = read_page(make(tmp_path / "out", tmp_path / "runs"))
    titles = [f"Speech resynthesis: noisy (snrs_db [{level}])" for level in (0, 10)]
    assert [node.text for node in page.all("h2")][:2] == titles
    for number in (1, 2):
        names = [row["Codec"].text for row in rows_of(page, f"set-{number}-table")]
        assert [name for name in names if name in ("xours", "yours")] == ["xours", "yours"]
        (pair,) = rows_of(page, f"set-{number}-differences")
        assert pair["First − second"].text == "x − y"
    columns = [[cell.text for cell in next(t.all("thead")).all("th")]
               for t in page.all("table", class_="samples")]  # fmt: skip
    assert columns == [["Utterance", "Reference", "x", "y"]] * 2
    assert not list(page.all("table", id="set-3-table"))


@pytest.mark.parametrize(
    ("data", "title"), [({"seed": 1}, "seed 0"), ({"options": {"snrs_db": [5]}}, "snrs_db [0]")]
)
def test_title_says_what_differs(data, title, tmp_path):
    other = {"options": {"snrs_db": [0]}} | data
    runs = [noisy(tmp_path / "a", "x", 0, "aa", options={"snrs_db": [0]})]
    runs.append(noisy(tmp_path / "b", "x", 0, "bb", **other))
    titles = set_titles(grouped([read_evaluation(run) for run in runs]))
    assert next(iter(titles.values())) == f"noisy ({title})" and len(titles) == 2


def test_test_sets_that_differ_in_their_files_alone_go_by_the_folder(tmp_path):
    runs = [noisy(tmp_path / name, "x", 0, hash) for name, hash in (("a", "aa"), ("b", "bb"))]
    titles = set_titles(grouped([read_evaluation(run) for run in runs]))
    assert list(titles.values()) == ["noisy (a)", "noisy (b)"]


def test_streaming_stands_beside_whole_utterances_of_the_same_manifest_alone(tmp_path):
    for name, hash in (("same", "aa"), ("other", "bb")):
        write_plain(tmp_path / name, settings={"from": name}, data={"hash": hash})
    write_plain(
        tmp_path / "s", task="streaming", settings={"chunk_size": 8000}, data={"hash": "aa"}
    )
    page = read_page(make(tmp_path / "out", tmp_path))
    names = [row["Codec"].text for row in rows_of(page, "set-3-table")]
    ours = [name for name in names if name.endswith("ours")]
    assert len(ours) == 2 and any("from same" in name for name in ours)


def test_listening_test_of_test_sets_of_one_name_goes_by_the_title(tmp_path, capsys):
    for level, hash in ((0, "aa"), (10, "bb")):
        noisy(tmp_path / f"runs/{level}", "x", level, hash)
    words = [str(tmp_path / "runs"), "-o", str(tmp_path / "out"), "--mushra", "--mushra-set"]
    assert main([*words, "noisy"]) == 1
    assert "noisy (snrs_db [0]), noisy (snrs_db [10])" in capsys.readouterr().err
    assert main([*words, "noisy (snrs_db [10])"]) == 0


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


def test_codecs_of_one_name_and_other_weights_have_rows_of_their_own(tmp_path):
    for place, weights in enumerate(("one", "one", "two")):
        write_plain(tmp_path / f"{place}", settings={"place": place})
        content = metrics_of(tmp_path / f"{place}")
        content["codec"]["model_id"] = weights
        (tmp_path / f"{place}/metrics.json").write_text(json.dumps(content))
    rows = rows_of(read_page(make(tmp_path / "out", tmp_path)), "codecs-table")
    assert [row["Codec"].text for row in rows if row["Codec"].text.endswith("ours")] == [
        "FocalCodec@50 (weights one)ours",
        "FocalCodec@50 (weights two)ours",
    ]


def test_run_in_the_working_folder_has_a_name(tmp_path, monkeypatch):
    run = write_plain(tmp_path / "my run")
    for folder, word in ((run, "."), (run / "samples", "..")):
        monkeypatch.chdir(folder)
        page = read_page(make(tmp_path / "out", word))
        sources = [row["Source"].text for row in rows_of(page, "set-1-table")]
        assert "run my run" in sources and f"{run}" in page.text


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


def test_figures_show_every_codec_ours_apart_and_follow_dark_mode(report):
    text = (report / "figures/1-utmos.svg").read_text()
    for name in ("BigCodec", "FocalCodec@50", "Ours &lt;b&gt;", "reference"):
        assert name in text
    assert "prefers-color-scheme:dark" in text and "#01" not in text.split("</style>")[1]
    usage = (report / "figures/1-codes.svg").read_text()
    assert "FocalCodec@12.5" in usage and "rank of the code" in usage


def test_measures_print_in_their_unit():
    assert measure_of("dwer").text(2.184) == "2.18" and measure_of("sim").arrow == "↑"
    assert measure_of("rtf").text(1599.4) == "1,599" and measure_of("rtf").text(0.62) == "0.62"
    assert measure_of("rtf").text(float("inf")) == "∞" and measure_of("pesq").text(-1) == "−1.00"
    assert measure_of("some_score").title == "some_score"


def test_means_of_the_builder_are_weighted():
    """What the tests compare with is itself a total over totals."""
    rows = [{"d": 0.0, "d_words": 1}, {"d": 1.0, "d_words": 3}, {"d": "", "d_words": 9}]
    assert score_of(rows, "d")["mean"] == 0.75
