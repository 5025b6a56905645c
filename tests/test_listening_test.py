"""Listening test: what is heard, that nothing shows which codec it is, and what ratings come to."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest
import soundfile
import torch

from recipes.common.bootstrap import mean_interval
from recipes.report import main
from recipes.reporting.listening_test import ANCHOR_NAME, low_pass, write_listening_test
from recipes.reporting.ratings import COLUMNS, analyse, read_ratings, screened
from recipes.reporting.runs import find_runs
from tests.evaluation_runs import RATE, write_evaluation
from tests.pages import read_page, rows_of, shown

CODECS = ("FocalCodec@50", "Secret Codec")


def write_test(folder: Path, *, items=("p", "q", "r"), num_items=2, with_anchor=False, **about):
    """Make a listening test of two codecs; its folder and what its page knows."""
    for place, codec in enumerate(CODECS):
        write_evaluation(
            folder / "runs" / f"run{place}",
            codec=codec,
            items=list(items),
            seconds=0.1,
            quality=0.9 - 0.2 * place,
            **about,
        )
    runs = find_runs([folder / "runs"]).evaluations
    write_listening_test(runs, folder / "test", num_items=num_items, with_anchor=with_anchor)
    (node,) = read_page(folder / "test/index.html").all("script", id="content")
    return folder / "test", json.loads(node.text)


def audio_of(folder: Path, trial: dict) -> dict[str, bytes]:
    """WAV files of a trial by their opaque names."""
    text = (folder / "audio" / f"{trial['id']}.js").read_text()
    found = re.fullmatch(r'deliver\("(\w+)", (\{.*\})\);\n', text)
    assert found[1] == trial["id"]
    return {name: base64.b64decode(wav) for name, wav in json.loads(found[2]).items()}


def key_of(content: dict) -> dict[str, list]:
    return json.loads(base64.b64decode(content["key"]))


# What is heard


def test_every_codec_and_the_hidden_reference_are_heard_once_an_item(tmp_path):
    folder, content = write_test(tmp_path)
    key = key_of(content)
    assert len(content["trials"]) == 2
    for trial in content["trials"]:
        conditions = sorted(key[name][:2] for name in trial["stimuli"])
        assert conditions == sorted([["reference", "reference"], *([c, "codec"] for c in CODECS)])
        audio = audio_of(folder, trial)
        assert audio.keys() == {*trial["stimuli"], trial["reference"]}
        for name in trial["stimuli"]:
            condition, kind, bitrate = key[name]
            assert (audio[name] == audio[trial["reference"]]) == (kind == "reference")
            assert bitrate == (650 if kind == "codec" else None)
            run = {codec: f"run{place}" for place, codec in enumerate(CODECS)}.get(
                condition, "run0"
            )
            file = "ref" if kind == "reference" else "hyp"
            path = tmp_path / "runs" / run / "samples" / trial["item"] / f"{file}.wav"
            assert torch.equal(_samples(audio[name]), _samples(path.read_bytes()))


def test_all_audio_of_an_item_has_one_length_and_format(tmp_path):
    write_evaluation(tmp_path / "runs/long", codec="Long", items=["p"], seconds=0.1)
    folder = tmp_path / "runs/long/samples/p"
    soundfile.write(folder / "hyp.wav", torch.zeros(2000).numpy(), RATE, subtype="FLOAT")
    runs = find_runs([tmp_path / "runs"]).evaluations
    write_listening_test(runs, tmp_path / "test", num_items=1, with_anchor=True)
    (node,) = read_page(tmp_path / "test/index.html").all("script", id="content")
    trial = json.loads(node.text)["trials"][0]
    infos = [soundfile.info(io.BytesIO(wav)) for wav in audio_of(tmp_path / "test", trial).values()]
    assert {(info.frames, info.samplerate, info.subtype) for info in infos} == {
        (2000, RATE, "PCM_16")
    }


def test_names_of_codecs_stand_nowhere(tmp_path):
    folder, content = write_test(tmp_path, with_anchor=True)
    for path in folder.rglob("*"):
        assert not re.search("focal|secret|run[01]|hyp|anchor", path.name, re.IGNORECASE)
        if path.is_file():
            text = path.read_text(encoding="utf-8").replace(content["key"], "")
            assert not re.search(r"FocalCodec|Secret|run[01]\b|3\.5 kHz", text)
    names = [name for trial in content["trials"] for name in trial["stimuli"]]
    assert len(names) == len(set(names)) and all(re.fullmatch("[0-9a-f]{12}", n) for n in names)
    places = {
        condition: {
            trial["stimuli"].index(name)
            for trial in content["trials"]
            for name in trial["stimuli"]
            if key_of(content)[name][0] == condition
        }
        for condition in ("reference", *CODECS)
    }
    assert any(len(found) > 1 for found in places.values()), "order would tell"


def test_practice_is_an_item_that_is_not_rated_if_there_is_one(tmp_path):
    _, content = write_test(tmp_path / "a")
    rated = {trial["item"] for trial in content["trials"]}
    assert {content["training"]["item"]} | rated == {"p", "q", "r"}
    _, content = write_test(tmp_path / "b", num_items=3)
    assert content["training"]["item"] in {trial["item"] for trial in content["trials"]}
    practised = set(content["training"]["stimuli"])
    assert not practised & {name for t in content["trials"] for name in t["stimuli"]}


def test_anchor_is_the_low_passed_reference(tmp_path):
    folder, content = write_test(tmp_path, with_anchor=True)
    trial, key = content["trials"][0], key_of(content)
    (anchor,) = [name for name in trial["stimuli"] if key[name][0] == ANCHOR_NAME]
    assert key[anchor][1] == "anchor" and len(trial["stimuli"]) == 4
    audio = audio_of(folder, trial)
    expected = low_pass(_samples(audio[trial["reference"]]))
    step = 1.5 / 32768  # rounded to 16 bits
    torch.testing.assert_close(_samples(audio[anchor]), expected, atol=step, rtol=0)


@pytest.mark.parametrize(
    ("frequency", "low_db", "high_db"),
    [(100, -0.1, 0.1), (3000, -0.1, 0.1), (3500, -0.1, 0.1), (4000, -200, -50), (6000, -200, -50)],
)
def test_anchor_is_flat_to_3_5_khz_and_silent_from_4_khz(frequency, low_db, high_db):
    sig = torch.sin(2 * torch.pi * frequency * torch.arange(RATE) / RATE)
    middle = slice(2000, -2000)
    ratio = low_pass(sig)[middle].square().mean() / sig[middle].square().mean()
    assert low_db < 10 * ratio.log10() < high_db


def test_another_test_has_another_name_and_the_same_has_the_same(tmp_path):
    tests = [write_test(tmp_path / name)[1] for name in "ab"]
    assert tests[0] == tests[1]
    _, other = write_test(tmp_path / "c", with_anchor=True)
    assert other["test"] != tests[0]["test"]
    assert not {t["id"] for t in other["trials"]} & {t["id"] for t in tests[0]["trials"]}


def test_which_test_set_is_asked_where_there_are_several(tmp_path, capsys):
    for place, dataset in enumerate(("one", "two")):
        write_evaluation(tmp_path / f"runs/{place}", dataset=dataset, seconds=0.1, scores={})
    words = [str(tmp_path / "runs"), "-o", str(tmp_path / "out"), "--mushra"]
    assert main(words) == 1
    assert "name one with --mushra-set: one, two" in capsys.readouterr().err
    assert main([*words, "--mushra-set", "three"]) == 1
    assert (
        "no run with audio samples of test set three; there is: one, two" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    write_evaluation(tmp_path / "bare/0", samples=False)
    assert main([str(tmp_path / "bare"), "-o", str(tmp_path / "out"), "--mushra"]) == 1
    assert "needs runs with audio samples" in capsys.readouterr().err


def test_runs_that_share_no_item_have_no_test(tmp_path, capsys):
    for item in "pq":
        write_evaluation(tmp_path / f"runs/{item}", codec=item, items=[item], seconds=0.1)
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "out"), "--mushra"]) == 1
    assert "share no item" in capsys.readouterr().err


def test_audio_that_cannot_be_read_is_named(tmp_path, capsys):
    run = write_evaluation(tmp_path / "run", items=["p"], seconds=0.1)
    (run / "samples/p/hyp.wav").write_bytes(b"no audio")
    assert main([str(run), "-o", str(tmp_path / "out"), "--mushra"]) == 1
    assert f"{run / 'samples/p/hyp.wav'} cannot be read" in capsys.readouterr().err


# Ratings


def rating(participant="anna", item="p", condition="A", kind="codec", value=50, **fields):
    bitrate = "650" if kind == "codec" else ""
    row = {"test": "t", "participant": participant, "item": item, "condition": condition}
    row |= {"kind": kind, "bitrate": bitrate, "rating": value, "order": 1, "position": 1}
    return row | {"seconds": 9.5, "time": "2026-01-01T00:00:00Z"} | fields


def references(participant, values):
    return [
        rating(participant, f"item{place}", "reference", "reference", value)
        for place, value in enumerate(values)
    ]


def write_csv(path: Path, rows, columns=COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_mean_is_over_all_ratings_and_its_interval_over_participants(tmp_path):
    rows = [
        rating("anna", "p", value=10),
        rating("anna", "q", value=30),
        rating("bo", "p", value=90),
    ]
    found = read_ratings([write_csv(tmp_path / "r.csv", rows)])
    (condition,) = analyse(found, tmp_path).conditions
    expected = mean_interval([20, 90], weights=[2, 1])
    assert condition.mos == expected and condition.mos.mean == pytest.approx(130 / 3)
    assert (condition.median, condition.number, condition.bitrate) == (30, 3, 0.65)


@pytest.mark.parametrize(
    ("low", "excluded"), [(0, False), (3, False), (4, True)], ids=["none", "15 %", "20 %"]
)
def test_listeners_who_miss_the_hidden_reference_too_often_do_not_count(low, excluded, tmp_path):
    values = [89] * low + [90] * (20 - low)
    rows = [*references("anna", values), *references("bo", [100] * 20)]
    kept, out = screened(read_ratings([write_csv(tmp_path / "r.csv", rows)]))
    assert out == ([("anna", low / 20)] if excluded else [])
    assert {r.participant for r in kept} == ({"bo"} if excluded else {"anna", "bo"})


def test_test_without_anybody_left_has_no_result(tmp_path, capsys):
    path = write_csv(tmp_path / "r.csv", references("anna", [0, 100]))
    assert main(["--ratings", str(path), "-o", str(tmp_path / "out")]) == 1
    assert "all 1 participants rated the hidden reference below 90" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_analysis_shows_means_exclusions_and_items(tmp_path):
    rows = []
    for participant, reference in (("anna", 100), ("bo", 95), ("cy", 20)):
        for item in "pq":
            rows.append(rating(participant, item, "reference", "reference", reference))
            rows.append(rating(participant, item, "X <i>", value=80 if item == "p" else 60))
            rows.append(rating(participant, item, "Y", value=30, bitrate=1500))
    files = [
        write_csv(tmp_path / f"{name}.csv", [r for r in rows if r["participant"] == name])
        for name in ("anna", "bo", "cy")
    ]
    words = ["--ratings", *map(str, files), "-o", str(tmp_path / "out")]
    assert main(words) == 0
    page = read_page(tmp_path / "out/index.html")
    assert "2 of 3 participants count, over 2 items" in page.text
    assert "cy (100 %)" in page.text
    table = rows_of(page, "mos-table")
    assert [row["Condition"].text for row in table] == ["reference", "X <i>", "Y"]
    assert [shown(row["MOS"])[0] for row in table] == ["97.5", "70.0", "30.0"]
    assert [row["Bitrate (kbit/s)"].text for row in table] == ["–", "0.65", "1.50"]
    assert shown(table[0]["MOS"])[1] == "95.0 to 100.0"
    items = rows_of(page, "items-table")
    assert [(row["Item"].text, row["X <i>"].text) for row in items] == [
        ("p", "80.0"),
        ("q", "60.0"),
    ]
    for name, texts in {"mos": ["reference", "X &lt;i&gt;"], "ratings": ["reference", "Y"]}.items():
        svg = (tmp_path / f"out/figures/{name}.svg").read_text()
        assert all(text in svg for text in texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": "loud"}, "line 3: rating must be a number, got 'loud'"),
        ({"rating": "101"}, "line 3: rating must be between 0 and 100"),
        ({"rating": "nan"}, "line 3: rating must be a number"),
        ({"participant": ""}, "line 3: participant is empty"),
        ({"kind": "mp3"}, "line 3: kind must be reference, anchor or codec, got 'mp3'"),
        ({"bitrate": "low"}, "line 3: bitrate must be a number"),
        ({"item": "p"}, "line 3: participant anna has rated A of p before, in"),
        ({"test": "u"}, "is of test u"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_rating_is_named_by_file_and_line(change, message, tmp_path, capsys):
    path = write_csv(tmp_path / "r.csv", [rating(), rating(**{"item": "q"} | change)])
    assert main(["--ratings", str(path), "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert str(path) in error and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the columns test, participant"),
        (b"participant;item\n", "separated by commas"),
        (b"\xff\xfe\x00", "is no UTF-8 text"),
        (",".join(COLUMNS).encode() + b"\nt,anna\n", "line 2: it has not as many fields"),
        (",".join(COLUMNS).encode() + b"\n", "hold no rating"),
    ],
    ids=["empty", "semicolons", "binary", "half a line", "no rating"],
)
def test_file_that_holds_no_ratings_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    assert main(["--ratings", str(path), "-o", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_ratings_need_runs_only_for_a_listening_test(tmp_path, capsys):
    path = write_csv(tmp_path / "r.csv", [rating()])
    assert main(["--ratings", str(path), "-o", str(tmp_path / "out"), "--mushra"]) == 1
    assert "--mushra needs the run folders" in capsys.readouterr().err


def test_codec_that_is_called_reference_is_another_condition(tmp_path):
    rows = [
        rating(condition="reference", kind="reference", value=100),
        rating(condition="reference", value=20),
    ]
    found = read_ratings([write_csv(tmp_path / "r.csv", rows)])
    summary = analyse(found, tmp_path)
    means = {condition.name: condition.mos.mean for condition in summary.conditions}
    assert means == {"reference (reference)": 100, "reference (codec)": 20}
    assert summary.items == {"p": [100, 20]}
    svg = (tmp_path / "figures/ratings.svg").read_text()
    assert all(name in svg for name in means)


@pytest.mark.parametrize("name", ["a\u2028b", "a\u0085b", "a\x0bb", 'a\nb, "c"', "a\r\nb"])
def test_names_with_odd_line_ends_come_back(name, tmp_path):
    path = write_csv(tmp_path / "r.csv", [rating(participant=name), rating(item="q")])
    assert [found.participant for found in read_ratings([path])] == [name, "anna"]


def test_file_that_a_spreadsheet_saved_can_be_read(tmp_path):
    path = write_csv(tmp_path / "r.csv", [rating()])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_ratings([path])) == 1


def _samples(wav: bytes) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(io.BytesIO(wav), dtype="float32")[0])
