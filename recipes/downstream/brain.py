"""TokenBrain: what the Brains of all tasks on tokens share.

One model, one loss, and a test that is written down twice: with the validations in
``metrics.json`` as every training's, and as an evaluation (`recipes.downstream.evaluation`) that
``python -m recipes.report`` prints beside the published numbers.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from torch import Tensor, nn

from focalcodec.masking import lengths_to_mask, num_valid
from recipes.common.known_metrics import METRICS, WEIGHTS
from recipes.common.losses import rank_share
from recipes.common.random_state import random_state, set_random_state
from recipes.common.scoring import SAMPLE_RATE, ScoreError
from recipes.common.training_brain import TrainingBrain, Update, unwrapped
from recipes.downstream.corpus import Corpus
from recipes.downstream.evaluation import Tested, remove_outdated, write_evaluation
from recipes.evaluation.scores import at_16k

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What a script makes of a corpus.

    Attributes
    ----------
    model : to be trained.
    datasets : of each stage, ``toks`` (L, K) among their items.
    """

    model: nn.Module
    datasets: Mapping[sb.Stage, DynamicItemDataset]


class Sequences(NamedTuple):
    """Padded sequences of a batch: values (B, L, ...) and mask (B, L)."""

    values: Tensor
    mask: Tensor


class TokenBrain(TrainingBrain):
    """Base of the tasks' Brains; the loss is the term that `selection_key` names.

    Parameters
    ----------
    task : model and datasets.
    corpus : tokens and codec.
    dataset : name and options of the dataset block, for the evaluation.
    kwargs : of `recipes.common.training_brain.TrainingBrain`, but modules and sample_rate.

    Attributes
    ----------
    task_name : of evaluations, such as ``asr``.
    decodes : whether the task needs the codec itself, beside its tokens.
    test_rows : what a task notes of each utterance of a validation or test.
    """

    task_name: str
    decodes = False

    def __init__(
        self, *, task: Task, corpus: Corpus, dataset: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(modules={"model": task.model}, sample_rate=SAMPLE_RATE, **kwargs)
        self.task, self.corpus, self.dataset = task, corpus, dataset
        self.codec = corpus.codec
        if self.codec is not None:
            self.frozen_parts["codec"] = self.codec.to(self.device)
        self.test_rows: list[dict[str, Any]] = []
        self._undecoded: list[dict[str, str]] = []

    @classmethod
    def check(cls, hparams: Mapping[str, Any]) -> None:
        """Refuse what the YAML alone shows to be wrong, before a corpus is tokenised for hours.

        Raises
        ------
        ValueError : if a metric is not known, or there is no audio to compare with.
        """
        if not cls.decodes:
            return
        if unknown := [name for name in hparams["metrics"] if name not in METRICS]:
            raise ValueError(f"unknown metrics {unknown}; known are {sorted(METRICS)}")
        if hparams["data_folder"] is None and (hparams["metrics"] or hparams["num_audio_samples"]):
            raise ValueError(
                "decoded speech is compared with the corpus, but data_folder is null; pass "
                "--data_folder, or --metrics '[]' --num_audio_samples 0"
            )

    # To be written by a task

    def loss_terms(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of a batch, the loss under `selection_key`, and what they are means over."""
        raise NotImplementedError

    def tests(self) -> list[Tested]:
        """Tests that were made, each with its rows."""
        raise NotImplementedError

    # For all tasks

    @property
    def model(self) -> nn.Module:
        """The model without what distributes it."""
        return unwrapped(self.modules.model)

    def updates(self, batch: Any) -> Iterator[Update]:
        """Yield the one loss."""
        with self.training_ctx:
            terms, count = self.loss_terms(batch)
        loss = rank_share(count) * terms[self.selection_key]
        yield Update("model", loss, {name: term.detach() for name, term in terms.items()}, count)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin a stage without rows, a test also without audio of an earlier one."""
        super().on_stage_start(stage, epoch)
        self.test_rows, self._undecoded = [], []
        if stage == sb.Stage.TEST and if_main_process():
            shutil.rmtree(self._samples, ignore_errors=True)

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Log; after the test, write it as an evaluation, too."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST and if_main_process():
            for test in self.tests():
                write_evaluation(
                    self.run_log.folder,
                    test,
                    task=self.task_name,
                    codec=self.corpus.description,
                    dataset=self.dataset,
                    durations=self.durations(),
                    step=self.optimizer_step,
                    seed=self.hparams.seed,
                )
            remove_outdated(self.run_log.folder, step=self.optimizer_step)

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Share of each codebook in the embedding, where there are several."""
        embedding = next((m for m in self.model.modules() if hasattr(m, "codebook_weights")), None)
        if embedding is None or embedding.num_codebooks == 1:
            return {}
        weights = embedding.codebook_weights.tolist()
        return {f"codebook_weight_{k}": weight for k, weight in enumerate(weights)}

    # For tasks that decode

    def decode(
        self, utterance: str, signals: Mapping[str, Tensor], *, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        """Signals (T,) at 16 kHz, on the CPU, of tokens (L, K).

        What a decoder draws depends on the utterance alone, and training goes on as if nothing had
        been drawn. A signal that is empty or not finite is left out, and noted as a failure.

        Parameters
        ----------
        utterance : its id.
        signals : tokens by prefix.
        num_samples : to which signals are cut or padded; None to leave them as they are.
        """
        decoded, state = {}, random_state()
        for prefix, toks in signals.items():
            torch.manual_seed(seed_of(self.hparams.seed, utterance))
            sig = self.codec.toks_to_sig(toks[None])[0]
            try:
                rate = self.codec.sample_rate_output
                decoded[prefix] = at_16k(sig, sample_rate=rate, num_samples=num_samples)
            except ScoreError as error:
                logger.warning("%s: %s of its tokens: %s", utterance, prefix, error)
                failure = {"id": utterance, "metric": prefix, "reason": str(error)}
                self._undecoded.append(failure)
        set_random_state(state)
        return decoded

    def score_signals(
        self,
        utterance: str,
        ref_sig: Tensor,
        signals: Mapping[str, Tensor],
        *,
        stage: sb.Stage,
        part: str = "",
    ) -> None:
        """Score and write decoded signals of an utterance, all (T,) at 16 kHz; as in `AudioScores`.

        Parameters
        ----------
        utterance : its id.
        ref_sig : what they should sound like.
        signals : by prefix.
        stage : validation or test.
        part : as of `recipes.common.audio_scores.AudioScores.append_utterance`.
        """
        row = self.task.datasets[stage].data[utterance]["row"]
        self.audio_scores.append_utterance(
            utterance,
            ref_sig,
            signals,
            language=row.get("language") or "en",
            subset=stage.name.lower(),
            step=self.optimizer_step,
            with_ref=stage == sb.Stage.TEST,
            part=part,
        )

    def audio_test(
        self, name: str, *, hyp: str = "hyp", rows: Sequence[Mapping[str, Any]] = (), **about: Any
    ) -> Tested:
        """Scores of decoded signals as an evaluation.

        Parameters
        ----------
        name : of its folder.
        hyp : prefix of the signals that are the test's.
        rows : what else is known of its utterances.
        about : further fields of `recipes.downstream.evaluation.Tested`.
        """
        found = {row["id"]: dict(row) for row in rows}
        weights = {}
        for prefix, metrics in self.audio_scores.metrics.items():
            if prefix not in (hyp, "ref", "input"):
                continue
            shown = "hyp" if prefix == hyp else prefix
            weights |= {f"{shown}_{score}": f"{shown}_{key}" for score, key in WEIGHTS.items()}
            for row in metrics.rows:
                scores = {f"{shown}_{key}": value for key, value in row.items() if key != "id"}
                found.setdefault(row["id"], {"id": row["id"]}).update(scores)
        logged = self.run_log.metrics["test"]
        not_computed = logged["not_computed"]
        failures = [failure for failure in self._undecoded if failure["metric"] == hyp]
        if hyp in self.audio_scores.metrics:
            scored = self.audio_scores.metrics[hyp]
            not_computed = scored.not_computed
            failures += [failure._asdict() for failure in scored.failures]
        return Tested(
            name,
            list(found.values()),
            weights=weights,
            not_computed=not_computed,
            models=logged["models"],
            failures=failures,
            samples=self._samples,
            hyp=hyp,
            **about,
        )

    def durations(self) -> dict[str, float]:
        """Seconds of each utterance of the test."""
        return {
            utt_id: row["duration"]
            for utt_id, row in self.task.datasets[sb.Stage.TEST].data.items()
        }

    @property
    def _samples(self) -> Path:
        return self.run_log.folder / "samples" / "test"


def seed_of(seed: int, utterance: str, sample: int = 0) -> int:
    """Seed of one sample of one utterance, whatever is drawn beside it."""
    digest = hashlib.sha256(f"{seed} {utterance} {sample}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def sequences(padded: Any) -> Sequences:
    """Values and mask of a batch's entry, whose lengths are relative.

    Parameters
    ----------
    padded : SpeechBrain's ``PaddedData``.
    """
    values, lens = padded
    size = values.shape[1]
    return Sequences(values, lengths_to_mask(num_valid(lens, size), size))


def tensor_of(toks: Any) -> Tensor:
    """(L, K) int64 of tokens as rows hold them, which use fewer bits."""
    return torch.from_numpy(toks.astype("int64"))
