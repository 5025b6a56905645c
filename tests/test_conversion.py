"""Voice conversion: the nearest neighbours are those of a brute-force search, blocked or not."""

import math

import pytest
import torch
from safetensors.torch import load_file

from focalcodec import FocalCodec, conversion
from focalcodec.conversion import knn


def brute_force(feats, matching_set, topk):
    """Mean of the topk frames of the matching set by cosine similarity, frame by frame."""
    rows = []
    for frame in feats.double():
        similarity = torch.cosine_similarity(frame[None], matching_set.double(), dim=1)
        best = sorted(range(len(matching_set)), key=lambda i: -similarity[i])[:topk]  # noqa: B023
        rows.append(matching_set[best].mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("topk", [1, 4, 7])
@pytest.mark.parametrize("similarities", [2**24, 90, 1], ids=["one block", "blocks", "tiny"])
def test_equals_brute_force(monkeypatch, topk, similarities):
    monkeypatch.setattr(conversion, "_BLOCK_SIMILARITIES", similarities)
    monkeypatch.setattr(conversion, "_BLOCK_FRAMES", 5)
    feats, matching_set = torch.randn(13, 8), torch.randn(50, 8)
    got = knn(feats, matching_set, topk=topk)
    torch.testing.assert_close(got, brute_force(feats, matching_set, topk), atol=1e-6, rtol=1e-6)


def test_lengths_of_frames_do_not_matter_for_the_choice():
    feats, matching_set = torch.randn(9, 8), torch.randn(40, 8)
    assert torch.equal(knn(feats * 100, matching_set), knn(feats, matching_set))


def test_own_features_come_back():
    feats = torch.randn(2, 30, 16)
    assert torch.equal(knn(feats, feats.flatten(0, 1), topk=1), feats)
    # Each frame four times: the four nearest are copies of the frame itself.
    copies = feats.flatten(0, 1).repeat(4, 1)
    torch.testing.assert_close(knn(feats, copies, topk=4), feats)


def test_fewer_frames_than_neighbours_are_all_averaged():
    feats, matching_set = torch.randn(1, 5, 8), torch.randn(3, 8)
    expected = matching_set.mean(dim=0).expand(1, 5, 8)
    torch.testing.assert_close(knn(feats, matching_set), expected)


def test_half_precision_keeps_its_type():
    feats, matching_set = torch.randn(2, 5, 8), torch.randn(30, 8)
    got = knn(feats.bfloat16(), matching_set.bfloat16(), topk=1)
    assert got.dtype == torch.bfloat16 and got.shape == feats.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_changes_no_neighbour(dtype):
    # Features have a common mean, so their cosines differ in the digits that half precision lacks.
    feats, matching_set = 3 + torch.randn(20, 16), 3 + torch.randn(300, 16)
    with torch.autocast("cpu", dtype=dtype):
        got = knn(feats, matching_set)
    assert torch.equal(got, knn(feats, matching_set))


def test_an_hour_of_reference_needs_little_memory(monkeypatch):
    # 2**16 similarities at once: 100 frames against 60,000 would be 6,000,000.
    largest = 0
    original = torch.Tensor.topk

    def topk(self, *arguments, **named):
        nonlocal largest
        largest = max(largest, self.numel())
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "topk", topk)
    monkeypatch.setattr(conversion, "_BLOCK_SIMILARITIES", 2**16)
    knn(torch.randn(100, 4), torch.randn(60_000, 4))
    assert 2**15 < largest <= 2**16


@pytest.mark.parametrize(
    ("feats", "matching_set", "topk", "message"),
    [
        ((5, 8), (0, 8), 4, "at least one frame"),
        ((5, 8), (2, 3, 8), 4, r"got shape \(2, 3, 8\)"),
        ((5, 7), (9, 8), 4, r"feats must be \(\.\.\., 8\)"),
        ((5, 8), (9, 8), 0, "topk must be at least 1"),
    ],
    ids=["empty", "rank", "dim", "topk"],
)
def test_bad_input_is_refused(feats, matching_set, topk, message):
    with pytest.raises(ValueError, match=message):
        knn(torch.zeros(feats), torch.zeros(matching_set), topk=topk)


def test_a_reference_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        knn(torch.zeros(2, 3), torch.tensor([[0.0, math.inf, 1.0]]))


def test_golden_conversion(shared):
    folder = shared / "golden" / "noncausal_50hz"
    golden = load_file(folder / "io.safetensors")
    qfeats, matching_set = golden["single/qfeats"], golden["vc/matching_set"]
    for topk, name in ((4, "topk4"), (3, "topk3_splits3")):
        expected = golden[f"vc/knn_feats_{name}"]
        got = knn(qfeats, matching_set, topk=topk)
        assert (got - expected).abs().max() <= 5e-6 * expected.abs().max()
    codec = FocalCodec.from_pretrained(folder)
    sig = codec.feats_to_sig(codec.knn(qfeats, matching_set, topk=4))[0]
    expected = golden["vc/rec_sig_topk4_head"].flatten()
    assert (sig[: len(expected)] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_frames_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="feats holds values that are not finite"):
        knn(torch.full((3, 4), torch.nan), torch.randn(5, 4))
