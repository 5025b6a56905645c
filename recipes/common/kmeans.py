"""Mini-batch k-means of frozen features: the centroids of `focalcodec.kmeans.KMeansQuantizer`.

`MiniBatchKMeans` moves them, batch by batch; `write_centroids` and `load_centroids` carry them from
the run of ``recipes/train_kmeans.py`` to the quantizer stage.

References
----------
.. [1] Sculley, 2010, "Web-Scale K-Means Clustering", WWW, algorithm 1.
.. [2] Arthur and Vassilvitskii, 2007, "k-means++: The Advantages of Careful Seeding", SODA.
"""

import logging
import math
import random
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from focalcodec.hub.weights import load_strict, read_state
from focalcodec.kmeans import KMeansQuantizer
from recipes.common.files import write_bytes
from recipes.common.fingerprint import fingerprint

logger = logging.getLogger(__name__)

CENTROIDS = "kmeans.safetensors"  # in a run folder: its result


class MiniBatchKMeans(nn.Module):
    """Centroids that follow the means of the frames nearest to them [1]_.

    Frames are added in any number of batches, then one update moves each centroid c by
    (sum of its x - c) / N, N being how many frames it has had since it was placed: it is their
    mean, and its steps become ever smaller. [1]_ does so frame by frame; a batch at once, as in
    scikit-learn, depends on no order. The first update places the centroids among its frames, by
    k-means++ [2]_. A centroid without a frame among the last ``dead_after`` frames per centroid is
    moved to one of the last batch that lies far from its own.

    In a distributed run an update is that of all ranks' frames; centroids are placed and moved
    among those of the main process. Draws derive from the seed and the number of updates, so the
    state dict is all that a resumed run needs, taken between an update and the next frame.

    Parameters
    ----------
    quantizer : whose centroids are moved.
    seed : of the draws.
    dead_after : frames, as a multiple of the number of centroids.

    Raises
    ------
    ValueError : if ``dead_after`` is not positive.
    """

    def __init__(
        self, quantizer: KMeansQuantizer, *, seed: int = 0, dead_after: float = 100.0
    ) -> None:
        super().__init__()
        if not dead_after > 0:
            raise ValueError(f"dead_after must be above 0, got {dead_after}")
        self.quantizer = quantizer
        self.seed = seed
        self.dead_after = dead_after
        size = quantizer.codebook_size
        for name in ("counts", "unseen"):  # frames of each centroid; frames since its last one
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_placed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("marked", torch.zeros(size, quantizer.code_dim))
        self.register_buffer("last_shift", torch.full((), math.inf, dtype=torch.float64))
        self.discard()

    def discard(self) -> None:
        """Forget the frames since the last update."""
        self._waiting: list[Tensor] = []  # until the centroids are placed
        self._offsets: Tensor | None = None  # sums of x - c, (codebook_size, D) float64
        self._batch_counts: Tensor | None = None
        self._last: tuple[Tensor, Tensor] | None = None  # a batch, and its squared distances

    @torch.no_grad()
    def add(self, frames: Tensor) -> Tensor:
        """Take frames (M, D) into the next update.

        Returns
        -------
        Their squared distance to the nearest centroids, mean over frames and entries; NaN before
        the centroids are placed.
        """
        if not self.is_placed:
            self._waiting.append(frames)
            return frames.new_full((), math.nan)
        toks = self.quantizer.lats_to_toks(frames)
        offsets = frames - self.quantizer.centroids[toks]
        distances = offsets.square().sum(dim=1)
        if self._offsets is None:
            self._offsets = torch.zeros_like(self.quantizer.centroids, dtype=torch.float64)
            self._batch_counts = torch.zeros_like(self.counts)
        self._offsets.index_add_(0, toks, offsets.double())
        self._batch_counts += toks.bincount(minlength=len(self.counts))
        self._last = frames, distances
        return distances.mean() / frames.shape[1]

    @torch.no_grad()
    def update(self) -> Tensor:
        """Move the centroids by what was added since the last update.

        Returns
        -------
        How many dead centroids were moved, a scalar.

        Raises
        ------
        ValueError : if the first update has less frames than there are centroids.
        """
        if not self.is_placed:
            self._place()
        offsets, counts = _summed(self._offsets), _summed(self._batch_counts)
        self.counts += counts
        self.unseen.copy_(torch.where(counts > 0, 0, self.unseen + counts.sum()))
        centroids = self.quantizer.centroids
        moved = centroids + offsets / self.counts.clamp(min=1)[:, None]
        centroids.copy_(moved)
        num_moved = self._move_dead()
        self.num_updates += 1
        self.discard()
        return num_moved

    def start(self) -> None:
        """Go on from the centroids that the quantizer has, instead of placing them."""
        self.is_placed.fill_(True)
        self.marked.copy_(self.quantizer.centroids)

    @torch.no_grad()
    def shift(self) -> float:
        """Root mean square of the centroids' ways since the last `mark`."""
        offsets = self.quantizer.centroids.double() - self.marked
        return float(offsets.square().sum(dim=1).mean().sqrt())

    def mark(self, shift: float) -> None:
        """Measure ways from here on; ``shift`` is kept as `last_shift`, a part of the state."""
        self.marked.copy_(self.quantizer.centroids)
        self.last_shift.fill_(shift)

    def _place(self) -> None:
        frames, size = torch.cat(self._waiting), self.quantizer.codebook_size
        if len(frames) < size:
            raise ValueError(
                f"the first update has {len(frames)} frames for {size} centroids; raise batch_size "
                "or grad_accumulation_factor, or lower codebook_size"
            )
        placed = spread(frames, size, generator=self._generator("placed"))
        self.quantizer.centroids.copy_(_from_main(placed))
        self.start()
        for batch in self._waiting:
            self.add(batch)

    def _move_dead(self) -> Tensor:
        """Move centroids that get no frames to frames that no centroid is near to."""
        dead = (self.unseen >= self.dead_after * len(self.unseen)).nonzero()[:, 0]
        frames, distances = self._last
        number = min(len(dead), int((distances > 0).sum()))
        if number > 0:
            weights = distances.double().cpu()
            chosen = weights.multinomial(number, generator=self._generator("moved"))
            self.quantizer.centroids[dead[:number]] = frames[chosen.to(frames.device)]
            self.counts[dead[:number]] = 0
            self.unseen[dead[:number]] = 0
        for tensor in (self.quantizer.centroids, self.counts, self.unseen):
            _from_main(tensor)
        return torch.tensor(float(number), device=frames.device)

    def _generator(self, purpose: str) -> torch.Generator:
        seed = f"{self.seed}/{int(self.num_updates)}/{purpose}"
        return torch.Generator().manual_seed(random.Random(seed).getrandbits(63))


def spread(frames: Tensor, number: int, *, generator: torch.Generator) -> Tensor:
    """Choose frames far from each other: k-means++ [2]_.

    The first is drawn evenly, each of the others with a probability in proportion to its squared
    distance from the nearest one before it.

    Parameters
    ----------
    frames : (M, D), M >= ``number``.
    number : how many.
    generator : on the CPU.

    Returns
    -------
    (number, D) rows of ``frames``, different ones as long as there are some.
    """
    centered = frames - frames.mean(dim=0)
    norms = centered.square().sum(dim=1)
    draws = torch.rand(number, dtype=torch.float64, generator=generator).to(frames.device)
    weights = torch.ones_like(norms)
    nearest = torch.full_like(norms, math.inf)
    chosen = []
    for draw in draws:
        places = weights.double().cumsum(dim=0)
        # Right: a frame of weight 0 is never met.
        index = torch.searchsorted(places, draw * places[-1], right=True).clamp(max=len(norms) - 1)
        chosen.append(index)
        distances = norms + norms[index] - 2 * (centered @ centered[index])
        nearest = nearest.minimum(distances.clamp(min=0))
        nearest[index] = 0  # exactly
        weights = nearest
    return frames[torch.stack(chosen)]


def write_centroids(quantizer: KMeansQuantizer, folder: Path, *, encoder: nn.Module) -> Path:
    """Write the centroids into a run folder, whole or not at all, with the encoder they are for."""
    state = {name: value.cpu().contiguous() for name, value in quantizer.state_dict().items()}
    path = folder / CENTROIDS
    # One entry: safetensors writes several in an order that differs from time to time.
    write_bytes(path, save(state, metadata={"encoder": fingerprint(encoder)}))
    return path


def load_centroids(
    quantizer: nn.Module, checkpoint: str | Path | None, *, encoder: nn.Module
) -> None:
    """Fill a quantizer with centroids; one without weights needs none.

    Parameters
    ----------
    quantizer : to fill, in place.
    checkpoint : the YAML's ``kmeans_checkpoint``: run folder of ``recipes/train_kmeans.py``, or a
        file that it wrote.
    encoder : of this run, whose features the centroids have to be of.

    Raises
    ------
    FileNotFoundError : if there is no such file, or the run has not ended.
    ValueError : if the quantizer has weights and no checkpoint is named, or the centroids are of
        another encoder or size.
    """
    if not quantizer.state_dict():
        return
    if checkpoint is None:
        raise ValueError(
            f"quantizer {type(quantizer).__name__} has weights but kmeans_checkpoint is null; name "
            "a run folder of recipes.train_kmeans"
        )
    path = Path(checkpoint)
    path = path / CENTROIDS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; name the folder of a run of recipes.train_kmeans that has "
            f"ended, or its {CENTROIDS}"
        )
    state = read_state(path)
    with safe_open(path, framework="pt") as file:
        made_for = (file.metadata() or {}).get("encoder")
    if made_for != fingerprint(encoder):
        raise ValueError(
            f"{path} holds centroids of features of encoder {made_for}, this run has "
            f"{fingerprint(encoder)}; give both the same encoder and encoder_checkpoint"
        )
    load_strict(quantizer, state, where=path)
    logger.info("centroids from %s", path)


def _summed(x: Tensor) -> Tensor:
    """Sum over all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x


def _from_main(x: Tensor) -> Tensor:
    """Overwrite a tensor with the main process's."""
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(x, src=0)
    return x
