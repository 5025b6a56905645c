"""The `.focal` file: packing, headers, files that grow, models."""

import os
import tracemalloc
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
    CutFileWarning,
    HeaderError,
    LengthError,
    ModelError,
    Writer,
    check_model,
    open_focal,
    pack,
    read,
    unpack,
    write,
)
from tests.token_files import (
    BLOCK,
    GOLDEN,
    GOLDEN_TOKS,
    HEADER,
    HEADER_BYTES,
    UNFINISHED,
    bits_of,
    file_with,
    header_of,
    random_toks,
    sealed,
)

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
def test_a_growing_file_is_readable_and_ends_as_if_written_at_once(fuzz_folder, bits, sizes):
    sizes = [*sizes, 1]
    toks, header = random_toks(sum(sizes), bits), header_of(sum(sizes), bits)
    path, count = fuzz_folder / "growing.focal", 0
    with Writer(path, replace(header, num_samples=None), overwrite=True) as writer:
        for part in toks.split(sizes):
            writer.write(part)
            count += len(part)
            there = count * bits // 8 * 8 // bits
            with pytest.warns(CutFileWarning, match=f"never finished: {there} tokens are there"):
                seen_header, seen = read(path)
            assert torch.equal(seen, toks[:there]) and seen_header.num_toks is None
        writer.finish(header.num_samples)
    write(fuzz_folder / "whole.focal", toks, header, overwrite=True)
    assert path.read_bytes() == (fuzz_folder / "whole.focal").read_bytes()


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
