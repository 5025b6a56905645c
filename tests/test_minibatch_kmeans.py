"""Mini-batch k-means: what it finds, what it does in between, and where its result goes."""

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from focalcodec.kmeans import KMeansQuantizer
from focalcodec.logmel import LogMel
from focalcodec.quantizers import BinarySphericalQuantizer
from recipes.common.kmeans import (
    CENTROIDS,
    MiniBatchKMeans,
    load_centroids,
    spread,
    write_centroids,
)
from tests.saved_runs import in_children

CENTERS = 20 * torch.eye(6)


def clusters(number: int, *, seed: int = 0) -> torch.Tensor:
    """Frames (number, 6) around six distant centers, of variance 1."""
    source = torch.Generator().manual_seed(seed)
    return CENTERS[torch.randint(6, (number,), generator=source)] + torch.randn(
        number, 6, generator=source
    )


def make(size: int = 6, dim: int = 6, **options) -> MiniBatchKMeans:
    return MiniBatchKMeans(KMeansQuantizer(size, dim), **options)


def inertia(kmeans: MiniBatchKMeans, frames: torch.Tensor) -> float:
    codes = kmeans.quantizer(frames).codes
    return float((codes - frames).square().sum(dim=1).mean())


@pytest.mark.parametrize("seed", range(3))
def test_separated_clusters_are_found(seed):
    kmeans = make(seed=seed)
    for update in range(20):
        kmeans.add(clusters(300, seed=update))
        kmeans.update()
    distances = torch.cdist(CENTERS, kmeans.quantizer.centroids)
    assert distances.argmin(dim=1).unique().numel() == 6
    assert distances.min(dim=1).values.max() < 6 * (6 / 6000) ** 0.5  # 6 deviations of the mean


def test_inertia_falls_and_never_rises_by_more_than_the_batches_noise():
    frames = torch.randn(4000, 8)
    kmeans, values = make(32, 8), []
    for _ in range(40):
        kmeans.add(frames[torch.randperm(4000)[:1000]])
        kmeans.update()
        values.append(inertia(kmeans, frames))
    assert values[-1] < 0.97 * values[0]
    assert all(later < 1.01 * earlier for earlier, later in zip(values, values[1:], strict=False))


def test_a_centroid_is_the_mean_of_all_frames_that_it_has_had():
    kmeans = make(2, 1)
    kmeans.quantizer.centroids.copy_(torch.tensor([[-10.0], [10.0]]))
    kmeans.start()
    kmeans.add(torch.tensor([[-12.0], [-11.0], [9.0]]))
    kmeans.update()
    assert kmeans.quantizer.centroids.flatten().tolist() == [-11.5, 9.0]
    kmeans.add(torch.tensor([[-8.0]]))
    error = kmeans.add(torch.tensor([[13.0], [5.0]]))
    assert float(error) == 16.0  # of the centroids as they were
    kmeans.update()
    assert kmeans.quantizer.centroids.flatten().tolist() == pytest.approx([-31 / 3, 9.0])
    assert kmeans.counts.tolist() == [3, 3]


def test_batches_of_one_update_are_one_batch():
    frames = clusters(400)
    together, apart = make(), make()
    for parts, kmeans in ((1, together), (7, apart)):
        for _ in range(3):
            for part in frames.chunk(parts):
                kmeans.add(part)
            kmeans.update()
    assert together.quantizer.centroids.allclose(apart.quantizer.centroids, atol=1e-5)  # float32
    assert torch.equal(together.counts, apart.counts)


def test_a_centroid_without_frames_is_moved_to_some():
    kmeans = make(7, dead_after=5)
    lost = torch.full((6,), 1000.0)
    kmeans.quantizer.centroids.copy_(torch.cat([CENTERS[:5], CENTERS[:1], lost[None]]))
    kmeans.start()  # nothing near the sixth center, and two at the first
    moved = 0
    for update in range(12):
        kmeans.add(clusters(70, seed=update))
        moved += float(kmeans.update())
    assert moved >= 1
    assert kmeans.quantizer.centroids.abs().max() < 30
    frames = clusters(600, seed=100)
    assert inertia(kmeans, frames) < 1.2 * 6


def test_no_centroid_moves_where_every_frame_has_one_of_its_own():
    kmeans = make(4, 1, dead_after=1)
    kmeans.quantizer.centroids.copy_(torch.tensor([[0.0], [1.0], [7.0], [8.0]]))
    kmeans.start()
    for _ in range(5):
        kmeans.add(torch.tensor([[0.0], [1.0]]))
        assert kmeans.update() == 0
    assert kmeans.quantizer.centroids.flatten().tolist() == [0.0, 1.0, 7.0, 8.0]


def test_state_dict_is_all_that_goes_on_exactly():
    frames = [clusters(200, seed=seed) for seed in range(6)]
    whole, first, second = (make(9, dead_after=2, seed=3) for _ in range(3))
    for part in frames:
        whole.add(part)
        whole.update()
    for part in frames[:3]:
        first.add(part)
        first.update()
    second.load_state_dict(first.state_dict())
    for part in frames[3:]:
        second.add(part)
        second.update()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_discarded_frames_leave_no_trace():
    plain, other = make(), make()
    for kmeans in (plain, other):
        kmeans.add(clusters(100))
        kmeans.update()
        if kmeans is other:
            kmeans.add(torch.full((5, 6), math.nan))
            kmeans.discard()
        kmeans.add(clusters(50, seed=1))
        kmeans.update()
    assert torch.equal(plain.quantizer.centroids, other.quantizer.centroids)


def test_shift_is_the_way_since_the_last_mark():
    kmeans = make(2, 2)
    kmeans.start()
    assert kmeans.shift() == 0 and kmeans.last_shift == math.inf
    kmeans.quantizer.centroids += torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert kmeans.shift() == pytest.approx(5 / 2**0.5)
    kmeans.mark(0.25)
    assert kmeans.shift() == 0 and kmeans.last_shift == 0.25


def test_spread_takes_each_distinct_frame_before_any_twice():
    frames = torch.randn(5, 3).repeat(8, 1)
    chosen = spread(frames, 5, generator=torch.Generator().manual_seed(0))
    assert chosen.unique(dim=0).shape == (5, 3)
    assert spread(frames, 7, generator=torch.Generator().manual_seed(0)).isfinite().all()


def test_fewer_frames_than_centroids_are_refused():
    kmeans = make()
    kmeans.add(clusters(5))
    with pytest.raises(ValueError, match="5 frames for 6 centroids; raise batch_size"):
        kmeans.update()


def test_dead_after_nothing_is_refused():
    with pytest.raises(ValueError, match="dead_after must be above 0, got 0"):
        make(dead_after=0)


def train_from_a_line(parts, **options) -> MiniBatchKMeans:
    kmeans = make(9, **options)
    kmeans.quantizer.centroids.copy_(torch.linspace(-1, 20, 9)[:, None].expand(9, 6))
    kmeans.start()
    for update in range(4):
        kmeans.add(clusters(200, seed=update)[parts])
        kmeans.update()
    return kmeans


def on_rank(rank: int, num: int, folder: Path) -> None:
    """Write states after a share of the frames: without moved centroids, with, newly placed."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num
    )
    share = slice(rank, None, num)
    placed = make()
    placed.add(clusters(60)[share])
    placed.update()
    kept = train_from_a_line(share, dead_after=1000)
    moved = train_from_a_line(share, dead_after=2)
    torch.distributed.destroy_process_group()
    torch.save([kmeans.state_dict() for kmeans in (kept, moved, placed)], folder / f"{rank}.pt")


def test_ranks_have_the_same_centroids_which_are_those_of_all_frames(tmp_path):
    assert [outcome.exitcode for outcome in in_children(on_rank, tmp_path, num=2)] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    alone = train_from_a_line(slice(None), dead_after=1000)
    assert torch.equal(first[0]["counts"], alone.counts)
    # float64 sums in another order, rounded to float32
    assert first[0]["quantizer.centroids"].allclose(alone.quantizer.centroids, atol=1e-5)
    assert not torch.equal(first[1]["counts"], alone.counts), "some were moved"


# From the run of k-means to the quantizer stage


def test_centroids_come_back_for_the_same_encoder(tmp_path):
    written, read = KMeansQuantizer(5, 80), KMeansQuantizer(5, 80)
    write_centroids(written, tmp_path, encoder=LogMel())
    for checkpoint in (tmp_path, str(tmp_path / CENTROIDS)):
        load_centroids(read, checkpoint, encoder=LogMel())
        assert torch.equal(written.centroids, read.centroids)
        read.centroids.zero_()


def test_centroids_of_another_encoder_or_none_are_refused(tmp_path):
    quantizer = KMeansQuantizer(5, 80)
    write_centroids(quantizer, tmp_path, encoder=LogMel(f_max=7000.0))
    with pytest.raises(ValueError, match="same encoder and encoder_checkpoint"):
        load_centroids(quantizer, tmp_path, encoder=LogMel())
    save_file({"centroids": torch.zeros(5, 80)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="features of encoder None"):
        load_centroids(quantizer, tmp_path / "other.safetensors", encoder=LogMel())


def test_another_number_of_centroids_is_refused_and_a_missing_file_named(tmp_path):
    write_centroids(KMeansQuantizer(4, 80), tmp_path, encoder=LogMel())
    with pytest.raises(ValueError, match=r"has centroids of shape \(4, 80\)"):
        load_centroids(KMeansQuantizer(5, 80), tmp_path, encoder=LogMel())
    with pytest.raises(FileNotFoundError, match="a run of recipes.train_kmeans that has ended"):
        load_centroids(KMeansQuantizer(5, 80), tmp_path / "nowhere", encoder=LogMel())


def test_a_quantizer_with_weights_needs_some_and_one_without_none():
    load_centroids(BinarySphericalQuantizer(4), None, encoder=LogMel())
    with pytest.raises(ValueError, match="has weights but kmeans_checkpoint is null"):
        load_centroids(KMeansQuantizer(5, 80), None, encoder=LogMel())
