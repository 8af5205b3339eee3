"""Tasks that stay at an event until a file is there."""

from __future__ import annotations

import time
from pathlib import Path

from secondpass import Event, Task


class Tick(Event):
    n: int


class Lingers(Task[Tick]):
    """Goes on from the fifth event once somebody has opened the gate."""

    gate: str

    def handle(self, event: Tick) -> Tick:
        if event.n == 5:
            while not Path(self.gate).exists():
                time.sleep(0.001)
        return event


class LingersInBatches(Task[Tick]):
    """The same with whole batches."""

    gate: str

    def handle_batch(self, events: list[Tick]) -> list[Tick]:
        if any(event.n == 5 for event in events):
            while not Path(self.gate).exists():
                time.sleep(0.001)
        return events
