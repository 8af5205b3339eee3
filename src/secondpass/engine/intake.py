"""From sources to epochs: reading, merging, and what is refused at the door.

Finite sources merge by (time, order of the sources, offset); followed ones by arrival, recorded. A source's
place is `{"offset": where a batch began, "skip": records of that batch already taken, "records": those taken in
all}`, so that a merge may stop in the middle of a batch, and can be done again.

What a source decides that does not follow from its input (`Batch.decided`) becomes part of its place between two epochs. The
next epoch has it, so that it is recorded with the first place that it is part of.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from secondpass.connectors.contract import Batch, Reader
from secondpass.engine.epoch import Epoch
from secondpass.errors import InputError
from secondpass.event import LATEST_TIME_S, event_types, owned, time_reader, times_reader, untyped
from secondpass.record import INTAKE, DeadLetter, Late, Refused, refuse_time


class _Feed:
    """One source being read, with the batch in hand when several are merged."""

    def __init__(
        self,
        source: Any,
        place: dict[str, Any] | None,
        follow: bool,
        accept: bool,
        prepare: Callable[[Reader], None],
    ) -> None:
        self.name: str = source.name
        self.type: Any = source.type
        self.following = follow or source.following
        self.before: Any = place["offset"] if place else None
        self.reader: Reader = source.open(self.before, follow=self.following, accept=accept)
        if self.before is None:
            self.before = getattr(self.reader, "begins_at", None)  # a log is known by its place
        prepare(self.reader)
        self.batch: Batch | None = None
        self.told: Batch | None = None
        """A batch that told what the source has decided: to be heeded by the next epoch."""
        self._decided: list[dict[str, list[int]]] = []
        self.taken = 0
        self.records: int = place.get("records", 0) if place else 0
        """Taken since the beginning of the store."""
        self.opened = self.records - place["skip"] if place else 0
        """How many of these were given before the reader was opened."""
        self.until: int | None = None
        """Where it ends for whoever takes the same again."""
        self.ended = False
        self._by_index: dict[int, Any] = {}
        if place:
            self._skip(place["skip"])

    def _skip(self, records: int) -> None:
        """Pass over what was taken of a batch before a restart."""
        while records:
            batch = self.reader.read(records)
            if batch is None or (not batch.count and self.following and batch.offset == self.before):
                raise InputError(
                    f"{self.name} ends {records} records before the place where the last run stopped; restore it, or "
                    f"start over with --fresh"
                )
            records -= batch.count
            self.before = batch.offset
            self._decide(batch, self.records - records)

    def read(self, limit: int) -> Batch | None:
        """The next batch; None at the end."""
        batch = self.reader.read(limit)
        if batch is None:
            self.ended = True
        elif batch.decided:
            self.told = batch
        return batch

    def heed(self) -> list[dict[str, list[int]]]:
        """Let what the source has told be part of its place; what that was."""
        if self.told is not None:
            self.before = self.told.offset
            self._decide(self.told, self.records)
            self.told = None
        found, self._decided = self._decided, []
        return found

    def _decide(self, batch: Batch, given: int) -> None:
        """Note what was told when so many had been given, by the numbers that records have since the beginning."""
        if batch.decided:
            self._decided.append(
                {name: [given + n for n in numbers] for name, numbers in batch.decided.items()}
            )

    def place(self) -> dict[str, Any] | None:
        """Where this source stands, for the commit."""
        if self.before is None and not self.taken:
            return None
        return {"offset": self.before, "skip": self.taken, "records": self.records}

    # A merge looks at single records of the batch in hand.

    def refill(self, limit: int) -> bool:
        """Have a record in hand; gives False when a followed source has none now, or at the end."""
        if self.until is not None and self.records >= self.until:
            return False
        while self.batch is None and not self.ended and self.told is None:
            batch = self.read(limit)
            if batch is not None and batch.count:
                self.batch, self.taken = batch, 0
                self._by_index = dict(zip(batch.origin, batch.events, strict=True))
                continue
            if batch is not None and self.told is None:
                self.before = batch.offset
            if self.following:
                break  # a finite source only pauses: to go on without it would merge by arrival
        return self.batch is not None

    def head(self) -> Any:
        assert self.batch is not None
        return self._by_index[self.taken] if self.taken in self._by_index else self.batch.refused[self.taken]

    def advance(self) -> None:
        assert self.batch is not None
        self.taken += 1
        self.records += 1
        if self.taken == self.batch.count:
            self.before, self.batch, self.taken = self.batch.offset, None, 0


class Intake:
    """The sources of an app, as one sequence of epochs."""

    def __init__(
        self,
        sources: Sequence[Any],
        places: list[Any],
        *,
        follow: bool,
        accept: bool = False,
        max_ahead_s: float | None = None,
    ) -> None:
        self._feeds: list[_Feed] = []
        self._decided: list[dict[str, Any]] = []
        """What sources have decided, and no epoch has yet."""
        self._alone = len(sources) == 1
        try:
            for i, source in enumerate(sources):
                place = places[i] if i < len(places) else None
                self._feeds.append(_Feed(source, place, follow, accept, self._prepare))
        except BaseException:
            self.close()
            raise
        declared = [event_types(s.type) for s in sources]
        self._kinds: set[type] | None = {t for ts in declared for t in ts} if all(declared) else None
        self._readers: dict[type, Any] = {}
        self._latest = -math.inf
        self._max_ahead_s = max_ahead_s
        self._came_at, self._horizon = 0.0, LATEST_TIME_S
        """What the clock said when the records at hand came, and the latest time that they may have."""
        self._heads: list[float] = [float("-inf")] * len(self._feeds)
        self._places_before: list[Any] = []
        self._picked: list[int] = []

    def _prepare(self, reader: Reader) -> None:
        """A source was opened."""

    def _note(self, number: int, decided: dict[str, list[int]]) -> None:
        self._decided.append({"source": number, **decided})

    @property
    def following(self) -> bool:
        return any(f.following for f in self._feeds)

    @property
    def told(self) -> bool:
        """Whether a source has decided something, so that the next epoch will have records."""
        return any(f.told is not None for f in self._feeds)

    def take(self, number: int, first: int, now: float, limit: int) -> Epoch | None:
        """Up to `limit` records as an epoch: one of no records when none is there now, None at the end."""
        taken: list[tuple[int, int]] = []
        for i, feed in enumerate(self._feeds):
            for decided in feed.heed():
                self._note(i, decided)
        self._places_before = [f.place() for f in self._feeds]
        if self._max_ahead_s is not None:
            self._came_at = time.time()
            self._horizon = min(self._came_at + self._max_ahead_s, LATEST_TIME_S)
        if len(self._feeds) == 1:
            feed = self._feeds[0]
            batch = feed.read(limit)
            if batch is None:
                return None
            if feed.told is None:
                feed.before = batch.offset
            feed.records += batch.count
        elif self.following:
            batch = self._by_arrival(limit, taken, number)
        else:
            batch = self._merged(limit)
        if batch is None:
            return None
        return self._epoch(batch, number, first, now, taken)

    def _epoch(
        self, batch: Batch, number: int, first: int, now: float, taken: list[tuple[int, int]]
    ) -> Epoch:
        events, origin = batch.events, batch.origin
        refused: dict[int, Refused | DeadLetter | Late] = dict(batch.refused)
        times, intake_time = self._times(events)
        ahead: list[int] = []
        if self._latest > self._horizon:
            events, origin, times = self._refuse_times(events, origin, times, refused, ahead, first)
            self._latest = max(times, default=-math.inf)
        decided: list[dict[str, Any]] = []
        if batch.count:
            decided, self._decided = self._decided, decided
        return Epoch(
            number=number,
            first=first,
            count=batch.count,
            events=events,
            origin=origin,
            times=times,
            refused=refused,
            now=now,
            now_after=max(now, self._latest) + 0.0,
            offsets=[f.place() for f in self._feeds],
            kinds=self._kinds if self._kinds is not None else set(map(type, events)),
            ahead=ahead,
            ahead_of=self._came_at,
            intake_time=intake_time,
            taken=taken,
            decided=decided,
        )

    def _times(self, events: list[Any]) -> tuple[list[float], float | None]:
        """The time of each event, and the time of intake where some have none."""
        kinds = self._kinds if self._kinds is not None and len(self._kinds) == 1 else set(map(type, events))
        if len(kinds) == 1:
            (kind,) = kinds
            found: list[Any] = times_reader(kind)(events)
        else:
            found = [self._reader(e.__class__)(e) for e in events]
        # Whatever is not a float shows in the sum; NaN and infinity do so too.
        try:
            self._latest = max(found, default=-math.inf) if math.isfinite(sum(found)) else math.inf
        except TypeError:
            at = self._clock()
            found = [at if t is None else t for t in found]
            self._latest = max(found) if math.isfinite(sum(found)) else math.inf
            return found, at
        return found, None

    def _clock(self) -> float:
        """The time of intake."""
        return time.time()

    def _reader(self, kind: type) -> Any:
        if kind not in self._readers:
            self._readers[kind] = time_reader(kind)
        return self._readers[kind]

    def _refuse_times(
        self,
        events: list[Any],
        origin: Sequence[int],
        times: list[float],
        refused: dict[int, Refused | DeadLetter | Late],
        ahead: list[int],
        first: int,
    ) -> tuple[list[Any], list[int], list[float]]:
        kept: list[int] = []
        for i, at in enumerate(times):
            reason = refuse_time(at)
            if reason is None and at <= self._horizon:
                kept.append(i)
                continue
            if reason is None:
                reason = too_far_ahead(at, self._came_at, self._max_ahead_s or 0.0)
                ahead.append(origin[i])
            if first + origin[i] == 0 and LATEST_TIME_S < at < math.inf:
                # The very first event: the whole stream is in another unit, not one event of it.
                raise InputError(f"{self._feeds[0].name}: {reason}")
            refused[origin[i]] = DeadLetter(-1, INTAKE, reason, "", events[i])
        return [events[i] for i in kept], [origin[i] for i in kept], [times[i] for i in kept]

    def places_at(self, index: int) -> list[Any]:
        """Where the sources stood before record `index` of the epoch last taken."""
        counts = [index] if len(self._feeds) == 1 else [0] * len(self._feeds)
        for i in self._picked[:index] if len(self._feeds) > 1 else ():
            counts[i] += 1
        return [
            place
            if not n
            else {
                "offset": place["offset"] if place else None,
                "skip": n + (place["skip"] if place else 0),
                "records": n + (place.get("records", 0) if place else 0),
            }
            for place, n in zip(self._places_before, counts, strict=True)
        ]

    def _merged(self, limit: int) -> Batch | None:
        """Records of finite sources by (time, order of the sources, offset)."""
        picked: list[Any] = []
        self._picked = []
        while len(picked) < limit:
            best, best_time = -1, 0.0
            for i, feed in enumerate(self._feeds):
                if feed.refill(limit):
                    at = self._head_time(i, feed.head())
                    if best < 0 or at < best_time:
                        best, best_time = i, at
            if best < 0 or self.told:
                break
            picked.append(self._feeds[best].head())
            self._picked.append(best)
            self._heads[best] = best_time
            self._feeds[best].advance()
        if not picked and all(f.ended for f in self._feeds):
            return None
        return _batch_of(picked)

    def _head_time(self, index: int, record: Any) -> float:
        """A record without a usable time keeps its place behind the one before it."""
        if isinstance(record, (Refused, Late)):
            return self._heads[index]
        at = self._reader(record.__class__)(record)
        if at is None or at > self._horizon or refuse_time(at) is not None:
            return self._heads[index]
        return at

    def _by_arrival(self, limit: int, taken: list[tuple[int, int]], number: int) -> Batch | None:
        """Whatever each source has now; what was taken is recorded.

        Each has its share, and the first turn goes round, so that a flooding source keeps out no other.
        """
        picked: list[Any] = []
        self._picked = []
        feeds = len(self._feeds)
        share = -(-limit // feeds)
        for turn in range(feeds):
            i = (number + turn) % feeds
            feed = self._feeds[i]
            before = len(picked)
            while len(picked) < min(limit, before + share) and feed.refill(limit):
                picked.append(feed.head())
                feed.advance()
            if len(picked) > before:
                taken.append((i, len(picked) - before))
                self._picked += [i] * (len(picked) - before)
        if not picked and all(f.ended for f in self._feeds):
            return None
        return _batch_of(picked)

    def decode(self, source: str, raw: bytes) -> Any:
        """One record of a source, from its bytes; raises where they are no event."""
        for feed in self._feeds:
            if feed.name == source:
                decode = getattr(feed.reader, "decode", None)
                if decode is not None:
                    return decode(raw)
                found: Any = msgspec.json.decode(raw)
                return owned(msgspec.convert(found, feed.type) if event_types(feed.type) else untyped(found))
        raise InputError(f"the app no longer has the source {source}")

    def verify(self) -> None:
        """Look again at what was read, before it is committed."""
        for feed in self._feeds:
            feed.reader.verify()

    def progress(self) -> tuple[int, int] | None:
        """How much of all inputs is read, as (done, total); None when nobody knows."""
        if self.following:
            return None
        parts = [f.reader.progress() for f in self._feeds]
        if any(p is None for p in parts):
            return None
        return sum(p[0] for p in parts if p), sum(p[1] for p in parts if p)

    def close(self) -> None:
        """Let go of all sources."""
        for feed in self._feeds:
            feed.reader.close()


def too_far_ahead(at: float, clock: float, max_ahead_s: float) -> str:
    """Why an event is set aside that is too far ahead of the clock."""
    return (
        f"`time` is {at!r}, {at - clock:.0f} s ahead of the clock, which was at {clock:.0f}: more than "
        f"max_ahead_s={max_ahead_s:g}"
    )


def _batch_of(records: list[Any]) -> Batch:
    refused: dict[int, Any] = {i: r for i, r in enumerate(records) if isinstance(r, (Refused, Late))}
    origin = [i for i in range(len(records)) if i not in refused]
    return Batch([records[i] for i in origin], {}, count=len(records), origin=origin, refused=refused)
