"""`secondpass schedule`: which events wait for which, and how many of them can run at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from secondpass.app import App
from secondpass.cli import text
from secondpass.cli.apps import load_app
from secondpass.cli.exits import DONE
from secondpass.cli.group import HELP
from secondpass.cli.options import app_argument, debug_option, json_option, limit_option
from secondpass.cli.order import LOOKED_AT, keys_told, label, report_of
from secondpass.cli.shapes import ScheduledEvent, ScheduleReport, document
from secondpass.errors import OutputError, SettingsError, UsageError
from secondpass.task import Task

EVENTS = 24
SHOWN_MAX = 60
"""So many events are drawn at most; the figures are of all."""

_HEAD = ("position", "keys", "waits for")
_KEYS_COLUMNS = 26
_WAITS_SHOWN = 3


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
