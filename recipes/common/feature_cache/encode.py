"""Encode the utterances of one work unit of a feature cache into a shard.

Which utterances form a batch depends on the unit alone, so a unit gives the same bytes each time.
Audio is loaded by threads, one batch ahead of the encoder.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from focalcodec.encoding import encode
from recipes.common.dataio import BadAudioError, load_sig
from recipes.common.feature_cache.format import DTYPES, ITEM_SIZE, CacheError, Index, Row
from recipes.common.feature_cache.plan import Entries
from recipes.common.files import file_crc
from recipes.common.read_ahead import ReadAhead, length_batches


class _Audio(NamedTuple):
    """A loaded utterance and the marks of its file."""

    sig: Tensor
    file_size: int
    file_mtime_ns: int
    file_crc: int


class UnitEncoder:
    """Encoder of work units.

    Parameters
    ----------
    entries, encoder, dtype, device, batch_seconds, on_bad_file, bad_files : as in
        `recipes.common.feature_cache.build.build_cache`.
    """

    def __init__(
        self,
        entries: Entries,
        *,
        encoder: nn.Module,
        dtype: str,
        device: str | torch.device,
        batch_seconds: float,
        on_bad_file: str = "skip",
        bad_files: str | Path | None = None,
    ) -> None:
        if not batch_seconds > 0:
            raise CacheError(f"batch_seconds must be above 0, got {batch_seconds}")
        self.entries = entries
        self.encoder = encoder.to(device).eval()
        self.dtype = dtype
        self.device = torch.device(device)
        self.batch_samples = batch_seconds * encoder.sample_rate
        self._read_ahead = ReadAhead(
            self._load,
            on_bad_file=on_bad_file,
            num_utterances=len(entries),
            refuse=CacheError,
            place="the cache",
            bad_files=bad_files,
        )

    def write(self, file: BinaryIO, *, ids: Sequence[str], on_batch: Callable[[], None]) -> Index:
        """Write the features of a unit's utterances into a file.

        Parameters
        ----------
        file : open for writing.
        ids : utterances.
        on_batch : called after each batch.

        Returns
        -------
        Index of the shard.

        Raises
        ------
        BadAudioError : with the policy "raise".
        CacheError : if features are not finite, audio is being written to, or the data are gone.
        """
        index = Index(0, {}, {})
        first = 0
        for audio in self._read_ahead(self._batches(ids), bad=index.bad):
            for key, feats in zip(audio, self._encode(audio), strict=True):
                sig, *file_mark = audio[key]
                crc = zlib.crc32(feats)
                num_frames = len(feats) // (ITEM_SIZE * self.encoder.dim)
                index.rows[key] = Row(first, num_frames, crc, *file_mark, len(sig))
                first += num_frames
                file.write(feats)
            file.flush()  # a full disk shows here, and others see how far it is
            on_batch()
        return index._replace(num_bytes=first * self.encoder.dim * ITEM_SIZE)

    def _batches(self, ids: Sequence[str]) -> Iterator[list[str]]:
        sizes = {key: self.entries[key]["num_samples"] for key in ids}
        return length_batches(ids, sizes, limit=self.batch_samples)

    def _load(self, key: str) -> _Audio:
        path, expected = self.entries[key]["wav"], self.entries[key]["num_samples"]
        try:
            before = os.stat(path)
            crc = file_crc(path) if os.path.isfile(path) else 0  # load_sig refuses what is no file
            sig = load_sig(path, sample_rate=self.encoder.sample_rate)
            after = os.stat(path)
        except OSError as error:
            raise BadAudioError(path, error.strerror or str(error)) from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise CacheError(f"{path} is being written to; start again when the corpus is complete")
        if len(sig) != expected:
            raise BadAudioError(
                path,
                f"{len(sig)} samples, but {expected} in the manifest; prepare the data again",
            )
        return _Audio(sig, after.st_size, after.st_mtime_ns, crc)

    @torch.inference_mode()
    def _encode(self, audio: dict[str, _Audio]) -> Iterator[bytes]:
        """Bytes of the features of each utterance."""
        if not audio:
            return
        sigs = [item.sig for item in audio.values()]
        lengths = torch.tensor([len(sig) for sig in sigs], dtype=torch.float64)
        sig = pad_sequence(sigs, batch_first=True).to(self.device)
        lens = (lengths / sig.shape[1]).to(self.device)
        try:
            with torch.autocast(self.device.type, enabled=False):
                feats, mask = encode(self.encoder, sig, lens=lens)
        except torch.OutOfMemoryError as error:
            raise CacheError(
                f"a batch of {len(sigs)} utterances, {sig.numel() / self.encoder.sample_rate:.0f} "
                f"s with padding, does not fit on {self.device}; run python -m "
                "recipes.cache_features with a --batch_seconds lower than that"
            ) from error
        for key, row, num_frames in zip(audio, feats, mask.sum(1).tolist(), strict=True):
            yield self._to_bytes(row[:num_frames], key)

    def _to_bytes(self, feats: Tensor, key: str) -> bytes:
        """(N, dim) features as stored."""
        stored = feats.to(DTYPES[self.dtype])
        if not stored.isfinite().all():
            wav, peak = self.entries[key]["wav"], feats.abs().max().item()
            raise CacheError(
                f"features of {wav} reach {peak:g}, beyond what {self.dtype} holds; pass "
                "--feature_cache_dtype bfloat16 and another folder"
                if feats.isfinite().all()
                else f"features of {wav} are not finite; check encoder_checkpoint"
            )
        return stored.cpu().contiguous().view(torch.int16).numpy().astype("<i2").tobytes()
