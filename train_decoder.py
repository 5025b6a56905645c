"""Stage "decoder": train Vocos adversarially to turn frozen features into speech (paper, D.1).

    python train_decoder.py hparams/vocos.yaml --data_folder /path/to/LibriTTS

Whole utterances go through the frozen encoder; one segment of each is cut from features and signal
at the same place. Discriminators and decoder are stepped in turn on the same decoded segment. The
discriminators are thrown away after training.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import speechbrain as sb
import torch
from torch import Tensor, nn

from recipes.common.brain import CodecBrain, Features, Update
from recipes.common.experiment import run_experiment


class DecoderBrain(CodecBrain):
    """Adversarial training on segments, log-mel distance on whole utterances."""

    selection_key = "mel"

    def updates(self, batch: Any) -> Iterator[Update]:
        """Yield the discriminators' loss, then the decoder's, on the same decoded segments."""
        feats, ref_sig = self.segments(self.features(batch), batch.id)
        with self.training_ctx:
            rec_sig = self.modules.decoder(feats)
        rec_sig = rec_sig.float()
        yield self._discriminator_update(rec_sig.detach(), ref_sig)
        with frozen(self.modules.discriminator):
            yield self._decoder_update(rec_sig, ref_sig)

    def _discriminator_update(self, rec_sig: Tensor, ref_sig: Tensor) -> Update:
        with self.training_ctx:
            rec_scores, _ = self.modules.discriminator(rec_sig)
            ref_scores, _ = self.modules.discriminator(ref_sig)
        hinges = [
            self.hparams.discriminator_loss(rec.float(), ref.float())
            for rec, ref in zip(rec_scores, ref_scores, strict=True)
        ]
        loss, real, fake = (sum(parts) for parts in zip(*hinges, strict=True))
        terms = {"discriminator": loss, "discriminator_real": real, "discriminator_fake": fake}
        return Update("discriminator", loss, _detached(terms), len(ref_sig))

    def _decoder_update(self, rec_sig: Tensor, ref_sig: Tensor) -> Update:
        with self.training_ctx:
            rec_scores, rec_maps = self.modules.discriminator(rec_sig)
            with torch.no_grad():
                _, ref_maps = self.modules.discriminator(ref_sig)
        adversarial = sum(self.hparams.adversarial_loss(scores.float()) for scores in rec_scores)
        matching = self.hparams.feature_matching_loss(_float(rec_maps), _float(ref_maps))
        mel = self.hparams.mel_loss(rec_sig, ref_sig)
        loss = (
            self.hparams.adversarial_weight * adversarial
            + self.hparams.feature_matching_weight * matching
            + self.hparams.mel_weight * mel
        )
        terms = {
            "adversarial": adversarial,
            "feature_matching": matching,
            "mel": mel,
            "decoder": loss,
        }
        return Update("decoder", loss, _detached(terms), len(ref_sig))

    def segments(self, features: Features, ids: list[str]) -> tuple[Tensor, Tensor]:
        """Cut one segment from each utterance's features and, at the same place, from its signal.

        The place derives from seed, epoch and utterance id alone, so it needs no state, and neither
        the number of loader processes nor a resumption changes it. An utterance shorter than a
        segment is repeated, never padded.

        Returns
        -------
        feats (B, segment_frames, H) and sig (B, segment_frames * hop_length).
        """
        hop_length, size = self.encoder.hop_length, self.hparams.segment_frames
        feats, ref_sig = [], []
        for row, (utterance, num_frames) in enumerate(
            zip(ids, features.mask.sum(1).tolist(), strict=True)
        ):
            source = random.Random(f"{self.hparams.seed}/{self.epoch}/{utterance}")
            start = source.randrange(max(1, num_frames - size + 1))
            frames = torch.arange(start, start + size, device=features.feats.device) % num_frames
            feats.append(features.feats[row, frames])
            ref_sig.append(features.sig[row].unflatten(0, (-1, hop_length))[frames].flatten())
        return torch.stack(feats), torch.stack(ref_sig)

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Log-mel distance of whole utterances, mean over utterances."""
        feats, mask, ref_sig = self.features(batch)
        rec_sig = self.modules.decoder(feats, mask=mask).float()
        sizes = (mask.sum(1) * self.encoder.hop_length).tolist()
        distances = [
            float(self.hparams.mel_loss(rec_sig[row, :size], ref_sig[row, :size]))
            for row, size in enumerate(sizes)
        ]
        self.score_audio(batch, stage, {"rec": rec_sig})
        return {"mel": sum(distances) / len(distances)}, len(distances)

    def anneal(self, stage: sb.Stage, epoch: int, values: dict[str, float]) -> None:
        """Exponential decay after every epoch of training."""
        if stage == sb.Stage.TRAIN:
            self.set_learning_rate(self.hparams.scheduler(epoch)[0])


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep a backward pass from computing and accumulating gradients of a module's parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}


def _float(maps: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[value.float() for value in values] for values in maps]


if __name__ == "__main__":
    run_experiment(DecoderBrain, sys.argv[1:])
