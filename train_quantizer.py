"""Stage "quantizer": train compressor, quantizer and decompressor on frozen features (paper, D.1).

    python train_quantizer.py hparams/bsq.yaml --data_folder LIBRITTS --decoder_checkpoint RUN

Whole utterances, or segments where the YAML has ``segment_frames``; masked mean squared error plus
the terms that the quantizer has (BSQ: entropy). With a decoder checkpoint every validation decodes
audio, from tokens (``hyp``) and from unquantized features (``rec``, the upper bound); without one
it reports features and code usage only. With hparams/wavlm6_km.yaml it trains the dequantizer of
the baseline WavLM6-KM on the centroids of ``recipes/train_kmeans.py``.

Where the YAML has a ``student`` (hparams/joint.yaml), the features that are compressed are those of
this encoder, which is trained, too; the frozen encoder's are the target.
"""

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
from torch import Tensor, nn

from recipes.common.brain import CodecBrain
from recipes.common.code_usage import CodeUsage
from recipes.common.encoders import feature_space, features_of
from recipes.common.experiment import run_experiment
from recipes.common.feature_moments import FeatureMoments
from recipes.common.kmeans import load_centroids
from recipes.common.losses import masked_mse, rank_share
from recipes.common.run_folder import read_description
from recipes.common.training_brain import Update
from recipes.common.weights import load_parameters

logger = logging.getLogger(__name__)


class Quantization(NamedTuple):
    """A batch after the bottleneck.

    feats (B, N, H) and mask (B, N) as the frozen encoder gave them, toks (B, L) and tok_mask
    (B, L), qfeats (B, N, H), and scalar terms: ``reconstruction`` is the squared error's mean over
    real frames and channels; ``entropy`` and its two parts, in nats, and ``commitment`` are there
    if the quantizer has them.
    """

    feats: Tensor
    mask: Tensor
    toks: Tensor
    tok_mask: Tensor
    qfeats: Tensor
    terms: dict[str, Tensor]


class QuantizerBrain(CodecBrain):
    """Reconstruction error and entropy; everything that chooses follows the error alone."""

    selection_key = "reconstruction"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trains_on_sig = "student" in self.modules
        self.codec = self.hparams.codec.to(self.device)
        self.codec.decoder.eval().requires_grad_(False)
        for module in (self.codec.compressor, self.codec.decompressor):
            module.recomputes = self.hparams.recompute_activations
        self.code_usage = CodeUsage(self.codec.codebook_size)
        self._fill_quantizer()
        self.decodes = self.hparams.decoder_checkpoint is not None
        if self.decodes:
            self._check_features_of(Path(self.hparams.decoder_checkpoint))
            load_parameters(
                self.codec.decoder, self.hparams.decoder_checkpoint, name="decoder", min_key="mel"
            )
        else:
            logger.warning(
                "decoder_checkpoint is null: validation reports features and code usage, no audio"
            )

    def _fill_quantizer(self) -> None:
        """Load the weights of a quantizer that has some, unless a checkpoint or a codec does."""
        checkpoint = getattr(self.hparams, "kmeans_checkpoint", None)
        is_filled = checkpoint is None and self.hparams.init_from is not None
        if not is_filled and not self.checkpointer.list_checkpoints():
            load_centroids(self.codec.quantizer, checkpoint, encoder=self.encoder)

    def _check_features_of(self, decoder_run: Path) -> None:
        """Refuse a decoder that was trained on other features, where its run folder tells."""
        description = read_description(decoder_run)
        if description is None:
            return
        theirs = features_of(description)
        ours = feature_space(self.encoder, self.hparams.encoder_checkpoint)
        if theirs != ours:
            raise ValueError(
                f"{decoder_run} was trained on features of encoder {theirs}, this run has those of "
                f"{ours}; give both stages the same encoder and encoder_checkpoint"
            )

    def start_from(self) -> dict[str, nn.Module]:
        """Fine-tune compressor and decompressor, around the codec's quantizer."""
        codec = self.hparams.codec
        names = ("compressor", "quantizer", "decompressor")
        return {name: getattr(codec, name) for name in names}

    def optimized(self) -> dict[str, nn.Module]:
        """One optimizer for all that is trained."""
        return {"quantizer": self.modules}

    def quantize(self, batch: Any) -> Quantization:
        """Send a batch through compressor, quantizer and decompressor."""
        feats, mask = self.segment_features(batch)
        lats = self.modules.compressor(self.heard_features(batch, feats), mask=mask)
        tok_mask = mask[:, :: math.prod(self.codec.compressor.downscale_factors)]
        toks, codes = self.codec.quantizer(lats, mask=tok_mask)
        qfeats = self.modules.decompressor(codes, mask=tok_mask)[:, : feats.shape[1]]
        terms = {
            "reconstruction": masked_mse(qfeats, feats, mask=mask),
            **self._quantizer_terms(lats, tok_mask),
            "padding": 1 - mask.float().mean(),
        }
        return Quantization(feats, mask, toks, tok_mask, qfeats, terms)

    def heard_features(self, batch: Any, feats: Tensor) -> Tensor:
        """Features (B, N, H) that are compressed: the frozen ones, or those of the student."""
        if "student" not in self.modules:
            return feats
        sig, lens = batch.sig
        return self.modules.student(sig, lens=lens).layers[-1]

    def _quantizer_terms(self, lats: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Terms that the quantizer asks for; not every one has an entropy or a commitment."""
        terms = {}
        options = {}
        if hasattr(self.hparams, "entropy_weight"):
            options["inverse_temperature"] = self.hparams.inverse_temperature
            options["diversity_weight"] = self.hparams.diversity_weight
        entropy = self.codec.quantizer.entropy_loss(lats, mask=mask, **options)
        if entropy is not None:
            terms["entropy"] = entropy.loss
            terms["sample_entropy"] = entropy.sample_entropy
            terms["codebook_entropy"] = entropy.codebook_entropy
        commitment = self.codec.quantizer.commitment_loss(lats, mask=mask)
        if commitment is not None:
            terms["commitment"] = commitment
        return terms

    def updates(self, batch: Any) -> Iterator[Update]:
        """Yield the one loss of this stage."""
        with self.training_ctx:
            quantized = self.quantize(batch)
        terms = quantized.terms
        num_frames = quantized.mask.sum()
        weighted = {"reconstruction": self.hparams.reconstruction_weight * terms["reconstruction"]}
        # The entropy is that of all ranks' frames already; means become so by a rank's share.
        shares = {"reconstruction": rank_share(num_frames)}
        if "entropy" in terms:
            weighted["entropy"] = self.hparams.entropy_weight * terms["entropy"]
        if "commitment" in terms:
            weighted["commitment"] = self.hparams.commitment_weight * terms["commitment"]
            shares["commitment"] = rank_share(quantized.tok_mask.sum())
        detached = {name: value.detach() for name, value in terms.items()}
        detached["loss"] = sum(weighted.values()).detach()
        loss = sum(shares.get(name, 1) * value for name, value in weighted.items())
        yield Update("quantizer", loss, detached, num_frames)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin a stage with empty statistics of codes and features."""
        super().on_stage_start(stage, epoch)
        self.code_usage.clear()
        self.feature_moments = FeatureMoments()

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Reconstruction error and entropies, by real frames; audio if there is a decoder."""
        quantized = self.quantize(batch)
        self.code_usage.append(quantized.toks, mask=quantized.tok_mask)
        self.feature_moments.append(quantized.feats[quantized.mask])
        if self.decodes:
            feats, mask = quantized.feats, quantized.mask
            decoded = {
                "hyp": self.codec.decoder(quantized.qfeats, mask=mask),
                "rec": self.codec.decoder(feats, mask=mask),
            }
            self.score_audio(batch, stage, decoded, sample_rate=self.codec.sample_rate_output)
        terms = {name: float(value) for name, value in quantized.terms.items()}
        return terms, float(quantized.mask.sum())

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Code usage, bitrate and the features' variance, the error of a quantizer without use."""
        return {
            **self.code_usage.summarize(across_ranks=False),  # every rank validates everything
            "feature_variance": self.feature_moments.variance(),
            "bitrate": self.codec.bitrate,
        }


if __name__ == "__main__":
    run_experiment(QuantizerBrain, sys.argv[1:])
