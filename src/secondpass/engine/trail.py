"""Who wrote what: steps whose tables tell what a call reads and changes, and which record changed a cell last.

A cell is changed when it rests otherwise after a call than before, in its value or in when it was written; to assign
what it holds already is no change. In a table with a time to live each assignment at another time is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from secondpass.binding import attach, attach_state
from secondpass.change import Link
from secondpass.due import Pending
from secondpass.engine.replay import Commanded, Restarted
from secondpass.engine.walk import Onlooker
from secondpass.state import MISSING, CallValues, Moment, Table, TableSpec
from secondpass.step import Step
from secondpass.task import Task

READS_TOLD = 200
"""Of one call; a task that goes through a whole table reads them all."""


class Place(NamedTuple):
    """A cell: its task, its table or value, its key (None for a value)."""

    task: str
    name: str
    key: Any


class Changed(NamedTuple):
    """The record that changed a cell last."""

    position: int
    record: Any


@dataclass
class Touched:
    """A cell at rest as a call found it, or found and left it; MISSING where there is none."""

    place: Place
    before: Any
    after: Any = MISSING
    expired: bool = False
    by: Changed | None = None
    """Who changed it last before the call, as far as that is known."""


@dataclass
class Looked:
    """A row of a lookup, as a call found it; MISSING where there is none."""

    name: str
    key: Any
    found: Any
    since: int | None
    """The position of the reload that brought it there or left it; None where that lies before all that was run again."""


@dataclass
class Called:
    """One call, or why there was none."""

    task: Task[Any] | None = None
    event: Any = None
    path: tuple[int, ...] = ()
    passed_by: str = ""
    results: list[Any] = field(default_factory=list[Any])
    branched: bool = False
    error: BaseException | None = None
    reads: list[Touched] = field(default_factory=list[Touched])
    more_reads: int = 0
    looks: list[Looked] = field(default_factory=list[Looked])
    iterated: list[str] = field(default_factory=list[str])
    """Tables and lookups that it went through."""
    writes: list[Touched] = field(default_factory=list[Touched])
    emitted: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    logged: list[str] = field(default_factory=list[str])


@dataclass
class Trail:
    """What became of one record."""

    position: int
    record: Any
    now: float
    calls: list[Called] = field(default_factory=list[Called])
    chain: list[str] = field(default_factory=list[str])
    """After a command: the chain from there on."""


class Watch(Onlooker):
    """Notes who changed each cell last, and at some positions everything."""

    def __init__(self, wanted: set[int]) -> None:
        self._wanted = wanted
        self.trails: dict[int, Trail] = {}
        self.changed: dict[Place, Changed] = {}
        self._reloads: dict[str, int] = {}
        self._record: Changed = Changed(-1, None)
        self._trail: Trail | None = None
        self._call: Called | None = None

    def make(self, link: Link) -> Step:
        """A step that tells this."""
        return _WatchedStep(link, self)

    # ---- of a record

    def begin(self, position: int, record: Any, now: float) -> None:
        self._record = Changed(position, record)
        if isinstance(record, Commanded) and record.details["asked"] == "reload":
            self._reloads[record.details["task"]] = position
        if position in self._wanted:
            self._trail = self.trails[position] = Trail(position, record, now)
            self._call = Called()

    def end(self, position: int) -> None:  # noqa: ARG002 - the onlooker's signature
        self._trail = self._call = None

    # ---- of a call

    def called(
        self,
        step: Step,
        event: Any,
        path: tuple[int, ...],
        results: list[Any],
        error: BaseException | None,
        *,
        branched: bool,
    ) -> None:
        call, trail = self._call, self._trail
        if call is None or trail is None:
            return
        call.task, call.event, call.path = step.task, event, path
        call.results, call.branched, call.error = results, branched, error
        moment = step.moment
        if error is None:
            call.emitted, call.counts = list(moment.emitted), dict(moment.counts)
            call.logged = [f"{r.levelname}: {r.getMessage()}" for r in moment.logged]
        trail.calls.append(call)
        self._call = Called()

    def passed_by(self, step: Step, event: Any, path: tuple[int, ...], why: str) -> None:
        if self._trail is not None:
            self._trail.calls.append(Called(step.task, event, path, passed_by=why))

    def read(self, place: Place, entry: Any, *, expired: bool) -> None:
        """A call looks at a cell, for the first time."""
        call = self._call
        if call is None:
            return
        if len(call.reads) >= READS_TOLD:
            call.more_reads += 1
        elif all(touched.place != place for touched in call.reads):
            call.reads.append(Touched(place, entry, expired=expired, by=self.changed.get(place)))

    def looked(self, name: str, key: Any, found: Any) -> None:
        """A call looks into a lookup."""
        call = self._call
        if call is None:
            return
        if len(call.reads) + len(call.looks) >= READS_TOLD:
            call.more_reads += 1
        elif all((look.name, look.key) != (name, key) for look in call.looks):
            call.looks.append(Looked(name, key, found, self._reloads.get(name)))

    def scheduled(self, step: Step, name: str, time: float) -> None:  # noqa: ARG002 - as above
        self.changed[Place(step.task.name, name, None)] = self._record

    def fires(self, step: Step, due: Pending, following: Any) -> None:
        place = Place(step.task.name, due.name, due.key)
        self.read(place, due.time, expired=False)
        self.wrote(place, due.time, following)

    def iterated(self, name: str) -> None:
        """A call goes through a table."""
        if self._call is not None and name not in self._call.iterated:
            self._call.iterated.append(name)

    def wrote(self, place: Place, before: Any, after: Any) -> None:
        """A call has changed a cell."""
        if self._call is not None:
            self._call.writes.append(Touched(place, before, after, by=self.changed.get(place)))
        self.changed[place] = self._record

    @property
    def watching(self) -> bool:
        """Whether reads are to be told."""
        return self._call is not None

    # ---- of the chain

    def commanded(self, before: list[Link], after: list[Link]) -> None:
        self._compare(before, after)
        if self._trail is not None:
            self._trail.chain = [f"{link.name} (stopped)" if link.stopped else link.name for link in after]

    def restarted(self, item: Restarted, before: list[Link], after: list[Link]) -> None:  # noqa: ARG002 - as above
        moved = {old: new for old, new in item.moves if new is not None}
        for place in [p for p in self.changed if p[:2] in moved]:
            self.changed[Place(*moved[place[0], place[1]], place.key)] = self.changed.pop(place)

    def _compare(self, before: list[Link], after: list[Link]) -> None:
        """What a command did to the cells of the tasks that it changed."""
        old = {link.name: link for link in before}
        for link in after:
            was = old.get(link.name)
            if was is None or was is link:
                continue
            for name, cells in link.cells.items():
                others = was.cells.get(name, {})
                if cells is not others:
                    for key in [k for k in {*cells, *others} if cells.get(k) != others.get(k)]:
                        self.wrote(
                            Place(link.name, name, key), others.get(key, MISSING), cells.get(key, MISSING)
                        )
            for name in {*link.values, *was.values}:
                a, b = was.values.get(name, MISSING), link.values.get(name, MISSING)
                if a != b:
                    self.wrote(Place(link.name, name, None), a, b)


class _WatchedStep(Step):
    """A step whose tables and values tell what is read and changed."""

    def __init__(self, link: Link, watch: Watch) -> None:
        super().__init__(link.task, link.cells, link.values)
        shape = type(link.task)._shape
        self.tables = {
            name: _WatchedTable(spec, link.cells[name], self.moment, spec.ttl_of(link.task), link.name, watch)
            for name, spec in shape.tables.items()
        }
        self.values = _WatchedValues(shape.values, link.values, link.name, watch)
        attach(self.task, _values=self.values)
        watched = {name: _WatchedLookup(name, held, watch) for name, held in link.task._lookups.items()}
        attach(self.task, **watched)
        attach_state(self.task, self.tables, self.moment, self.timing)
        self._parts = [*self.tables.values(), self.values]


class _WatchedTable(Table[Any, Any]):
    def __init__(
        self, spec: TableSpec, cells: Any, moment: Moment, ttl_s: float | None, task: str, watch: Watch
    ) -> None:
        super().__init__(spec, cells, moment, ttl_s)
        self._task = task
        self._watch = watch

    def _find(self, key: Any) -> list[Any] | None:
        if not self._watch.watching or key in self._touched:
            return super()._find(key)
        own = self._spec.own_key(key, self._cells)
        entry = self._cells.get(own, MISSING)
        cell = super()._find(key)
        self._watch.read(
            Place(self._task, self._spec.name, own), entry, expired=entry is not MISSING and cell is None
        )
        return cell

    def __iter__(self) -> Iterator[Any]:
        self._watch.iterated(self._spec.name)
        return super().__iter__()

    def keep(self) -> None:
        if not self._touched:
            return
        cells = self._cells
        before = {key: cells.get(key, MISSING) for key in self._touched}
        super().keep()
        for key, old in before.items():
            new = cells.get(key, MISSING)
            if new is not old and new != old:
                self._watch.wrote(Place(self._task, self._spec.name, key), old, new)


class _WatchedLookup(Mapping[Any, Any]):
    def __init__(self, name: str, held: Mapping[Any, Any], watch: Watch) -> None:
        self._name = name
        self._held = held
        self._watch = watch

    def __getitem__(self, key: Any) -> Any:
        found = self._held.get(key, MISSING)
        self._watch.looked(self._name, key, found)
        if found is MISSING:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[Any]:
        self._watch.iterated(self._name)
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __repr__(self) -> str:
        return repr(self._held)


class _WatchedValues(CallValues):
    def __init__(self, specs: Any, rests: dict[str, bytes], task: str, watch: Watch) -> None:
        super().__init__(specs, rests)
        self._task = task
        self._watch = watch

    def __missing__(self, name: str) -> Any:
        rest = self.rests.get(name, MISSING)
        self._watch.read(Place(self._task, name, None), rest, expired=False)
        return super().__missing__(name)

    def keep(self) -> None:
        before = {name: self.rests.get(name, MISSING) for name in self._kept}
        super().keep()
        for name, old in before.items():
            new = self.rests.get(name, MISSING)
            if new != old:
                self._watch.wrote(Place(self._task, name, None), old, new)
