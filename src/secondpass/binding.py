"""From a task that a user made to one that can be called: a copy for an engine, or memory of its own.

Invariant: an instance that a user made is never run by an engine, which runs a bound copy of it (`bind`), so one
task object can serve several runs and still be called by hand.
"""

from __future__ import annotations

import copy
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from secondpass.calls import call_of, expand
from secondpass.due import begin_schedules, first_due, take_due
from secondpass.event import Event, ReadOnlyDict, time_reader
from secondpass.state import MISSING, CallValues, Moment, Output, Table
from secondpass.timers import Timing

if TYPE_CHECKING:
    from secondpass.lookups import Contents
    from secondpass.task import Task

T = typing.TypeVar("T", bound="Task[Any]")


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


def look_into(task: T, contents: Mapping[str, Contents[Any, Any]]) -> T:
    """The same task, whose lookups hold this: the same objects, which the run changes between two records."""
    known = type(task)._shape.lookups
    if not known:
        return task
    twin = copy.copy(task)
    attach(twin, _lookups={name: contents[name] for name in known if name in contents})
    stand_alone(twin)
    return twin


def stand_alone(task: Task[Any]) -> None:
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


def _keep_all(parts: list[Any]) -> None:
    for part in parts:
        part.check()
    for part in parts:
        part.keep()
