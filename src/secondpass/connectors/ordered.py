"""A source put in order by time, within an allowed lateness; what comes later than that goes to the output `late`.

    arrives     a record of the inner source; `latest` is the largest time so far, `frontier` = latest - lateness_s
    held        events whose time is not before the frontier wait, ordered by (time, arrival)
    ready       events that the frontier has reached, in that order; events that came behind it, as `Late`; what has no
                time, in its place

What becomes ready follows from what arrives alone, so reading again from a place gives the same. The place is that of the
inner batch which holds the oldest record that was not given, with what had come to be when that batch began, and how many
of the records since have been given.

Two things do not follow from the input: that it had ended, or stood still for long enough, so that all that was held was
let go; and that an event was too far ahead of the clock. They become part of the place first, with a batch of no records,
and take effect when that is given: so they are decided once.

    let_go      before this record of the inner source arrived, all that was held went
    ahead       these records of it were too far ahead of the clock

The same is recorded, and a reader that reads `again` is told of it before it comes that far. No more records arrive there
than are needed for those that are asked for: what it is told next may be about the one after them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Any

from secondpass.app import LATE
from secondpass.connectors.contract import Batch, Reader, Source
from secondpass.connectors.memory import as_source
from secondpass.errors import DefinitionError, InputError
from secondpass.event import time_reader
from secondpass.record import Late, Refused, refuse_time


class Ordered:
    """A source whose events come in the order of their times: `App(source=Ordered(JsonLines(...), lateness_s=5.0))`.

    >>> from secondpass import App, Event
    >>> class Seen(Event):
    ...     time: float
    >>> came = [Seen(time=t) for t in (1.0, 4.0, 2.0, 9.0, 1.5, 8.0)]
    >>> kept, late = [], []
    >>> app = App("seen", source=Ordered(came, lateness_s=5.0), sink=kept.append, sinks={"late": late.append})
    >>> summary = app.run(store=None)
    >>> [event.time for event in kept], [event.time for event in late]
    ([1.0, 2.0, 4.0, 8.0, 9.0], [1.5])

    An event waits until one came that is `lateness_s` seconds later, or until the source has stood still for as long.
    One that comes behind what was let go is too late: it goes to the output `late`, and not through the chain.
    With `max_ahead_s`, events further ahead of the clock do not count as the latest; give the app's `max_ahead_s` too, which
    sets them aside. Events without a time, and lines that are none, keep their place. Raises `DefinitionError` for a
    lateness that is none.
    """

    outputs = (LATE,)
    """What it puts out past the chain."""

    def __init__(self, source: Any, *, lateness_s: float, max_ahead_s: float | None = None) -> None:
        for name, given in (("lateness_s", lateness_s), ("max_ahead_s", max_ahead_s)):
            if given is not None and (type(given) not in (int, float) or not 0 <= given < math.inf):
                raise DefinitionError(f"Ordered({name}={given!r}): write a number of seconds")
        self._inner: Source = as_source(source)
        self.name = self._inner.name
        self.path: Any = getattr(self._inner, "path", None)
        self.type: Any = self._inner.type
        self.following = self._inner.following
        self.lateness_s = float(lateness_s)
        self.max_ahead_s = max_ahead_s
        self.clock: Callable[[], float] = time.monotonic
        """Counts the seconds that the source stands still."""

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Reader:
        if offset is not None and "ordered" not in offset:
            raise InputError(
                f"{self.name} was not read in order until now, so its place does not tell what is held back; let the old "
                f"app read to the end first, or start over with `secondpass run APP --fresh`"
            )
        inner = self._inner.open(offset and offset["inner"], follow=follow, accept=accept)
        return _OrderedReader(self, inner, offset, follow or self.following)


class _Part:
    """An inner batch of which records may wait: where it begins, and what had come to be there."""

    __slots__ = ("arrived", "before", "frontier", "latest", "left")

    def __init__(self, before: Any, arrived: int, latest: float, frontier: float) -> None:
        self.before = before
        self.arrived = arrived
        self.latest = latest
        self.frontier = frontier
        self.left = 0


class _OrderedReader:
    def __init__(
        self, source: Ordered, inner: Reader, offset: dict[str, Any] | None, following: bool
    ) -> None:
        self._source, self._inner, self._following = source, inner, following
        self.decode = getattr(inner, "decode", None)
        begins_at = getattr(inner, "begins_at", None)
        self._before: Any = begins_at if offset is None else offset["inner"]
        self._latest = self._frontier = -math.inf
        self._arrived = 0
        self._held: list[tuple[float, int, Any, _Part]] = []
        self._ready: deque[tuple[Any, _Part]] = deque()
        self._parts: deque[_Part] = deque()
        self._ahead: set[int] = set()
        """Of the records that have arrived: those that were too far ahead of the clock."""
        self._known = 0
        """Of so many records it is known whether they were."""
        self._let_go = False
        """Whether what is held goes, by a decision that the last batch has told."""
        self._gone_at = -1
        """How many records had arrived when all was let go last."""
        self._ended = False
        self._since: float | None = None
        self._readers: dict[type, Any] = {}
        self._again = self._alone = False
        self._stops: deque[int] = deque()
        """When it reads again: before which records to let go."""
        self._coming: deque[Any] = deque()
        """When it reads again: of an inner batch, what has not arrived yet."""
        self._given_before = 0 if offset is None else offset["given"]
        self.begins_at = None if begins_at is None else self._offset()
        if offset is not None:
            self._resume(offset)

    # ---- reading

    def read(self, limit: int) -> Batch | None:
        if self._again:
            return self._read_again(limit)
        if not self._ready and self._let_go:
            self._release()
        if not self._ready:
            if self._ended:
                return None
            decided = self._arrive(limit)
            if decided or not self._ready:
                return Batch([], self._offset(), decided=decided)
        return self._give(limit)

    def _arrive(self, limit: int) -> dict[str, list[int]] | None:
        """Take what the inner source has; what was decided, which is to be told first."""
        batch = self._inner.read(limit)
        if batch is None:
            self._ended, self._let_go = True, bool(self._held)
        elif batch.count:
            self._since = None
            first = self._arrived
            self._take(batch, batch.count)
            ahead = sorted(n for n in self._ahead if n >= first)
            return {"ahead": [n - self._given for n in ahead]} if ahead else None
        else:
            self._before = batch.offset
            self._let_go = self._stands_still()
        return {"let_go": [self._arrived - self._given]} if self._let_go else None

    @property
    def _given(self) -> int:
        """Of the records that have arrived: how many were given."""
        return self._arrived - len(self._held) - len(self._ready)

    def _stands_still(self) -> bool:
        """Whether nothing has come for so long that what is held goes."""
        if not self._held:
            return False
        at = self._source.clock()
        if self._since is None:
            self._since = at
        return at - self._since >= self._source.lateness_s

    def _take(self, batch: Batch, count: int) -> None:
        """Let the first records of an inner batch arrive."""
        part = _Part(self._before, self._arrived, self._latest, self._frontier)
        self._parts.append(part)
        limit = math.inf if self._source.max_ahead_s is None else time.time() + self._source.max_ahead_s
        for record in _records_of(batch)[:count]:
            self._put(record, part, limit)
        self._before = batch.offset
        self._drop_parts()

    def _put(self, record: Any, part: _Part, limit: float) -> None:
        """One record arrives."""
        number = self._arrived
        self._arrived += 1
        part.left += 1
        at = self._time_of(record)
        if number >= self._known:
            self._known = number + 1
            if at is not None and at > limit:
                self._ahead.add(number)
        if at is None or number in self._ahead:
            self._ready.append((record, part))
        elif at < self._frontier:
            self._ready.append((Late(record), part))
        else:
            heappush(self._held, (at, number, record, part))
            self._latest = max(self._latest, at)
            self._frontier = max(self._frontier, self._latest - self._source.lateness_s)
            self._release_upto(self._frontier)

    def _time_of(self, record: Any) -> float | None:
        if isinstance(record, Refused):
            return None
        kind = record.__class__
        if kind not in self._readers:
            self._readers[kind] = time_reader(kind)
        at: float | None = self._readers[kind](record)
        return at if at is not None and refuse_time(at) is None else None

    def _release_upto(self, time: float) -> None:
        held, ready = self._held, self._ready
        while held and held[0][0] <= time:
            _, _, record, part = heappop(held)
            ready.append((record, part))

    def _release(self) -> None:
        """Let go of all that is held: what comes behind it is late."""
        self._let_go, self._since, self._gone_at = False, None, self._arrived
        self._frontier = max(self._frontier, self._latest)
        self._release_upto(math.inf)

    def _give(self, limit: int) -> Batch:
        ready, events, origin = self._ready, list[Any](), list[int]()
        refused: dict[int, Any] = {}
        count = min(limit, len(ready))
        for index in range(count):
            record, part = ready.popleft()
            part.left -= 1
            if isinstance(record, (Refused, Late)):
                refused[index] = record
            else:
                events.append(record)
                origin.append(index)
        self._drop_parts()
        return Batch(events, self._offset(), count=count, origin=origin if refused else None, refused=refused)

    # ---- reading again

    def again(self, *, alone: bool) -> None:
        """Decide nothing from here on; `alone`: what is asked for are records of this source, all of them."""
        self._again, self._alone = True, alone

    def recall(self, decided: Mapping[str, list[int]], opened: int) -> None:
        """Do what was decided, when it comes to these records; so many had been given where this reader was opened."""
        from_here = self._given_before - opened
        self._stops += [n + from_here for n in decided.get("let_go", ())]
        self._ahead |= {n + from_here for n in decided.get("ahead", ())}

    def _read_again(self, limit: int) -> Batch | None:
        part = _Part(self._before, self._arrived, self._latest, self._frontier)  # no place is asked for
        wanted = limit if self._alone else 1
        while len(self._ready) < wanted:
            if self._let_go or (self._stops and self._arrived >= self._stops[0]):
                if not self._let_go:
                    self._stops.popleft()
                self._release()
                continue
            if not self._coming:
                batch = self._inner.read(limit)
                if batch is None and self._held:
                    self._release()  # a store that does not tell it: what has ended lets go
                    continue
                if batch is None or (not batch.count and batch.offset == self._before):
                    self._ended = batch is None
                    break
                self._before = batch.offset
                self._coming.extend(_records_of(batch))
                continue
            self._put(self._coming.popleft(), part, math.inf)
        return None if self._ended and not self._ready else self._give(limit)

    # ---- places

    def _drop_parts(self) -> None:
        while self._parts and not self._parts[0].left:
            self._parts.popleft()
        if self._ahead:
            oldest = self._parts[0].arrived if self._parts else self._arrived
            self._ahead = {n for n in self._ahead if n >= oldest}

    def _offset(self) -> dict[str, Any]:
        part = (
            self._parts[0]
            if self._parts
            else _Part(self._before, self._arrived, self._latest, self._frontier)
        )
        return {
            "ordered": 1,
            "name": self._source.name,
            "inner": part.before,
            "latest": part.latest,
            "frontier": part.frontier,
            "given": self._given - part.arrived,
            "arrived": self._arrived - part.arrived,
            "ahead": sorted(n - part.arrived for n in self._ahead if n >= part.arrived),
            "let_go": self._let_go,
            "gone": self._gone_at == self._arrived,
        }

    def _resume(self, offset: dict[str, Any]) -> None:
        """Let the records since the place arrive again, and pass over those that were given."""
        self._latest, self._frontier = offset["latest"], offset["frontier"]
        self._ahead, self._known = set(offset["ahead"]), offset["arrived"]
        while self._arrived < offset["arrived"]:
            batch = self._inner.read(offset["arrived"] - self._arrived)
            if batch is None or (not batch.count and self._following and batch.offset == self._before):
                raise InputError(
                    f"{self._source.name} ends {offset['arrived'] - self._arrived} records before the place where the last "
                    f"run stopped; restore it, or start over with --fresh"
                )
            self._take(batch, batch.count)
        if offset.get("gone", len(self._ready) < offset["given"]):
            self._release()  # all was let go before the last of them was given
        for _ in range(offset["given"]):
            _, part = self._ready.popleft()
            part.left -= 1
        self._drop_parts()
        self._let_go = offset["let_go"]

    # ---- the rest is the inner reader's

    def verify(self) -> None:
        self._inner.verify()

    def progress(self) -> tuple[int, int] | None:
        return self._inner.progress()

    def close(self) -> None:
        self._inner.close()


def _records_of(batch: Batch) -> list[Any]:
    by_index = dict(zip(batch.origin, batch.events, strict=True))
    return [by_index[i] if i in by_index else batch.refused[i] for i in range(batch.count)]


__all__ = ["Ordered"]
