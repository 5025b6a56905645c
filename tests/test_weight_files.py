"""Files of weights: what does not fit, is damaged or is hostile is refused in one line."""

import json
import os
import pickle
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from focalcodec import FocalCodec
from focalcodec.hub.weights import load_strict, read_state

KEY = "compressor.out_proj.bias"


@pytest.fixture
def folder(make_codec, tmp_path):
    """Folder of a saved tiny codec."""
    make_codec(encoder="wavlm").save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def edit_weights(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


# What does not fit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop(KEY), f"lacks 1 of [0-9]+ weights, the first is {KEY}"),
        (
            lambda s: s.update({"extra\n" + 99 * "!": s[KEY].clone()}),
            r"has 1 weights with no place, the first is 'extra\\n!+\.\.\.!+'",
        ),
        (
            lambda s: s.update({KEY: torch.ones(7)}),
            rf"has {KEY} of shape \(7,\), .* asks for \(6,\)",
        ),
        (
            lambda s: s.update({KEY: torch.ones(6, dtype=torch.int64)}),
            rf"has {KEY} of torch\.int64, which does not become torch\.float32",
        ),
        (
            lambda s: s.update({KEY: torch.ones(6).to(torch.float8_e4m3fn)}),
            rf"has {KEY} of torch\.float8_e4m3fn, which does not become",
        ),
        (
            lambda s: s[KEY].__setitem__(3, torch.nan),
            f"{KEY} holds values that are not finite numbers of torch.float32",
        ),
        (lambda s: s[KEY].__setitem__(3, -torch.inf), f"{KEY} holds values that are not finite"),
        (
            lambda s: s.update({KEY: torch.full((6,), 1e300, dtype=torch.float64)}),
            f"{KEY} holds values that are not finite numbers of torch.float32",
        ),
    ],
    ids=["missing", "unexpected", "shape", "int", "float8", "nan", "inf", "too large"],
)
def test_weights_that_do_not_fit_are_refused(folder, edit, message):
    edit_weights(folder, edit)
    with pytest.raises(ValueError, match=rf"model\.safetensors does not fit: .*{message}") as error:
        FocalCodec.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(folder, dtype):
    edit_weights(folder, lambda state: state.update({k: v.to(dtype) for k, v in state.items()}))
    loaded = FocalCodec.from_pretrained(folder).state_dict()
    state = load_file(folder / "model.safetensors")
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[key], state[key].float()) for key in state)


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.ones(2, 3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(2), "gain": torch.ones(2)},
        {"weight": torch.ones(2, 3), "bias": 1.0},
        [torch.ones(2, 3), torch.ones(2)],
    ],
    ids=["missing", "shape", "left over", "number", "list"],
)
def test_a_module_that_refuses_weights_keeps_its_own(state):
    module = nn.Linear(3, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"^there/some\.pt does not fit: it "):
        load_strict(module, state, where="there/some.pt")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# Damaged and hostile files


@pytest.fixture
def file(tmp_path):
    """File of three weights, 48 bytes each."""
    save_file({f"w{i}": torch.full((3, 4), float(i)) for i in range(3)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def split(content):
    """Header and weights of the bytes of a safetensors file."""
    size = 8 + int.from_bytes(content[:8], "little")
    return content[8:size], content[size:]


def joined(header, weights, *, size=None):
    return (len(header) if size is None else size).to_bytes(8, "little") + header + weights


def assert_damaged(path):
    with pytest.raises(ValueError, match=rf"{path.name} is damaged or not a file of wei") as error:
        read_state(path)
    assert "\n" not in str(error.value)


def test_a_cut_file_is_refused_wherever_it_is_cut(file):
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert_damaged(file)


@pytest.mark.parametrize("size", [0, 5, 10**8 - 1, 2**40, 2**63, 2**64 - 1])
def test_a_wrong_size_of_the_header_is_refused(file, size):
    header, weights = split(file.read_bytes())
    file.write_bytes(joined(header, weights, size=size))
    assert_damaged(file)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["w1"].update(data_offsets=[0, 48]),
        lambda header: header["w1"].update(data_offsets=[40, 88]),
        lambda header: header["w1"].update(data_offsets=[52, 100]),
        lambda header: header["w2"].update(data_offsets=[96, 10**12]),
        lambda header: header["w2"].update(data_offsets=[96, 2**64]),
        lambda header: header["w2"].update(data_offsets=[-1, 47]),
        lambda header: header["w2"].update(data_offsets=[144, 96]),
        lambda header: header["w2"].update(shape=[3, 5]),
        lambda header: header["w2"].update(shape=[2**62, 4]),
        lambda header: header["w2"].update(shape=[-3, -4]),
        lambda header: header["w2"].update(dtype="F64"),
        lambda header: header["w2"].update(dtype="os.system"),
        lambda header: header.pop("w2"),
        lambda header: header["w2"].pop("shape"),
        lambda header: header.update(w2=3),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(file, edit):
    header, weights = split(file.read_bytes())
    header = json.loads(header)
    edit(header)
    file.write_bytes(joined(json.dumps(header).encode(), weights))
    assert_damaged(file)


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"null", b"\xff" * 9, b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_refused(file, header):
    file.write_bytes(joined(header, split(file.read_bytes())[1]))
    assert_damaged(file)


EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(["flip", "delete", "insert"]), st.binary()),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(edits=EDITS, form=st.sampled_from(["safetensors", "zip", "pickle"]))
def test_random_damage_is_refused_or_gives_tensors(edits, form):
    """No other exception than ValueError, whatever the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("w.safetensors" if form == "safetensors" else "w.pt")
        state = {f"w{i}": torch.full((3, 4), float(i)) for i in range(3)}
        if form == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
        content = bytearray(path.read_bytes())
        for place, edit, inserted in edits:
            place %= len(content)
            if edit == "flip":
                content[place] ^= 1 + len(inserted) % 255
            elif edit == "delete":
                del content[place : place + 1 + len(inserted)]
            else:
                content[place:place] = inserted
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about names inside a damaged pickle
            try:
                state = read_state(path)
            except ValueError as error:
                assert "\n" not in str(error)
            else:
                assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_a_file_of_the_other_format_is_refused(file):
    content = file.read_bytes()
    torch.save(read_state(file), file.with_suffix(".pt"))
    file.write_bytes(file.with_suffix(".pt").read_bytes())
    assert_damaged(file)
    file.with_suffix(".pt").write_bytes(content)
    assert_damaged(file.with_suffix(".pt"))


def test_pickles_of_tensors_are_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "model.pt")
    expected = FocalCodec.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    loaded = FocalCodec.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def evil(function, *arguments):
    """Return what calls a function when it is unpickled."""
    return type("Evil", (), {"__reduce__": lambda self: (function, arguments)})()


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("function", ["open", "system", "exec"])
def test_code_in_a_pickle_is_not_run(tmp_path, form, function):
    trace = tmp_path / "was_here"
    code = {
        "open": evil(open, str(trace), "w"),
        "system": evil(os.system, f"touch {trace}"),
        "exec": evil(exec, f"open({str(trace)!r}, 'w').close()"),
    }[function]
    path = tmp_path / "model.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps({KEY: code}, protocol=2))
    else:
        torch.save({KEY: code}, path, _use_new_zipfile_serialization=form == "zip")
    assert_damaged(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"w": [1.0, 2.0]},
        {"state_dict": {"w": torch.ones(2)}},
        {1: torch.ones(2)},
        {"w": torch.ones(1).expand(10**6, 10**6)},
        {"w": torch.ones(2, 2).to_sparse()},
        {"w": torch.empty(2, device="meta")},
    ],
    ids=["list", "numbers", "nested", "key", "without memory", "sparse", "meta"],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is not a state dict of tensors$"):
        read_state(tmp_path / "model.pt")
