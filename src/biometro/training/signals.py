"""A signal sets a flag; the step's end acts on it."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped before the end, and the same command goes on
CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_remembered: list[str] = []


def remember(number: int, frame: FrameType | None) -> None:
    """A handler for ranks that are not in the loop yet: the stop is made as soon as they are, by agreement."""
    _remembered.append(signal.Signals(number).name)


def remembering() -> bool:
    """Whether stops are to be remembered: under torchrun, which would start again a rank that leaves by itself."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class StopRequest:
    """Context manager: within it, SIGTERM, SIGINT, SIGUSR1 and the time limit ask for a stop instead of forcing one.

    A second SIGINT interrupts at once. Outside the main thread (a notebook's worker) only the time limit counts.
    """

    def __init__(self, max_minutes: float | None):
        self.reason: str | None = None
        self._interrupts = 0
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._max_minutes = max_minutes
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if _remembered:
            self.reason = _remembered.pop()
        if threading.current_thread() is threading.main_thread():
            for number in CAUGHT:
                self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def check(self) -> str | None:
        """Why to stop after this step, or None."""
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = f"the limit of {self._max_minutes:g} minutes"
        return self.reason

    def minutes_left(self) -> float | None:
        """Until the time limit, at least a little; None without one."""
        return None if self._deadline is None else max(0.01, (self._deadline - time.monotonic()) / 60)
