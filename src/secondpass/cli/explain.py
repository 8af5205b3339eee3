"""`secondpass explain`: why an event became what it became."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from secondpass import codec
from secondpass.app import MAIN, App
from secondpass.cli import text
from secondpass.cli.apps import load_app
from secondpass.cli.exits import DONE
from secondpass.cli.group import HELP
from secondpass.cli.history import in_words, moment
from secondpass.cli.options import app_argument, debug_option, json_option, quiet_option, store_option
from secondpass.cli.places import find_store
from secondpass.cli.shapes import (
    CallReport,
    EmittedReport,
    ExplainReport,
    LookReport,
    ReadReport,
    SetAsideReport,
    WriteReport,
    document,
    line,
)

if TYPE_CHECKING:
    from secondpass.engine.explain import Call, Explanation, Look, Read, Write
    from secondpass.store.reader import StoreReader

READS_SHOWN = 12
OTHERS_SHOWN = 5


@click.command(context_settings=HELP)
@app_argument
@click.argument("position", type=click.IntRange(min=0), required=False)
@click.option(
    "--where",
    metavar="FIELD=VALUE",
    multiple=True,
    help="The last event whose field has this value; given several times, all must fit.",
)
@click.option(
    "--output", "number", type=click.IntRange(min=0), metavar="N", help="The event that output N came from."
)
@click.option("--stream", metavar="NAME", help="The stream of that output.  [default: main]")
@click.option(
    "--back",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    help="Also explain the events that wrote what was read, N steps back.",
)
@store_option
@quiet_option
@json_option
@debug_option
def explain(
    app: str,
    position: int | None,
    where: tuple[str, ...],
    number: int | None,
    stream: str | None,
    back: int,
    store: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Show why an event became what it became.

    POSITION is its place in the log, as dead letters and `outputs --json` tell it. For each task: what the event found
    in its cells and changed there, what came of it, and which earlier event had written what was read. The app is run
    again from the nearest snapshot, or from the beginning of its input, and compared with what it put out; where its
    code or its outputs are not those that were recorded, that is said instead. Nothing is written.
    """
    from secondpass.cli.ways import quietly
    from secondpass.engine.explain import Explainer
    from secondpass.engine.snapshots import Kept
    from secondpass.store.reader import StoreReader

    if sum([position is not None, bool(where), number is not None]) != 1:
        raise click.UsageError("say which event: a POSITION, --where FIELD=VALUE, or --output N")
    if stream is not None and number is None:
        raise click.UsageError("--stream names the stream of --output N")
    loaded = load_app(app)
    opened = StoreReader.open_to_read(find_store(app, store))
    try:
        kept = Kept(opened)
        at = _chosen(loaded, opened, kept, position, where, number, stream or MAIN)
        explainer = Explainer(loaded, opened, kept.nearest)
        if not quiet and sys.stderr.isatty():
            explainer.told = _tell
        with quietly():
            found = explainer.explain(at, back)
    finally:
        opened.close()
    if as_json:
        text.say(document(report_of(found)))
    else:
        command = ["secondpass", "explain", app, *(["--store", str(store)] if store is not None else [])]
        text.say(list(lines_of(report_of(found), shlex.join(command))))
    return DONE


def _tell(since: int, upto: int) -> None:
    click.echo(click.style(f"running positions {since} to {upto - 1} again", dim=True), err=True)


def _chosen(
    app: App,
    store: StoreReader,
    kept: Any,
    position: int | None,
    where: Sequence[str],
    number: int | None,
    stream: str,
) -> int:
    from secondpass.engine.explain import position_of_output, positions_where

    if position is not None:
        return position
    if number is not None:
        return position_of_output(store, number, stream)
    fields: dict[str, str] = {}
    for one in where:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--where {one}: write FIELD=VALUE")
        fields[name] = value
    base = kept.oldest(app)
    try:
        found = positions_where(app, store, base, fields)
    finally:
        base.close()
    if len(found) > 1:
        others = ", ".join(map(str, found[-2 : -2 - OTHERS_SHOWN : -1]))
        more = ", ..." if len(found) > 1 + OTHERS_SHOWN else ""
        text.hint(
            f"{len(found)} events have {' and '.join(where)}; this is the last, before it {others}{more}"
        )
    return found[-1]


# ---------------------------------------------------------------- as plain data


def report_of(found: Explanation) -> ExplainReport:
    """An explanation as a document."""
    return ExplainReport(
        app=found.app,
        position=found.position,
        kind=found.kind,
        event=_plain(found.event),
        raw=found.raw.decode(errors="replace"),
        now=found.now if math.isfinite(found.now) else None,
        ended=found.ended,
        calls=[_call(call) for call in found.calls],
        outputs=[
            EmittedReport(stream=o.stream, number=o.number, event=_plain(o.event)) for o in found.outputs
        ],
        set_aside=[
            SetAsideReport(number=s.number, task=s.task or None, error=s.error, traceback=s.traceback)
            for s in found.set_aside
        ],
        chain=list(found.chain),
        since=found.since,
        compared=found.compared,
        forgotten=found.forgotten,
        earlier=[report_of(one) for one in found.earlier],
    )


def _call(call: Call) -> CallReport:
    return CallReport(
        task=call.task,
        path=list(call.path),
        outcome=call.outcome,
        timer=call.timer or None,
        event=_plain(call.event),
        results=[_plain(e) for e in call.results],
        reads=[_read(r) for r in call.reads],
        more_reads=call.more_reads,
        looks=[_look(look) for look in call.looks],
        iterated=list(call.iterated),
        writes=[_write(w) for w in call.writes],
        emitted=[[stream, _plain(event)] for stream, event in call.emitted],
        counts=call.counts,
        logged=list(call.logged),
        error=call.error or None,
        traceback=call.traceback or None,
        why=call.why or None,
    )


def _read(read: Read) -> ReadReport:
    return ReadReport(
        name=read.name,
        key=_plain(read.key),
        there=read.there,
        value=_plain(read.value),
        written=read.written,
        expired=read.expired,
        by=read.by.position,
        by_kind=read.by.kind,
        by_event=_plain(read.by.event),
        unknown=read.by.unknown or None,
    )


def _look(look: Look) -> LookReport:
    return LookReport(
        lookup=look.lookup, key=_plain(look.key), there=look.there, row=_plain(look.row), since=look.since
    )


def _write(write: Write) -> WriteReport:
    return WriteReport(
        name=write.name,
        key=_plain(write.key),
        was_there=write.was_there,
        before=_plain(write.before),
        is_there=write.is_there,
        after=_plain(write.after),
        written=write.written,
    )


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    from secondpass.cli.reading import plain

    return plain(codec.unpack(codec.pack_items(value)))


# ---------------------------------------------------------------- as a tree


class _Node:
    """A line of the tree, with those below it."""

    def __init__(self, said: str) -> None:
        self.said = said
        self.is_command = False
        """Whether it is to be typed again, and so is never cut: the terminal wraps it."""
        self.below: list[_Node] = []

    def add(self, said: str) -> _Node:
        self.below.append(_Node(said))
        return self.below[-1]

    def lines(self, before: str = "") -> Iterator[str]:
        columns = text.width()
        for i, node in enumerate(self.below):
            last = i == len(self.below) - 1
            said = (
                node.said
                if columns is None or node.is_command
                else _cut(node.said, columns - len(before) - 4)
            )
            yield f"{before}{'└── ' if last else '├── '}{said}"
            yield from node.lines(before + ("    " if last else "│   "))


def _cut(said: str, columns: int) -> str:
    return said if text.cells(click.unstyle(said)) <= columns else text.cut(click.unstyle(said), columns)


def lines_of(report: ExplainReport, command: str) -> Iterator[str]:
    """An explanation as a tree, and those of the events before it."""
    yield from _lines(report, command)
    for one in report.earlier:
        yield ""
        yield from _lines(one, command)
    yield ""
    told = f"run again from position {text.count(report.since)}"
    if report.compared:
        told += f"; {text.plural(report.compared, 'recorded output')} since there came out the same"
    if report.forgotten:
        told += f"; {text.count(report.forgotten)} not compared, since the store does not keep them any more"
    yield click.style(told, dim=True)


def _lines(report: ExplainReport, command: str) -> Iterator[str]:
    at = "" if report.now is None else f", {text.stream_time(report.now)}"
    yield click.style(f"position {report.position}", bold=True) + f"{at}: {report.ended}"
    if report.kind == "refused" and report.event is None:
        yield text.one_line(report.raw)
    else:
        yield _record(report.kind, report.event)
    if report.kind == "command":
        given: dict[str, Any] = report.event or {}
        told = [("by", given.get("by")), ("at", moment(given.get("at"))), ("why", given.get("reason"))]
        yield from text.fields([(name, text.one_line(said)) for name, said in told if said], indent="  ")
        return
    root = _Node("")
    nodes: dict[tuple[int, ...], _Node] = {(): root}
    for call in report.calls:
        path = tuple(call.path)
        if path not in nodes:
            nodes[path] = _parent(nodes, path).add(_due(call) if call.timer else _told(call.event))
        passed_on = [len(c.path) > len(path) and c.path[: len(path)] == call.path for c in report.calls]
        _add_call(nodes[path].add(_headline(call)), call, report.position, command, passed_on)
    for output in report.outputs:
        if output.stream == MAIN:
            root.add(f"output {output.number}: {_told(output.event)}")
    for letter in report.set_aside:
        if not letter.task:
            root.add(click.style("refused", fg="yellow") + f": {text.one_line(letter.error)}")
    yield from root.lines()


def _due(call: CallReport) -> str:
    """A timer that fired."""
    key = "" if call.event["key"] is None else f"[{_told(call.event['key'])}]"
    return f"{call.timer}{key} of {call.task}, due at {text.stream_time(call.event['time'])}"


def _parent(nodes: dict[tuple[int, ...], _Node], path: tuple[int, ...]) -> _Node:
    while path not in nodes:
        path = path[:-1]
    return nodes[path]


def _headline(call: CallReport) -> str:
    name = click.style(call.task, bold=True)
    if call.outcome == "passed by":
        why = "it is stopped" if call.why == "stopped" else "it handles other types"
        return f"{name} passed it by: {why}"
    if call.timer:
        name = f"{name}.{call.timer}"
    if call.outcome == "failed":
        return f"{name} {click.style('failed', fg='red')}: {text.one_line(call.error or '')}"
    if call.outcome == "fired":
        return f"{name} put nothing out"
    if call.outcome == "passed":
        return f"{name} passed it"
    if call.outcome == "dropped":
        return f"{name} {click.style('dropped', fg='yellow')} it"
    if call.outcome == "changed":
        return f"{name} made of it {_told(call.results[0])}"
    return f"{name} emitted {text.plural(len(call.results), 'event')}"


def _record(kind: str | None, event: Any) -> str:
    """What came at a position."""
    if kind == "tick":
        return "time that passed without an event"
    if kind == "command":
        return in_words(event)
    return ("sent again: " if kind == "retry" else "") + _told(event)


def _add_call(node: _Node, call: CallReport, at: int, command: str, passed_on: list[bool]) -> None:
    for name in call.iterated:
        node.add(f"went through {name}")
    for look in call.looks[:READS_SHOWN]:
        found = _told(look.row) if look.there else "nothing"
        below = node.add(f"look  {_cell(look.lookup, look.key)}: {found}")
        if look.since is not None:
            below.add(f"loaded at position {look.since}")
    for read in call.reads[:READS_SHOWN]:
        below = node.add(f"read  {_cell(read.name, read.key)}: {_found(read)}")
        if read.by == at:
            below.add("by an earlier call at this position")
        elif read.by is not None:
            by = below.add(f"by position {read.by}: {_record(read.by_kind, read.by_event)}")
            by.add(click.style(f"{command} {read.by}", dim=True)).is_command = True
        elif read.unknown:
            below.add(f"by an event {text.one_line(read.unknown)}")
    told = len(call.reads) + len(call.looks)
    hidden = told + call.more_reads - len(call.reads[:READS_SHOWN]) - len(call.looks[:READS_SHOWN])
    if hidden > 0:
        node.add(f"read  {text.plural(hidden, 'more cell')} (--json tells the first {told})")
    for write in call.writes:
        before = _told(write.before) if write.was_there else "nothing"
        after = _told(write.after) if write.is_there else "nothing"
        node.add(f"wrote {_cell(write.name, write.key)}: {before} -> {after}")
    if call.outcome == "emitted" and not any(passed_on):
        for result in call.results:
            node.add(_told(result))
    for stream, event in call.emitted:
        node.add(f"emitted on {stream}: {_told(event)}")
    for name, n in call.counts.items():
        node.add(f"counted {name}: {n}")
    for said in call.logged:
        node.add(f"logged {text.one_line(said)}")
    if call.traceback:
        for frame in call.traceback.splitlines()[1:-1]:
            if frame.strip(" ^~"):
                node.add(click.style(text.one_line(frame.strip()), dim=True))


def _cell(name: str, key: Any) -> str:
    return name if key is None else f"{name}[{_told(key)}]"


def _found(read: ReadReport) -> str:
    if read.expired:
        return f"nothing, since {_told(read.value)} of {text.stream_time(read.written)} has expired"
    if not read.there:
        return "nothing"
    at = "" if read.written is None else f", of {text.stream_time(read.written)}"
    return f"{_told(read.value)}{at}"


def _told(value: Any) -> str:
    return text.one_line(value) if isinstance(value, str) and not value else line(value)
