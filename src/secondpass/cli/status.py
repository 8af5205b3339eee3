"""`secondpass status`: where an app stands, from its store."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.exits import exit_code
from secondpass.cli.group import HELP
from secondpass.cli.options import debug_option, json_option, store_option, stored_app_argument
from secondpass.cli.places import find_store, find_stores
from secondpass.cli.run_report import function_table, place_of, place_table
from secondpass.cli.shapes import (
    FunctionReport,
    HolderReport,
    LookupReport,
    SourceReport,
    StatusReport,
    StoreReport,
    StreamReport,
    TaskReport,
    document,
)
from secondpass.errors import StoreError

if TYPE_CHECKING:
    from secondpass.store.reader import StoreReader


@click.command(context_settings=HELP)
@stored_app_argument
@store_option
@json_option
@debug_option
def status(app: str | None, store: Path | None, as_json: bool) -> int:
    """Show where an app stands.

    Without APP all stores below this directory are listed. The app's code is not imported.
    """
    many = app is None and store is None
    directories = find_stores(None) if many else [find_store(app, store)]
    if not directories:
        directories = [find_store(app, store)]  # raises what tells how to make one
    reports: list[StoreReport] = []
    code = 0
    for directory in directories:
        try:
            reports.append(report_of(directory))
        except StoreError as error:
            if not many:
                raise
            reports.append(StoreReport(app=None, file=None, store=str(directory), problem=str(error)))
            code = exit_code(error)
    if as_json:
        text.say(document(StatusReport(stores=reports)))
    elif len(reports) == 1 and reports[0].problem is None:
        text.say(_details(reports[0]))
    else:
        text.say(_list(reports))
    return code


def report_of(directory: Path) -> StoreReport:
    """Everything that a store says about its app."""
    from secondpass.cli.reading import chain_of, reading
    from secondpass.store.lock import holder_of
    from secondpass.store.spool import Spool

    holder = holder_of(directory)
    with reading(directory) as store:
        progress = store.progress
        app: dict[str, Any] = store.meta("app") or {}
        chain: list[str] = [task["name"] for task in chain_of(store)]
        letters: dict[str, int] = {}
        for _, state, _ in store.letters():
            letters[state] = letters.get(state, 0) + 1
        starts = [details["at"] for _, kind, details in store.history() if kind == "start"]
        return StoreReport(
            app=app.get("name"),
            file=app.get("file"),
            store=str(directory),
            running=None
            if holder is None
            else HolderReport(pid=holder.get("pid"), host=holder.get("host"), since=holder.get("since")),
            position=progress.position,
            time=progress.now if math.isfinite(progress.now) else None,
            started=starts[-1] if starts else None,
            committed=_committed(directory),
            size_bytes=sum(p.stat().st_size for p in _files(directory)),
            paused=progress.paused,
            chain=chain,
            stopped=[task["name"] for task in chain_of(store) if task.get("stopped")],
            tasks=[
                _task(name, progress.tallies[name], progress.places.get(name))
                for name in chain
                if name in progress.tallies
            ],
            streams=[
                StreamReport(name=name, outputs=0, total=number, to=_target(progress.sinks.get(name)))
                for name, number in progress.numbers.items()
            ],
            sources=[
                _source(place, app.get("file"), directory) for place in progress.sources if place is not None
            ],
            functions=_functions(directory, running=holder is not None),
            lookups=_lookups(store, directory),
            dead_letters=letters,
            commands_waiting=len([c for c in Spool(directory).waiting() if c[0] not in progress.commands]),
        )


def _files(directory: Path) -> Iterator[Path]:
    for name in ("store.db", "store.db-wal"):
        path = directory / name
        if path.is_file():
            yield path


def _committed(directory: Path) -> float | None:
    """When something was committed last: a commit writes the WAL, or the database where there is none."""
    return max((p.stat().st_mtime for p in _files(directory)), default=None)


def _task(name: str, tally: dict[str, Any], placed: Any) -> TaskReport:
    return TaskReport(
        name=name,
        events=tally["events"],
        passed=tally["passed"],
        dropped=tally["dropped"],
        errors=tally["errors"],
        counts=tally.get("counts", {}),
        fired=tally.get("fired", 0),
        placed=None if placed is None else place_of(placed),
    )


def _target(state: Any) -> str | None:
    path = state.get("path") if isinstance(state, dict) else None  # type: ignore[union-attr]
    return path if isinstance(path, str) else None


def _functions(directory: Path, *, running: bool) -> list[FunctionReport]:
    """What the last run has told of its sources; one that was killed has not told that they are gone."""
    from secondpass.store.log import DIRECTORY

    try:
        found = msgspec.json.decode(
            (directory / DIRECTORY / "sources").read_bytes(), type=list[FunctionReport]
        )
    except (OSError, msgspec.MsgspecError):
        return []
    for function in found:
        if not running and function.state != "ended":
            function.state, function.again_at, function.pid = "stopped", None, None
    return found


def _lookups(store: StoreReader, directory: Path) -> list[LookupReport]:
    """What was loaded last of each lookup that the chain has, and why it is not loaded again."""
    from secondpass.engine.lookups import FILE

    try:
        failed = msgspec.json.decode((directory / FILE).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        failed = {}
    declared = {name for task in store.meta("chain") or () for name in task.get("lookups", ())}
    found: dict[str, LookupReport] = {}
    loads = [(position, details["lookup"], details) for _, position, details in store.history_of("loaded")]
    loads += [
        (position, details["task"], details)
        for _, position, details in store.history_of("command")
        if details["asked"] == "reload"
    ]
    for position, name, details in sorted(loads, key=lambda load: load[0]):
        if name in declared:
            found[name] = LookupReport(
                name=name,
                rows=details["rows"],
                source=details["by"],
                position=position,
                at=details["at"],
                error=failed.get(name),
            )
    return list(found.values())


def _log(offset: Any, taken: int, directory: Path) -> SourceReport:
    from secondpass.store.log import standing

    log = standing(directory)
    if log is None:
        return SourceReport(name="log", offset=offset, done=taken, total=None)
    return SourceReport(
        name="log", offset=offset, done=taken, total=log.durable, oldest=log.oldest, size_bytes=log.bytes
    )


def _source(place: dict[str, Any], app_file: str | None, directory: Path) -> SourceReport:
    offset: Any = place.get("offset") or {}
    if "log" in offset:
        return _log(offset, offset["next"] + place["skip"], directory)
    inner = offset
    if "ordered" in offset:
        # Where the oldest record that was not given begins: at first there is no place yet.
        inner = offset["inner"] or {"path": offset.get("name", "memory")}
    name = str(inner.get("path", "memory"))
    done, total = inner.get("bytes", inner.get("count")), None
    if "bytes" in inner:
        bases = [Path(), *([Path(app_file).parent] if app_file else [])]
        with contextlib.suppress(OSError, StopIteration):
            total = next(p for p in (base / name for base in bases) if p.is_file()).stat().st_size
    return SourceReport(name=name, offset=offset, done=done, total=total)


# ---------------------------------------------------------------- for people


def _list(reports: list[StoreReport]) -> list[str]:
    rows: list[list[str]] = []
    for report in reports:
        if report.problem is not None:
            rows.append([Path(report.store).name, "unreadable", "", "", "", report.problem])
            continue
        rows.append(
            [
                report.app or text.DASH,
                _state(report),
                text.count(report.position),
                text.count(report.dead_letters.get("open", 0)),
                _since(report.committed),
                shown(report.store),
            ]
        )
    return text.table(
        ["app", "state", "events", "dead letters", "last commit", "store"], rows, right="llrrll"
    )


def _state(report: StoreReport) -> str:
    found = "at rest" if report.running is None else f"running ({report.running.pid})"
    return f"{found}, paused" if report.paused else found


def _since(at: float | None) -> str:
    return text.DASH if at is None else text.ago(max(0.0, time.time() - at))


def _details(report: StoreReport) -> list[str]:
    running = report.running
    state = (
        "at rest"
        if running is None
        else f"running: process {running.pid} on {running.host} since {running.since}"
    )
    rows = [("state", click.style(state, fg="green") if running else state)]
    if report.paused:
        rows.append(
            (
                "paused",
                click.style(
                    f"it takes no events: secondpass resume {shown(report.file or '')}".rstrip(), fg="yellow"
                ),
            )
        )
    if report.stopped:
        rows.append(("stopped", click.style(f"{', '.join(report.stopped)}: events pass by", fg="yellow")))
    rows += [
        ("events", text.count(report.position)),
        ("stream's time", text.stream_time(report.time)),
        ("last start", _since(report.started)),
        ("last commit", _since(report.committed)),
        ("store", f"{shown(report.store)} ({text.size(report.size_bytes)})"),
    ]
    if report.file is not None:
        rows.append(("app", shown(report.file)))
    rows += [("source", f"{shown(s.name)}{_how_far(s)}") for s in report.sources]
    for found in report.lookups:
        since = f"loaded {_since(found.at)}, position {text.count(found.position)}"
        told = f"{found.name}: {text.plural(found.rows, 'row')} of {shown(found.source)}, {since}"
        rows.append(("lookup", told))
        if found.error is not None:
            rows.append(("", click.style(f"cannot be read again: {found.error}", fg="yellow")))
    letters = report.dead_letters
    if letters:
        told = ", ".join(f"{text.count(letters[s])} {s}" for s in ("open", "sent", "dropped") if s in letters)
        rows.append(("dead letters", click.style(told, fg="yellow") if "open" in letters else told))
    if report.commands_waiting:
        rows.append(
            ("commands", f"{report.commands_waiting} waiting{'' if report.running else ' for the next run'}")
        )
    lines = [click.style(report.app or "an app", bold=True), *text.fields(rows, indent="  ")]
    if report.tasks:
        table = [
            [t.name, text.count(t.events), text.count(t.passed), text.count(t.dropped), text.count(t.errors)]
            for t in report.tasks
        ]
        head = ["task", "events", "passed", "dropped", "errors"]
        if any(t.fired for t in report.tasks):
            head.append("timers fired")
            table = [[*row, text.count(t.fired)] for row, t in zip(table, report.tasks, strict=True)]
        lines += ["", *text.table(head, table, right="l" + "r" * (len(head) - 1))]
    if any(t.placed is not None and t.placed.shipped for t in report.tasks):
        lines += ["", *place_table(report.tasks, 0)]
    counts = [[t.name, n, text.count(c)] for t in report.tasks for n, c in sorted(t.counts.items())]
    if counts:
        lines += ["", *text.table(["task", "counter", "count"], counts, right="llr")]
    if report.functions:
        lines += ["", *function_table(report.functions)]
    if report.streams:
        streams = [[s.name, text.count(s.total), shown(s.to) if s.to else text.DASH] for s in report.streams]
        lines += ["", *text.table(["output", "in all", "goes to"], streams, right="lrl")]
    return lines


def _how_far(source: SourceReport) -> str:
    if source.done is None:
        return ""
    if source.size_bytes is not None and source.total is not None:
        behind = max(0, source.total - source.done)
        told = f"all {text.count(source.done)}" if not behind else f"{text.count(source.done)}"
        rest = f", {text.count(behind)} wait" if behind else ""
        gone = f", the first {text.count(source.oldest)} have left it" if source.oldest else ""
        return f": {told} records taken{rest}{gone} ({text.size(source.size_bytes)})"
    if source.total is None:
        return f": read to {text.count(source.done)}"
    behind = source.total - source.done
    if behind <= 0:
        return f": all {text.size(source.total)} read"
    return f": {text.size(behind)} of {text.size(source.total)} not yet read"
