"""Ticks: the time that passes on an idle stream, as records.

A tick's time is the stream's, and what the monotonic clock has counted since nothing more came: a wall clock that jumps
moves nothing. There is one only where a timer becomes due by it. Since it is a record, whoever runs the log again has the
same time at the same place; after a restart, idle time counts anew from the time that was committed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Ticks:
    """The idle time of one run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: tuple[float, float] | None = None
        """The stream's time, and the clock's, when it was found idle."""

    def busy(self) -> None:
        """Something came, or nothing was asked of the sources: the stream is not idle."""
        self._since = None

    def due(self, now: float, earliest: float | None) -> float | None:
        """The time of the tick that is due on an idle stream; None where no timer would become due by it."""
        at = self._clock()
        if self._since is None:
            self._since = now, at
        then = self._since[0] + (at - self._since[1])
        if earliest is None or not math.isfinite(now) or then < earliest:
            return None
        self._since = then, at
        return then
