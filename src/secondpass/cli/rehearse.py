"""`secondpass rehearse`: what a changed chain would have put out."""

from __future__ import annotations

import copy
import errno
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from secondpass.cli import text
from secondpass.cli.apps import load_app, load_beside, shown
from secondpass.cli.exits import DIFFERENCE, DONE
from secondpass.cli.explain import _plain
from secondpass.cli.group import HELP
from secondpass.cli.options import (
    app_argument,
    debug_option,
    json_option,
    quiet_option,
    store_option,
    workers_option,
)
from secondpass.cli.places import find_store
from secondpass.cli.shapes import (
    DifferenceReport,
    RateReport,
    RehearsalReport,
    StreamDifferenceReport,
    TaskReport,
    document,
    line,
)
from secondpass.errors import OutputError

if TYPE_CHECKING:
    from secondpass.engine.rehearse import Rehearsal

SPARKS = " ▁▂▃▄▅▆▇█"
COLUMNS = 60
FIRST = 10


@click.command(context_settings=HELP)
@app_argument
@click.option(
    "--set",
    "settings",
    metavar="TASK.SETTING=VALUE",
    multiple=True,
    help="Another setting; VALUE is JSON, or text.",
)
@click.option(
    "--code",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The chain of another file in place of the app's.",
)
@click.option("--without", metavar="TASK", multiple=True, help="Leave a task out.")
@click.option("--from", "begin", metavar="WHERE", help="Begin at a position, or at a time.")
@click.option("--to", "end", metavar="WHERE", help="End before a position, or before a time.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a report into this file.",
)
@workers_option
@store_option
@quiet_option
@json_option
@debug_option
def rehearse(
    app: str,
    settings: tuple[str, ...],
    code: Path | None,
    without: tuple[str, ...],
    begin: str | None,
    end: str | None,
    html: Path | None,
    workers: int | None,
    store: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Show what a changed chain would have put out.

    Runs the app's recorded log through the changed chain, in memory, on every core and with low priority, beside what
    was really put out. What the app's file has otherwise than at its last start counts as a change, and so do --set,
    --code and --without. WHERE is a position (812), a moment of the stream in seconds (812.0) or a date. The store is
    only read; the app may run meanwhile.
    """
    from secondpass.cli.apart import apart

    if html is not None:
        _refuse_unwritable(html)
    changes = _settings(settings)

    def rehearsed() -> int:
        from secondpass.cli.ways import quietly
        from secondpass.engine.rehearse import moment
        from secondpass.engine.rehearse import rehearse as run
        from secondpass.store.reader import StoreReader

        ran = loaded = load_app(app)
        if code is not None:
            loaded = copy.copy(ran)
            loaded.tasks = load_beside(ran, code).tasks
        directory = find_store(app, store)
        opened = StoreReader.open_to_read(directory)
        try:
            with quietly():
                found = run(
                    loaded,
                    opened,
                    ran=ran,
                    settings=changes,
                    without=without,
                    begin=None if begin is None else moment(begin),
                    end=None if end is None else moment(end),
                    workers=workers,
                )
        finally:
            opened.close()
        command = ["secondpass", "explain", app, *(["--store", str(store)] if store is not None else [])]
        report = report_of(found, str(directory), shlex.join(command))
        if html is not None:
            from secondpass.cli.rehearsal_page import page

            _write(html, page(report))
        if as_json:
            text.say(document(report))
        else:
            text.say(list(lines_of(report)))
            if html is not None and not quiet:
                text.say(f"the report is in {shown(html)}", err=True)
        unexpected = report.stopped is not None or (report.differences and not report.changes)
        return DIFFERENCE if unexpected else DONE

    return apart(rehearsed)


def _settings(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in given:
        where, equals, value = one.partition("=")
        task, point, setting = where.rpartition(".")
        if not equals or not point or not task or not setting:
            raise click.UsageError(f"--set {one}: write TASK.SETTING=VALUE")
        try:
            parsed = msgspec.json.decode(value)
        except msgspec.DecodeError:
            parsed = value
        found.setdefault(task, {})[setting] = parsed
    return found


def _refuse_unwritable(path: Path) -> None:
    """Say before the work what would be said after it."""
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: {os.strerror(errno.EACCES)}")


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


# ---------------------------------------------------------------- as plain data


def report_of(found: Rehearsal, store: str, command: str) -> RehearsalReport:
    """A rehearsal as a document."""
    rates = found.rates
    bins = 1 + max((n for numbers in rates.bins.values() for n in numbers), default=-1)
    return RehearsalReport(
        app=found.app,
        store=store,
        changes=found.changes,
        begin=found.begin,
        end=found.end,
        compared_from=found.compared_from,
        differences=found.differences,
        streams=[
            StreamDifferenceReport(
                name=s.name,
                recorded=s.recorded,
                rehearsed=s.rehearsed,
                same=s.same,
                gone=s.gone,
                new=s.new,
                changed=s.changed,
            )
            for s in found.streams
        ],
        first=[
            DifferenceReport(
                kind=d.kind,
                stream=d.stream,
                position=d.position,
                time=d.time if math.isfinite(d.time) else None,
                event=_event(d.event),
                recorded=d.recorded,
                rehearsed=d.rehearsed,
                explain=f"{command} {d.position}" if d.position in found.explainable else None,
            )
            for d in found.first
        ],
        rates_begin=rates.begin if math.isfinite(rates.begin) else None,
        rates_width_s=rates.width_s,
        rates=[
            RateReport(
                stream=name,
                recorded=[numbers.get(n, [0, 0])[0] for n in range(bins)],
                rehearsed=[numbers.get(n, [0, 0])[1] for n in range(bins)],
            )
            for name, numbers in rates.bins.items()
        ],
        tasks=[
            TaskReport(
                name=name,
                events=t.events,
                passed=t.passed,
                dropped=t.dropped,
                errors=t.errors,
                counts=t.counts,
            )
            for name, t in found.tallies.items()
        ],
        seconds=round(found.seconds, 3),
        events_per_second=round((found.end - found.begin) / max(found.seconds, 1e-9), 1),
        stopped=found.stopped,
        repeated=found.repeated,
        notes=found.notes,
    )


def _event(event: Any) -> Any:
    from secondpass.record import Refused

    return event.raw.decode(errors="replace") if isinstance(event, Refused) else _plain(event)


# ---------------------------------------------------------------- to read


def lines_of(report: RehearsalReport) -> Iterator[str]:
    """A rehearsal as text."""
    yield (
        click.style(report.app, bold=True)
        + f": {text.positions(report.begin, report.end)} rehearsed"
        + (" with" if report.changes else ", unchanged")
    )
    for change in report.changes:
        yield f"  {change}"
    yield ""
    yield from text.table(
        ["stream", "put out", "rehearsed", "same", "gone", "new", "changed"],
        [
            [s.name, *map(text.count, (s.recorded, s.rehearsed, s.same, s.gone, s.new, s.changed))]
            for s in report.streams
        ],
        right="lrrrrrr",
    )
    yield from _rates(report)
    if report.first:
        yield ""
        told = "the differences" if report.differences <= FIRST else "the first differences"
        yield click.style(f"{told}:", bold=True)
        for one in report.first[:FIRST]:
            yield from _difference(one)
    yield ""
    if report.stopped is not None:
        yield click.style("stopped: ", fg="red", bold=True) + text.one_line(report.stopped)
    if not report.differences:
        yield (
            "no difference"
            if report.stopped is None
            else f"no difference before position {text.count(report.end)}; there the changed chain stops the app"
        )
    elif not report.changes:
        yield click.style("nothing was changed, and yet it differs", fg="red", bold=True) + (
            ": what runs now is not what ran, or handle depends on more than event and state (`secondpass check` finds out)"
        )
    for note in report.notes:
        yield click.style(f"note: {text.one_line(note)}", dim=True)
    told = f"{text.plural(report.end - report.begin, 'record')} in {text.duration(report.seconds)}"
    if report.repeated:
        told += f"; unchanged, the first {text.plural(report.repeated, 'output')} came out as recorded"
    yield click.style(told, dim=True)


def _difference(one: DifferenceReport) -> Iterator[str]:
    at = "" if one.time is None else f", {text.stream_time(one.time)}"
    kind = click.style(one.kind, fg={"gone": "red", "new": "green", "changed": "yellow"}[one.kind])
    stream = "" if one.stream == "main" else f" on {one.stream}"
    if one.kind == "changed":
        yield f"  {kind}{stream} at position {one.position}{at}: {line(one.recorded)}"
        yield f"    now {line(one.rehearsed)}"
    else:
        said = line(one.recorded if one.kind == "gone" else one.rehearsed)
        yield f"  {kind}{stream} at position {one.position}{at}: {said}"
    if one.explain is not None:
        yield click.style(f"    {one.explain}", dim=True)


def _rates(report: RehearsalReport) -> Iterator[str]:
    """Outputs over the stream's time, both ways, on one scale."""
    begin = report.rates_begin
    for rate in report.rates:
        recorded, rehearsed = _fewer(rate.recorded), _fewer(rate.rehearsed)
        most = max([*recorded, *rehearsed], default=0)
        if begin is None or len(recorded) < 2 or not most:
            continue
        yield ""
        end = begin + report.rates_width_s * len(rate.recorded)
        yield f"{rate.stream} over time, {text.stream_time(begin)} to {text.stream_time(end)}:"
        yield f"  put out    {_spark(recorded, most)}"
        yield f"  rehearsed  {_spark(rehearsed, most)}"


def _fewer(counts: Sequence[int]) -> list[int]:
    """At most so many columns."""
    step = -(-len(counts) // COLUMNS)
    return [sum(counts[i : i + step]) for i in range(0, len(counts), step)] if step else []


def _spark(counts: Sequence[int], most: int) -> str:
    return "".join(SPARKS[-(-n * (len(SPARKS) - 1) // most)] for n in counts)
