"""Rows of an evaluation: nothing is lost by a kill, nothing counts twice."""

import json
import math

import pytest

from recipes.evaluation.rows import Row, Rows, is_done


def row(id: str, value: float = 1.0, **fields) -> Row:
    return Row(id, scores={"hyp_stoi": value}, toks=[[1, 2], [3, 4]], **fields)


def test_rows_come_back_as_they_were_written(tmp_path):
    written = [row("a", seconds={"total": 0.5}), Row("b", failures=[["audio", "is cut"]])]
    for one in written:
        Rows(tmp_path).append(one)
    read = Rows(tmp_path).read()
    assert list(read) == ["a", "b"]
    assert [tuple(read[one.id]) for one in written] == [
        ("a", {"hyp_stoi": 1.0}, [], {}, [[1, 2], [3, 4]], {"total": 0.5}, "", 0),
        ("b", {}, [["audio", "is cut"]], {}, [], {}, "", 0),
    ]


def test_rows_of_all_processes_are_read_and_the_newest_of_an_utterance_counts(tmp_path):
    Rows(tmp_path, rank=0).append(row("b", 1.0, start=1))
    Rows(tmp_path, rank=1).append(row("b", 2.0, start=2))
    Rows(tmp_path, rank=0).append(row("a", 3.0, start=2))  # its file is the one written last
    values = {id: one.scores["hyp_stoi"] for id, one in Rows(tmp_path).read().items()}
    assert values == {"a": 3.0, "b": 2.0}


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_line_that_a_kill_cut_short_is_repeated_and_hides_no_other(tmp_path, kept):
    rows = Rows(tmp_path)
    rows.append(row("a"))
    whole = rows.path.read_bytes()
    rows.append(row("b"))
    rows.path.write_bytes(whole + rows.path.read_bytes()[len(whole) :][:kept])
    assert set(rows.read()) == {"a"}
    rows.append(row("b"))
    rows.append(row("c"))
    assert set(rows.read()) == {"a", "b", "c"}


def test_no_value_that_json_cannot_hold_is_written(tmp_path):
    with pytest.raises(ValueError):
        Rows(tmp_path).append(row("a", math.nan))
    assert Rows(tmp_path).read() == {}


def test_an_utterance_is_repeated_once_what_was_missing_is_there():
    lacking = row("a", not_computed={"utmos": "no weights"})
    assert not is_done(None, missing=())
    assert is_done(row("a"), missing=())
    assert is_done(lacking, missing=("utmos", "dwer"))
    assert not is_done(lacking, missing=("dwer",))


def test_a_file_that_could_not_be_read_is_tried_again():
    assert not is_done(Row("a", failures=[["audio", "is cut"]]), missing=())
    assert is_done(row("a", failures=[["hyp_pesq", "no speech"]]), missing=())


def test_a_row_is_one_line(tmp_path):
    rows = Rows(tmp_path)
    rows.append(row("a\nb\u2028c"))
    (line,) = rows.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["id"] == "a\nb\u2028c"
