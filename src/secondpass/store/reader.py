"""What a store holds, read and checked; beside its writer, one moment at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec

from secondpass.codec import unpack
from secondpass.errors import ChainChanged, StoreError, StoreVersion
from secondpass.garbage import not_collected
from secondpass.store.connection import Database, connect_to_read, reading, require_sqlite, translated
from secondpass.store.format import (
    FILE,
    FORMAT,
    OutputRow,
    Progress,
    StoredLetter,
    TableState,
    check,
    damaged,
    decode_letter,
    decode_progress,
    stretch,
    unpack_cells,
)
from secondpass.store.upgrade import UPGRADES
from secondpass.store.wal import turn_beyond

Name = tuple[str, str]
"""A table or value, as (task, name)."""
Moves = Mapping[Name, Name | None]
"""What an old name becomes; None drops it."""

_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError)


class Unreadable(Exception):
    """Stored cells are not of the type that their table declares now."""

    def __init__(self, name: Name, why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why


class Renames:
    """Under which name tasks went on, by the starts that renamed them: (position, old names with their new ones)."""

    def __init__(self, starts: Iterable[tuple[int, Mapping[str, str]]]) -> None:
        self._starts = list(starts)

    def now(self, task: str, position: int) -> str:
        """What a task is called since the last start, that had this name when the app was at a position."""
        for begun, renamed in self._starts:
            if begun > position:
                task = renamed.get(task, task)
        return task

    def since(self, task: str) -> str:
        """What a task is called since the last start, that was the last to have this name before a start renamed it."""
        for begun, renamed in reversed(self._starts):
            if task in renamed:
                return self.now(task, begun - 1)
        return task


class Cells(Protocol):
    """How the cells of a table are read: a `CellCodec`, or its like where the types are not known."""

    @property
    def keys(self) -> Any: ...
    @property
    def entries(self) -> Any: ...


class StoreReader:
    """An open store and everything in it; what does not match its checksums raises `StoreDamaged`."""

    def __init__(self, connection: Database, directory: Path | None) -> None:
        self._db = connection
        self.directory = directory
        self._file = FILE
        self.progress = Progress()
        self._turn = 0
        self._epoch = 0
        self._meta: dict[str, bytes] = {}
        self._alone = False  # whether only we write

    @classmethod
    def open_to_read(cls, directory: Path, file: str = FILE) -> Self:
        """Open a store, or a snapshot of one, beside its writer, without ever writing to it."""
        require_sqlite()
        if not (directory / file).is_file():
            raise StoreError(f"there is no store in {directory}; `secondpass run APP` makes one")
        with translated(directory):
            store = cls(connect_to_read(directory / file), directory)
        store._file = file
        try:
            store._look()
        except BaseException:
            store._db.close(True)
            raise
        return store

    def close(self) -> None:
        """Let the store go."""
        self._db.close(True)

    # ---- one moment

    @contextlib.contextmanager
    def snapshot(self) -> Generator[None]:
        """One moment of a store that may be written meanwhile: all reads inside see it, and so does `progress`."""
        if self._alone or self._db.in_transaction:
            yield
            return
        with translated(self.directory):
            self._db.execute("BEGIN")
        try:
            self._read_progress()
            yield
        finally:
            self._db.execute("ROLLBACK")

    def _look(self) -> None:
        """Read what there is now, and see whether that is all."""
        with self.snapshot():
            pass  # reads progress
        beyond = self._turn_beyond()
        if beyond:
            # A writer may have gone on meanwhile. What the WAL held above is readable by now, or never.
            with self.snapshot():
                self._refuse(beyond)

    def _turn_beyond(self) -> int:
        return 0 if self.directory is None else turn_beyond(self.directory / f"{self._file}-wal", self._turn)

    def _refuse(self, beyond: int) -> None:
        if beyond > self._turn + 1:
            raise damaged(
                f"the WAL can be read up to turn {self._turn} only, and turn {beyond - 1} had been acknowledged"
            )

    def _is_new(self) -> bool:
        """Whether nothing was ever committed; raises `StoreVersion` for a newer format."""
        with reading(self.directory):
            if not list(self._db.execute("SELECT 1 FROM sqlite_schema")):
                return True
            found = self._format()
            if found > FORMAT:
                raise StoreVersion(
                    f"the store {self.directory} has format {found}, this secondpass reads up to {FORMAT}; "
                    f"install a newer secondpass"
                )
            if found != FORMAT and found not in UPGRADES:
                raise damaged(f"it has the format {found}, which never was")
            return False

    def _format(self) -> int:
        return self._db.pragma("user_version")

    def _read_progress(self) -> None:
        """What changes with each turn, and what describes the store."""
        if self._is_new():
            self._refuse(self._turn_beyond())
            raise StoreError(f"the store in {self.directory} is empty; `secondpass run APP` fills it")
        if self._format() != FORMAT:
            raise StoreVersion(
                f"the store {self.directory} has the older format {self._format()}; `secondpass run APP` upgrades it"
            )
        with reading(self.directory):
            rows = list(self._db.execute("SELECT turn, epoch, body, crc FROM progress"))
            if len(rows) != 1:
                raise damaged("it has no progress record")
            ((turn, epoch, body, stored),) = rows
            check("the progress record", stored, body, turn, epoch)
            progress = decode_progress(body)
            meta: dict[str, bytes] = {}
            total = 0
            for name, body, stored in self._db.execute("SELECT name, body, crc FROM meta"):
                check(f"the entry {name!r}", stored, body, name)
                meta[name] = body
                total += stored
            if total != progress.meta:
                raise damaged("entries that describe it are missing")
        self._turn, self._epoch, self.progress, self._meta = turn, epoch, progress, meta

    @property
    def epoch(self) -> int:
        """The number of the last committed epoch."""
        return self._epoch

    @property
    def turn(self) -> int:
        """The number of the last transaction: an epoch, a start or an opening."""
        return self._turn

    # ---- what describes it

    def meta(self, name: str) -> Any:
        """A described thing of the store; None when there is none."""
        body = self._meta.get(name)
        return None if body is None else unpack(body)

    def tables(self) -> dict[Name, int]:
        """The number of each table and value the store knows, by (task, name)."""
        found: list[tuple[list[str], int]] = self.meta("tables") or []
        return {(task, name): number for (task, name), number in found}

    def history(self, after: int = 0) -> Iterator[tuple[int, str, Any]]:
        """Starts, chain changes and retries: (position, kind, details), in order, without the first `after`."""
        with self.snapshot(), reading(self.directory):
            last = after
            for number, position, kind, body, stored in self._db.execute(
                "SELECT id, position, kind, body, crc FROM history WHERE id > ? ORDER BY id", (after,)
            ):
                check(f"history {number}", stored, body, number, position, kind)
                if number != last + 1:
                    raise damaged("history is missing")
                last = number
                yield position, kind, unpack(body)
            if last != self.progress.history:
                raise damaged("history is missing")

    def recent_history(self, count: int | None, *, without: Sequence[str] = ()) -> list[tuple[int, str, Any]]:
        """The newest entries of the history (all, where no number is given), the newest first; not those `without`."""
        with self.snapshot(), reading(self.directory):
            found: list[tuple[int, str, Any]] = []
            for number, position, kind, body, stored in self._db.execute(
                f"SELECT id, position, kind, body, crc FROM history "
                f"WHERE kind NOT IN ({', '.join('?' * len(without))}) ORDER BY id DESC LIMIT ?",
                (*without, -1 if count is None else count),
            ):
                check(f"history {number}", stored, body, number, position, kind)
                found.append((position, kind, unpack(body)))
            return found

    def history_of(self, kind: str) -> list[tuple[int, int, Any]]:
        """The entries of one kind: (number, position, details), in order."""
        with self.snapshot(), reading(self.directory):
            found: list[tuple[int, int, Any]] = []
            for number, position, body, stored in self._db.execute(
                "SELECT id, position, body, crc FROM history WHERE kind = ? ORDER BY id", (kind,)
            ):
                check(f"history {number}", stored, body, number, position, kind)
                found.append((number, position, unpack(body)))
            return found

    def renames(self) -> Renames:
        """Which tasks go on under another name than they had."""
        return Renames(self.meta("renames") or [])

    # ---- state

    def load(self, codecs: Mapping[Name, Cells], moves: Moves | None = None) -> dict[Name, dict[Any, Any]]:
        """All committed cells at rest, by task and table (as named after `moves`).

        Raises `StoreDamaged` where a checksum fails, `Unreadable` where a cell is not of its declared type.
        """
        cells: dict[Name, dict[Any, Any]] = {name: {} for name in codecs}
        with self.snapshot(), reading(self.directory), not_collected():
            numbers = moved(self.tables(), moves or {})
            known = {numbers[name]: (name, codecs[name], cells[name]) for name in codecs if name in numbers}
            for number, (name, codec, into) in known.items():
                self._load_rows(number, name, codec, into)
            self._apply_deltas(known)
        return cells

    def _load_rows(self, table: int, name: Name, codec: Cells, into: dict[Any, Any]) -> None:
        state = self.progress.tables.get(table, TableState())
        rows = count = 0
        for number, more, body, stored in self._db.execute(
            "SELECT number, cells, body, crc FROM cells WHERE tbl = ? AND generation = ? ORDER BY number",
            (table, state.generation),
        ):
            check(f"row {number} of {'.'.join(name)}", stored, body, table, state.generation, number, more)
            if number != rows:
                raise damaged(f"cells of {'.'.join(name)} are missing")
            _apply(body, name, codec, into)
            rows += 1
            count += more
        if rows != state.rows or len(into) != count:
            raise damaged(f"cells of {'.'.join(name)} are missing")

    def _apply_deltas(self, known: dict[int, tuple[Name, Cells, dict[Any, Any]]]) -> None:
        states = {table: self.progress.tables.get(table, TableState()) for table in known}
        last = {table: state.folded for table, state in states.items()}
        for number, table, epoch, previous, body, stored in self._db.execute(
            "SELECT id, tbl, epoch, previous, body, crc FROM deltas ORDER BY id"
        ):
            if table not in known or number <= states[table].folded:
                continue  # a table that this chain does not have, or a delta that its rows hold
            check(f"delta {number}", stored, body, number, table, epoch, previous)
            if previous != last[table]:
                raise damaged(f"delta {previous} is missing")
            last[table] = number
            _apply(body, *known[table])
        for table, state in states.items():
            if last[table] != state.last:
                raise damaged(f"delta {state.last} is missing")

    def sizes(self) -> dict[Name, int]:
        """How many bytes of the database each table and value takes, none of them read."""
        with self.snapshot(), reading(self.directory):
            states = self.progress.tables
            found = {number: state.bytes for number, state in states.items()}
            for table, number, size in self._db.execute("SELECT tbl, id, length(body) FROM deltas"):
                if table in states and number > states[table].folded:
                    found[table] += size
            return {name: found.get(number, 0) for name, number in self.tables().items()}

    # ---- outputs and dead letters

    def outputs(self, stream: str, after: int = 0, upto: int | None = None) -> Iterator[OutputRow]:
        """The kept outputs of a stream from number `after` on, in order."""
        with self.snapshot(), reading(self.directory):
            end = self.progress.numbers.get(stream, 0)
            expected = max(after, self.progress.kept_from.get(stream, 0))
            first_row = True
            for first, count, format_, total, positions, body, stored in self._db.execute(
                "SELECT first, count, format, total, positions, body, crc FROM outputs "
                "WHERE stream = ? AND first + count > ? ORDER BY first",
                (stream, after),
            ):
                about = (stream, first, count, format_, total, positions)
                check(f"output {first} of {stream}", stored, body, *about)
                if first > expected or (first < expected and not first_row) or first + count > end:
                    raise damaged(f"outputs before number {first} of {stream} are missing")
                expected, first_row = first + count, False
                if upto is not None and first >= upto:
                    return
                yield OutputRow(stream, first, count, format_, stretch(unpack(positions)), body)
            if expected < end:
                raise damaged(f"outputs up to number {end} of {stream} are missing")

    def letters(self, status: str | None = None) -> Iterator[tuple[int, str, StoredLetter]]:
        """Dead letters as (id, status, letter), in the order of the stream."""
        with self.snapshot(), reading(self.directory):
            expected = 0
            for number, state, body, stored in self._db.execute(
                "SELECT id, status, body, crc FROM dead_letters ORDER BY id"
            ):
                check(f"dead letter {number}", stored, body, number, state)
                if number != expected:
                    raise damaged("dead letters are missing")
                expected += 1
                if status is None or state == status:
                    yield number, state, decode_letter(body)
            if expected != self.progress.letters:
                raise damaged("dead letters are missing")

    def letter(self, number: int) -> tuple[str, StoredLetter] | None:
        """One dead letter with its status; None when there is none of that number."""
        with self.snapshot(), reading(self.directory):
            rows = list(
                self._db.execute("SELECT status, body, crc FROM dead_letters WHERE id = ?", (number,))
            )
            for state, body, stored in rows:
                check(f"dead letter {number}", stored, body, number, state)
                return state, decode_letter(body)
            if 0 <= number < self.progress.letters:
                raise damaged(f"dead letter {number} is missing")
        return None


def _apply(body: bytes, name: Name, codec: Cells, into: dict[Any, Any]) -> None:
    packed = unpack_cells(body)
    try:
        into.update(zip(codec.keys(packed.keys), codec.entries(packed.entries), strict=True))
        for key in codec.keys(packed.gone):
            into.pop(key, None)
    except _UNREADABLE as error:
        raise Unreadable(name, str(error)) from error


def moved(known: Mapping[Name, int], moves: Moves) -> dict[Name, int]:
    """The numbers of tables by their names after `moves`; raises `ChainChanged` where two would share a name."""
    found: dict[Name, int] = {}
    for name, number in known.items():
        target = moves.get(name, name)
        if target is None:
            continue
        if target in found:
            raise ChainChanged(
                f"the store has state for {'.'.join(target)} twice after these renames; drop the one that is not "
                f"needed with --drop, or rename it too"
            )
        found[target] = number
    return found
