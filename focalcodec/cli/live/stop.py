"""Ending on a signal without losing what is under way."""

import signal
import threading
import time
from types import FrameType, TracebackType

SLICE_S = 0.1  # how long anything waits without looking whether it should end


class Stop:
    """While it is entered, Ctrl-C and SIGTERM are noted; a second one is as it always was.

    Attributes
    ----------
    signum : of the signal that came first; None before.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "Stop":
        """Install the handlers; threads other than the main one get no signals."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the handlers back that were there."""
        self._restore()

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def wait(self, seconds: float) -> None:
        """Sleep, unless a signal comes."""
        end = time.perf_counter() + seconds
        while not self.requested and (left := end - time.perf_counter()) > 0:
            time.sleep(min(left, SLICE_S))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
