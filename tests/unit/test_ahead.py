"""Events too far ahead of the clock: set aside when they come, decided once, and moving no time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_runs
import pytest
from engine_runs import Scripted, difference, in_store, meant, steady, stored

from secondpass import App, Event, Task, timer
from secondpass.engine import intake as intake_module
from secondpass.errors import DefinitionError
from secondpass.record import Ahead
from secondpass.store.reader import StoreReader


class Seen(Event):
    n: int
    time: float


class Watch(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        self.silent.at(event.time + 60.0)
        return event.replace(time=self.now)

    @timer
    def silent(self) -> Seen:
        return Seen(n=-1, time=self.now)


LOG = [Seen(n=n, time=t) for n, t in enumerate([900.0, 1600.0, 1600.1, 950.0, 9999.0, 1001.0, 1601.0])]
CHAIN = [Watch()]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the clock says at every intake."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(intake_module, "time", SimpleNamespace(time=lambda: found.now))
    monkeypatch.setattr(engine_runs, "fixed_clock", engine_runs.contextlib.nullcontext)
    return found


def app(log: list[Any] = LOG, sources: int = 1) -> App:
    parts = [Scripted(log[i::sources], f"source {i}") for i in range(sources)]
    return App("ahead", sources=parts, tasks=CHAIN, max_ahead_s=600.0)


def letters(store: Path) -> list[Any]:
    return [(x.position, x.task, x.event.n, x.error) for x in stored(CHAIN, store).letters]


def obeyed(log: list[Any], store: Path) -> list[Any]:
    """The log with what was decided about its events, as history has it."""
    opened = StoreReader.open_to_read(store)
    told = {p for _, kind, d in opened.history() if kind == "ahead" for p in d["positions"]}
    reasons = {letter.position: letter.error for _, _, letter in opened.letters()}
    opened.close()
    return [Ahead(r, reasons[i]) if i in told else r for i, r in enumerate(log)]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_an_event_too_far_ahead_is_set_aside_and_moves_no_time(folder, size) -> None:
    in_store([], [], folder, steady(size), app=app())
    assert [(p, t, n) for p, t, n, _ in letters(folder)] == [(2, "", 2), (4, "", 4), (6, "", 6)]
    assert letters(folder)[0][3] == (
        "`time` is 1600.1, 600 s ahead of the clock, which was at 1000: more than max_ahead_s=600"
    )
    found = stored(CHAIN, folder)
    assert found.now == 1600.0
    log = obeyed(LOG, folder)
    assert [type(r) for r in log].count(Ahead) == 3
    assert difference(meant(CHAIN, log), found) is None


def test_it_is_decided_once_and_a_later_start_decides_the_same(folder, clock) -> None:
    for kill_at in [*range(4, 40, 3), None]:
        in_store([], [], folder, steady(2), app=app(), kill_at=kill_at)
        clock.now += 100.0
    # Whenever it was decided, it was by the clock of its own record, and it stays.
    before = letters(folder)
    clock.now = 1e6
    in_store([], [], folder, steady(2), app=app())
    assert letters(folder) == before
    assert difference(meant(CHAIN, obeyed(LOG, folder)), stored(CHAIN, folder)) is None


def test_an_event_far_ahead_does_not_hold_up_the_merge_of_its_source(folder) -> None:
    log = [Seen(n=0, time=9999.0), Seen(n=1, time=10.0), Seen(n=2, time=5.0), Seen(n=3, time=11.0)]
    in_store([], [], folder, steady(9), app=app(log, sources=2))
    assert [e.n for e in stored(CHAIN, folder).streams["main"] if e.n >= 0] == [2, 1, 3]


@pytest.mark.parametrize("given", [-1.0, float("nan"), float("inf"), "10s", True])
def test_what_is_no_number_of_seconds_is_refused(given) -> None:
    with pytest.raises(DefinitionError, match="max_ahead_s"):
        App("x", source=[], max_ahead_s=given)
