"""The recorded log of an app, read again: from the beginning or a snapshot on, in the order in which it was committed.

    the sources     give the same records again, by offset
    the history     says the rest: what was taken from which source, what that had decided (`Ordered`), intake times, retries,
                    commands, verdicts, starts

`Replay` gives both as one sequence. Nothing here writes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from secondpass.app import App
from secondpass.connectors.contract import Batch, Reader
from secondpass.engine.epoch import Epoch
from secondpass.engine.intake import Intake, _batch_of, too_far_ahead
from secondpass.engine.live import Described
from secondpass.engine.outbox import decode_event
from secondpass.engine.pushed import LogSource, places_of, sources_of
from secondpass.errors import InputError, NotRepeated, OutputError
from secondpass.event import LATEST_TIME_S
from secondpass.record import INTAKE, DeadLetter, Late, Refused, Retry, Tick, Verdict, refuse_time
from secondpass.store.reader import StoreReader

_ENTRIES_AT_ONCE = 1000
"""Of the history: while it is read, a writer beside us cannot copy its log into the database."""

Moves = list[tuple[tuple[str, str], tuple[str, str] | None]]
"""State by its old name and its new one; None where it was dropped."""


class Base:
    """Where a replay may begin: the beginning of the log, or what a snapshot holds."""

    def __init__(self, snapshot: StoreReader | None = None) -> None:
        self.snapshot = snapshot
        progress = None if snapshot is None else snapshot.progress
        self.position = 0 if progress is None else progress.position
        self.now = float("-inf") if progress is None else progress.now
        self.places: list[Any] = [] if progress is None else progress.sources
        self.entries = 0 if progress is None else progress.history
        """How many entries of the history lie before it."""
        self.numbers: dict[str, int] = {} if progress is None else dict(progress.numbers)
        self.letters = 0 if progress is None else progress.letters

    def close(self) -> None:
        """Let go of the snapshot."""
        if self.snapshot is not None:
            self.snapshot.close()


class Restarted(NamedTuple):
    """The app was started with another chain than it had."""

    position: int
    chain: list[Described]
    moves: Moves


class WasLoaded(NamedTuple):
    """A start has loaded a lookup for the first time."""

    lookup: str
    cells: bytes


class Commanded(NamedTuple):
    """A command that was done: a record of the log."""

    position: int
    details: dict[str, Any]


Item = Epoch | Restarted | WasLoaded | Commanded


# ---------------------------------------------------------------- the log


class Replay:
    """The records of an app from a base on, up to a position or to where its store stands."""

    def __init__(self, store: StoreReader, app: App, base: Base, upto: int | None = None) -> None:
        self._store = store
        self.position = base.position
        self.now = base.now
        self.end = store.progress.position if upto is None else min(upto, store.progress.position)
        self.verdicts: dict[tuple[int, str, tuple[int, ...]], Verdict] = {}
        self._entry = base.entries
        self._last_entry = store.progress.history
        self._entries: deque[tuple[int, str, Any]] = deque()
        self._untimed_until = 0
        self._first_chain: list[Described] | None = store.meta("chain") if base.snapshot is None else None
        """For a store that does not tell it."""
        self._taken: list[tuple[int, list[int]]] = [
            (number, details["records"])
            for number, _, details in store.history_of("start")
            if "records" in details
        ]
        self._taken.append((self._last_entry + 1, _records_of(store.progress.sources)))
        for number, _, details in store.history_of("verdict"):
            if number <= base.entries:  # it may be about an event behind the base
                self._judge(details)
        self._sources = _open(app, store, base)
        self._sources.advice = untold(store) or self._sources.advice
        self._sources.ahead_s = math.inf if app.max_ahead_s is None else app.max_ahead_s
        self._bound()

    def close(self) -> None:
        """Let go of the sources."""
        self._sources.close()

    def __iter__(self) -> Iterator[Item]:
        while (item := self.next(_ENTRIES_AT_ONCE)) is not None:
            yield item

    def next(self, limit: int) -> Item | None:
        """What comes next, of consecutive events up to `limit`; None at the end."""
        while self.position < self.end:
            entry = self._peek()
            if entry is None or entry[0] > self.position:
                upto = self.end if entry is None else min(entry[0], self.end)
                if self._untimed_until > self.position:
                    upto = min(upto, self._untimed_until)
                return self._read(min(limit, upto - self.position))
            self._entries.popleft()
            self._entry += 1
            item = self._noted(*entry)
            if item is not None:
                return item
        return None

    def _peek(self) -> tuple[int, str, Any] | None:
        if not self._entries and self._entry < self._last_entry:
            self._entries.extend(islice(self._store.history(self._entry), _ENTRIES_AT_ONCE))
        return self._entries[0] if self._entries and self._entry < self._last_entry else None

    def _noted(self, position: int, kind: str, details: Any) -> Item | None:
        """What an entry of the history means; None where it only tells how the next records are read."""
        if kind == "start":
            self._bound()
            chain = details.get("chain") or self._first_chain
            self._first_chain = None
            if chain is None:
                return None
            moves: Any = [(tuple(old), new and tuple(new)) for old, new in details.get("moves", ())]
            return Restarted(position, chain, moves)
        if kind == "loaded":
            return WasLoaded(details["lookup"], details["cells"])
        if kind == "command":
            self.position += 1
            return Commanded(position, {"kind": kind, "position": position, **details})
        if kind == "retry":
            self.position += 1
            return self._retried(position, details)
        if kind == "intake":
            self._untimed_until, self._sources.intake_time = position + details["count"], details["time"]
        elif kind == "taken":
            self._sources.plan = deque((int(i), int(n)) for i, n in details)
        elif kind == "ordered":
            self._sources.recall(position, details)
        elif kind == "verdict":
            self._judge(details)
        elif kind == "ahead":
            self._sources.look_ahead(details["positions"], details["clock"])
        elif kind == "tick":
            self.position += 1
            epoch = Epoch.of_tick(0, position, details["time"], self.now, [])
            self.now = epoch.now_after
            return epoch
        elif kind not in ("drop", "left out", "timetable"):
            raise NotRepeated(
                f"the history holds an entry of the kind {kind!r}, which this secondpass does not know"
            )
        return None

    def _judge(self, details: Any) -> None:
        fields: Any = {**details, "path": tuple(details["path"])}
        verdict = Verdict(**fields)
        self.verdicts[verdict.place] = verdict

    def _bound(self) -> None:
        """A finite source is read no further than it was read before the next start."""
        records = next(found for number, found in self._taken if number > self._entry)
        self._sources.bound(records)

    def _read(self, limit: int) -> Epoch:
        epoch = self._sources.again(self.position, self.now, limit)
        self.position += epoch.count
        self.now = epoch.now_after
        return epoch

    def _retried(self, position: int, details: Any) -> Epoch:
        found = self._store.letter(details["letter"])
        assert found is not None, "a dead letter is never deleted"
        letter = found[1]
        try:
            event = decode_event(details.get("event") or letter.event)
        except OutputError as error:
            raise NotRepeated(f"position {position}: {error}") from error
        return Epoch(
            number=0,
            first=position,
            count=1,
            events=[event],
            origin=range(1),
            times=[self.now],
            refused={},
            now=self.now,
            now_after=self.now,
            offsets=[],
            kinds={type(event)},
            retry=Retry(details["letter"], details.get("task", letter.task), event),
        )


def untold(store: StoreReader) -> str | None:
    """What may be the cause where the log cannot be read again; None where all is told that has to be."""
    if not any(place and "ordered" in (place["offset"] or {}) for place in store.progress.sources):
        return None
    starts = store.history_of("start")
    ends = [*(position for _, position, _ in starts[1:]), store.progress.position]
    upto = max(
        (end for (_, _, note), end in zip(starts, ends, strict=True) if not note.get("ordered")), default=0
    )
    if not upto:
        return None
    return (
        f"up to position {upto} the app ran with a secondpass that did not record when a source in order (`Ordered`) stood "
        f"still and let go of what it held; what ran then cannot be run again if it did"
    )


def _records_of(places: Iterable[Any]) -> list[int]:
    return [place.get("records", 0) if place else 0 for place in places]


def _open(app: App, store: StoreReader, base: Base) -> _Sources:
    """The sources of an app at the places of a base; raises `InputError` where they are not what was read."""
    assert store.directory is not None
    sources = sources_of(app, LogSource(store.directory, ended=lambda: True))
    if any(getattr(source, "path", None) == "-" for source in sources):
        raise InputError(
            "standard input can be read once only, so what came of it cannot be run again; write it to a file first"
        )
    stood = places_of(sources, base.places)
    places = [place or begun for place, begun in zip(stood, _beginnings(sources, store), strict=True)]
    try:
        return _Sources(sources, places, follow=False, accept=False)
    except InputError as error:
        if not any(places):
            raise
        # A file may have been moved, and one that was rotated since is found by who follows it. What left the log is gone.
        for follow in () if any(isinstance(source, LogSource) for source in sources) else (False, True):
            try:
                return _Sources(sources, places, follow=follow, accept=True)
            except InputError:
                continue
        if "gone" in error.details:
            first, last = error.details["gone"]
            raise InputError(
                f"from position {base.position} nothing can be run again: the log's records {first} to {last} are gone "
                f"(`keep_log`)"
            ) from error
        raise InputError(f"from position {base.position}: {error}") from error


def _beginnings(sources: list[Any], store: StoreReader) -> list[Any]:
    """Where each source began: a log, which may hold what is older, by what was taken of it."""
    places = places_of(sources, store.progress.sources)
    for i, (source, place) in enumerate(zip(sources, places, strict=True)):
        begun = None
        if isinstance(source, LogSource) and place is not None:
            begun = {
                "offset": {**place["offset"], "next": place["offset"]["next"] - place.get("records", 0)},
                "skip": 0,
            }
        places[i] = begun
    return places


class _Sources(Intake):
    """The sources of an app, taken from as they were taken from before."""

    def __init__(self, sources: list[Any], places: list[Any], *, follow: bool, accept: bool) -> None:
        super().__init__(sources, places, follow=follow, accept=accept)
        self._bounds: list[int] = []
        self.advice = "restore the input as it was"
        self.intake_time = 0.0
        self.ahead: set[int] = set()
        self.ahead_s = math.inf
        self.plan: deque[tuple[int, int]] = deque()
        """Of so many records from which source an epoch consisted that took them by arrival."""

    def _prepare(self, reader: Reader) -> None:
        """Let it decide nothing: it is told what was decided."""
        again = getattr(reader, "again", None)
        if again is not None:
            again(alone=self._alone)

    def recall(self, position: int, details: Mapping[str, Any]) -> None:
        """Let a source do what it had decided before this position."""
        number: int = details["source"]
        decided = {name: numbers for name, numbers in details.items() if name != "source"}
        feed = self._feeds[number] if number < len(self._feeds) else None
        recall = None if feed is None else getattr(feed.reader, "recall", None)
        if feed is None or recall is None:
            raise NotRepeated(
                f"position {position}: source {number} of the app was put in order (`Ordered`) then, and is not any more; "
                f"give the app the source it had"
            )
        recall(decided, feed.opened)

    def bound(self, records: list[int]) -> None:
        """A start: take no more of each source than so many records since the beginning."""
        self._bounds = records
        # As it was then: what a merge knows of the records before is not kept, and a source may have grown since.
        self._heads = [-math.inf] * len(self._feeds)

    def again(self, first: int, now: float, limit: int) -> Epoch:
        """Up to `limit` records as an epoch, at least one."""
        if len(self._feeds) == 1:
            batch, place = self._feeds[0].read(limit), None
            while batch is not None and not batch.count and batch.offset != place:
                batch, place = self._feeds[0].read(limit), batch.offset
        else:
            for i, feed in enumerate(self._feeds):
                feed.until = None if self.plan else self._bounds[i] if i < len(self._bounds) else 0
            batch = self._planned(limit) if self.plan else self._merged(limit)
        if batch is None or not batch.count:
            names = ", ".join(feed.name for feed in self._feeds)
            raise InputError(
                f"{names}: at position {first} there are no more records, and more were taken when the app ran; {self.advice}"
            )
        return self._epoch(batch, 0, first, now, [])

    def _planned(self, limit: int) -> Batch:
        picked: list[Any] = []
        while self.plan and len(picked) < limit:
            i, count = self.plan.popleft()
            feed = self._feeds[i]
            taken = 0
            while taken < count and feed.refill(min(count - taken, limit - len(picked))):
                picked.append(feed.head())
                feed.advance()
                taken += 1
                if len(picked) == limit:
                    break
            if taken < count:
                self.plan.appendleft((i, count - taken))
                break
        return _batch_of(picked)

    def _clock(self) -> float:
        return self.intake_time

    def _refuse_times(
        self,
        events: list[Any],
        origin: Sequence[int],
        times: list[float],
        refused: dict[int, Refused | DeadLetter | Late],
        ahead: list[int],  # noqa: ARG002 - it is recorded already
        first: int,
    ) -> tuple[list[Any], list[int], list[float]]:
        """What was too far ahead of the clock then is so again."""
        kept: list[int] = []
        for i, at in enumerate(times):
            reason = refuse_time(at)
            if reason is None and first + origin[i] in self.ahead:
                reason = too_far_ahead(at, self._came_at, self.ahead_s)
            if reason is None:
                kept.append(i)
            else:
                refused[origin[i]] = DeadLetter(-1, INTAKE, reason, "", events[i])
        return [events[i] for i in kept], [origin[i] for i in kept], [times[i] for i in kept]

    def look_ahead(self, positions: Iterable[int], clock: float) -> None:
        """These positions are too far ahead of the clock, as it stood then."""
        self.ahead, self._came_at = set(positions), clock
        self._horizon = min(clock + self.ahead_s, LATEST_TIME_S)


def records_of(epoch: Epoch) -> Iterator[tuple[int, Any, float]]:
    """The records of an epoch, each with its position and the stream's time at it."""
    found: dict[int, Any] = dict(zip(epoch.origin, epoch.events, strict=True))
    nows = epoch.nows() if epoch.events or epoch.tick is not None else [epoch.now] * epoch.count
    for index in range(epoch.count):
        record = found.get(index, epoch.refused.get(index))
        if epoch.retry is not None:
            record = epoch.retry
        elif epoch.tick is not None:
            record = Tick(epoch.tick)
        yield epoch.first + index, record, nows[index]


__all__ = ["Base", "Commanded", "Item", "Replay", "Restarted", "WasLoaded", "records_of", "untold"]
