"""What lookups hold in a run: read before the first event, read again beside the stream, changed between two records.

Invariants:

- What tasks see is what the store has committed: a reload is a record, whose entry in the history holds what it changes.
- A source that cannot be read, or that changes while it is read, changes nothing: tasks go on with what was loaded last.
- Workers are given the same before the first bundle that comes after it (`Crew.submit`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from secondpass.app import App
from secondpass.binding import look_into
from secondpass.codec import pack
from secondpass.engine.bundle import LOOKUPS, parcel
from secondpass.engine.executor import Parcel
from secondpass.engine.overlay import Delta
from secondpass.errors import InputError, NotRepeated, SecondpassError
from secondpass.lookups import Contents, Loaded, LookupSpec, specs_of
from secondpass.record import error_text
from secondpass.state import MISSING
from secondpass.store.database import Store
from secondpass.store.format import CellCodec, pack_cells, unpack_cells
from secondpass.store.reader import Name, StoreReader, Unreadable
from secondpass.task import Task

OWNER = ""
"""Stands for a task's name where the store names the table that a lookup rests in."""
FILE = "lookups"
_ROWS_AT_ONCE = 10_000
_CLOSE_S = 1.0

Cells = dict[Any, Any]


class Reload(NamedTuple):
    """What a lookup is to hold from the next record on, as it differs from what it holds."""

    name: str
    source: str
    delta: Delta
    live: dict[Any, Any]
    """What changed, as tasks see it."""
    packed: bytes
    """How it differs, as the history keeps it."""
    rows: int
    """So many it holds then."""
    told: str

    def noted(self) -> dict[str, Any]:
        """As the history keeps it, beside the commands."""
        return {
            "command": "",
            "asked": "reload",
            "task": self.name,
            "by": self.source,
            "at": time.time(),
            "reason": self.told,
            "rows": self.rows,
            "cells": self.packed,
        }


class Lookups:
    """The lookups of a run."""

    def __init__(self, app: App, tasks: Iterable[Task[Any]]) -> None:
        self._sources = {name: app.lookups[name] for name in specs_of(tasks)}
        self.specs = specs_of(tasks)
        self.contents: dict[str, Contents[Any, Any]] = {name: Contents() for name in self.specs}
        self.rests: dict[str, Cells] = {name: {} for name in self.specs}
        """The resting cells; they are the store's, which keeps them current."""
        self.moves: dict[Name, Name | None] = {}
        """Stored cells that cannot be read any more."""
        self.loaded: dict[str, tuple[Delta, dict[str, Any]]] = {}
        """By lookup that the store did not know: all that it holds, and what the history says of it."""
        self.version = 0
        self._last: Reload | None = None
        self._ready: deque[Reload] = deque()
        self._due: dict[str, float] = {}
        self._marks: dict[str, Any] = {}
        self._failed: dict[str, str] = {}
        self._directory: Path | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def attached(self, tasks: Iterable[Task[Any]]) -> tuple[Task[Any], ...]:
        """The same tasks, looking into what this holds."""
        return tuple(look_into(task, self.contents) for task in tasks)

    # ---- at start

    def begin(self, store: Store) -> None:
        """Take up what the store holds, and read the sources: what differs becomes the first records of the run.

        Raises `InputError` where a source cannot be read, and nothing was ever loaded.
        """
        self._directory = store.directory
        known = store.tables()
        for name, spec in self.specs.items():
            full = (OWNER, name)
            stored: Cells | None = None
            if full in known:
                try:
                    stored = store.load_more({full: CellCodec.of(spec.table)})[full]
                except Unreadable:
                    self.moves[full] = None
            try:
                read = self._read(name)
            except InputError as error:
                if stored is None:
                    raise
                self._fail(name, str(error))
                read = None
            if stored is None:
                stored = read or {}
                source = self._sources[name].name
                told = {"lookup": name, "by": source, "at": time.time(), "rows": len(stored)}
                self.loaded[name] = Delta(dict(stored), set()), told
            elif read is not None:
                self._compare(name, stored, read)
            self.rests[name] = stored
            self.contents[name].become(spec.wake(stored))
        self._tell()

    def watch(self) -> None:
        """Read again, from now on and in a thread, what is to be read again."""
        now = time.monotonic()
        self._due = {name: now + s for name, source in self._sources.items() if (s := source.reload_s)}
        if self._due:
            self._thread = threading.Thread(target=self._look, name="secondpass-lookups", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Read no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)  # a function that hangs ends with the process

    # ---- beside the stream

    def _look(self) -> None:
        while not self._ended.wait(max(0.0, min(self._due.values()) - time.monotonic())):
            name = min(self._due, key=self._due.__getitem__)
            if not any(found.name == name for found in self._ready):
                self._look_at(name)
            self._due[name] = time.monotonic() + self._sources[name].reload_s

    def _look_at(self, name: str) -> None:
        mark = _mark(self._sources[name])
        if mark is not None and mark == self._marks.get(name) and name not in self._failed:
            return
        try:
            read = self._read(name)
        except InputError as error:
            self._fail(name, str(error))
            return
        if name in self._failed:
            del self._failed[name]
            self._tell()
            _log().warning("lookup %s: it can be read again", name)
        if read is not None:
            self._compare(name, self.rests[name], read)

    def _read(self, name: str) -> Cells | None:
        """The resting cells of a source; None where it changes just now, to be looked at again."""
        source = self._sources[name]
        before = _mark(source)
        found = rows_of(source, self.specs[name])
        if before != _mark(source):
            if name in self._marks:
                return None
            raise InputError(
                f"{source.name} changes while it is read; put a new version in its place by renaming it"
            )
        self._marks[name] = before
        return found

    def _fail(self, name: str, why: str) -> None:
        if self._failed.get(name) != why:
            self._failed[name] = why
            self._tell()
            _log().warning("lookup %s goes on with what was loaded last: %s", name, why)

    def _tell(self) -> None:
        """Keep the file up to date that tells `secondpass status` which cannot be read, and why."""
        if self._directory is None:
            return
        path = self._directory / FILE
        with contextlib.suppress(OSError):  # nothing depends on it
            if not self._failed:
                path.unlink(missing_ok=True)
                return
            partial = path.with_suffix(".new")
            partial.write_bytes(msgspec.json.encode(self._failed))
            partial.rename(path)

    def _compare(self, name: str, before: Cells, after: Cells) -> None:
        delta = difference(before, after)
        if delta:
            # What takes its time is done here, beside the stream.
            live = self.specs[name].wake(delta.changed)
            packed = pack_cells(list(delta.changed), list(delta.changed.values()), delta.gone)
            source, told = self._sources[name].name, _told(before, delta)
            self._ready.append(Reload(name, source, delta, live, packed, len(after), told))

    # ---- between two records

    def ready(self) -> Reload | None:
        """What differs, to be committed at the next position."""
        return self._ready[0] if self._ready else None

    def take(self, reload: Reload) -> None:
        """It is committed: from the next event on tasks see it."""
        self.contents[reload.name].take(reload.live, reload.delta.gone)
        self.version += 1
        self._last = reload
        self._ready.popleft()

    # ---- for workers

    def since(self, version: int, number: int) -> Parcel | None:
        """What a worker has to be given that knows so much (-1: nothing); None where it knows all."""
        if version == self.version or not self.specs:
            return None
        if self._last is not None and version == self.version - 1:
            return contents_parcel(number, {self._last.name: self._last.delta.changed}, self._last.delta.gone)
        return contents_parcel(number, self.rests, None)


class Held:
    """What the lookups of some tasks hold, for workers of a run that loads nothing itself."""

    def __init__(self, tasks: Iterable[Task[Any]]) -> None:
        self._tasks = tuple(tasks)
        self.version = 0

    def changed(self) -> None:
        """They hold something else now."""
        self.version += 1

    def since(self, version: int, number: int) -> Parcel | None:
        """As `Lookups.since`."""
        specs = specs_of(self._tasks)
        if version == self.version or not specs:
            return None
        held = {name: contents for task in self._tasks for name, contents in task._lookups.items()}
        rests = {name: spec.rests(held[name], name) for name, spec in specs.items()}
        return contents_parcel(number, rests, None)


def contents_parcel(number: int, rests: Mapping[str, Cells], gone: Iterable[Any] | None) -> Parcel:
    """What lookups hold, or how it differs, on its way to a worker."""
    cells = {name: (list(found), list(found.values())) for name, found in rests.items()}
    values = {} if gone is None else {name: pack(list(gone)) for name in rests}
    return parcel((number, LOOKUPS, 0, False, False, ([], None, []), [], [], None, [], cells, values))


def difference(before: Cells, after: Cells) -> Delta:
    """How resting cells differ."""
    changed = {key: rest for key, rest in after.items() if before.get(key, MISSING) != rest}
    return Delta(changed, {key for key in before if key not in after})


def _told(before: Cells, delta: Delta) -> str:
    added = sum(key not in before for key in delta.changed)
    parts = ((added, "added"), (len(delta.changed) - added, "changed"), (len(delta.gone), "gone"))
    return ", ".join(f"{n:,} {what}" for n, what in parts if n)


def _log() -> logging.Logger:
    return logging.getLogger("secondpass")


# ---------------------------------------------------------------- sources


def _mark(source: Any) -> Any:
    """What changes whenever a file does; None for what is no file."""
    path = getattr(source, "path", None)
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def rows_of(source: Any, spec: LookupSpec) -> Cells:
    """The resting cells that a source gives now; raises `InputError` where they cannot be read."""
    if isinstance(source, Loaded):
        return spec.rests(_called(source), f"lookup {spec.name}: {source.name}")
    found: dict[Any, Any] = {}
    try:
        with contextlib.closing(source.open(None)) as reader:
            while (batch := reader.read(_ROWS_AT_ONCE)) is not None:
                for refused in batch.refused.values():
                    raise InputError(f"{source.name}, byte {refused.offset}: {refused.reason}")
                for row in batch.events:
                    key = _key_of(row, source)
                    if key in found:
                        raise InputError(f"{source.name}: two rows have the key {key!r}")
                    found[key] = row
    except OSError as error:
        raise InputError(f"{source.name} cannot be read: {error.strerror or error}") from error
    except SecondpassError as error:
        raise InputError(f"lookup {spec.name}: {error}") from error
    return spec.rests(found, f"lookup {spec.name}: {source.name}")


def _key_of(row: Any, source: Any) -> Any:
    key: str | tuple[str, ...] = source.key
    read = cast("Mapping[str, Any]", row).__getitem__ if isinstance(row, Mapping) else partial(getattr, row)
    try:
        return tuple(map(read, key)) if isinstance(key, tuple) else read(key)
    except (KeyError, AttributeError):
        raise InputError(f"{source.name}: {row!r} has no field {key!r}, which is to be its key") from None


def _called(source: Loaded) -> dict[Any, Any]:
    try:
        return dict(source.function())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"{source.name} raised {error_text(error)}") from error


def held_now(app: App) -> dict[str, dict[Any, Any]]:
    """What the lookups of an app hold, as their sources are now."""
    specs = specs_of(app.tasks)
    return {name: spec.wake(rows_of(app.lookups[name], spec)) for name, spec in specs.items()}


# ---------------------------------------------------------------- what was recorded


class Recalled:
    """What lookups held at a position of the recorded log, brought forward by what was loaded since."""

    def __init__(self, snapshot: StoreReader | None) -> None:
        self._snapshot = snapshot
        self._since: dict[str, list[bytes]] = {}
        self._whole: set[str] = set()
        self._found: dict[str, tuple[LookupSpec, Contents[Any, Any]]] = {}

    def note(self, name: str, packed: bytes, *, whole: bool) -> None:
        """A lookup was loaded: whole, or again, with what then differed."""
        if whole:
            self._whole.add(name)
            self._since[name] = []
        self._since.setdefault(name, []).append(packed)
        if name in self._found:
            spec, contents = self._found[name]
            if whole:
                contents.become({})
            _apply(packed, spec, contents)

    def attached(self, task: Task[Any], position: int) -> Task[Any]:
        """The same task, looking into what was recorded; raises `NotRepeated` for what was not."""
        specs = type(task)._shape.lookups
        if all(task._lookups.get(name) is self._contents(name) for name in specs):
            return task
        return look_into(task, {name: self._recall(name, spec, position) for name, spec in specs.items()})

    def _contents(self, name: str) -> Any:
        return self._found[name][1] if name in self._found else MISSING

    def _recall(self, name: str, spec: LookupSpec, position: int) -> Contents[Any, Any]:
        known = self._found.get(name)
        if known is not None:
            return known[1]
        contents = Contents[Any, Any]()
        stored = self._snapshot is not None and (OWNER, name) in self._snapshot.tables()
        if name not in self._since and not stored:
            raise NotRepeated(f"the log tells of no lookup {name} at position {position}")
        try:
            if stored and name not in self._whole:
                assert self._snapshot is not None
                contents.become(spec.wake(recorded(self._snapshot, {name: spec})[name]))
            for packed in self._since.get(name, ()):
                _apply(packed, spec, contents)
        except (Unreadable, ValueError, TypeError) as error:
            raise NotRepeated(
                f"what the lookup {name} held at position {position} is not of the type that is declared now ({error})"
            ) from error
        self._found[name] = spec, contents
        return contents


def _apply(packed: bytes, spec: LookupSpec, contents: Contents[Any, Any]) -> None:
    body, codec = unpack_cells(packed), CellCodec.of(spec.table)
    changed = dict(zip(codec.keys(body.keys), codec.entries(body.entries), strict=True))
    contents.take(spec.wake(changed), codec.keys(body.gone))


def recorded(store: StoreReader, specs: Mapping[str, LookupSpec]) -> dict[str, Cells]:
    """The resting cells of lookups as a store holds them."""
    codecs: dict[Name, Any] = {(OWNER, name): CellCodec.of(spec.table) for name, spec in specs.items()}
    return {name: cells for (_, name), cells in StoreReader.load(store, codecs).items()}


__all__ = ["OWNER", "Held", "Lookups", "Recalled", "Reload", "held_now", "recorded"]
