"""The inference benchmark at toy size: both sides compute the same thing, every row is there."""

import re

import pytest
import torch

from benchmarks.inference import compare_precisions, compare_sides
from benchmarks.measuring import PartOfRuns, measure
from benchmarks.subjects import plain_encoder, synthetic


@pytest.fixture
def codec(make_codec):
    return make_codec(encoder="wavlm").requires_grad_(False)


@pytest.fixture
def sig() -> torch.Tensor:
    return synthetic(sample_rate=16000, num_samples=2 * 8000).view(2, -1)


@torch.inference_mode()
def test_both_sides_have_the_same_feats_and_toks(codec, sig, capsys):
    compare_sides(codec, sig, plain=plain_encoder(codec.encoder), repeats=1)
    text = capsys.readouterr().out
    error, same = re.search(r"differ by (\S+) of their peak, (\S+) %", text).groups()
    assert float(error) < 1e-5 and float(same) == 100
    rows = dict(line.split(maxsplit=1) for line in text.splitlines()[2:])
    assert list(rows) == ["encoder", "encode", "decode", "both"]
    assert [rows[part].count("x") for part in rows] == [2, 2, 0, 2]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' own
@torch.inference_mode()
def test_unequal_lengths_are_timed_on_both_sides(codec, sig, capsys):
    lens = torch.tensor([1.0, 0.4])
    compare_sides(codec, sig, lens=lens, plain=plain_encoder(codec.encoder), repeats=1)
    text = capsys.readouterr().out
    assert "30 % padding" in text and text.count(" x") == 6


@torch.inference_mode()
def test_a_codec_without_plain_side_has_no_ratio(make_codec, sig, capsys):
    compare_sides(make_codec(), sig, plain=None, repeats=1)
    text = capsys.readouterr().out
    assert "both" in text and " x" not in text


@torch.inference_mode()
def test_precisions_are_compared_with_float32(codec, sig, capsys):
    compare_precisions(codec, sig, dtypes=["bfloat16"], repeats=1)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[3:]}
    assert float(rows["float32"][0]) == 0 and float(rows["float32"][4]) == 0
    assert 0 < float(rows["bfloat16"][4]) < 0.1  # change of the latents, which have length 1


def test_runs_alternate_behind_one_warm_up():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = measure(runs, repeats=2, device=torch.device("cpu"))
    assert calls == list("ababab") and [len(times[name]) for name in "ab"] == [2, 2]


def test_a_part_of_runs_is_summed_over_its_calls_and_within_the_whole():
    part = torch.nn.Linear(64, 64)
    calls = iter([1, 3, 0])

    def run():
        for _ in range(next(calls)):
            part(torch.ones(2, 64))

    timed = PartOfRuns(run, part, device=torch.device("cpu"))
    times = measure({"whole": timed}, repeats=2, device=torch.device("cpu"))["whole"]
    assert len(timed.seconds) == 3 and timed.seconds[0] > 0
    assert 0 < timed.seconds[1] < times[0]
    assert timed.seconds[2] == 0 < times[1]
