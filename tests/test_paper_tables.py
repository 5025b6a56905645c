"""Published tables: complete, in the sources' own numbers, and found by the runs they belong to."""

import math
import re

import pytest

from recipes.common.paper import TABLE_6
from recipes.common.paper_tables import (
    published_facts,
    published_order,
    published_tables,
    same_name,
    tables_beside,
)
from recipes.reporting.measures import MEASURES

PAPER = "001_39d139e6f136151d.txt"
CODECS = 12


def table(number, title=""):
    (found,) = [
        t for t in published_tables() if t.source.endswith(f"Table {number}") and title in t.title
    ]
    return found


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 9, 10])
def test_table_is_there_with_every_codec(number):
    blocks = [t for t in published_tables() if t.source == f"arXiv:2502.04465, Table {number}"]
    assert len(blocks) == {2: 2, 3: 2, 5: 6}.get(number, 1)
    for block in blocks:
        codecs = {row.codec for row in block.rows} - {"Reference"}
        assert len(codecs) == {8: 4, 9: 3, 10: 2}.get(number, CODECS)


def test_every_column_has_a_title_and_every_row_a_known_column():
    for block in published_tables():
        assert set(block.columns) <= set(MEASURES)
        assert all(set(row.values) <= set(block.columns) for row in block.rows)


def test_numbers_are_those_of_the_paper(shared):
    """Every row stands in the paper's text, number by number, in the order of the columns."""
    text = (shared / "seeds" / PAPER).read_text(encoding="utf-8")
    printed = [(line.split("\t")[0], _numbers(line)) for line in text.splitlines() if "\t" in line]
    rows = {}
    for block in published_tables():
        number = block.source.partition("2502.04465, Table ")[2]
        if number in ("", "8"):  # of another paper; a table of two lines in the text
            continue
        for place, row in enumerate(block.rows):
            key = (number, row.codec) if number == "5" else (number, block.title, place)
            codec, values = rows.setdefault(key, (row.codec, []))
            values += [cell.value for cell in row.values.values() if cell.value is not None]
    assert len(rows) == 12 + 4 * 13 + 13 + 13 + 8 + 2
    for key, (codec, values) in rows.items():
        values = [value for value in values if value != math.inf]
        found = [n for name, n in printed if name == codec.removesuffix(", features")]
        assert not values or values in found or values in map(_without_ms, found), key


def test_numbers_of_the_table_that_the_text_joins():
    first, *rows = table(8).rows
    assert [cell.value for cell in first.values.values()] == [4.09, 0, 100]
    ts3 = [0.85, 16, 50, 1, 131072, 16, 204, 8, 3.84, 4.51, 97.1]
    assert [cell.value for cell in rows[0].values.values()] == ts3
    ours = {row.codec: row.values for row in table(1).rows}
    resynthesized = {row.codec: row.values for row in table(2, "test-clean").rows}
    for row in rows[1:]:
        assert row.values.items() <= (ours[row.codec] | resynthesized[row.codec]).items()


def test_what_cannot_be_read_is_no_number_and_says_so():
    (damaged,) = [row for row in table(3, "Libri1Mix").rows if row.codec == "FocalCodec@12.5"]
    assert len(damaged.values) == 6
    for cell in damaged.values.values():
        assert cell.value is None and "not legible" in cell.note
    odd = {
        (row.codec, key): cell.value
        for block in published_tables()
        for row in block.rows
        for key, cell in row.values.items()
        if cell.note and cell.value is not None
    }
    assert odd == {("WavLM6-KM", "normalised_entropy"): 0.91, ("SemantiCodec", "rtf"): 91}


def test_streaming_codec_is_of_its_own_paper():
    (block,) = [t for t in published_tables() if "2502" not in t.source]
    first = {key: cell.value for key, cell in block.rows[0].values.items()}
    assert first == {"bitrate": 0.55, "chunk_size": 1280, "utmos": 3.88, "dwer": 4.63, "sim": 96.1}


def test_tables_stand_beside_runs_of_their_task_and_test_set(root):
    titles = [t.source for t in tables_beside("resynthesis", "librispeech_test_clean")]
    assert titles == ["arXiv:2502.04465, Table 2", "arXiv:2502.04465, Table 8"]
    assert not tables_beside("voice_conversion", "librispeech_test_clean")
    assert not tables_beside("resynthesis", "librispeech_test_other")
    titles = [t.source for t in tables_beside("separation", "libri2mix")]
    assert titles == ["arXiv:2502.04465, Table 5", "arXiv:2502.04465, Table 10"]
    folders = ("recipes/hparams/dataset", "hparams/dataset")
    blocks = {path.stem for folder in folders for path in (root / folder).glob("*.yaml")}
    assert {name for t in published_tables() for name in t.datasets} <= blocks


def test_codecs_are_found_in_any_spelling():
    assert same_name("Stable Codec") == same_name("stable_codec")
    assert same_name("FocalCodec@12.5") != same_name("FocalCodec@25")
    assert published_facts()[same_name("FocalCodec@12.5")]["bitrate"] == 0.16
    order = published_order()
    assert order["encodec"] < order["bigcodec"] < order["focalcodec50"] < order["focalcodec25"]
    assert len(published_facts()) == CODECS + 1 + 3  # TS3-Codec and three streaming codecs


def test_ablation_agrees_with_no_other_table():
    """Table 6 is of a smaller model: its best row must not be taken for FocalCodec@50's."""
    best = next(iter(TABLE_6.values()))
    ours = next(row for row in table(2, "test-clean").rows if row.codec == "FocalCodec@50")
    assert best.utmos != ours.values["utmos"].value


def _numbers(line: str) -> list[float]:
    """Numbers of a line, without those of names and of formulas' commands."""
    cells = line.replace("\\times", "×").replace("×", " ").split("\t")[1:]
    return [float(n) for cell in cells for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", cell)]


def _without_ms(numbers: list[float]) -> list[float]:
    """Row of Table 9 without the chunk's length in ms, which is printed after its samples."""
    return numbers[:1] + numbers[2:]
