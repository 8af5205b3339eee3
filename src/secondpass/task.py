"""Tasks: Python objects with settings, declared state and `handle`."""

from __future__ import annotations

import copy
import operator
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, dataclass_transform

import msgspec

from secondpass import codec
from secondpass.binding import attach, look_into, stand_alone
from secondpass.definition import Shape, define, is_async, takes
from secondpass.errors import DefinitionError, SettingsError, TaskFault
from secondpass.event import ReadOnlyDict, check_event_type, event_types, freeze
from secondpass.lookups import Contents, contents_of

if TYPE_CHECKING:
    from logging import Logger
    from random import Random

    from secondpass.state import CallValues, Moment, Table
    from secondpass.timers import Timing

if TYPE_CHECKING:
    from typing_extensions import TypeIs, TypeVar

    E = TypeVar("E", default=Any)  # a bare `Task` handles all events
else:
    E = typing.TypeVar("E")


class Options(msgspec.Struct, frozen=True):
    """How a task is run, set by `task.options(...)`; never what it computes."""

    name: str = ""
    on_error: Literal["dead_letter", "stop", "pass"] = "dead_letter"
    place: Literal["auto", "inline", "workers"] = "auto"
    limit_s: float | None = None
    copies: int | None = None


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
        define(cls, Task)

    def __init__(self, **settings: Any) -> None:
        set_attribute = object.__setattr__
        set_attribute(self, "_options", Options(name=type(self).__name__))
        for name, value in _settings(type(self), settings).items():
            set_attribute(self, name, value)
        stand_alone(self)

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
        stand_alone(twin)
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
        """Add to a counter of this task that is committed with the state: a whole number of less than 2**48."""
        if name.__class__ is not str or n.__class__ is not int or not -COUNT_MAX < n < COUNT_MAX:
            name, n = _counted(self, name, n)
        elif not name.isascii():
            name.encode()  # a lone surrogate is refused, as in an event
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
            outputs = f"; its outputs: {', '.join(shape.outputs)}" if shape.outputs else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{outputs}")

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_options", "_event_type", *type(self)._shape.settings)
        return {k: v for k, v in self.__dict__.items() if k in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        stand_alone(self)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={getattr(self, k)!r}" for k in type(self)._shape.settings)
        return f"{type(self).__name__}({inner})"


COUNT_MAX = 1 << 48
"""So that the sum over all events has its 64 bits."""


def _counted(task: Task[Any], name: Any, n: Any) -> tuple[str, int]:
    """The plain name and number that are meant, of a subclass of them or from numpy."""
    try:
        number = operator.index(n)
    except TypeError:
        number = None
    if not isinstance(name, str) or number is None:
        raise TaskFault(
            f"{task.name}: count({name!r}, {n!r}): a counter has a name, and a whole number is added to it"
        )
    if not -COUNT_MAX < number < COUNT_MAX:
        raise ValueError(f"count({name!r}, {n}): the number added is less than 2**48")
    plain = str.__str__(name)
    plain.encode()
    return plain, number


class FunctionTask(Task[Any]):
    """A plain function as a task without state; `App` makes it."""

    function: Callable[[Any], Any]

    def handle(self, event: Any) -> Any:
        return self.function(event)


def is_task_class(found: Any) -> TypeIs[type[Task[Any]]]:
    """Whether this is a task class."""
    return isinstance(found, type) and issubclass(found, Task)


def from_function(function: Callable[[Any], Any]) -> FunctionTask:
    """The task that a plain function is; it handles the events its first parameter is annotated with."""
    if is_async(function):
        raise DefinitionError(f"{function.__name__} is async; write a plain function")
    bound = 0 if getattr(function, "__self__", None) is None else 1
    if not takes(function, 1 + bound):
        raise DefinitionError(f"{function.__name__} is called with one event: write (event)")
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


# ---------------------------------------------------------------- settings


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
