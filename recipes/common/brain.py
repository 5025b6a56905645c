"""CodecBrain: what the Brains of both training stages share.

Frozen features, the guarded optimizer step (clipping, accumulation, precision, non-finite values),
stage means, checkpoints chosen by one positive error, audio metrics and samples. A stage adds its
own losses (`updates`) and its own validation (`evaluate_terms`).

SpeechBrain's loop owns ``self.step`` (the position in the epoch) and is left alone; ``fit_batch``
is overridden because its default clips only the first parameter group, steps after a non-finite
loss and drops the batches that are left over at an epoch's end.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.nnet.schedulers import update_learning_rate
from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.optimizers import rm_vector_weight_decay
from torch import Tensor, nn
from tqdm import tqdm

from focalcodec.codec import encode
from recipes.common.metrics import AudioMetrics
from recipes.common.random_state import RandomState
from recipes.common.run_log import Means, RunLog

logger = logging.getLogger(__name__)


class Features(NamedTuple):
    """Frozen features of a batch: feats (B, N, H), mask (B, N), sig (B, N * hop_length)."""

    feats: Tensor
    mask: Tensor
    sig: Tensor


class Update(NamedTuple):
    """One loss of a training batch: whose optimizer, the scalar to minimise, terms to log.

    ``weight`` says of how many things the terms are means (frames, utterances).
    """

    optimizer: str
    loss: Tensor
    terms: dict[str, Tensor]
    weight: float


class CodecBrain(sb.Brain):
    """Base of the stages' Brains; `hparams` holds the keys of ``hparams/*.yaml``.

    Attributes
    ----------
    selection_key : name of the validation term, positive and lower is better, that chooses the best
        checkpoint.
    """

    selection_key: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.optimizer_step_limit = _step_limit(self.optimizer_step_limit)
        for key in ("valid_interval_epochs", "log_interval_steps", "number_of_epochs"):
            if getattr(self.hparams, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self.hparams, key)}")
        # Outside `modules`: never wrapped, never in train mode, never in an optimizer or a
        # checkpoint.
        self.encoder = self.hparams.encoder.to(self.device).eval().requires_grad_(False)
        self.run_log = RunLog(self._log_folder(), sample_rate=self.encoder.sample_rate)
        self.audio_metrics: dict[str, AudioMetrics] = {}
        self.means = Means()
        self.checkpointer.add_recoverable("means", self.means)
        self.checkpointer.add_recoverable("random_state", RandomState())
        self.nonfinite_streak = 0
        self.validated_step = 0
        self.epoch = 0
        self.train_stats: dict[str, float] = {}
        self.num_batches: dict[sb.Stage, int] = {}
        self.metric_ids: dict[sb.Stage, set[str]] = {}
        self.sample_ids: dict[sb.Stage, set[str]] = {}
        self._bar: tqdm | None = None
        self._started: tuple[float, int] | None = None
        self._metrics("rec")  # a misspelt metric or a missing package shows now, not after an epoch

    # To be written by a stage

    def updates(self, batch: Any) -> Iterator[Update]:
        """Yield the losses of one batch, in order; each is stepped before the next is computed."""
        raise NotImplementedError

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Terms of a validation or test batch, and the weight of their mean."""
        raise NotImplementedError

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Further values to log at the end of a validation or test."""
        return {}

    def anneal(self, stage: sb.Stage, epoch: int, values: dict[str, float]) -> None:
        """Move the learning rate at the end of a stage."""
        raise NotImplementedError

    def _log_folder(self) -> Path:
        """Folder of the logs; with --debug the temporary one that the checkpoints are in."""
        if not self.debug or self.debug_persistently:
            return Path(self.hparams.output_folder)
        folder = Path(self.checkpointer.checkpoints_dir)
        self.hparams.train_logger.save_file = str(folder / "train_log.txt")
        return folder

    # Data

    def make_dataloader(self, dataset: Any, stage: sb.Stage, **kwargs: Any) -> Any:
        """Brain's loader; also notes which utterances are scored and which are written as audio."""
        loader = super().make_dataloader(dataset, stage, **kwargs)
        ids = list(dataset.data_ids)
        scored = len(ids) if stage == sb.Stage.TEST else self.hparams.valid_metric_utterances
        self.num_batches[stage] = len(loader)
        self.metric_ids[stage] = evenly_spaced(ids, scored)
        self.sample_ids[stage] = evenly_spaced(ids, self.hparams.num_audio_samples)
        return loader

    @torch.no_grad()
    def features(self, batch: Any) -> Features:
        """Features of the frozen encoder, always in float32, and the signal cut to whole frames."""
        sig, lens = batch.sig
        with torch.autocast(self.device_type, enabled=False):
            feats, mask = encode(self.encoder, sig, lens=lens)
        size = feats.shape[1] * self.encoder.hop_length
        return Features(
            feats, mask, nn.functional.pad(sig, (0, max(0, size - sig.shape[1])))[:, :size]
        )

    # Training

    def init_optimizers(self) -> None:
        """One optimizer per module of the YAML's ``modules``, under the module's name."""
        split = rm_vector_weight_decay if self.remove_vector_weight_decay else nn.Module.parameters
        self.optimizers_dict = {
            name: self.opt_class(split(module)) for name, module in self.optimized().items()
        }
        for name, optimizer in self.optimizers_dict.items():
            self.checkpointer.add_recoverable(f"{name}_optimizer", optimizer)

    def optimized(self) -> dict[str, nn.Module]:
        """Modules by the name of the optimizer that steps them."""
        return dict(self.modules.items())

    def fit_batch(self, batch: Any) -> Tensor:
        """Run every update's backward, and step its optimizer when the accumulation is complete.

        A loss or gradient that is not finite skips the batch; see `_skip_batch`.
        """
        batch = batch.to(self.device)
        group, should_step = self._accumulation()
        terms: dict[str, Tensor] = {}
        total, weight, finite, stepped = 0.0, 0.0, True, False
        with self.no_sync(not should_step), closing(self.updates(batch)) as updates:
            for update in updates:
                total = total + update.loss.detach()
                terms |= update.terms
                weight = update.weight
                finite = self._finite_on_all_ranks(update.loss)
                if not finite:
                    break
                self.scaler.scale(update.loss / group).backward()
                if should_step:
                    stepped = True
                    norm, finite = self._step_optimizer(update.optimizer)
                    terms[f"grad_norm_{update.optimizer}"] = norm
                if not finite:
                    break
        if stepped:
            self.scaler.update()
        values = {name: float(value) for name, value in terms.items()}
        if finite:
            self.nonfinite_streak = 0
            self.optimizer_step += int(should_step)
            self._log_step(values, weight, should_step)
        else:
            self._skip_batch(batch.id, values)
        return torch.as_tensor(total).cpu()

    def _accumulation(self) -> tuple[int, bool]:
        """Size of the accumulation group, shorter at an epoch's end; True if it is complete."""
        factor, total = self.grad_accumulation_factor, self.num_batches[sb.Stage.TRAIN]
        if self.debug:
            total = min(total, self.debug_batches)
        start = (self.step - 1) // factor * factor
        group = min(factor, total - start)
        return group, self.step == start + group

    def _finite_on_all_ranks(self, loss: Tensor) -> bool:
        finite = torch.isfinite(loss.detach()).float()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
        return bool(finite)

    def _step_optimizer(self, name: str) -> tuple[Tensor, bool]:
        """Unscale, clip, step; the norm before clipping, and False if the step was left out."""
        optimizer = self.optimizers_dict[name]
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self.max_grad_norm if self.max_grad_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        # fp16 overflows while its scaler searches for a scale; only without any scale is that a
        # failure. `scaler.update` lowers the scale because `unscale_` has noted the overflow.
        searching = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        return norm, finite or searching

    def _skip_batch(self, ids: list[str], values: dict[str, float]) -> None:
        """Drop the gradients, note the batch, give up after ``nonfinite_patience`` in a row."""
        self.zero_grad(set_to_none=True)
        self.nonfinite_streak += 1
        path = self.run_log.folder / "nonfinite.jsonl"
        record = {
            "epoch": self.epoch,
            "step": self.optimizer_step,
            "ranks": _gather({"ids": list(ids), "terms": {k: str(v) for k, v in values.items()}}),
        }
        if if_main_process():
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        logger.warning("loss or gradient is not finite, batch skipped: %s", record)
        if self.nonfinite_streak >= self.nonfinite_patience:
            raise RuntimeError(
                f"{self.nonfinite_streak} batches in a row gave a loss or gradient that is not "
                f"finite (nonfinite_patience: {self.nonfinite_patience}); the last one is "
                f"{list(ids)}, all are in {path}. The last checkpoint is untouched: lower lr, or "
                "set max_grad_norm, and choose a new output_folder"
            )

    def _log_step(self, values: dict[str, float], weight: float, should_step: bool) -> None:
        # Not finite here is only the gradient norm of a step that fp16's scaler left out.
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self.means.add(values, weight=weight)
        if self._bar is not None:
            self._bar.set_postfix(
                {name: f"{value:.3g}" for name, value in values.items()}, refresh=False
            )
            self._bar.set_description(
                f"epoch {self.epoch} ({self.remaining_time()} left)", refresh=False
            )
            self._bar.update()
        interval = self.hparams.log_interval_steps
        if should_step and (self.optimizer_step == 1 or self.optimizer_step % interval == 0):
            rates = {
                f"lr_{name}": o.param_groups[0]["lr"] for name, o in self.optimizers_dict.items()
            }
            self.run_log.step(self.optimizer_step, values | rates, epoch=self.epoch)

    def remaining_time(self) -> str:
        """Estimate for the whole run, validations included, from the pace since this start."""
        if self._started is None or self.optimizer_step <= self._started[1]:
            return "?"
        pace = (time.monotonic() - self._started[0]) / (self.optimizer_step - self._started[1])
        per_epoch = math.ceil(self.num_batches[sb.Stage.TRAIN] / self.grad_accumulation_factor)
        left = (
            self.hparams.number_of_epochs - self.epoch + 1
        ) * per_epoch - self.step // self.grad_accumulation_factor
        if self.optimizer_step_limit is not None:
            left = min(left, self.optimizer_step_limit - self.optimizer_step)
        hours, seconds = divmod(round(max(left, 0) * pace), 3600)
        return f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}"

    # The loop: SpeechBrain's, with our bar, and validation at an interval

    def fit(self, epoch_counter: Any, train_set: Any, valid_set: Any = None, **kwargs: Any) -> None:
        """Brain's loop; the progress bar is ours, because Brain's shows one number only."""
        super().fit(epoch_counter, train_set, valid_set, progressbar=False, **kwargs)

    def evaluate(self, test_set: Any, **kwargs: Any) -> float:
        """Brain's loop over the test set, from the best checkpoint."""
        return super().evaluate(test_set, progressbar=False, **kwargs)

    def on_fit_start(self) -> None:
        """Resume, then open the logs at the step that the checkpoint was made at."""
        super().on_fit_start()
        self.run_log.resume(self.optimizer_step)
        # SpeechBrain's step is 0 in a checkpoint that a validation has written, and in a new run.
        self.validated_step = self.optimizer_step if self.step == 0 else -1
        self._started = time.monotonic(), self.optimizer_step

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Load the best checkpoint; it must exist, a test of untrained modules would be no test."""
        if self.checkpointer.find_checkpoint(min_key=min_key) is None:
            raise RuntimeError(
                f"no checkpoint with {min_key} in {self.hparams.save_folder}: train before the "
                "test (without --test_only)"
            )
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        if self._started is None:
            self.run_log.reopen()

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        if not self._optimizer_step_limit_exceeded:
            super()._fit_train(train_set, epoch, enable)

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        last = (
            epoch >= self.hparams.number_of_epochs
            or self._optimizer_step_limit_exceeded
            or (self.debug and epoch == self.debug_epochs)
        )
        if not last and epoch % self.hparams.valid_interval_epochs != 0:
            return
        if self.optimizer_step == self.validated_step:
            logger.warning("no step since the last validation (epoch %d): not repeated", epoch)
            return
        super()._fit_valid(valid_set, epoch, enable)

    def _should_save_intra_epoch_ckpt(self, *args: Any) -> bool:
        # Inside an accumulation group the gradient so far would be lost.
        return self._accumulation()[1] and super()._should_save_intra_epoch_ckpt(*args)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin a stage: empty means (unless an unfinished epoch goes on), fresh metrics, a bar."""
        resumed = stage == sb.Stage.TRAIN and self.step > 0
        if not resumed:
            self.means.clear()
        if epoch is not None:
            self.epoch = epoch
        self.audio_metrics = {}
        shown = if_main_process() and not self.noprogressbar
        self._bar = tqdm(
            total=self.num_batches[stage],
            initial=self.step if resumed else 0,
            desc=stage.name.lower(),
            dynamic_ncols=True,
            disable=not shown,
            leave=stage != sb.Stage.VALID,
        )

    @torch.no_grad()
    def evaluate_batch(self, batch: Any, stage: sb.Stage) -> Tensor:
        """One validation or test batch."""
        batch = batch.to(self.device)
        with self.evaluation_ctx:
            terms, weight = self.evaluate_terms(batch, stage)
        self.means.add(terms, weight=weight)
        self._bar.update()
        return torch.tensor(terms[self.selection_key])

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Log a stage's means; after a validation, anneal and save."""
        self._bar.close()
        values: dict[str, Any] = self.means.summarize()
        if stage == sb.Stage.TRAIN:
            self.train_stats = values
            if values:
                self.run_log.stage("train", self.optimizer_step, {"epoch": epoch, **values})
                self.anneal(stage, epoch, values)
            return
        # Every rank validates everything; one rank's last bit must not stop or anneal it alone.
        error = _from_main(values.get(self.selection_key, math.nan))
        values[self.selection_key] = error
        if not math.isfinite(error):
            raise RuntimeError(
                f"{stage.name.lower()} {self.selection_key} is {error}; no checkpoint was written, "
                "the earlier ones are untouched"
            )
        for prefix, metrics in self.audio_metrics.items():
            values |= {f"{prefix}_{name}": value for name, value in metrics.summarize().items()}
        values |= self.stage_values(stage)
        written = {**values, "not_computed": self._not_computed()}
        self.run_log.stage(stage.name.lower(), self.optimizer_step, written)
        if stage == sb.Stage.VALID:
            self._write_line(
                {"epoch": epoch, "step": self.optimizer_step}, train=self.train_stats, valid=values
            )
            logger.info("remaining time about %s", self.remaining_time())
            self.validated_step = self.optimizer_step
            self.anneal(stage, epoch, values)
            self.checkpointer.save_and_keep_only(
                meta={self.selection_key: error, "epoch": epoch},
                min_keys=[self.selection_key],
                num_to_keep=1,
            )
        else:
            self._write_line({"test of step": self.optimizer_step}, test=values)
            self._write_tables()

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of every optimizer."""
        for optimizer in self.optimizers_dict.values():
            update_learning_rate(optimizer, value)

    # Audio

    def score_audio(self, batch: Any, stage: sb.Stage, decoded: dict[str, Tensor]) -> None:
        """Score and write decoded signals against the batch's own.

        ``decoded`` maps a prefix (``rec``: from unquantized features, ``hyp``: from tokens) to
        signals (B, T') of at least the batch's length. A test also scores the reference itself
        (``ref``), the ceiling of the metrics that need none.
        """
        sig, lens = batch.sig
        name = stage.name.lower()
        scored = {*decoded, "ref"} if stage == sb.Stage.TEST else set(decoded)
        for row, utterance in enumerate(batch.id):
            size = round(float(lens[row]) * sig.shape[1])
            ref_sig = sig[row, :size].float().cpu()
            signals = {"ref": ref_sig}
            signals |= {prefix: rows[row, :size].float().cpu() for prefix, rows in decoded.items()}
            if utterance in self.metric_ids[stage]:
                for prefix, signal in signals.items():
                    if prefix in scored:
                        self._metrics(prefix).append([utterance], ref_sig[None], signal[None])
            if utterance in self.sample_ids[stage]:
                for prefix, signal in signals.items():
                    self.run_log.audio(f"{name}/{utterance}/{prefix}", self.optimizer_step, signal)

    def _metrics(self, prefix: str) -> AudioMetrics:
        if prefix not in self.audio_metrics:
            self.audio_metrics[prefix] = AudioMetrics(
                names=self.hparams.metrics, sample_rate=self.encoder.sample_rate
            )
        return self.audio_metrics[prefix]

    def _not_computed(self) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for metrics in self.audio_metrics.values():
            reasons |= metrics.not_computed
        return reasons

    @main_process_only
    def _write_tables(self) -> None:
        for prefix, metrics in self.audio_metrics.items():
            metrics.write_csv(self.run_log.folder / f"test_{prefix}.csv")

    @main_process_only
    def _write_line(self, meta: dict[str, Any], **stats: dict[str, Any]) -> None:
        """One line of ``train_log.txt``, and the same on the console."""
        self.hparams.train_logger.log_stats(
            meta, **{f"{name}_stats": values for name, values in stats.items()}
        )


def evenly_spaced(ids: list[str], number: int) -> set[str]:
    """Choose ``number`` ids, spread evenly over their order."""
    number = min(number, len(ids))
    return {ids[i * len(ids) // number] for i in range(number)}


def _step_limit(value: int | str | None) -> int | None:
    """``optimizer_step_limit`` as a number; SpeechBrain's parser leaves the text of an option."""
    if value is None or value == "null":
        return None
    if int(value) < 1:
        raise ValueError(f"optimizer_step_limit must be at least 1 or null, got {value}")
    return int(value)


def _gather(value: Any) -> list[Any]:
    """Everybody's value, by rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _from_main(value: float) -> float:
    """Take the main process's value, on every rank."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
