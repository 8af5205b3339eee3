"""Time that passes on an idle stream: a tick when a timer becomes due by it, and none otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_runs import Scripted, difference, meant, stored

from secondpass import App, Event, Task, timer
from secondpass.connectors.contract import Batch
from secondpass.engine.ticks import Ticks
from secondpass.record import Tick
from secondpass.store.reader import StoreReader


class Seen(Event):
    cid: int
    time: float


class Silent(Event):
    cid: int
    time: float


class Watch(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        self.silent.at(event.time + 60.0, event.cid)
        return event

    @timer
    def silent(self, cid: int) -> Silent:
        return Silent(cid=cid, time=self.now)


class Plain(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        return event


class Clock:
    """Counts seconds; each look at it takes some."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 1000.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


class Standing(Scripted):
    """A stream that gives its events in turns, and nothing in between; at the last turn the run is stopped."""

    following = True

    def __init__(self, turns: Sequence[tuple[int, Sequence[Any]]]) -> None:
        super().__init__([record for _, turn in turns for record in turn])
        self._turns = turns
        self.stop: Callable[[], None] = lambda: None

    def open(self, offset: Any, **_: Any) -> Any:
        return _StandingReader(self, 0 if offset is None else offset["count"])


class _StandingReader:
    def __init__(self, source: Standing, at: int) -> None:
        self._source, self._at, self._looks = source, at, 0

    def read(self, limit: int) -> Batch:
        self._looks += 1
        there = [r for looks, turn in self._source._turns if looks <= self._looks for r in turn]
        taken = there[self._at : self._at + limit]
        self._at += len(taken)
        if self._looks >= self._source._turns[-1][0] and not taken:
            self._source.stop()
        return Batch(list(taken), {"count": self._at})

    def verify(self) -> None: ...
    def progress(self) -> None: ...
    def close(self) -> None: ...


def run(
    store: Path,
    turns: Sequence[tuple[int, Sequence[Any]]],
    clock: Clock,
    tasks: Sequence[Any] = (),
    **more: Any,
) -> list[Any]:
    """Run an app over a stream that stands still at times; gives its log, with the ticks in their places."""
    source = Standing(turns)
    chain = tasks or [Watch()]

    def watch(hub: Any) -> None:
        hub.ticks = Ticks(clock)
        source.stop = lambda: setattr(hub, "stopping", True)

    App("ticks", source=source, tasks=chain, **more).run(store=store, on_start=watch, workers=0)
    opened = StoreReader.open_to_read(store)
    log = list(source.records)
    for _, kind, details in opened.history():
        if kind == "tick":
            log.insert(details["position"], Tick(details["time"]))
    log = log[: opened.progress.position]
    opened.close()
    assert difference(meant(App("x", source=[], tasks=chain).tasks, log), stored(chain, store)) is None
    return log


def ticks(log: list[Any]) -> list[float]:
    return [record.time for record in log if isinstance(record, Tick)]


def silent(store: Path) -> list[Any]:
    return [(e.cid, e.time) for e in stored([Watch()], store).streams["main"] if isinstance(e, Silent)]


def test_a_camera_silent_for_a_minute_is_reported_on_a_stream_that_stops(folder) -> None:
    log = run(folder / "s", [(1, [Seen(cid=1, time=100.0), Seen(cid=2, time=130.0)]), (50, [])], Clock(7.0))
    assert silent(folder / "s") == [(1, 160.0), (2, 190.0)]
    # Idle time is counted from when nothing was there; a tick comes when one is due by it, and not before.
    assert ticks(log) == [165.0, 193.0]


def test_a_stream_without_anything_pending_has_no_ticks(folder) -> None:
    assert ticks(run(folder / "a", [(1, [Seen(cid=1, time=0.0)]), (40, [])], Clock(100.0), [Plain()])) == []
    assert ticks(run(folder / "b", [(40, [])], Clock(100.0))) == []


def test_time_stands_where_the_app_says_so(folder) -> None:
    assert ticks(run(folder / "a", [(1, [Seen(cid=1, time=0.0)]), (40, [])], Clock(100.0), ticks=False)) == []


def test_a_finite_source_ends_without_ticks(folder) -> None:
    app = App("finite", source=[Seen(cid=1, time=0.0)], tasks=[Watch()])
    assert app.run(store=folder / "a").ticks == 0


def test_an_event_that_comes_with_an_earlier_time_leaves_time_where_it_is(folder) -> None:
    turns = [(1, [Seen(cid=1, time=0.0)]), (15, [Seen(cid=2, time=30.0)]), (60, [])]
    log = run(folder / "s", turns, Clock(7.0))
    assert silent(folder / "s") == [(1, 60.0), (2, 90.0)]
    first = ticks(log)[0]
    assert log.index(Tick(first)) < log.index(Seen(cid=2, time=30.0))
    assert ticks(log)[1] - first < 90.0 - first + 7.0  # time went on from the tick, not from the event


def test_after_a_restart_idle_time_counts_anew_from_the_time_that_was_committed(folder) -> None:
    turns = [(1, [Seen(cid=1, time=0.0), Seen(cid=2, time=50.0)]), (5, [])]
    assert ticks(run(folder / "s", turns, Clock(2.0))) == []
    assert ticks(run(folder / "s", turns, Clock(2.0))) == []
    assert ticks(run(folder / "s", [*turns, (30, [])], Clock(3.0))) == [62.0, 110.0]


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_wall_clock_that_jumps_moves_nothing(folder, monkeypatch, jump_s) -> None:
    turns = [(1, [Seen(cid=1, time=0.0)]), (30, [])]
    straight = run(folder / "a", turns, Clock(7.0))
    real, looks = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real() + (jump_s if next(looks) > 3 else 0.0))
    assert run(folder / "b", turns, Clock(7.0)) == straight
    assert silent(folder / "a") == silent(folder / "b") == [(1, 60.0)]
