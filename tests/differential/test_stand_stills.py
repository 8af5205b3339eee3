"""When a source in order lets go of what it holds depends on a clock once: whoever reads the log again does the same."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_runs
import pytest
from engine_runs import Killed, Pace, difference, killing_at, meant, stored
from test_rehearsed import log_of
from test_replayed import behind, replayed

from secondpass import App, Event, Task, value
from secondpass.connectors import Ordered
from secondpass.connectors.contract import Batch
from secondpass.engine.explain import Explainer
from secondpass.engine.outbox import decode_events
from secondpass.engine.rehearse import rehearse
from secondpass.engine.replay import Base
from secondpass.engine.snapshots import DIRECTORY, files
from secondpass.errors import TaskStopped
from secondpass.record import Late, Refused
from secondpass.store.reader import StoreReader

CASES = int(os.environ.get("SECONDPASS_DIFFERENTIAL_CASES") or 60)
PARTS = 5
SOURCE = 1000
"""So far apart are the numbers of two sources' events."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with engine_runs.memory_folder() as folder:
        yield folder


class Seen(Event):
    n: int
    time: float


class Came(Event):
    n: int
    after: int
    now: float


class After(Task[Seen]):
    """Says what came before each event."""

    last = value(int, -1)

    def handle(self, event: Seen) -> Came:
        found = Came(n=event.n, after=self.last, now=self.now)
        self.last = event.n
        return found


stops: set[int] = set()
"""Events that stop the app, once each."""


class Stop(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        if event.n in stops:
            stops.discard(event.n)
            raise ValueError("stop")
        return event


class Clocks:
    """What the clocks say."""

    def __init__(self) -> None:
        self.idle = self.wall = 0.0


class Growing:
    """An inner source that grows, and stands still at random; nothing of that once it is read again (`live` is over)."""

    type: Any = Seen

    def __init__(self, name: str, records: Sequence[Any], rng: random.Random, clocks: Clocks) -> None:
        self.name, self.records, self.rng, self.clocks = name, records, rng, clocks
        self.following = self.live = True
        self.shown = self.read = 0
        """How many records there are, and how many were read: at these it does not stand still once more."""
        self.lateness_s = 1.0

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Any:
        return _GrowingReader(self, 0 if offset is None else offset["count"])


class _GrowingReader:
    def __init__(self, source: Growing, at: int) -> None:
        self._source, self._at = source, at

    def read(self, limit: int) -> Batch | None:
        source, rng = self._source, self._source.rng
        upto = min(source.shown, self._at + limit)
        if source.live:
            source.clocks.wall += rng.choice([0.0, 1.0, 5.0])
            upto = min(upto, self._at + rng.randint(1, 7))
        waits = upto <= self._at or (self._at >= source.read and rng.random() < 0.3)
        if source.live and source.following and waits:
            source.clocks.idle += rng.choice([0.1, 0.6, 1.1]) * source.lateness_s
            return Batch([], {"count": self._at})
        if upto <= self._at:
            return Batch([], {"count": self._at}) if source.following else None
        taken = source.records[self._at : upto]
        self._at, source.read = upto, max(upto, source.read)
        refused = {i: r for i, r in enumerate(taken) if isinstance(r, Refused)}
        origin = [i for i in range(len(taken)) if i not in refused]
        return Batch(
            [taken[i] for i in origin], {"count": self._at}, count=len(taken), origin=origin, refused=refused
        )

    def verify(self) -> None: ...
    def progress(self) -> None: ...
    def close(self) -> None: ...


def stream(rng: random.Random, name: str, first: int) -> list[Any]:
    now, found = 0.0, []
    for n in range(first, first + rng.randint(5, 60)):
        now += rng.choice([0.0, 0.5, 1.0, 4.0])
        if rng.random() < 0.05:
            found.append(Refused("malformed", b"%d" % n, n, name))
        else:
            ahead = 300.0 if rng.random() < 0.05 else 0.0
            found.append(Seen(n=n, time=round(now + ahead - rng.choice([0, 0, 0, 1, 2, 3, 7, 20]), 3)))
    return found


def plainly(records: Sequence[Any], lateness_s: float, gone: set[int], ahead: set[int]) -> list[Any]:
    """What comes out: before the records `gone` all goes that is held, and the records `ahead` are never held."""
    out: list[Any] = []
    held: list[Any] = []
    latest = frontier = float("-inf")
    for number, record in enumerate([*records, None]):
        if number in gone:
            out += sorted(held, key=lambda r: r.time)
            held, frontier = [], latest
        if record is None:
            break
        if isinstance(record, Refused) or number in ahead:
            out.append(record)
        elif record.time < frontier:
            out.append(Late(record))
        else:
            held.append(record)
            latest = max(latest, record.time)
            frontier = max(frontier, latest - lateness_s)
            out += sorted((r for r in held if r.time <= frontier), key=lambda r: r.time)
            held = [r for r in held if r.time > frontier]
    return out


class Case:
    """An app with sources of which some are in order, and what happens to it."""

    def __init__(self, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rng = rng = random.Random(seed)
        self.clocks = Clocks()
        clock = SimpleNamespace(time=lambda: self.clocks.wall, monotonic=lambda: self.clocks.idle)
        monkeypatch.setattr("secondpass.connectors.ordered.time", clock)
        self.inner = [
            Growing(f"source {i}", stream(rng, f"source {i}", i * SOURCE), rng, self.clocks)
            for i in range(rng.choice([1, 1, 2, 3]))
        ]
        following = rng.choice([None, True, True, False])
        self.sources: list[Any] = []
        for i, inner in enumerate(self.inner):
            inner.following = i == 0 or rng.random() < 0.5 if following is None else following
            inner.lateness_s = rng.choice([0.0, 2.0, 6.0, 50.0])
            max_ahead_s = rng.choice([None, 100.0])
            ordered = i == 0 or rng.random() < 0.7
            self.sources.append(
                Ordered(inner, lateness_s=inner.lateness_s, max_ahead_s=max_ahead_s) if ordered else inner
            )

    def app(self) -> App:
        return App("case", sources=self.sources, tasks=[Stop().options(on_error="stop"), After()])

    def run(self, directory: Path) -> None:
        """Run until all was given, through stops, kills and stops inside an epoch; the input grows between them."""
        rng, goal = self.rng, sum(len(inner.records) for inner in self.inner)
        events = [r.n for inner in self.inner for r in inner.records if isinstance(r, Seen)]
        stops.clear()
        stops.update(rng.sample(events, min(len(events), rng.choice([0, 0, 2]))))
        pace = Pace(rng, rng.choice([[1], [2, 3], [1, 5, 100], [1000]]), 0.2)
        for turn in range(1000):
            for inner in self.inner:
                inner.shown = (
                    len(inner.records) if turn > 20 else rng.randint(inner.shown, len(inner.records))
                )
            shown = sum(inner.shown for inner in self.inner)

            def watch(hub: Any) -> None:
                hub.pacer, hub.sleep = pace, lambda _seconds: None

            def look(hub: Any) -> None:
                hub.stopping = hub.store.progress.position == shown or rng.random() < 0.02  # noqa: B023 - it is called within this turn

            kill_at = rng.choice([None, None, rng.randint(1, 200)]) if turn < 20 else None
            with killing_at(kill_at):
                try:
                    self.app().run(store=directory, on_start=watch, on_epoch=look, workers=0)
                except (Killed, TaskStopped):
                    continue
            if position_of(directory) == goal:
                break
        else:
            raise AssertionError("not all was given")
        for inner in self.inner:
            inner.live = False
        self.clocks.wall, self.clocks.idle = 1e9, 0.0

    def told(self, store: StoreReader, kind: str) -> list[set[int]]:
        """By source: the numbers of its records of which something was recorded."""
        found: list[set[int]] = [set() for _ in self.inner]
        for _, _, details in store.history_of("ordered"):
            found[details["source"]] |= set(details.get(kind, ()))
        return found


def wrong(case: Case, directory: Path) -> str | None:
    """The first difference between what a store holds, what is meant, and what comes when it is read again, in words."""
    rng = case.rng
    with engine_runs.snapshots_now_and_then(rng):
        case.run(directory)
    app = case.app()
    store = StoreReader.open_to_read(directory)
    log = log_of(app, store)
    gone, ahead = case.told(store, "let_go"), case.told(store, "ahead")
    for i, inner in enumerate(case.inner):
        want: Any = inner.records
        if case.sources[i] is not inner:
            want = plainly(inner.records, inner.lateness_s, gone[i], ahead[i])
        got = [r for r in log if number_of(r) // SOURCE == i]
        if got != want:
            return f"source {i}: {want} meant, {got} read again"
    want = stored(list(app.tasks), directory)
    want.streams["late"] = [event for row in store.outputs("late") for event in decode_events(row.body)]
    found = difference(meant(list(app.tasks), log), want, stops=False)
    if found is not None:
        return f"the plain loop: {found}"
    want.tallies, want.positions = {}, {}
    for at in [0, *sorted(files(directory / DIRECTORY))]:
        got, base = replayed(app, directory, at)
        found = difference(behind(want, base), got)
        if found is not None:
            return f"from {at}: {found}"
    explainer = Explainer(app, store, lambda _: Base())
    for position in rng.sample(range(len(log)), min(len(log), 5)):
        explainer.explain(position)
    done = rehearse(app, store, workers=0)
    store.close()
    return f"a rehearsal of the same differs: {done.first}" if done.differences else None


def position_of(directory: Path) -> int:
    store = StoreReader.open_to_read(directory)
    store.close()
    return store.progress.position


def number_of(record: Any) -> int:
    if isinstance(record, Refused):
        return int(record.raw)
    return (record.event if isinstance(record, Late) else record).n


@pytest.mark.timeout(0 if CASES > 20_000 else 600)
@pytest.mark.parametrize("part", range(PARTS))
def test_what_was_let_go_is_let_go_again_at_the_same_place(
    part: int, seed: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(part, CASES, PARTS):
        name = f"{seed} stand-stills {number}"
        found = wrong(Case(name, monkeypatch), directory / str(number))
        assert found is None, f"{found}\nthe case {name!r}"
