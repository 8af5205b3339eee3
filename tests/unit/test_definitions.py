"""What a user may write: classes that cannot work are refused when they are defined, naming the way out."""

from __future__ import annotations

import collections
import copy
import datetime
import functools
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NewType

import msgspec
import numpy as np
import pytest

from secondpass import ALL, App, Event, Task, UntypedEvent, output, table, value
from secondpass.calls import keys_of
from secondpass.connectors import Csv, JsonLines, Ordered
from secondpass.errors import DefinitionError, SettingsError, TaskFault
from secondpass.event import owned, untyped


class Seen(Event):
    cid: int
    time: float


# ---------------------------------------------------------------- task classes


def own_init() -> Any:
    class Bad(Task):
        def __init__(self):
            pass


def mutable(found: Any) -> Callable[[], Any]:
    return lambda: type("Bad", (Task,), {"memory": found, "handle": lambda self, event: event})


def mutable_setting() -> Any:
    class Bad(Task):
        names: list[str]


def mutable_constant() -> Any:
    class Bad(Task):
        names: ClassVar[dict[str, int]] = {}


def async_handle() -> Any:
    class Bad(Task):
        async def handle(self, event):
            pass


def async_generator() -> Any:
    class Bad(Task):
        async def handle(self, event):
            yield event


def annotated_table() -> Any:
    class Bad(Task):
        seen: dict[int, int] = table(int, int)


def no_event_type() -> Any:
    class Bad(Task[int]):
        pass


def batch_with_state() -> Any:
    class Bad(Task):
        seen = table(int, int)

        def handle_batch(self, events):
            return events


def batch_with_output() -> Any:
    class Bad(Task):
        pages = output()

        def handle_batch(self, events):
            return events


@pytest.mark.parametrize(
    ("define", "way_out"),
    [
        (
            own_init,
            r"Bad defines __init__: settings are annotated attributes .* resources belong in setup\(\)",
        ),
        (mutable({}), r"Bad\.memory is a mutable dict .*; for memory write `memory = table\(K, V\)`"),
        (mutable([]), r"Bad\.memory is a mutable list"),
        (mutable(set()), r"Bad\.memory is a mutable set"),
        (mutable(collections.defaultdict(int)), r"Bad\.memory is a mutable defaultdict"),
        (mutable(collections.deque()), r"Bad\.memory is a mutable deque"),
        (mutable_setting, r"Bad\.names: a setting is immutable, and list\[str\] is not; use tuple\["),
        (mutable_constant, r"Bad\.names is a mutable dict"),
        (async_handle, r"Bad\.handle is async; .* write a plain function"),
        (async_generator, r"Bad\.handle is async"),
        (annotated_table, r"Bad\.seen: declared state carries no annotation; remove it"),
        (no_event_type, r"is no event type; subclass secondpass\.Event"),
        (batch_with_state, r"Bad has state, so it handles one event at a time: write handle"),
        (batch_with_output, r"Bad.*(output|emit)"),
        (lambda: table(int, int, default=0, factory=int), r"give default= or factory=, not both"),
        (lambda: table(int, float, default=0), r"0 is an int, the declared type is float; write 0\.0"),
        (lambda: table(int, int, ttl_s=0), r"0 is not a positive number of seconds"),
        (lambda: value(float, 1), r"1 is an int, the declared type is float; write 1\.0"),
        (lambda: table(int | float, int), r"1, 1\.0 and True are one key in Python"),
        (lambda: table(tuple[int | float, str], int), r"1, 1\.0 and True are one key in Python"),
        (lambda: table(tuple, int), r"say what a key holds"),
        (lambda: table(frozenset[int], int), r"use a sorted tuple"),
        (lambda: table(int, object()), r"cannot be stored"),
    ],
)
def test_a_class_that_cannot_work_is_refused_naming_the_way_out(define: Any, way_out: str) -> None:
    with pytest.raises(DefinitionError, match=way_out):
        define()


def test_time_to_live_names_a_setting_that_holds_seconds() -> None:
    class Fading(Task):
        window_s: float = 3.0
        seen = table(int, int, ttl_s="window_s")

    class Nameless(Task):
        seen = table(int, int, ttl_s="window_s")

    assert Fading(window_s=5)._shape.tables["seen"].ttl_of(Fading(window_s=5)) == 5.0
    for make in (lambda: Fading(window_s=-1.0), Nameless):
        with pytest.raises(
            DefinitionError, match="must name a setting that holds a positive number of seconds"
        ):
            make()


def test_apps_that_cannot_work_are_refused_naming_the_way_out() -> None:
    class One(Task):
        pages = output()

        def handle(self, event):
            return event

    def one(event: Any) -> Any:
        return event

    with pytest.raises(
        DefinitionError, match=r"two tasks are called 'One'; name one of them: .*options\(name="
    ):
        App("app", source=[], tasks=[One(), One()])
    with pytest.raises(DefinitionError, match=r"pass an object, One\(\)"):
        App("app", source=[], tasks=[One])
    for given, way_out in ((One(), r"\[One\(\)\]"), (One, r"\[One\(\)\]"), (one, r"\[one\]")):
        with pytest.raises(DefinitionError, match="tasks: give a list, " + way_out):
            App("app", source=[], tasks=given)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match=r"no task has an output of that name; .* pages"):
        App("app", source=[], tasks=[One()], sinks={"page": print})
    with pytest.raises(DefinitionError, match="a name is letters"):
        App("a/b", source=[], tasks=[])


# ---------------------------------------------------------------- settings and options


class Plain(Task[Seen]):
    window_s: float = 300.0
    names: tuple[str, ...] = ()
    known: frozenset[int] = frozenset()
    limits: Mapping[str, int]


def test_many_outputs_may_go_to_what_is_no_file() -> None:
    class Tells(Task):
        calls = output()

        def handle(self, event):
            return event

    App(
        "a",
        source=[],
        tasks=[Tells()],
        sink=JsonLines("/dev/null"),
        sinks={"calls": JsonLines("/dev/null")},
    )


def test_no_output_goes_to_a_file_that_the_app_reads_or_that_another_goes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tells(Task):
        calls = output()

        def handle(self, event):
            return event

    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").touch()
    (tmp_path / "linked.jsonl").symlink_to("in.jsonl")
    read = JsonLines("in.jsonl")
    for source, same in (
        (read, "in.jsonl"),
        (read, "linked.jsonl"),
        (Ordered(read, lateness_s=1.0), f"{tmp_path}/in.jsonl"),
    ):
        with pytest.raises(
            DefinitionError, match=f"{same} is what the app reads and where its output main goes"
        ):
            App("a", source=source, sink=JsonLines(same))
    with pytest.raises(
        DefinitionError, match=r"main and calls both go to \./x\.csv: give each a file of its own"
    ):
        App("a", source=read, tasks=[Tells()], sink=JsonLines("x.csv"), sinks={"calls": Csv("./x.csv")})
    both = JsonLines("-")
    App("a", source=both, tasks=[Tells()], sink=both, sinks={"calls": both})


def test_settings_are_converted_immutable_and_keyword_only() -> None:
    task = Plain(window_s=600, names=["a", "b"], known={1}, limits={"a": 1})
    assert (task.window_s, type(task.window_s)) == (600.0, float)
    assert (task.names, task.known) == (("a", "b"), frozenset({1}))
    with pytest.raises(TypeError, match="read-only"):
        task.limits["a"] = 2  # type: ignore[index]
    with pytest.raises(
        TaskFault, match=r"Plain\.window_s is a setting and stays as it is; for memory declare"
    ):
        task.window_s = 1.0
    with pytest.raises(TypeError):
        Plain(600.0)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"limits": {}, "window": 1.0}, "Plain has no setting 'window'; its settings: window_s, names"),
        ({"limits": {}, "window_s": "long"}, r"Plain\(window_s='long'\): Expected `float`, got `str`"),
        ({"limits": {}, "window_s": True}, r"Expected `float`, got `bool`"),
        ({}, r"Plain needs the setting limits: Plain\(limits=\.\.\.\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        Plain(**given)


def test_options_make_a_twin_and_leave_the_task_as_it_is() -> None:
    task = Plain(limits={})
    twin = task.options(name="twin", on_error="stop")
    assert (task.name, twin.name, twin.window_s) == ("Plain", "twin", 300.0)
    assert (task._options.on_error, twin._options.on_error) == ("dead_letter", "stop")
    with pytest.raises(SettingsError, match="write 'dead_letter', 'stop' or 'pass'"):
        task.options(on_error="ignore")  # type: ignore[arg-type]


def test_tasks_pickle_and_copy_with_their_settings_and_without_their_state() -> None:
    class_ = Remember
    task = class_(window_s=5.0).options(name="twin")
    task.handle(Seen(cid=1, time=1.0))
    for twin in (pickle.loads(pickle.dumps(task)), copy.copy(task)):
        assert (twin.name, twin.window_s, dict(twin.seen)) == ("twin", 5.0, {})


class Remember(Task[Seen]):
    window_s: float = 300.0
    seen = table(int, float, ttl_s="window_s")
    rows = table(int, list[float], factory=list)
    total = value(int, 0)
    pages = output(Seen)

    def setup(self):
        self.resource = "made"

    def handle(self, event):
        self.total += 1
        self.rows[event.cid].append(event.time)
        self.seen[event.cid] = event.time
        if event.cid < 0:
            raise ValueError(self.resource)
        self.pages.emit(event)
        return event


def test_a_task_works_alone_with_its_setup_state_and_time() -> None:
    task = Remember()
    assert task.handle(Seen(cid=1, time=5.0)) == Seen(cid=1, time=5.0)
    assert (task.seen, task.rows, task.total, task.now) == ({1: 5.0}, {1: [5.0]}, 1, 5.0)
    with pytest.raises(ValueError, match="made"):
        task.handle(Seen(cid=-1, time=6.0))
    assert (task.seen, task.total) == ({1: 5.0}, 1)
    task.handle(Seen(cid=2, time=305.0))
    assert task.seen == {2: 305.0}
    assert Remember().seen == {}


def test_a_task_that_serves_an_app_is_left_as_it_is() -> None:
    task = Remember()
    App("alone", source=[Seen(cid=1, time=1.0)], tasks=[task]).run(store=None)
    assert (task.total, dict(task.seen)) == (0, {})


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("found", ["ab", b"ab", Seen(cid=1, time=1.0), {"a": 1}, 5, None])
def test_keys_that_are_no_iterable_of_keys_are_refused(found: Any) -> None:
    class Keyed(Task[Seen]):
        def keys(self, event):
            return found

    with pytest.raises(TaskFault, match="it returns an iterable of cell keys"):
        keys_of(Keyed(), Seen(cid=1, time=1.0))


def test_keys_may_be_any_iterable_or_all() -> None:
    class Keyed(Task[Seen]):
        def keys(self, event) -> Iterator[int]:
            yield from (event.cid, event.cid + 1)

    class Everything(Task[Seen]):
        def keys(self, event):
            return ALL

    event = Seen(cid=1, time=1.0)
    assert keys_of(Keyed(), event) == frozenset({1, 2})
    assert keys_of(Everything(), event) is None
    assert keys_of(Remember(), event) is None


# ---------------------------------------------------------------- events


@pytest.mark.parametrize(
    ("tp", "instead"),
    [
        (list[int], r"use tuple\["),
        (dict[str, int], r"use Mapping\[K, V\]"),
        (set[int], r"use frozenset\[T\]"),
        (bytearray, "use bytes"),
        (collections.deque[int], r"use tuple\[T"),
        (tuple[list[int], ...], r"use tuple\["),
        (Mapping[str, list[int]], r"use tuple\["),
        (list[int] | None, r"use tuple\["),
    ],
)
def test_a_mutable_field_is_refused_with_the_type_to_use_instead(tp: Any, instead: str) -> None:
    with pytest.raises(DefinitionError, match=rf"Bad\.field: an event is immutable, .* {instead}"):
        type(Event)("Bad", (Event,), {"__annotations__": {"field": tp}, "__module__": __name__})


class Inner(msgspec.Struct, frozen=True):
    tags: Mapping[str, Any]
    at: datetime.datetime | None = None


class Full(Event):
    time: datetime.datetime
    tags: Mapping[str, Any] = {}
    grid: np.ndarray | None = None
    inner: Inner | None = None
    times: tuple[datetime.datetime, ...] = ()
    by_name: Mapping[str, datetime.datetime] = {}
    anything: Any = None


EAST = datetime.timezone(datetime.timedelta(hours=8))
NOON = datetime.datetime(2026, 1, 1, 20, tzinfo=EAST)


def test_an_event_is_immutable_all_the_way_down_and_keeps_its_times_in_utc() -> None:
    shared: dict[str, Any] = {"a": [1, {"b": {2}}]}
    array = np.zeros(2)
    event = Full(
        time=NOON,
        tags=shared,
        grid=array,
        inner=Inner(tags=shared, at=NOON),
        times=(NOON,),
        by_name={"x": NOON},
        anything=shared,
    )
    shared["a"].append("later")
    array += 1
    assert event.tags == {"a": (1, {"b": frozenset({2})})} == event.anything
    assert event.inner is not None
    assert event.inner.tags == event.tags
    assert event.grid is not None
    assert event.grid.tolist() == [0.0, 0.0]
    for at in (event.time, event.times[0], event.by_name["x"], event.inner.at):
        assert at is not None
        assert (at.tzinfo, at.hour) == (datetime.UTC, 12)
    for change in (
        lambda: setattr(event, "tags", {}),
        lambda: event.tags.update(a=1),  # type: ignore[attr-defined]
        lambda: event.tags.pop("a"),  # type: ignore[attr-defined]
        lambda: event.tags["a"][1].clear(),
        lambda: event.inner.tags.__setitem__("b", 1),  # type: ignore[attr-defined,union-attr]
        lambda: event.by_name.clear(),  # type: ignore[attr-defined]
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()
    with pytest.raises(ValueError, match="read-only"):
        event.grid[0] = 1


@pytest.mark.parametrize(
    "fields",
    [
        {"time": datetime.datetime(2026, 1, 1)},  # noqa: DTZ001
        {"time": NOON, "times": (datetime.datetime(2026, 1, 1),)},  # noqa: DTZ001
        {"time": NOON, "by_name": {"x": datetime.datetime(2026, 1, 1)}},  # noqa: DTZ001
    ],
)
def test_a_datetime_without_a_zone_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no time zone; events hold aware datetimes"):
        Full(**fields)


def test_an_event_read_or_replaced_is_as_immutable_as_a_new_one() -> None:
    line = b'{"time": "2026-01-01T20:00:00+08:00", "tags": {"a": [1]}, "inner": {"tags": {"x": []}}}'
    read = msgspec.json.decode(line, type=Full)
    assert read == owned(read) == Full(time=NOON, tags={"a": [1]}, inner=Inner(tags={"x": []}))
    replaced = read.replace(tags={"b": [2]}, time=NOON)
    assert replaced.tags == {"b": (2,)}
    with pytest.raises(TypeError, match="read-only"):
        replaced.tags["b"] = 1  # type: ignore[index]
    assert read.tags == {"a": (1,)}


class Checked(Event):
    at: datetime.datetime
    low: int

    def __post_init__(self):
        if self.low < 0:
            raise ValueError("low")


class MoreChecked(Checked):
    tags: Mapping[str, int] = {}


class MostChecked(MoreChecked):
    high: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.high < self.low:
            raise ValueError("high")


def test_an_events_own_checks_hold_for_its_subclasses_too() -> None:
    made = MostChecked(at=NOON, low=1, high=2, tags={"a": 1})
    assert made.at.tzinfo is datetime.UTC
    with pytest.raises(TypeError):
        made.tags["a"] = 2  # type: ignore[index]
    for make in (lambda: Checked(at=NOON, low=-1), lambda: MoreChecked(at=NOON, low=-1)):
        with pytest.raises(ValueError, match="low"):
            make()
    with pytest.raises(ValueError, match="high"):
        MostChecked(at=NOON, low=1, high=0)


def test_an_event_becomes_another_with_the_fields_of_the_same_name() -> None:
    class Scored(Event):
        cid: int
        score: float
        note: str = "none"

    assert Seen(cid=1, time=2.0).to(Scored, score=0.5) == Scored(cid=1, score=0.5)
    with pytest.raises(TypeError, match="score"):
        Seen(cid=1, time=2.0).to(Scored)


def test_a_foreign_name_of_a_field_is_used_in_the_input_only() -> None:
    class Alarm(Event, rename={"time": "start_timestamp"}):
        time: float

    read = msgspec.json.decode(b'{"start_timestamp": 3}', type=Alarm)
    assert read.time == 3.0
    assert msgspec.json.encode(read) == b'{"start_timestamp":3.0}'


class Car(Event, tag="car"):
    plate: str


class Bike(Event, tag="bike"):
    bell: bool


def test_a_stream_of_several_kinds_is_a_union_of_tagged_types(tmp_path: Any) -> None:
    from secondpass.connectors import JsonLines

    class Plates(Task[Car]):
        def handle(self, event):
            return event.replace(plate=event.plate.upper())

    class Both(Task[Car | Bike]):
        total = value(int, 0)

        def handle(self, event):
            self.total += 1
            return event

    (tmp_path / "in.jsonl").write_text(
        '{"type":"car","plate":"a"}\n{"type":"bike","bell":true}\n{"type":"bus"}\n'
    )
    passed: list[Any] = []
    source = JsonLines(tmp_path / "in.jsonl", Car | Bike)
    app = App("kinds", source=source, tasks=[Plates(), Both()], sink=passed.append)
    summary = app.run(store=None)
    assert passed == [Car(plate="A"), Bike(bell=True)]
    assert (summary.tasks["Plates"].events, summary.tasks["Both"].events, summary.dead_letters) == (1, 2, 1)


def test_two_values_on_one_line_are_one_dead_letter(tmp_path: Any) -> None:
    from secondpass.connectors import JsonLines

    (tmp_path / "in.jsonl").write_text(
        '{"cid":1,"time":1}\n{"cid":2,"time":2}{"cid":3,"time":3}\n{"cid":4,"time":4}\n'
    )
    passed: list[Any] = []
    summary = App("lines", source=JsonLines(tmp_path / "in.jsonl", Seen), sink=passed.append).run(store=None)
    assert [e.cid for e in passed] == [1, 4]
    assert (summary.events_in, summary.dead_letters) == (3, 1)


# ---------------------------------------------------------------- untyped events


def test_an_untyped_event_is_a_read_only_mapping_with_replace() -> None:
    event = untyped({"cid": 1, "tags": ["a", {"b": [1]}]})
    assert event == {"cid": 1, "tags": ("a", {"b": (1,)})}
    changed = event.replace(cid=2, more=[1])
    assert (changed["cid"], changed["more"], event["cid"]) == (2, (1,), 1)
    for change in (
        lambda: event.update(a=1),
        lambda: event.__setitem__("a", 1),
        lambda: event["tags"][1].clear(),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    assert type(changed) is UntypedEvent


class Pages(Task):
    counts = table(str, int, default=0)
    pages = output(dict)
    kind: int = 0

    def handle(self, event):
        self.counts[event["who"]] += 1
        self.pages.emit({"counts": self.counts})
        if self.kind == 0:
            return self.counts
        return {"deep": {"counts": self.counts}}


@pytest.mark.parametrize("kind", [0, 1])
def test_a_table_in_an_untyped_event_is_the_mapping_that_it_is(agree: Any, kind: int) -> None:
    found = agree([Pages(kind=kind)], [untyped({"who": who}) for who in "abca"])
    last = {"a": 2, "b": 1, "c": 1}
    assert found.streams["pages"][-1] == {"counts": last}
    assert found.streams["main"][-1] == (last if kind == 0 else {"deep": {"counts": last}})


@pytest.mark.parametrize("tp", [str, bool, datetime.date, tuple[float, float], str | None])
def test_a_time_that_is_no_time_is_refused_before_anything_runs(tp: Any) -> None:
    odd = type(Event)("Odd", (Event,), {"__annotations__": {"time": tp}, "__module__": __name__})
    event = (
        msgspec.convert({"time": {bool: True, datetime.date: "2026-01-01"}.get(tp, "1")}, odd)
        if tp != tuple[float, float]
        else odd((1.0, 2.0))
    )
    with pytest.raises(
        DefinitionError,
        match=r"Odd\.time is a .*: an event's time is seconds \(a float\) or an aware datetime",
    ):
        App("odd", source=[event]).run(store=None)


Seconds = NewType("Seconds", float)


@pytest.mark.parametrize(
    "tp", [float, int, Seconds, float | None, Annotated[float, msgspec.Meta(ge=0)], datetime.datetime | float]
)
def test_a_time_is_seconds_or_a_datetime_under_any_name(tp: Any) -> None:
    event = type(Event)("Good", (Event,), {"__annotations__": {"time": tp}, "__module__": __name__})(time=5)
    now: list[float] = []

    class Now(Task):
        def handle(self, event):
            now.append(self.now)

    App("good", source=[event], tasks=[Now()]).run(store=None)
    assert set(now) == {5.0}


Camera = NewType("Camera", int)


class ByCamera(Task[Seen]):
    last = table(Camera, Seconds)
    pairs = table(tuple[Camera, str], list[Seconds], factory=list)

    def handle(self, event):
        self.last[Camera(event.cid)] = Seconds(event.time)
        self.pairs[Camera(event.cid), "a"].append(Seconds(event.time))
        return event


def test_a_new_type_is_the_type_that_it_stands_for(agree: Any) -> None:
    assert table(Camera, Seconds).value.scalar  # type: ignore[attr-defined]
    found = agree([ByCamera()], [Seen(cid=1, time=1.0), Seen(cid=2, time=2.0)]).state["ByCamera"]
    assert found == {"last": {1: 1.0, 2: 2.0}, "pairs": {(1, "a"): [1.0], (2, "a"): [2.0]}}
    with pytest.raises(DefinitionError, match="1 is an int"):
        table(Camera, Seconds, default=1)


def _misspelt() -> Any:
    class Misspelt(Task[Seen]):
        def handel(self, event):
            return event

    return Misspelt()


def _no_self() -> Any:
    class NoSelf(Task[Seen]):
        def handle(event):  # noqa: N805
            return event

    return NoSelf()


def _one_more() -> Any:
    class OneMore(Task[Seen]):
        def handle(self, event, extra):
            return event

    return OneMore()


def _by_name() -> Any:
    class ByName(Task[Seen]):
        def handle_batch(self, events, *, how):
            return events

    return ByName()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            _misspelt,
            r"Misspelt has neither handle nor handle_batch \(is handel a misspelling\?\): write `def handle",
        ),
        (_no_self, r"NoSelf\.handle is called with one event: write \(self, event\)"),
        (_one_more, r"OneMore\.handle is called with one event"),
        (_by_name, r"ByName\.handle_batch is called with a list"),
        (lambda: lambda: None, r"<lambda> is called with one event: write \(event\)"),
        (lambda: lambda event, extra: event, r"<lambda> is called with one event"),
    ],
)
def test_what_cannot_be_called_with_an_event_is_refused_at_once(make: Any, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        App("a", source=[], tasks=[make()])


def test_what_can_be_called_with_an_event_is_a_task_whatever_else_it_takes() -> None:
    class More(Task[Seen]):
        def handle(self, event, extra=None, *others, by_name=0, **rest):
            return event

    class Wrapped(Task[Seen]):
        @functools.wraps(More.handle)
        def handle(self, *given):
            return given[0]

    App("a", source=[], tasks=[More(), Wrapped(), lambda event, extra=1: event, functools.partial(max, 1)])
