"""Where training segments are cut from utterances."""

import random

import torch
from torch import Tensor


class Crops:
    """Places of segments, drawn anew in every epoch.

    A place derives from seed, epoch and utterance id alone, so it needs no state, and neither the
    number of loader processes or ranks nor a resumption changes it. An utterance shorter than a
    segment is repeated, never padded.

    Parameters
    ----------
    num_frames : frames of a segment.
    hop_length : samples per frame.
    per_utterance : segments of each utterance.
    seed : of the draws.

    Attributes
    ----------
    epoch : set it before the loader is iterated; its processes get a copy.
    """

    def __init__(
        self, num_frames: int, *, hop_length: int, per_utterance: int = 1, seed: int = 0
    ) -> None:
        if num_frames < 1 or per_utterance < 1:
            raise ValueError(
                "segment_frames and crops_per_utterance must be at least 1, got "
                f"{num_frames} and {per_utterance}"
            )
        self.num_frames = num_frames
        self.hop_length = hop_length
        self.per_utterance = per_utterance
        self.seed = seed
        self.epoch = 0

    def frames(self, utterance: str, *, total: int) -> Tensor:
        """(per_utterance, num_frames) int64: the frames of each segment, of ``total``."""
        starts = []
        for index in range(self.per_utterance):
            name = f"{self.seed}/{self.epoch}/{utterance}" + (f"/{index}" if index else "")
            starts.append(random.Random(name).randrange(max(1, total - self.num_frames + 1)))
        return (torch.tensor(starts)[:, None] + torch.arange(self.num_frames)) % total


def cut(x: Tensor, *, frames: Tensor) -> Tensor:
    """Segments (B * K, S, ...) of a batch (B, N, ...) at the frames (B, K, S) of `Crops`."""
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return x[rows, frames].flatten(0, 1)
