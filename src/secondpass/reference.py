"""The meaning of an app: a plain loop, without processes, disk or cleverness.

    for record in log:
        command, lookup, verdict: apply it
        otherwise: fire the timers that are due, then pass the event through the started tasks in order,
        then fire those that were set meanwhile for a time that has come

Everything else in secondpass is a faster or safer way to this answer, and is tested against it. It is
also what `secondpass.testing` gives to users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from operator import itemgetter
from typing import Any

from secondpass.app import LATE, MAIN
from secondpass.aside import aside
from secondpass.binding import look_into
from secondpass.calls import keys_of
from secondpass.change import Aside, Link, changed, plain_state
from secondpass.due import begin_schedules, first_due, take_due
from secondpass.errors import TaskError, TaskStopped
from secondpass.event import time_reader
from secondpass.lookups import contents_of
from secondpass.record import (
    INTAKE,
    NEW_TASK,
    Ahead,
    Change,
    DeadLetter,
    Firing,
    Late,
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
from secondpass.step import CAUGHT, Step
from secondpass.task import Task


@dataclass
class Tally:
    """What became of the events that reached one task."""

    events: int = 0
    passed: int = 0
    dropped: int = 0
    fired: int = 0
    """Calls of timers and schedules, beside those for events."""
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
    tasks: list[Task[Any]] = field(default_factory=list[Task[Any]])
    """The chain at the end."""
    stopped: TaskError | None = None

    @property
    def outputs(self) -> list[Any]:
        return self.streams[MAIN]


def stop_error(
    task: Task[Any],
    position: int,
    event: Any,
    error: BaseException,
    letter: int | None = None,
    *,
    to_mend: bool = True,
) -> TaskError:
    """The error that stops an app at one event, naming event, task and reason; or at a dead letter that was sent again.

    Where nobody is `to_mend` it, as the app only might have stopped, it does not say what comes next.
    """
    place = f"task {task.name}, position {position}, event {event!r}"
    details: dict[str, Any] = {"task": task.name, "position": position}
    if letter is not None:
        details["letter"] = letter
    if isinstance(error, TaskError):
        return type(error)(f"{error}\n  at {place}", **details)
    next_ = f"; mend it and run again: {what_is_next(details)}" if to_mend else ""
    return TaskStopped(
        f"{error_text(error)}\n  at {place}\n  the task says on_error='stop'{next_}",
        traceback=trace_text(error),
        **details,
    )


def what_is_next(stopped: Mapping[str, Any]) -> str:
    """What the next run does about what stopped this one, in words."""
    return f"dead letter {stopped['letter']} stays open" if "letter" in stopped else "the event is next"


@aside()
def run(
    tasks: Sequence[Task[Any]],
    log: Sequence[Any],
    *,
    intake_time: float = 0.0,
    enforce_keys: bool = False,
    lookups: Mapping[str, Mapping[Any, Any]] | None = None,
) -> Result:
    """What `log` means to the chain `tasks`.

    Records are events, `Refused`, `Ahead`, `Late`, `Retry`, `Tick` or `Change`; a record's position is its index, not counting
    the `Verdict`s among them. An event without a `time` gets `intake_time`. `lookups` is what is loaded before the first.
    """
    looked_into = [*tasks, *(r.to for r in log if isinstance(r, Change) and r.kind in NEW_TASK)]
    contents = contents_of(looked_into, lookups or {})
    chain = [Link(look_into(task, contents)) for task in tasks]
    streams: dict[str, list[Any]] = {MAIN: []}
    tallies: dict[str, Tally] = {}
    put_aside: dict[str, Aside] = {}
    dead_letters: list[DeadLetter] = []
    verdicts: dict[tuple[int, str, tuple[int, ...]], Verdict] = {}
    now = float("-inf")

    def begin() -> list[tuple[Link, Step]]:
        for link in chain:
            tallies.setdefault(link.name, Tally())
            streams.update({n: [] for n in type(link.task)._shape.outputs if n not in streams})
        return [(link, Step(link.task, link.cells, link.values)) for link in chain]

    steps = begin()

    def called(
        step: Step, position: int, event: Any, call: Callable[[], tuple[list[Any], bool]]
    ) -> tuple[list[Any], bool] | None:
        """What a call puts out, and whether it branches; None where it fails, which is noted."""
        name, tally = step.task.name, tallies[step.task.name]
        try:
            results, branched = call()
        except KeyboardInterrupt:
            raise
        except CAUGHT as error:
            if isinstance(error, TaskError) or step.on_error == "stop":
                raise stop_error(step.task, position, event, error) from error
            tally.errors += 1
            tally.error_streak += 1
            if step.on_error != "pass":
                dead_letters.append(DeadLetter(position, name, error_text(error), trace_text(error), event))
            return None
        tally.error_streak = 0
        tally.add(step.moment.counts)
        tally.passed += len(results)
        for stream, emitted in step.moment.emitted:
            streams[stream].append(emitted)
        return results, branched

    def obey_verdict(step: Step, event: Any, position: int, path: tuple[int, ...]) -> None:
        verdict = verdicts.get((position, step.task.name, path))
        if verdict is not None and verdict.crc == event_crc(event):
            raise Told(verdict.error, verdict.traceback)

    def handled(step: Step, event: Any, position: int, path: tuple[int, ...]) -> tuple[list[Any], bool]:
        obey_verdict(step, event, position, path)
        allowed = keys_of(step.task, event) if enforce_keys else None
        return step.call(event, position, now, path, allowed)

    def pass_on(event: Any, position: int, path: tuple[int, ...], first: int) -> None:
        for depth in range(first, len(steps)):
            link, step = steps[depth]
            if link.stopped or not step.takes(event):
                continue
            tallies[link.name].events += 1
            found = called(step, position, event, partial(handled, step, event, position, path))
            if found is None:
                if step.on_error == "pass":
                    continue
                return
            results, branched = found
            tallies[link.name].dropped += not results
            if branched:
                for k, result in enumerate(results):
                    pass_on(result, position, (*path, k), depth + 1)
                return
            if not results:
                return
            (event,) = results
        streams[MAIN].append(event)

    def fire(depth: int, event: Firing, key: Any, position: int, path: tuple[int, ...]) -> None:
        """Call a timer's method, and pass on what it puts out."""
        _, step = steps[depth]
        tallies[step.task.name].fired += 1

        def fired() -> tuple[list[Any], bool]:
            obey_verdict(step, event, position, path)
            return step.fire(event.timer, key, position, now, path)

        found = called(step, position, event, fired)
        if found is None:
            return
        results, branched = found
        for k, result in enumerate(results):
            pass_on(result, position, (*path, k) if branched else path, depth + 1)

    def fire_due(until: float, position: int, numbers: Iterator[int]) -> None:
        """Fire what is due at a time, one after the other; what they put out flows on before the next one fires."""
        nonlocal now
        while True:
            due = [
                first
                for depth, (link, step) in enumerate(steps)
                if not link.stopped
                and (first := first_due(step.timers, link.cells, depth, until)) is not None
            ]
            if not due:
                return
            first = min(due, key=itemgetter(slice(4)))
            now = max(now, first.time) + 0.0
            link, step = steps[first.depth]
            take_due(step.timers[first.name], link.cells[first.name], first)
            event = Firing.of(first.name, first.key, first.time)
            fire(first.depth, event, first.key, position, (-1 - next(numbers),))

    def move_to(time: float, position: int, numbers: Iterator[int]) -> None:
        """The stream's time is at least this from now on; what is due until then fires first."""
        nonlocal now
        then = max(now, time) + 0.0  # one zero, not two
        for link, step in steps:
            if not link.stopped:
                begin_schedules(step.timers, link.cells, then)
        fire_due(then, position, numbers)
        now = then

    position = -1
    for index, record in enumerate(log):
        if isinstance(record, Verdict):
            verdicts[record.place] = record
            continue
        position += 1
        numbers = count()  # of the timers that fire at this position
        for _, step in steps:
            step.timing.past = 0
        try:
            if isinstance(record, Change) and record.kind == "reload":
                given = contents_of(looked_into, {**contents, record.task: record.to})
                contents[record.task].become(given[record.task])
                continue
            if isinstance(record, Change):
                if record.to is not None:
                    record = record._replace(to=look_into(record.to, contents))
                chain = changed(chain, put_aside, record, position, now)
                for link in chain:
                    link.let_go(now)
                steps = begin()
                continue
            if isinstance(record, Refused):
                reason, raw, offset, source = record
                dead_letters.append(DeadLetter(position, INTAKE, reason, "", None, raw, offset, source))
            elif isinstance(record, Ahead):
                dead_letters.append(DeadLetter(position, INTAKE, record.reason, "", record.event))
            elif isinstance(record, Late):
                streams.setdefault(LATE, []).append(record.event)
            elif isinstance(record, Retry):
                names = [link.name for link in chain]
                at = names.index(record.task) if record.task in names else -1
                if not isinstance(record.event, Firing):
                    # Where its task has gone: from the start.
                    pass_on(record.event, position, (), max(at, 0))
                elif at >= 0 and not chain[at].stopped and record.event.timer in steps[at][1].timers:
                    key = steps[at][1].timers[record.event.timer].wake(record.event.key)
                    fire(at, record.event, key, position, ())
            elif isinstance(record, Tick):
                move_to(record.time, position, numbers)
            else:
                time = time_reader(record.__class__)(record)
                refusal = None if time is None else refuse_time(time)
                if refusal is not None:
                    dead_letters.append(DeadLetter(position, INTAKE, refusal, "", record))
                else:
                    move_to(intake_time if time is None else time, position, numbers)
                    pass_on(record, position, (), 0)
            fire_due(now, position, numbers)
        except TaskError as stop:
            # What precedes the event stands, and nothing of the event: that is the log cut before it.
            before = run(
                tasks, log[:index], intake_time=intake_time, enforce_keys=enforce_keys, lookups=lookups
            )
            before.stopped = stop
            return before

    state = {link.name: plain_state(link.task, link.cells, link.values, now) for link in chain}
    return Result(streams, dead_letters, state, tallies, now, [link.task for link in chain])
