"""Checkpoints that appear whole or not at all.

SpeechBrain's Checkpointer writes into a folder that already has its final name, takes the newest
folder on recovery and cannot tell a whole checkpoint from half of one: a run that is killed or
meets a full disk while it saves cannot be resumed. ``AtomicCheckpointer`` takes its place.
"""

import errno
import logging
import math
import os
import re
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
)
from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.logger import get_logger

from recipes.common.files import file_crc, flush

logger = get_logger(__name__)

_TEMPORARY = re.compile(rf"tmp-(?P<host>\w+)-(?P<process>\d+)-(?P<final>{CKPT_PREFIX}.*)")

_META_END = "\n...\n"  # YAML's end mark: a meta file without it was cut off
_Orders = Iterable[Callable[[Checkpoint], Any]]


class AtomicCheckpointer(Checkpointer):
    """Checkpointer whose checkpoints survive a kill at any instruction and a full disk.

    A checkpoint is written into a folder ``tmp-...`` beside the others, its files are listed in its
    meta file (size and CRC-32) and flushed to the disk, and then it is renamed. Deletion goes the
    other way round. Recovery takes the newest checkpoint that is complete. What is incomplete is
    skipped with a warning and never deleted; if checkpoints exist but none is complete, recovery
    fails rather than letting the run start from scratch.

    ``save_*``, ``delete_checkpoints`` and ``recover_if_possible`` must be called by every process
    of a distributed run. The main process decides and writes, and its errors are raised on every
    process; only an error inside a saver stays on the main process, and the launcher ends the rest.

    Parameters
    ----------
    checkpoints_dir : folder of the checkpoints; made by the first save.
    recoverables : objects by name. Each must have its file in a checkpoint that is to be recovered,
        unless it was added with ``optional_load=True`` or ``allow_partial_load`` is set.
    custom_load_hooks, custom_save_hooks, allow_partial_load : as in SpeechBrain's Checkpointer.
    config_hash : fingerprint of the run's configuration; may be set later as an attribute. It is
        stored in every checkpoint, and a folder with checkpoints of another one is refused.
    """

    def __init__(
        self,
        checkpoints_dir: str | os.PathLike,
        recoverables: Mapping[str, Any] | None = None,
        custom_load_hooks: Mapping[str, Callable] | None = None,
        custom_save_hooks: Mapping[str, Callable] | None = None,
        allow_partial_load: bool = False,
        config_hash: str | None = None,
    ):
        # The parent makes the folder, but a checkpointer is built while its YAML is parsed, where
        # nothing may be written: so the parent gets a folder that exists.
        super().__init__(
            os.curdir, recoverables, custom_load_hooks, custom_save_hooks, allow_partial_load
        )
        self.checkpoints_dir = Path(checkpoints_dir)
        # The parent forgets recoverables given as a mapping here and fails on them with a KeyError.
        self.optional_recoverables = defaultdict(bool, self.optional_recoverables)
        self.config_hash = config_hash

    def save_checkpoint(
        self,
        meta: Mapping[str, Any] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """Save all recoverables; the checkpoint appears once it is complete and on the disk.

        Parameters
        ----------
        meta : plain values (numbers, strings, lists) that describe the checkpoint, such as metrics;
            one-element tensors and numpy scalars are converted.
        end_of_epoch : False for a checkpoint in the middle of an epoch.
        name : custom name; a complete checkpoint of that name is replaced. Default: a time stamp.
        verbosity : logging level of the message.

        Returns
        -------
        The checkpoint on the main process, None on the others.

        Raises
        ------
        OSError : before anything is written, if the newest checkpoint would not fit a second time.
        RuntimeError : if the folder belongs to another configuration, or if writing fails; the
            checkpoints that were there are untouched.
        """
        meta = {key: _plain(value) for key, value in (meta or {}).items()}
        if self.config_hash is not None:
            meta["config_hash"] = self.config_hash
        _on_main(self._make_room)
        try:
            saved = super().save_checkpoint(meta, end_of_epoch, name, verbosity=logging.DEBUG)
        except Exception as error:
            if if_main_process():  # the others are not in a state to be asked
                raise self._saving_failed(error) from error
            raise
        saved = _on_main(self._publish, saved)
        kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
        logger.log(verbosity, f"Saved an {kind} checkpoint in {saved.path}")
        return saved if if_main_process() else None

    def save_and_keep_only(self, *args: Any, importance_keys: _Orders = (), **kwargs: Any) -> None:
        """Save a checkpoint, then delete the least important ones; arguments as in the parent.

        The parent appends to its own default list of importance keys at every call, so that each
        save sorts more often than the one before.
        """
        super().save_and_keep_only(*args, importance_keys=list(importance_keys), **kwargs)

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: list[str] | None = None,
        max_keys: list[str] | None = None,
        importance_keys: _Orders = (ckpt_recency,),
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Delete complete checkpoints that no order of importance ranks among its first.

        Unlike the parent's, it compares checkpoints by path: the parent does not recognise a
        protected one whose meta contains NaN, and deletes it. And a kill in the middle of it leaves
        no half of a checkpoint.

        Parameters
        ----------
        num_to_keep : how many to keep in each order; >= 0.
        min_keys, max_keys : keys of the meta, an order for each; checkpoints without a finite value
            of that key are not part of it.
        importance_keys : functions of a checkpoint, an order for each, highest first.
        ckpt_predicate : only checkpoints for which it is true are considered.
        verbosity : logging level of the messages.
        """
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep must be 0 or more, got {num_to_keep}")
        orders = [{"min_key": key} for key in min_keys or ()]
        orders += [{"max_key": key} for key in max_keys or ()]
        orders += [{"importance_key": key} for key in importance_keys]

        def delete() -> None:
            found, kept = set(), set()
            for order in orders:
                ranked = self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
                found.update(ckpt.path for ckpt in ranked)
                kept.update(ckpt.path for ckpt in ranked[:num_to_keep])
            for path in sorted(found - kept):
                self._remove(path)
                logger.log(verbosity, f"Deleted checkpoint in {path}")

        _on_main(delete)

    def recover_if_possible(
        self,
        importance_key: Callable[[Checkpoint], Any] | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
    ) -> Checkpoint | None:
        """Load the first complete checkpoint in the given order (default: the newest).

        Returns
        -------
        The checkpoint, or None if there is none.

        Raises
        ------
        RuntimeError : as ``find_checkpoint``, on every process.
        """
        _on_main(self._remove_abandoned)
        chosen = _on_main(self.find_checkpoint, importance_key, max_key, min_key, ckpt_predicate)
        if chosen is None:
            logger.info(f"No checkpoint to recover from in {self.checkpoints_dir}")
        else:
            self.load_checkpoint(chosen)
        return chosen

    def find_checkpoint(
        self,
        importance_key: Callable[[Checkpoint], Any] | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
    ) -> Checkpoint | None:
        """Pick the first checkpoint in the given order whose files are all there and unchanged.

        Reads every file of the one that is picked once, to compare its CRC-32.

        Raises
        ------
        RuntimeError : if a checkpoint of another configuration is in the folder, or if there are
            checkpoints but no complete one.
        """
        self._refuse_other_configuration()
        faults = {path: fault for path, (_, fault) in self._inspect_all().items() if fault}
        chosen = None
        for ckpt in self.find_checkpoints(importance_key, max_key, min_key, ckpt_predicate):
            fault = self._content_fault(ckpt)
            if not fault:
                chosen = ckpt
                break
            faults[ckpt.path] = fault
        for path, fault in faults.items():
            logger.warning(f"Skipping the checkpoint {path}: {fault}")
        if chosen is None and faults:
            listed = "; ".join(f"{path.name}: {fault}" for path, fault in faults.items())
            raise RuntimeError(
                f"No complete checkpoint to recover from in {self.checkpoints_dir} ({listed}). "
                "Restore one, or move these folders away to start from scratch."
            )
        return chosen

    def find_checkpoints(
        self,
        importance_key: Callable[[Checkpoint], Any] | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        max_num_checkpoints: int | None = None,
    ) -> list[Checkpoint]:
        """Checkpoints in the given order, as in the parent; a non-finite metric never ranks."""
        key = None if importance_key else max_key or min_key

        def considered(ckpt: Checkpoint) -> bool:
            ranks = key is None or math.isfinite(ckpt.meta.get(key, math.nan))
            return ranks and (ckpt_predicate is None or ckpt_predicate(ckpt))

        return super().find_checkpoints(
            importance_key, max_key, min_key, considered, max_num_checkpoints
        )

    def list_checkpoints(self) -> list[Checkpoint]:
        """Checkpoints whose meta file is whole and whose files all have their size."""
        return [ckpt for ckpt, fault in self._inspect_all().values() if not fault]

    # Saving, on the main process

    def _new_checkpoint_dirpath(self) -> Path:
        return _temporary(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        return _temporary(super()._custom_checkpoint_dirpath(name))

    def _make_room(self) -> None:
        """Remove what dead runs left behind, and refuse to start what cannot end well."""
        self._refuse_other_configuration()
        self.checkpoints_dir.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        newest = max(self.list_checkpoints(), key=ckpt_recency, default=None)
        needed = sum(size for size, _ in newest.meta["files"].values()) if newest else 0
        free = shutil.disk_usage(self.checkpoints_dir).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint needs about {needed / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free "
                f"in {self.checkpoints_dir}. Nothing was written, and no checkpoint deleted; make "
                f"room and start the same command again, it continues from {newest.path.name}",
            )

    def _publish(self, saved: Checkpoint) -> Checkpoint:
        """Complete the meta file, flush everything to the disk, and only then give the name."""
        folder = saved.path
        try:
            for name, path in saved.paramfiles.items():
                if not path.is_file() and not self.optional_recoverables[name]:
                    raise RuntimeError(f"the saver of the recoverable {name!r} wrote no file")
            paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != METAFNAME)
            files = {p.relative_to(folder).as_posix(): _size_and_crc(p) for p in paths}
            meta = {**saved.meta, "files": files}
            text = yaml.safe_dump(meta, default_flow_style=None, explicit_end=True)
            (folder / METAFNAME).write_text(text, encoding="utf-8")
            for path in [*folder.rglob("*"), folder]:
                flush(path)
            target = folder.with_name(_TEMPORARY.fullmatch(folder.name)["final"])
            replaced = self._set_aside(target) if target.exists() else None
            os.rename(folder, target)
            flush(self.checkpoints_dir)
        except Exception as error:
            raise self._saving_failed(error) from error
        if replaced:
            self._remove(replaced)
        paramfiles = {name: target / path.name for name, path in saved.paramfiles.items()}
        return Checkpoint(target, meta, paramfiles)

    def _set_aside(self, path: Path) -> Path:
        """Give way to a new checkpoint of the same name, but remain one until it is there."""
        aside = path.with_name(f"{path.name}+replaced")
        if aside.exists():
            self._remove(aside)
        os.rename(path, aside)
        return aside

    def _saving_failed(self, error: Exception) -> RuntimeError:
        self._remove_abandoned()
        newest = max(self.list_checkpoints(), key=ckpt_recency, default=None)
        rest = f"continues from {newest.path.name}" if newest else "starts again, there is none yet"
        return RuntimeError(
            f"A checkpoint could not be saved in {self.checkpoints_dir}: {error!r}. No earlier "
            "checkpoint was touched; remove the cause (is the disk full?) and start the same "
            f"command again, it {rest}."
        )

    def _remove(self, path: Path) -> None:
        doomed = _temporary(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)  # what is left goes at the next save

    def _remove_abandoned(self) -> None:
        for path in self.checkpoints_dir.glob("tmp-*"):
            if not _TEMPORARY.fullmatch(path.name):
                continue
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                logger.warning(f"Another process seems to save into this run's folder now: {path}")

    # Reading

    def _list_checkpoint_dirs(self) -> list[Path]:
        # The parent wants a meta file; a folder that lost it is an incomplete checkpoint, not none.
        return sorted(p for p in self.checkpoints_dir.glob(f"{CKPT_PREFIX}*") if p.is_dir())

    def _inspect_all(self) -> dict[Path, tuple[Checkpoint | None, str]]:
        return {path: self._inspect(path) for path in self._list_checkpoint_dirs()}

    def _inspect(self, folder: Path) -> tuple[Checkpoint | None, str]:
        """Read a checkpoint's meta file, and say what is wrong with it or the files' sizes."""
        try:
            text = (folder / METAFNAME).read_text(encoding="utf-8")
            (ckpt,) = self._construct_checkpoint_objects([folder])
        except (OSError, ValueError, yaml.YAMLError) as error:
            return None, f"{METAFNAME} cannot be read ({error})"
        meta = ckpt.meta
        if not isinstance(meta, dict) or not text.endswith(_META_END) or "files" not in meta:
            return None, f"{METAFNAME} is cut off, or SpeechBrain's own Checkpointer wrote it"
        for name, (size, _) in meta["files"].items():
            path = folder / name
            if not path.is_file():
                return ckpt, f"{name} is missing"
            if path.stat().st_size != size:
                return ckpt, f"{name} has {path.stat().st_size} bytes instead of {size}"
        return ckpt, ""

    def _content_fault(self, ckpt: Checkpoint) -> str:
        """Say what recovery would stumble over in a checkpoint whose files have their sizes."""
        for name in self.recoverables:
            optional = self.allow_partial_load or self.optional_recoverables[name]
            if name not in ckpt.paramfiles and not optional:
                return f"it has no file for the recoverable {name!r}"
        for name, recorded in ckpt.meta["files"].items():
            try:
                if _size_and_crc(ckpt.path / name) != list(recorded):
                    return f"the content of {name} has changed since it was saved (CRC-32)"
            except OSError as error:
                return f"{name} cannot be read ({error})"
        return ""

    def _refuse_other_configuration(self) -> None:
        if self.config_hash is None:
            return
        for path, (ckpt, _) in self._inspect_all().items():
            if ckpt is not None and ckpt.meta.get("config_hash") != self.config_hash:
                raise RuntimeError(
                    f"{self.checkpoints_dir} belongs to another configuration: {path.name} has the "
                    f"config_hash {ckpt.meta.get('config_hash')}, this run {self.config_hash}. "
                    "Choose another output_folder, or take back what was changed in the YAML or on "
                    "the command line"
                )


def _on_main(function: Callable, *args: Any) -> Any:
    """Call on the main process; every process gets the result, or raises the error."""

    @main_process_only
    def attempt() -> tuple[Any, Exception | None]:
        try:
            return function(*args), None
        except Exception as error:
            return None, error

    result, error = attempt()
    if error is not None:
        raise error
    return result


def _temporary(path: Path) -> Path:
    """Name for a folder in the making: no checkpoint's name, and it says whose it is."""
    return path.with_name(f"tmp-{_host()}-{os.getpid()}-{path.name}")


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _is_abandoned(temporary: Path) -> bool:
    """Whether no other living process of this machine is writing to it."""
    owner = _TEMPORARY.fullmatch(temporary.name)
    process = int(owner["process"])
    # A folder of another machine: a run's folder belongs to one run, and that is this one.
    if owner["host"] != _host() or process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _size_and_crc(path: Path) -> list[int]:
    return [path.stat().st_size, file_crc(path)]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
