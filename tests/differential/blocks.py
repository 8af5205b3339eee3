"""What generated apps consist of: events, and tasks that each do one thing a rule of meaning is about.

Every event carries `n`, the number of the source event that it came from, so that the position recorded
with an output can be checked. What a task decides, it decides from the event and its settings.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from secondpass import ALL, Event, Task, UntypedEvent, every, output, table, timer, value


class Reading(Event):
    n: int
    k: int
    v: float
    time: float


class Note(Event):
    n: int
    k: int
    text: str
    time: datetime.datetime
    tags: Mapping[str, Any] = {}


class Bare(Event):
    """An event without a time."""

    n: int
    k: int


class Alert(Event):
    n: int
    k: int
    level: float = 0.0
    about: tuple[Any, ...] = ()
    facts: Mapping[str, Any] = {}


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


@dataclasses.dataclass
class Track:
    """A mutable cell."""

    level: Level
    values: list[float]
    seen: dict[str, int]
    parent: int | None = None


Any_ = Reading | Note | Bare | Alert


def number(event: Any) -> int:
    return event["n"] if isinstance(event, dict) else event.n


def key(event: Any) -> int:
    return event["k"] if isinstance(event, dict) else event.k


def hit(event: Any, every: int, rest: int = 0) -> bool:
    return every > 0 and (number(event) * 7 + key(event)) % every == rest % every


class Drop(Task):
    every: int = 3

    def handle(self, event):
        return None if hit(event, self.every) else event


class Change(Task[Reading]):
    factor: float = 1.5

    def handle(self, event: Reading) -> Reading:
        # An int in a float field becomes a float where the event leaves the task.
        return event.replace(v=int(event.v * self.factor), k=(event.k + 1) % 7)


class Multiply(Task):
    at_most: int = 3

    def handle(self, event):
        return [event] * ((number(event) + key(event)) % (self.at_most + 1))


class Spread(Task[Reading]):
    """A generator; it may raise when half of it is out."""

    raises_every: int = 0
    seen = table(int, int, default=0)

    def handle(self, event: Reading) -> Iterator[Reading]:
        for i in range(event.n % 3):
            self.seen[event.k] += 1
            yield event.replace(k=event.k + i, v=float(self.seen[event.k]))
        if hit(event, self.raises_every):
            raise ValueError(f"half way through {event.n}")
        if event.n % 2:
            yield event.to(Alert, level=event.v)


class Suppress(Task):
    """Three writes and a read of a table with a time to live."""

    ttl_s: float = 0.1
    last = table(int, float, ttl_s="ttl_s")
    kept = output()

    def handle(self, event):
        k = key(event)
        known = self.last.get(k)
        for cell in (k - 1, k, k + 1):
            self.last[cell] = self.now
        if known is None:
            self.kept.emit(event)
            return event
        return None


class Count(Task):
    """Scalars, as a dict and as a defaultdict, with two outputs of which one is shared with others."""

    seen = table(int, int, default=0)
    names = table(str, float | None)
    pages = output(Alert)
    rare = output()

    def handle(self, event):
        k, n = key(event), number(event)
        self.seen[k] += 1
        self.count("seen")
        self.count(f"of {k}", 2)
        if n % 4 == 0:
            self.pages.emit(Alert(n=n, k=k, level=self.seen[k]))
        if n % 5 == 0:
            self.rare.emit({"n": n, "k": k, "all": dict(self.seen)})
        if n % 6 == 0:
            self.seen.pop(k + 1, None)
        if n % 7 == 0:
            self.names[str(k)] = None if n % 2 else float(n)
        if n % 11 == 0 and str(k) in self.names:
            del self.names[str(k)]
        self.log.info("event %d", n)
        return event


class Remember(Task):
    """Objects: changed in place, one object in two cells, returned lists that alias a cell."""

    lists = table(int, list[float], factory=list)
    tracks = table(tuple[int, str], Track)
    recent = table(int, collections.deque[int], factory=lambda: collections.deque(maxlen=3))
    pages = output(Alert)

    def handle(self, event):
        k, n = key(event), number(event)
        mine = self.lists[k]
        mine.append(float(n))
        if len(mine) > 3:
            self.lists[k + 1] = mine
            mine.clear()
        self.recent[k].append(n)
        track = self.tracks.get((k, "t"))
        if track is None:
            track = self.tracks[k, "t"] = Track(Level.LOW, [], {})
            track.values.append(-1.0)  # of the object that was given, not of the cell
        elif n % 3 == 0:
            track.seen[str(n)] = n
            track.level = Level.HIGH
            track.parent = k
        elif n % 8 == 0:
            del self.tracks[k, "t"]
        if n % 5 == 0:
            found = [Alert(n=n, k=k, about=tuple(self.recent[k]), facts=track.seen)]
            track.seen["later"] = 1
            self.pages.emit(Alert(n=n, k=k, about=(self.lists[k], [1])))
            self.lists[k].append(0.5)
            return found
        return event


class Fading(Task):
    """Objects with a time to live: only assignment renews them."""

    ttl_s: float = 0.1
    tags = table(int, dict[str, int], ttl_s="ttl_s")
    tallies = table(int, collections.Counter[str], factory=collections.Counter, ttl_s="ttl_s")

    def handle(self, event):
        k, n = key(event), number(event)
        if k in self.tags:
            self.tags[k][str(n % 3)] = n
        else:
            self.tags[k] = {"first": n}
        self.tallies[k][str(n % 2)] += 1
        if n % 4 == 0:
            self.tags[k] = self.tags[k]
        return event if len(self.tags) % 3 else [event, Alert(n=n, k=k, facts=dict(self.tallies[k]))]


class Values(Task):
    total = value(int, 0)
    history = value(list[int], [])
    last = value(Reading | None, None)
    pages = output(Alert)

    def handle(self, event):
        self.total += 1
        self.history.append(number(event))
        if len(self.history) > 4:
            self.history = self.history[-2:]
        if isinstance(event, Reading):
            self.last, before = event, self.last
            if before is not None and before.k == event.k:
                self.pages.emit(Alert(n=event.n, k=event.k, about=(self.total, before.n)))
        return event


class Fail(Task):
    """Raises after it has changed, emitted, counted and logged."""

    every: int = 4
    after: int = 0
    seen = table(int, int, default=0)
    lists = table(int, list[int], factory=list)
    total = value(int, 0)
    pages = output(Alert)

    def handle(self, event):
        k, n = key(event), number(event)
        self.seen[k] += 1
        self.lists[k % 3].append(n)
        self.total += 1
        self.count("handled")
        self.pages.emit(Alert(n=n, k=k, level=float(self.seen[k])))
        if n >= self.after and hit(event, self.every):
            if n % 3 == 0:
                self.lists[k % 3].append(2**70)  # no 64 bits: found when the call ends
                return event
            if n % 3 == 1:
                del self.seen[k]
            raise RuntimeError(f"event {n} is bad")
        return event


class Break(Task):
    """Breaks a rule, or stops, at some events; mended it does not."""

    every: int = 0
    how: int = 0
    mended: bool = False
    cells = table(int, float)
    lists = table(int, list[float], factory=list)

    def handle(self, event):
        n = number(event)
        if not self.mended and hit(event, self.every, 1):
            if self.how == 0:
                return True
            if self.how == 1:
                self.cells[n] = 1  # an int, in a cell that nothing else writes
            elif self.how == 2:
                self.lists[n].append(1)
            elif self.how == 3:
                return [event, None]
            else:
                raise ValueError(f"stop at {n}")
        return event


class Survey(Task):
    """Iterates, measures and clears."""

    cells = table(int, int)
    mixed = table(int | str, int)

    def handle(self, event):
        k, n = key(event), number(event)
        self.cells[k * 31 % 17] = n
        self.mixed[k - 3 if n % 2 else f"s{k}"] = n
        if n % 6 == 0:
            smallest = next(iter(self.cells))
            del self.cells[smallest]
        if n % 13 == 0:
            self.cells.clear()
        if n % 3 == 0:
            return Alert(n=n, k=k, about=(*self.cells, len(self.cells), *self.mixed.items()))
        if n % 10 == 0 and self.mixed:
            self.mixed.popitem()
        return event


class Near(Task):
    """Neighbouring cells of a table with a time to live, declared: too many for some events, all for others."""

    ttl_s: float = 0.1
    every: int = 0
    last = table(int, float, ttl_s="ttl_s")
    counts = table(int, int, default=0)
    kept = output()

    def keys(self, event):
        k = key(event)
        if hit(event, self.every, 1):
            return ALL
        if hit(event, self.every, 2):
            raise LookupError(f"no keys for {number(event)}")
        return range(k - 2, k + 2)

    def handle(self, event):
        k, n = key(event), number(event)
        if hit(event, self.every, 1):
            return Alert(n=n, k=k, about=(len(self.counts), *self.last.items()))
        self.counts[k] += 1
        if n % 5 == 0:
            self.counts.pop(k - 1, None)
        known = self.last.get(k)
        for cell in (k - 1, k, k + 1):
            self.last[cell] = self.now
        if hit(event, self.every, 3):
            raise RuntimeError(f"event {n} is bad")
        if known is None:
            self.kept.emit(event)
            return event
        return None if n % 2 else [event, Alert(n=n, k=k, level=float(self.counts[k]))]


class Owned(Task[Reading | Alert]):
    """Objects under keys of several types, each event under its own."""

    spread: int = 3
    tracks = table(tuple[int, str], Track)
    names = table(str, list[int], factory=list)
    total = value(int, 0)
    pages = output(Alert)

    def keys(self, event):
        k, n = key(event), number(event)
        if self.spread and n % 7 == 0:
            return ALL
        return {(k % 3, "t"), str(k), str(k + 1)} if n % self.spread else (str(k),)

    def handle(self, event):
        k, n = key(event), number(event)
        if self.spread and n % 7 == 0:
            self.total += 1
            self.pages.emit(Alert(n=n, k=k, about=(self.total, *self.names)))
            if n % 14 == 0:
                self.names.clear()
            return event
        self.names[str(k)].append(n)
        if n % self.spread == 0:
            self.log.info("event %d", n)
            return event
        self.names[str(k + 1)] = self.names[str(k)]
        track = self.tracks.get((k % 3, "t"))
        if track is None:
            self.tracks[k % 3, "t"] = Track(Level.LOW, [0.5], {})
        else:
            track.values.append(float(n))
            track.seen[str(k)] = n
            if n % 4 == 0:
                del self.tracks[k % 3, "t"]
        self.count("owned")
        return event.to(Alert, level=float(len(self.names[str(k)])))


class Seldom(Task):
    """Touches all of its state at some events, and none of it at most."""

    every: int = 3
    total = value(int, 0)
    seen = table(int, int, default=0)

    def keys(self, event):
        return ALL if number(event) % self.every == 0 else ()

    def handle(self, event):
        n, k = number(event), key(event)
        if n % self.every:
            return event
        self.total += 1
        self.seen[k] += self.total
        return Alert(n=n, k=k, about=(self.total, *self.seen.items()))


class Place(Task):
    """What a call may ask for: time, position, random numbers."""

    def handle(self, event):
        about = (self.now, self.position, self.random.random())
        return [Alert(n=number(event), k=key(event), about=(*about, i)) for i in range(number(event) % 3)]


class Plain(Task):
    """Untyped events out."""

    def handle(self, event):
        if number(event) % 3:
            return event
        return {"n": number(event), "k": key(event), "deep": {"list": [1, 2.0, None]}, "time": 5}


class Score(Task[Reading]):
    """Many events at once, as a model takes them; a bad one fails the whole batch."""

    raises_every: int = 0

    def handle_batch(self, events: list[Reading]) -> list[Any]:
        for event in events:
            if hit(event, self.raises_every, 2):
                raise ValueError(f"no score for {event.n}")
        return [None if e.n % 5 == 0 else e.replace(v=e.v + 1) if e.n % 2 else [e, e] for e in events]


class Silent(Task):
    """A timer for each key, moved by each event, taken back by some; it may fail, set others, and set them in the past."""

    after_s: float = 0.2
    every: int = 0
    fired = table(int, int, default=0)
    rows = table(int, list[float], factory=list)
    total = value(int, 0)
    pages = output(Alert)

    def handle(self, event):
        k, n = key(event), number(event)
        if n % 9 == 4:
            self.silent.cancel(k + 1)
        elif n % 5 == 3:
            self.silent.at(self.now - self.after_s, k)
        else:
            self.silent.at(self.now + self.after_s * (n % 3), k)
        if hit(event, self.every, 1):
            raise RuntimeError(f"event {n} is bad")
        return event if n % 4 else Alert(n=n, k=k, about=(self.silent.pending(k), self.silent.pending(k + 1)))

    @timer
    def silent(self, cid: int):
        self.fired[cid] += 1
        self.rows[cid % 2].append(self.now)
        self.total += 1
        self.count("silent")
        draw = self.random.random()
        self.pages.emit(Alert(n=-1, k=cid, about=(self.now, self.position, draw)))
        self.log.info("silent %d", cid)
        if self.total % 3 == 0:
            self.silent.at(self.now + self.after_s / 2, cid + 1)
        if self.every and self.total % self.every == 1:
            self.silent.at(self.now + 1, cid)
            raise ValueError(f"no timer for {cid}")
        if self.total % 7 == 2:
            self.silent.at(self.now, cid)
        if self.total % 2:
            return [Alert(n=-1, k=cid, level=self.now, about=(draw, i)) for i in range(self.total % 3)]
        return Reading(n=-1, k=cid, v=self.now, time=self.now)


class Regular(Task):
    """Schedules, and a timer under keys of several types."""

    span_s: float = 0.15
    seen = value(int, 0)
    names = table(str, int, default=0)

    def handle(self, event):
        k, n = key(event), number(event)
        self.seen += 1
        self.names[str(k)] += 1
        self.later.at(self.now + self.span_s, (str(k % 2), n % 3 or None))
        return event

    @timer
    def later(self, key: tuple[str, int | None]):
        self.names[key[0]] += 100
        return {"n": -1, "k": key[1] or 0, "now": self.now, "names": dict(self.names)}

    @every("5m")
    def report(self):
        seen, self.seen = self.seen, 0
        if seen % 5 == 4:
            raise LookupError(f"no report of {seen}")
        if seen:
            yield Alert(n=-1, k=seen, level=self.now, about=(self.report.pending(), self.position))

    @every("0 0 * * *", tz="Europe/Berlin")
    def daily(self):
        return Alert(n=-1, k=0, level=self.now)


def double(event: Alert):
    """A function as a task."""
    return [event, event.replace(level=event.level + 1)]


BLOCKS: list[Any] = [
    Drop,
    Change,
    Multiply,
    Spread,
    Suppress,
    Count,
    Remember,
    Fading,
    Values,
    Fail,
    Break,
    Survey,
    Near,
    Owned,
    Seldom,
    Place,
    Plain,
    Score,
    Silent,
    Regular,
    double,
]

__all__ = ["BLOCKS", "Alert", "Bare", "Note", "Reading", "UntypedEvent", "msgspec", "number"]
