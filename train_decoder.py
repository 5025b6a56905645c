"""Stage "decoder": train Vocos adversarially to turn frozen features into speech (paper, D.1).

    python train_decoder.py hparams/vocos.yaml --data_folder /path/to/LibriTTS
    python train_decoder.py hparams/wavenext.yaml --data_folder /path/to/LibriTTS

Whole utterances go through the frozen encoder, or their features come from the feature cache;
segments are cut from features and signal at the same places. Discriminators and decoder are stepped
in turn on the same decoded segments. The discriminators are thrown away after training.

A decoder may work at another rate than the encoder (WaveNeXt: 24 kHz); it then learns the file at
its own rate, while the encoder hears the same file at 16 kHz.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import speechbrain as sb
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recipes.common.brain import CodecBrain
from recipes.common.crops import cut
from recipes.common.ema import MovingAverage
from recipes.common.experiment import run_experiment
from recipes.common.training_brain import Update, unwrapped

Maps = list[list[Tensor]]  # feature maps of each discriminator


class DecoderBrain(CodecBrain):
    """Adversarial training on segments, log-mel distance on whole utterances."""

    selection_key = "mel"
    trains_on_sig = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_rate = output_rate(self.modules.decoder, encoder=self.encoder)
        self.hparams.mel_loss.to(self.device)
        if self.hparams.mel_loss.sample_rate != self.target_rate:
            raise ValueError(
                f"mel_loss.sample_rate is {self.hparams.mel_loss.sample_rate} Hz, but the decoder "
                f"gives {self.target_rate} Hz; start from hparams/vocos.yaml for a decoder of "
                "16 kHz, from hparams/wavenext.yaml for one of 24 kHz"
            )
        self.average = None
        if self.hparams.ema_decay:
            self.average = MovingAverage(self.modules.decoder, decay=self.hparams.ema_decay)
            self.checkpointer.add_recoverable("decoder_ema", self.average.module)

    def start_from(self) -> dict[str, nn.Module]:
        """Fine-tune the decoder; discriminators are in no codec and start anew."""
        return {"decoder": self.modules.decoder}

    def updates(self, batch: Any) -> Iterator[Update]:
        """Yield the discriminators' loss, then the decoder's, on the same decoded segments."""
        feats, ref_sig, padding = self.segments(batch)
        with self.training_ctx:
            rec_sig = self.modules.decoder(feats)
        rec_sig = rec_sig.float()
        update, ref_maps = self._discriminator_update(rec_sig.detach(), ref_sig)
        update.terms["padding"] = padding
        yield update
        # Inside an accumulation group the discriminators are still those of their own update.
        stepped = self._accumulation()[1]
        yield self._decoder_update(rec_sig, ref_sig, None if stepped else ref_maps)

    def after_step(self) -> None:
        """Let the average follow."""
        if self.average is not None:
            self.average.update(unwrapped(self.modules.decoder), step=self.optimizer_step)

    def _discriminator_update(self, rec_sig: Tensor, ref_sig: Tensor) -> tuple[Update, Maps]:
        """Judge both in one pass; with the update, the feature maps of the reference."""
        size = len(ref_sig)
        with self.training_ctx:
            scores, maps = self.modules.discriminator(torch.cat([rec_sig, ref_sig]))
        pairs = [(score[:size].float(), score[size:].float()) for score in scores]
        hinges = [self.hparams.discriminator_loss(rec, ref) for rec, ref in pairs]
        loss, real, fake = (sum(parts) for parts in zip(*hinges, strict=True))
        rec_score, ref_score = (
            sum(score.mean() for score in side) / len(pairs) for side in zip(*pairs, strict=True)
        )
        terms = {
            "discriminator": loss,
            "discriminator_real": real,
            "discriminator_fake": fake,
            "score_real": ref_score,
            "score_fake": rec_score,
            "score_margin": ref_score - rec_score,
        }
        ref_maps = [[value[size:].detach() for value in values] for values in maps]
        return Update("discriminator", loss, _detached(terms), float(size)), ref_maps

    def _decoder_update(self, rec_sig: Tensor, ref_sig: Tensor, ref_maps: Maps | None) -> Update:
        # Not through DistributedDataParallel: these weights get no gradient to be averaged.
        discriminator = unwrapped(self.modules.discriminator)
        with frozen(discriminator), parametrize.cached(), self.training_ctx:
            if ref_maps is None:
                with torch.no_grad():
                    _, ref_maps = discriminator(ref_sig)
            rec_scores, rec_maps = discriminator(rec_sig)
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
        return Update("decoder", loss, _detached(terms), float(len(ref_sig)))

    def segments(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Segments of features and signal from the same places (`recipes.common.crops`).

        Returns
        -------
        feats (S, segment_frames, H), sig (S, segment_frames * decoder.hop_length) and the share of
        padding among the frames that were encoded for them.
        """
        if hasattr(batch, "segments"):
            feats, sig = batch.feats.data.float(), batch.segments.data
            return feats.flatten(0, 1), sig.flatten(0, 1), sig.new_zeros(())
        feats, mask = self.features(batch)
        sig = self.target_sig(batch, feats.shape[1]).unflatten(1, (feats.shape[1], -1))
        frames = batch.frames.data  # (B, K, segment_frames)
        cut_feats, cut_sig = cut(feats, frames=frames), cut(sig, frames=frames)
        return cut_feats, cut_sig.flatten(1), 1 - mask.float().mean()

    def target_sig(self, batch: Any, num_frames: int) -> Tensor:
        """Give what the decoder shall make of whole utterances (B, num_frames * its hop_length)."""
        sig = batch.target.data if hasattr(batch, "target") else batch.sig.data
        size = num_frames * unwrapped(self.modules.decoder).hop_length
        return nn.functional.pad(sig, (0, max(0, size - sig.shape[1])))[:, :size]

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Log-mel distance of whole utterances, mean over utterances."""
        feats, mask = self.features(batch)
        ref_sig = self.target_sig(batch, feats.shape[1])
        decoder = self.modules.decoder if self.average is None else self.average.module
        rec_sig = decoder(feats, mask=mask).float()
        sizes = (mask.sum(1) * unwrapped(self.modules.decoder).hop_length).tolist()
        distances = [
            float(self.hparams.mel_loss(rec_sig[row, :size], ref_sig[row, :size]))
            for row, size in enumerate(sizes)
        ]
        self.score_audio(batch, stage, {"rec": rec_sig}, sample_rate=self.target_rate)
        return {"mel": sum(distances) / len(distances)}, len(distances)

    def anneal(self, stage: sb.Stage, epoch: int, values: dict[str, float]) -> None:
        """Exponential decay after every epoch of training."""
        if stage == sb.Stage.TRAIN:
            self.set_learning_rate(self.hparams.scheduler(epoch)[0])


def output_rate(decoder: nn.Module, *, encoder: nn.Module) -> int:
    """Rate of a decoder's signal in Hz.

    Raises
    ------
    ValueError : if its frames do not last as long as the encoder's.
    """
    rate = getattr(decoder, "sample_rate", encoder.sample_rate)
    needed = encoder.hop_length * rate / encoder.sample_rate
    if decoder.hop_length != needed:
        raise ValueError(
            f"encoder.hop_length is {encoder.hop_length} samples at {encoder.sample_rate} Hz but "
            f"decoder.hop_length is {decoder.hop_length} at {rate} Hz; a frame must last equally "
            f"long in both: set decoder.hop_length to {needed:g}"
        )
    return rate


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


def _float(maps: Maps) -> Maps:
    return [[value.float() for value in values] for values in maps]


if __name__ == "__main__":
    run_experiment(DecoderBrain, sys.argv[1:])
