"""TrainingBrain: what everything that is trained here shares, stages of the codec and other tasks.

The guarded optimizer step (clipping, accumulation, precision, non-finite values),
stage means, checkpoints chosen by one positive error, audio metrics and samples. A training adds
its own losses (`updates`) and its own validation (`evaluate_terms`).

No step waits for the device: whether a step was finite is decided there, and its terms are fetched
at the log interval (`recipes.common.step_log`).

SpeechBrain's loop owns ``self.step`` (the position in the epoch) and is left alone; ``fit_batch``
is overridden because its default clips only the first parameter group, steps after a non-finite
loss and drops the batches that are left over at an epoch's end.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.nnet.schedulers import update_learning_rate
from speechbrain.utils.checkpoints import Checkpoint
from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.optimizers import rm_vector_weight_decay
from torch import Tensor, nn
from tqdm import tqdm

from recipes.common import cost
from recipes.common.audio_scores import AudioScores
from recipes.common.dataio import read_bad_files
from recipes.common.files import write_json
from recipes.common.guarded_step import guarded_step
from recipes.common.interruption import Interrupted, Interruption
from recipes.common.random_state import RandomState
from recipes.common.run_log import Means, RunLog
from recipes.common.score_models import named_models
from recipes.common.step_log import StepLog, StepTensors, finite_terms, from_main

logger = logging.getLogger(__name__)


class Update(NamedTuple):
    """One loss of a training batch: whose optimizer, the scalar to minimise, terms to log.

    ``weight`` says of how many things the terms are means (frames, segments).
    """

    optimizer: str
    loss: Tensor
    terms: dict[str, Tensor]
    weight: Tensor | float


class TrainingBrain(sb.Brain):
    """Base of all Brains; `hparams` holds the keys of the YAML.

    Parameters
    ----------
    sample_rate : of signals that are scored and written, in Hz.
    kwargs : as of SpeechBrain's ``Brain``.

    Attributes
    ----------
    selection_key : name of the validation term, positive and lower is better, that chooses the best
        checkpoint.
    frozen_parts : what the run uses and does not train, by name.
    """

    selection_key: str

    def __init__(self, *, sample_rate: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.optimizer_step_limit = _step_limit(self.optimizer_step_limit)
        for key in ("valid_interval_epochs", "log_interval_steps", "number_of_epochs"):
            if getattr(self.hparams, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self.hparams, key)}")
        self.frozen_parts: dict[str, nn.Module] = {}
        self.run_log = RunLog(self._log_folder(), sample_rate=sample_rate)
        self.step_log = StepLog(self.run_log.folder, patience=self.nonfinite_patience)
        self.interruption = Interruption()
        # A training that decodes nothing has no keys for what is decoded.
        self.audio_scores = AudioScores(
            getattr(self.hparams, "metrics", []),
            sample_rate=sample_rate,
            run_log=self.run_log,
            models=named_models(getattr(self.hparams, "score_models", {}), device=str(self.device)),
        )
        self.means = Means()
        self.checkpointer.add_recoverable("means", self.means)
        self.checkpointer.add_recoverable("step_log", self.step_log)
        self.checkpointer.add_recoverable("random_state", RandomState())
        self.validated_step = 0
        self.loaders: dict[sb.Stage, Any] = {}
        self.epoch = 0
        self.train_stats: dict[str, float] = {}
        self._group_ids: list[str] = []  # of the accumulation group
        self._group_finite: Tensor | None = None
        self._bar: tqdm | None = None
        self._started: tuple[float, int] | None = None
        self._saved_at = (0, 0)
        self._saved_time = time.time()
        self._batches_since_save = 0

    # To be written by a training

    def updates(self, batch: Any) -> Iterator[Update]:
        """Yield the losses of one batch, in order; each is stepped before the next is computed."""
        raise NotImplementedError

    def evaluate_terms(self, batch: Any, stage: sb.Stage) -> tuple[dict[str, float], float]:
        """Terms of a validation or test batch, and the weight of their mean."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Do something after every optimizer step."""

    def stage_values(self, stage: sb.Stage) -> dict[str, Any]:
        """Further values to log at the end of a validation or test."""
        return {}

    def anneal(self, stage: sb.Stage, epoch: int, values: dict[str, float]) -> None:
        """Move the learning rate at the end of a stage: here with the validation's error."""
        if stage == sb.Stage.VALID:
            error = values[self.selection_key]
            self.set_learning_rate(self.hparams.scheduler(error)[1])
            self.hparams.epoch_counter.update_metric(error)

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
        scored = getattr(self.hparams, "valid_metric_utterances", 0)
        self.loaders[stage] = loader
        self.audio_scores.choose(
            stage.name.lower(),
            ids,
            scored=len(ids) if stage == sb.Stage.TEST else scored,
            written=getattr(self.hparams, "num_audio_samples", 0),
        )
        return loader

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

        A loss or gradient that is not finite leaves the group's step out; see
        `recipes.common.step_log`.
        """
        group, should_step = self._accumulation()
        self.step_log.add(self.train_on(batch, group=group, should_step=should_step))
        self.optimizer_step += int(should_step)
        if should_step:
            self.after_step()
        if should_step and self._is_logged(self.optimizer_step):
            self._fetch_steps()
        if self._bar is not None:
            self._bar.update()
        # SpeechBrain averages what comes back, which nothing reads: the loss would be waited for.
        return torch.zeros(())

    def train_on(
        self, batch: Any, *, group: int, should_step: bool, idle: bool = False
    ) -> StepTensors:
        """Do one batch; ``idle`` leaves all weights and optimizer states as they are.

        An update that is not finite is left out with those that follow it; earlier updates of the
        same batch, such as the discriminators', have been taken by then.
        """
        batch = batch.to(self.device, non_blocking=True)
        if self._group_finite is None:
            self._group_ids = []
            self._group_finite = torch.full((), not idle, device=self.device)
        self._group_ids = self._group_ids + list(batch.id)
        finite = self._group_finite
        terms: dict[str, Tensor] = {}
        weight: Tensor | float = 0.0
        with self.no_sync(not should_step), closing(self.updates(batch)) as updates:
            for update in updates:
                terms |= update.terms
                weight = update.weight
                finite = finite & torch.isfinite(update.loss.detach())
                self.scaler.scale(update.loss / group).backward()
                if should_step:
                    norm, finite = guarded_step(
                        self.optimizers_dict[update.optimizer],
                        finite,
                        scaler=self.scaler,
                        max_grad_norm=self.max_grad_norm,
                    )
                    terms[f"grad_norm_{update.optimizer}"] = norm
        self._group_finite = None if should_step else finite
        failed = None
        if should_step:
            # fp16 overflows while its scaler searches for a scale; only without any scale is that
            # a failure. `update` lowers the scale because `unscale_` has noted the overflow.
            failed = ~finite
            if self.scaler.is_enabled():
                failed = failed & (self._scale() <= 1)
                self.scaler.update()
        return StepTensors(
            epoch=self.epoch,
            step=self.optimizer_step + 1,
            ids=self._group_ids,
            terms=terms,
            weight=weight,
            failed=failed,
            rates={
                f"lr_{name}": o.param_groups[0]["lr"] for name, o in self.optimizers_dict.items()
            },
        )

    def _accumulation(self) -> tuple[int, bool]:
        """Size of the accumulation group, shorter at an epoch's end; True if it is complete."""
        factor, total = self.grad_accumulation_factor, len(self.loaders[sb.Stage.TRAIN])
        if self.debug:
            total = min(total, self.debug_batches)
        start = (self.step - 1) // factor * factor
        group = min(factor, total - start)
        return group, self.step == start + group

    def _scale(self) -> Tensor:
        """Scale of fp16's scaler, without waiting for it."""
        return self.scaler.scale(torch.ones((), device=self.device))

    def _is_logged(self, step: int) -> bool:
        return step == 1 or step % self.hparams.log_interval_steps == 0

    def _fetch_steps(self) -> None:
        """Bring what the last steps left behind to the host; means, log and bar get it."""
        for step in self.step_log.fetch():
            if not step.failed:
                self.means.add(finite_terms(step.terms), weight=step.weight)
            if step.complete and self._is_logged(step.step):
                self._log_step(step.step, step.epoch, finite_terms(step.terms) | step.rates)

    def _log_step(self, step: int, epoch: int, values: dict[str, float]) -> None:
        values["failed_steps"] = self.step_log.num_failed
        self.run_log.step(step, values, epoch=epoch)
        if self._bar is not None:
            shown = {name: f"{value:.3g}" for name, value in values.items()}
            self._bar.set_postfix(shown, refresh=False)
            self._bar.set_description(f"epoch {epoch} ({self.remaining_time()} left)", False)

    def remaining_time(self) -> str:
        """Estimate for the whole run, validations included, from the pace since this start."""
        if self._started is None or self.optimizer_step <= self._started[1]:
            return "?"
        pace = (time.monotonic() - self._started[0]) / (self.optimizer_step - self._started[1])
        return cost.clock(self.remaining_steps() * pace)

    def remaining_steps(self) -> int:
        """Optimizer steps that are left, by epochs or by the limit, whichever comes first."""
        epochs, epoch_steps = self.hparams.number_of_epochs, self.steps_per_epoch()
        if self.debug:
            debug_steps = math.ceil(self.debug_batches / self.grad_accumulation_factor)
            epochs, epoch_steps = min(epochs, self.debug_epochs), min(epoch_steps, debug_steps)
        steps = epochs * epoch_steps
        if self.optimizer_step_limit is not None:
            steps = min(steps, self.optimizer_step_limit)
        return max(steps - self.optimizer_step, 0)

    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch on this rank."""
        return math.ceil(len(self.loaders[sb.Stage.TRAIN]) / self.grad_accumulation_factor)

    # The loop: SpeechBrain's, with our bar, and validation at an interval

    def fit(self, epoch_counter: Any, train_set: Any, valid_set: Any = None, **kwargs: Any) -> None:
        """Brain's loop; the progress bar is ours, because Brain's shows one number only.

        Raises
        ------
        Interrupted : after SIGTERM or SIGUSR1, once a checkpoint is saved.
        """
        with self.interruption:
            super().fit(epoch_counter, train_set, valid_set, progressbar=False, **kwargs)

    def evaluate(self, test_set: Any, **kwargs: Any) -> float:
        """Brain's loop over the test set, from the best checkpoint; may raise Interrupted."""
        with self.interruption:
            return super().evaluate(test_set, progressbar=False, **kwargs)

    def on_fit_start(self) -> None:
        """Resume, then open the logs at the step that the checkpoint was made at."""
        super().on_fit_start()
        # SpeechBrain's step is 0 in a checkpoint that a validation has written, and in a new run.
        self.run_log.resume(self.optimizer_step, validated=self.step == 0)
        self.validated_step = self.optimizer_step if self.step == 0 else -1
        self._note_save()
        if self.hparams.cost_steps > 0:
            cost.announce(self)
        self._started = time.monotonic(), self.optimizer_step

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Load the best checkpoint; it must exist, a test of untrained modules would be no test."""
        if not self.test_only:  # a kill may have come between the last save and its deletions
            self.checkpointer.delete_checkpoints(num_to_keep=1, min_keys=[self.selection_key])
        best = self.checkpointer.find_checkpoint(min_key=min_key)
        if best is None:
            raise RuntimeError(
                f"no checkpoint with {min_key} in {self.hparams.save_folder}: train before the "
                "test (without --test_only)"
            )
        self._write_best(best)
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        if self._started is None:
            self.run_log.reopen()

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        # An epoch that was left at the limit still has to be closed: means, learning rate.
        if self.step > 0 or not self._optimizer_step_limit_exceeded:
            super()._fit_train(train_set, epoch, enable)

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        if not self._is_validated(epoch):
            return
        if self.optimizer_step == self.validated_step:
            logger.warning("no step since the last validation (epoch %d): not repeated", epoch)
            return
        super()._fit_valid(valid_set, epoch, enable)

    def _is_validated(self, epoch: int) -> bool:
        last = (
            epoch >= self.hparams.number_of_epochs
            or self._optimizer_step_limit_exceeded
            or (self.debug and epoch == self.debug_epochs)
        )
        return last or epoch % self.hparams.valid_interval_epochs == 0

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        # SpeechBrain's two begin anew with every epoch, which may be shorter than an interval.
        del last_ckpt_time, steps_since_ckpt
        self._batches_since_save += 1
        # Inside an accumulation group the gradient so far would be lost.
        if not self._accumulation()[1]:
            return False
        if 0 < self.ckpt_interval_steps <= self._batches_since_save:
            return True
        # To agree with other ranks on times and signals is to wait for the device.
        if torch.distributed.is_initialized() and not self._is_logged(self.optimizer_step):
            return False
        by_time = super()._should_save_intra_epoch_ckpt(self._saved_time, self._batches_since_save)
        return self.interruption.agree() or by_time

    def _save_intra_epoch_ckpt(self) -> None:
        """Save in the middle of an epoch, and stop there if a signal asked for it."""
        self._fetch_steps()
        self.run_log.flush()
        super()._save_intra_epoch_ckpt()
        self._note_save()
        self._stop_if_interrupted()

    def _note_save(self) -> None:
        self._saved_at = self.step, self.optimizer_step
        self._saved_time, self._batches_since_save = time.time(), 0

    def _stop_if_interrupted(self) -> None:
        if self.interruption.agree():
            raise Interrupted(self.interruption.signal_name, step=self.optimizer_step)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Begin a stage: empty means (unless an unfinished epoch goes on), fresh metrics, a bar."""
        resumed = stage == sb.Stage.TRAIN and self.step > 0
        if not resumed:
            self.means.clear()
        if epoch is not None:
            self.epoch = epoch
        self.audio_scores.clear()
        shown = if_main_process() and not self.noprogressbar
        self._bar = tqdm(
            total=len(self.loaders[stage]),
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
        self._stop_if_interrupted()  # what was trained is in a checkpoint
        return torch.tensor(terms[self.selection_key])

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Log a stage's means; after a validation, anneal and save."""
        self._bar.close()
        if stage == sb.Stage.TRAIN:
            self._fetch_steps()
            # A signal, or worse, in the validation then costs no training.
            saved = self._saved_at == (self.step, self.optimizer_step)
            if self._is_validated(epoch) and not saved and not self.debug:
                self._save_intra_epoch_ckpt()
        values: dict[str, Any] = self.means.summarize()
        if stage == sb.Stage.TRAIN:
            self.train_stats = values
            if values:
                self.run_log.stage("train", self.optimizer_step, {"epoch": epoch, **values})
                self.anneal(stage, epoch, values)
            return
        # Every rank validates everything; one rank's last bit must not stop or anneal it alone.
        error = from_main(values.get(self.selection_key, math.nan))
        values[self.selection_key] = error
        if not math.isfinite(error):
            raise RuntimeError(
                f"{stage.name.lower()} {self.selection_key} is {error}; no checkpoint was written, "
                "the earlier ones are untouched"
            )
        scores = self.audio_scores.summarize()
        details = {key: scores.pop(key) for key in ("not_computed", "models")}
        values |= scores | self.stage_values(stage)
        if stage == sb.Stage.TEST:  # of all ranks, as they share the list
            values["bad_files"] = len(read_bad_files(self.run_log.folder / "bad_files.tsv"))
        self.run_log.stage(stage.name.lower(), self.optimizer_step, values | details)
        if stage == sb.Stage.VALID:
            self._write_line(
                {"epoch": epoch, "step": self.optimizer_step}, train=self.train_stats, valid=values
            )
            logger.info("remaining time about %s", self.remaining_time())
            self.validated_step = self.optimizer_step
            self.anneal(stage, epoch, values)
            self.run_log.flush()
            self.checkpointer.save_and_keep_only(
                meta={self.selection_key: error, "epoch": epoch},
                min_keys=[self.selection_key],
                num_to_keep=1,
            )
            self.checkpointer.delete_checkpoints(
                num_to_keep=0, ckpt_predicate=lambda ckpt: INTRA_EPOCH_CKPT_FLAG in ckpt.meta
            )
            self._note_save()
        else:
            self._write_line({"test of step": self.optimizer_step}, test=values)
            self.audio_scores.write_tables(self.run_log.folder)

    @main_process_only
    def _write_best(self, best: Checkpoint) -> None:
        """CRC-32 of the best checkpoint's files: what a stage that begins with this run reads."""
        crcs = {name: crc for name, (_, crc) in sorted(best.meta["files"].items())}
        write_json(self.run_log.folder / "best_checkpoint.json", crcs)

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of every optimizer."""
        for optimizer in self.optimizers_dict.values():
            update_learning_rate(optimizer, value)

    @main_process_only
    def _write_line(self, meta: dict[str, Any], **stats: dict[str, Any]) -> None:
        """One line of ``train_log.txt``, and the same on the console."""
        self.hparams.train_logger.log_stats(
            meta, **{f"{name}_stats": values for name, values in stats.items()}
        )


def unwrapped(module: nn.Module) -> nn.Module:
    """Take a module out of DistributedDataParallel."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def _step_limit(value: int | str | None) -> int | None:
    """``optimizer_step_limit`` as a number; SpeechBrain's parser leaves the text of an option."""
    if value is None or value == "null":
        return None
    if int(value) < 1:
        raise ValueError(f"optimizer_step_limit must be at least 1 or null, got {value}")
    return int(value)
