"""The rules of meaning, each as claims about the engine: it is run in every way and compared with the plain loop.

Every test says what is meant as well, so that it fails when engine and reference go wrong together.
`test_rules_bite.py` takes the rules out of the engine, one by one, and sees these tests fail.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import enum
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import engine_runs
import numpy as np
import pytest
from engine_runs import Scripted, in_memory, in_store, meant, steady, stored

from secondpass import Event, Task, UntypedEvent, every, output, table, timer, value
from secondpass.errors import InputError, TaskFault, TaskStopped
from secondpass.event import untyped
from secondpass.record import Firing, Refused, Retry, Tick, Verdict, event_crc
from secondpass.store.database import Store
from secondpass.store.spool import Command, Spool


class Seen(Event):
    cid: int
    time: float
    score: float = 0.0


class Found(Event):
    what: Any = None
    parts: tuple[Any, ...] = ()
    facts: Mapping[str, Any] = {}


def seen(*times: float, cid: int = 1) -> list[Seen]:
    return [Seen(cid=cid, time=float(t)) for t in times]


def every_second(count: int) -> list[Seen]:
    return seen(*range(count))


# ---------------------------------------------------------------- 1. cells and events are values


class OneListTwice(Task[Seen]):
    first = table(int, list[float], factory=list)
    second = table(int, list[float], factory=list)

    def handle(self, event):
        both = [event.time]
        self.first[event.cid] = both
        self.second[event.cid] = both
        both.append(-1.0)
        self.first[event.cid].append(0.5)
        return event


def test_rule_1_one_list_put_in_two_tables_is_two_values(agree) -> None:
    state = agree([OneListTwice()], every_second(5)).state["OneListTwice"]
    assert state == {"first": {1: [4.0, 0.5]}, "second": {1: [4.0]}}


class Buffer(Task[Seen]):
    """Returns a list that is a cell, and goes on changing the cell."""

    pending = table(int, list[Seen], factory=list)
    batch = value(list[Seen], [])

    def handle(self, event):
        mine = self.pending[event.cid]
        mine.append(event)
        if len(mine) < 3:
            return None
        self.batch = mine
        self.pending[event.cid] = []
        self.batch.append(event.replace(score=9.0))
        return mine


def test_rule_1_a_returned_list_that_aliases_a_cell_holds_what_it_held(agree) -> None:
    log = every_second(7)
    found = agree([Buffer()], log)
    assert found.streams["main"] == log[:6]
    assert found.state["Buffer"]["batch"] == [*log[3:6], log[5].replace(score=9.0)]


class Tell(Task[Seen]):
    """Emits and returns events made of a cell, then changes the cell."""

    rows = table(int, list[int], factory=list)
    facts = table(int, dict[str, list[int]], factory=dict)
    grid = table(int, np.ndarray)
    told = output()

    def handle(self, event):
        n = int(event.time)
        rows, facts = self.rows[event.cid], self.facts.setdefault(event.cid, {"all": []})
        rows.append(n)
        facts["all"].append(n)
        if event.cid not in self.grid:
            self.grid[event.cid] = np.zeros(2)
        grid = self.grid[event.cid]
        self.told.emit(Found(what=rows, parts=(rows, {"deep": rows}), facts=facts))
        self.told.emit({"rows": rows, "time": event.time})
        out = [Found(what=rows, facts={"n": n}), Found(parts=(np.broadcast_to(grid, (1, 2)).tolist(),))]
        rows.append(-n)
        facts["all"].append(-n)
        grid += 1
        return out


def test_rule_1_events_share_nothing_with_the_cells_they_were_made_of(agree) -> None:
    found = agree([Tell()], every_second(3))
    first, plain = found.streams["told"][2], found.streams["told"][3]
    assert first == Found(what=(0, 0, 1), parts=((0, 0, 1), {"deep": (0, 0, 1)}), facts={"all": (0, 0, 1)})
    assert plain == {"rows": (0, 0, 1), "time": 1.0}
    assert found.streams["main"][2].what == (0, 0, 1)
    assert found.state["Tell"]["rows"] == {1: [0, 0, 1, -1, 2, -2]}


class Grid(Event):
    values: np.ndarray


class WatchCells(Task[Seen]):
    cells = table(int, np.ndarray)

    def handle(self, event):
        if event.cid not in self.cells:
            self.cells[event.cid] = np.zeros(2)
        mine = self.cells[event.cid]
        shown = Grid(values=np.broadcast_to(mine, (2,)))
        mine += 1
        return shown


def test_rule_1_a_read_only_view_of_a_cell_is_no_way_around_it(agree) -> None:
    found = agree([WatchCells()], every_second(3))
    assert [event.values.tolist() for event in found.streams["main"]] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


class Peek(Task[Seen]):
    rows = table(int, list[int], factory=list)

    def handle(self, event):
        if event.time == 0:
            self.rows[1].append(7)
        return event if self.rows[1] == [7] else None


def test_rule_1_a_cell_that_is_only_read_is_not_in_the_delta() -> None:
    deltas: list[Any] = []
    log = every_second(4)

    def watch(hub: Any) -> None:
        hub.pacer = steady(1)
        commit = hub.commit

        def committing(epoch: Any, outcome: Any) -> Any:
            deltas.append({name: dict(d.changed) for name, d in outcome.deltas.items()})
            return commit(epoch, outcome)

        hub.commit = committing

    engine_runs.App("peek", source=Scripted(log), tasks=[Peek()]).run(store=None, on_start=watch)
    assert deltas == [{("Peek", "rows"): {1: b"\x91\x07"}}, {}, {}, {}]


# ---------------------------------------------------------------- 2. types are exact


class WriteInt(Task[Seen]):
    cells = table(int, float)
    at: float = 3.0

    def handle(self, event):
        self.cells[int(event.time)] = 0 if event.time == self.at else 0.0
        return event


def test_rule_2_an_int_in_a_float_table_is_a_fault_that_says_what_to_write(agree) -> None:
    found = agree([WriteInt()], every_second(6))
    assert "WriteInt.cells[3]: 0 is an int, the declared type is float; write 0.0" in found.stopped
    assert "at task WriteInt, position 3, event Seen(cid=1, time=3.0" in found.stopped
    assert found.state["WriteInt"]["cells"] == {0: 0.0, 1: 0.0, 2: 0.0}
    assert len(found.streams["main"]) == 3


class WriteInside(Task[Seen]):
    rows = table(int, list[float], factory=list)
    facts = value(dict[str, tuple[int, ...]], {})
    at: float = 3.0
    what: int = 0

    def handle(self, event):
        if event.time == self.at:
            if self.what == 0:
                self.rows[1].append(1)
            elif self.what == 1:
                self.facts["x"] = [1]
            else:
                self.facts = {"x": (True,)}
        self.rows[1].append(1.0)
        return event


@pytest.mark.parametrize("what", [0, 1, 2])
def test_rule_2_what_is_inside_a_cell_is_exact_too(agree, what) -> None:
    found = agree([WriteInside(what=what)], every_second(6))
    assert found.stopped.startswith("TaskFault: WriteInside.")
    assert found.state["WriteInside"] == {"rows": {1: [1.0, 1.0, 1.0]}, "facts": {}}


class OddKey(Task[Seen]):
    floats = table(float, int)
    ints = table(int, int)
    pairs = table(tuple[str, float], int)
    what: str = ""

    def handle(self, event):
        self.ints[int(event.time) + 10] = 1
        if event.time == 2:
            if self.what == "nan":
                self.floats[math.nan] = 1
            elif self.what == "negative zero":
                self.floats[-0.0] = 1
            elif self.what == "bool":
                self.ints[True] = 1
            elif self.what == "float":
                self.ints[5.0] = 1
            else:
                self.pairs["a", math.nan if self.what == "deep nan" else -0.0] = 1
        return event


@pytest.mark.parametrize("what", ["nan", "negative zero", "bool", "float", "deep nan", "deep negative zero"])
def test_rule_2_a_key_that_would_not_be_found_again_is_a_fault(agree, what) -> None:
    found = agree([OddKey(what=what)], every_second(4))
    assert str(found.stopped).startswith("TaskFault: OddKey.")
    assert found.state["OddKey"]["ints"] == {10: 1, 11: 1}


class EqualKey(Task[Seen]):
    """Uses keys that are equal to a cell's, and of another type."""

    ints = table(int, int)
    rows = table(int, list[int])
    floats = table(float, str)

    def handle(self, event):
        n = int(event.time)
        if n == 0:
            for k in range(6):
                self.ints[k], self.rows[k] = k, [k]
            self.floats[0.0] = "zero"
        elif n == 1:
            del self.ints[1.0]
            self.ints.pop(True, None)
            self.rows[2.0].append(22)
            del self.rows[3.0]
            self.rows.pop(4.0)
            self.ints[5.0] = 55
        elif n == 2:
            del self.floats[-0.0]
        return event


def test_rule_2_an_equal_key_of_another_type_finds_the_cell_and_leaves_no_second_one(agree) -> None:
    found = agree([EqualKey()], every_second(4)).state["EqualKey"]
    assert found == {
        "ints": {0: 0, 2: 2, 3: 3, 4: 4, 5: 55},
        "rows": {0: [0], 1: [1], 2: [2, 22], 5: [5]},
        "floats": {},
    }
    assert [type(k) for k in found["ints"]] == [int] * 5


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


@dataclasses.dataclass
class Track:
    level: Level
    path: list[tuple[float, float]]
    at: datetime.datetime | None = None


class Part(Event):
    name: str
    tags: frozenset[str] = frozenset()


class Everything(Task[Seen]):
    """Cells of every kind, changed in place in some events and only read in others."""

    deques = table(int, collections.deque[int], factory=lambda: collections.deque(maxlen=3))
    counters = table(str, collections.Counter[str], factory=collections.Counter)
    tracks = table(tuple[int, str], Track)
    arrays = table(int, np.ndarray)
    enums = table(Level, Level)
    times = table(datetime.datetime, datetime.datetime | None)
    optional = table(int, float | None)
    tuples = table(int, tuple[int, float])
    sets = table(int, set[int], factory=set)
    frozen = table(int, frozenset[str])
    parts = table(int, Part)
    nested = table(int, dict[str, list[tuple[int, Part]]], factory=dict)
    raw = table(bytes, bytes)
    last = value(Part | None, None)
    window = value(collections.deque[float], collections.deque(maxlen=2))

    def handle(self, event):
        n = int(event.time)
        at = datetime.datetime.fromtimestamp(n, datetime.timezone(datetime.timedelta(hours=8)))
        part = Part(name=str(n), tags=frozenset({"a", str(n)}))
        self.deques[n % 2].append(n)
        self.counters["x"][str(n % 3)] += 1
        if (1, "a") not in self.tracks:
            self.tracks[1, "a"] = Track(Level.LOW, [])
        track = self.tracks[1, "a"]
        track.path.append((float(n), 0.5))
        track.level = Level.HIGH
        track.at = at.astimezone(datetime.UTC)
        if 1 not in self.arrays:
            self.arrays[1] = np.zeros((2, 2), dtype=np.int16)
        self.arrays[1][n % 2, 0] += n
        self.enums[Level.LOW] = Level.HIGH
        self.times[at.astimezone(datetime.UTC)] = at.astimezone(datetime.UTC) if n % 2 else None
        self.optional[n] = None if n % 2 else 0.5
        self.tuples[n] = (n, 1.0)
        self.sets[0].add(n)
        self.frozen[n] = part.tags
        self.parts[n % 2] = part
        self.nested[0].setdefault("k", []).append((n, part))
        self.raw[bytes([n])] = b"\xff" * n
        self.last = part
        self.window.append(event.time)
        return event


def test_rule_2_cells_of_every_kind_come_back_as_they_were(agree) -> None:
    state = agree([Everything()], every_second(7)).state["Everything"]
    assert state["deques"][0] == collections.deque([2, 4, 6], 3)
    assert state["deques"][0].maxlen == 3
    assert type(state["counters"]["x"]) is collections.Counter
    assert state["arrays"][1].tolist() == [[12, 0], [9, 0]]
    assert state["arrays"][1].dtype == np.int16
    assert state["tracks"][1, "a"].level is Level.HIGH
    assert state["window"] == collections.deque([5.0, 6.0], 2)


class OtherZone(Task[Seen]):
    times = table(int, list[datetime.datetime], factory=list)

    def handle(self, event):
        zone = datetime.timezone(datetime.timedelta(hours=8))
        self.times[1].append(datetime.datetime.fromtimestamp(event.time, zone))
        return Found(what=self.times[1][0].hour)


def test_rule_2_a_datetime_that_would_come_back_with_another_hour_is_a_fault(agree) -> None:
    assert "is not exactly what it would be read back as" in agree([OtherZone()], every_second(2)).stopped


class Scored(Event):
    cid: int
    score: float
    tags: tuple[str, ...] = ()
    kinds: frozenset[int] = frozenset()


class Score(Task[Seen]):
    kind: int = 0
    extra = output(Scored)

    def handle(self, event):
        number = [0, np.float32(0.5), np.int64(3), True][self.kind]
        self.extra.emit(Scored(cid=np.int64(4), score=int(event.time)))
        return event.to(Scored, score=number, tags=["a"], kinds={1})


@pytest.mark.parametrize(("kind", "score"), [(0, 0.0), (1, 0.5), (2, 3.0)])
def test_rule_2_a_new_event_takes_its_declared_types(agree, kind, score) -> None:
    found = agree([Score(kind=kind)], every_second(3))
    assert found.streams["main"][2] == Scored(cid=1, score=score, tags=("a",), kinds=frozenset({1}))
    assert type(found.streams["main"][2].score) is float
    assert type(found.streams["main"][2].tags) is tuple
    assert type(found.streams["extra"][2].cid) is int
    assert type(found.streams["extra"][2].score) is float


def test_rule_2_an_event_that_cannot_take_its_types_is_a_fault(agree) -> None:
    found = agree([Score(kind=3)], every_second(3))
    assert "Score.handle: " in found.stopped
    assert "cannot take its declared types: Expected `float`, got `bool`" in found.stopped


# ---------------------------------------------------------------- 3. order is the plain loop's


class Twice(Task[Seen]):
    pages = output()

    def handle(self, event):
        self.pages.emit(Found(what=f"twice {event.time}"))
        return [event, event.replace(score=event.score + 1)]


class Say(Task[Seen]):
    pages = output()

    def handle(self, event):
        self.pages.emit(Found(what=f"{self.name} {event.time} {event.score}"))
        self.pages.emit(Found(what=f"{self.name} again"))
        if event.score == 3 and self.name == "Say":
            raise ValueError("3")
        return event


def test_rule_3_outputs_that_several_tasks_write_keep_the_order_of_the_plain_loop(agree) -> None:
    chain = [
        Say().options(name="first"),
        Twice(),
        Say(),
        Twice().options(name="four"),
        Say().options(name="last"),
    ]
    said = [event.what for event in agree(chain, every_second(3)).streams["pages"]]
    assert said[:10] == [
        "first 0.0 0.0",
        "first again",
        "twice 0.0",
        "Say 0.0 0.0",
        "Say again",
        "twice 0.0",
        "last 0.0 0.0",
        "last again",
        "last 0.0 1.0",
        "last again",
    ]


class FailOn(Task[Seen]):
    score: float = 0.0

    def handle(self, event):
        if event.score == self.score:
            raise ValueError(f"{self.name} at {event.time}")
        return event


def test_rule_3_dead_letters_keep_the_order_of_the_plain_loop(agree) -> None:
    # The second branch fails in an earlier task than the first branch.
    chain = [Twice(), FailOn(score=1.0).options(name="early"), FailOn(score=0.0).options(name="late")]
    log = [*every_second(2), Refused("malformed", b"{", 5, "file"), *seen(9)]
    letters = agree(chain, log).letters
    assert [(x.position, x.task) for x in letters] == [
        (0, "late"),
        (0, "early"),
        (1, "late"),
        (1, "early"),
        (2, ""),
        (3, "late"),
        (3, "early"),
    ]


class StopOn(FailOn):
    pass


def test_rule_3_the_reason_of_a_stop_is_the_plain_loops_too(agree) -> None:
    # Both branches stop the app: the first one in a later task, the second one in an earlier.
    chain = [Twice(), *(StopOn(score=s).options(name=f"at {s}", on_error="stop") for s in (1.0, 0.0))]
    assert "at task at 0.0, position 0" in agree(chain, every_second(2)).stopped


# ---------------------------------------------------------------- 4. an error undoes one call


class Fragile(Task[Seen]):
    """Changes everything it has, then fails at some events."""

    bad: tuple[float, ...] = ()
    half: bool = False
    counts = table(int, int, default=0)
    rows = table(int, list[int], factory=list)
    total = value(int, 0)
    history = value(list[int], [])
    pages = output()

    def handle(self, event) -> Iterator[Seen]:
        n = int(event.time)
        self.counts[n % 3] += 1
        self.rows[n % 2].append(n)
        self.total += 1
        self.history.append(n)
        self.pages.emit(Found(what=n))
        self.count("calls")
        self.log.info("event %d", n)
        yield event
        if event.time in self.bad:
            raise RuntimeError(f"no {n}")
        yield event.replace(score=float(self.total))


@pytest.mark.parametrize(
    "bad", [(0.0,), (2.0,), (2.0, 3.0), (1.0, 4.0), (5.0,), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)]
)
def test_rule_4_an_error_undoes_its_call_and_nothing_else(agree, bad) -> None:
    log = every_second(6)
    good = [n for n in range(6) if n not in bad]
    found = agree([Twice(), Fragile(bad=bad)], log)
    assert [x.position for x in found.letters] == [n for n in range(6) if n in bad for _ in range(2)]
    assert found.state["Fragile"]["total"] == 2 * len(good)
    assert found.state["Fragile"]["history"] == [n for n in good for _ in range(2)]
    assert [e.what for e in found.streams["pages"] if not isinstance(e.what, str)] == [
        n for n in good for _ in range(2)
    ]
    # What the earlier task did at the same event stands.
    assert len([e for e in found.streams["pages"] if isinstance(e.what, str)]) == 6
    assert len(found.streams["main"]) == 4 * len(good)
    tally = found.tallies["Fragile"]
    assert (tally.events, tally.errors, tally.counts.get("calls", 0)) == (12, 2 * len(bad), 2 * len(good))


def test_rule_4_error_streaks_are_counted_per_task_and_kept(agree) -> None:
    found = agree([Fragile(bad=(1.0, 3.0, 4.0, 5.0))], every_second(6))
    assert found.tallies["Fragile"].error_streak == 3
    assert agree([Fragile(bad=(1.0,))], every_second(6)).tallies["Fragile"].error_streak == 0


def test_rule_4_logs_of_undone_calls_leave_no_trace_and_others_appear_once(caplog) -> None:
    for size in (1, 2, 1000):
        for careful in (False, True):
            caplog.clear()
            with caplog.at_level(logging.INFO, "secondpass.task"):
                in_memory([Fragile(bad=(2.0, 4.0))], every_second(6), steady(size, careful=careful))
            assert [r.getMessage() for r in caplog.records] == [f"event {n}" for n in (0, 1, 3, 5)]


class TellRow(Task[Seen]):
    rows = table(int, list[int], factory=list)

    def setup(self):
        self.logger = self.log

    def handle(self, event):
        self.rows[1].append(int(event.time))
        self.logger.warning("rows %s", self.rows[1])
        self.rows[1].append(-1)


def test_rule_4_a_log_line_says_what_was_so_when_it_was_written(caplog) -> None:
    for careful in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO, "secondpass.task"):
            in_memory([TellRow()], every_second(2), steady(9, careful=careful))
        assert [r.getMessage() for r in caplog.records] == ["rows [0]", "rows [0, -1, 1]"]


class LateError(Task[Seen]):
    """What cannot be kept is found when the call ends: by then another table was looked at."""

    counts = table(int, int, default=0)
    rows = table(int, list[int], factory=list)
    total = value(int, 0)

    def handle(self, event):
        self.total += 1
        self.counts[1] += 1
        self.rows[1].append(2**70 if event.time == 2 else 1)
        return event


def test_rule_4_an_error_found_at_the_end_of_a_call_undoes_all_of_it(agree) -> None:
    found = agree([LateError()], every_second(4))
    assert [(x.position, x.error.split(":")[0]) for x in found.letters] == [(2, "OverflowError")]
    assert found.state["LateError"] == {"counts": {1: 3}, "rows": {1: [1, 1, 1]}, "total": 3}


def test_rule_4_an_event_passes_a_task_that_failed_when_it_says_so(agree) -> None:
    log = every_second(4)
    found = agree([Fragile(bad=(1.0, 2.0)).options(on_error="pass")], log)
    assert found.letters == []
    assert [e for e in found.streams["main"] if e.score == 0] == log


def test_rule_4_a_stop_commits_what_precedes_and_names_event_task_and_reason(agree) -> None:
    found = agree([Twice(), Fragile(bad=(2.0,)).options(on_error="stop")], every_second(4))
    assert found.stopped.startswith(
        "TaskStopped: RuntimeError: no 2\n  at task Fragile, position 2, event Seen(cid=1, time=2.0"
    )
    assert found.state["Fragile"]["total"] == 4
    assert len(found.streams["main"]) == 8


def test_rule_4_a_later_task_may_stop_at_an_earlier_event(agree) -> None:
    chain = [WriteInt(at=4.0), WriteInt(at=2.0).options(name="later")]
    found = agree(chain, every_second(6))
    assert "at task later, position 2" in found.stopped
    assert found.state["WriteInt"]["cells"] == {0: 0.0, 1: 0.0}


class Panic(BaseException):
    """As a library written in Rust raises."""


class Poison(Task[Seen]):
    kind: int = 0
    total = value(int, 0)
    names = table(str, str)

    def handle(self, event):
        self.total += 1
        if event.time == 1:
            match self.kind:
                case 0:
                    raise Panic("index out of bounds")
                case 1:
                    raise SystemExit(3)
                case 2:
                    raise StopIteration
                case 3:
                    raise MemoryError
                case 4:
                    return Found(what="\ud800")
                case 5:
                    return Found(what=2**70)
                case 6:
                    self.names["\ud800"] = "x"
                case 7:
                    self.names["x"] = "\ud800"
                case _:
                    raise GeneratorExit
        return event


@pytest.mark.parametrize("kind", range(9))
def test_rule_4_a_poison_event_is_set_aside_whatever_it_makes_a_task_raise(agree, kind) -> None:
    found = agree([Poison(kind=kind)], every_second(3))
    assert [x.position for x in found.letters] == [1]
    assert found.state["Poison"]["total"] == 2


def test_rule_4_an_interrupt_is_no_error_of_a_task() -> None:
    def interrupted(event: Seen) -> Seen:
        raise KeyboardInterrupt

    for careful in (False, True):
        with pytest.raises(KeyboardInterrupt):
            in_memory([interrupted], every_second(1), steady(1, careful=careful))
    with pytest.raises(KeyboardInterrupt):
        meant(engine_runs.App("case", source=[], tasks=[interrupted]).tasks, every_second(1))


class Batch(Task[Seen]):
    bad: tuple[float, ...] = ()

    def handle_batch(self, events):
        self.count("seen", len(events))
        for event in events:
            if event.time in self.bad:
                raise ValueError(f"no {event.time}")
        events.sort(key=lambda e: -e.time)  # its own list
        return [e.replace(score=e.time) if e.time != 3 else None for e in reversed(events)]


def test_rule_4_an_error_in_a_batch_isolates_one_event(agree) -> None:
    found = agree([Batch(bad=(1.0, 4.0))], [*every_second(3), Found(what="passes by"), *seen(3, 4, 5)])
    assert [x.position for x in found.letters] == [1, 5]
    assert [getattr(e, "score", None) for e in found.streams["main"]] == [0.0, 2.0, None, 5.0]
    assert found.tallies["Batch"].counts == {"seen": 4}


@pytest.mark.parametrize(
    ("result", "advice"),
    [
        (True, "return the event itself to pass it on, and None to drop it"),
        ((1, 2), "return a list to emit several events"),
        ("text", "return the event, another event, a list of events, or None"),
        ([None], "a list holds events only; leave None out"),
        (5, "return the event, another event, a list of events, or None"),
    ],
)
def test_rule_4_what_is_no_event_is_refused_with_advice(agree, result, advice) -> None:
    def odd(event: Seen) -> Any:
        return result if event.time == 2 else event

    found = agree([odd], every_second(4))
    assert f"odd.handle returned {type(result if result != [None] else None).__name__}" in found.stopped
    assert advice in found.stopped
    assert len(found.streams["main"]) == 2


def test_rule_4_a_coroutine_is_refused_with_advice(agree) -> None:
    async def later(event: Any) -> None:
        pass

    def odd(event: Seen) -> Any:
        return later(event)

    assert "handle must be a plain function, not async" in agree([odd], every_second(1)).stopped


class Undeclared(Task[Seen]):
    def handle(self, event):
        self.last = event


def test_rule_4_assigning_an_undeclared_attribute_is_a_fault_that_says_so(agree) -> None:
    assert (
        "Undeclared.last is not declared: write `last = value(type, default)`"
        in agree([Undeclared()], every_second(1)).stopped
    )


# ---------------------------------------------------------------- 5. verdicts are records


def condemned(position: int, task: str, path: tuple[int, ...], event: Any) -> Verdict:
    return Verdict(position, task, path, "killed its worker", "the stack", event_crc(event))


class Counts(Task[Seen]):
    """Counts what it hears, and again when a timer says so."""

    total = value(int, 0)
    heard = table(int, int, default=0)

    def handle(self, event):
        self.total += 1
        self.heard[event.cid] += 1
        self.again.at(event.time + 1.0, event.cid)
        return [event, event]

    @timer
    def again(self, cid: int):
        self.heard[cid] += 100
        return [Seen(cid=cid, time=self.now, score=1.0), Seen(cid=cid, time=self.now, score=2.0)]


def fires(cid: int, time: float) -> Firing:
    return Firing(timer="again", key=cid, time=time)


def test_rule_5_a_task_is_not_called_for_an_event_that_a_verdict_is_about(agree) -> None:
    log = seen(0, 0.5, 0.7, cid=1)
    found = agree([Counts(), Listen()], [condemned(1, "Counts", (), log[1]), *log])
    assert found.state["Counts"]["heard"] == {1: 2}
    assert [(x.position, x.error, x.traceback) for x in found.letters] == [
        (1, "killed its worker", "the stack")
    ]
    found = agree([Counts(), Listen()], [condemned(1, "Listen", (1,), log[1]), *log])
    assert [len(found.streams["main"]), len(found.letters)] == [5, 1]


def test_rule_5_a_timer_that_a_verdict_is_about_is_not_called_and_is_gone(agree) -> None:
    log = [*seen(0, cid=1), *seen(0.1, cid=2), *seen(5, cid=3)]
    found = agree([Counts(), Listen()], [condemned(2, "Counts", (-2,), fires(2, 1.1)), *log])
    assert found.state["Counts"]["heard"] == {1: 101, 2: 1, 3: 1}
    assert found.state["Counts"]["again"] == {3: 6.0}
    assert [(x.position, x.task, x.error, x.event) for x in found.letters] == [
        (2, "Counts", "killed its worker", fires(2, 1.1))
    ]
    assert found.tallies["Counts"].fired == 2
    found = agree([Counts()], [condemned(1, "Counts", (-1,), fires(1, 1.0)), *seen(0), Tick(3.0)])
    assert found.state["Counts"]["heard"] == {1: 1}


def test_rule_5_what_a_timer_put_out_may_be_convicted_in_the_tasks_behind(agree) -> None:
    log = [*seen(0, cid=1), *seen(5, cid=3)]
    came = Seen(cid=1, time=1.0, score=2.0)
    found = agree([Counts(), Listen()], [condemned(1, "Listen", (-1, 1), came), *log])
    assert [e.score for e in found.streams["main"]] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert [x.task for x in found.letters] == ["Listen"]


def test_rule_5_a_verdict_is_about_one_call_and_no_other_that_takes_its_place(agree) -> None:
    log = [*seen(0, cid=1), *seen(5, cid=3)]
    for other in (fires(2, 1.0), fires(1, 1.5), log[0]):
        found = agree([Counts()], [condemned(1, "Counts", (-1,), other), *log])
        assert not found.letters
        assert found.state["Counts"]["heard"] == {1: 101, 3: 1}


@pytest.mark.parametrize("on_error", ["pass", "stop"])
def test_rule_5_a_convicted_timer_is_treated_as_its_task_says(agree, on_error) -> None:
    log = [condemned(1, "Counts", (-1,), fires(1, 1.0)), *seen(0, cid=1), *seen(5, cid=3)]
    found = agree([Counts().options(on_error=on_error)], log)
    assert not found.letters
    assert found.state["Counts"]["heard"] == ({1: 1, 3: 1} if on_error == "pass" else {1: 1})
    assert (found.stopped is None) == (on_error == "pass")


# ---------------------------------------------------------------- 6. time comes from the stream


class Once(Task):
    ttl_s: float = 0.1
    cells = table(int, float, ttl_s="ttl_s")
    rows = table(int, list[int], ttl_s="ttl_s")

    def handle(self, event):
        alive = (event.cid in self.cells, event.cid in self.rows)
        if event.cid not in self.cells:
            self.cells[event.cid] = event.time
        if event.cid not in self.rows:
            self.rows[event.cid] = []
        else:
            self.rows[event.cid].append(1)  # a change in place does not renew
        return Found(what=alive[0], parts=(alive[1], len(self.cells), len(self.rows)))


@pytest.mark.parametrize("start", [0.0, 1632192265.17])
def test_rule_6_a_cell_expires_exactly_when_its_time_has_come(agree, start) -> None:
    times = [start, start + 0.05, start + 0.0999, start + 0.1, start + 0.15, start + 0.2, start + 0.3]
    written = start
    meant_alive = [False]
    for time in times[1:]:
        meant_alive.append(not time - written >= 0.1)
        if not meant_alive[-1]:
            written = time
    found = agree([Once()], seen(*times))
    assert [e.what for e in found.streams["main"]] == meant_alive
    assert [e.parts[0] for e in found.streams["main"]] == meant_alive


def test_rule_6_time_to_live_ends_at_equality(agree) -> None:
    found = agree([Once(ttl_s=300.0)], seen(0, 299.9999, 300, 599, 600))
    assert [e.what for e in found.streams["main"]] == [False, True, False, True, False]


class Now(Task):
    def handle(self, event):
        return Found(what=self.now, parts=(self.position, self.random.random(), self.random.random()))


class DropAll(Task[Seen]):
    def handle(self, event):
        return None if event.cid == 2 else event


def test_rule_6_now_is_the_largest_time_so_far_whatever_was_dropped(agree) -> None:
    log = [*seen(5, 3), Seen(cid=2, time=9.0), *seen(1, 12, 11)]
    found = agree([DropAll(), Twice(), Now()], log).streams["main"]
    assert [e.what for e in found[::2]] == [5.0, 5.0, 9.0, 12.0, 12.0]
    assert [e.parts[0] for e in found[::2]] == [0, 1, 3, 4, 5]
    # Random numbers are those of task, position and emission, one after the other.
    drawn = [number for e in found for number in e.parts[1:]]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, 1632192265170.0])
def test_rule_6_a_time_that_cannot_be_is_a_dead_letter_before_time_moves(agree, time) -> None:
    log = [*seen(5), Seen(cid=1, time=time), *seen(6)]
    found = agree([Now()], log)
    assert [e.what for e in found.streams["main"]] == [5.0, 6.0]
    assert [(x.position, x.task) for x in found.letters] == [(1, "")]
    assert "`time` is " in found.letters[0].error


def test_rule_6_a_stream_in_milliseconds_is_refused_as_a_whole() -> None:
    with pytest.raises(InputError, match='looks like milliseconds; give the source time_unit="ms"'):
        in_memory([Now()], seen(1632192265170.0), steady(10))


class Untimed(Event):
    cid: int


def test_rule_6_without_a_time_an_event_has_the_time_of_intake(agree, folder) -> None:
    log = [Untimed(cid=1), *seen(5, 2000), Untimed(cid=2), untyped({"time": None}), untyped({"time": 3000})]
    found = agree([Now()], log)
    assert [e.what for e in found.streams["main"]] == [1000.0, 1000.0, 2000.0, 2000.0, 2000.0, 3000.0]
    in_store([Now()], log, folder / "recorded", steady(4))
    store = engine_runs.Store.open_to_read(folder / "recorded")
    assert [(p, d) for p, kind, d in store.history() if kind == "intake"] == [
        (0, {"count": 4, "time": 1000.0}),
        (4, {"count": 2, "time": 1000.0}),
    ]
    store.close()


# ---------------------------------------------------------------- 7. timers


class Heard(Event):
    who: str
    cid: Any = 0
    time: float = 0.0
    more: tuple[Any, ...] = ()


class Watch(Task):
    """Sets a timer for each event it hears, its own and others': what it does is in the events' `score`."""

    after_s: float = 10.0
    fired = table(int, int, default=0)
    said = output()

    def handle(self, event):
        if isinstance(event, Seen):
            self.silent.at(event.time + self.after_s, event.cid)
        return event

    @timer
    def silent(self, cid: int):
        self.fired[cid] += 1
        self.count("silent")
        self.said.emit(Heard(who=f"{self.name} says", cid=cid, time=self.now))
        return [Heard(who=self.name, cid=cid, time=self.now), Heard(who=f"{self.name} again", cid=cid)]

    @timer
    def early(self, cid: int):
        return Heard(who=f"{self.name} early", cid=cid, time=self.now)


class Listen(Task):
    """Tells at what time it hears what timers put out."""

    said = output()

    def handle(self, event):
        self.said.emit(Heard(who=f"heard {getattr(event, 'who', event.cid)}", time=self.now))
        return event


def who(events: list[Any]) -> list[Any]:
    return [(e.who, e.cid, e.time) if isinstance(e, Heard) else (e.cid, e.time) for e in events]


def test_rule_7_due_timers_fire_before_the_event_that_moved_time(agree) -> None:
    log = [*seen(0, cid=1), *seen(3, cid=2), *seen(9.9, cid=3), *seen(13.0, cid=4)]
    found = agree([Watch()], log)
    assert who(found.streams["main"]) == [
        (1, 0.0),
        (2, 3.0),
        (3, 9.9),
        ("Watch", 1, 10.0),
        ("Watch again", 1, 0.0),
        ("Watch", 2, 13.0),
        ("Watch again", 2, 0.0),
        (4, 13.0),
    ]
    assert found.state["Watch"]["silent"] == {3: 19.9, 4: 23.0}
    assert found.state["Watch"]["fired"] == {1: 1, 2: 1}


class Both(Watch):
    """Two timers, all for one time, set in an order that is not theirs."""

    def handle(self, event):
        if isinstance(event, Seen) and event.time == 0:
            for cid in (11, 2, -1):
                self.silent.at(20.0, cid)
                self.early.at(20.0, cid)
            self.silent.at(19.0, 100)
        return event


def test_rule_7_timers_fire_by_time_then_task_then_name_then_key(agree) -> None:
    chain = [Both().options(name="b"), Both().options(name="a")]
    found = agree(chain, seen(0, 30))
    fired = [(e.who, e.cid) for e in found.streams["main"] if isinstance(e, Heard) and "again" not in e.who]
    names = ["b", "a"]
    assert fired[:2] == [("b", 100), ("a", 100)]
    assert fired[2:] == [(f"{n}{w}", c) for n in names for w in (" early", "") for c in (-1, 2, 11)]


def test_rule_7_what_a_timer_puts_out_flows_on_before_the_next_one_fires(agree) -> None:
    log = [*seen(0, cid=1), *seen(1, cid=2), *seen(11.5, cid=3)]
    found = agree([Watch(), Listen()], log)
    assert who(found.streams["said"]) == [
        ("heard 1", 0, 0.0),
        ("heard 2", 0, 1.0),
        ("Watch says", 1, 10.0),
        ("heard Watch", 0, 10.0),
        ("heard Watch again", 0, 10.0),
        ("Watch says", 2, 11.0),
        ("heard Watch", 0, 11.0),
        ("heard Watch again", 0, 11.0),
        ("heard 3", 0, 11.5),
    ]


class Relay(Task):
    """A second timer of what the first one put out: due at once, later, or long ago."""

    after_s: float = 0.5

    def handle(self, event):
        if isinstance(event, Heard) and event.who == "Watch":
            self.later.at(event.time + self.after_s, event.cid)
        return event

    @timer
    def later(self, cid: int):
        return Heard(who="Relay", cid=cid, time=self.now)


@pytest.mark.parametrize(
    ("after_s", "order"), [(0.5, "WRWR"), (5.0, "WWRR"), (0.0, "WRWR"), (-50.0, "WRWR"), (1.0, "WWRR")]
)
def test_rule_7_a_timer_that_a_timer_sets_takes_its_place_among_them(agree, after_s, order) -> None:
    # At one time the earlier task fires first, and time does not go back for what is set in the past.
    log = [*seen(0, cid=1), *seen(1, cid=2), *seen(100, cid=3)]
    found = agree([Watch(), Relay(after_s=after_s)], log).streams["main"]
    heard = [e for e in found if isinstance(e, Heard) and e.who in ("Watch", "Relay")]
    assert "".join(e.who[0] for e in heard[:4]) == order
    times = [e.time for e in heard]
    assert times == sorted(times)
    assert times[:2] == ([10.0, 10.0 + max(after_s, 0.0)] if order == "WRWR" else [10.0, 11.0])


class Past(Task[Seen]):
    """Sets timers for times that have come, and one that sets another."""

    def handle(self, event):
        self.late.at(event.time - 100.0, event.cid)
        self.late.at(self.now, event.cid + 10)
        return event

    @timer
    def late(self, cid: int):
        if cid == 11:
            self.late.at(self.now - 1, 12)
        return Heard(who="late", cid=cid, time=self.now, more=(self.position,))


def test_rule_7_one_set_in_the_past_fires_at_now_when_its_record_is_through(agree) -> None:
    log = [*seen(5, cid=1), *seen(3, cid=2), Refused("malformed", b"{", 0, "file"), *seen(9, cid=3)]
    found = agree([Past()], log)
    heard = [(e.cid, e.time, e.more) if isinstance(e, Heard) else e.cid for e in found.streams["main"]]
    assert heard == [
        1, (1, 5.0, (0,)), (11, 5.0, (0,)), (12, 5.0, (0,)),
        2, (2, 5.0, (1,)), (12, 5.0, (1,)),
        3, (3, 9.0, (3,)), (13, 9.0, (3,)),
    ]  # fmt: skip


class Move(Task[Seen]):
    """Sets, moves and takes back; some of its calls fail after that."""

    def handle(self, event):
        n = int(event.time)
        if n == 1:
            self.due.at(3.5, 1)
            self.due.at(8.5, 2)
            self.due.at(5.5, 3)
            self.due.at(6.5, 4)
        elif n == 2:
            self.due.at(6.5, 1)  # later
            self.due.at(4.5, 2)  # earlier
            self.due.cancel(3)
            self.due.cancel(33)
        elif n == 3:
            self.due.at(3.6, 4)
            self.due.cancel(1)
            self.due.at(3.7, 5)
            raise ValueError("undone")
        elif n == 8:
            self.due.at(9.0, 2)
        return Heard(who=str(n), more=tuple(self.due.pending(k) for k in range(1, 6)))

    @timer
    def due(self, cid: int):
        return Heard(who="due", cid=cid, time=self.now)


def test_rule_7_setting_a_timer_moves_it_and_a_call_that_fails_sets_none(agree) -> None:
    found = agree([Move()], seen(1, 2, 3, 4, 5, 6, 7, 8, 9))
    assert [e.who for e in found.streams["main"]] == [
        "1",
        "2",
        "4",
        "due",
        "5",
        "6",
        "due",
        "due",
        "7",
        "8",
        "due",
        "9",
    ]
    assert [(e.cid, e.time) for e in found.streams["main"] if e.who == "due"] == [
        (2, 4.5),
        (1, 6.5),
        (4, 6.5),
        (2, 9.0),
    ]
    assert found.streams["main"][2].more == (6.5, 4.5, None, 6.5, None)
    assert [letter.position for letter in found.letters] == [2]


class Ahead(Task[Seen]):
    """Sets a timer as far ahead as the event's score says."""

    def handle(self, event):
        self.due.at(event.time + event.score, event.cid)
        return event

    @timer
    def due(self, cid: int):
        return Heard(who="due", cid=cid, time=self.now)


def test_rule_7_a_timer_may_become_due_among_the_records_behind_the_one_that_sets_it(agree) -> None:
    # Far ahead at first, then near, and at last so that the pending ones are met on the way.
    ahead_s = [100.0] * 6 + [0.5, 1.0, 2.0, 0.0, 100.0, 100.0] + [100.0] * 110
    log = [Seen(cid=n, time=float(n), score=s) for n, s in enumerate(ahead_s)]
    found = agree([Ahead()], log).streams["main"]
    due = [(e.cid, e.time) for e in found if isinstance(e, Heard)]
    assert due[:4] == [(6, 6.5), (7, 8.0), (9, 9.0), (8, 10.0)]
    assert [found.index(Heard(who="due", cid=c, time=t)) for c, t in due[:4]] == [7, 9, 12, 13]
    assert due[4:] == [(n, n + 100.0) for n in (*range(6), *range(10, 22))]


class Delicate(Task[Seen]):
    """Its timers fail after they have changed everything."""

    total = value(int, 0)
    rows = table(int, list[int], factory=list)
    pages = output()
    bad: tuple[int, ...] = (2,)
    fault: bool = False

    def handle(self, event):
        self.due.at(event.time + 1, event.cid)
        return event

    @timer
    def due(self, cid: int):
        self.total += 1
        self.rows[1].append(cid)
        self.pages.emit(Heard(who="page", cid=cid))
        self.count("due")
        self.due.at(self.now + 100, cid)
        if cid in self.bad:
            if self.fault:
                return True
            raise RuntimeError(f"no {cid}")
        return Heard(who="due", cid=cid, time=self.now)


def three() -> list[Seen]:
    return [*seen(0, cid=1), *seen(0.5, cid=2), *seen(0.7, cid=3), *seen(5, cid=4)]


def test_rule_7_an_error_in_a_timer_undoes_that_call_and_the_timer_is_gone(agree) -> None:
    found = agree([Delicate()], three())
    assert found.state["Delicate"] == {
        "total": 2,
        "rows": {1: [1, 3]},
        "due": {1: 101.0, 3: 101.7, 4: 6.0},
    }
    (letter,) = found.letters
    assert (letter.position, letter.task, letter.error) == (3, "Delicate", "RuntimeError: no 2")
    assert letter.event == Firing(timer="due", key=2, time=1.5)
    assert [e.cid for e in found.streams["pages"]] == [1, 3]
    tally = found.tallies["Delicate"]
    assert (tally.events, tally.fired, tally.errors, tally.passed, tally.counts) == (4, 3, 1, 6, {"due": 2})
    assert "def due" not in letter.traceback
    assert "raise RuntimeError" in letter.traceback


def test_rule_7_nothing_flows_on_from_a_timer_that_fails_and_passes(agree) -> None:
    found = agree([Delicate().options(on_error="pass")], three())
    assert (found.letters, found.tallies["Delicate"].errors) == ([], 1)
    assert who(found.streams["main"])[3:] == [("due", 1, 1.0), ("due", 3, 1.7), (4, 5.0)]


@pytest.mark.parametrize("fault", [False, True])
def test_rule_7_a_timer_that_stops_the_app_stops_it_before_the_record_that_moved_time(agree, fault) -> None:
    found = agree([Delicate(fault=fault).options(on_error="stop")], three())
    assert "at task Delicate, position 3, event Firing(timer='due', key=2, time=1.5)" in found.stopped
    assert ("Delicate.due returned bool" in found.stopped) == fault
    assert who(found.streams["main"]) == [(1, 0.0), (2, 0.5), (3, 0.7)]
    assert found.state["Delicate"]["due"] == {1: 1.0, 2: 1.5, 3: 1.7}


class Draw(Task[Seen]):
    def handle(self, event):
        self.due.at(event.time + 1, event.cid)
        self.due.at(event.time + 1, event.cid + 1)
        return Heard(who="event", more=(self.now, self.position, self.random.random()))

    @timer
    def due(self, cid: int):
        return [
            Heard(who="due", cid=cid, more=(self.now, self.position, self.random.random())) for _ in range(2)
        ]


class Redraw(Task[Heard]):
    def handle(self, event):
        return event.replace(more=(*event.more, self.now, self.random.random()))


def test_rule_7_a_timer_has_its_time_the_records_position_and_its_own_random_numbers(agree) -> None:
    found = agree([Draw(), Redraw()], seen(0, 10, 20)).streams["main"]
    assert [e.more[:2] for e in found if e.who == "due"] == [(1.0, 1)] * 4 + [(11.0, 2)] * 4
    drawn = [e.more[2] for e in found] + [e.more[4] for e in found]
    assert len({*drawn}) == len(drawn)
    assert [e.more[3] for e in found if e.who == "due"] == [1.0] * 4 + [11.0] * 4


class Hourly(Task[Seen]):
    total = value(int, 0)
    bad: bool = False

    def handle(self, event):
        self.total += 1
        return event

    @every("10s")
    def report(self):
        if self.bad and self.now == 25.0:
            raise ValueError("no report")
        return Heard(who="report", time=self.now, more=(self.total, self.report.pending()))

    @every("*/30 * * * *")
    def half(self):
        return Heard(who="half", time=self.now)


def test_rule_7_a_schedule_counts_from_the_first_time_and_makes_up_for_what_was_missed(agree) -> None:
    found = agree([Hourly()], seen(5, 6, 36, 40, 1790))
    heard = [(e.who, e.time, *e.more) for e in found.streams["main"] if isinstance(e, Heard)]
    assert heard[:3] == [("report", t, 2, t + 10) for t in (15.0, 25.0, 35.0)]
    assert [h[1] for h in heard] == [*(15.0 + 10 * n for n in range(178))]
    assert found.state["Hourly"] == {"total": 5, "report": {None: 1795.0}, "half": {None: 1800.0}}
    assert who(found.streams["main"])[:3] == [(1, 5.0), (1, 6.0), ("report", 0, 15.0)]


def test_rule_7_a_schedule_goes_on_after_an_error(agree) -> None:
    found = agree([Hourly(bad=True)], seen(5, 36))
    assert [e.time for e in found.streams["main"] if isinstance(e, Heard)] == [15.0, 35.0]
    assert [letter.event for letter in found.letters] == [Firing(timer="report", key=None, time=25.0)]


def test_rule_7_a_tick_moves_time_and_fires_timers(agree) -> None:
    log = [*seen(0, cid=1), Tick(9.0), Tick(12.0), *seen(11.0, cid=2), Tick(5.0), Tick(21.0), Tick(21.5)]
    found = agree([Watch(), Listen()], log)
    assert who(found.streams["main"]) == [
        (1, 0.0),
        ("Watch", 1, 10.0),
        ("Watch again", 1, 0.0),
        (2, 11.0),
        ("Watch", 2, 21.0),
        ("Watch again", 2, 0.0),
    ]
    assert found.streams["said"][3].time == 10.0
    assert found.streams["said"][-1].time == 21.0
    assert found.now == 21.5


class Untyped(Task):
    """Keys of several types, which have no order but that of their encoding."""

    def handle(self, event):
        for key in ("b", 3, "a", -2, 200):
            self.due.at(1.0, key)
        return event

    @timer
    def due(self, key: int | str):
        return Heard(who="due", cid=key)


def test_rule_7_keys_that_do_not_compare_fire_in_the_order_of_their_encoding(agree) -> None:
    found = agree([Untyped()], [*seen(0), Tick(1.0)])
    assert [e.cid for e in found.streams["main"][1:]] == [3, "a", "b", 200, -2]


def test_rule_7_a_timers_dead_letter_is_sent_again_as_its_call(folder) -> None:
    log = [*three(), Retry(0, "Delicate", Firing(timer="due", key=2, time=1.5)), *seen(6.5, cid=5)]
    store = folder / "store"
    in_store([Delicate()], log[:4], store, steady(2))
    Spool(store).put(Command("retry", 0))
    assert in_store([Delicate(bad=())], [*log[:4], *log[5:]], store, steady(2)) == "end of input"
    # The task is mended in between; the part before the retry is what it was.
    found = stored([Delicate(bad=())], store)
    assert who(found.streams["main"])[-3:] == [("due", 2, 5.0), ("due", 4, 6.0), (5, 6.5)]
    assert found.state["Delicate"]["due"] == {1: 101.0, 2: 105.0, 3: 101.7, 4: 106.0, 5: 7.5}
    assert found.state["Delicate"]["rows"] == {1: [1, 3, 2, 4]}


class NoTimer(Task[Seen]):
    total = value(int, 0)
    rows = table(int, list[int], factory=list)
    pages = output()

    def handle(self, event):
        return event


def test_rule_7_a_dead_letter_of_a_timer_that_has_gone_stays(folder) -> None:
    store = folder / "store"
    in_store([Delicate()], three(), store, steady(2))
    Spool(store).put(Command("retry", 0))
    in_store([NoTimer().options(name="Delicate")], three(), store, steady(2), drop=["Delicate.due"])
    opened = Store.open_to_read(store)
    try:
        assert [(kind, d["reason"]) for _, kind, d in opened.history() if kind == "left out"] == [
            ("left out", "the timer due that it is about has gone")
        ]
        assert [status for _, status, _ in opened.letters()] == ["open"]
    finally:
        opened.close()


class Every(Task[Seen]):
    """Keeps the chain in the hub, whatever the others have of timers."""

    @every(100.0)
    def hour(self):
        return None

    def handle(self, event):
        return event


@pytest.mark.parametrize("others", [(), (Every(),)], ids=["no other timer", "another timer"])
@pytest.mark.parametrize(
    ("commands", "why"),
    [
        ([Command("stop", task="Delicate"), Command("retry", 0)], "Delicate is stopped; start it first"),
        (
            [Command("remove", task="Delicate"), Command("retry", 0)],
            "the timer due that it is about has gone",
        ),
        ([Command("retry", 0, {"timer": "no"})], "the timer no that it is about has gone"),
        ([Command("retry", 0, {"key": "k"})], "dead letter 0 is no event: ValidationError"),
        ([Command("retry", 0, {"key": None})], "dead letter 0 is no event: ValidationError"),
    ],
    ids=["stopped", "removed", "no timer", "a wrong key", "no key"],
)
def test_rule_7_a_retry_of_a_timer_that_cannot_be_is_left_out_and_runs_nothing(
    folder, others, commands, why
) -> None:
    store, tasks = folder / "store", [*others, Delicate()]
    in_store(tasks, three(), store, steady(2))
    with contextlib.closing(Store.open_to_read(store)) as opened:
        before = opened.progress
    for command in commands:
        Spool(store).put(command)
    assert in_store(tasks, three(), store, steady(2)) == "end of input"
    with contextlib.closing(Store.open_to_read(store)) as opened:
        (said,) = [d["reason"] for _, kind, d in opened.history() if kind == "left out"]
        assert said.startswith(why)
        assert [status for _, status, _ in opened.letters()] == ["open"]
        assert opened.progress.position == before.position + len(commands) - 1
        assert opened.progress.numbers == before.numbers
    assert not Spool(store).waiting()


# ---------------------------------------------------------------- 8. tables iterate in key order


class Survey(Task[Seen]):
    numbers = table(int, int)
    names = table(str, list[int], factory=list)
    both = table(int | str, int)
    fading = table(int | str, int, ttl_s=2.5)

    def handle(self, event):
        n = int(event.time)
        self.numbers[n * 7 % 11 - 5] = n
        self.names[str(n * 5 % 7)].append(n)
        self.both[n - 3] = n
        if n == 1:
            self.both["s"] = n
            self.fading["s"] = n
        self.fading[n - 3] = n
        return Found(parts=(list(self.numbers), list(self.names), list(self.both), list(self.fading)))


def test_rule_8_a_table_iterates_in_key_order_after_recovery_as_before(agree) -> None:
    found = agree([Survey()], every_second(8)).streams["main"]
    numbers, names, both, fading = found[5].parts
    assert list(numbers) == sorted(numbers)
    assert list(names) == sorted(names)
    assert list(fading) == [0, 1, 2]  # what has expired no longer decides how keys compare
    assert set(both) == {-3, -2, -1, 0, 1, 2, "s"}


# ---------------------------------------------------------------- 9. several sources


def test_rule_9_finite_sources_merge_by_time_then_source_then_offset(agree) -> None:
    first = [*seen(1, 3, 3, 2, 9, cid=1), Refused("bad", b"x", 1, "first"), *seen(9, cid=1)]
    second = [Untimed(cid=2), *seen(3, 3, 4, 9, cid=2), Untimed(cid=2), Seen(cid=2, time=math.nan)]
    log = [second[0], *first[:4], *second[1:4], *first[4:], *second[4:]]
    for batches in (None, engine_runs.random.Random(5)):
        found = agree(
            [Now()], log, sources=lambda b=batches: [Scripted(first, "a", b), Scripted(second, "b", b)]
        )
        assert [x.position for x in found.letters] == [9, 13]


def test_rule_9_a_fault_inside_a_merged_epoch_leaves_every_source_at_its_place(folder) -> None:
    first, second = seen(*range(0, 20, 2), cid=1), seen(*range(1, 20, 2), cid=2)
    log = sorted(first + second, key=lambda e: e.time)

    class Faulty(Task[Seen]):
        at: float = -1.0
        total = value(int, 0)

        def handle(self, event):
            self.total += 1
            return True if event.time == self.at else event

    def run(at: float, batches: Any) -> str:
        sources = [Scripted(first, "a", batches), Scripted(second, "b", batches)]
        return in_store([Faulty(at=at)], log, folder / "store", steady(7), sources=sources)

    for batches in (None, engine_runs.random.Random(1)):
        for at in (3.0, 3.0, 10.0, 13.0, 19.0):
            assert f"position {int(at)}" in run(at, batches)
            assert stored([Faulty()], folder / "store").position == int(at)
        assert run(-1.0, batches) == "end of input"
        left = stored([Faulty()], folder / "store")
        assert left.streams["main"] == log
        assert left.state["Faulty"]["total"] == 20
        folder = folder / "again"


class Arriving(Scripted):
    """A followed source that gives a few records at a time and is never at its end."""

    following = True

    def open(self, offset, *, follow=False, accept=False):
        reader = super().open(offset)
        read = reader.read
        reader.read = lambda limit: (
            read(min(limit, 3)) or engine_runs.Batch([], {"count": len(self.records)}, count=0)
        )
        return reader


class StopAt(Task[Seen]):
    at: float = -1.0

    def handle(self, event):
        if event.time == self.at:
            raise ValueError("here")
        return event


def test_rule_9_what_live_sources_gave_is_recorded_in_its_order_also_where_an_epoch_is_cut(folder) -> None:
    first, second = seen(*range(0, 40, 2), cid=1), seen(*range(1, 40, 2), cid=2)

    def run(at: float) -> None:
        sources = [Arriving(first, "a"), Arriving(second, "b")]
        app = engine_runs.App("live", sources=sources, tasks=[StopAt(at=at).options(on_error="stop")])

        def stop_when_done(hub: Any) -> None:
            hub.stopping = hub.store.progress.position == 40

        app.run(
            store=folder / "store",
            on_start=lambda hub: setattr(hub, "pacer", steady(5)),
            on_epoch=stop_when_done,
        )

    for at in (6.0, 16.0, 26.0):
        with pytest.raises(TaskStopped):
            run(at)
    run(-1.0)
    left = stored([StopAt()], folder / "store")
    store = engine_runs.Store.open_to_read(folder / "store")
    log, rest = [], [list(first), list(second)]
    for position, kind, taken in store.history():
        if kind == "taken":
            assert position == len(log)
            for source, count in taken:
                log += rest[source][:count]
                del rest[source][:count]
    store.close()
    assert rest == [[], []]
    assert left.streams["main"] == log
    # Both have all there is from the beginning, and neither keeps out the other.
    assert {event.cid for event in log[:5]} == {1, 2}
    assert 5 <= sum(event.cid == 1 for event in log[:20]) <= 15


# ---------------------------------------------------------------- 10. a retry enters at the task that failed


class Fixed(Task[Seen]):
    broken: bool = True
    total = value(int, 0)

    def handle(self, event):
        self.total += 1
        if event.cid == 7 and self.broken:
            raise ValueError("seven")
        return Found(what=event.cid, parts=(self.now, self.position, self.random.random(), event.score))


class Before(Task[Seen]):
    total = value(int, 0)

    def handle(self, event):
        self.total += 1
        return [event, event.replace(score=0.5)]


def _retried(folder: Any, tasks: Any, command: Command, record: Any, first: Any = None) -> None:
    log = [*seen(1), Seen(cid=7, time=2.0), *seen(9)]
    given = [Before(), Fixed()]
    store = folder / "store"
    assert in_store(first or given, log, store, steady(2)) == "end of input"
    Spool(store).put(command)
    assert in_store(tasks, log, store, steady(2)) == "end of input"
    more = [*log, record]
    got, want = stored(tasks, store), meant(tasks, more)
    broken = meant(first or given, log)
    # The letters of the first run were written by the broken task.
    assert engine_runs.difference(broken, got, stops=False) is not None or got.position == len(log)
    assert got.position == len(more)
    assert engine_runs.exactly(got.streams["main"][-1], want.streams["main"][-1])
    assert got.now == want.now


def test_rule_10_a_retry_enters_at_the_task_that_failed_and_time_does_not_move(folder) -> None:
    event = Seen(cid=7, time=2.0, score=0.5)
    mended = [Before(), Fixed(broken=False)]
    _retried(folder, mended, Command("retry", 1), Retry(1, "Fixed", event))
    left = stored(mended, folder / "store")
    assert left.streams["main"][-1].parts[:2] == (9.0, 3)
    assert left.state == {"Before": {"total": 3}, "Fixed": {"total": 5}}


def test_rule_10_a_mended_event_is_retried_with_its_new_fields(folder) -> None:
    event = Seen(cid=8, time=2.0, score=4.0)
    tasks = [Before(), Fixed()]
    _retried(folder, tasks, Command("retry", 1, {"cid": 8, "score": 4}), Retry(1, "Fixed", event))
    assert stored(tasks, folder / "store").streams["main"][-1].parts[3] == 4.0


def test_rule_10_a_retry_whose_task_has_gone_enters_at_the_beginning(folder) -> None:
    event = Seen(cid=7, time=2.0, score=0.0)
    tasks = [Before(), Fixed(broken=False).options(name="Mended")]
    store = folder / "store"
    log = [*seen(1), Seen(cid=7, time=2.0), *seen(9)]
    in_store([Before(), Fixed()], log, store, steady(2))
    Spool(store).put(Command("retry", 0))
    assert in_store(tasks, log, store, steady(2), drop=["Fixed"]) == "end of input"
    left = stored(tasks, store)
    assert left.position == 4
    assert left.state["Before"] == {"total": 4}
    assert [e.parts[1:2] + e.parts[3:] for e in left.streams["main"][-2:]] == [
        (3, 0.0),
        (3, event.score + 0.5),
    ]


def test_rule_10_a_retry_that_fails_again_is_a_new_letter_and_one_that_stops_does_not_stay(folder) -> None:
    log = [Seen(cid=7, time=2.0)]
    store = folder / "store"
    in_store([Fixed()], log, store, steady(2))
    Spool(store).put(Command("retry", 0))
    in_store([Fixed()], log, store, steady(2))
    assert [(x.position, x.task) for x in stored([Fixed()], store).letters] == [(0, "Fixed"), (1, "Fixed")]
    Spool(store).put(Command("retry", 1))
    stops = [Fixed().options(on_error="stop")]
    assert "position 2" in in_store(stops, log, store, steady(2))
    assert in_store(stops, log, store, steady(2)) == "end of input"


# ---------------------------------------------------------------- limits of a run


def test_a_run_takes_at_most_limit_records_and_the_next_goes_on(folder) -> None:
    log = every_second(10)
    app = engine_runs.App("limited", source=Scripted(log), tasks=[Buffer()])
    first = app.run(store=folder / "store", limit=4)
    assert (first.ended, first.events_in, first.position) == ("limit", 4, 4)
    second = app.run(store=folder / "store")
    assert (second.ended, second.events_in, second.position) == ("end of input", 6, 10)
    assert app.run(store=folder / "store").nothing_new
    fresh = app.run(store=folder / "store", fresh=True)
    assert (fresh.events_in, fresh.position, fresh.outputs_total["main"]) == (10, 10, 9)


class NeedsState(Task[Seen]):
    total = value(int, 0)
    what: int = 0
    cells = table(int, int)
    pages = output()

    def setup(self):
        if self.what == 0:
            self.total = 5
        elif self.what == 1:
            self.cells[1] = 1
        elif self.what == 2:
            self.pages.emit(Found())
        else:
            self.what = 7

    def handle(self, event):
        return event


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (0, "sees no state"),
        (1, "sees no state"),
        (2, "emits nothing"),
        (3, "is a setting and stays as it is"),
    ],
)
def test_setup_sees_no_state_and_changes_no_setting(what, reason) -> None:
    with pytest.raises(TaskFault, match=reason):
        engine_runs.App("case", source=Scripted([]), tasks=[NeedsState(what=what)]).run(store=None)
    with pytest.raises(TaskFault, match=reason):
        meant([NeedsState(what=what)], [])


def test_events_of_other_types_pass_by_untouched(agree) -> None:
    log = [*seen(1), Found(what=1), untyped({"n": 1}), Part(name="x"), *seen(2)]
    found = agree([Fragile(), DropAll()], log)
    assert [type(e) for e in found.streams["main"]] == [Seen, Seen, Found, UntypedEvent, Part, Seen, Seen]
    assert found.tallies["Fragile"].events == 2
