"""Baseline WavLM6-KM, first stage: k-means of frozen features (paper, appendix C).

    python -m recipes.train_kmeans hparams/kmeans.yaml --data_folder LIBRISPEECH

Mini-batch k-means on segments until the centroids stop changing. The quantizer stage takes the
result, ``kmeans.safetensors`` in the run folder, by ``--kmeans_checkpoint``. Everything else is as
in the training stages: checkpoints, exact resumption, feature cache, several processes, logs.
"""

import logging
import math
import sys
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.distributed import main_process_only
from torch import Tensor, nn

from focalcodec.masking import masked_mean
from recipes.common.brain import CodecBrain
from recipes.common.code_usage import CodeUsage
from recipes.common.experiment import run_experiment
from recipes.common.feature_moments import FeatureMoments
from recipes.common.guarded_step import on_all_ranks
from recipes.common.kmeans import write_centroids
from recipes.common.step_log import StepTensors, from_main

logger = logging.getLogger(__name__)


class KMeansBrain(CodecBrain):
    """Updates of centroids in the place of optimizer steps; a group of batches makes one.

    ``quantization_error`` is the squared distance of frames to their centroids, mean over frames
    and channels: what the dequantizer, which is trained on top, starts from.
    """

    selection_key = "quantization_error"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kmeans = self.modules.kmeans
        self.code_usage = CodeUsage(self.kmeans.quantizer.codebook_size)
        if self.hparams.init_from is not None:
            self.kmeans.start()

    def start_from(self) -> dict[str, nn.Module]:
        """Go on from a codec's centroids."""
        return {"quantizer": self.modules.kmeans.quantizer}

    def optimized(self) -> dict[str, nn.Module]:
        """Nothing: no gradient trains centroids."""
        return {}

    def on_fit_start(self) -> None:
        """Resume; a run whose centroids have settled trains no further."""
        super().on_fit_start()
        self._stop_if_settled()

    @torch.no_grad()
    def train_on(
        self, batch: Any, *, group: int, should_step: bool, idle: bool = False
    ) -> StepTensors:
        """Assign a batch's frames to centroids, and update these when the group is complete."""
        batch = batch.to(self.device, non_blocking=True)
        if self._group_finite is None:
            self._group_ids = []
            self._group_finite = torch.tensor(not idle, device=self.device)
        self._group_ids = self._group_ids + list(batch.id)
        feats, mask = self.segment_features(batch)
        frames = feats[mask]
        is_finite = frames.isfinite().all()
        error = self.kmeans.add(frames) if is_finite else frames.new_full((), math.nan)
        finite = self._group_finite & is_finite
        terms = {"quantization_error": error}
        if should_step:
            finite = on_all_ranks(finite)
            terms["moved_centroids"] = self._update(finite)
        self._group_finite = None if should_step else finite
        return StepTensors(
            epoch=self.epoch,
            step=self.optimizer_step + 1,
            ids=self._group_ids,
            terms=terms,
            weight=float(len(frames)),
            failed=~finite if should_step else None,
            rates={},
        )

    def _update(self, finite: Tensor) -> Tensor:
        if finite:
            return self.kmeans.update()
        self.kmeans.discard()
        return torch.zeros((), device=self.device)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin a stage with empty statistics of codes and features."""
        super().on_stage_start(stage, epoch)
        self.code_usage.clear()
        self.feature_moments = FeatureMoments()

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Quantization error of whole utterances, by real frames."""
        feats, mask = self.features(batch)
        toks, codes = self.kmeans.quantizer(feats, mask=mask)
        error = masked_mean((codes - feats).square().mean(dim=-1), mask=mask)
        self.code_usage.append(toks, mask=mask)
        self.feature_moments.append(feats[mask])
        return {"quantization_error": float(error)}, float(mask.sum())

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Code usage, inertia, the features' variance, and in training how far centroids moved."""
        error = self.means.summarize()["quantization_error"]
        inertia = error * self.kmeans.quantizer.code_dim
        values = {
            **self.code_usage.summarize(across_ranks=False),  # every rank validates everything
            "inertia": inertia,  # squared distance, mean over frames
            "feature_variance": self.feature_moments.variance(),
        }
        if stage == sb.Stage.VALID:
            shift = self.kmeans.shift()
            values["centroid_shift"] = shift / math.sqrt(inertia) if shift > 0 else 0.0
        return values

    def anneal(self, stage: sb.Stage, epoch: int, values: dict[str, float]) -> None:
        """Stop when centroids moved little since the last validation."""
        if stage == sb.Stage.VALID:
            self.kmeans.mark(from_main(values["centroid_shift"]))
            self._stop_if_settled()

    def _stop_if_settled(self) -> None:
        if self.kmeans.last_shift < self.hparams.centroid_tolerance:
            logger.info("centroids have settled: they moved by %.4f", self.kmeans.last_shift)
            self.hparams.epoch_counter.limit = self.hparams.epoch_counter.current

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Log; after the test, write the centroids that were tested."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            self._write_centroids(self.run_log.folder)

    @main_process_only
    def _write_centroids(self, folder: Path) -> None:
        logger.info(
            "centroids: %s", write_centroids(self.kmeans.quantizer, folder, encoder=self.encoder)
        )


if __name__ == "__main__":
    run_experiment(KMeansBrain, sys.argv[1:])
