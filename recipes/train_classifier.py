"""Speaker identification and emotion recognition on tokens (arXiv:2502.04465, section 4.5, D.2).

    python -m recipes.train_classifier recipes/hparams/speaker.yaml --data_folder LIBRISPEECH
    python -m recipes.train_classifier recipes/hparams/emotion.yaml --data_folder IEMOCAP

A shallow BiLSTM whose output is pooled to means and standard deviations, and one linear layer. The
``label`` is any column of the tokens' shards.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recipes.downstream.brain import TokenBrain, sequences, tensor_of
from recipes.downstream.corpus import Corpus, Rows, keep
from recipes.downstream.evaluation import Tested
from recipes.downstream.experiment import make_datasets, make_model, run_task

SCORES = {"speaker": "si_error", "emotion": "ser_error"}  # names in reports


class Classification(NamedTuple):
    """What is trained, on what, and the labels in the order of the model's classes."""

    model: nn.Module
    datasets: Mapping[sb.Stage, DynamicItemDataset]
    labels: list[str]


class ClassifierBrain(TokenBrain):
    """Cross-entropy of an utterance's label, in nats."""

    selection_key = "cross_entropy"

    @property
    def task_name(self) -> str:
        """What is recognized."""
        return self.hparams.label

    def loss_terms(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy of a batch."""
        return self._loss(batch, self._logits(batch))

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Cross-entropy and error rate."""
        logits = self._logits(batch)
        terms, count = self._loss(batch, logits)
        wrong = logits.argmax(dim=1) != batch.label.data[:, 0]
        if stage == sb.Stage.TEST:
            self._note(batch, logits.argmax(dim=1), wrong)
        terms["error"] = wrong.float().mean()
        return {name: float(term) for name, term in terms.items()}, float(count)

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Give the error of always the most frequent training label, which a model has to beat."""
        datasets = self.task.datasets
        (label, _), *_ = Counter(
            _labels(datasets[sb.Stage.TRAIN], self.hparams.label)
        ).most_common()
        labels = _labels(datasets[stage], self.hparams.label)
        chance = 1 - labels.count(label) / len(labels)
        return super().stage_values(stage) | {"error_of_most_frequent": chance}

    def tests(self) -> list[Tested]:
        """One row an utterance."""
        return [Tested("evaluation", self.test_rows, settings={"labels": len(self.task.labels)})]

    def _note(self, batch: Any, hyps: Tensor, wrong: Tensor) -> None:
        score = SCORES.get(self.hparams.label, "error")
        for row, utt_id in enumerate(batch.id):
            self.test_rows.append(
                {
                    "id": utt_id,
                    "ref_label": self.task.labels[int(batch.label.data[row, 0])],
                    "hyp_label": self.task.labels[int(hyps[row])],
                    score: float(wrong[row]),
                }
            )

    def _logits(self, batch: Any) -> Tensor:
        toks, mask = sequences(batch.toks)
        return self.modules.model(toks, mask=mask)

    def _loss(self, batch: Any, logits: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        loss = cross_entropy(logits, batch.label.data[:, 0])
        return {"cross_entropy": loss}, torch.tensor(float(len(logits)), device=self.device)


def assemble(hparams: dict[str, Any], corpus: Corpus) -> Classification:
    """Make a model with a class for each label of the training set.

    Raises
    ------
    ValueError : if there are no labels, or others in validation or test.
    """
    key = hparams["label"]
    rows = {subset: _labelled(subset, corpus.rows[subset], key) for subset in corpus.rows}
    labels = sorted({row[key] for row in rows["train"].values()})
    classes = {label: number for number, label in enumerate(labels)}
    for subset in ("valid", "test"):
        refuse_unseen(rows[subset], known=classes, key=key, subset=subset)
    items = {
        "toks": lambda row: tensor_of(row["toks"]),
        "label": lambda row: torch.tensor([classes[row[key]]]),
    }
    datasets = make_datasets(corpus._replace(rows=rows), items=items, sorting=hparams["sorting"])
    model = make_model(hparams, corpus, num_labels=len(labels))
    return Classification(model, datasets, labels)


def refuse_unseen(rows: Rows, *, known: Mapping[str, int], key: str, subset: str) -> None:
    """Raise ValueError if a subset has labels that the training set has not.

    Parameters
    ----------
    rows : of the subset.
    known : labels of the training set.
    key : what the labels are of.
    subset : its name in the message.
    """
    unseen = {row[key]: utt_id for utt_id, row in rows.items() if row[key] not in known}
    if unseen:
        label, utt_id = next(iter(unseen.items()))
        raise ValueError(
            f"{subset} has {len(unseen)} {key} label(s) that no utterance of train has, such as "
            f"{label!r} of {utt_id}; a classifier can only give labels it has seen: leave them "
            "out, or choose splits in which every label is trained on"
        )


def _labelled(subset: str, rows: Rows, key: str) -> Rows:
    reasons = {
        utt_id: f"its shard has no label '{key}'"
        for utt_id, row in rows.items()
        if row.get(key) is None
    }
    return keep(rows, reasons, subset=subset)


def _labels(dataset: DynamicItemDataset, key: str) -> list[str]:
    return [entry["row"][key] for entry in dataset.data.values()]


if __name__ == "__main__":
    run_task(ClassifierBrain, assemble, sys.argv[1:])
