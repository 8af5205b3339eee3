"""The meaning of an app: a plain loop, without processes, disk or cleverness.

    for record in log:
        command, lookup, verdict: apply it
        otherwise: fire the timers that are due, then pass the event through the started tasks in order

Everything else in secondpass is a faster or safer way to this answer, and is tested against it. It is
also what `secondpass.testing` gives to users. Commands, timers and lookups have their place in `run`, where the
loop looks at a record's kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from secondpass.app import MAIN
from secondpass.errors import TaskError, TaskStopped
from secondpass.event import time_reader
from secondpass.record import (
    INTAKE,
    DeadLetter,
    Refused,
    Retry,
    Tick,
    Told,
    Verdict,
    error_text,
    event_crc,
    refuse_time,
    trace_text,
)
from secondpass.state import CallValues, Moment, Table, TableSpec
from secondpass.task import Task, accepts, attach, bind, call_of, expand, keys_of

CAUGHT = BaseException
"""What a task may raise without stopping anything but its own call: all but `KeyboardInterrupt`.

A panic of a library written in Rust is no `Exception`, and must not stop the app at every start.
"""


@dataclass
class Tally:
    """What became of the events that reached one task."""

    events: int = 0
    passed: int = 0
    dropped: int = 0
    errors: int = 0
    error_streak: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, counts: dict[str, int]) -> None:
        for name, n in counts.items():
            self.counts[name] = self.counts.get(name, 0) + n


@dataclass
class Result:
    """What a log means: outputs by stream, dead letters, final state, counts; and why it stopped, if it did."""

    streams: dict[str, list[Any]]
    dead_letters: list[DeadLetter]
    state: dict[str, dict[str, Any]]
    tallies: dict[str, Tally]
    now: float
    stopped: TaskError | None = None

    @property
    def outputs(self) -> list[Any]:
        return self.streams[MAIN]


class Step:
    """A task bound to resting cells, whose every call is kept whole or undone whole."""

    def __init__(self, task: Task[Any], cells: dict[str, Any], values: dict[str, bytes]) -> None:
        shape = type(task)._shape
        self.moment = Moment()
        self.task = bind(task, self.moment)
        self.types = accepts(task)
        self.on_error = task._options.on_error
        self.tables: dict[str, Table[Any, Any]] = {
            n: Table[Any, Any](s, cells.setdefault(n, {}), self.moment, s.ttl_of(task))
            for n, s in shape.tables.items()
        }
        self.values = CallValues(shape.values, values)
        attach(self.task, _values=self.values, **self.tables)
        self._parts: list[Table[Any, Any] | CallValues] = [*self.tables.values(), self.values]
        self._call = call_of(self.task)

    def takes(self, event: Any) -> bool:
        return not self.types or isinstance(event, self.types)

    def call(
        self,
        event: Any,
        position: int,
        now: float,
        path: tuple[int, ...],
        allowed: frozenset[Any] | None = None,
    ) -> tuple[list[Any], bool]:
        """The events put out, and whether they branch; raises and changes nothing when the call fails.

        `allowed` are the only keys that the call may touch; None allows all of the task's state.
        """
        moment = self.moment
        moment.position, moment.now, moment.path = position, now, path
        moment.begin()
        if allowed is not None:
            self._allow(allowed)
        try:
            found = expand(self._call(event), event, self.task.name)
            # All are looked at before any is kept: a call is kept whole.
            for table in self._parts:
                table.check()
            for table in self._parts:
                table.keep()
        except BaseException:
            for table in self._parts:
                table.undo()
            moment.begin()
            raise
        finally:
            if allowed is not None:
                self._allow(None)
        return found

    def _allow(self, keys: frozenset[Any] | None) -> None:
        for table in self.tables.values():
            table.allowed = keys
        self.values.barred = keys is not None


def stop_error(task: Task[Any], position: int, event: Any, error: BaseException) -> TaskError:
    """The error that stops an app at one event, naming event, task and reason."""
    place = f"task {task.name}, position {position}, event {event!r}"
    if isinstance(error, TaskError):
        return type(error)(f"{error}\n  at {place}", task=task.name, position=position)
    return TaskStopped(
        f"{error_text(error)}\n  at {place}\n  the task says on_error='stop'; mend it and run again: the event is next",
        task=task.name,
        position=position,
        traceback=trace_text(error),
    )


def run(
    tasks: Sequence[Task[Any]],
    log: Sequence[Any],
    *,
    intake_time: float = 0.0,
    enforce_keys: bool = False,
) -> Result:
    """What `log` means to the chain `tasks`.

    Records are events, `Refused`, `Retry` or `Tick`; a record's position is its index, not counting the
    `Verdict`s among them. An event without a `time` gets `intake_time`.
    """
    cells: dict[str, dict[str, Any]] = {t.name: {} for t in tasks}
    values: dict[str, dict[str, bytes]] = {t.name: {} for t in tasks}
    chain = [Step(t, cells[t.name], values[t.name]) for t in tasks]
    streams: dict[str, list[Any]] = {MAIN: []}
    for task in tasks:
        streams.update({n: [] for n in type(task)._shape.outputs if n not in streams})
    tallies = {t.name: Tally() for t in tasks}
    dead_letters: list[DeadLetter] = []
    verdicts: dict[tuple[int, str, tuple[int, ...]], Verdict] = {}
    now = float("-inf")

    def pass_on(event: Any, position: int, path: tuple[int, ...], first: int) -> None:
        for depth in range(first, len(chain)):
            step = chain[depth]
            if not step.takes(event):
                continue
            name, tally = step.task.name, tallies[step.task.name]
            tally.events += 1
            try:
                verdict = verdicts.get((position, name, path))
                if verdict is not None and verdict.crc == event_crc(event):
                    raise Told(verdict.error, verdict.traceback)
                allowed = keys_of(step.task, event) if enforce_keys else None
                results, branched = step.call(event, position, now, path, allowed)
            except KeyboardInterrupt:
                raise
            except CAUGHT as error:
                if isinstance(error, TaskError) or step.on_error == "stop":
                    raise stop_error(step.task, position, event, error) from error
                tally.errors += 1
                tally.error_streak += 1
                if step.on_error == "pass":
                    continue
                dead_letters.append(DeadLetter(position, name, error_text(error), trace_text(error), event))
                return
            tally.error_streak = 0
            tally.add(step.moment.counts)
            tally.passed += len(results)
            tally.dropped += not results
            for stream, emitted in step.moment.emitted:
                streams[stream].append(emitted)
            if branched:
                for k, result in enumerate(results):
                    pass_on(result, position, (*path, k), depth + 1)
                return
            if not results:
                return
            (event,) = results
        streams[MAIN].append(event)

    position = -1
    for index, record in enumerate(log):
        if isinstance(record, Verdict):
            verdicts[record.place] = record
            continue
        position += 1
        try:
            if isinstance(record, Refused):
                reason, raw, offset, source = record
                dead_letters.append(DeadLetter(position, INTAKE, reason, "", None, raw, offset, source))
            elif isinstance(record, Retry):
                names = [t.name for t in tasks]
                pass_on(record.event, position, (), names.index(record.task) if record.task else 0)
            elif isinstance(record, Tick):
                now = max(now, record.time) + 0.0  # one zero, not two
            else:
                time = time_reader(record.__class__)(record)
                refusal = None if time is None else refuse_time(time)
                if refusal is not None:
                    dead_letters.append(DeadLetter(position, INTAKE, refusal, "", record))
                    continue
                now = max(now, intake_time if time is None else time) + 0.0  # one zero, not two
                pass_on(record, position, (), 0)
        except TaskError as stop:
            # What precedes the event stands, and nothing of the event: that is the log cut before it.
            before = run(tasks, log[:index], intake_time=intake_time, enforce_keys=enforce_keys)
            before.stopped = stop
            return before

    return Result(streams, dead_letters, final_state(tasks, cells, values, now), tallies, now)


def final_state(
    tasks: Sequence[Task[Any]],
    cells: dict[str, dict[str, Any]],
    values: dict[str, dict[str, bytes]],
    now: float,
) -> dict[str, dict[str, Any]]:
    """The state of a chain as plain values: `{task: {table: {key: value}, value name: value}}`."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        shape = type(task)._shape
        mine: dict[str, Any] = {}
        for name, spec in shape.tables.items():
            mine[name] = live_cells(spec, cells[task.name].get(name, {}), spec.ttl_of(task), now)
        for name, value_spec in shape.values.items():
            mine[name] = value_spec.codec.decode(values[task.name].get(name, value_spec.initial))
        found[task.name] = mine
    return found


def live_cells(spec: TableSpec, resting: Any, ttl_s: float | None, now: float) -> dict[Any, Any]:
    """A table's content as a plain dict in key order, without what has expired."""
    moment = Moment()
    moment.now = now
    return Table[Any, Any](spec, resting, moment, ttl_s).snapshot()
