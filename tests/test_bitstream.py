"""The `.focal` file: packing, files that grow, and cut, damaged and hostile ones."""

import os
import struct
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from focalcodec.bitstream import (
    ChecksumError,
    CutFileWarning,
    FocalFileError,
    Header,
    HeaderError,
    LengthError,
    MagicError,
    ModelError,
    Reader,
    VersionError,
    Writer,
    check_model,
    open_focal,
    pack,
    read,
    unpack,
    write,
)

BLOCK = 2**14  # tokens that the module handles at a time
HEADER = Header(
    bits=13,
    sample_rate=16000,
    codec_rate=16000,
    samples_per_tok=320,
    fingerprint="00112233445566778899aabbccddeeff",
    model_id="tiny/é",
)
# 900 samples at 16 kHz in three tokens of 13 bits. This is the format: it never changes.
GOLDEN_TOKS = [0x1ABC, 0x0005, 0x1FFF]
GOLDEN = bytes.fromhex(
    "89 46 4f 43 41 4c 0d 0a"  # magic
    "01 0d 07 00"  # version, bits, bytes of the model id
    "80 3e 00 00  84 03 00 00 00 00 00 00"  # sample_rate, num_samples
    "80 3e 00 00  40 01 00 00"  # codec_rate, samples_per_tok
    "19 96 28 a2"  # payload crc
    "00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff"  # fingerprint
    "74 69 6e 79 2f c3 a9"  # model id
    "78 18 6f 53"  # header crc
    "d5 e0 01 7f fe"  # 1101010111100 0000000000101 1111111111111 and a zero
)
HEADER_BYTES = len(GOLDEN) - 5
UNFINISHED = 2**64 - 1


def random_toks(count: int, bits: int = 13) -> torch.Tensor:
    return torch.randint(2**bits, (count,))


def header_of(count: int, bits: int = 13) -> Header:
    return replace(HEADER, bits=bits, num_samples=320 * count)


def bits_of(toks: torch.Tensor, bits: int) -> bytes:
    """Payload by way of text, the oracle."""
    text = "".join(f"{tok:0{bits}b}" for tok in toks.tolist())
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def sealed(
    *,
    bits: int = 13,
    sample_rate: int = 16000,
    num_samples: int = 900,
    codec_rate: int = 16000,
    samples_per_tok: int = 320,
    crc: int = 0,
    model_id: bytes = b"",
) -> bytes:
    """Header with any values and the right checksum, made without the module."""
    fields = struct.pack("<8sBBH", b"\x89FOCAL\r\n", 1, bits, len(model_id))
    fields += struct.pack("<IQIII", sample_rate, num_samples, codec_rate, samples_per_tok, crc)
    fields += bytes(16) + model_id
    return fields + struct.pack("<I", zlib.crc32(fields))


def file_with(folder: Path, content: bytes) -> Path:
    path = folder / "x.focal"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For hypothesis, whose examples share one folder."""
    return tmp_path_factory.mktemp("fuzz")


# ------------------------------------------------------------------ tokens and bytes


@pytest.mark.parametrize("bits", range(1, 33))
def test_every_width_packs_most_significant_bit_first_and_back(bits):
    toks = torch.cat([torch.tensor([0, 2**bits - 1, 1]), random_toks(98, bits)])
    payload = pack(toks, bits=bits)
    assert payload == bits_of(toks, bits)
    assert torch.equal(unpack(payload, bits=bits, count=101), toks)


@given(st.integers(1, 32), st.data())
@settings(deadline=None, max_examples=100)
def test_any_tokens_survive_packing(bits, data):
    toks = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1))), dtype=torch.int64)
    payload = pack(toks, bits=bits)
    assert len(payload) == ceil(len(toks) * bits / 8)
    assert torch.equal(unpack(payload, bits=bits, count=len(toks)), toks)


@pytest.mark.parametrize("bits", [1, 7, 13, 32])
@pytest.mark.parametrize("count", [BLOCK, 2 * BLOCK + 3])
def test_blocks_leave_no_trace(bits, count):
    toks = random_toks(count, bits)
    payload = pack(toks, bits=bits)
    assert payload == bits_of(toks, bits)
    assert torch.equal(unpack(payload, bits=bits, count=count), toks)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint64]
)
def test_any_integer_dtype_packs_alike(dtype):
    toks = random_toks(20, 7)
    assert pack(toks.to(dtype), bits=7) == pack(toks, bits=7)


def test_without_a_count_whole_tokens_come_back():
    toks = random_toks(5)
    assert torch.equal(unpack(pack(toks, bits=13)[:-1], bits=13), toks[:4])
    assert unpack(b"", bits=13).shape == unpack(b"\xff", bits=13).shape == (0,)


@pytest.mark.parametrize(
    "toks, message",
    [
        (torch.tensor([0, 8192]), r"in \[0, 8192\) with 13 bits, got 0 to 8192"),
        (torch.tensor([-1, 5]), "got -1 to 5"),
        (torch.tensor([2**63], dtype=torch.uint64), r"in \[0, 8192\)"),
        (torch.tensor([1.0]), "must be integers, got torch.float32"),
        (torch.tensor([True]), "must be integers, got torch.bool"),
        (torch.zeros(2, 3, dtype=torch.int64), r"must be \(L,\), got shape \(2, 3\)"),
        (torch.tensor(3), r"must be \(L,\), got shape \(\)"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(toks, message):
    with pytest.raises(ValueError, match=message):
        pack(toks, bits=13)


@pytest.mark.parametrize("bits", [0, 33, -1, 13.0, True])
def test_widths_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 32"):
        pack(torch.tensor([0]), bits=bits)
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 32"):
        unpack(b"\0", bits=bits)


@pytest.mark.parametrize("count", [-1, 0, 2, 4])
def test_a_payload_of_another_size_is_refused(count):
    with pytest.raises(LengthError, match="got 5"):
        unpack(bytes(5), bits=13, count=count)


# ------------------------------------------------------------------ header


@pytest.mark.parametrize(
    "field, value",
    [
        ("bits", 0),
        ("bits", 33),
        ("bits", True),
        ("sample_rate", 0),
        ("sample_rate", 2**32),
        ("sample_rate", None),
        ("num_samples", 0),
        ("num_samples", UNFINISHED),
        ("num_samples", 1.5),
        ("codec_rate", 0),
        ("samples_per_tok", 0),
        ("fingerprint", "00"),
        ("fingerprint", "0" * 31 + "G"),
        ("fingerprint", "A" * 32),
        ("model_id", "é" * 128),
        ("model_id", "\ud800"),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(HeaderError, match=field):
        replace(HEADER, **{field: value})


@given(
    st.integers(1, 2**63), st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1), st.integers(1, 999)
)
@settings(deadline=None, max_examples=100)
def test_lengths_are_exact(num_samples, sample_rate, codec_rate, samples_per_tok):
    header = replace(
        HEADER,
        num_samples=num_samples,
        sample_rate=sample_rate,
        codec_rate=codec_rate,
        samples_per_tok=samples_per_tok,
    )
    exact = Fraction(num_samples * codec_rate, sample_rate)
    assert header.num_toks == ceil(Fraction(ceil(exact), samples_per_tok))
    nearest = header.num_samples_at(codec_rate)
    assert nearest == 1 or -Fraction(1, 2) < nearest - exact <= Fraction(1, 2)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000])
def test_tokens_are_counted_in_samples_that_resampling_gives(rate):
    for num_samples in (1, 2, 7, 440, 441, 442, 1000, 12345):
        header = replace(HEADER, num_samples=num_samples, sample_rate=rate, samples_per_tok=1)
        sig = torchaudio.functional.resample(torch.zeros(num_samples), rate, 16000)
        assert header.num_toks == sig.shape[0]


@pytest.mark.parametrize(
    "num_samples, rate, expected",
    [(3, 8000, 2), (5, 8000, 3), (1, 4000, 1), (1000, 16000, 1000), (1000, 24000, 1500)],
)
def test_decoded_samples_are_rounded_half_up(num_samples, rate, expected):
    assert replace(HEADER, num_samples=num_samples).num_samples_at(rate) == expected


def test_what_depends_on_the_length_is_unknown_until_the_end():
    assert HEADER.num_toks is HEADER.duration is HEADER.num_samples_at(16000) is None
    assert replace(HEADER, num_samples=8000).duration == 0.5


def test_an_hour_takes_exactly_650_bits_per_second(tmp_path):
    header = replace(HEADER, num_samples=3600 * 16000)
    path = tmp_path / "hour.focal"
    write(path, random_toks(header.num_toks), header)
    payload = path.stat().st_size - header.num_bytes
    assert header.duration == 3600 and header.num_toks == 180_000
    assert header.bitrate == 650.0 == 8 * payload / header.duration


# ------------------------------------------------------------------ writing


def test_the_format_is_byte_for_byte_the_golden_file(tmp_path):
    header, toks = replace(HEADER, num_samples=900), torch.tensor(GOLDEN_TOKS)
    write(tmp_path / "x.focal", toks, header)
    assert (tmp_path / "x.focal").read_bytes() == GOLDEN
    read_header, read_toks = read(file_with(tmp_path, GOLDEN))
    assert read_header == header and torch.equal(read_toks, toks)
    assert HEADER_BYTES == header.num_bytes


@pytest.mark.parametrize("bits", [1, 5, 13, 32])
@pytest.mark.parametrize("count", [1, 100, BLOCK, BLOCK + 1])
def test_files_give_back_header_and_tokens(tmp_path, bits, count):
    header, toks = header_of(count, bits), random_toks(count, bits)
    path = tmp_path / "x.focal"
    write(path, toks, header)
    assert path.stat().st_size == header.num_bytes + ceil(count * bits / 8)
    with open_focal(path) as reader:
        assert reader.header == header and reader.complete and reader.num_toks == count
        assert torch.equal(torch.cat(list(reader)), toks)


@given(st.integers(1, 32), st.lists(st.integers(0, 9), max_size=6))
@settings(deadline=None, max_examples=40)
def test_a_growing_file_is_readable_and_ends_as_if_written_at_once(folder, bits, sizes):
    sizes = [*sizes, 1]
    toks, header = random_toks(sum(sizes), bits), header_of(sum(sizes), bits)
    path, count = folder / "growing.focal", 0
    with Writer(path, replace(header, num_samples=None), overwrite=True) as writer:
        for part in toks.split(sizes):
            writer.write(part)
            count += len(part)
            there = count * bits // 8 * 8 // bits
            with pytest.warns(CutFileWarning, match=f"never finished: {there} tokens are there"):
                seen_header, seen = read(path)
            assert torch.equal(seen, toks[:there]) and seen_header.num_toks is None
        writer.finish(header.num_samples)
    write(folder / "whole.focal", toks, header, overwrite=True)
    assert path.read_bytes() == (folder / "whole.focal").read_bytes()


def test_the_header_is_finished_only_once_the_payload_is_durable(tmp_path, monkeypatch):
    path, seen, fsync = tmp_path / "x.focal", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), seen.append(path.read_bytes())))
    write(path, torch.tensor(GOLDEN_TOKS), replace(HEADER, num_samples=900))
    first, last = seen
    assert first[HEADER_BYTES:] == GOLDEN[HEADER_BYTES:] and last == GOLDEN
    with pytest.warns(CutFileWarning, match="never finished: 3 tokens"):
        assert read(file_with(tmp_path, first))[1].tolist() == GOLDEN_TOKS


def test_an_exception_leaves_a_readable_file(tmp_path):
    path, toks = tmp_path / "x.focal", random_toks(8)
    with pytest.raises(KeyboardInterrupt), Writer(path, HEADER) as writer:
        writer.write(toks)
        raise KeyboardInterrupt
    with open_focal(path) as reader:
        assert not reader.complete and reader.num_toks == 8
    with pytest.raises(ValueError, match="closed"):
        writer.write(toks)


@pytest.mark.parametrize("num_samples", [640, 961])
def test_a_length_that_does_not_fit_the_tokens_is_refused(tmp_path, num_samples):
    path = tmp_path / "x.focal"
    with Writer(path, HEADER) as writer:
        writer.write(torch.tensor(GOLDEN_TOKS))
        with pytest.raises(LengthError, match=f"{num_samples} at 16000 Hz makes . tokens.* are 3"):
            writer.finish(num_samples)
        with pytest.raises(HeaderError, match="num_samples"):
            writer.finish(0)
        with pytest.warns(CutFileWarning):
            assert read(path)[1].tolist() == GOLDEN_TOKS[:2]  # 39 bits, 4 bytes so far
        writer.finish(900)
    assert path.read_bytes() == GOLDEN


def test_refused_tokens_leave_the_file_as_it_is(tmp_path):
    path = tmp_path / "x.focal"
    with Writer(path, HEADER) as writer:
        writer.write(torch.tensor(GOLDEN_TOKS[:2]))
        with pytest.raises(ValueError, match="toks must be in"):
            writer.write(torch.tensor([1, 8192]))
        writer.write(torch.tensor(GOLDEN_TOKS[2:]))
        assert writer.num_toks == 3 and writer.header == HEADER
        writer.finish(900)
    assert writer.header == replace(HEADER, num_samples=900)
    assert path.read_bytes() == GOLDEN


def test_a_file_that_is_there_is_only_replaced_on_demand(tmp_path):
    path = file_with(tmp_path, bytes(1000))
    header, toks = replace(HEADER, num_samples=900), torch.tensor(GOLDEN_TOKS)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(path, toks, header)
    with pytest.raises(LengthError):
        write(path, toks[:2], header, overwrite=True)
    with pytest.raises(LengthError):
        write(path, toks, HEADER, overwrite=True)
    with pytest.raises(ValueError, match="toks must be"):
        write(path, toks + 8192, header, overwrite=True)
    assert path.read_bytes() == bytes(1000)
    write(path, toks, header, overwrite=True)
    assert path.read_bytes() == GOLDEN


def test_a_writer_starts_without_a_length(tmp_path):
    with pytest.raises(ValueError, match=r"must be None until finish\(\), got 900"):
        Writer(tmp_path / "x.focal", replace(HEADER, num_samples=900))
    assert not list(tmp_path.iterdir())


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
def test_no_mutation_passes_for_the_original(folder, mutations):
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
    header, toks, complete = read_or_refuse(file_with(folder, content))
    if header is not None:
        assert header == replace(HEADER, num_samples=900)
        assert len(toks) == (3 if complete else 8 * (len(content) - HEADER_BYTES) // 13)
    if complete:
        assert content == GOLDEN and toks.tolist() == GOLDEN_TOKS


@given(st.binary(max_size=120), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_random_bytes_are_refused(folder, content, known):
    header, _, _ = read_or_refuse(file_with(folder, GOLDEN[:known] + content))
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
def test_a_header_can_claim_anything(folder, fields, payload):
    content = sealed(**fields, crc=zlib.crc32(payload)) + payload
    header, toks, complete = read_or_refuse(file_with(folder, content))
    if header is None:
        return
    for name in ("bits", "sample_rate", "codec_rate", "samples_per_tok"):
        assert getattr(header, name) == fields[name] > 0
    assert header.num_samples == (fields["num_samples"] % UNFINISHED or None)
    assert header.model_id.encode() == fields["model_id"]
    assert complete == (header.num_toks == len(toks))
    assert payload.startswith(pack(toks, bits=header.bits)[: len(toks) * header.bits // 8])


# ------------------------------------------------------------------ memory


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def test_no_tensor_is_larger_than_the_bits_of_a_block(tmp_path):
    path, count = tmp_path / "x.focal", 10 * BLOCK
    toks = random_toks(count)
    with LargestTensor() as written:
        write(path, toks, header_of(count))
    with LargestTensor() as seen, open_focal(path) as reader:
        assert sum(len(block) for block in reader) == count
    with LargestTensor() as unpacked:
        unpack(path.read_bytes()[HEADER_BYTES:], bits=13, count=count)
    assert written.elements == seen.elements == unpacked.elements == 13 * BLOCK > count


def test_reading_takes_the_memory_of_a_block(tmp_path):
    path, count = tmp_path / "x.focal", 2**20
    write(path, random_toks(count), header_of(count))  # a payload of 1.7 MB
    with open_focal(path) as reader:
        tracemalloc.start()
        try:
            seen = sum(len(block) for block in reader)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert seen == count
    assert peak < 500_000  # 27 kB of bytes, and a Python list of them


@pytest.mark.parametrize("num_samples", [2**60, UNFINISHED - 1])
def test_a_header_cannot_make_the_reader_allocate(tmp_path, num_samples):
    # Memory for 2^60 tokens is more than any address space has, so asking for it is an error.
    claims = sealed(num_samples=num_samples, samples_per_tok=1, crc=1)
    path = file_with(tmp_path, claims + GOLDEN[HEADER_BYTES:])
    with pytest.warns(CutFileWarning, match=f"is cut: 3 of {num_samples} tokens"):
        assert read(path)[1].tolist() == GOLDEN_TOKS


# ------------------------------------------------------------------ models and paths


MODEL = {
    "bits": 13,
    "codec_rate": 16000,
    "samples_per_tok": 320,
    "fingerprint": HEADER.fingerprint,
    "model_id": HEADER.model_id,
}


def test_a_model_may_have_another_name():
    check_model(HEADER, **MODEL)
    check_model(HEADER, **MODEL | {"model_id": "a/copy"})


@pytest.mark.parametrize(
    "field, value",
    [("bits", 10), ("codec_rate", 24000), ("samples_per_tok", 640), ("fingerprint", "f" * 32)],
)
def test_tokens_of_another_model_are_refused_with_both_names(field, value):
    message = f"'tiny/é', not of model 'other': {field} is {MODEL[field]}, not {value}. Use"
    with pytest.raises(ModelError) as caught:
        check_model(HEADER, **MODEL | {field: value, "model_id": "other"})
    assert message in str(caught.value)


@pytest.mark.parametrize("as_path", [Path, str])
def test_missing_files_and_folders_are_named(tmp_path, as_path):
    with pytest.raises(FileNotFoundError, match="none.focal does not exist"):
        read(as_path(tmp_path / "none.focal"))
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read(as_path(tmp_path))


def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.focal")
    with pytest.raises(FileNotFoundError, match="not a file"):
        read(tmp_path / "pipe.focal")
