"""How long an epoch should be: whatever has arrived, bounded by time."""

from __future__ import annotations

import os

TARGET_S = 0.2
"""A flooded app commits about five times a second: costs are amortised, and an output is never late by more."""
FIRST = 256
LIMIT = 200_000
CAREFUL_EVERY = 50
VARIABLE = "SECONDPASS_EPOCH_RECORDS"
"""The environment may shorten epochs, so that a short test commits often; it never lengthens them."""


class Pacer:
    """Chooses the number of records of the next epoch from what the last ones cost."""

    def __init__(self) -> None:
        self._records = float(FIRST)
        self._epochs = 0
        self._most = int(os.environ.get(VARIABLE) or LIMIT)

    @property
    def careful(self) -> bool:
        """Whether the coming epoch checks every call: the first of a run, and one in fifty."""
        return self._epochs % CAREFUL_EVERY == 0

    def limit(self) -> int:
        """At most so many records for the next epoch."""
        return min(FIRST if self.careful else int(self._records), self._most)

    def ran(self, records: int, seconds: float) -> None:
        """An epoch of so many records took so long."""
        was_careful = self.careful
        self._epochs += 1
        if not records or (was_careful and self._epochs > 1):
            return
        affordable = records * TARGET_S / max(seconds, 1e-6)
        # Grow by steps, so that one lucky epoch does not make an endless one; shrink at once.
        self._records = max(1.0, min(affordable, self._records * 4, LIMIT))
