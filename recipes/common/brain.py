"""CodecBrain: what the Brains of all stages of the codec share, beside all other trainings.

The frozen encoder and its features, parts to begin with, and the scores of what a stage decodes.
"""

from typing import Any

import speechbrain as sb
from torch import Tensor, nn

from recipes.common.frozen_features import Augment, Features, FrozenFeatures
from recipes.common.training_brain import TrainingBrain
from recipes.common.weights import fill_from


class CodecBrain(TrainingBrain):
    """Base of the stages' Brains; `hparams` holds the keys of ``hparams/*.yaml``.

    Attributes
    ----------
    trains_on_sig : whether training needs the signal beside its features.
    target_rate : rate in Hz of the signal that a decoder learns; None where none is learnt.
    """

    trains_on_sig = False
    target_rate: int | None = None

    def __init__(self, *, hparams: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(hparams=hparams, sample_rate=hparams["encoder"].sample_rate, **kwargs)
        # Outside `modules`: never wrapped, never in train mode, never in an optimizer or a
        # checkpoint.
        self.encoder = self.hparams.encoder.to(self.device).eval().requires_grad_(False)
        self.frozen_parts["encoder"] = self.encoder
        self.frozen = FrozenFeatures(self.encoder)
        init_from = getattr(self.hparams, "init_from", None)
        if init_from is not None and not self.checkpointer.list_checkpoints():
            known = getattr(self.hparams, "student", self.encoder)
            fill_from(self.start_from(), init_from, encoder=known, min_key=self.selection_key)

    def start_from(self) -> dict[str, nn.Module]:
        """Modules that ``init_from`` fills, by their name in a codec; a stage writes it."""
        raise NotImplementedError

    def features(self, batch: Any) -> Features:
        """Frozen features of a batch, see `recipes.common.frozen_features`."""
        return self.frozen(batch, augment=self._augment())

    def segment_features(self, batch: Any) -> Features:
        """Those of its segments, or of whole utterances where it has none."""
        return self.frozen.segments(batch, augment=self._augment())

    def _augment(self) -> Augment | None:
        return getattr(self.hparams, "augment", None) if self.modules.training else None

    def _compile(self) -> None:
        """Compile the frozen encoder with the modules that SpeechBrain compiles."""
        super()._compile()
        if self.compile:
            self.frozen.compile()

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin a stage; segments are cut elsewhere in every epoch."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN and (crops := self.loaders[stage].dataset.crops) is not None:
            crops.epoch = epoch

    def score_audio(
        self, batch: Any, stage: sb.Stage, decoded: dict[str, Tensor], *, sample_rate: int
    ) -> None:
        """Score and write decoded signals, see `recipes.common.audio_scores.AudioScores.append`."""
        self.audio_scores.append(
            batch,
            decoded,
            sample_rate=sample_rate,
            subset=stage.name.lower(),
            step=self.optimizer_step,
            with_ref=stage == sb.Stage.TEST,
        )
