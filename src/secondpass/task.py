"""Tasks: Python objects with settings, declared state and `handle`.

Invariants: a class that could keep state in an undeclared place is refused when it is defined; an
instance that a user made is never run by an engine, which runs a bound copy of it (`bind`), so one task
object can serve several runs and still be called by hand.
"""

from __future__ import annotations

import collections
import copy
import functools
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, dataclass_transform

import msgspec

from secondpass import codec
from secondpass.errors import DefinitionError, SettingsError, TaskFault
from secondpass.event import Event, ReadOnlyDict, check_event_type, event_types, freeze, time_reader
from secondpass.lookups import Contents, LookupSpec, contents_of
from secondpass.state import MISSING, CallValues, Moment, Output, OutputSpec, Table, TableSpec, ValueSpec, own
from secondpass.timers import Pending, TimerSpec, Timing

if TYPE_CHECKING:
    from logging import Logger
    from random import Random

if TYPE_CHECKING:
    from typing_extensions import TypeIs, TypeVar

    E = TypeVar("E", default=Any)  # a bare `Task` handles all events
else:
    E = typing.TypeVar("E")

T = typing.TypeVar("T", bound="Task[Any]")
_DECLARED = (TableSpec, ValueSpec, OutputSpec, TimerSpec, LookupSpec)
_COROUTINE, _ASYNC_GENERATOR = 0x80, 0x200  # CO_COROUTINE and CO_ASYNC_GENERATOR of `inspect`
_MUTABLE = (list, dict, set, bytearray, collections.deque)


AGAIN = "__again"
"""Ends, with a number, the name of a module that was loaded another time while the app runs."""


class _All:
    """The type of `ALL`."""

    def __repr__(self) -> str:
        return "ALL"

    def __reduce__(self) -> str:
        return "ALL"


ALL: Any = _All()
"""What `keys` returns for an event that may touch every cell: nothing else runs beside it."""


class Options(msgspec.Struct, frozen=True):
    """How a task is run, set by `task.options(...)`; never what it computes."""

    name: str = ""
    on_error: Literal["dead_letter", "stop", "pass"] = "dead_letter"
    place: Literal["auto", "inline", "workers"] = "auto"
    limit_s: float | None = None
    copies: int | None = None


class Shape:
    """What a task class declares, collected once when the class is defined."""

    def __init__(self, cls: type[Any]) -> None:
        self.settings: dict[str, Any] = {}
        self.tables: dict[str, TableSpec] = {}
        self.values: dict[str, ValueSpec[Any]] = {}
        self.outputs: dict[str, OutputSpec] = {}
        self.timers: dict[str, TimerSpec] = {}
        """What is pending of each is in the table of the same name."""
        self.lookups: dict[str, LookupSpec] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited = base.__dict__.get("_shape")
            if isinstance(inherited, Shape):
                for part in ("settings", "tables", "values", "outputs", "timers", "lookups"):
                    getattr(self, part).update(getattr(inherited, part))

    @property
    def stateful(self) -> bool:
        return bool(self.tables or self.values)

    def state(self) -> dict[str, dict[str, Any]]:
        """The description of all state, as the store keeps it."""
        return {n: s.describe() for n, s in (*self.tables.items(), *self.values.items())}


@dataclass_transform(kw_only_default=True)
class Task(Generic[E]):
    """One step of a chain: subclass it, declare settings and state, and write `handle`.

    >>> from secondpass import Event, Task, table
    >>> class Seen(Event):
    ...     cid: int
    ...     time: float
    >>> class First(Task[Seen]):
    ...     '''Pass a camera's first event only.'''
    ...     known = table(int, bool)
    ...     def handle(self, event: Seen) -> Seen | None:
    ...         if event.cid in self.known:
    ...             return None
    ...         self.known[event.cid] = True
    ...         return event
    >>> task = First()
    >>> [task.handle(Seen(cid=1, time=t)) is not None for t in (1.0, 2.0)]
    [True, False]

    `Task[Detection]` handles events of that type, others pass by untouched; a bare `Task` handles all.
    `handle` returns None to drop, an event to pass on, a list of events, or is a generator. Settings are
    annotated attributes with immutable values; state is declared with `table`, `value` and `output`.
    Raises `DefinitionError` at class definition for an own `__init__`, mutable attributes and async code.
    """

    _shape: ClassVar[Shape]
    _event_type: ClassVar[Any] = None
    _options: Options
    _lookups: Mapping[str, Contents[Any, Any]] = ReadOnlyDict()
    """By name: what the lookups hold, in a run or where somebody said it."""
    if TYPE_CHECKING:
        _moment: Moment
        _values: CallValues
        _tables: dict[str, Table[Any, Any]]
        _timing: Timing

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _define(cls)

    def __init__(self, **settings: Any) -> None:
        set_attribute = object.__setattr__
        set_attribute(self, "_options", Options(name=type(self).__name__))
        for name, value in _settings(type(self), settings).items():
            set_attribute(self, name, value)
        _stand_alone(self)

    def handle(self, event: E, /) -> Any:  # noqa: ARG002  # the one of a subclass uses it
        """Handle one event: None drops it, an event passes, a list or a generator emits several."""
        raise TypeError(f"{type(self).__name__} defines neither handle nor handle_batch")

    def setup(self) -> None:
        """Make resources that are no state (a model, a connection); called once per process."""

    def options(
        self,
        *,
        name: str | None = None,
        on_error: Literal["dead_letter", "stop", "pass"] | None = None,
        place: Literal["auto", "inline", "workers"] | None = None,
        limit_s: float | None = None,
        copies: int | None = None,
    ) -> Self:
        """The same task, run in another way; none of it changes what the task computes.

        `on_error` says what becomes of an event whose call raises: it is set aside (`"dead_letter"`), the
        app stops before it (`"stop"`), or it goes on as if this task were not there (`"pass"`).

        `place` says where it runs: `"inline"` in the hub, on `"workers"`, or wherever it costs less (`"auto"`).
        `limit_s` bounds the seconds of one event: an event that takes longer, four times, is set aside. `copies`
        is the number of processes that may have this task, where its resources are scarce (one GPU: 1). A task
        with either runs on workers.
        """
        given = {
            "name": name,
            "on_error": on_error,
            "place": place,
            "limit_s": limit_s,
            "copies": copies,
        }
        changes = {k: v for k, v in given.items() if v is not None}
        if on_error is not None and on_error not in ("dead_letter", "stop", "pass"):
            raise SettingsError(f"options(on_error={on_error!r}): write 'dead_letter', 'stop' or 'pass'")
        if name == "":
            raise SettingsError("options(name=''): a task needs a name")
        if place is not None and place not in ("auto", "inline", "workers"):
            raise SettingsError(f"options(place={place!r}): write 'auto', 'inline' or 'workers'")
        if limit_s is not None and (type(limit_s) not in (int, float) or not limit_s > 0):
            raise SettingsError(f"options(limit_s={limit_s!r}): write a positive number of seconds")
        if copies is not None and (type(copies) is not int or copies < 1):
            raise SettingsError(f"options(copies={copies!r}): write a number of processes, 1 or more")
        options = msgspec.structs.replace(self._options, **changes)
        if options.place == "inline" and (options.limit_s or options.copies):
            what = "limit_s" if options.limit_s else "copies"
            raise SettingsError(f"options(place='inline', {what}=...): {what} needs a process of its own")
        twin = copy.copy(self)
        attach(twin, _options=options, _lookups=self._lookups)
        _stand_alone(twin)
        return twin

    def with_lookups(self, **contents: Mapping[Any, Any]) -> Self:
        """The same task with what its lookups hold, for a task that is called by hand; in an app the run loads them.

        >>> from secondpass import Task, lookup
        >>> class Named(Task):
        ...     names = lookup(int, str)
        ...     def handle(self, event):
        ...         return {**event, "name": self.names[event["cid"]]}
        >>> Named().with_lookups(names={7: "south"}).handle({"cid": 7})
        {'cid': 7, 'name': 'south'}

        Raises `SettingsError` for a name that the task does not declare, `InputError` for what is not of its types.
        """
        known = type(self)._shape.lookups
        for name in contents:
            if name not in known:
                raise SettingsError(
                    f"{type(self).__name__} has no lookup {name!r}; its lookups: {', '.join(known) or 'none'}"
                )
        return look_into(self, contents_of([self], contents))

    # What a call may ask for.

    @property
    def name(self) -> str:
        """The task's name in the chain: its class's, unless `.options(name=)` gave another."""
        return self._options.name

    @property
    def now(self) -> float:
        """The stream's time in seconds: the largest event time up to this position."""
        return self._moment.now

    @property
    def position(self) -> int:
        """The place of this event in the log."""
        return self._moment.position

    @property
    def random(self) -> Random:
        """A random generator that gives the same numbers whenever this event is handled again."""
        from random import Random  # seldom needed, and half a millisecond of everybody's start

        moment = self._moment
        seed = f"{self._options.name}|{moment.position}|{'.'.join(map(str, moment.path))}"
        if moment.drawing is None or moment.drawing[0] != seed:
            moment.drawing = (seed, Random(seed))
        return moment.drawing[1]

    @property
    def log(self) -> Logger:
        """A logger whose lines appear once, when the epoch is committed, however often it was run."""
        from secondpass.tasklog import TaskLogger  # logging is loaded for the tasks that log

        return TaskLogger(self)

    def advance(self, to: float) -> list[Any]:
        """Let time pass for a task that is called by hand: its due timers fire; gives what they put out.

        >>> from secondpass import Task, timer
        >>> class Watch(Task):
        ...     def handle(self, event):
        ...         self.silent.at(event["time"] + 60.0, event["cid"])
        ...     @timer
        ...     def silent(self, cid: int):
        ...         return {"cid": cid}
        >>> task = Watch()
        >>> task.handle({"cid": 7, "time": 0.0})
        >>> task.silent.pending(7), task.advance(59.9), task.advance(60.0)
        (60.0, [], [{'cid': 7}])
        """
        raise TaskFault(
            f"{type(self).__name__}.advance({to!r}): time comes from the stream; advance is for tests"
        )

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter of this task that is committed with the state."""
        self._moment.count(name, n)

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        shape = cls._shape
        if name in shape.values or (
            self.__dict__.get("_setting_up")
            and not (
                name in shape.tables
                or name in shape.outputs
                or name in shape.settings
                or name in shape.lookups
            )
        ):
            object.__setattr__(self, name, value)
            return
        if name in cls._shape.timers:
            raise TaskFault(f"{cls.__name__}.{name} is a timer; set it with .at(time)")
        if name in cls._shape.lookups:
            raise TaskFault(
                f"{cls.__name__}.{name} is a lookup, which the run loads; for memory declare another name"
            )
        if name in cls._shape.tables or name in cls._shape.outputs:
            raise TaskFault(f"{cls.__name__}.{name} is declared state; change its cells, or call .clear()")
        if name in cls._shape.settings:
            raise TaskFault(
                f"{cls.__name__}.{name} is a setting and stays as it is; for memory declare {name} = value(...)"
            )
        raise TaskFault(
            f"{cls.__name__}.{name} is not declared: write `{name} = value(type, default)` or "
            f"`{name} = table(K, V)` in the class for memory, or assign resources in setup()"
        )

    if not TYPE_CHECKING:  # a type checker would take every attribute for known

        def __getattr__(self, name: str) -> Any:
            shape = type(self)._shape
            if name in shape.lookups:
                raise TaskFault(
                    f"{type(self).__name__}.{name} holds nothing yet: give it with App(lookups={{{name!r}: ...}}), or "
                    f"by hand with .with_lookups({name}=...)"
                )
            if name == "_values" or name in shape.tables or name in shape.outputs:
                raise TaskFault(
                    f"{type(self).__name__}.setup: it makes resources and runs once per process, so it sees no state "
                    f"and emits nothing; do that in handle"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_options", "_event_type", *type(self)._shape.settings)
        return {k: v for k, v in self.__dict__.items() if k in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        _stand_alone(self)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={getattr(self, k)!r}" for k in type(self)._shape.settings)
        return f"{type(self).__name__}({inner})"


# ---------------------------------------------------------------- definition


def _define(cls: type[Task[Any]]) -> None:
    shape = Shape(cls)
    namespace = dict(cls.__dict__)
    for forbidden in ("__init__", "__new__", "__setattr__", "__getattribute__", "__getattr__"):
        if forbidden in namespace and cls.__module__ != __name__:
            raise DefinitionError(
                f"{cls.__name__} defines {forbidden}: settings are annotated attributes "
                f"(`window_s: float = 300.0`), state is `table(...)` and `value(...)`, resources belong in setup()"
            )
    annotations = _annotations(cls)
    for name in (*annotations, *(n for n, f in namespace.items() if isinstance(f, _DECLARED))):
        if name in vars(Task) and not name.startswith("_"):
            raise DefinitionError(
                f"{cls.__name__}.{name}: every task has {name!r} already; choose another name"
            )
    for name, found in namespace.items():
        if isinstance(found, _DECLARED):
            if name in annotations:
                raise DefinitionError(
                    f"{cls.__name__}.{name}: declared state carries no annotation; remove it"
                )
            _claim(cls, shape, name, found)
        elif name in shape.timers:
            raise DefinitionError(
                f"{cls.__name__}.{name} is a timer in a class above; put @timer before it here too"
            )
        elif issubclass(type(found), _MUTABLE) and not name.startswith("__"):
            raise DefinitionError(
                f"{cls.__name__}.{name} is a mutable {type(found).__name__} that would be lost in a crash and "
                f"shared between runs; for memory write `{name} = table(K, V)`, for a setting use an immutable type"
            )
    for name, tp in annotations.items():
        if typing.get_origin(tp) is ClassVar or tp is ClassVar or name in ("_shape", "_options"):
            continue
        if cls.__module__ != __name__:  # FunctionTask's only setting is code
            mutable = codec.mutable_part(tp)
            if mutable is not None:
                part, instead = mutable
                raise DefinitionError(
                    f"{cls.__name__}.{name}: a setting is immutable, and {codec.describe(part)} is not; use "
                    f"{instead}, or table(...) if it is memory"
                )
        shape.settings[name] = tp
    for name in ("handle", "handle_batch", "setup"):
        function = namespace.get(name)
        if _is_async(function):
            raise DefinitionError(
                f"{cls.__name__}.{name} is async; analysis is CPU-bound here: write a plain function, and do "
                f"waiting in a source or a sink"
            )
    if "handle_batch" in namespace and shape.outputs:
        raise DefinitionError(
            f"{cls.__name__}.handle_batch cannot say which event a named output belongs to: write handle, or return "
            f"the events and let a second task emit them"
        )
    if "handle_batch" in namespace and (shape.tables or shape.values):
        raise DefinitionError(f"{cls.__name__} has state, so it handles one event at a time: write handle")
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        if isinstance(origin, type) and issubclass(origin, Task):
            (cls._event_type,) = typing.get_args(base) or (None,)
    event_types(cls._event_type)
    cls._shape = shape


def is_task_class(found: Any) -> TypeIs[type[Task[Any]]]:
    """Whether this is a task class."""
    return isinstance(found, type) and issubclass(found, Task)


def _is_async(function: Any) -> bool:
    """Whether this is an `async def`, told from its code so that nothing has to be imported."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return bool(flags & (_COROUTINE | _ASYNC_GENERATOR))


def _annotations(cls: type) -> dict[str, Any]:
    own: dict[str, Any] = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - inspect costs 9 ms to import
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise DefinitionError(f"{cls.__name__}: an annotation names something unknown: {error}") from None
    return {name: hints.get(name, tp) for name, tp in own.items()}


def _claim(cls: type[Task[Any]], shape: Shape, name: str, spec: Any) -> None:
    if isinstance(spec, TimerSpec):
        spec.claim(name, cls.__name__)
        shape.timers[name], shape.tables[name] = spec, spec.table
        setattr(cls, name, spec.method)  # for super(); a task's own attribute comes before it
        return
    if isinstance(spec, LookupSpec):
        spec.claim(name, cls.__name__)
        shape.lookups[name] = spec
        delattr(cls, name)
        return
    spec.name, spec.owner = name, cls.__name__
    shape.timers.pop(name, None)
    if isinstance(spec, TableSpec):
        shape.tables[name] = spec
    elif isinstance(spec, OutputSpec):
        shape.outputs[name] = spec
    else:
        shape.values[name] = spec
        return  # a value stays on the class: it is a descriptor
    # Off the class, so that the instance attribute is found in one step.
    delattr(cls, name)


def _settings(cls: type[Task[Any]], given: dict[str, Any]) -> dict[str, Any]:
    known = cls._shape.settings
    unknown = sorted(set(given) - set(known))
    if unknown:
        have = ", ".join(known) or "none"
        raise SettingsError(f"{cls.__name__} has no setting {unknown[0]!r}; its settings: {have}")
    found: dict[str, Any] = {}
    for name, tp in known.items():
        if name in given:
            value = given[name]
        elif hasattr(cls, name):
            value = getattr(cls, name)
        else:
            raise SettingsError(f"{cls.__name__} needs the setting {name}: {cls.__name__}({name}=...)")
        if cls is FunctionTask:
            found[name] = value
            continue
        try:
            found[name] = freeze(msgspec.convert(value, tp, dec_hook=_keep, builtin_types=_BUILTIN))
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            raise SettingsError(f"{cls.__name__}({name}={value!r}): {error}") from None
    return found


_BUILTIN = (bytes, bytearray, *codec._OTHER_IMMUTABLES[:4])  # pyright: ignore[reportPrivateUsage]


def _keep(tp: Any, value: Any) -> Any:
    """Settings of types that msgspec does not know stay as they are when they are of that type."""
    origin = typing.get_origin(tp) or tp
    if isinstance(origin, type) and isinstance(value, origin):
        return value
    raise ValueError(f"{value!r} is not a {codec.describe(tp)}")


class FunctionTask(Task[Any]):
    """A plain function as a task without state; `App` makes it."""

    function: Callable[[Any], Any]

    def handle(self, event: Any) -> Any:
        return self.function(event)


# ---------------------------------------------------------------- binding


def bind(task: Task[Any], moment: Moment) -> Task[Any]:
    """A copy of a task for an engine, set up: same settings and options, state still to be attached."""
    cls = type(task)
    bound: Task[Any] = object.__new__(cls)
    attach(bound, _options=task._options, _moment=moment)
    attach(bound, **{name: getattr(task, name) for name in cls._shape.settings})
    attach(bound, **task._lookups)
    set_up(bound)
    attach(bound, **{name: Output[Any](spec, moment.emit) for name, spec in cls._shape.outputs.items()})
    return bound


def attach(task: Task[Any], **attributes: Any) -> None:
    """Set attributes past the guard that keeps users from doing so."""
    for name, found in attributes.items():
        object.__setattr__(task, name, found)


def look_into(task: T, contents: Mapping[str, Contents[Any, Any]]) -> T:
    """The same task, whose lookups hold this: the same objects, which the run changes between two records."""
    known = type(task)._shape.lookups
    if not known:
        return task
    twin = copy.copy(task)
    attach(twin, _lookups={name: contents[name] for name in known if name in contents})
    _stand_alone(twin)
    return twin


def set_up(task: Task[Any]) -> None:
    """Run a task's `setup()`, which alone may assign attributes."""
    attach(task, _setting_up=True)
    try:
        type(task).setup(task)
    finally:
        attach(task, _setting_up=False)


def attach_state(
    task: Task[Any],
    tables: Mapping[str, Any],
    moment: Any,
    timing: Timing,
    on_set: Mapping[str, Callable[[float, Any, float | None], None]] | None = None,
) -> None:
    """Give a task its tables, and the timers whose pending times are in some of them."""
    timers = type(task)._shape.timers
    attach(
        task,
        **{
            n: t if n not in timers else timers[n].live(t, moment, timing, on_set and on_set[n])
            for n, t in tables.items()
        },
    )


def _stand_alone(task: Task[Any]) -> None:
    """Give a task that a user made its own memory, so that it works when called by hand."""
    moment = Moment()
    shape = type(task)._shape
    tables = {n: Table[Any, Any](s, {}, moment, s.ttl_of(task)) for n, s in shape.tables.items()}
    attach(
        task,
        _moment=moment,
        _values=CallValues(shape.values, {}),
        _tables=tables,
        _timing=Timing(),
        handle=functools.partial(_handle_by_hand, task),
        advance=functools.partial(_advance_by_hand, task),
        setup=functools.partial(set_up, task),
        **{n: Output[Any](s, moment.emit) for n, s in shape.outputs.items()},
        **task._lookups,
    )
    attach_state(task, tables, moment, task._timing)


def _handle_by_hand(task: Task[Any], event: Any) -> Any:
    moment = task._moment
    time = time_reader(type(event))(event) if isinstance(event, (Event, ReadOnlyDict)) else None
    if time is not None:
        moment.now = max(moment.now, time)
        begin_schedules(type(task)._shape.timers, task._tables, moment.now)
    moment.position += 1
    return _call_by_hand(task, lambda: call_of(task)(event))


def _advance_by_hand(task: Task[Any], to: float) -> list[Any]:
    moment, timers, timing = task._moment, type(task)._shape.timers, task._timing
    until = max(moment.now, float(to))
    timing.past = 0
    _keep_all([*task._tables.values(), task._values])
    begin_schedules(timers, task._tables, until)
    found: list[Any] = []
    while due := first_due(timers, task._tables, 0, until):
        moment.now = max(moment.now, due.time)
        take_due(timers[due.name], task._tables[due.name], due)
        timing.firing = True
        try:
            fired = _call_by_hand(task, functools.partial(timers[due.name].call, task, due.key))
        finally:
            timing.firing = False
        found += expand(fired, MISSING, task.name, due.name)[0]
    moment.now = until
    return found


def _call_by_hand(task: Task[Any], call: Callable[[], Any]) -> Any:
    moment = task._moment
    if "_setting_up" not in task.__dict__:
        set_up(task)
    parts = [*task._tables.values(), task._values]
    _keep_all(parts)  # what a test arranged by hand before this call
    moment.begin()
    try:
        result = call()
        if isinstance(result, types.GeneratorType):
            result = list(typing.cast("Iterable[Any]", result))
        _keep_all(parts)
    except BaseException:
        for part in parts:
            part.undo()
        raise
    return result


# ---------------------------------------------------------------- what is due


def begin_schedules(timers: Mapping[str, TimerSpec], tables: Mapping[str, Any], now: float) -> None:
    """Let the schedules that have no next moment yet count from now."""
    for name, spec in timers.items():
        if spec.repeats and tables[name].get(None) is None:
            tables[name][None] = spec.after(now)


def first_due(
    timers: Mapping[str, TimerSpec], tables: Mapping[str, Any], depth: int, until: float
) -> Pending | None:
    """The first of a task's timers that are due at a time; None where none is."""
    due = [
        Pending(time, depth, name, spec.order(key), key)
        for name, spec in timers.items()
        for key in tables[name]
        if (time := tables[name].get(key)) <= until
    ]
    return min(due, key=_before_key, default=None)


def _before_key(due: Pending) -> tuple[Any, ...]:
    return due[:4]


def take_due(spec: TimerSpec, table: Any, due: Pending) -> None:
    """A timer is about to fire: it is gone, or, of a schedule, set for its next moment."""
    if spec.repeats:
        table[due.key] = spec.after(due.time)
    else:
        del table[due.key]


def _keep_all(parts: list[Any]) -> None:
    for part in parts:
        part.check()
    for part in parts:
        part.keep()


def call_of(task: Task[Any]) -> Callable[[Any], Any]:
    """The function that handles one event: `handle`, or `handle_batch` with a batch of one."""
    cls = type(task)
    batch = getattr(cls, "handle_batch", None)
    if batch is None:
        return types.MethodType(cls.handle, task)

    def handle_one(event: Any) -> Any:
        (result,) = batch_results(task, [event])
        return result

    return handle_one


def batch_results(task: Task[Any], events: list[Any]) -> list[Any]:
    """What `handle_batch` returns: one result per event."""
    # A list of its own: the task may sort it or take from it.
    results: Any = typing.cast("Any", type(task)).handle_batch(task, list(events))
    if results.__class__ is not list or len(results) != len(events):
        raise TaskFault(
            f"{task.name}.handle_batch returns a list with one result per event ({len(events)} here), "
            f"not {results.__class__.__name__}"
        )
    return results


# ---------------------------------------------------------------- what handle returned


def expand(result: Any, given: Any, name: str, method: str = "handle") -> tuple[list[Any], bool]:
    """The events that a call put out, and whether they form a branch (a list or a generator).

    Raises `TaskFault` with advice for everything that is no event; what a generator raises passes through.
    """
    if result is None:
        return [], False
    if isinstance(result, types.GeneratorType):
        return [_new(r, given, name, method) for r in typing.cast("Iterable[Any]", result)], True
    if type(result) is list:
        return [_new(r, given, name, method) for r in typing.cast("list[Any]", result)], True
    return [_new(result, given, name, method)], False


def _new(result: Any, given: Any, name: str, method: str) -> Any:
    if result is given:
        return result
    if isinstance(result, (Event, dict, Mapping)):
        return own(result, f"{name}.{method}")
    got = f"{type(result).__name__} {str(result)[:80]!r}"
    if isinstance(result, bool):
        advice = "return the event itself to pass it on, and None to drop it"
    elif isinstance(result, types.CoroutineType):
        result.close()
        advice = f"{method} must be a plain function, not async"
    elif isinstance(result, (tuple, set, frozenset)):
        advice = "return a list to emit several events"
    elif result is None:
        advice = "a list holds events only; leave None out"
    else:
        advice = "return the event, another event, a list of events, or None"
    raise TaskFault(f"{name}.{method} returned {got}: {advice}")


def keys_of(task: Task[Any], event: Any) -> frozenset[Any] | None:
    """The keys that a task declares for an event; None for all of them.

    What `keys` itself raises is no answer, so the event may touch all: then `handle` decides what becomes of it,
    as where nobody asks for keys. Raises `TaskFault` for what is no iterable of keys.
    """
    declare = getattr(type(task), "keys", None)
    if declare is None:
        return None
    try:
        found = declare(task, event)
        if found is ALL:
            return None
        if isinstance(found, types.GeneratorType):
            found = tuple(typing.cast("Iterable[Any]", found))
    except (TaskFault, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - user code, and as with handle it stops nothing else
        _warn_of_keys(task, error)
        return None
    if found.__class__ is not tuple and (
        issubclass(found.__class__, (str, bytes, Event, Mapping)) or not isinstance(found, Iterable)
    ):
        raise TaskFault(
            f"{task.name}.keys returned {found!r}: it returns an iterable of cell keys (a tuple like `({found!r},)`)"
            f" or ALL"
        )
    keys = typing.cast("Iterable[Hashable]", found)
    try:
        return frozenset(keys)
    except TypeError as error:
        raise TaskFault(f"{task.name}.keys returned {found!r}, which are no keys: {error}") from None


def _warn_of_keys(task: Task[Any], error: BaseException) -> None:
    """Say once for each task that its keys() fails: such events wait for all others."""
    from logging import getLogger  # only where something is wrong

    if task.name not in _warned:
        _warned.add(task.name)
        getLogger("secondpass").warning(
            "%s.keys raised %s: %s; such an event may touch all cells, so nothing runs beside it",
            task.name,
            type(error).__name__,
            error,
        )


_warned: set[str] = set()


# ---------------------------------------------------------------- descriptions


def code_of(task: Task[Any]) -> Any:
    """The class, or the function, that says what a task does."""
    return task.function if isinstance(task, FunctionTask) else type(task)


def what_it_does(code: types.CodeType) -> tuple[Any, ...]:
    """What tells one piece of code from another, wherever it stands in its file."""
    consts = [
        what_it_does(c) if isinstance(c, types.CodeType) else (type(c).__name__, repr(c))
        for c in code.co_consts
    ]
    return (code.co_code, code.co_names, code.co_varnames, tuple(consts))


def source_has_changed(code: Any) -> bool:
    """Whether the source of a task's code is another one now than when it was described first."""
    return _source_hash.__wrapped__(code) != _source_hash(code)


def code_hash(task: Task[Any]) -> str:
    """A fingerprint of the task's source, to tell a changed file from an unchanged one."""
    target = code_of(task)
    try:
        return _source_hash(target)
    except TypeError:  # a callable object without a hash
        return _source_hash.__wrapped__(target)


@functools.lru_cache(maxsize=1024)  # finding a class's source parses its whole file
def _source_hash(target: Any) -> str:
    from hashlib import blake2b  # both only at the start of a run
    from inspect import getsource

    try:
        text = getsource(target)
    except (OSError, TypeError):
        text = repr(sorted(target.__dict__))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _as_stored(value: Any) -> Any:
    """A setting as plain data, sets in a fixed order: theirs must not look like a change."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(_as_stored, typing.cast("Iterable[Any]", value)), key=codec.pack)
    if isinstance(value, (list, tuple)):
        return list(map(_as_stored, typing.cast("Iterable[Any]", value)))
    if isinstance(value, Mapping):
        found = typing.cast("Mapping[Any, Any]", value)
        return {codec.unpack(codec.pack(k)): _as_stored(v) for k, v in found.items()}
    return codec.unpack(codec.pack(value))


def describe(task: Task[Any]) -> dict[str, Any]:
    """All that the store keeps about a task to compare it at the next start."""
    target = code_of(task)
    settings = (
        {k: getattr(task, k) for k in type(task)._shape.settings} if type(task) is not FunctionTask else {}
    )
    lookups = {n: s.describe() for n, s in type(task)._shape.lookups.items()}
    return {
        "name": task.name,
        "class": target.__qualname__,
        "module": target.__module__.partition(AGAIN)[0],
        "code": code_hash(task),
        "settings": {k: _as_stored(v) for k, v in settings.items()},
        "state": type(task)._shape.state(),
        # Not part of the comparison: a reader of the store needs it to know what has expired.
        "ttl_s": {n: s.ttl_of(task) for n, s in type(task)._shape.tables.items() if s.ttl_s is not None},
        "on_error": task._options.on_error,
        "options": msgspec.to_builtins(task._options),
        **({"lookups": lookups} if lookups else {}),
    }


def with_settings(task: Task[Any], changes: Mapping[str, Any]) -> Task[Any]:
    """The same task with some settings changed, given plainly or not; raises `SettingsError` for what does not fit."""
    if isinstance(task, FunctionTask):
        raise SettingsError(f"{task.name} is a function, which has no settings")
    given = {name: getattr(task, name) for name in type(task)._shape.settings}
    return with_options(type(task)(**{**given, **from_plain(type(task), changes)}), task._options)


def from_plain(cls: type[Task[Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a command or a store tells them: there a date, a time span and bytes are text."""
    known, found = cls._shape.settings, dict(settings)
    for name, value in settings.items():
        if name in known:
            try:
                msgspec.convert(value, known[name], dec_hook=_keep, builtin_types=_BUILTIN)
            except (msgspec.ValidationError, TypeError, ValueError):
                try:
                    found[name] = msgspec.convert(value, known[name])
                except (msgspec.ValidationError, TypeError, ValueError):
                    pass  # whoever makes the task says what is wrong
    return found


def with_options(task: Task[Any], options: Options) -> Task[Any]:
    """The same task, run as the options say."""
    attach(task, _options=options)
    return task


def from_function(function: Callable[[Any], Any]) -> FunctionTask:
    """The task that a plain function is; it handles the events its first parameter is annotated with."""
    if _is_async(function):
        raise DefinitionError(f"{function.__name__} is async; write a plain function")
    task = FunctionTask(function=function).options(name=getattr(function, "__name__", "function"))
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    hints.pop("return", None)
    declared = next(iter(hints.values()), None)
    try:
        event_types(declared)
    except DefinitionError:
        declared = None
    attach(task, _event_type=declared)
    return task


def accepts(task: Task[Any]) -> tuple[type, ...]:
    """The event classes that a task handles; empty for all."""
    types_ = event_types(task._event_type)
    for tp in types_:
        check_event_type(tp)
    return types_
