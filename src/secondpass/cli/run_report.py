"""What a run did: as a report for programs, and as a summary to read."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import msgspec

from secondpass.app import App
from secondpass.cli import text
from secondpass.cli.apps import describe_sink, shown
from secondpass.cli.exits import DONE, INTERRUPTED
from secondpass.cli.shapes import FunctionReport, PlaceReport, RunReport, StreamReport, TaskReport

if TYPE_CHECKING:
    from secondpass.engine.summary import Summary


def report_of(summary: Summary, app: App, sinks: Mapping[str, Any]) -> RunReport:
    """A summary in the shape that `--json` prints; `sinks` are where the outputs went."""
    tasks = [
        TaskReport(
            name=name,
            events=tally.events,
            passed=tally.passed,
            dropped=tally.dropped,
            errors=tally.errors,
            counts=dict(tally.counts),
            seconds=summary.busy_s.get(name),
            fired=tally.fired,
            placed=place_of(msgspec.to_builtins(summary.placed[name])) if name in summary.placed else None,
        )
        for name, tally in summary.tasks.items()
    ]
    streams = [
        StreamReport(
            name=name,
            outputs=summary.outputs.get(name, 0),
            total=summary.outputs_total.get(name, 0),
            to=describe_sink(sinks[name]) if name in sinks else None,
        )
        for name in app.streams
    ]
    return RunReport(
        app=summary.app,
        store=summary.store,
        ended=summary.ended,
        # An epoch without events is a command: a dead letter was sent again or dropped.
        nothing_new=summary.nothing_new
        and summary.ended == "end of input"
        and not (summary.epochs or summary.commands),
        events=summary.events_in,
        position=summary.position,
        epochs=summary.epochs,
        seconds=round(summary.seconds, 3),
        events_per_second=round(summary.events_per_second, 1),
        tasks=tasks,
        streams=streams,
        dead_letters=summary.dead_letters,
        workers=summary.workers,
        convicted=summary.deaths.convicted,
        acquitted=summary.deaths.acquitted,
        deaths_s=round(summary.deaths.seconds, 3),
        functions=[msgspec.convert(asdict(found), FunctionReport) for found in summary.sources],
        commands=summary.commands,
        changes=list(summary.changes),
        silent_tasks=summary.silent_tasks,
    )


def place_of(stored: Any) -> PlaceReport:
    """Where a task ran, from plain data."""
    return msgspec.convert(stored, PlaceReport)


def place_table(tasks: Sequence[TaskReport], workers: int, seconds: float | None = None) -> list[str]:
    """A row for each task: where it ran, and what kept it from going faster."""
    rows: list[list[str]] = []
    for task in tasks:
        placed = task.placed
        if placed is None:
            continue
        shipped = placed.shipped
        rows.append(
            [
                task.name,
                f"inline: {placed.why}"
                if placed.why
                else placed.where
                if placed.where == "both"
                else placed.now,
                text.DASH if placed.cost_s is None else f"{placed.cost_s * 1e6:,.1f}",
                text.percent(placed.busy_s, seconds * workers)
                if shipped and seconds and workers
                else text.DASH,
                text.percent(placed.waited, shipped) if shipped else text.DASH,
                text.DASH if placed.width is None else f"{placed.width:,.1f}",
                f"{text.size(placed.bytes // shipped)}/event" if shipped else text.DASH,
            ]
        )
    head = ["task", "runs", "µs/event", "busy", "waited", "width", "shipped"]
    return text.table(head, rows, right="llrrrrr")


def function_table(functions: Sequence[FunctionReport]) -> list[str]:
    """A row for each function that is a source."""
    rows = [
        [
            f.name,
            _state_of(f),
            text.count(f.events),
            text.count(f.restarts),
            text.one_line(f.error or text.DASH),
        ]
        for f in functions
    ]
    return text.table(["source", "state", "events", "restarts", "last error"], rows, right="llrrl")


def _state_of(function: FunctionReport) -> str:
    if function.state != "waiting" or function.again_at is None:
        return function.state
    return f"again in {text.duration(max(0.0, function.again_at - time.time()))}"


def code_of(summary: Summary) -> int:
    """The exit code of a run that ended well."""
    return INTERRUPTED if summary.signal == signal.SIGINT else DONE


def headline(report: RunReport) -> str:
    """The first line of a summary."""
    how = {
        "end of input": "to the end of the input",
        "stopped": "then it was stopped",
        "limit": "the limit",
    }[report.ended]
    events = text.plural(report.events, "event")
    speed = f" ({text.rate(report.events_per_second)})" if report.events else ""
    return f"{click.style(report.app, bold=True)}: {events} in {text.duration(report.seconds)}{speed}, {how}"


def task_table(report: RunReport) -> list[str]:
    """A row for each task, and one for everything around them."""
    rows: list[list[str]] = []
    in_tasks_s = 0.0
    for task in report.tasks:
        busy_s = task.seconds or 0.0
        in_tasks_s += busy_s
        per_event = f"{busy_s / task.events * 1e6:,.1f}" if task.events else text.DASH
        rows.append(
            [
                task.name,
                text.count(task.events),
                text.count(task.passed),
                text.count(task.dropped),
                text.count(task.errors),
                text.percent(busy_s, report.seconds),
                per_event,
            ]
        )
    if not report.workers:  # with workers, it is mostly waiting for them
        around_s = max(0.0, report.seconds - in_tasks_s)
        per_event = f"{around_s / report.events * 1e6:,.1f}" if report.events else text.DASH
        rows.append(["(reading, storing)", "", "", "", "", text.percent(around_s, report.seconds), per_event])
    return text.table(
        ["task", "events", "passed", "dropped", "errors", "time", "µs/event"], rows, right="lrrrrrr"
    )


def counter_lines(report: RunReport) -> list[str]:
    """The tasks' own counters."""
    rows = [[t.name, "(timers fired)", text.count(t.fired)] for t in report.tasks if t.fired]
    rows += [[t.name, name, text.count(n)] for t in report.tasks for name, n in sorted(t.counts.items())]
    return ["", *text.table(["task", "counter", "count"], rows, right="llr")] if rows else []


def stream_table(report: RunReport, spec: str) -> list[str]:
    """A row for each stream of outputs."""
    rows = [
        [s.name, text.count(s.outputs), text.count(s.total), s.to or _kept(s.name, spec)]
        for s in report.streams
    ]
    return text.table(["output", "this run", "in all", "goes to"], rows, right="lrrl")


def _kept(stream: str, spec: str) -> str:
    option = "" if stream == "main" else f" --stream {stream}"
    return f"the store: secondpass outputs {spec}{option}"


def summary_lines(report: RunReport, spec: str) -> list[str]:
    """The summary of `run`."""
    if report.nothing_new:
        return [
            f"{click.style(report.app, bold=True)}: nothing new; the input was done to its end by earlier runs",
            f"  what is added goes on from here; to do all of it again: secondpass run {spec} --fresh",
        ]
    lines = [headline(report), ""]
    if report.tasks:
        lines += [*task_table(report), *counter_lines(report), ""]
        if report.workers:
            lines += [*place_table(report.tasks, report.workers, report.seconds), ""]
    if report.functions:
        lines += [*function_table(report.functions), ""]
    lines += [*stream_table(report, spec), ""]
    rows: list[tuple[str, str]] = []
    if report.dead_letters:
        found = click.style(text.count(report.dead_letters), fg="yellow")
        rows.append(("dead letters", f"{found}: secondpass dead-letters list {spec}"))
    if report.commands:
        rows.append(("commands", f"{text.count(report.commands)}: secondpass history {spec}"))
    if report.workers:
        rows.append(("workers", _workers(report)))
    if report.store is not None:
        rows.append(("store", shown(report.store)))
    if report.ended != "end of input" and report.store is not None:
        rows.append(("to go on", f"secondpass run {spec}"))
    return [*lines, *text.fields(rows)]


def _workers(report: RunReport) -> str:
    told = text.count(report.workers)
    if report.convicted or report.acquitted:
        each_s = report.deaths_s / (report.convicted + report.acquitted)
        told += (
            f"; they ended at {text.plural(report.convicted + report.acquitted, 'event')}, of which "
            f"{report.convicted} always ended them and are set aside ({text.duration(each_s)} each)"
        )
    return told


def say_hints(report: RunReport) -> None:
    """What is probably a mistake in the app."""
    for name in report.silent_tasks:
        text.hint(f"{name} dropped every event that it was given: does its handle return the event?")
