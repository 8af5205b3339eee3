"""What is pending of one task's timers, by time.

    tables      the timers' own tables, key -> time: what is pending, in any of a table's forms
    heap        entries (time, key): where to look first

Invariants: the tables alone say what is pending; for each pending key the heap has an entry of no later time. So setting
a timer for a later time, taking it back and undoing a call cost the heap nothing: an entry is compared with its table when
its time comes. What was taken from the heap is put back when the epoch is not committed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any

from secondpass.due import Pending
from secondpass.timers import TimerSpec

_SLACK = 1024


class _Heap:
    """The entries of one timer: (time, key), or (time, order, key) where keys do not compare."""

    __slots__ = ("_compare", "_heap", "_order", "_taken", "earliest_set")

    def __init__(self, spec: TimerSpec, cells: Mapping[Any, float]) -> None:
        self._order, self._compare = spec.order, spec.compares
        self._taken: list[Any] = []
        self.earliest_set = math.inf
        self.rebuild(cells)

    def rebuild(self, cells: Mapping[Any, float]) -> None:
        order = self._order
        if self._compare:
            self._heap: list[Any] = [(time, key) for key, time in cells.items()]
        else:
            self._heap = [(time, order(key), key) for key, time in cells.items()]
        heapify(self._heap)

    def note(self, time: float, key: Any, before: float | None) -> None:
        """A timer was set; `before` is the time it had."""
        if before is None or time < before:
            # The time as its table has it: two floats would take twice the memory.
            heappush(self._heap, (time, key) if self._compare else (time, self._order(key), key))
        if time < self.earliest_set:
            self.earliest_set = time

    def first(self, time_of: Callable[[Any], float | None]) -> Any:
        """The entry of what is due first; None where nothing is pending."""
        heap = self._heap
        while heap:
            entry = heap[0]
            time = time_of(entry[-1])
            if time == entry[0]:
                return entry
            self._taken.append(heappop(heap))
            if time is not None and time > entry[0]:
                heappush(heap, (time, *entry[1:]))
        return None

    def settle(self, cells: Mapping[Any, float]) -> None:
        self._taken.clear()
        self.earliest_set = math.inf
        if len(self._heap) > 2 * len(cells) + _SLACK:
            self.rebuild(cells)

    def restore(self) -> None:
        for entry in self._taken:
            heappush(self._heap, entry)
        self._taken.clear()
        self.earliest_set = math.inf


class Agenda:
    """The timers of one task."""

    def __init__(self, timers: Mapping[str, TimerSpec], tables: Mapping[str, Any]) -> None:
        self.timers = timers
        self._heaps = {name: _Heap(spec, tables[name]) for name, spec in sorted(timers.items())}
        self.on_set = {name: heap.note for name, heap in self._heaps.items()}

    def first(self, tables: Mapping[str, Any], depth: int) -> Pending | None:
        """What is due first: by time, name, and key in key order."""
        found: Pending | None = None
        for name, heap in self._heaps.items():
            entry = heap.first(tables[name].get)
            if entry is not None and (found is None or entry[0] < found.time):
                found = Pending(entry[0], depth, name, None, entry[-1])
        return found

    def take(self, due: Pending, times: Any) -> None:
        """It is about to fire: it is gone, or, of a schedule, set for its next moment."""
        spec = self.timers[due.name]
        if spec.repeats:
            times[due.key] = following = spec.after(due.time)
            self._heaps[due.name].note(following, due.key, None)
        else:
            del times[due.key]

    def begin(self, tables: Mapping[str, Any], now: float) -> None:
        """Let the schedules that have no next moment yet count from now."""
        for name, spec in self.timers.items():
            if spec.repeats and tables[name].get(None) is None:
                tables[name][None] = first = spec.after(now)
                self._heaps[name].note(first, None, None)

    def unset(self, tables: Mapping[str, Any]) -> bool:
        """Whether a schedule has no next moment yet."""
        return any(spec.repeats and tables[n].get(None) is None for n, spec in self.timers.items())

    @property
    def earliest_set(self) -> float:
        """The earliest time that a timer was set for since `forget_sets`."""
        return min((heap.earliest_set for heap in self._heaps.values()), default=math.inf)

    def forget_sets(self) -> None:
        for heap in self._heaps.values():
            heap.earliest_set = math.inf

    def settle(self, tables: Mapping[str, Any]) -> None:
        """The epoch is committed, and `tables` hold what it left."""
        for name, heap in self._heaps.items():
            heap.settle(tables[name])

    def restore(self) -> None:
        """The epoch, or this run of it, is forgotten."""
        for heap in self._heaps.values():
            heap.restore()
