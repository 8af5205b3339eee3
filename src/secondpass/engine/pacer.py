"""How long an epoch should be: whatever has arrived, bounded by time."""

from __future__ import annotations

import os

TARGET_S = 0.2
"""A flooded app commits about five times a second: costs are amortised, and an output is never late by more."""
HEAVY_TARGET_S = 1.0
"""With tasks on workers: at the end of each epoch they run dry, and a commit's wait for the disk is time lost to all."""
FIRST = 32
"""Few, since nothing is known yet of what an event costs."""
CAREFUL = 256
LIMIT = 200_000
CAREFUL_EVERY = 50
VARIABLE = "SECONDPASS_EPOCH_RECORDS"
"""The environment may shorten epochs, so that a short test commits often; it never lengthens them."""


class Pacer:
    """Chooses the number of records of the next epoch from what the last ones cost."""

    def __init__(self) -> None:
        self._records = float(CAREFUL)
        self._heavy = False
        self._epochs = 0
        self._most = int(os.environ.get(VARIABLE) or LIMIT)

    @property
    def careful(self) -> bool:
        """Whether the coming epoch checks every call: the first of a run, and one in fifty."""
        return self._epochs % CAREFUL_EVERY == 0

    def limit(self) -> int:
        """At most so many records for the next epoch."""
        records = int(self._records)
        if self.careful and not self._heavy:
            records = min(records, CAREFUL if self._epochs else FIRST)
        return min(records, self._most)

    def ran(self, records: int, seconds: float, *, heavy: bool = False) -> None:
        """An epoch of so many records took so long; `heavy` says whether workers had a part in it."""
        was_careful = self.careful
        self._epochs += 1
        self._heavy = heavy
        if self._epochs == 1 and seconds < TARGET_S / 2:
            return  # so few events tell only whether they are dear
        if not records or (was_careful and not heavy and self._epochs > 1):
            return
        affordable = records * (HEAVY_TARGET_S if heavy else TARGET_S) / max(seconds, 1e-6)
        # Grow by steps, so that one lucky epoch does not make an endless one; shrink at once.
        self._records = max(1.0, min(affordable, self._records * 4, LIMIT))
