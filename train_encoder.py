"""Stages "embedding" and "encoder": a causal student learns a frozen encoder's layers.

    python train_encoder.py hparams/causal_embedding.yaml --data_folder LIBRITTS
    python train_encoder.py hparams/causal_encoder.yaml --data_folder LIBRITTS

The teacher is WavLM with full context, the student WavLM in its causal form (FocalCodec-Stream,
arXiv:2509.16195). The loss is a weighted sum of the squared errors behind the positional embedding
and behind every layer; the YAML says which parameters are trained and what the student begins with:
its teacher's weights, or those of the stage before.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from torch import Tensor

from recipes.common.brain import CodecBrain
from recipes.common.experiment import run_experiment
from recipes.common.losses import masked_mse, rank_share
from recipes.common.student import layer_feats
from recipes.common.training_brain import Update


class Distances(NamedTuple):
    """A batch's errors by name, each a mean over real frames and channels, and mask (B, N).

    ``layer_0`` is that behind the positional embedding, ``layer_1`` that behind the first layer,
    and so on; ``distillation`` is their weighted sum.
    """

    terms: dict[str, Tensor]
    mask: Tensor


class EncoderBrain(CodecBrain):
    """Distillation of whole utterances, layer by layer."""

    selection_key = "distillation"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weights = self._checked_weights()
        # What is behind the last layer that counts is not computed.
        self.depth = max(layer for layer, weight in enumerate(self.weights) if weight > 0)

    def _checked_weights(self) -> list[float]:
        weights, needed = self.hparams.layer_weights, 1 + self.hparams.student.num_layers
        if len(weights) != needed or min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"layer_weights must be {needed} numbers, one for the positional embedding and one "
                f"for each layer, none below 0 and not all of them 0, got {weights}"
            )
        return weights

    def distances(self, batch: Any) -> Distances:
        """Send a batch through both encoders."""
        sig, lens = batch.sig
        with torch.no_grad(), torch.autocast(sig.device.type, enabled=False):
            teacher = layer_feats(self.encoder, sig, lens=lens, depth=self.depth)
        student = self.modules.student(sig, lens=lens, depth=self.depth)
        errors = [
            masked_mse(hyp, ref, mask=teacher.mask)
            for hyp, ref in zip(student.layers, teacher.layers, strict=True)
        ]
        counted = (weight * error for weight, error in zip(self.weights, errors, strict=False))
        terms = {f"layer_{layer}": error for layer, error in enumerate(errors)}
        terms |= {"distillation": sum(counted), "padding": 1 - teacher.mask.float().mean()}
        return Distances(terms, teacher.mask)

    def updates(self, batch: Any) -> Iterator[Update]:
        """Yield the one loss of this stage."""
        with self.training_ctx:
            terms, mask = self.distances(batch)
        num_frames = mask.sum()
        loss = rank_share(num_frames) * terms["distillation"]
        detached = {name: value.detach() for name, value in terms.items()}
        yield Update("student", loss, detached, num_frames)

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Errors, by real frames."""
        terms, mask = self.distances(batch)
        return {name: float(value) for name, value in terms.items()}, float(mask.sum())


if __name__ == "__main__":
    run_experiment(EncoderBrain, sys.argv[1:])
