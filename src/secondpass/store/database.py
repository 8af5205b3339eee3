"""The store: one SQLite file in WAL mode, written by one process over one connection.

Invariants:

- All that an epoch changes is one transaction with `synchronous=FULL`: when `commit` returns it is durable.
- Each transaction takes the next turn, which only the writer of the last one can: a writer that was
  replaced meanwhile cannot commit.
- A failed write or sync is final for this process: reopen and replay.
- Nothing is read that does not match its checksum.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import apsw

from secondpass.codec import pack
from secondpass.errors import StoreDamaged, StoreError
from secondpass.failpoints import failpoint
from secondpass.store import hugepages
from secondpass.store.connection import (
    SQLITE_MIN,
    WAL_PAGES,
    Database,
    connect_to_write,
    keep_wal,
    require_sqlite,
    translated,
)
from secondpass.store.files import sync_directory
from secondpass.store.fold import Fold
from secondpass.store.format import (
    FILE,
    FORMAT,
    SCHEMA,
    OutputRow,
    Progress,
    StoredLetter,
    TableState,
    crc,
    encode_progress,
    pack_cells,
    squeeze,
    stamp,
)
from secondpass.store.lock import StoreLock
from secondpass.store.reader import Cells, Moves, Name, StoreReader, Unreadable, moved
from secondpass.store.upgrade import back_up, upgrade

KEEP_OUTPUT_BYTES = 16 * 1024 * 1024
"""How much of what a sink already holds is kept for `secondpass outputs`."""
_PRUNED_AT_ONCE = 4  # rows of a stream; a commit adds one


class Changes(Protocol):
    """What an epoch changes in one table: entries by key, and the keys that are gone."""

    @property
    def changed(self) -> dict[Any, Any]: ...
    @property
    def gone(self) -> Collection[Any]: ...


@dataclass(frozen=True)
class NewChain:
    """What a command makes of the chain that a store keeps."""

    chain: list[Any]
    """Its tasks, as described."""
    aside: dict[str, Any]
    """By task that left: what it has put aside, as declared."""
    given_up: list[Name]
    """Tables and values whose stored cells are nobody's any more; one of `cells` may have the same name."""
    cells: dict[Name, dict[Any, Any]]
    """Those that are new to the store, or come back; from now on `commit` keeps these dicts current."""


class Store(StoreReader):
    """An open store; `Store.open` for a directory, `Store.in_memory()` for none."""

    def __init__(self, connection: Database, directory: Path | None, lock: StoreLock | None = None) -> None:
        super().__init__(connection, directory)
        self._lock = lock
        self._failed = False
        self._tables: dict[Name, int] = {}
        self._highest = 0
        self._loaded: dict[Name, dict[Any, Any]] = {}
        self._cells: dict[int, dict[Any, Any]] = {}
        self._fold = Fold(connection)
        self._oldest: dict[str, tuple[int, int] | None] = {}

    # ---- opening

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        take_over: bool = False,
        vfs: str | None = None,
        synchronous: str = "FULL",
        wal_pages: int = WAL_PAGES,
    ) -> Store:
        """Open a store to write, making it when there is none; raises `StoreLocked` when another has it.

        `vfs`, `synchronous` and `wal_pages` are for the tests that lose power: less than FULL loses epochs.
        """
        require_sqlite()
        try:
            made = [path for path in (directory, *directory.parents) if not path.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            lock = StoreLock(directory)
            lock.acquire(take_over=take_over)
        except OSError as error:
            raise StoreError(
                f"cannot use {directory} as a store: {error.strerror or error}; stores lie beside the app: give the "
                f"right to write there, or another place with --store"
            ) from error
        with contextlib.ExitStack() as undo:
            undo.callback(lock.release)
            failpoint("store.open.before")
            with translated(directory):
                db = connect_to_write(directory / FILE, vfs, synchronous=synchronous, wal_pages=wal_pages)
            undo.callback(db.close, True)
            store = cls(db, directory, lock)
            store._prepare()
            for path in made:
                sync_directory(path.parent)
            sync_directory(directory)
            failpoint("store.open.after")
            undo.pop_all()
        return store

    @classmethod
    def in_memory(cls) -> Store:
        """A store that ends with the process."""
        require_sqlite()
        store = cls(connect_to_write(None), None)
        store._prepare()
        return store

    def _prepare(self) -> None:
        self._alone = True
        if self.directory is not None and not self._is_new():
            with translated(self.directory):
                back_up(self._db, self.directory)
        with self._transaction():
            if self._is_new():
                self._refuse(self._turn_beyond())
                self._create()
            else:
                upgrade(self._db)
            self._read_progress()
            self._refuse(self._turn_beyond())
            self._write_progress(self._epoch)  # from here on, whoever wrote before us cannot
            failpoint("store.prepare.commit")

    def _create(self) -> None:
        self._db.execute(SCHEMA)
        self._db.pragma("user_version", FORMAT)
        self._put_meta("store", {"created": time.time()})
        body = encode_progress(self.progress)
        self._db.execute("INSERT INTO progress VALUES (0, ?, 0, ?, ?)", (stamp(0), body, crc(body, 0, 0)))

    def close(self, *, checkpoint: bool = True) -> None:
        """Let the store go."""
        failpoint("close.before")
        try:
            # A checkpoint that fails here changes nothing: all that was acknowledged is in the WAL.
            with contextlib.suppress(apsw.Error):
                if checkpoint and self._alone and not self._failed:
                    keep_wal(self._db, keep=False)
            with contextlib.suppress(apsw.Error):
                self._db.close(True)
        finally:
            if self._lock is not None:
                self._lock.release()
        failpoint("close.after")

    # ---- writing

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        """One transaction; a failed one is the last: what this process knows may differ from the disk."""
        if self._failed:
            raise StoreError(f"an earlier write to {self.directory} failed; open the store again to go on")
        try:
            with translated(self.directory):
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
        except BaseException:
            self._failed = True
            with contextlib.suppress(apsw.Error):
                # SQLite may have rolled back by itself; the first error is the one to report.
                self._db.execute("ROLLBACK")
            raise

    def _write_progress(self, epoch: int) -> None:
        """Take the next turn, which only the writer of the last one can."""
        turn = self._turn + 1
        body = encode_progress(self.progress)
        self._db.execute(
            "UPDATE progress SET turn = ?, stamp = ?, epoch = ?, body = ?, crc = ? WHERE turn = ?",
            (turn, stamp(turn), epoch, body, crc(body, turn, epoch), self._turn),
        )
        if self._db.changes() != 1:
            raise StoreError(
                f"another process has taken over {self.directory}; this one stops without committing, nothing is lost"
            )
        self._turn = turn

    def _put_meta(self, name: str, found: Any) -> None:
        before = self._meta.get(name)
        body = pack(found)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, body, crc(body, name)))
        self.progress.meta += crc(body, name) - (0 if before is None else crc(before, name))
        self._meta[name] = body

    def _remember(self, position: int, kind: str, details: Any) -> None:
        self.progress.history += 1
        number = self.progress.history
        body = pack(details)
        self._db.execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?)",
            (number, position, kind, body, crc(body, number, position, kind)),
        )

    # ---- the chain and its state

    def start(
        self,
        chain: list[Any],
        names: Iterable[Name],
        moves: Moves,
        note: Any,
        app: Any,
        file: list[Any] | None = None,
        aside: dict[str, Any] | None = None,
        expired: Mapping[Name, Iterable[Any]] | None = None,
        lookups: Mapping[Name, dict[Any, Any]] | None = None,
        loaded: Mapping[Name, tuple[Changes, dict[str, Any]]] | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """Record the chain that runs from here on, after its cells were loaded with the same moves.

        `names` are its tables and values, as (task, name); `moves` maps an old one to its new name, or to
        None to drop it. The state of a task that is merely absent is kept for its return. `expired` are the
        keys of cells that must not come back though their table's time to live has grown. `file` is the chain as
        the app's file has it, where a command made another of it; `aside` what tasks that left have put aside.
        `lookups` are the resting cells of what tasks look into, which this store keeps current from here on; `loaded`
        those of them that are new to it: the cells that they begin with, and what the history is to say of it. `renamed`
        are whole tasks that go on under another name.
        """
        failpoint("start.before")
        cells, self._loaded = {**self._loaded, **(lookups or {})}, {}
        with self._transaction():
            known = self.tables()
            self._highest = self._highest_table(known)
            tables = moved(known, moves)
            gone = set(known.values()) - set(tables.values())
            for number in gone:
                self._db.execute("DELETE FROM cells WHERE tbl = ?", (number,))
                self._db.execute("DELETE FROM deltas WHERE tbl = ?", (number,))
                self.progress.tables.pop(number, None)
            for name, keys in (expired or {}).items():
                gone_keys = list(keys)
                self._put_delta(self._epoch, tables[name], pack_cells([], [], gone_keys))
                for key in gone_keys:
                    cells[name].pop(key, None)
            for name in (*names, *(lookups or {})):
                if name not in tables:
                    tables[name] = self._new_table()
                    cells.setdefault(name, {})
            for name, (delta, told) in (loaded or {}).items():
                body = pack_cells(list(delta.changed), list(delta.changed.values()), delta.gone)
                self._put_delta(self._epoch, tables[name], body)
                self._remember(self.progress.position, "loaded", {**told, "cells": body})
            self._put_meta("app", app)
            self._put_meta("chain", chain)
            self._put_meta("file", file)
            self._put_meta("aside", aside)
            if renamed:
                self._put_meta("renames", [*(self.meta("renames") or []), [self.progress.position, renamed]])
            self._put_tables(tables)
            self._remember(self.progress.position, "start", note)
            self._write_progress(self._epoch)
            failpoint("start.commit")
            self._cells = {tables[name]: found for name, found in cells.items() if name in tables}
            self._fold.take_up(self.progress, self._cells)
        self._tables = tables
        hugepages.ask(sum(map(len, self._cells.values())))
        failpoint("start.after")

    def _highest_table(self, known: Mapping[Name, int]) -> int:
        """The highest number that a table ever had, as far as anything is left of it: none is used twice."""
        highest = max(known.values(), default=0)
        for (found,) in self._db.execute("SELECT max(tbl) FROM cells UNION ALL SELECT max(tbl) FROM deltas"):
            highest = max(highest, found or 0)
        return highest

    def _new_table(self) -> int:
        self._highest += 1
        return self._highest

    def _put_tables(self, tables: Mapping[Name, int]) -> None:
        self._put_meta("tables", [[list(k), i] for k, i in tables.items()])

    def _take_chain(self, new: NewChain) -> None:
        """Let a command's chain stand: which tables there are, and under which numbers."""
        for name in new.given_up:
            number = self._tables.pop(name, None)
            if number is not None:
                self._fold.give_up(number, self.progress.tables.pop(number, TableState()))
                self._cells.pop(number, None)
        for name, cells in new.cells.items():
            number = self._tables.get(name)
            if number is None:
                number = self._tables[name] = self._new_table()
            self._cells[number] = cells
            self._fold.take(number, cells, self.progress.tables.get(number, TableState()).folded)
        self._put_meta("chain", new.chain)
        self._put_meta("aside", new.aside)
        self._put_tables(self._tables)

    def load(self, codecs: Mapping[Name, Cells], moves: Moves | None = None) -> dict[Name, dict[Any, Any]]:
        """All committed cells at rest. After `start` their dicts are the store's: `commit` keeps them current."""
        cells = super().load(codecs, moves)
        self._loaded = dict(cells)
        return cells

    def load_more(self, codecs: Mapping[Name, Cells]) -> dict[Name, dict[Any, Any]]:
        """Cells of tables beside those that the chain has: what a task put aside."""
        return super().load(codecs)

    # ---- committing

    def commit(
        self,
        progress: Progress,
        deltas: Mapping[Name, Changes],
        outputs: Sequence[OutputRow],
        letters: Sequence[StoredLetter],
        history: Sequence[tuple[str, Any]] = (),
        letter_status: Mapping[int, str] | None = None,
        chain: NewChain | None = None,
    ) -> None:
        """Make an epoch durable: when this returns, all of it is; when it raises, none of it is.

        With a new `chain`, the deltas are of its tables.
        """
        epoch = self._epoch + 1
        began_at = self.progress.position
        failpoint("commit.before")
        self.progress = progress
        # First, while the cells that the epoch read are in the processor's cache. Should the write fail, nobody
        # looks at them again: it is this store's last.
        if chain is None:
            self._apply(deltas)
        with self._transaction():
            if chain is not None:
                self._take_chain(chain)
                self._apply(deltas)
            self._put_deltas(epoch, deltas, begins=chain is None)
            for row in outputs:
                self._put_output(row)
            for letter in letters:
                self._put_letter(letter)
            for number, status in (letter_status or {}).items():
                self._set_letter_status(number, status)
            for kind, details in history:
                self._remember(began_at, kind, details)
            self._prune()
            failpoint("commit.write.after")
            self._write_progress(epoch)
            failpoint("commit.sync.before")
        self._epoch = epoch
        failpoint("commit.after")

    def _put_deltas(self, epoch: int, deltas: Mapping[Name, Changes], *, begins: bool) -> None:
        progress = self.progress
        bodies = {
            self._tables[name]: pack_cells(list(delta.changed), list(delta.changed.values()), delta.gone)
            for name, delta in deltas.items()
            if delta.changed or delta.gone
        }
        # A command must not hold the stream up for as long as a table is large.
        self._fold.step(progress, sum(map(len, bodies.values())), len(bodies), begin=begins)
        for table, body in bodies.items():
            self._put_delta(epoch, table, body)
            self._fold.added(table, progress.deltas, len(body))

    def _put_delta(self, epoch: int, table: int, body: bytes) -> None:
        state = self.progress.tables.setdefault(table, TableState())
        number = self.progress.deltas + 1
        about = (number, table, epoch, state.last)
        self._db.execute("INSERT INTO deltas VALUES (?, ?, ?, ?, ?, ?)", (*about, body, crc(body, *about)))
        self.progress.deltas = state.last = number

    def _apply(self, deltas: Mapping[Name, Changes]) -> None:
        """Bring the cells that `start` took over up to date; they are also what a fold writes."""
        for name, delta in deltas.items():
            cells = self._cells.get(self._tables[name])
            if cells is not None:
                cells.update(delta.changed)
                for key in delta.gone:
                    cells.pop(key, None)

    def _put_output(self, row: OutputRow) -> None:
        progress = self.progress
        total = progress.totals.get(row.stream, 0) + len(row.body)
        about = (row.stream, row.first, row.count, row.format, total, pack(squeeze(row.positions)))
        self._db.execute(
            "INSERT INTO outputs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*about, row.body, crc(row.body, *about))
        )
        progress.totals[row.stream] = total
        progress.numbers[row.stream] = row.first + row.count

    def _put_letter(self, letter: StoredLetter) -> None:
        number = self.progress.letters
        body = pack(letter)
        self._db.execute(
            "INSERT INTO dead_letters VALUES (?, 'open', ?, ?)", (number, body, crc(body, number, "open"))
        )
        self.progress.letters = number + 1

    def _set_letter_status(self, number: int, status: str) -> None:
        found = self.letter(number)
        if found is not None:
            self._db.execute(
                "UPDATE dead_letters SET status = ?, crc = ? WHERE id = ?",
                (status, crc(pack(found[1]), number, status), number),
            )

    def _prune(self) -> None:
        """Forget outputs that their sink holds for certain, but for the last ones; a few with each commit."""
        progress = self.progress
        for stream, state in progress.sinks.items():
            enough = progress.totals.get(stream, 0) - KEEP_OUTPUT_BYTES
            if enough <= 0 or not state:
                continue
            for _ in range(_PRUNED_AT_ONCE):
                oldest = self._oldest_output(stream)
                if oldest is None or oldest[0] > state["number"] or oldest[1] > enough:
                    break
                self._db.execute("DELETE FROM outputs WHERE stream = ? AND first < ?", (stream, oldest[0]))
                del self._oldest[stream]
                progress.kept_from[stream] = oldest[0]
                failpoint("prune.after")

    def _oldest_output(self, stream: str) -> tuple[int, int] | None:
        """Where the oldest kept row of a stream ends: as a number, and in bytes since the beginning."""
        if stream not in self._oldest:
            rows = self._db.execute(
                "SELECT first + count, total FROM outputs WHERE stream = ? ORDER BY first LIMIT 1", (stream,)
            )
            self._oldest[stream] = next(rows, None)
        return self._oldest[stream]


__all__ = ["SQLITE_MIN", "OutputRow", "Store", "StoreDamaged", "Unreadable", "require_sqlite"]
