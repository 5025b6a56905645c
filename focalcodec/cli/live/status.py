"""How fast live speech is processed, for people: a line that is renewed, and a summary."""

import time
from collections.abc import Callable

from tqdm import tqdm

from focalcodec.meter import Meter, Times

_EVERY_S = 1.0


class Status:
    """Line on stderr that is renewed once a second, above which other lines can be written.

    Parameters
    ----------
    meter : what it shows.
    notes : gives what else there is to say.
    shown : False for nothing.
    """

    def __init__(self, meter: Meter, *, notes: Callable[[], list[str]], shown: bool) -> None:
        self._meter, self._notes = meter, notes
        self._bar = tqdm(disable=not shown, bar_format="{desc}", leave=False)
        self._shown_at = time.perf_counter()

    def renew(self) -> None:
        """Show what is so now, unless that was just done."""
        if not self._bar.disable and time.perf_counter() - self._shown_at >= _EVERY_S:
            self._bar.set_description_str("; ".join(describe(self._meter, notes=self._notes())))
            self._shown_at = time.perf_counter()

    def close(self) -> None:
        """Take the line away."""
        self._bar.close()


def describe(meter: Meter, *, notes: list[str]) -> list[str]:
    """Speech, times of chunks against what they may take, latency, and what else is to be said."""
    slow = f", {meter.num_slow} slower than real time" if meter.num_slow else ""
    return [
        f"{meter.seconds:.1f} s of speech, real-time factor {meter.real_time_factor:.3f}",
        f"chunks of {1000 * meter.chunk_s:g} ms processed in {_quantiles(meter.processing)}{slow}",
        f"given {_quantiles(meter.latency)} after their last sample",
        *filter(None, notes),
    ]


def _quantiles(times: Times) -> str:
    median, high = (1000 * times.quantile(fraction) for fraction in (0.5, 0.99))
    return f"{median:.1f} ms (median) and {high:.1f} ms (99 %)"
