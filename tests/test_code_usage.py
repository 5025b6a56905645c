"""Code statistics: known values, what cannot be counted, two ranks; bits per second."""

import math
from datetime import timedelta

import pytest
import torch

from recipes.common.code_usage import CodeUsage, bitrate


def test_code_usage_by_hand():
    usage = CodeUsage(8)
    usage.append(torch.tensor([[0, 0, 1, 7]]))
    usage.append(torch.tensor([[0, 1, 5, 5]]), mask=torch.tensor([[True, True, False, False]]))
    probs = [3 / 6, 2 / 6, 1 / 6]
    entropy = -sum(p * math.log2(p) for p in probs)
    assert usage.summarize() == pytest.approx(
        {
            "code_usage": 3 / 8,
            "used_codes": 3,
            "normalised_entropy": entropy / 3,
            "normalised_entropy_used": entropy / math.log2(3),
            "num_tokens": 6,
        }
    )


@pytest.mark.parametrize("codebook_size", [2, 13, 8192])
def test_entropy_is_one_for_uniform_and_zero_for_one_code(codebook_size):
    usage = CodeUsage(codebook_size)
    usage.append(torch.arange(codebook_size).repeat(3)[None])
    summary = usage.summarize()
    assert summary["code_usage"] == 1
    assert summary["normalised_entropy"] == pytest.approx(1)
    assert summary["normalised_entropy_used"] == pytest.approx(1)
    usage.clear()
    usage.append(torch.full((2, 5), codebook_size - 1))
    summary = usage.summarize()
    assert summary["used_codes"] == 1 and summary["num_tokens"] == 10
    assert summary["normalised_entropy"] == summary["normalised_entropy_used"] == 0


def test_entropy_stays_between_zero_and_one():
    for size in (2, 7, 64):
        usage = CodeUsage(size)
        usage.append((torch.rand(3, 50) ** 3 * size).long())
        summary = usage.summarize()
        assert 0 <= summary["normalised_entropy"] <= summary["normalised_entropy_used"] <= 1 + 1e-12


def test_several_codebooks_are_counted_one_by_one_and_averaged():
    toks = torch.tensor([[[0, 3], [0, 2], [1, 1]], [[0, 0], [7, 7], [7, 7]]])  # (B, L, K)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    usage = CodeUsage(4, num_codebooks=2)
    usage.append(toks[:, :, :], mask=mask)
    first, second = usage.summarize_codebooks()
    for number, book in enumerate((first, second)):
        alone = CodeUsage(4)
        alone.append(toks[:, :, number], mask=mask)
        assert alone.summarize() == book
    assert first["used_codes"] == 2 and second["normalised_entropy"] == pytest.approx(1)
    assert usage.summarize() == {key: (first[key] + second[key]) / 2 for key in first}
    assert usage.counts.tolist() == [[3, 1, 0, 0], [1, 1, 1, 1]]


def test_one_codebook_may_have_an_axis():
    toks = torch.randint(0, 8, (2, 9))
    with_axis, without = CodeUsage(8), CodeUsage(8)
    with_axis.append(toks[:, :, None])
    without.append(toks)
    assert with_axis.summarize() == without.summarize()


def test_code_usage_refuses_what_it_cannot_count():
    usage = CodeUsage(4)
    with pytest.raises(RuntimeError, match="no token"):
        usage.summarize()
    usage.append(torch.tensor([[9]]), mask=torch.tensor([[False]]))  # padding may hold anything
    with pytest.raises(RuntimeError, match="no token"):
        usage.summarize()
    with pytest.raises(ValueError, match=r"\[0, 4\), got 0 to 4"):
        usage.append(torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match="-1"):
        usage.append(torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="shape of toks"):
        usage.append(torch.zeros(1, 4, dtype=torch.long), mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 2"):
        CodeUsage(1)
    with pytest.raises(ValueError, match="at least 1"):
        CodeUsage(4, num_codebooks=0)
    with pytest.raises(ValueError, match=r"\(B, L, 3\).*\(1, 4\)"):
        CodeUsage(4, num_codebooks=3).append(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(B, L, 1\).*\(1, 4, 2\)"):
        usage.append(torch.zeros(1, 4, 2, dtype=torch.long))


def test_code_usage_counts_the_tokens_of_all_ranks(tmp_path):
    store = str(tmp_path / "store")
    other = torch.multiprocessing.get_context("spawn").Process(
        target=_count_on_rank, args=(1, store)
    )
    other.start()
    _count_on_rank(0, store)
    other.join()
    assert other.exitcode == 0


def _count_on_rank(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    usage = CodeUsage(4)
    if rank == 1:  # and none on rank 0
        usage.append(torch.tensor([[0, 0, 1]]))
    for _ in range(2):  # asking twice does not count twice
        summary = usage.summarize()
        assert (summary["num_tokens"], summary["used_codes"]) == (3, 2)
    usage.append(torch.tensor([[3]]))
    summary = usage.summarize()
    assert (summary["num_tokens"], summary["used_codes"]) == (5, 3)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("token_rate", "codebook_size", "expected"),
    [(50, 8192, 650), (25, 8192, 325), (12.5, 8192, 162.5), (50, 1024, 500), (50, 65_536, 800)],
)
def test_bitrate_in_bits_per_second(token_rate, codebook_size, expected):
    assert bitrate(token_rate, codebook_size) == pytest.approx(expected)
    assert bitrate(token_rate, codebook_size, num_codebooks=8) == pytest.approx(8 * expected)


def test_bitrate_refuses_what_is_no_stream():
    with pytest.raises(ValueError, match="token_rate"):
        bitrate(0, 8192)
    with pytest.raises(ValueError, match="codebook_size"):
        bitrate(50, 1)
