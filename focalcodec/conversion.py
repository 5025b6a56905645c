"""One-shot voice conversion: k-nearest neighbours in feature space, in front of the decoder.

Each frame of the source is replaced by the mean of the k frames of the target speaker that are
nearest to it in cosine distance [1]_, as in the codec's own voice conversion [2]_: what is said
comes from the source, how it sounds from the reference::

    feats = codec.toks_to_qfeats(codec.sig_to_toks(sig))
    matching_set = codec.sig_to_feats(reference)[0]  # (M, H)
    converted = codec.feats_to_sig(knn(feats, matching_set))

References
----------
.. [1] Baas et al., 2023, "Voice Conversion With Just Nearest Neighbors", arXiv:2305.18975.
.. [2] Della Libera et al., 2025, arXiv:2502.04465, section 4.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities held at once: 64 MiB in float32, whatever the lengths of source and reference.
_BLOCK_SIMILARITIES = 2**24
_BLOCK_FRAMES = 2048  # source frames that are worked on at once


def knn(feats: Tensor, matching_set: Tensor, *, topk: int = 4) -> Tensor:
    """Replace each frame by the mean of its nearest neighbours in a matching set.

    Cosines are compared in float32, under autocast too. The matching set is taken in blocks and
    never copied, so an hour of reference (180,000 frames at 50 Hz) needs little more than its own
    memory.

    Parameters
    ----------
    feats : (..., H) frames of the source.
    matching_set : (M, H) frames of the reference.
    topk : neighbours that are averaged with equal weight, at least 1; all M if there are fewer.

    Returns
    -------
    (..., H) converted frames.

    Raises
    ------
    ValueError : if a shape does not fit, the matching set is empty, something is not finite, or
        ``topk`` is below 1.
    """
    if matching_set.ndim != 2 or matching_set.shape[0] == 0:
        raise ValueError(
            "matching_set must be (M, H) with at least one frame, got shape "
            f"{tuple(matching_set.shape)}; join the frames of all references along axis 0"
        )
    if feats.ndim < 1 or feats.shape[-1] != matching_set.shape[1]:
        raise ValueError(
            f"feats must be (..., {matching_set.shape[1]}) like matching_set, "
            f"got shape {tuple(feats.shape)}"
        )
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    if not bool(feats.isfinite().all()):
        raise ValueError("feats holds values that are not finite, which have no neighbours")
    if not bool(matching_set.isfinite().all()):
        raise ValueError("matching_set holds values that are not finite; leave that reference out")
    topk = min(topk, matching_set.shape[0])
    # Neighbours are closer to each other than half precision can tell.
    with torch.autocast(feats.device.type, enabled=False):
        converted = [
            matching_set[_nearest(block, matching_set, topk=topk)].mean(dim=1)
            for block in feats.reshape(-1, feats.shape[-1]).split(_BLOCK_FRAMES)
        ]
    return torch.cat(converted).reshape(feats.shape)


def _nearest(frames: Tensor, matching_set: Tensor, *, topk: int) -> Tensor:
    """(Q, topk) rows of the matching set with the smallest cosine distance to (Q, H) frames."""
    frames = F.normalize(frames.float(), dim=-1)
    best = frames.new_empty(frames.shape[0], 0)
    rows = torch.empty_like(best, dtype=torch.long)
    size = max(_BLOCK_SIMILARITIES // max(frames.shape), topk)
    for start in range(0, matching_set.shape[0], size):
        block = F.normalize(matching_set[start : start + size].float(), dim=-1)
        similarity, row = (frames @ block.t()).topk(min(topk, block.shape[0]))
        best, order = torch.cat([best, similarity], dim=1).topk(
            min(topk, best.shape[1] + similarity.shape[1])
        )
        rows = torch.cat([rows, row + start], dim=1).gather(1, order)
    return rows
