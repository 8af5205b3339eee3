"""Timers and schedules: calls of a task that a moment of the stream's time brings about, not an event.

Invariants:

- What is pending is state: a table under the timer's name, key -> time. So a call that is undone undoes the timers that
  it set, and nothing else has to be kept, carried or recovered for them.
- A timer fires once: it is gone from the table before its method is called, and does not come back when that fails.
- A schedule (`@every`) is a timer without a key whose next time takes the place of the one that fires.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import math
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol

from secondpass import codec
from secondpass.amounts import seconds_of
from secondpass.errors import DefinitionError, InternalError, TaskFault
from secondpass.event import LATEST_TIME_S
from secondpass.state import MISSING, Moment, TableSpec

if TYPE_CHECKING:
    from typing import Concatenate, ParamSpec

    P = ParamSpec("P")
else:
    P = typing.ParamSpec("P")

PAST_MAX = 10_000
"""So many timers the timers of one task may set for a time that has come, at one position: more would never end."""


_EARLIEST = -math.inf


class Timing:
    """Which of a task's calls is running, as far as its timers ask."""

    __slots__ = ("firing", "past")

    def __init__(self) -> None:
        self.firing = False
        self.past = 0
        """Timers that this position's timers have set for a time that had come."""


class Times(Protocol):
    """Where a timer keeps what is pending: a table, in any of its forms."""

    def get(self, key: Any, default: Any = None, /) -> Any: ...
    def pop(self, key: Any, default: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: float, /) -> None: ...


class Timer(Generic[P]):
    """A declared timer of a task, one pending time for each key: see `timer`."""

    __slots__ = ("_keyed", "_moment", "_set", "_spec", "_timing", "times")

    def __init__(
        self,
        spec: TimerSpec,
        times: Times,
        moment: Any,
        timing: Timing,
        on_set: Callable[[float, Any, float | None], None] | None = None,
    ) -> None:
        self._spec = spec
        self._keyed = spec.keyed
        self.times = times
        self._moment: Moment = moment
        self._timing = timing
        self._set = on_set

    def at(self, time: float, /, *key: P.args, **named: P.kwargs) -> None:
        """Let it fire when the stream's time reaches `time`, in seconds; what was pending for this key moves.

        For a time that has come it fires once the record at hand has gone through the chain. Raises `ValueError` for
        a time that cannot be.
        """
        at = time if time.__class__ is float else self._spec.checked(time)
        if not _EARLIEST < at <= LATEST_TIME_S:
            raise ValueError(f"{self._spec.label}.at: {self._spec.refuse(at)}")
        if self._timing.firing and at <= self._moment.now:
            self._timing.past += 1
            if self._timing.past > PAST_MAX:
                raise TaskFault(
                    f"{self._spec.label}.at: the timers of this task set {PAST_MAX} timers for times that had come, all "
                    f"at one position; that would never end: set them for a time after self.now"
                )
        found = key[0] if self._keyed and len(key) == 1 and not named else self._spec.key_of(key, named)
        at += 0.0  # one zero, not two
        if self._set is None:
            self.times[found] = at
            return
        before = self.times.get(found)
        self.times[found] = at
        self._set(at, found, before)

    def cancel(self, *key: P.args, **named: P.kwargs) -> None:
        """Let it not fire; nothing happens where nothing is pending."""
        self.times.pop(self._spec.key_of(key, named), None)

    def pending(self, *key: P.args, **named: P.kwargs) -> float | None:
        """When it will fire; None where nothing is pending."""
        return self.times.get(self._spec.key_of(key, named))

    def __repr__(self) -> str:
        return f"<timer {self._spec.label}>"


class Schedule:
    """A declared schedule of a task: see `every`."""

    __slots__ = ("_spec", "times")

    def __init__(self, spec: EverySpec, times: Times) -> None:
        self._spec = spec
        self.times = times

    def pending(self) -> float | None:
        """When it will be called next; None before the stream has a time."""
        return self.times.get(None)

    def __repr__(self) -> str:
        return f"<schedule {self._spec.label}>"


# ---------------------------------------------------------------- declarations


class PendingSpec(TableSpec):
    """The declaration of the table of what is pending."""

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kind": "timer"}


class TimerSpec:
    """The declaration `@timer def name(self, key): ...`."""

    repeats = False
    """Whether it is set again, by a schedule, when it fires."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.name = ""
        self.owner = ""
        self._parameter: str | None = None
        self.table: PendingSpec
        self.compares: bool
        """Whether its keys have an order of their own, all of them; else that of their encoding counts."""
        self.order: Callable[[Any], Any]

    @property
    def label(self) -> str:
        return f"{self.owner}.{self.name}"

    @property
    def keyed(self) -> bool:
        """Whether its method takes a key."""
        return self._parameter is not None

    def claim(self, name: str, owner: str) -> None:
        """Take the name and the key that the class declares; raises `DefinitionError` where it cannot be one."""
        self.name, self.owner = name, owner
        parameters = list(inspect.signature(self.method).parameters.values())[1:]
        self._refuse(parameters)
        tp: Any = None
        for parameter in parameters:
            self._parameter = parameter.name
            tp = self._hints().get(parameter.name, MISSING)
            if tp is MISSING:
                raise DefinitionError(
                    f"{self.label}: say what its key is: def {name}(self, {parameter.name}: int)"
                )
        self.table = PendingSpec(tp, float, MISSING, None, None)
        self.table.name, self.table.owner = name, owner
        self.compares = _compares(tp)
        self.order = _itself if self.compares else codec.pack

    def _refuse(self, parameters: list[inspect.Parameter]) -> None:
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if len(parameters) > 1 or any(p.kind is not plain or p.default is not p.empty for p in parameters):
            raise DefinitionError(
                f"{self.label}: a timer's method takes its key, or nothing: def {self.name}(self, cid: int). Two parts "
                f"of a key are a tuple: key: tuple[int, str]"
            )
        if inspect.iscoroutinefunction(self.method) or inspect.isasyncgenfunction(self.method):
            raise DefinitionError(f"{self.label} is async; write a plain function")

    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.method, include_extras=True)
        except NameError as error:
            raise DefinitionError(f"{self.label}: an annotation names something unknown: {error}") from None

    def checked(self, time: Any) -> float:
        """A time that is no float as one; raises `TaskFault` where it cannot be."""
        if isinstance(time, (int, float)) and not isinstance(time, bool):
            return float(time)
        raise TaskFault(
            f"{self.label}.at: {time!r} is no time; write seconds, like self.now + 60.0"
            f"{', or time.timestamp()' if isinstance(time, datetime.datetime) else ''}"
        )

    @staticmethod
    def refuse(time: float) -> str:
        """Why a timer cannot be set for a time."""
        if math.isfinite(time):
            return f"{time!r} is beyond {LATEST_TIME_S:g} seconds: it looks like milliseconds"
        return f"{time!r} is no time: write a finite number of seconds"

    def key_of(self, key: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The key that a call means."""
        if len(key) == 1 and not named and self.keyed:
            return key[0]
        if self._parameter is None:
            if not key and not named:
                return None
        elif not key and list(named) == [self._parameter]:
            return named[self._parameter]
        wants = f"one key ({self._parameter})" if self._parameter is not None else "no key"
        raise TaskFault(f"{self.label}: it takes {wants}, as its method does")

    def wake(self, key: Any) -> Any:
        """The key that a dead letter tells of."""
        return self.table.key.decode(codec.pack(key))

    def call(self, task: Any, key: Any) -> Any:
        """Call the method for a key."""
        return self.method(task) if self._parameter is None else self.method(task, key)

    def after(self, time: float) -> float:
        """When a schedule has its next moment."""
        raise InternalError(f"{self.label} has no schedule; asked for what comes after {time}")

    def live(self, times: Times, moment: Any, timing: Timing, on_set: Any = None) -> Any:
        """What the task sees."""
        return Timer[Any](self, times, moment, timing, on_set)

    def __repr__(self) -> str:
        return f"<timer {self.label}>"


class EverySpec(TimerSpec):
    """The declaration `@every(when) def name(self): ...`."""

    repeats = True

    def __init__(self, method: Callable[..., Any], when: float | str, tz: str) -> None:
        super().__init__(method)
        self.when = when
        self.tz = tz
        self._next: Callable[[float], float] = _steps(when) if _is_span(when) else _cron(str(when), tz)

    def _refuse(self, parameters: list[inspect.Parameter]) -> None:
        super()._refuse(parameters)
        if parameters:
            raise DefinitionError(f"{self.label}: what @every calls takes no key: def {self.name}(self)")

    def after(self, time: float) -> float:
        """The first moment of the schedule after another."""
        return self._next(time)

    def live(self, times: Times, moment: Any, timing: Timing, on_set: Any = None) -> Any:  # noqa: ARG002 - as a timer's
        return Schedule(self, times)


def _itself(key: Any) -> Any:
    return key


_COMPARE = (int, float, str, bytes, bool, type(None), datetime.date)


def _compares(tp: Any) -> bool:
    """Whether keys of a type have an order of their own, all of them."""
    tp = codec.plain(tp)
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    if origin is tuple:
        return all(_compares(a) for a in args if a is not Ellipsis)
    return tp in _COMPARE or tp is None


# ---------------------------------------------------------------- schedules

_EARLIEST_S = -62_000_000_000.0
"""The year 5: before it, calendars are not asked."""


def _is_span(when: float | str) -> bool:
    return not isinstance(when, str) or len(when.split()) == 1


def _steps(when: float | str) -> Callable[[float], float]:
    """A moment every so many seconds after the first time of the stream."""
    span = seconds_of(when) if isinstance(when, str) else None if isinstance(when, bool) else float(when)
    if span is None or not 0.001 <= span <= 1e9:
        raise DefinitionError(
            f"every({when!r}): write seconds (60.0), a span ('10s', '5m', '1h', '1d') or a cron line ('0 0 * * *')"
        )
    return lambda time: time + span


def _cron(line: str, tz: str) -> Callable[[float], float]:
    """The moments of a cron line in a time zone."""
    import zoneinfo  # only tasks with a schedule need them

    from cronsim import CronSim, CronSimError

    try:
        zone: datetime.tzinfo = datetime.UTC if tz == "UTC" else zoneinfo.ZoneInfo(tz)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise DefinitionError(
            f"every({line!r}, tz={tz!r}): no such time zone here; write one like 'Europe/Berlin' (where the system has "
            f"none at all: pip install tzdata)"
        ) from None

    @functools.lru_cache(maxsize=16)
    def after(time: float) -> float:
        moment = datetime.datetime.fromtimestamp(max(time, _EARLIEST_S) // 1, zone)
        moments = (found.timestamp() for found in CronSim(line, moment))
        # In a doubled hour cronsim begins again with the first of the two.
        return next(found for found in moments if found > time)

    try:
        if len(line.split()) != 5:
            raise CronSimError("a cron line has five fields")
        after(0.0)
    except (CronSimError, StopIteration) as error:
        raise DefinitionError(
            f"every({line!r}): no cron line that ever comes ({error}); write minute, hour, day, month and weekday, like "
            f"'0 7 * * MON-FRI'"
        ) from None
    return after


# ---------------------------------------------------------------- what a user writes


def timer(method: Callable[Concatenate[Any, P], Any]) -> Timer[P]:
    """Declare a timer of a task: its method is called when the stream's time has come.

    >>> from secondpass import Event, Task, timer
    >>> from secondpass.testing import run
    >>> class Seen(Event):
    ...     cid: int
    ...     time: float
    >>> class Silent(Event):
    ...     cid: int
    ...     time: float
    >>> class Watch(Task[Seen]):
    ...     '''Report a camera that says nothing for a minute.'''
    ...     def handle(self, event: Seen) -> None:
    ...         self.silent.at(event.time + 60.0, event.cid)
    ...     @timer
    ...     def silent(self, cid: int) -> Silent:
    ...         return Silent(cid=cid, time=self.now)
    >>> run(Watch(), [Seen(cid=7, time=0.0), Seen(cid=7, time=50.0), 200.0]).outputs
    [Silent(cid=7, time=110.0)]

    The annotation of the method's parameter is the type of the timer's key; without a parameter there is one timer.
    `self.silent.at(time, cid)` sets it, one for each key, and moves it where it is set; `.cancel(cid)` takes it
    back, `.pending(cid)` tells its time or None. What the method returns goes on through the chain, as from `handle`.
    Raises `DefinitionError` for a method that cannot be one.
    """
    return typing.cast("Timer[P]", TimerSpec(method))


def every(when: float | str, *, tz: str = "UTC") -> Callable[[Callable[[Any], Any]], Schedule]:
    """Declare a method that is called again and again, by the stream's time.

    >>> from secondpass import Event, Task, every, value
    >>> from secondpass.testing import run
    >>> class Seen(Event):
    ...     time: float
    >>> class Report(Event):
    ...     time: float
    ...     count: int
    >>> class Count(Task[Seen]):
    ...     seen = value(int, 0)
    ...     def handle(self, event: Seen) -> None:
    ...         self.seen += 1
    ...     @every("10s")
    ...     def report(self) -> Report:
    ...         return Report(time=self.now, count=self.seen)
    >>> run(Count(), [Seen(time=3.0), Seen(time=14.0), 25.0]).outputs
    [Report(time=13.0, count=1), Report(time=23.0, count=2)]

    `when` is a number of seconds, a span (`"10s"`, `"5m"`, `"1h"`, `"1d"`), counted from the first time that the stream
    has while the task runs, or a cron line (minute, hour, day, month, weekday) in the time zone `tz`. Where the stream
    jumps ahead, each moment in between is made up for, in order, at its own time. Raises `DefinitionError` for what
    is none of them.
    """

    def declare(method: Callable[[Any], Any]) -> Schedule:
        return typing.cast("Schedule", EverySpec(method, when, tz))

    return declare


__all__ = ["Schedule", "Timer", "every", "timer"]
