"""TokenBrain: what the Brains of all tasks on tokens share.

One model, one loss, and a test that is written down twice: with the validations in
``metrics.json`` as every training's, and as an evaluation (`recipes.downstream.evaluation`) that
``python -m recipes.report`` prints beside the published numbers.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from torch import Tensor, nn

from focalcodec.masking import lengths_to_mask, num_valid
from recipes.common.known_metrics import WEIGHTS
from recipes.common.losses import rank_share
from recipes.common.scoring import SAMPLE_RATE
from recipes.common.training_brain import TrainingBrain, Update, unwrapped
from recipes.downstream.corpus import Corpus
from recipes.downstream.evaluation import Tested, write_evaluation
from recipes.evaluation.scores import at_16k


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
    weights : score -> column of its weight, of rows of the test.
    """

    task_name: str
    decodes = False
    weights: Mapping[str, str] = {}

    def __init__(
        self, *, task: Task, corpus: Corpus, dataset: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(modules={"model": task.model}, sample_rate=SAMPLE_RATE, **kwargs)
        self.task, self.corpus, self.dataset = task, corpus, dataset
        self.codec = corpus.codec
        if self.codec is not None:
            self.frozen_parts["codec"] = self.codec.to(self.device)
        self.test_rows: list[dict[str, Any]] = []

    # To be written by a task

    def loss_terms(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of a batch, the loss under `selection_key`, and what they are means over."""
        raise NotImplementedError

    def tests(self) -> Iterator[Tested]:
        """Yield the tests that were made, each with its rows."""
        yield Tested("evaluation", self.test_rows, weights=self.weights)

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
        """Begin a stage without rows."""
        super().on_stage_start(stage, epoch)
        self.test_rows = []

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
                    seed=self.hparams.seed,
                )

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Share of each codebook in the embedding, where there are several."""
        embedding = next((m for m in self.model.modules() if hasattr(m, "codebook_weights")), None)
        if embedding is None or embedding.num_codebooks == 1:
            return {}
        weights = embedding.codebook_weights.tolist()
        return {f"codebook_weight_{k}": weight for k, weight in enumerate(weights)}

    # For tasks that decode

    def decode(self, toks: Tensor, *, num_samples: int | None = None) -> Tensor:
        """Signal (T,) at 16 kHz, on the CPU, of tokens (L, K).

        Raises
        ------
        ScoreError : if the codec gives nothing, or what is not finite.
        """
        sig = self.codec.toks_to_sig(toks[None])[0]
        return at_16k(sig, sample_rate=self.codec.sample_rate_output, num_samples=num_samples)

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

    def audio_test(self, name: str, *, hyp: str = "hyp", **about: Any) -> Tested:
        """Scores of decoded signals as an evaluation.

        Parameters
        ----------
        name : of its folder.
        hyp : prefix of the signals that are the test's.
        about : further fields of `recipes.downstream.evaluation.Tested`.
        """
        rows: dict[str, dict[str, Any]] = {row["id"]: dict(row) for row in self.test_rows}
        weights = {}
        for prefix, metrics in self.audio_scores.metrics.items():
            if prefix not in (hyp, "ref", "input"):
                continue
            shown = "hyp" if prefix == hyp else prefix
            weights |= {f"{shown}_{score}": f"{shown}_{key}" for score, key in WEIGHTS.items()}
            for row in metrics.rows:
                found = {f"{shown}_{key}": value for key, value in row.items() if key != "id"}
                rows.setdefault(row["id"], {"id": row["id"]}).update(found)
        logged = self.run_log.metrics["test"]
        not_computed, failures = logged["not_computed"], []
        if hyp in self.audio_scores.metrics:
            scored = self.audio_scores.metrics[hyp]
            not_computed = scored.not_computed
            failures = [failure._asdict() for failure in scored.failures]
        return Tested(
            name,
            list(rows.values()),
            weights=weights,
            not_computed=not_computed,
            models=logged["models"],
            failures=failures,
            samples=self.run_log.folder / "samples" / "test",
            **about,
        )

    def durations(self) -> dict[str, float]:
        """Seconds of each utterance of the test."""
        return {
            utt_id: row["duration"]
            for utt_id, row in self.task.datasets[sb.Stage.TEST].data.items()
        }


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
