"""The dependency order of a task's first events, from the app's real input: what `schedule` shows.

reached     the events that come to the task, by the plain loop over the tasks before it
keys        what the task's `keys` says of each, as a run asks it
order       an `engine.schedule.Schedule` of them
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from secondpass.app import App
from secondpass.aside import aside
from secondpass.cli import text
from secondpass.cli.shapes import ScheduledEvent, ScheduleReport
from secondpass.errors import SecondpassError, SetupFailed
from secondpass.record import error_text
from secondpass.task import Task

if TYPE_CHECKING:
    from secondpass.step import Step

LOOKED_AT = 10_000
"""So many records are taken at most until enough events have reached the task."""
WORKERS = (2, 8, 32)
NARROW = 4.0
"""Below this width it is worth a look why."""


class Reached(NamedTuple):
    """An event that reached the task."""

    position: int
    path: tuple[int, ...]
    event: Any


@aside()
def report_of(app: App, task: Task[Any], limit: int) -> ScheduleReport:
    """The dependency order of a task's first events."""
    from secondpass.binding import look_into
    from secondpass.cli.ways import quietly
    from secondpass.engine.lookups import held_now
    from secondpass.engine.schedule import Schedule
    from secondpass.lookups import contents_of

    held = held_now(app)
    contents = contents_of([task], held)
    step = _set_up(look_into(task, contents))
    with quietly():
        reached = _reaching(app, task, limit, held)
        found = [_keys(step, one) for one in reached]
    order = Schedule()
    order.add([keys for keys, _ in found])
    waits_for: list[list[int]] = [[] for _ in reached]
    for earlier, later in order.edges():
        waits_for[later].append(earlier)
    steps: list[int] = []
    for earlier in waits_for:
        steps.append(1 + max((steps[n] for n in earlier), default=0))
    events = [
        ScheduledEvent(
            number=i,
            position=one.position,
            path=list(one.path),
            keys=None if keys is None else _sorted(keys),
            error=error,
            waits_for=sorted(waits_for[i]),
            step=steps[i],
        )
        for i, (one, (keys, error)) in enumerate(zip(reached, found, strict=True))
    ]
    longest = max(steps, default=0)
    width = len(events) / longest if longest else 0.0
    return ScheduleReport(
        app=app.name,
        task=task.name,
        events=events,
        steps=longest,
        chain=_chain(events),
        width=round(width, 2),
        at_once={str(n): round(min(float(n), width), 2) for n in WORKERS},
        advice=_advice(task, events, width),
    )


def _set_up(task: Task[Any]) -> Step:
    from secondpass.step import Step

    try:
        return Step(task, {}, {})
    except SecondpassError:
        raise
    except Exception as error:
        raise SetupFailed(f"task {task.name}: setup() failed: {error_text(error)}", task=task.name) from error


def _reaching(app: App, task: Task[Any], limit: int, held: dict[str, dict[Any, Any]]) -> list[Reached]:
    """The first events that reach a task: the plain loop over the tasks before it."""
    from secondpass import reference
    from secondpass.cli import ways
    from secondpass.task import accepts

    kinds = accepts(task)
    found: dict[
        tuple[int, tuple[int, ...]], Any
    ] = {}  # a loop that a task stops is run again, from its beginning

    class Probe(Task[Any]):
        """Stands where the task stands, and notes what comes."""

        def handle(self, event: Any) -> None:
            if not kinds or isinstance(event, kinds):
                found[self.position, self._moment.path] = event

    before = app.tasks[: app.tasks.index(task)]
    log = ways.record(app, max(limit, LOOKED_AT))
    # A little more each time: the tasks before it may be slow, and may drop most.
    taken = limit
    while True:
        found.clear()
        try:
            probe = Probe().options(name=f"before {task.name}")
            result = reference.run([*before, probe], log[:taken], lookups=held)
        except SecondpassError:
            raise
        except Exception as error:  # whatever handle raises is caught there
            raise SetupFailed(
                f"a task before {task.name}: setup() failed: {error_text(error)}", task=task.name
            ) from error
        if len(found) >= limit or taken >= len(log) or result.stopped is not None:
            break
        taken *= 4
    if result.stopped is not None and not found:
        raise result.stopped
    return [Reached(*place, event) for place, event in found.items()][:limit]


def _keys(step: Step, reached: Reached) -> tuple[frozenset[Any] | None, str | None]:
    """An event's keys as a run takes them, None for all; and what `keys` raised."""
    from secondpass.calls import keys_of
    from secondpass.errors import TaskFault
    from secondpass.reference import stop_error

    try:
        keys = keys_of(step.task, reached.event)
    except TaskFault as fault:
        raise stop_error(step.task, reached.position, reached.event, fault) from fault
    declare = getattr(type(step.task), "keys", None)
    if keys is not None or declare is None:
        return keys, None
    try:
        declared = declare(step.task, reached.event)
        if isinstance(declared, types.GeneratorType):
            list(declared)  # pyright: ignore[reportUnknownArgumentType] - a user's generator
    except Exception as error:  # noqa: BLE001 - user code; `keys_of` took it for ALL
        return None, error_text(error)
    return None, None


def _sorted(keys: frozenset[Any]) -> list[Any]:
    try:
        return sorted(keys)
    except TypeError:
        return sorted(keys, key=repr)


def _chain(events: Sequence[ScheduledEvent]) -> list[int]:
    """One of the longest chains of events that wait for each other."""
    if not events:
        return []
    at = max(events, key=lambda e: e.step)
    chain = [at.number]
    while at.waits_for:
        at = max((events[n] for n in at.waits_for), key=lambda e: e.step)
        chain.append(at.number)
    return chain[::-1]


def _advice(task: Task[Any], events: Sequence[ScheduledEvent], width: float) -> list[str]:
    """What keeps the events from running at once, where something does."""
    if len(events) < 2:
        return []
    if not hasattr(type(task), "keys"):
        said = (
            f"{task.name} has state and no keys(), so each event waits for the one before it. If an event touches only "
            f"some cells, say which: keys(self, event) returns their keys"
        )
        return [said]
    found: list[str] = []
    failed = [e for e in events if e.error is not None]
    if failed:
        found.append(
            f"keys() raised at {text.plural(len(failed), 'event')} ({failed[0].error}): such an event waits for all "
            f"before it, and all after it wait for it. Let keys() answer for every event that can come"
        )
    every = sum(1 for e in events if e.keys is None) - len(failed)
    if every:
        found.append(
            f"keys() returned ALL for {text.plural(every, 'event')}: each waits for all before it, and all after it wait "
            f"for it. What looks at a whole table can be a task of its own, behind this one"
        )
    if found or width >= min(NARROW, len(events) / 2):
        return found
    uses = Counter(_told(key) for e in events for key in e.keys or ())
    if not uses:
        return found
    key, most = uses.most_common(1)[0]
    if most > len(events) / 3:
        found.append(
            f"the key {text.cut(key, 20)} is in {most} of {len(events)} events, which wait for each other: a finer key "
            f"would let them run at once, if what they remember can be kept apart"
        )
    each = sum(len(e.keys or ()) for e in events) / len(events)
    if each > 4:
        found.append(
            f"an event has {each:.1f} keys on average: each is one more to share with others. keys() need only name "
            f"cells that handle reads or writes"
        )
    return found


def label(event: ScheduledEvent) -> str:
    """An event's place: its position, and its index in the lists that it was emitted in."""
    return ".".join(map(str, (event.position, *event.path)))


def _told(key: Any) -> str:
    from secondpass.cli.ways import told

    return told(key)


def keys_told(event: ScheduledEvent) -> str:
    """An event's keys, in a few words."""
    if event.error is not None:
        return "keys() failed"
    if event.keys is None:
        return "all"
    return " ".join(map(_told, event.keys)) or text.DASH
