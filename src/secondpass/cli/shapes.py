"""What `--json` prints: one type for each document. The reference page is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from secondpass.cli import text


class Shape(msgspec.Struct, kw_only=True):
    """A document, or a part of one."""


def says(description: str) -> msgspec.Meta:
    """What a field means."""
    return msgspec.Meta(description=description)


class PlaceReport(Shape):
    """Where a task ran, and what that cost."""

    where: Annotated[
        Literal["inline", "workers", "both"], says("in the process that stores, on workers; both if it moved")
    ]
    now: Annotated[Literal["inline", "workers"], says("where it ran last")]
    cost_s: Annotated[float | None, says("seconds of one event, as measured last")]
    busy_s: Annotated[float, says("seconds on workers, added up")]
    shipped: Annotated[int, says("events that went to workers")]
    bytes: Annotated[int, says("that went to workers and back")]
    waited: Annotated[int, says("events that had to wait for an earlier one with a key of theirs")]
    width: Annotated[float | None, says("events that could run at once, as far as their keys let them")]
    why: Annotated[str, says("why it cannot run on workers; empty where it can")] = ""


class TaskReport(Shape):
    """What became of the events that reached one task."""

    name: str
    events: int
    passed: Annotated[int, says("events that it put out")]
    dropped: Annotated[int, says("events for which it put out none")]
    errors: int
    counts: Annotated[dict[str, int], says("its own counters")]
    seconds: Annotated[float | None, says("time spent in it; null where it is not known")] = None
    fired: Annotated[int, says("calls of its timers and schedules")] = 0
    placed: Annotated[PlaceReport | None, says("where it ran; null where it is not known")] = None


class StreamReport(Shape):
    """One stream of outputs."""

    name: str
    outputs: Annotated[int, says("of this run")]
    total: Annotated[int, says("of the store's whole life")]
    to: Annotated[str | None, says("where they go; null where the store alone keeps them")]


class FunctionReport(Shape):
    """A function that is a source."""

    name: str
    state: Annotated[
        Literal["running", "waiting", "ended", "stopped"],
        says("waiting: it has raised, and is started again; stopped: its run has ended"),
    ]
    events: Annotated[int, says("appended by it in its run")]
    restarts: int
    error: Annotated[str | None, says("what it raised last")]
    again_at: Annotated[float | None, says("when it is started again, seconds since 1970")]
    pid: Annotated[int | None, says("its process, where it has its own")]


class RunReport(Shape):
    """What a run did."""

    app: str
    store: Annotated[str | None, says("its directory")]
    ended: Literal["end of input", "stopped", "limit"]
    nothing_new: Annotated[bool, says("all of the input was done by earlier runs")]
    events: Annotated[int, says("records taken in this run")]
    position: Annotated[int, says("records taken in the store's whole life")]
    epochs: int
    seconds: float
    events_per_second: float
    tasks: list[TaskReport]
    streams: list[StreamReport]
    dead_letters: Annotated[int, says("events set aside in this run")]
    workers: Annotated[int, says("processes that ran tasks; 0 where none was started")]
    convicted: Annotated[int, says("events that were set aside since they ended their workers")]
    acquitted: Annotated[int, says("events at which a worker ended, and which ran well alone")]
    deaths_s: Annotated[float, says("seconds that such events took, each from the first death to its end")]
    functions: Annotated[list[FunctionReport], says("the functions that are sources")]
    commands: Annotated[int, says("to the chain or the app, done in this run")]
    changes: Annotated[list[str], says("how the chain differs from that of the run before")]
    silent_tasks: Annotated[list[str], says("tasks that dropped everything")]


class OutputLine(Shape):
    """One output: a line of `outputs --json`."""

    stream: str
    number: Annotated[int, says("its number in the stream, from 0")]
    position: Annotated[int, says("the position of the event that it came from")]
    event: Any


class TryLine(Shape, omit_defaults=True):
    """A line of `try --json`: an output, a dead letter, or at the end the summary."""

    stream: Annotated[str | None, says("of an output")] = None
    event: Annotated[Any, says("the output, or the event that was set aside")] = None
    dead_letter: Annotated[Letter | None, says("an event that was set aside")] = None
    summary: Annotated[RunReport | None, says("the last line")] = None


class Letter(Shape):
    """An event set aside."""

    number: int
    status: Literal["open", "sent", "dropped"]
    position: int
    task: Annotated[str | None, says("null where it was set aside before the chain")]
    error: str
    traceback: str
    event: Annotated[Any, says("null where the input was no event")]
    raw: Annotated[str, says("the input, where it was no event")]
    source: str
    offset: int


class LetterGroup(Shape):
    """Dead letters of one task with alike errors."""

    task: str | None
    error: Annotated[str, says("of the oldest; alike are those that differ in digits")]
    count: int
    oldest: Annotated[int, says("the number of the oldest")]
    newest: int
    oldest_position: int


class LetterList(Shape):
    """`dead-letters list`."""

    store: str
    status: str
    count: int
    groups: list[LetterGroup]


class CommandReport(Shape):
    """`dead-letters retry` and `drop`: what was asked for, and what became of it."""

    store: str
    kind: Literal["retry", "drop"]
    letters: list[int]
    running: Annotated[bool, says("an app is running and does it now; otherwise the next run does")]
    outcome: Literal["done", "asked for", "left for the next run", "nothing to do"]
    positions: Annotated[
        dict[int, int], says("by number: the place in the stream of each that was sent again")
    ] = {}
    left_out: Annotated[dict[int, str], says("why, by number, for those that the app could not do")] = {}
    failed_again: Annotated[list[int], says("the numbers of the new dead letters")] = []


class SourceReport(Shape):
    """How far one source was read."""

    name: str
    offset: Any
    done: Annotated[int | None, says("bytes, items or records read; null where nobody knows")]
    total: Annotated[int | None, says("of so many; null where nobody knows")]
    oldest: Annotated[int | None, says("of a log: the first record that is still there")] = None
    size_bytes: Annotated[int | None, says("of a log: what its files take")] = None


class TableReport(Shape):
    """A table or a value of a task."""

    task: str
    name: str
    kind: Literal["table", "value"]
    key: Annotated[str | None, says("its declared type; null for a value")]
    value: str
    cells: Annotated[int | None, says("that have not expired; null where they were not counted")]


class HolderReport(Shape):
    """The process that runs the app."""

    pid: int | None
    host: str | None
    since: str | None


class LookupReport(Shape):
    """What a lookup holds."""

    name: str
    rows: int
    source: str
    position: Annotated[int, says("from which on it holds that")]
    at: Annotated[float | None, says("when it was loaded, seconds since 1970")]
    error: Annotated[
        str | None, says("why its source cannot be read again, at the last try of the last run")
    ] = None


class StoreReport(Shape):
    """Where an app stands."""

    app: str | None
    file: Annotated[str | None, says("the app's file at its last start")]
    store: str
    problem: Annotated[str | None, says("why the store cannot be read; the rest is empty then")] = None
    running: HolderReport | None = None
    position: Annotated[int, says("records taken")] = 0
    time: Annotated[float | None, says("the stream's time, seconds")] = None
    started: Annotated[float | None, says("when the last run began, seconds since 1970")] = None
    committed: Annotated[float | None, says("when something was committed last")] = None
    size_bytes: int = 0
    paused: Annotated[bool, says("it takes no records until somebody resumes it")] = False
    chain: list[str] = []
    stopped: Annotated[list[str], says("tasks of the chain that events pass by")] = []
    tasks: list[TaskReport] = []
    streams: list[StreamReport] = []
    sources: list[SourceReport] = []
    functions: Annotated[list[FunctionReport], says("the functions that are sources")] = []
    lookups: list[LookupReport] = []
    dead_letters: Annotated[dict[str, int], says("by status: open, sent, dropped")] = {}
    commands_waiting: Annotated[int, says("commands that no run has done yet")] = 0


class GivenCommand(Shape):
    """A command to a task or an app, and what became of it."""

    store: str
    command: Literal[
        "start", "stop", "set", "add", "remove", "replace", "drop", "pause", "resume", "end"
    ]  # fmt: skip
    task: Annotated[str | None, says("null for a command to the app")]
    outcome: Annotated[
        Literal["done", "asked for", "left for the next run", "nothing runs"],
        says("`asked for`: the running app does it, and nobody waited"),
    ]
    position: Annotated[int | None, says("its place in the stream; null where it is not done yet")]
    undo: Annotated[str | None, says("the command that undoes it; null where there is none")]


class ChainTask(Shape):
    """A task of the chain."""

    place: Annotated[int, says("in the chain, from 1")]
    name: str
    stopped: bool
    settings: dict[str, Any]
    file_settings: Annotated[dict[str, Any], says("those that a command changed, as the app's file has them")]
    added: Annotated[bool, says("by a command: the file did not have it at the last start")]
    size_bytes: Annotated[int, says("what it remembers, in the store")]


class AsideTask(Shape):
    """A task that has left the chain, and what it put aside for its return."""

    name: str
    state: list[str]
    size_bytes: int


class TaskList(Shape):
    """`task list`."""

    app: str | None
    store: str
    running: bool
    paused: bool
    tasks: Annotated[list[ChainTask], says("in their order")]
    removed: Annotated[list[str], says("tasks of the app's file that a command has taken out")]
    aside: list[AsideTask]


class ExportedCell(Shape):
    """One cell; a value has one, without a key, or none where it was never assigned."""

    key: Any
    value: Any
    written: Annotated[
        float | None, says("the stream's time when it was assigned; null without a time to live")
    ]


class ExportedState(Shape):
    """A table or a value, with all that it holds."""

    name: str
    kind: Literal["table", "value"]
    key: Annotated[str | None, says("its declared type; null for a value")]
    value: str
    ttl_s: float | None
    cells: Annotated[list[ExportedCell], says("that have not expired, in key order")]


class TaskExport(Shape):
    """`task export`: what a task remembers."""

    app: str | None
    task: str
    position: Annotated[int, says("records taken")]
    time: Annotated[float | None, says("the stream's time, seconds")]
    aside: Annotated[bool, says("the task has left the chain")]
    state: list[ExportedState]


class HistoryLine(Shape):
    """Something that was done to an app: a line of `history --json`."""

    kind: Annotated[
        Literal["start", "command", "left out", "timetable", "retry", "drop", "verdict", "loaded"],
        says(
            "`left out`: a command that was refused; `timetable`: a switch that changed nothing; `loaded`: a lookup, "
            "before the first event (a reload is a command)"
        ),
    ]
    position: int
    at: Annotated[float | None, says("seconds since 1970; null where the store does not know")]
    by: str | None
    task: str | None
    what: Annotated[str, says("in words")]
    reason: Annotated[str, says("why it was done, or left out")]
    details: Annotated[Any, says("all that the store keeps of it")]


class StatusReport(Shape):
    """`status`."""

    stores: list[StoreReport]


class StateReport(Shape):
    """`state ls`."""

    store: str
    tables: list[TableReport]


class Cell(Shape):
    """One cell; a line of `state ls TASK.TABLE --json`, the document of `state get`."""

    task: str
    table: str
    key: Annotated[Any, says("null for a value")]
    value: Any
    written: Annotated[
        float | None, says("the stream's time when it was assigned; null without a time to live")
    ]


class Way(Shape):
    """One way of running the app."""

    name: str
    seconds: float
    same: Annotated[bool, says("it gave what the plain loop gives")]


class Difference(Shape):
    """The first place where a way differs."""

    way: str
    what: Annotated[str, says("output, dead letter, state, or how it ended")]
    position: int | None
    event: Annotated[Any, says("the event at that position")]
    expected: Annotated[Any, says("by the plain loop; null where it has none")]
    found: Annotated[Any, says("by that way; null where it has none")]
    hint: str


class CheckReport(Shape):
    """`check`."""

    app: str
    events: int
    same: bool
    ways: list[Way]
    difference: Difference | None


class ScheduledEvent(Shape):
    """One event, and what it waits for."""

    number: Annotated[int, says("in the order of the log, from 0")]
    position: int
    path: Annotated[
        list[int], says("its index in each list that it was emitted in; empty for the record's own")
    ]
    keys: Annotated[list[Any] | None, says("null: it may touch every cell, and waits for all before it")]
    error: Annotated[str | None, says("what `keys` raised")]
    waits_for: Annotated[list[int], says("the numbers of the earlier events that it waits for directly")]
    step: Annotated[int, says("at which it can run at the earliest, from 1")]


class ScheduleReport(Shape):
    """`schedule`."""

    app: str
    task: str
    events: list[ScheduledEvent]
    steps: Annotated[int, says("the length of the longest chain of events that wait for each other")]
    chain: Annotated[list[int], says("the numbers of one such chain")]
    width: Annotated[float, says("events / steps: how many run at once, with as many workers as one likes")]
    at_once: Annotated[dict[str, float], says("by workers: the smaller of their number and the width")]
    advice: list[str]


class ReadReport(Shape):
    """A cell that a call looked at, as earlier records left it."""

    name: Annotated[str, says("of the table or the value")]
    key: Annotated[Any, says("null for a value")]
    there: Annotated[bool, says("whether there was such a cell")]
    value: Annotated[Any, says("what it held; of an expired one, what it had held")]
    written: Annotated[
        float | None, says("the stream's time when it was assigned; null without a time to live")
    ]
    expired: bool
    by: Annotated[
        int | None, says("the position of the record that had changed it last; null where none is known")
    ]
    by_kind: Annotated[
        Literal["event", "retry", "refused", "tick", "command"] | None, says("what that record is")
    ]
    by_event: Annotated[Any, says("what came there")]
    unknown: Annotated[str | None, says("why the position is not known, where somebody changed it")]


class WriteReport(Shape):
    """A cell that a call changed."""

    name: str
    key: Annotated[Any, says("null for a value")]
    was_there: bool
    before: Any
    is_there: bool
    after: Any
    written: float | None


class LookReport(Shape):
    """A row of a lookup that a call looked up."""

    lookup: str
    key: Any
    there: bool
    row: Any
    since: Annotated[
        int | None,
        says(
            "the position of the reload since which it was there; null for one before all that was run again"
        ),
    ]


class EmittedReport(Shape):
    """An output that came of the record."""

    stream: str
    number: int
    event: Any


class CallReport(Shape):
    """What one task did with the event."""

    task: str
    path: Annotated[
        list[int], says("the event's index in each list that it was emitted in; empty for the record's own")
    ]
    outcome: Literal["passed", "changed", "emitted", "dropped", "failed", "passed by", "fired"]
    timer: Annotated[
        str | None, says("the timer or schedule that called it; `event` is its key and time then")
    ]
    event: Any
    results: Annotated[list[Any], says("the events that it put out")]
    reads: list[ReadReport]
    more_reads: Annotated[int, says("cells beyond those that are listed")]
    looks: Annotated[list[LookReport], says("what it looked up")]
    iterated: Annotated[list[str], says("tables that it went through from end to end")]
    writes: list[WriteReport]
    emitted: Annotated[list[Any], says("[stream, event] of each event on a named output")]
    counts: dict[str, int]
    logged: list[str]
    error: str | None
    traceback: str | None
    why: Annotated[str | None, says("`stopped` or `type`, where it passed the event by")]


class SetAsideReport(Shape):
    """A dead letter that came of the record."""

    number: int
    task: Annotated[str | None, says("null where it was set aside before the chain")]
    error: str
    traceback: str


class ExplainReport(Shape):
    """`explain`: what became of one record, and why."""

    app: str
    position: int
    kind: Literal["event", "retry", "refused", "tick", "command"]
    event: Annotated[Any, says("of a command its details; null for what was no event")]
    raw: Annotated[str, says("the input, where it was no event")]
    now: Annotated[float | None, says("the stream's time at it")]
    ended: Annotated[str, says("in words")]
    calls: Annotated[list[CallReport], says("in the order in which they were made")]
    outputs: list[EmittedReport]
    set_aside: list[SetAsideReport]
    chain: Annotated[list[str], says("after a command: the tasks from there on")]
    since: Annotated[int, says("the position from which it was run again")]
    compared: Annotated[int, says("recorded outputs since there that were found to be the same")]
    forgotten: Annotated[
        int, says("outputs since there that the store does not keep any more: they were not compared")
    ]
    earlier: Annotated[list[ExplainReport], says("`--back`: the records that wrote what was read, and so on")]


class StreamDifferenceReport(Shape):
    """One stream as it was and as it would have been; dead letters count as one."""

    name: str
    recorded: Annotated[int, says("outputs that were put out")]
    rehearsed: Annotated[int, says("outputs that would have been")]
    same: int
    gone: Annotated[int, says("put out, and not any more")]
    new: Annotated[int, says("not put out then, and now")]
    changed: Annotated[int, says("another output at the same position")]


class DifferenceReport(Shape):
    """One output that is gone, new or changed."""

    kind: Literal["gone", "new", "changed"]
    stream: str
    position: int
    time: Annotated[float | None, says("the stream's time there")]
    event: Annotated[Any, says("the record's own event")]
    recorded: Annotated[Any, says("null where there was none")]
    rehearsed: Annotated[Any, says("null where there is none")]
    explain: Annotated[
        str | None,
        says("the command that explains the recorded decision; null where the code that ran is gone"),
    ]


class RateReport(Shape):
    """How many outputs came over the stream's time."""

    stream: str
    recorded: Annotated[list[int], says("by bin")]
    rehearsed: Annotated[list[int], says("by bin")]


class RehearsalReport(Shape):
    """`rehearse`: what a changed chain would have put out, beside what was put out."""

    app: str
    store: str
    changes: Annotated[list[str], says("what differs from the chain that ran, in words")]
    begin: Annotated[int, says("the first position")]
    end: Annotated[int, says("the position behind the last")]
    compared_from: Annotated[int, says("the first position whose outputs the store still keeps")]
    differences: Annotated[int, says("outputs and dead letters that are gone, new or changed")]
    streams: list[StreamDifferenceReport]
    first: Annotated[list[DifferenceReport], says("the first of them")]
    rates_begin: Annotated[float | None, says("the stream's time at which the first bin begins")]
    rates_width_s: Annotated[float, says("seconds of one bin")]
    rates: list[RateReport]
    tasks: Annotated[list[TaskReport], says("of the rehearsed chain")]
    seconds: float
    events_per_second: float
    stopped: Annotated[str | None, says("why a task would have stopped the app, if one would")]
    repeated: Annotated[
        int, says("recorded outputs that came out the same with the chain as it was, before the rehearsal")
    ]
    notes: list[str]


class Finding(Shape):
    """One thing that `doctor` looked at."""

    name: str
    ok: bool
    found: str
    advice: str | None


class DoctorReport(Shape):
    """`doctor`."""

    ok: bool
    directory: Annotated[str, says("where the disk was measured")]
    fsync_p50_s: float
    fsync_p99_s: float
    findings: list[Finding]


class InitReport(Shape):
    """`init`."""

    directory: str
    files: list[str]


DOCUMENTS: dict[str, tuple[type[Shape], ...]] = {
    "run": (RunReport,),
    "try": (TryLine,),
    "check": (CheckReport,),
    "schedule": (ScheduleReport,),
    "explain": (ExplainReport,),
    "task list": (TaskList,),
    **{
        f"task {name}": (GivenCommand,)
        for name in ("start", "stop", "set", "add", "remove", "replace", "drop")
    },
    "task export": (TaskExport,),
    "pause": (GivenCommand,),
    "resume": (GivenCommand,),
    "stop": (GivenCommand,),
    "rehearse": (RehearsalReport,),
    "status": (StatusReport,),
    "history": (HistoryLine,),
    "outputs": (OutputLine,),
    "dead-letters list": (LetterList,),
    "dead-letters show": (Letter,),
    "dead-letters retry": (CommandReport,),
    "dead-letters drop": (CommandReport,),
    "state ls": (StateReport, Cell),
    "state get": (Cell,),
    "doctor": (DoctorReport,),
    "init": (InitReport,),
}
"""By command: what `--json` prints."""


def document(found: Any) -> str:
    """One JSON document, for people to read and programs to parse."""
    return msgspec.json.format(msgspec.json.encode(found, enc_hook=_other), indent=2).decode()


def line(found: Any) -> str:
    """One line of JSON lines."""
    return msgspec.json.encode(found, enc_hook=_other).decode()


def _other(obj: Any) -> Any:
    """What JSON does not know and a store may hold."""
    return text.one_line(repr(obj))
