"""`secondpass schedule`: which events wait for which, and how many of them can run at once."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from secondpass.app import App
from secondpass.cli import text
from secondpass.cli.apps import load_app
from secondpass.cli.exits import DONE
from secondpass.cli.group import HELP
from secondpass.cli.options import app_argument, debug_option, json_option, limit_option
from secondpass.cli.shapes import ScheduledEvent, ScheduleReport, document
from secondpass.errors import OutputError, SecondpassError, SettingsError, SetupFailed, UsageError
from secondpass.record import error_text
from secondpass.task import Task

if TYPE_CHECKING:
    from secondpass.reference import Step

EVENTS = 24
SHOWN_MAX = 60
"""So many events are drawn at most; the figures are of all."""
LOOKED_AT = 10_000
"""So many records are taken at most until enough events have reached the task."""
WORKERS = (2, 8, 32)
NARROW = 4.0
"""Below this width it is worth a look why."""

_HEAD = ("position", "keys", "waits for")
_KEYS_COLUMNS = 26
_WAITS_SHOWN = 3


class Reached(NamedTuple):
    """An event that reached the task."""

    position: int
    path: tuple[int, ...]
    event: Any


@click.command(context_settings=HELP)
@app_argument
@click.option(
    "--task",
    metavar="NAME",
    help="The task to look at.  [default: the first that has state, and keys if one has]",
)
@limit_option(f"Take so many events that reach the task.  [default: {EVENTS}]", default=EVENTS)
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also draw a picture of it into this file.",
)
@json_option
@debug_option
def schedule(app: str, task: str | None, limit: int, svg: Path | None, as_json: bool) -> int:
    """Show which events wait for which, and how many can run at once.

    Takes the first events of the app's real input that reach a task, asks its `keys` for each, and orders them as
    workers would: an event waits for the last one before it that has one of its keys. Nothing is stored; the tasks
    before it run in memory, the task itself is not called.
    """
    loaded = load_app(app)
    chosen = _chosen(loaded, task)
    found = report_of(loaded, chosen, limit)
    if svg is not None:
        from secondpass.cli.picture import picture

        _write(svg, picture(found, SHOWN_MAX))
    if as_json:
        text.say(document(found))
    else:
        text.say(lines_of(found, limit))
    return DONE


def _chosen(app: App, name: str | None) -> Task[Any]:
    """The task to look at."""
    if name is not None:
        for task in app.tasks:
            if task.name == name:
                if not type(task)._shape.stateful:
                    raise UsageError(
                        f"{name} has no state: its events wait for nothing, and all of them can run at once"
                    )
                return task
        have = ", ".join(task.name for task in app.tasks) or "none"
        raise SettingsError(f"--task {name}: the app has no such task; its tasks: {have}")
    stateful = [task for task in app.tasks if type(task)._shape.stateful]
    if not stateful:
        raise UsageError(
            f"no task of {app.name} has state: their events wait for nothing, and all of them can run at once"
        )
    return next((task for task in stateful if hasattr(type(task), "keys")), stateful[0])


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


# ---------------------------------------------------------------- the order


def report_of(app: App, task: Task[Any], limit: int) -> ScheduleReport:
    """The dependency order of a task's first events."""
    from secondpass.cli.ways import quietly
    from secondpass.engine.schedule import Schedule

    step = _set_up(task)
    with quietly():
        reached = _reaching(app, task, limit)
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
    from secondpass.reference import Step

    try:
        return Step(task, {}, {})
    except SecondpassError:
        raise
    except Exception as error:
        raise SetupFailed(f"task {task.name}: setup() failed: {error_text(error)}", task=task.name) from error


def _reaching(app: App, task: Task[Any], limit: int) -> list[Reached]:
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
            result = reference.run([*before, Probe().options(name=f"before {task.name}")], log[:taken])
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
    from secondpass.errors import TaskFault
    from secondpass.reference import stop_error
    from secondpass.task import keys_of

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


# ---------------------------------------------------------------- to read


def lines_of(report: ScheduleReport, limit: int) -> list[str]:
    """The order as a picture in text, and its figures."""
    name = click.style(report.task, bold=True)
    if not report.events:
        return [f"{name}: none of the first {text.plural(LOOKED_AT, 'record')} reached it"]
    head = (
        f"{name}: {text.plural(len(report.events), 'event')} in {text.plural(report.steps, 'step')}, each step as soon "
        f"as what it waits for is done"
    )
    return [head, "", *_chart(report), "", *text.fields(_figures(report, limit)), *_advised(report)]


def _chart(report: ScheduleReport) -> list[str]:
    """A row for each event, with a mark in the column of its step."""
    shown = report.events[:SHOWN_MAX]
    steps = max(e.step for e in shown)
    columns = text.width() or 100
    keys = [text.cut(keys_told(e), min(_KEYS_COLUMNS, max(8, columns // 4))) for e in shown]
    waits = [_waits_told(report, e) for e in shown]
    labels = [label(e) for e in shown]
    counts = Counter(e.step for e in report.events)
    left = sum(
        max(text.cells(head), *map(text.cells, column)) + 2
        for head, column in zip(_HEAD, (labels, keys, waits), strict=True)
    )
    most = max(steps, *(counts[s] for s in range(1, steps + 1)))
    wide = len(str(most)) + 1
    per_column = 1
    if steps * wide > columns - left:
        wide = 1
        per_column = -(-steps // max(8, columns - left))
    chain = set(report.chain) if report.steps > 1 else set[int]()
    rows = [
        [
            labels[i],
            keys[i],
            waits[i],
            _mark(e, wide, per_column, last=e.number in chain),
        ]
        for i, e in enumerate(shown)
    ]
    ruler = (
        "".join(f"{s:>{wide}}" for s in range(1, steps + 1))
        if wide > 1
        else "step" + (f" (a column is {per_column} steps)" if per_column > 1 else "")
    )
    if wide > 1:
        total = "".join(f"{counts[s]:>{wide}}" for s in range(1, steps + 1))
        rows.append(["", "", "at once", total])
    table = text.table([*_HEAD, ruler], rows, right="rlll")
    if wide > 1:
        table.insert(-1, "")
    return [*table[:1], *map(_faint, table[1:])]


def _mark(event: ScheduledEvent, wide: int, per_column: int, *, last: bool) -> str:
    at = (event.step - 1) // per_column
    mark = "●" if last else "○"
    dots = "·".rjust(wide) if wide > 1 else "·"
    return dots * at + mark.rjust(wide)


def _faint(line: str) -> str:
    """A row with its dots dimmed."""
    before, dot, after = line.partition("·")
    if not dot:
        return line
    at = max(after.rfind("●"), after.rfind("○"))
    return before + click.style(dot + after[:at], dim=True) + after[at:]


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


def _waits_told(report: ScheduleReport, event: ScheduledEvent) -> str:
    if event.keys is None:
        return "all before" if event.number else text.DASH
    found = [label(report.events[n]) for n in event.waits_for]
    more = f" +{len(found) - _WAITS_SHOWN}" if len(found) > _WAITS_SHOWN else ""
    return (" ".join(found[-_WAITS_SHOWN:]) or text.DASH) + more


def _figures(report: ScheduleReport, limit: int) -> list[tuple[str, str]]:
    chain = [label(report.events[n]) for n in report.chain]
    told = " ".join(chain) if len(chain) <= 8 else " ".join([*chain[:4], "...", *chain[-3:]])
    hidden = len(report.events) - SHOWN_MAX
    rates = ", ".join(f"{rate:.1f} times with {n}" for n, rate in report.at_once.items())
    rows = [("events", text.count(len(report.events)) + (f" ({hidden:,} not shown)" if hidden > 0 else ""))]
    if report.steps > 1:
        rows += [
            ("steps", f"{report.steps:,}: the longest chain of events that wait for each other (●)"),
            ("", told),
        ]
    else:
        rows.append(("steps", "1: no event waits for another"))
    rows += [("width", f"{report.width:,.1f}: events / steps"), ("speed", f"at most {rates} workers")]
    serial = all(e.keys is None for e in report.events)
    if len(report.events) == limit < 1000 and not serial:
        rows.append(("", "a run has more events at hand: --limit 2000 tells what to expect of it"))
    return rows


def _advised(report: ScheduleReport) -> list[str]:
    if not report.advice:
        return []
    return ["", *(f"{click.style('narrow:', fg='yellow', bold=True)} {said}" for said in report.advice)]
