"""Timetables: the last switch that the clock has passed counts, once, whatever the app and the clock do."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from live_app import Count, First, Seen
from test_commands import agrees

from secondpass import App, Timetable
from secondpass.control import Control
from secondpass.engine import timetables as timetables_module
from secondpass.errors import DefinitionError

BERLIN = ZoneInfo("Europe/Berlin")
PEAK = Timetable("peak", "Count", start="0 7 * * *", stop="0 9 * * *", tz="Europe/Berlin")


def at(*when: int) -> float:
    return datetime.datetime(*when, tzinfo=BERLIN).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize("day", [(2026, 3, 28), (2026, 10, 24)])
def test_the_last_switch_before_a_moment_is_the_last_of_those_that_come_after_one_another(
    day: tuple[int, ...],
) -> None:
    tables = [
        PEAK,
        Timetable("night", "Count", start="30 2 * * *", stop="*/40 3 * * SUN", tz="Europe/Berlin"),
    ]
    for table in tables:
        for step in range(0, 3 * 86_400, 1_200):
            now = at(*day) + step
            before, after = table.before(now), table.after(now)
            assert before.at <= now < after.at
            assert table.between(now - 8 * 86_400, now)[-1] == before


def test_what_clocks_skip_comes_at_the_change_and_what_they_double_comes_once() -> None:
    night = Timetable("night", "Count", start="30 2 * * *", stop="0 12 * * *", tz="Europe/Berlin")
    skipped = [s.at for s in night.between(at(2026, 3, 29), at(2026, 3, 30)) if s.kind == "start"]
    doubled = [s.at for s in night.between(at(2026, 10, 25), at(2026, 10, 26)) if s.kind == "start"]
    assert skipped == [at(2026, 3, 29, 3, 0)]
    assert doubled == [at(2026, 10, 25, 2, 30)]


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
        self.now = now
        monkeypatch.setenv("SECONDPASS_EPOCH_RECORDS", "100")  # an epoch sees one time
        monkeypatch.setattr(timetables_module, "time", SimpleNamespace(time=lambda: self.now))


class Days:
    """A source that sets the clock as it goes."""

    def __init__(self, clock: Clock, first: int, times: list[float]) -> None:
        self._clock, self._first, self._times = clock, first, times

    def __iter__(self) -> Any:
        for n, now in enumerate(self._times):
            for part in range(100):  # so that epochs end in between
                self._clock.now = now
                yield Seen(n=self._first + n * 100 + part, time=float(self._first + n * 100 + part))


def run(store: Path, source: Any, *tables: Timetable) -> None:
    App("live", source=source, tasks=[First(), Count()], timetables=tables).run(store=store, workers=0)


def switches(store: Path) -> list[tuple[str, str]]:
    return [
        (e["kind"], e["asked"]) for e in Control(store).history() if e["kind"] in ("command", "timetable")
    ]


def test_a_task_runs_at_its_times_and_each_switch_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, at(2026, 5, 4, 6, 0))
    times = [
        at(2026, 5, 4, 6, 0),
        at(2026, 5, 4, 7, 0),
        at(2026, 5, 4, 8, 59),
        at(2026, 5, 4, 9, 0),
        at(2026, 5, 5, 8, 0),
    ]
    run(tmp_path / "store", Days(clock, 0, times), PEAK)
    assert switches(tmp_path / "store") == [
        ("command", "stop"),
        ("command", "start"),
        ("command", "stop"),
        ("command", "start"),
    ]
    events = [Seen(n=n, time=float(n)) for n in range(500)]
    agrees(tmp_path / "store", events, (First(), Count()))


def test_what_was_missed_is_made_up_for_by_the_last_switch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    run(store, Days(Clock(monkeypatch, 0.0), 0, [at(2026, 5, 4, 6, 0)]), PEAK)
    run(store, Days(Clock(monkeypatch, at(2026, 5, 6, 8, 0)), 0, [at(2026, 5, 6, 8, 0)] * 2), PEAK)
    last = [e for e in Control(store).history() if e["kind"] == "command"][-1]
    assert last["asked"] == "start"
    assert "missed before it: start at 2026-05-04 05:00:00Z, stop at 2026-05-04 07:00:00Z" in last["reason"]
    assert last["by"] == "timetable peak"


def test_a_clock_that_is_set_back_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, at(2026, 5, 4, 8, 0))
    times = [at(2026, 5, 4, 8, 0), at(2026, 5, 4, 9, 30), at(2026, 5, 4, 8, 30), at(2026, 5, 4, 9, 30)]
    run(tmp_path / "store", Days(clock, 0, times), PEAK)
    assert switches(tmp_path / "store") == [("timetable", "start"), ("command", "stop")]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"start": "7"}, "is no cron line"),
        ({"start": "0 0 31 2 *"}, "is no cron line that ever comes"),
        ({"tz": "Europe/Nowhere"}, "no such time zone"),
    ],
)
def test_what_is_no_timetable_is_refused_at_once(given: dict[str, str], why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        Timetable("x", "Count", **{"start": "0 7 * * *", "stop": "0 9 * * *", **given})
    with pytest.raises(DefinitionError, match="no such task; it has: First"):
        App("live", source=[], tasks=[First()], timetables=[PEAK])
