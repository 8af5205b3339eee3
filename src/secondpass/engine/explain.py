"""Why an event became what it became: its way through the chain, and which earlier event wrote what was read.

    run again       from the nearest base before it, with steps that tell what they touch
    compare         with what the store says was put out since: what differs is said, and nothing is explained
    go back         where a cell was changed before that base, from the base before it

The running app pays nothing for it: all is made from its sources, its history and its snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from secondpass.app import MAIN, App
from secondpass.engine.epoch import Epoch
from secondpass.engine.outbox import encode_json
from secondpass.engine.recorded import Recorded, outputs_from
from secondpass.engine.replay import Base, Commanded, Replay, records_of
from secondpass.engine.seek import Seeker
from secondpass.engine.snapshots import Kept
from secondpass.engine.trail import Called, Changed, Looked, Place, Touched, Trail, Watch
from secondpass.errors import InputError, NotRepeated, SettingsError
from secondpass.event import UntypedEvent
from secondpass.record import DeadLetter, Firing, Late, Refused, Retry, Tick, error_text, trace_text
from secondpass.state import MISSING
from secondpass.store.reader import StoreReader
from secondpass.task import Task

BACK_AT_ONCE = 20
"""So many events are explained at most for each step back."""

Outcome = Literal["passed", "changed", "emitted", "dropped", "failed", "passed by", "fired"]
Kind = Literal["event", "retry", "refused", "tick", "command"]


@dataclass(frozen=True)
class Writer:
    """The earlier record that last changed a cell before it was read."""

    position: int | None
    """None where it is not known, or where nothing has ever changed the cell."""
    kind: Kind | None = None
    """Of the record there."""
    event: Any = None
    """What came there: an event, or the details of a command."""
    unknown: str = ""
    """Why the position is not known."""


@dataclass(frozen=True)
class Read:
    """A cell that a call looked at, as the events before left it."""

    name: str
    """Of the table or the value."""
    key: Any
    """None for a value."""
    there: bool
    """Whether there was such a cell: one that had expired is gone."""
    value: Any
    """What it held; of an expired one, what it had held."""
    written: float | None
    """The stream's time when it was assigned, in a table with a time to live."""
    expired: bool
    by: Writer


@dataclass(frozen=True)
class Write:
    """A cell that a call changed."""

    name: str
    key: Any
    was_there: bool
    before: Any
    is_there: bool
    after: Any
    written: float | None


@dataclass(frozen=True)
class Look:
    """A row of a lookup, as a call found it."""

    lookup: str
    key: Any
    there: bool
    row: Any
    since: int | None
    """The position of the reload since which the lookup holds what it held; None for one before `Explanation.since`."""


@dataclass(frozen=True)
class Emitted:
    """An output, with its number in its stream."""

    stream: str
    number: int
    event: Any


@dataclass(frozen=True)
class Call:
    """What one task did with the event, or why it did nothing."""

    task: str
    event: Any
    path: tuple[int, ...]
    """Its index in each list that it was emitted in; empty for the record's own event."""
    outcome: Outcome
    results: tuple[Any, ...] = ()
    reads: tuple[Read, ...] = ()
    more_reads: int = 0
    """Beyond those that are told."""
    looks: tuple[Look, ...] = ()
    """What it looked up."""
    iterated: tuple[str, ...] = ()
    """Tables that it went through from end to end."""
    writes: tuple[Write, ...] = ()
    emitted: tuple[tuple[str, Any], ...] = ()
    """On named outputs."""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    logged: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""
    timer: str = ""
    """The timer or schedule whose call it was; then the event tells its key and its time."""
    why: str = ""
    """Why it passed the event by: it was stopped, or handles other types."""


@dataclass(frozen=True)
class SetAside:
    """A dead letter that came of the record."""

    number: int
    task: str
    error: str
    traceback: str


@dataclass(frozen=True)
class Explanation:
    """What became of one record of the log, and why."""

    app: str
    position: int
    kind: Kind
    event: Any
    """The event; of a command its details; of a refused record and of a tick None."""
    now: float
    """The stream's time at it."""
    calls: tuple[Call, ...]
    outputs: tuple[Emitted, ...]
    set_aside: tuple[SetAside, ...]
    raw: bytes = b""
    """Of a refused record."""
    chain: tuple[str, ...] = ()
    """After a command: the tasks from there on."""
    since: int = 0
    """The position from which it was run again."""
    compared: int = 0
    """How many recorded outputs were found to be the same since there."""
    forgotten: int = 0
    """How many outputs since there the store does not keep any more, so that they were not compared."""
    earlier: tuple[Explanation, ...] = ()
    """The events that wrote what was read, and theirs in turn, as far back as was asked for."""

    @property
    def ended(self) -> str:
        """Where it ended, in words."""
        if self.kind == "command":
            return "a command: the chain from here on is " + (" -> ".join(self.chain) or "empty")
        parts = [f"output {o.number} of {o.stream}" for o in self.outputs]
        parts += [f"dead letter {letter.number}: {letter.error}" for letter in self.set_aside]
        drops = [call.task for call in self.calls if call.outcome == "dropped"]
        parts += [f"dropped by {task}" for task in dict.fromkeys(drops)]
        return ", ".join(parts) or "nothing came of it"

    @property
    def writers(self) -> tuple[int, ...]:
        """The positions of the records that wrote what was read, newest first."""
        found = {r.by.position for call in self.calls for r in call.reads if r.by.position is not None}
        return tuple(sorted(found, reverse=True))


Bases = Callable[[int], Base]
"""The nearest place at or before a position to run from."""


class Explainer:
    """Explains positions of one app's recorded log."""

    def __init__(self, app: App, store: StoreReader, bases: Bases) -> None:
        self._app = app
        self._store = store
        self._bases = bases
        self._seeker = Seeker(app, store)
        self.told: Callable[[int, int], None] = lambda _since, _upto: None
        """What is run again, for whoever waits."""

    def explain(self, position: int, back: int = 0) -> Explanation:
        """What became of the record at a position, with the events that wrote what was read, `back` steps far."""
        self._refuse_outside(position)
        try:
            found = self._some({position})[position]
        except InputError as error:
            raise InputError(f"{error}{self._still(position)}") from error
        known, last, earlier = {position}, [found], list[Explanation]()
        for _ in range(back):
            wanted = sorted({p for e in last for p in e.writers} - known, reverse=True)[:BACK_AT_ONCE]
            if not wanted:
                break
            by_position = self._some(set(wanted))
            last = [by_position[p] for p in wanted]
            known |= set(wanted)
            earlier += last
        return replace(found, earlier=tuple(earlier))

    def _still(self, position: int) -> str:
        """What can be explained, where the input of a position is gone."""
        try:
            base = Kept(self._store).oldest(self._app)
        except InputError:
            return ""
        base.close()
        if base.position <= position:
            return ""
        return f"; what came from position {base.position} on can still be explained"

    def _refuse_outside(self, position: int) -> None:
        end = self._store.progress.position
        if not 0 <= position < end:
            there = f"it has positions 0 to {end - 1}" if end else "it has none"
            raise SettingsError(f"position {position} is not in the log: {there}")

    def _some(self, positions: set[int]) -> dict[int, Explanation]:
        """Explanations of several positions; those behind one base are run together."""
        found: dict[int, Explanation] = {}
        left = set(positions)
        while left:
            base = self._bases(max(left))
            try:
                part = {p for p in left if p >= base.position}
                found |= self._from(base, part)
            finally:
                base.close()
            left -= part
        return found

    def _from(self, base: Base, positions: set[int]) -> dict[int, Explanation]:
        recorded = Recorded(self._store, self._app.streams, base.numbers, base.letters)
        watch = _Compared(positions, recorded)
        self.told(base.position, max(positions) + 1)
        walk, far = self._seeker.forward(base, min(positions), max(positions) + 1, recorded)
        near = walk.position
        try:
            walk.watched_by(watch, watch.make)
            walk.run()
        finally:
            walk.close()
        missing = {
            touched.place
            for trail in watch.trails.values()
            for call in trail.calls
            for touched in call.reads
            if touched.by is None and touched.before is not MISSING
        }
        older = self._seeker.writers(base, near, missing) if far else {}
        before, why = self._before(base, missing - set(older))
        older |= before
        return {
            position: self._explanation(trail, watch, base, older, why)
            for position, trail in watch.trails.items()
        }

    def _before(self, base: Base, wanted: set[Place]) -> tuple[dict[Place, Changed], str]:
        """Who changed these cells before a base; and why some are not known."""
        found: dict[Place, Changed] = {}
        upto = base.position
        while wanted and upto > 0:
            try:
                older = self._bases(upto - 1)
            except (InputError, NotRepeated) as error:
                return found, f"before position {upto}, from where nothing can be run again: {error}"
            try:
                self.told(older.position, upto)
                here = self._seeker.writers(older, upto, wanted)
            except (InputError, NotRepeated) as error:
                return found, f"before position {upto}: {error}"
            finally:
                older.close()
            found |= here
            wanted = wanted - set(here)
            upto = older.position
        return found, ""

    def _explanation(
        self, trail: Trail, watch: _Compared, base: Base, older: dict[Place, Changed], why: str
    ) -> Explanation:
        kind, event, raw = _kind(trail.record)
        return Explanation(
            app=self._app.name,
            position=trail.position,
            kind=kind,
            event=event,
            now=trail.now,
            calls=tuple(_call(call, older, why) for call in trail.calls),
            outputs=tuple(watch.outputs.get(trail.position, ())),
            set_aside=tuple(watch.aside.get(trail.position, ())),
            raw=raw,
            chain=tuple(trail.chain),
            since=base.position,
            compared=watch.recorded.compared,
            forgotten=watch.recorded.forgotten,
        )


class _Compared(Watch):
    """Compares what is run again with what was recorded, on the way."""

    def __init__(self, wanted: set[int], recorded: Recorded) -> None:
        super().__init__(wanted)
        self._asked = wanted
        self.recorded = recorded
        self.outputs: dict[int, list[Emitted]] = {}
        self.aside: dict[int, list[SetAside]] = {}

    def put_out(self, position: int, stream: str, event: Any) -> None:
        number = self.recorded.put_out(position, stream, event)
        if position in self._asked:
            self.outputs.setdefault(position, []).append(Emitted(stream, number, event))

    def set_aside(self, letter: DeadLetter) -> None:
        number = self.recorded.set_aside(letter)
        if letter.position in self._asked:
            found = SetAside(number, letter.task, letter.error, letter.traceback)
            self.aside.setdefault(letter.position, []).append(found)

    def end(self, position: int) -> None:
        super().end(position)
        self.recorded.end(position)


def _kind(record: Any) -> tuple[Kind, Any, bytes]:
    """What a record is, its event or details, and its bytes where it was no event."""
    if isinstance(record, Refused):
        return "refused", None, record.raw
    if isinstance(record, DeadLetter):
        return "refused", record.event, b""
    if isinstance(record, Retry):
        return "retry", record.event, b""
    if isinstance(record, Commanded):
        return "command", {n: v for n, v in record.details.items() if n != "cells"}, b""
    if isinstance(record, Tick):
        return "tick", None, b""
    if isinstance(record, Late):
        return "event", record.event, b""
    return "event", record, b""


def _call(call: Called, older: dict[Place, Changed], why: str) -> Call:
    task = call.task
    assert task is not None
    outcome: Outcome
    timer = call.event.timer if isinstance(call.event, Firing) else ""
    if call.passed_by:
        outcome = "passed by"
    elif call.error is not None:
        outcome = "failed"
    elif timer:
        outcome = "emitted" if call.results else "fired"
    elif call.branched:
        outcome = "emitted" if call.results else "dropped"
    elif not call.results:
        outcome = "dropped"
    else:
        outcome = "passed" if call.results[0] is call.event else "changed"
    return Call(
        task=task.name,
        event=call.event,
        path=call.path,
        outcome=outcome,
        results=tuple(call.results),
        reads=tuple(_read(touched, task, older, why) for touched in call.reads),
        more_reads=call.more_reads,
        looks=tuple(_look(look) for look in call.looks),
        iterated=tuple(call.iterated),
        writes=tuple(_write(touched, task) for touched in call.writes),
        emitted=tuple(call.emitted),
        counts=call.counts,
        logged=tuple(call.logged),
        error="" if call.error is None else error_text(call.error),
        traceback="" if call.error is None else trace_text(call.error),
        timer=timer,
        why=call.passed_by,
    )


def _awake(task: Task[Any], place: Place, entry: Any) -> tuple[Any, float | None]:
    """What a resting entry holds, and when it was written."""
    shape = type(task)._shape
    if place.name in shape.values:
        spec = shape.values[place.name]
        return spec.codec.decode(spec.initial if entry is MISSING else entry), None
    if entry is MISSING:
        return None, None
    table = shape.tables[place.name]
    rest, written = entry if table.ttl_s is not None else (entry, None)
    return table.wake(rest), written


def _read(touched: Touched, task: Task[Any], older: dict[Place, Changed], why: str) -> Read:
    place, is_value = touched.place, touched.place.name in type(task)._shape.values
    value, written = _awake(task, place, touched.before)
    by = touched.by or older.get(place)
    if by is not None:
        writer = Writer(by.position, *_kind(by.record)[:2])
    else:
        writer = Writer(None, unknown=why if touched.before is not MISSING else "")
    there = (touched.before is not MISSING or is_value) and not touched.expired
    return Read(place.name, place.key, there, value, written, touched.expired, writer)


def _look(look: Looked) -> Look:
    there = look.found is not MISSING
    return Look(look.name, look.key, there, look.found if there else None, look.since)


def _write(touched: Touched, task: Task[Any]) -> Write:
    before, _ = _awake(task, touched.place, touched.before)
    after, written = _awake(task, touched.place, touched.after)
    is_value = touched.place.name in type(task)._shape.values
    return Write(
        touched.place.name,
        touched.place.key,
        is_value or touched.before is not MISSING,
        before,
        is_value or touched.after is not MISSING,
        after,
        written,
    )


# ---------------------------------------------------------------- finding a position


def position_of_output(store: StoreReader, number: int, stream: str = MAIN) -> int:
    """The position of the event that an output came from; raises `SettingsError` where that is not kept."""
    end, kept_from = store.progress.numbers.get(stream, 0), store.progress.kept_from.get(stream, 0)
    if not kept_from <= number < end:
        there = f"the store keeps {kept_from} to {end - 1}" if end > kept_from else "the store keeps none"
        raise SettingsError(f"there is no output {number} of {stream}: {there}")
    return next(position for n, position, _ in outputs_from(store, stream, number) if n == number)


def positions_where(app: App, store: StoreReader, base: Base, fields: Mapping[str, str]) -> list[int]:
    """The positions of the events whose fields read so, oldest first; raises `SettingsError` where there are none."""
    wanted = {name: (text, _parsed(text)) for name, text in fields.items()}
    found: list[int] = []
    unknown, known = set(wanted), dict[str, None]()
    log = Replay(store, app, base)
    try:
        for item in log:
            if not isinstance(item, Epoch):
                continue
            for position, record, _ in records_of(item):
                event = record.event if isinstance(record, (Retry, DeadLetter, Late)) else record
                if isinstance(event, (Refused, Tick)):
                    continue
                if unknown:
                    unknown = {name for name in unknown if _field(event, name) is MISSING}
                    known |= dict.fromkeys(
                        event if isinstance(event, UntypedEvent) else getattr(event, "__struct_fields__", ())
                    )
                if all(_reads(_field(event, name), *value) for name, value in wanted.items()):
                    found.append(position)
    finally:
        log.close()
    if not found:
        since = f" since position {base.position} (what was before is gone)" if base.position else ""
        if unknown and known:
            raise SettingsError(f"no event{since} has a field {min(unknown)}; there are: {', '.join(known)}")
        raise SettingsError(f"no event{since} has {' and '.join(f'{n}={v}' for n, v in fields.items())}")
    return found


def _parsed(text: str) -> Any:
    """What a person may mean: JSON, or just the text."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text


def _reads(found: Any, text: str, parsed: Any) -> bool:
    """Whether a field holds what a person has written."""
    if found is MISSING:
        return False
    if isinstance(found, bool) or found is None:
        return found is parsed or str(found) == text
    if isinstance(found, (int, float)):
        return not isinstance(parsed, bool) and found == parsed
    if isinstance(found, str):
        return found in (text, parsed)
    if str(found) == text:
        return True
    return bool(msgspec.json.decode(encode_json([found])) == parsed)


def _field(event: Any, name: str) -> Any:
    if isinstance(event, UntypedEvent):
        fields: dict[str, Any] = event
        return fields.get(name, MISSING)
    return getattr(event, name, MISSING)


def explain(app: App | str, position: int, *, store: str | Path | None = None, back: int = 0) -> Explanation:
    """What became of the record at a position, and why: `App.explain` is the same."""
    from secondpass.loading import load

    loaded = load(app) if isinstance(app, str) else app
    directory = loaded.default_store() if store is None else Path(store)
    opened = StoreReader.open_to_read(directory)
    try:
        return Explainer(loaded, opened, Kept(opened).nearest).explain(position, back)
    finally:
        opened.close()
