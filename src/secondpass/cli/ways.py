"""Running an app over a recorded log in several ways, and comparing what comes of it.

    plain loop      reference.py: every cell decoded anew for every call, keys enforced
    engine          the real hub with a store in memory, its epochs cut as wanted
    workers         the same, every task on so many processes
    hash seed       the same in a process of its own, `python -m secondpass.cli.ways`

A `Trace` is what a way gave, as text: two are the same exactly when the answers are.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from secondpass import codec, reference
from secondpass.app import LATE, App
from secondpass.aside import aside
from secondpass.change import plain_state
from secondpass.cli.apps import load_app
from secondpass.connectors.contract import Batch
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.intake import Intake
from secondpass.engine.lookups import held_now
from secondpass.engine.pushed import sources_of
from secondpass.engine.recipe import NotPortable, recipe_for
from secondpass.engine.run import run_app
from secondpass.errors import TaskError, UsageError
from secondpass.lookups import Loaded
from secondpass.record import DeadLetter, Late, Refused

if TYPE_CHECKING:
    from secondpass.engine.loop import Hub

READ_AT_ONCE = 4096


class Letter(msgspec.Struct, frozen=True):
    """A dead letter, without its traceback."""

    position: int
    task: str
    error: str
    event: str


class Trace(msgspec.Struct):
    """What a way gave."""

    input: list[int] = []
    """A checksum for each record."""
    streams: dict[str, list[str]] = {}
    positions: dict[str, list[int]] = {}
    """Of each output; empty for the plain loop, which does not tell."""
    letters: list[Letter] = []
    state: dict[str, dict[str, str]] = {}
    counts: dict[str, list[Any]] = {}
    ended: str | None = None
    """Why a task stopped the app, if one did."""
    ended_at: int | None = None


# ---------------------------------------------------------------- text that is equal when values are

_encode = msgspec.json.Encoder(enc_hook=codec.encode_hook, order="deterministic").encode


def told(value: Any) -> str:
    """A value as text: JSON where it can be, sets and maps in a fixed order."""
    try:
        found = _encode(value).decode()
    except (TypeError, ValueError, OverflowError):
        found = repr(value)
    return f"{type(value).__name__} {found}" if isinstance(value, msgspec.Struct) else found


def _record_crc(record: Any) -> int:
    if isinstance(record, Late):
        record = record.event
    return zlib.crc32(record.raw if isinstance(record, Refused) else told(record).encode())


# ---------------------------------------------------------------- the log


def record(app: App, limit: int) -> list[Any]:
    """The first records of the app's real input, in the order in which the engine takes them."""
    sources = sources_of(app)
    if any(getattr(source, "path", None) == "-" for source in sources):
        raise UsageError(
            "standard input can be read once only, and is not looked at ahead of a run; give a file"
        )
    intake = Intake(sources, [], follow=False)
    log: list[Any] = []
    places: Any = None
    try:
        while len(log) < limit:
            epoch = intake.take(1, len(log), float("-inf"), min(READ_AT_ONCE, limit - len(log)))
            if epoch is None or (not epoch.count and epoch.offsets == places and not intake.told):
                break  # the end; or nothing more there now, where an input is followed
            log += _records_of(epoch)
            places = epoch.offsets
    finally:
        intake.close()
    return log


def _records_of(epoch: Epoch) -> list[Any]:
    found: dict[int, Any] = dict(zip(epoch.origin, epoch.events, strict=True))
    for index, refused in epoch.refused.items():
        # An event refused for its time is an event still: the plain loop refuses it itself.
        found[index] = refused.event if isinstance(refused, DeadLetter) else refused
    return [found[i] for i in range(epoch.count)]


class Recorded:
    """A log as a source."""

    name = "the recorded input"
    type: Any = Any
    following = False

    def __init__(self, log: Sequence[Any]) -> None:
        self._log = log
        self._at = 0
        self.outputs = (LATE,) if any(isinstance(record, Late) for record in log) else ()

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Recorded:  # noqa: ARG002 - it is read once, from its beginning
        return self

    def read(self, limit: int) -> Batch | None:
        part = self._log[self._at : self._at + limit]
        if not part:
            return None
        self._at += len(part)
        refused = {i: r for i, r in enumerate(part) if isinstance(r, (Refused, Late))}
        origin = [i for i in range(len(part)) if i not in refused]
        return Batch(
            [part[i] for i in origin], {"at": self._at}, count=len(part), origin=origin, refused=refused
        )

    def verify(self) -> None:
        """It cannot change."""

    def progress(self) -> tuple[int, int] | None:
        return self._at, len(self._log)

    def close(self) -> None:
        """There is nothing to close."""


class _FixedTime(Intake):
    """Gives every event without a time the same one, as the plain loop does."""

    def __init__(self, sources: Sequence[Any], intake_time: float) -> None:
        super().__init__(sources, [], follow=False)
        self._intake_time = intake_time

    def _reader(self, kind: type) -> Any:
        if kind not in self._readers:
            read: Callable[[Any], float | None] = super()._reader(kind)

            def at(event: Any) -> float:
                time = read(event)
                return self._intake_time if time is None else time

            self._readers[kind] = at
        return self._readers[kind]


def why_no_workers(app: App) -> str | None:
    """Why other processes cannot run the app's tasks; None if they can."""
    try:
        recipe_for(app)
    except NotPortable as error:
        return str(error)
    return None


# ---------------------------------------------------------------- the ways


class Cut:
    """Stands in for the pacer: epochs of a fixed length, run fast or carefully."""

    def __init__(self, records: int, *, careful: bool) -> None:
        self._records = records
        self.careful = careful

    def limit(self) -> int:
        return self._records

    def ran(self, records: int, seconds: float, *, heavy: bool = False) -> None:
        """Its length stays."""


def plain_loop(app: App, log: Sequence[Any], intake_time: float) -> Trace:
    """What the log means."""
    with quietly():
        result = reference.run(
            app.tasks, log, intake_time=intake_time, enforce_keys=True, lookups=held_now(app)
        )
    stopped = result.stopped
    return Trace(
        input=list(map(_record_crc, log)),
        streams={name: list(map(told, events)) for name, events in result.streams.items()},
        letters=[_letter(letter) for letter in result.dead_letters],
        state=_state(result.state),
        counts={name: _counts(tally) for name, tally in result.tallies.items()},
        ended=None if stopped is None else str(stopped),
        ended_at=None if stopped is None else stopped.details.get("position"),
    )


@aside()
def engine(
    app: App, log: Sequence[Any], intake_time: float, records: int, *, careful: bool, workers: int = 0
) -> Trace:
    """What the hub makes of it with epochs of so many records; with workers, all tasks run there."""
    trace = Trace(input=list(map(_record_crc, log)))
    twin = copy.copy(app)
    source = Recorded(log)
    twin.sources, twin.sinks = (source,), {}
    twin.lookups = {name: Loaded(held.copy) for name, held in held_now(app).items()}
    hubs: list[Hub] = []

    def started(hub: Hub) -> None:
        hubs.append(hub)
        hub.pacer = Cut(records, careful=careful)  # type: ignore[assignment]  # the same three names
        hub.intake = _FixedTime([source], intake_time)
        hub.chain.placement.isolated = bool(workers)
        commit = hub.commit

        def committed(epoch: Epoch, outcome: Outcome) -> Any:
            _add(trace, epoch, outcome)
            return commit(epoch, outcome)

        hub.commit = committed  # type: ignore[method-assign]  # also reached where a task stops the app

    with quietly(), _workers_quiet() if workers else contextlib.nullcontext():
        try:
            summary = run_app(twin, store=None, on_start=started, workers=workers)
            trace.counts = {name: _counts(tally) for name, tally in summary.tasks.items()}
        except TaskError as error:
            trace.ended, trace.ended_at = str(error), error.details.get("position")
            trace.counts = {name: _counts(t) for name, t in hubs[0].summary.tasks.items()} if hubs else {}
    for task in app.tasks:
        trace.counts.setdefault(task.name, _counts(reference.Tally()))
    for stream in app.streams:
        trace.streams.setdefault(stream, [])
    if hubs:
        hub = hubs[0]
        now = hub.store.progress.now
        trace.state = _state(
            {s.name: plain_state(s.given, s.tables, s.values, now) for s in hub.chain.stages}
        )
    return trace


def _add(trace: Trace, epoch: Epoch, outcome: Outcome) -> None:
    for stream, (events, where) in outcome.streams.items():
        trace.streams.setdefault(stream, []).extend(map(told, events))
        trace.positions.setdefault(stream, []).extend(epoch.first + i for i in where)
    trace.letters += [_letter(letter) for letter in outcome.letters]


def _letter(letter: DeadLetter) -> Letter:
    event = told(letter.event) if letter.event is not None else letter.raw.decode(errors="replace")
    return Letter(letter.position, letter.task, letter.error, event)


def _counts(tally: reference.Tally) -> list[Any]:
    return [tally.events, tally.passed, tally.dropped, tally.errors, dict(sorted(tally.counts.items()))]


def _state(state: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for task, parts in state.items():
        for name, content in parts.items():
            if isinstance(content, dict):
                table = cast("dict[Any, Any]", content)
                found[f"{task}.{name}"] = {told(k): told(v) for k, v in table.items()}
            else:
                found[f"{task}.{name}"] = {"": told(content)}
    return found


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """What tasks print and log is told once by `run`, not once for each way."""
    logger = logging.getLogger("secondpass")
    before, handlers = logger.propagate, logger.handlers
    logger.propagate, logger.handlers = False, [logging.NullHandler()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.propagate, logger.handlers = before, handlers


@contextlib.contextmanager
def _workers_quiet() -> Generator[None]:
    """Workers print to the standard error that they inherit."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


# ---------------------------------------------------------------- another process, another hash seed


class Request(msgspec.Struct):
    """What the other process is asked for."""

    app: str
    records: int
    intake_time: float
    answer: str
    """The file for the trace: standard output belongs to the app."""


def with_hash_seed(spec: str, records: int, intake_time: float, seed: str) -> Trace:
    """The engine's answer in a process that hashes with this seed: 0, 1, ... or `random`."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "trace"
        request = Request(spec, records, intake_time, str(answer))
        done = subprocess.run(
            # -P: a file of the app's folder must not stand in for a module of Python's.
            [sys.executable, "-P", "-m", "secondpass.cli.ways", msgspec.json.encode(request).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=False,
        )
        if done.returncode != 0 or not answer.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = said[-1] if said else f"exit code {done.returncode}"
            raise UsageError(f"the app does not run in a process of its own (hash seed {seed}): {why}")
        return msgspec.msgpack.decode(answer.read_bytes(), type=Trace)


def answer(request: Request) -> None:
    """The other process's side."""
    app = load_app(request.app)
    log = record(app, request.records)
    trace = engine(app, log, request.intake_time, max(1, len(log)), careful=False)
    Path(request.answer).write_bytes(msgspec.msgpack.encode(trace))


if __name__ == "__main__":
    answer(msgspec.json.decode(sys.argv[1], type=Request))
