"""Tasks under test: the plain loop of `reference.py` in one line.

What `run` gives is what the app means: no store, no processes, no clock. Keys and types are enforced at
every call, so a test finds what an engine would report later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from secondpass import reference
from secondpass.app import App, as_task
from secondpass.errors import InputError, SettingsError, TaskFault
from secondpass.event import Event, UntypedEvent, owned
from secondpass.lookups import specs_of
from secondpass.record import INTAKE, NEW_TASK, Change, DeadLetter, Tick, refuse_time
from secondpass.reference import Tally
from secondpass.task import Task, accepts

AnyTask = Task[Any] | Callable[[Any], Any]


class Result:
    """What a chain made of some events: see `run`."""

    def __init__(self, meaning: reference.Result) -> None:
        self._meaning = meaning

    @property
    def outputs(self) -> list[Any]:
        """The events that the chain passed, in order."""
        return self._meaning.outputs

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The events set aside: each with `position`, `task`, `error`, `traceback` and `event`."""
        return self._meaning.dead_letters

    @property
    def now(self) -> float:
        """The stream's time at the end."""
        return self._meaning.now

    def output(self, name: str) -> list[Any]:
        """What the tasks emitted on the named output, in order."""
        return _look_up(self._meaning.streams, name, "output")

    def state(self, task: str | Task[Any]) -> dict[str, Any]:
        """A task's final state as plain values: `{table: {key: value}, value: ...}`."""
        return _look_up(self._meaning.state, _name(task), "task")

    def tally(self, task: str | Task[Any]) -> Tally:
        """How many events a task was given, passed, dropped and failed at; `.counts` are its own counters."""
        return _look_up(self._meaning.tallies, _name(task), "task")

    def __repr__(self) -> str:
        return f"Result(outputs={self.outputs!r}, dead_letters={self.dead_letters!r})"


def run(
    tasks: AnyTask | Sequence[AnyTask],
    events: Iterable[Event | Mapping[str, Any] | float | Change],
    *,
    lookups: Mapping[str, Mapping[Any, Any]] | None = None,
    errors: Literal["raise", "collect"] = "raise",
) -> Result:
    """What a task, or a chain of them, makes of some events.

    >>> from secondpass import Event, Task, table
    >>> from secondpass.testing import run
    >>> class Seen(Event):
    ...     cid: int
    ...     time: float
    >>> class OncePerMinute(Task[Seen]):
    ...     last = table(int, float, ttl_s=60.0)
    ...     def keys(self, event: Seen) -> tuple[int]:
    ...         return (event.cid,)
    ...     def handle(self, event: Seen) -> Seen | None:
    ...         if event.cid in self.last:
    ...             return None
    ...         self.last[event.cid] = event.time
    ...         return event
    >>> result = run(OncePerMinute(), [Seen(cid=1, time=0), Seen(cid=1, time=59.9), Seen(cid=1, time=60)])
    >>> [event.time for event in result.outputs]
    [0.0, 60.0]
    >>> result.state("OncePerMinute")
    {'last': {1: 60.0}}

    A mapping among the events becomes an untyped event; a number (seconds) advances the stream's time:
    `run(OncePerMinute(), [Seen(cid=1, time=0), 60.0]).state(...)` is empty. Events take their declared types,
    as they do when a source decodes them (`time=0` above). A `Change` is a command between two events:
    `Change("stop", "OncePerMinute")`. `lookups` is what the tasks look into, by name; `Change("reload", "cameras",
    {...})` is a reload.

    With `errors="raise"` the first exception of any task is raised as it is, with its place as a note;
    with `errors="collect"` a task's `on_error` decides, and dead letters are in the result. A broken rule
    of meaning (an undeclared key, a wrong type in a cell) raises `TaskFault` either way, and what
    `on_error="stop"` stops raises `TaskStopped`. Raises `SettingsError` for what is no event.
    """
    if errors not in ("raise", "collect"):
        raise SettingsError(f"run(errors={errors!r}): write 'raise' or 'collect'")
    given = cast("Sequence[AnyTask]", tasks) if isinstance(tasks, Sequence) else [tasks]
    held: dict[str, Any] = dict.fromkeys(specs_of(map(as_task, given)), dict)  # what they hold comes later
    chain = App("testing", source=(), tasks=given, lookups=held).tasks
    log = [_record(i, found) for i, found in enumerate(events)]
    _refuse_unknown(lookups or {}, chain, log)
    _refuse_unseen(chain, log)
    if errors == "raise":
        chain = tuple(task.options(on_error="stop") for task in chain)
    meaning = reference.run(chain, log, enforce_keys=True, lookups=lookups)
    if errors == "raise":
        for letter in meaning.dead_letters:
            assert letter.task == INTAKE  # every task stops at its first error
            raise InputError(f"events[{letter.position}]: {letter.error}")
    if meaning.stopped is not None:
        cause = meaning.stopped.__cause__
        if errors == "raise" and cause is not None and not isinstance(meaning.stopped, TaskFault):
            position, name = meaning.stopped.details["position"], meaning.stopped.details["task"]
            cause.add_note(f"at task {name}, position {position}, events[{position}] = {log[position]!r}")
            raise cause
        raise meaning.stopped
    return Result(meaning)


def _refuse_unknown(lookups: Mapping[str, Any], chain: Sequence[Task[Any]], log: Sequence[Any]) -> None:
    """A lookup that nobody declares has a name that was mistyped."""
    known = specs_of([*chain, *(r.to for r in log if isinstance(r, Change) and r.kind in NEW_TASK)])
    named = [*lookups, *(r.task for r in log if isinstance(r, Change) and r.kind == "reload")]
    for name in named:
        if name not in known:
            raise SettingsError(
                f"no task here declares a lookup {name!r}; declared are: {', '.join(known) or 'none'}"
            )


def _record(index: int, found: Any) -> Any:
    """A record of the log from what a test wrote."""
    if isinstance(found, Change):
        return found
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        tick = Tick(float(found))
        refusal = refuse_time(tick.time)
        if refusal is not None:
            raise SettingsError(f"events[{index}] advances time, but {refusal}")
        return tick
    if not isinstance(found, (Event, Mapping)):
        raise SettingsError(
            f"events[{index}] is {found!r}: write an Event, a mapping (an untyped event) or a number (a time)"
        )
    try:
        return owned(found if isinstance(found, Event) else dict(cast("Mapping[str, Any]", found)))
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"events[{index}]: {found!r} cannot take its declared types: {error}") from None


def _refuse_unseen(chain: Sequence[Task[Any]], log: Sequence[Any]) -> None:
    """A mapping that every task lets pass by was meant to be an event of a type."""
    wanted = [accepts(task) for task in chain]
    if not wanted or any(not types or UntypedEvent in types for types in wanted):
        return
    for index, record in enumerate(log):
        if isinstance(record, UntypedEvent):
            types = ", ".join(dict.fromkeys(tp.__name__ for found in wanted for tp in found))
            raise SettingsError(
                f"events[{index}] is a mapping, and no task here handles untyped events; write an event of {types}"
            )


def _name(task: str | Task[Any]) -> str:
    return task if isinstance(task, str) else task.name


def _look_up(found: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in found:
        raise SettingsError(f"no {kind} is called {name!r}; there are: {', '.join(found) or 'none'}")
    return found[name]


__all__ = ["Change", "Result", "run"]
