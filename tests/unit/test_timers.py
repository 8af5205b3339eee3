"""Timers and schedules as a user sees them: what is refused, what fires when, and how to test them alone.

What they mean in a chain, in every way the engine runs it, says `test_rules.py`.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import math
import zoneinfo
from typing import Any

import pytest

from secondpass import Event, Task, every, output, table, timer, timers, value
from secondpass.errors import DefinitionError, TaskFault
from secondpass.testing import Change, run
from secondpass.timers import PAST_MAX


class Seen(Event):
    cid: int
    time: float


class Told(Event):
    what: str
    cid: int = 0
    time: float = 0.0


class Silence(Task[Seen]):
    """Reports a camera that says nothing for a while."""

    after_s: float = 60.0
    reports = table(int, int, default=0)

    def keys(self, event: Seen) -> tuple[int, ...]:
        return (event.cid,)

    def handle(self, event: Seen) -> Seen:
        self.silent.at(event.time + self.after_s, event.cid)
        return event

    @timer
    def silent(self, cid: int) -> Told:
        self.reports[cid] += 1
        return Told(what="silent", cid=cid, time=self.now)


def told(result: Any) -> list[Any]:
    return [event for event in result.outputs if isinstance(event, Told)]


# ---------------------------------------------------------------- what fires when


def test_a_camera_that_says_nothing_for_a_minute_is_reported_when_the_minute_is_over() -> None:
    log = [Seen(cid=1, time=0.0), Seen(cid=2, time=10.0), Seen(cid=1, time=59.0), Seen(cid=3, time=100.0)]
    result = run(Silence(), log)
    assert told(result) == [Told(what="silent", cid=2, time=70.0)]
    assert result.outputs.index(told(result)[0]) == 3  # before the event that moved time
    assert result.state("Silence") == {"reports": {2: 1}, "silent": {1: 119.0, 3: 160.0}}
    assert result.tally("Silence").fired == 1


def test_time_that_passes_without_an_event_fires_them_too() -> None:
    assert told(run(Silence(), [Seen(cid=1, time=0.0), 59.9])) == []
    assert told(run(Silence(), [Seen(cid=1, time=0.0), 60.0])) == [Told(what="silent", cid=1, time=60.0)]


def test_a_stopped_task_fires_nothing_and_what_is_overdue_fires_at_the_next_record_after_its_start() -> None:
    log = [
        Seen(cid=1, time=0.0),
        Change("stop", "Silence"),
        100.0,
        Change("start", "Silence"),
        Seen(cid=5, time=100.0),
        Seen(cid=5, time=120.0),
    ]
    assert told(run(Silence(), log[:4])) == []
    result = run(Silence(), log)
    assert told(result) == [Told(what="silent", cid=1, time=100.0)]
    assert result.outputs[1:] == [told(result)[0], *log[4:]]


def test_state_that_is_dropped_takes_what_was_pending_with_it() -> None:
    log = [Seen(cid=1, time=0.0), Change("drop", "Silence", state="silent"), 100.0]
    assert told(run(Silence(), log)) == []
    assert (
        told(
            run(
                Silence(),
                [*log[:1], Change("stop", "Silence"), Change("start", "Silence", fresh=True), 100.0],
            )
        )
        == []
    )


class Once(Task[Seen]):
    """A timer without a key."""

    def handle(self, event: Seen) -> None:
        if self.due.pending() is None:
            self.due.at(event.time + 1)

    @timer
    def due(self) -> list[Told]:
        return [Told(what="due", time=self.now), Told(what="again")]


def test_a_timer_without_a_key_is_one_and_may_put_out_several() -> None:
    result = run(Once(), [Seen(cid=1, time=0.0), Seen(cid=2, time=0.5), Seen(cid=3, time=2.0)])
    assert result.outputs == [Told(what="due", time=1.0), Told(what="again")]
    assert result.state("Once") == {"due": {None: 3.0}}


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class ByLevel(Task[Seen]):
    def handle(self, event: Seen) -> None:
        self.raised.at(1.0, key=(Level.LOW, event.cid))
        self.raised.at(1.0, (Level.HIGH, event.cid))

    @timer
    def raised(self, key: tuple[Level, int]) -> Told:
        return Told(what=key[0].value, cid=key[1])


def test_a_key_is_of_any_type_that_a_tables_key_may_have() -> None:
    found = run(ByLevel(), [Seen(cid=2, time=0.0), Seen(cid=1, time=0.0), 1.0]).outputs
    assert [(t.what, t.cid) for t in found] == [("low", 1), ("low", 2), ("high", 1), ("high", 2)]


class Endless(Task[Seen]):
    back_s: float = 0.0

    def handle(self, event: Seen) -> None:
        self.again.at(event.time)

    @timer
    def again(self) -> None:
        self.again.at(self.now - self.back_s)


@pytest.mark.parametrize("back_s", [0.0, 5.0])
def test_a_timer_that_sets_itself_for_a_time_that_has_come_forever_is_a_fault_that_says_so(back_s) -> None:
    with pytest.raises(TaskFault, match=rf"set {PAST_MAX} timers for times that had come") as caught:
        run(Endless(back_s=back_s), [Seen(cid=1, time=0.0)])
    assert "position 0" in str(caught.value)


class Overdue(Task[Seen]):
    def handle(self, event: Seen) -> None:
        for cid in range(20):
            self.due.at(0.0, cid)

    @timer
    def due(self, cid: int) -> None:
        self.count("due")


def test_many_timers_that_an_event_sets_for_a_time_that_has_come_all_fire(monkeypatch) -> None:
    monkeypatch.setattr(timers, "PAST_MAX", 10)
    assert run(Overdue(), [Seen(cid=1, time=0.0)]).tally("Overdue").counts == {"due": 20}


# ---------------------------------------------------------------- what is refused


class Odd(Task[Seen]):
    what: Any = None

    def handle(self, event: Seen) -> None:
        self.due.at(self.what, event.cid)

    @timer
    def due(self, cid: int) -> None:
        pass


@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf, 1.6e12])
def test_a_time_that_cannot_be_is_an_error_of_the_call(what) -> None:
    with pytest.raises(ValueError, match=r"Odd\.due\.at: .* is (no time|beyond)"):
        run(Odd(what=what), [Seen(cid=1, time=0.0)])
    letters = run(Odd(what=what), [Seen(cid=1, time=0.0)], errors="collect").dead_letters
    assert [letter.position for letter in letters] == [0]


@pytest.mark.parametrize("what", ["soon", None, True, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)])
def test_what_is_no_time_at_all_is_a_fault_of_the_task(what) -> None:
    with pytest.raises(TaskFault, match=r"Odd\.due\.at: .* is no time; write seconds"):
        run(Odd(what=what), [Seen(cid=1, time=0.0)])


class Calls(Task[Seen]):
    how: int = 0

    def handle(self, event: Seen) -> None:
        match self.how:
            case 0:
                self.keyed.at(1.0)
            case 1:
                self.keyed.at(1.0, 1, 2)
            case 2:
                self.keyed.at(1.0, other=1)
            case 3:
                self.plain.at(1.0, 1)
            case 4:
                self.keyed.at(1.0, "text")
            case 5:
                self.plain.cancel(3)
            case _:
                self.keyed = 5

    @timer
    def keyed(self, cid: int) -> None:
        pass

    @timer
    def plain(self) -> None:
        pass


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (0, r"Calls\.keyed: it takes one key \(cid\), as its method does"),
        (1, r"Calls\.keyed: it takes one key \(cid\)"),
        (2, r"Calls\.keyed: it takes one key \(cid\)"),
        (3, r"Calls\.plain: it takes no key"),
        (4, r"Calls\.keyed: as a key, 'text' \(str\) is not exactly"),
        (5, r"Calls\.plain: it takes no key"),
        (6, r"Calls\.keyed is a timer; set it with \.at\(time\)"),
    ],
)
def test_a_timer_is_set_as_its_method_is_declared(how, why) -> None:
    with pytest.raises(TaskFault, match=why):
        run(Calls(how=how), [Seen(cid=1, time=0.0)])


class Other(Task[Seen]):
    which: int = 1

    def keys(self, event: Seen) -> tuple[int, ...]:
        return (event.cid,)

    def handle(self, event: Seen) -> None:
        self.due.at(1.0, event.cid + self.which)

    @timer
    def due(self, cid: int) -> None:
        self.due.at(self.now + 1, cid + 1)  # a timer's own call may touch all


def test_a_keyed_task_sets_timers_for_its_own_keys_only() -> None:
    with pytest.raises(TaskFault, match=r"Other\.due: key 2 is not among those that keys\(\) declared"):
        run(Other(), [Seen(cid=1, time=0.0)])
    assert run(Other(which=0), [Seen(cid=1, time=0.0), 2.0]).state("Other") == {"due": {3: 3.0}}


def declare(**namespace: Any) -> Any:
    return type("X", (Task,), namespace)


def test_a_method_that_cannot_be_a_timers_is_refused_when_the_class_is_defined() -> None:
    def two(self: Any, a: int, b: int) -> None: ...
    def bare(self: Any, cid) -> None: ...
    def default(self: Any, cid: int = 3) -> None: ...
    def number(self: Any, cid: decimal.Decimal) -> None: ...
    async def later(self: Any) -> None: ...
    def keyed(self: Any, cid: int) -> None: ...

    for method, why in [
        (two, "a timer's method takes its key, or nothing"),
        (bare, "say what its key is"),
        (default, "a timer's method takes its key, or nothing"),
        (number, "use a str or an int"),
        (later, "is async"),
    ]:
        with pytest.raises(DefinitionError, match=why):
            declare(due=timer(method))
    with pytest.raises(DefinitionError, match="what @every calls takes no key"):
        declare(due=every(5.0)(keyed))
    with pytest.raises(DefinitionError, match="every task has 'now' already"):
        declare(now=timer(lambda self: None))


@pytest.mark.parametrize(
    "when",
    ["", "x", "10", "10x", "0s", "-5s", 0, -1.0, math.nan, True, "0 0 * *", "61 * * * *", "0 0 30 2 *"],
)
def test_what_is_no_schedule_is_refused(when) -> None:
    with pytest.raises(DefinitionError, match=r"every\("):
        every(when)(lambda self: None)


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(DefinitionError, match="no such time zone here"):
        every("0 0 * * *", tz="Mars/Olympus")(lambda self: None)


class Base(Task[Seen]):
    def handle(self, event: Seen) -> None:
        self.due.at(event.time + 1, event.cid)

    @timer
    def due(self, cid: int) -> Told:
        return Told(what="base", cid=cid)


class Derived(Base):
    @timer
    def due(self, cid: int) -> Told:
        return super().due(cid).replace(what="derived")


def test_a_subclass_inherits_a_timer_and_may_override_it() -> None:
    log = [Seen(cid=1, time=0.0), 5.0]
    assert [t.what for t in run(type("Same", (Base,), {})(), log).outputs] == ["base"]
    assert [t.what for t in run(Derived(), log).outputs] == ["derived"]
    with pytest.raises(DefinitionError, match="put @timer before it here too"):
        type("Plain", (Base,), {"due": lambda self, cid: None})


# ---------------------------------------------------------------- called by hand


class Meter(Task[Seen]):
    total = value(int, 0)
    pages = output(Told)

    def handle(self, event: Seen) -> None:
        self.total += 1
        self.due.at(event.time + 5, event.cid)

    @timer
    def due(self, cid: int) -> Told:
        self.total += 100
        if cid < 0:
            raise ValueError(cid)
        return Told(what="due", cid=cid, time=self.now)

    @every("10s")
    def report(self) -> Told:
        return Told(what=f"total {self.total}", time=self.now)


def test_a_task_called_by_hand_has_timers_that_advance_fires() -> None:
    task = Meter()
    task.handle(Seen(cid=7, time=0.0))
    task.handle(Seen(cid=3, time=0.0))
    assert (task.due.pending(7), task.due.pending(8), task.report.pending()) == (5.0, None, 10.0)
    assert task.advance(4.9) == []
    assert task.advance(10.0) == [
        Told(what="due", cid=3, time=5.0),
        Told(what="due", cid=7, time=5.0),
        Told(what="total 202", time=10.0),
    ]
    assert (task.due.pending(7), task.report.pending(), task.now) == (None, 20.0, 10.0)
    task.due.at(12.0, 1)
    task.due.cancel(1)
    assert task.advance(15.0) == []


def test_a_timer_that_fails_by_hand_is_gone_and_undone() -> None:
    task = Meter()
    task.handle(Seen(cid=-1, time=0.0))
    with pytest.raises(ValueError, match="-1"):
        task.advance(5.0)
    assert (task.total, task.due.pending(-1), task.advance(6.0)) == (1, None, [])


class Cheat(Task[Seen]):
    def handle(self, event: Seen) -> None:
        self.advance(5.0)


def test_a_task_in_a_chain_cannot_move_time() -> None:
    with pytest.raises(TaskFault, match="time comes from the stream"):
        run(Cheat(), [Seen(cid=1, time=0.0)])


# ---------------------------------------------------------------- schedules


class Daily(Task[Seen]):
    seen = value(int, 0)

    def handle(self, event: Seen) -> None:
        self.seen += 1

    @every("0 0 * * *", tz="Europe/Berlin")
    def report(self) -> Told:
        count, self.seen = self.seen, 0
        return Told(what=str(count), time=self.now)


def at(text: str, zone: str) -> float:
    """Local time as seconds; with `*` the second of two."""
    local = datetime.datetime.fromisoformat(text.rstrip("*"))
    return local.replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=text.endswith("*")).timestamp()


def moments(line: str, zone: str, begin: str, end: str) -> list[str]:
    """When a schedule fires between two local times, in local time."""
    kind = declare(
        handle=lambda self, event: None,
        report=every(line, tz=zone)(lambda self: Told(what="", time=self.now)),
    )
    found = run(kind(), [{"time": at(begin, zone)}, at(end, zone)]).outputs
    local = [datetime.datetime.fromtimestamp(t.time, zoneinfo.ZoneInfo(zone)) for t in found]
    return [f"{t:%d %H:%M}{'*' if t.fold else ''}" for t in local]


@pytest.mark.parametrize(
    ("zone", "begin", "days", "hours"),
    [
        ("Europe/Berlin", "2026-03-27T12:00", ["28", "29", "30"], [24, 23]),
        ("Europe/Berlin", "2026-10-23T12:00", ["24", "25", "26"], [24, 25]),
        ("America/New_York", "2026-03-06T12:00", ["07", "08", "09"], [24, 23]),
        ("America/New_York", "2026-10-30T12:00", ["31", "01", "02"], [24, 25]),
        ("Asia/Shanghai", "2026-03-27T12:00", ["28", "29", "30"], [24, 24]),
    ],
)
def test_a_daily_report_at_local_midnight_is_right_when_the_clocks_change(zone, begin, days, hours) -> None:
    kind = declare(
        handle=lambda self, event: None,
        report=every("0 0 * * *", tz=zone)(lambda self: Told(what="", time=self.now)),
    )
    first = at(begin, zone)
    found = [t.time for t in run(kind(), [{"time": first}, first + 3 * 86400 - 7200]).outputs]
    local = [datetime.datetime.fromtimestamp(t, zoneinfo.ZoneInfo(zone)) for t in found]
    assert [f"{t:%d %H:%M}" for t in local] == [f"{day} 00:00" for day in days]
    assert [(b - a) / 3600 for a, b in itertools.pairwise(found)] == hours


@pytest.mark.parametrize(
    ("line", "begin", "end", "fires"),
    [
        # A time that a change skips is the moment of the change.
        ("30 2 * * *", "2026-03-28T12:00", "2026-03-30T12:00", ["29 03:00", "30 02:30"]),
        # Of a time that it doubles the first counts.
        ("30 2 * * *", "2026-10-24T12:00", "2026-10-26T12:00", ["25 02:30", "26 02:30"]),
        # What comes every hour, or every few minutes, goes by the hours and minutes that pass.
        ("0 * * * *", "2026-03-29T00:30", "2026-03-29T04:30", ["29 01:00", "29 03:00", "29 04:00"]),
        (
            "0 * * * *",
            "2026-10-25T01:30",
            "2026-10-25T04:30",
            ["25 02:00", "25 02:00*", "25 03:00", "25 04:00"],
        ),
        (
            "*/30 2 * * *",
            "2026-10-25T01:30",
            "2026-10-25T04:30",
            ["25 02:00", "25 02:30", "25 02:00*", "25 02:30*"],
        ),
        ("*/30 2 * * *", "2026-03-28T12:00", "2026-03-30T01:00", []),
    ],
)
def test_what_a_change_of_the_clocks_skips_or_doubles_goes_by_the_rule(line, begin, end, fires) -> None:
    assert moments(line, "Europe/Berlin", begin, end) == fires


def test_the_first_moment_is_after_the_first_time_of_the_stream_and_missed_ones_run_in_order() -> None:
    first = at("2026-03-27T12:00", "Europe/Berlin")
    log = [Seen(cid=1, time=first), Seen(cid=2, time=first), Seen(cid=3, time=first + 3 * 86400)]
    result = run(Daily(), log)
    assert [t.what for t in result.outputs] == ["2", "0", "0"]
    assert [t.time for t in result.outputs] == [
        at(f"2026-03-{d}T00:00", "Europe/Berlin") for d in (28, 29, 30)
    ]


def test_an_event_at_the_very_moment_comes_after_the_report() -> None:
    midnight = at("2026-03-28T00:00", "Europe/Berlin")
    result = run(Daily(), [Seen(cid=1, time=midnight - 5), Seen(cid=2, time=midnight)])
    assert [t.what for t in result.outputs] == ["1"]
    # The first event of all is no missed midnight.
    assert run(Daily(), [Seen(cid=1, time=midnight)]).outputs == []
