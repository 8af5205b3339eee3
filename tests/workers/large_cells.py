"""Tasks with large cells, for `test_large_cells.py`; worker processes import them from here."""

from __future__ import annotations

import numpy as np

from secondpass import Event, Task, table, value


class Tick(Event):
    n: int
    time: float


class Keyed(Task[Tick]):
    """Cells of some keys, changed in place, replaced, deleted."""

    size: int
    sums = table(int, np.ndarray)
    kept = table(int, np.ndarray, ttl_s=7.5)

    def keys(self, event: Tick) -> tuple[int, ...]:
        return (event.n % 3,)

    def handle(self, event: Tick) -> Tick:
        key = event.n % 3
        if key not in self.sums or event.n % 11 == 10:
            self.sums[key] = np.zeros(self.size)
        self.sums[key][event.n % self.size] += event.n
        if event.n % 7 == 6:
            del self.sums[key]
        if key not in self.kept:
            self.kept[key] = np.full(self.size, float(event.n))
        return event.replace(time=float(self.kept[key][-1]))


class Whole(Task[Tick]):
    """All cells and values, one event after the other."""

    size: int
    rows = table(str, list[bytes], factory=list)
    last = value(bytes, b"")

    def handle(self, event: Tick) -> Tick:
        row = self.rows[f"r{event.n % 2}"]
        row.append(bytes([event.n % 256]) * self.size)
        del row[:-3]
        before = len(self.last)
        self.last = bytes([event.n % 256]) * (self.size * 8 if event.n % 4 else 10)
        return event.replace(time=event.time + before)
