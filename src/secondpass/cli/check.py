"""`secondpass check`: does the app give one answer, however it is run?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import msgspec

from secondpass.app import App
from secondpass.cli import text
from secondpass.cli.apps import load_app
from secondpass.cli.exits import DIFFERENCE, DONE
from secondpass.cli.group import HELP
from secondpass.cli.options import app_argument, debug_option, json_option, limit_option, quiet_option
from secondpass.cli.shapes import CheckReport, Difference, Way, document, line

if TYPE_CHECKING:
    from secondpass.cli.ways import Trace

EVENTS = 10_000
CUTS = ((1, False), (7, False), (64, False), (64, True), (0, False), (0, True))
"""Records of an epoch (0 for all at once), and whether every call is looked at."""
WORKERS = (1, 2, 8)
WORKERS_EPOCH = 500
HASH_SEEDS = ("0", "1", "random")

PLAIN = "plain loop"

_REPEATED = (
    "the plain loop itself gives another answer when it is repeated: handle depends on more than event and state. "
    "Use self.now instead of a clock, self.random instead of random, table() and value() instead of globals and "
    "class attributes"
)
_HASHED = (
    "the answer depends on how Python hashes: on the order of a set's elements, or on hash(). Sort where the order "
    "matters; use zlib.crc32 for a hash that stays"
)
_CUT = (
    "the answer depends on where an epoch ends. Between epochs state is read back from its bytes: the order of a "
    "set's elements, objects shared between cells, and attributes outside the declared type do not survive that. "
    "If the task does none of it, this is a bug of secondpass: please report it"
)
_PLACED = (
    "the answer depends on the process that runs the task. A worker gets the event and the cells of its keys, and "
    "nothing else: not what handle keeps in globals, class attributes or files. Declare it with table() or value(), or "
    "make it in setup() from what does not change. If the task does none of it, this is a bug of secondpass: please "
    "report it"
)
_KEYS = "keys() must return every key that handle touches for that event, or ALL"
_INPUT = (
    "the source gives other events when it is read again, so a restart could not go on where it stopped. A source "
    "that is a function or an iterable must give the same items every time"
)


@click.command(context_settings=HELP)
@app_argument
@limit_option(f"Take so many events of the input.  [default: {EVENTS:,}]", default=EVENTS)
@quiet_option
@json_option
@debug_option
def check(app: str, limit: int, quiet: bool, as_json: bool) -> int:
    """Run an app in several ways and show the first difference.

    Takes the first events of the app's real input through the plain loop that defines what an app means,
    with keys enforced, then through the engine with epochs cut in several ways, with several hash seeds, and on
    1, 2 and 8 workers. Outputs, dead letters, counts and the final state must be the same. No store is made and the
    app's sinks are left alone.
    """
    from secondpass.cli import ways

    loaded = load_app(app)
    log = ways.record(loaded, limit)
    tell: Callable[[str], None] = (
        (lambda _: None) if quiet or as_json else (lambda s: click.echo(s, err=True))
    )
    no_workers = ways.why_no_workers(loaded)
    count = 1 + len(_cuts(len(log))) + len(HASH_SEEDS) + (0 if no_workers else len(WORKERS))
    tell(f"{loaded.name}: {text.plural(len(log), 'event')}, in {count} ways")
    if no_workers:
        tell(f"  without workers: {no_workers}")
    intake_time = time.time()
    found: list[Way] = []
    difference: Difference | None = None
    expected: Trace | None = None
    for name, run in _ways(app, loaded, log, intake_time, () if no_workers else WORKERS):
        began = time.perf_counter()
        trace = run()
        seconds = time.perf_counter() - began
        if expected is None:
            expected = trace
        else:
            difference = _first_difference(name, loaded, log, intake_time, expected, trace)
        same = difference is None
        found.append(Way(name=name, seconds=round(seconds, 3), same=same))
        verdict = (
            "" if trace is expected else "same" if same else click.style("DIFFERENT", fg="red", bold=True)
        )
        tell(f"  {name:<30} {text.duration(seconds):>8}  {verdict}".rstrip())
        if not same:
            break
    report = CheckReport(
        app=loaded.name, events=len(log), same=difference is None, ways=found, difference=difference
    )
    if as_json:
        text.say(document(report))
    elif difference is not None:
        text.say(_difference_lines(difference))
    elif expected is not None:
        text.say(_same_lines(report, expected))
    return DONE if difference is None else DIFFERENCE


def _cuts(records: int) -> list[tuple[int, bool]]:
    return [(size, careful) for size, careful in CUTS if size < max(records, 1)]


def _ways(
    spec: str, app: App, log: Sequence[Any], intake_time: float, workers: Sequence[int]
) -> Iterator[tuple[str, Callable[[], Trace]]]:
    """Every way with its name; the plain loop first."""
    from secondpass.cli import ways

    yield PLAIN, partial(ways.plain_loop, app, log, intake_time)
    for size, careful in _cuts(len(log)):
        cut = "all at once" if not size else f"epochs of {size}"
        name = f"engine, {cut}{', careful' if careful else ''}"
        yield (
            name,
            partial(ways.engine, app, log, intake_time, size or max(1, len(log)), careful=careful),
        )
    for seed in HASH_SEEDS:
        yield f"engine, hash seed {seed}", partial(ways.with_hash_seed, spec, len(log), intake_time, seed)
    for size in workers:
        yield (
            f"engine, {text.plural(size, 'worker')}",
            partial(ways.engine, app, log, intake_time, WORKERS_EPOCH, careful=False, workers=size),
        )


def _same_lines(report: CheckReport, trace: Trace) -> list[str]:
    outputs = sum(map(len, trace.streams.values()))
    cells = sum(map(len, trace.state.values()))
    seen = [
        text.plural(report.events, "event"),
        text.plural(outputs, "output"),
        text.plural(len(trace.letters), "dead letter"),
        text.plural(cells, "cell"),
    ]
    lines = [f"the same in all {len(report.ways)} ways: {', '.join(seen)}"]
    if trace.ended is not None:
        lines.append(f"all of them stop at position {trace.ended_at}: {trace.ended}")
    return lines


def _difference_lines(found: Difference) -> list[str]:
    where = "" if found.position is None else f" at position {text.count(found.position)}"
    lines = [f"{click.style('different', fg='red', bold=True)}: {found.what}{where}"]
    rows: list[tuple[str, str]] = []
    if found.event is not None:
        rows.append(("event", _shown(found.event)))
    rows.append((PLAIN, _shown(found.expected)))
    rows.append((found.way, _shown(found.found)))
    return [*lines, *text.fields(rows, indent="  "), "", f"{click.style('why', bold=True)}: {found.hint}"]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return text.one_line(value) if isinstance(value, str) else line(value)


# ---------------------------------------------------------------- where two traces part


class _Parting(msgspec.Struct):
    """A place where they differ."""

    what: str
    position: int | None
    expected: str | None
    found: str | None


def _first_difference(
    way: str, app: App, log: Sequence[Any], intake_time: float, expected: Trace, found: Trace
) -> Difference | None:
    """The earliest place in the stream where a way's answer is another."""
    parting = _input_parting(expected, found)
    hint = _INPUT if parting is not None else ""
    if parting is None:
        partings = [
            *_output_partings(app, log, intake_time, expected, found),
            *_letter_partings(expected, found),
            *_end_partings(expected, found),
        ]
        partings.sort(key=lambda p: len(log) if p.position is None else p.position)
        parting = (
            next(iter(partings), None) or _state_parting(expected, found) or _count_parting(expected, found)
        )
        if parting is None:
            return None
        hint = _why(way, app, log, intake_time, expected, found)
    at = parting.position
    event = None if at is None or at >= len(log) else _told(log[at])
    return Difference(
        way=way,
        what=parting.what,
        position=at,
        event=event,
        expected=parting.expected,
        found=parting.found,
        hint=hint,
    )


def _told(record: Any) -> str:
    from secondpass.cli.ways import told
    from secondpass.record import Refused

    return record.raw.decode(errors="replace") if isinstance(record, Refused) else told(record)


def _why(way: str, app: App, log: Sequence[Any], intake_time: float, expected: Trace, found: Trace) -> str:
    """The likely cause; what can be tried is tried."""
    from secondpass.cli import ways

    if any(t.ended is not None and "keys()" in t.ended for t in (expected, found)):
        return _KEYS
    again = ways.plain_loop(app, log, intake_time)
    if msgspec.msgpack.encode(again) != msgspec.msgpack.encode(expected):
        return _REPEATED
    return _HASHED if "hash seed" in way else _PLACED if "worker" in way else _CUT


def _input_parting(expected: Trace, found: Trace) -> _Parting | None:
    at = _first_unequal(expected.input, found.input)
    if at is None:
        return None
    return _Parting("the input itself", at, "one event", "another" if at < len(found.input) else None)


def _output_partings(
    app: App, log: Sequence[Any], intake_time: float, expected: Trace, found: Trace
) -> Iterator[_Parting]:
    for stream, outputs in expected.streams.items():
        others = found.streams.get(stream, [])
        at = _first_unequal(outputs, others)
        if at is None:
            continue
        positions: list[int] = []
        if at < len(others):
            positions.append(found.positions[stream][at])
        if at < len(outputs):
            positions.append(_position_in_plain_loop(app, log, intake_time, stream, at))
        yield _Parting(f"output {at} of {stream}", min(positions), _at(outputs, at), _at(others, at))


def _position_in_plain_loop(
    app: App, log: Sequence[Any], intake_time: float, stream: str, number: int
) -> int:
    """The event that an output came from: the shortest beginning of the log that puts it out."""
    from secondpass.cli import ways

    low, high = 0, len(log)
    while low < high:
        middle = (low + high) // 2
        if len(ways.plain_loop(app, log[:middle], intake_time).streams[stream]) > number:
            high = middle
        else:
            low = middle + 1
    return max(0, low - 1)


def _letter_partings(expected: Trace, found: Trace) -> Iterator[_Parting]:
    at = _first_unequal(expected.letters, found.letters)
    if at is not None:
        letters = [found_[at] for found_ in (expected.letters, found.letters) if at < len(found_)]
        texts = [
            f"{x[at].error} (task {x[at].task or 'none'}, event {x[at].event})" if at < len(x) else None
            for x in (expected.letters, found.letters)
        ]
        yield _Parting(f"dead letter {at}", min(letter.position for letter in letters), *texts)


def _end_partings(expected: Trace, found: Trace) -> Iterator[_Parting]:
    if expected.ended != found.ended:
        positions = [p for p in (expected.ended_at, found.ended_at) if p is not None]
        yield _Parting(
            "how it ended",
            min(positions) if positions else None,
            expected.ended or "went through",
            found.ended or "went through",
        )


def _state_parting(expected: Trace, found: Trace) -> _Parting | None:
    for name, cells in expected.state.items():
        others = found.state.get(name, {})
        for key in [*cells, *others]:
            if cells.get(key) != others.get(key):
                what = f"{name}[{key}]" if key else name
                return _Parting(f"final state, {what}", None, cells.get(key), others.get(key))
        if list(cells) != list(others):
            return _Parting(f"final state, the order of {name}", None, str(list(cells)), str(list(others)))
    return None


def _count_parting(expected: Trace, found: Trace) -> _Parting | None:
    for name, counts in expected.counts.items():
        if counts != found.counts.get(name):
            return _Parting(f"counts of {name}", None, str(counts), str(found.counts.get(name)))
    return None


def _first_unequal(a: Sequence[Any], b: Sequence[Any]) -> int | None:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def _at(found: Sequence[str], index: int) -> str | None:
    return found[index] if index < len(found) else None
