"""The `.focal` file: cut, damaged and hostile ones."""

import os
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalcodec.bitstream import (
    ChecksumError,
    CutFileWarning,
    FocalFileError,
    Header,
    HeaderError,
    LengthError,
    MagicError,
    Reader,
    VersionError,
    Writer,
    open_focal,
    pack,
    read,
    write,
)
from tests.token_files import (
    BLOCK,
    GOLDEN,
    GOLDEN_TOKS,
    HEADER,
    HEADER_BYTES,
    UNFINISHED,
    file_with,
    header_of,
    random_toks,
    sealed,
)

# ------------------------------------------------------------------ cut files


@pytest.mark.parametrize("bits", [1, 5, 13, 32])
def test_a_cut_anywhere_keeps_the_tokens_before_it(tmp_path, bits):
    header, toks = header_of(19, bits), random_toks(19, bits)
    write(tmp_path / "whole.focal", toks, header)
    whole = (tmp_path / "whole.focal").read_bytes()
    for size in range(len(whole)):
        path = file_with(tmp_path, whole[:size])
        if size < header.num_bytes:
            with pytest.raises(HeaderError, match="cut"):
                read(path)
            continue
        count = 8 * (size - header.num_bytes) // bits
        with pytest.warns(CutFileWarning, match=f"x.focal is cut: {count} of 19 tokens") as caught:
            seen_header, seen = read(path)
        assert seen_header == header and torch.equal(seen, toks[:count]) and len(caught) == 1


def test_a_reader_warns_once_and_only_when_tokens_are_read(tmp_path):
    with open_focal(file_with(tmp_path, GOLDEN[:-1])) as reader:
        assert not reader.complete and reader.header.num_toks == 3
        with pytest.warns(CutFileWarning) as caught:
            first, second = list(reader), list(reader)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert first[0].tolist() == second[0].tolist() == GOLDEN_TOKS[:2]


def test_tokens_that_arrive_later_are_not_waited_for(tmp_path):
    path = tmp_path / "x.focal"
    with Writer(path, HEADER) as writer:
        writer.write(torch.tensor([1] * 8))
        with open_focal(path) as reader:
            writer.write(torch.tensor([2] * 8))
            with pytest.warns(CutFileWarning, match="8 tokens"):
                assert torch.cat(list(reader)).tolist() == [1] * 8


def test_iterations_do_not_disturb_each_other(tmp_path):
    path, count = tmp_path / "x.focal", 2 * BLOCK + 1
    toks = random_toks(count)
    write(path, toks, header_of(count))
    with open_focal(path) as reader:
        pairs = list(zip(reader, reader, strict=True))
    for blocks in zip(*pairs, strict=True):
        assert torch.equal(torch.cat(blocks), toks)


def test_a_file_emptied_while_it_is_opened_has_no_tokens(tmp_path):
    path = file_with(tmp_path, GOLDEN)
    with open(path, "rb") as file:
        file.peek()
        os.truncate(path, 0)
        reader = Reader(file)
        with pytest.warns(CutFileWarning, match="is cut: 0 of 3 tokens"):
            assert not list(reader)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path, count = tmp_path / "x.focal", 3 * BLOCK
    write(path, random_toks(count), header_of(count))
    with open_focal(path) as reader:
        blocks = iter(reader)
        next(blocks)
        os.truncate(path, 2000)
        with pytest.raises(LengthError, match="x.focal became shorter"):
            list(blocks)


# ------------------------------------------------------------------ damaged files


def changed(position: int, value: int) -> bytes:
    return GOLDEN[:position] + bytes([value]) + GOLDEN[position + 1 :]


@pytest.mark.parametrize(
    "content, error, message",
    [
        (b"RIFF" + GOLDEN[4:], MagicError, "not a .focal file"),
        (GOLDEN.replace(b"\r\n", b"\n"), MagicError, "transferred as text"),
        (b"\x09" + GOLDEN[1:], MagicError, "not a .focal file"),
        (changed(8, 2), VersionError, "version 2 .* only 1 is known"),
        (GOLDEN[:8] + b"\0", VersionError, "version 0"),
        (b"", HeaderError, "after 0 bytes"),
        (changed(9, 12), HeaderError, "checksum"),
        (changed(11, 1), HeaderError, "checksum"),
        (changed(52, ord("T")), HeaderError, "checksum"),
        (changed(HEADER_BYTES - 1, 0), HeaderError, "checksum"),
        (sealed(bits=0), HeaderError, "bits must be"),
        (sealed(bits=33), HeaderError, "bits must be"),
        (sealed(sample_rate=0), HeaderError, "sample_rate must be"),
        (sealed(num_samples=0), HeaderError, "num_samples must be"),
        (sealed(codec_rate=0), HeaderError, "codec_rate must be"),
        (sealed(samples_per_tok=0), HeaderError, "samples_per_tok must be"),
        (sealed(model_id=b"\xff"), HeaderError, "not UTF-8"),
        (sealed(model_id=b"x" * 256), HeaderError, "checksum"),
        (changed(HEADER_BYTES, 0xD4), ChecksumError, "a2289619 when they were written"),
        (changed(len(GOLDEN) - 1, 0xFF), ChecksumError, "damaged"),  # in the padding
        (GOLDEN + b"\0", LengthError, "1 bytes after its 3 tokens"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else getattr(value, "__name__", value),
)
def test_every_kind_of_damage_has_its_error(tmp_path, content, error, message):
    with pytest.raises(error, match=f"x.focal.*{message}") as caught:
        read(file_with(tmp_path, content))
    assert type(caught.value) is error and isinstance(caught.value, FocalFileError)


def test_damaged_tokens_never_come_as_the_end_of_a_file(tmp_path):
    count = BLOCK + 10
    write(tmp_path / "whole.focal", random_toks(count), header_of(count))
    content = bytearray((tmp_path / "whole.focal").read_bytes())
    content[HEADER_BYTES + 5] ^= 1
    with open_focal(file_with(tmp_path, content)) as reader:
        assert reader.complete
        blocks = iter(reader)
        assert next(blocks).shape == (BLOCK,)
        with pytest.raises(ChecksumError, match="x.focal is damaged"):
            next(blocks)


def read_or_refuse(path: Path) -> tuple[Header | None, torch.Tensor | None, bool]:
    """Header and tokens, None where the file is refused; whether they came without a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            header, toks = read(path)
        except FocalFileError as error:
            assert str(path) in str(error)
            return None, None, False
    assert all(w.category is CutFileWarning for w in caught) and len(caught) <= 1
    return header, toks, not caught


MUTATION = st.tuples(
    st.sampled_from(["flip", "delete", "insert", "truncate"]),
    st.integers(0, len(GOLDEN)),
    st.integers(1, 255),
)


@given(st.lists(MUTATION, min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_no_mutation_passes_for_the_original(fuzz_folder, mutations):
    content = GOLDEN
    for kind, position, value in mutations:
        before, after = content[:position], content[position:]
        if kind == "flip" and after:
            content = before + bytes([after[0] ^ value]) + after[1:]
        elif kind == "delete":
            content = before + after[1:]
        elif kind == "insert":
            content = before + bytes([value]) + after
        elif kind == "truncate":
            content = before
    header, toks, complete = read_or_refuse(file_with(fuzz_folder, content))
    if header is not None:
        assert header == replace(HEADER, num_samples=900)
        assert len(toks) == (3 if complete else 8 * (len(content) - HEADER_BYTES) // 13)
    if complete:
        assert content == GOLDEN and toks.tolist() == GOLDEN_TOKS


@given(st.binary(max_size=120), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_random_bytes_are_refused(fuzz_folder, content, known):
    header, _, _ = read_or_refuse(file_with(fuzz_folder, GOLDEN[:known] + content))
    assert header is None


RATES = st.sampled_from([8000, 16000]) | st.integers(0, 2**32 - 1)


@given(
    st.fixed_dictionaries(
        {
            "bits": st.integers(0, 40),
            "sample_rate": RATES,
            "num_samples": st.integers(0, 2000) | st.integers(0, UNFINISHED),
            "codec_rate": RATES,
            "samples_per_tok": st.integers(0, 999) | st.integers(0, 2**32 - 1),
            "model_id": st.binary(max_size=3) | st.text(max_size=260).map(str.encode),
        }
    ),
    st.binary(max_size=40),
)
@settings(deadline=None, max_examples=300)
def test_a_header_can_claim_anything(fuzz_folder, fields, payload):
    content = sealed(**fields, crc=zlib.crc32(payload)) + payload
    header, toks, complete = read_or_refuse(file_with(fuzz_folder, content))
    if header is None:
        return
    for name in ("bits", "sample_rate", "codec_rate", "samples_per_tok"):
        assert getattr(header, name) == fields[name] > 0
    assert header.num_samples == (fields["num_samples"] % UNFINISHED or None)
    assert header.model_id.encode() == fields["model_id"]
    assert complete == (header.num_toks == len(toks))
    assert payload.startswith(pack(toks, bits=header.bits)[: len(toks) * header.bits // 8])
