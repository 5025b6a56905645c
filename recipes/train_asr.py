"""Speech recognition on tokens (arXiv:2502.04465, section 4.5 and appendix D.2).

    python -m recipes.train_asr recipes/hparams/asr.yaml --data_folder LIBRISPEECH

A shallow BiLSTM and CTC over characters or byte pairs, decoded greedily; the test's word error
rate, with all alignments in ``wer_test.txt``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from recipes.downstream.brain import TokenBrain, sequences, tensor_of
from recipes.downstream.corpus import Corpus, Rows, keep
from recipes.downstream.evaluation import Tested
from recipes.downstream.experiment import make_datasets, make_model, run_task
from recipes.downstream.text import Tokenizer, load_tokenizer, plain_words

BLANK = 0


class Recognition(NamedTuple):
    """What is trained, on what, and the units of text."""

    model: nn.Module
    datasets: Mapping[sb.Stage, DynamicItemDataset]
    tokenizer: Tokenizer


class RecognitionBrain(TokenBrain):
    """CTC; the loss is the negative log likelihood of a unit of text, in nats.

    A test may have utterances that CTC cannot align (`feasible`); they have errors and no loss.
    """

    task_name = "asr"
    selection_key = "ctc"
    weights = {"asr_wer": "asr_words", "asr_cer": "asr_characters"}

    def loss_terms(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """CTC loss of a batch."""
        return self._loss(batch, self._log_probs(batch))

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin a stage without errors."""
        super().on_stage_start(stage, epoch)
        self.words, self.characters = ErrorRateStats(), ErrorRateStats()

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Loss, and the errors of the greedy transcripts."""
        log_probs = self._log_probs(batch)
        terms, count = self._loss(batch, log_probs)
        _, lens = batch.toks
        units = ctc_greedy_decode(log_probs, lens, blank_id=BLANK)
        hyp_texts = [self.task.tokenizer.decode(row) for row in units]
        scored = [(self.words, str.split)]
        if stage == sb.Stage.TEST:  # in pure Python, about 25 ms an utterance
            scored.append((self.characters, list))
        for stats, parts in scored:
            hyps, refs = map(parts, hyp_texts), map(parts, batch.text)
            stats.append(ids=batch.id, predict=[*hyps], target=[*refs])
        return {name: float(term) for name, term in terms.items()}, float(count)

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Word error rate, of a test also that of characters: all edits over all words."""
        rates = {"wer": self.words}
        if stage == sb.Stage.TEST:
            rates["cer"] = self.characters
        values = {name: stats.summarize("error_rate") / 100 for name, stats in rates.items()}
        return super().stage_values(stage) | values

    def tests(self) -> list[Tested]:
        """Errors of every utterance; one without a word has no rate."""
        rows, failures = [], []
        for words, characters in zip(self.words.scores, self.characters.scores, strict=True):
            row = {"id": words["key"], "ref_text": " ".join(words["ref_tokens"])}
            row["hyp_text"] = " ".join(words["hyp_tokens"])
            rows.append(row)
            if not words["num_ref_tokens"]:
                reason = f"the transcript has no words, {words['num_edits']} were recognized"
                failures.append({"id": words["key"], "metric": "asr_wer", "reason": reason})
                continue
            for name, score in (("wer", words), ("cer", characters)):
                row[f"asr_{name}"] = score["num_edits"] / score["num_ref_tokens"]
            row["asr_words"] = words["num_ref_tokens"]
            row["asr_characters"] = characters["num_ref_tokens"]
        with open(self.run_log.folder / "wer_test.txt", "w", encoding="utf-8") as file:
            self.words.write_stats(file)
        settings = {"unit": self.hparams.unit, "units": self.task.tokenizer.num_units}
        return [Tested("evaluation", rows, self.weights, settings, failures=failures)]

    def _log_probs(self, batch: Any) -> Tensor:
        toks, mask = sequences(batch.toks)
        return self.modules.model(toks, mask=mask)

    def _loss(self, batch: Any, log_probs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        _, mask = sequences(batch.toks)
        sizes = torch.tensor([len(row) for row in batch.units], device=self.device)
        units = torch.tensor([unit for row in batch.units for unit in row], device=self.device)
        loss = ctc_loss(
            log_probs.transpose(0, 1),
            units.long(),
            mask.sum(dim=1),
            sizes,
            blank=BLANK,
            reduction="none",
        )
        needed = torch.tensor([num_steps(row) for row in batch.units], device=self.device)
        is_feasible = needed <= mask.sum(dim=1)
        count = is_feasible.sum()
        loss = (loss / sizes.clamp(min=1)).where(is_feasible, 0).sum() / count.clamp(min=1)
        return {"ctc": loss}, count.float()


def assemble(hparams: dict[str, Any], corpus: Corpus) -> Recognition:
    """Learn the units of text and make the model that spells with them.

    Raises
    ------
    ValueError : if the training set has no transcripts, or too many of them have more units than
        tokens.
    """
    plain = plain_words if hparams["normalize_text"] else str
    rows = {subset: _transcribed(subset, corpus.rows[subset], plain) for subset in corpus.rows}
    tokenizer = load_tokenizer(
        Path(hparams["output_folder"]),
        (row["text"] for row in rows["train"].values()),
        unit=hparams["unit"],
        vocabulary_size=hparams["vocabulary_size"],
        write=if_main_process(),
    )
    for subset in ("train", "valid"):
        rows[subset] = feasible(
            rows[subset],
            tokenizer,
            token_rate=corpus.description["token_rate"],
            subset=subset,
            most=hparams["max_infeasible"],
        )
    items = {
        "toks": lambda row: tensor_of(row["toks"]),
        "units": lambda row: tokenizer.encode(row["text"]),
        "text": lambda row: row["text"],
    }
    datasets = make_datasets(corpus._replace(rows=rows), items=items, sorting=hparams["sorting"])
    model = make_model(hparams, corpus, num_units=tokenizer.num_units)
    return Recognition(model, datasets, tokenizer)


def feasible(
    rows: Rows, tokenizer: Tokenizer, *, token_rate: float, subset: str, most: float
) -> Rows:
    """Leave out utterances that CTC cannot align: it needs a token for every unit of text.

    A unit that is repeated needs one more, a blank between the two. SpeechBrain's loss is 0 there,
    without a word.

    Parameters
    ----------
    rows : by utterance id, with texts.
    tokenizer : gives units.
    token_rate : of the codec, Hz, for the message.
    subset : its name in messages.
    most : share of the utterances that may be left out.

    Raises
    ------
    ValueError : if there are more.
    """
    reasons = {}
    for utt_id, row in rows.items():
        needed, there = num_steps(tokenizer.encode(row["text"])), len(row["toks"])
        if needed > there:
            reasons[utt_id] = (
                f"CTC needs {needed} tokens for its text and there are {there} at {token_rate:g} "
                "Hz; use longer units (--unit bpe --vocabulary_size 1000) or a higher token rate"
            )
    return keep(rows, reasons, subset=subset, most=most)


def num_steps(units: list[int]) -> int:
    """Count the steps that CTC needs at least to give these units."""
    return len(units) + sum(a == b for a, b in zip(units, units[1:], strict=False))


def _transcribed(subset: str, rows: Rows, plain: Any) -> Rows:
    """Rows that have a text, in the form that is learnt and scored; an empty one is one, too."""
    reasons = {
        utt_id: "there is no transcript" for utt_id, row in rows.items() if row.get("text") is None
    }
    kept = keep(rows, reasons, subset=subset)
    return {utt_id: {**row, "text": plain(row["text"])} for utt_id, row in kept.items()}


if __name__ == "__main__":
    run_task(RecognitionBrain, assemble, sys.argv[1:])
