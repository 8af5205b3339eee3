"""Before a table's time to live becomes longer: what has expired is deleted, a little at a time, while events flow.

Cells that have expired are gone, and memory may still hold them; a longer time to live would bring them back. To look
for them at the command's position would hold the stream up for as long as the table is large. So they are looked
for before it has one, between epochs, some milliseconds at a time:

    copy        the table's keys, many at once
    sort        some of them, by the time at which their cells were written
    delete      cells that have expired by now: nobody can see the difference

What epochs write meanwhile is sorted too, as soon as any of it can have expired. So every cell is either not copied
yet, or among keys that wait to be sorted with a time before which none of them was written, or sorted under the time
at which it was written or an earlier one. When nothing of that has expired, no cell has.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any

from secondpass.engine.overlay import Delta
from secondpass.store.reader import Name

COPIED_AT_ONCE = 250_000
"""Keys; some 4 ms, and 7 ms for each million between them and the nearer end of the dict, where reading begins."""
SORTED_AT_ONCE = 5_000
DELETED_AT_ONCE = 5_000
"""And as many more as the last epoch wrote, of either: so it is faster than the stream, whatever that is."""
SORTING_S = 0.01
"""Sorting goes on for so long before the next epoch."""
FREED_AT_ONCE = 20
"""Runs of sorted keys."""


class Fading:
    """The cells of a table, by the time at which they expire, while epochs change it."""

    def __init__(self, cells: dict[Any, Any], ttl_s: float) -> None:
        self._cells = cells
        self._ttl_s = ttl_s
        self._first = self._last = 0
        """So many keys are copied from the dict's beginning, and from its end; there may be more."""
        self._length = len(cells)
        self._is_copied = False
        self._unsorted: deque[tuple[float, list[Any]]] = deque()
        """Keys, with a time before which none of their cells was written; by that time."""
        self._sorted: list[tuple[float, int, int, array[float], list[Any]]] = []
        """A heap of runs: the first time that is left, a number, where that stands; the times and keys of the run."""
        self._numbers = count()
        self._written = 0

    def wrote(self, delta: Delta, since: float) -> None:
        """An epoch has changed cells, at this time or later."""
        self._written = len(delta.changed)
        if delta.changed:
            self._unsorted.append((since, list(delta.changed)))
        # A dict keeps the order in which its keys came: what is new stands at its end, and need not be copied. What
        # went may have stood among the copied ones: as many are copied twice where it did not.
        self._first = max(0, self._first - len(delta.gone))
        self._last = max(0, self._last + len(self._cells) - self._length)
        self._length = len(self._cells)

    def look(self, now: float, until: float) -> bool:
        """Copy and sort until a moment of the monotonic clock; whether that is done, as far as cells can have expired."""
        while not self._is_copied:
            self._copy()
            if time.monotonic() >= until:
                return False
        owed = SORTED_AT_ONCE + self._written
        while self._sorts(now):
            owed -= self._sort()
            if owed <= 0 and time.monotonic() >= until:
                return not self._sorts(now)
        return True

    def expired(self, now: float) -> tuple[list[Any], bool]:
        """Keys of cells that have expired; and whether there are no others, of those that are sorted."""
        found: list[Any] = []
        cells, ttl_s, left = self._cells, self._ttl_s, DELETED_AT_ONCE + self._written

        def lives(written: float) -> bool:
            return not now - written >= ttl_s

        while self._sorted and not lives(self._sorted[0][0]):
            if left <= 0:
                return found, False
            _, number, begin, times, keys = heappop(self._sorted)
            end = bisect_left(times, True, begin, min(len(times), begin + left), key=lives)
            left -= end - begin
            for key in keys[begin:end]:
                entry = cells.get(key)
                if entry is not None and not lives(entry[1]):  # it may have been written again
                    found.append(key)
            if end < len(times):
                heappush(self._sorted, (times[end], number, end, times, keys))
        return found, True

    def free(self) -> bool:
        """Forget some of the keys; whether there are none left."""
        del self._sorted[-FREED_AT_ONCE:]
        if self._unsorted:
            self._unsorted.pop()
        return not self._sorted and not self._unsorted

    def _copy(self) -> None:
        if self._first <= self._last:
            keys = list(islice(self._cells, self._first, self._first + COPIED_AT_ONCE))
            self._first += len(keys)
        else:
            keys = list(islice(reversed(self._cells), self._last, self._last + COPIED_AT_ONCE))
            self._last += len(keys)
        self._unsorted.appendleft((float("-inf"), keys))
        self._is_copied = self._first + self._last >= len(self._cells)

    def _sorts(self, now: float) -> bool:
        """Whether keys wait whose cells can have expired."""
        if not self._unsorted:
            return False
        since = self._unsorted[0][0]
        return since == float("-inf") or now - since >= self._ttl_s

    def _sort(self) -> int:
        """Sort some keys; gives how many."""
        keys = self._unsorted[0][1]
        some = keys[-SORTED_AT_ONCE:]
        del keys[-SORTED_AT_ONCE:]
        if not keys:
            self._unsorted.popleft()
        entries = map(self._cells.get, some)
        run = sorted((entry[1], i) for i, entry in enumerate(entries) if entry is not None)
        if run:
            times = array("d", [written for written, _ in run])
            heappush(self._sorted, (times[0], next(self._numbers), 0, times, [some[i] for _, i in run]))
        return len(some)


class Reclaim:
    """All tables whose time to live becomes longer by one command."""

    def __init__(self, tables: Mapping[Name, tuple[dict[Any, Any], float]]) -> None:
        """By name: the cells, and the time to live that they have."""
        self._cells = {name: cells for name, (cells, _) in tables.items()}
        self._fading = {name: Fading(cells, ttl_s) for name, (cells, ttl_s) in tables.items()}

    def wrote(self, deltas: Mapping[Name, Any], since: float) -> None:
        """An epoch is committed; what it wrote, it wrote at this time or later."""
        for name, fading in self._fading.items():
            fading.wrote(deltas.get(name) or Delta({}, set()), since)

    def step(self, now: float) -> tuple[dict[Name, Delta], bool]:
        """Some milliseconds of work: deletes cells, gives what to commit of that, and whether no other has expired."""
        deltas: dict[Name, Delta] = {}
        until = time.monotonic() + SORTING_S
        if not all(fading.look(now, until) for fading in self._fading.values()):
            return deltas, False
        for name, fading in self._fading.items():
            keys, is_all = fading.expired(now)
            if keys:
                deltas[name] = Delta({}, set(keys))
                cells = self._cells[name]
                for key in deltas[name].gone:
                    del cells[key]
            if not is_all:
                return deltas, False
        return deltas, True

    def free(self) -> bool:
        """Forget some of what is known, when all is done; whether nothing is left. All at once takes long."""
        return all(fading.free() for fading in self._fading.values())


__all__ = ["Fading", "Reclaim"]
