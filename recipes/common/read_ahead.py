"""Audio on its way into a model: batches of similar length, loaded by threads one batch ahead."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from recipes.common.dataio import BadAudioError, TooShortError, check_policy, record_bad_file

logger = logging.getLogger(__name__)

_MAX_TRIES = 50  # bad files in a row before the work ends: the data are gone, not a file
_Audio = TypeVar("_Audio")


def length_batches(
    ids: Sequence[str], sizes: Mapping[str, float], *, limit: float
) -> Iterator[list[str]]:
    """Batches of similar length, longest first, each within the limit when padded.

    Parameters
    ----------
    ids : utterances, in any order.
    sizes : length of each, in the unit of the limit.
    limit : of a batch; a longer utterance is a batch of its own.
    """
    batch: list[str] = []
    for key in sorted(ids, key=lambda key: (-sizes[key], key)):
        if batch and (len(batch) + 1) * sizes[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


class ReadAhead(Generic[_Audio]):
    """Loader of batches, with the policy on bad files.

    Parameters
    ----------
    load : what is wanted of an utterance, by its id; raises BadAudioError.
    on_bad_file : "skip" or "raise".
    num_utterances : that there are; so many bad ones in a row, but 50 at most, end the work.
    refuse : what to raise then.
    place : what a bad file is left out of, for the log.
    bad_files : tsv file to which "skip" appends; None = only a warning.
    """

    def __init__(
        self,
        load: Callable[[str], _Audio],
        *,
        on_bad_file: str,
        num_utterances: int,
        refuse: type[ValueError],
        place: str,
        bad_files: str | Path | None = None,
    ) -> None:
        self.load = load
        self.on_bad_file = check_policy(on_bad_file)
        self.bad_files = bad_files
        self._most_tries = min(_MAX_TRIES, num_utterances)
        self._refuse = refuse
        self._place = place
        self._bad_in_a_row = 0

    def __call__(
        self, batches: Iterable[Sequence[str]], *, bad: dict[str, str]
    ) -> Iterator[dict[str, _Audio]]:
        """Give the loaded utterances of each batch by id; why others are not goes into ``bad``.

        Raises
        ------
        BadAudioError : with the policy "raise".
        """
        with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
            try:
                for batch in self._begun(pool, batches):
                    yield self._usable(batch, bad)
            finally:
                pool.shutdown(cancel_futures=True)

    def _begun(
        self, pool: ThreadPoolExecutor, batches: Iterable[Sequence[str]]
    ) -> Iterator[dict[str, Future]]:
        """Batches whose loading has begun, with one more behind them."""
        ahead: deque[dict[str, Future]] = deque()
        for batch in batches:
            ahead.append({key: pool.submit(self.load, key) for key in batch})
            if len(ahead) > 1:
                yield ahead.popleft()
        yield from ahead

    def _usable(self, batch: dict[str, Future], bad: dict[str, str]) -> dict[str, _Audio]:
        audio = {}
        for key, future in batch.items():
            try:
                audio[key] = future.result()
                self._bad_in_a_row = 0
            except BadAudioError as error:
                if self.on_bad_file == "raise":
                    raise
                self._bad_in_a_row += not isinstance(error, TooShortError)
                if self._bad_in_a_row >= self._most_tries:
                    raise self._refuse(
                        f"{error}; the {self._bad_in_a_row} utterances up to this one failed in a "
                        "row, so check that data_folder is complete and mounted"
                    ) from error
                if self.bad_files is None or record_bad_file(self.bad_files, error):
                    logger.warning("bad file, left out of %s: %s", self._place, error)
                bad[key] = error.reason
        return audio
