"""Every utterance of a test set through a codec: run, score, note; shared by the processes."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from torch import Tensor
from tqdm import tqdm

from recipes.codecs.codec import Codec
from recipes.common.dataio import BadAudioError
from recipes.common.files import remove_leftovers
from recipes.common.mixing import load_input, load_reference, load_target
from recipes.common.scoring import SAMPLE_RATE, ScoreError
from recipes.evaluation.rows import Row, Rows, is_done
from recipes.evaluation.scores import Scorer, at_16k
from recipes.evaluation.tasks import Decoded, Task

logger = logging.getLogger(__name__)

Entry = Mapping[str, Any]


class Signals(NamedTuple):
    """Signals of one utterance.

    sig (1, T) to encode and reference_sig (1, T') how it shall sound, at the codec's rate; at
    16 kHz the target (T,) that the output is compared with, and others (T,) by name: ``input``
    where it is not the target, ``reference``.
    """

    sig: Tensor
    reference_sig: Tensor | None
    target: Tensor
    others: dict[str, Tensor]


class Loop:
    """One codec, one task, one test set.

    Parameters
    ----------
    codec : on its device.
    task : see `recipes.evaluation.tasks`.
    scorer : the metrics.
    folder : run folder, which receives rows and samples.
    written : ids whose signals are written as wav.
    on_bad_file : "skip" (a row without scores that says why) or "raise".
    hardware : what this process computes with, for its rows.
    seed : of codecs that draw; each utterance has its own.
    rank, world_size : this process, and how many share the utterances.
    """

    def __init__(
        self,
        codec: Codec,
        task: Task,
        scorer: Scorer,
        *,
        folder: Path,
        written: set[str],
        on_bad_file: str,
        hardware: str,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.codec = codec
        self.task = task
        self.scorer = scorer
        self.samples = folder / "samples"
        self.written = written
        self.on_bad_file = on_bad_file
        self.hardware = hardware
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.rows = Rows(folder, rank=rank)

    def run(self, manifest: Mapping[str, Entry]) -> None:
        """Work on this process' share of what is not done yet.

        Parameters
        ----------
        manifest : test set by utterance id, with real paths.

        Raises
        ------
        BadAudioError : with ``on_bad_file="raise"``.
        """
        done = self.rows.read()
        ddp_barrier()  # nobody adds rows before all have read the same
        start = 1 + max((row.start for row in done.values()), default=0)
        left = [id for id in manifest if not is_done(done.get(id), missing=self.scorer.missing)]
        if len(left) < len(manifest):
            logger.info("%d of %d utterances are done", len(manifest) - len(left), len(manifest))
        share = left[self.rank :: self.world_size]
        bar = tqdm(share, desc=self.task.name, unit="utt", disable=not if_main_process())
        is_warm = False
        for id in bar:
            try:
                sigs = self._load(manifest[id])
            except BadAudioError as error:
                if self.on_bad_file == "raise":
                    raise
                logger.warning("bad file, not evaluated: %s", error)
                self.rows.append(Row(id, failures=[["audio", str(error)]], start=start))
                continue
            if not is_warm:  # a first call allocates and chooses kernels: it is not timed
                self._decode(id, sigs)
                is_warm = True
            row = self._row(id, sigs, language=manifest[id].get("language", "en"))
            self.rows.append(row._replace(hardware=self.hardware, start=start))

    def _load(self, entry: Entry) -> Signals:
        rate = self.codec.sample_rate
        others = {}
        reference_sig = None
        if "target" in entry or "noise" in entry:
            others["input"] = load_input(entry, sample_rate=SAMPLE_RATE)
        if self.task.has_reference:
            others["reference"] = load_reference(entry, sample_rate=SAMPLE_RATE)
            reference_sig = load_reference(entry, sample_rate=rate)[None].to(self.codec.device)
        return Signals(
            sig=load_input(entry, sample_rate=rate)[None].to(self.codec.device),
            reference_sig=reference_sig,
            target=load_target(entry, sample_rate=SAMPLE_RATE),
            others=others,
        )

    def _decode(self, id: str, sigs: Signals) -> Decoded:
        digest = hashlib.sha256(f"{self.seed} {id}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:6], "big"))  # of a diffusion decoder, for one
        return self.task.run(self.codec, sigs.sig, sigs.reference_sig)

    def _row(self, id: str, sigs: Signals, *, language: str) -> Row:
        decoded = self._decode(id, sigs)
        size = len(sigs.target) if self.task.is_aligned else None
        heard, failures = {"ref": sigs.target}, []
        for prefix, sig in decoded.sigs.items():
            try:
                heard[prefix] = at_16k(
                    sig, sample_rate=self.codec.sample_rate_output, num_samples=size
                )
            except ScoreError as error:  # empty, or not finite
                failures.append([prefix, str(error)])
        if id in self.written:
            self._write(id, heard | sigs.others)
        if self.task.is_aligned and "input" in sigs.others:  # what a noisy signal scores itself
            heard["input"] = at_16k(sigs.others["input"], sample_rate=SAMPLE_RATE, num_samples=size)
        scores = self.scorer.score(id, sigs.target, heard, language=language)
        return Row(
            id=id,
            scores=scores.scores,
            failures=failures + scores.failures,
            not_computed=scores.not_computed,
            toks=() if decoded.toks is None else decoded.toks.t().tolist(),
            seconds=decoded.seconds,
        )

    def _write(self, id: str, sigs: Mapping[str, Tensor]) -> None:
        """Write 16-bit wav files, each whole or not at all."""
        folder = self.samples / id.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        for name, sig in sigs.items():
            partial = folder / f".{name}.{os.getpid()}"
            soundfile.write(partial, sig.clamp(-1, 1).numpy(), SAMPLE_RATE, format="WAV")
            partial.replace(folder / f"{name}.wav")
