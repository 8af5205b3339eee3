"""The store: one SQLite file in WAL mode, written by one process over one connection.

Invariants:

- All that an epoch changes is one transaction with `synchronous=FULL`: when `commit` returns it is durable.
- A commit carries the writer's fence; a writer that was replaced meanwhile cannot commit.
- A failed write or sync is final for this process: reopen and replay.
- Nothing is read that does not match its checksum.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import msgspec

from secondpass.codec import pack, unpack
from secondpass.errors import StoreDamaged, StoreError, StoreFull, StoreVersion
from secondpass.failpoints import failpoint
from secondpass.store.fold import Fold
from secondpass.store.format import (
    FILE,
    FORMAT,
    SCHEMA,
    CellCodec,
    Progress,
    StoredLetter,
    check,
    crc,
    damaged,
    decode_delta,
    decode_letter,
    decode_progress,
    encode_delta,
    encode_progress,
    sum_of_cells,
    table_delta,
)
from secondpass.store.lock import StoreLock

SQLITE_MIN = (3, 51, 3)
"""Older ones can corrupt a WAL database (the WAL-reset bug, mended in 3.51.3)."""
KEEP_OUTPUT_BYTES = 16 * 1024 * 1024
"""How much of what a sink already holds is kept for `secondpass outputs`."""
WAL_PAGES = 4000
"""How many pages the WAL may hold before they are copied into the database."""
_LOAD_ROWS = 50_000


class Unreadable(Exception):
    """Stored cells are not of the type that their table declares now."""

    def __init__(self, name: tuple[str, str], why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why


class OutputRow:
    """Consecutive outputs of one stream that were committed together."""

    __slots__ = ("body", "count", "first", "format", "positions", "stream")

    def __init__(
        self, stream: str, first: int, count: int, format_: str, positions: Any, body: bytes
    ) -> None:
        self.stream = stream
        self.first = first
        self.count = count
        self.format = format_
        self.positions: list[int] = positions
        self.body = body


class Store:
    """An open store; `Store.open` for a directory, `Store.in_memory()` for none."""

    def __init__(self, connection: apsw.Connection, directory: Path | None, lock: StoreLock | None) -> None:
        self._db = connection
        self.directory = directory
        self._lock = lock
        self._turn = 0
        self._epoch = 0
        self._failed = False
        self.progress = Progress()
        self._tables: dict[tuple[str, str], int] = {}
        self._fold = Fold(connection)

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
            made = not directory.is_dir()
            directory.mkdir(parents=True, exist_ok=True)
            lock = StoreLock(directory)
            lock.acquire(take_over=take_over)
        except OSError as error:
            raise StoreError(f"cannot use {directory} as a store: {error.strerror or error}") from error
        try:
            failpoint("store.open.before")
            store = cls(connect(directory / FILE, vfs=vfs), directory, lock)
            store._prepare(synchronous, wal_pages)
            if made:
                _sync_directory(directory.parent)
            _sync_directory(directory)
            failpoint("store.open.after")
        except BaseException:
            lock.release()
            raise
        return store

    @classmethod
    def in_memory(cls) -> Store:
        """A store that ends with the process."""
        require_sqlite()
        store = cls(apsw.Connection(":memory:"), None, None)
        store._prepare()
        return store

    @classmethod
    def open_to_read(cls, directory: Path) -> Store:
        """Open a store beside its writer, without ever writing to it."""
        require_sqlite()
        if not (directory / FILE).is_file():
            raise StoreError(f"there is no store in {directory}; `secondpass run APP` makes one")
        store = cls(connect(directory / FILE, readonly=True), directory, None)
        with _translated(directory):
            store._check_version()
            store._read_progress()
        return store

    def _prepare(self, synchronous: str = "FULL", wal_pages: int = WAL_PAGES) -> None:
        db = self._db
        if self.directory is not None:
            db.execute("PRAGMA page_size = 4096")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {synchronous}")
            db.execute(f"PRAGMA wal_autocheckpoint = {wal_pages}")
        db.execute("PRAGMA mmap_size = 0")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        with self._transaction():
            if not list(db.execute("SELECT 1 FROM sqlite_schema")):
                db.execute(SCHEMA)
                self._put_meta("store", {"format": FORMAT, "created": time.time()})
                db.execute("INSERT INTO progress VALUES (0, 0, ?, ?)", _progress_row(0, 0, self.progress))
            self._check_version()
            self._read_progress()
            self._write_progress(self._epoch)  # from here on, whoever wrote before us cannot
            failpoint("store.prepare.commit")

    def _check_version(self) -> None:
        found = self.meta("store")
        if found is None:
            raise damaged("it has no header")
        if found["format"] > FORMAT:
            raise StoreVersion(
                f"the store {self.directory} has format {found['format']}, this secondpass reads up to {FORMAT}; "
                f"install a newer secondpass"
            )

    def _read_progress(self) -> None:
        rows = list(self._db.execute("SELECT turn, epoch, body, crc FROM progress"))
        if len(rows) != 1:
            raise damaged("it has no progress record")
        self._turn, self._epoch, body, stored = rows[0]
        check("the progress record", stored, b"%d %d" % (self._turn, self._epoch), body)
        self.progress = decode_progress(body)

    @property
    def epoch(self) -> int:
        """The number of the last committed epoch."""
        return self._epoch

    @property
    def turn(self) -> int:
        """The number of the last transaction: epochs, starts and openings."""
        return self._turn

    def close(self, *, checkpoint: bool = True) -> None:
        """Let the store go."""
        failpoint("close.before")
        try:
            if self._failed or not checkpoint:
                # After a failed write the disk decides what there is, not this process.
                self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._db.close(True)
        finally:
            if self._lock is not None:
                self._lock.release()
        failpoint("close.after")

    # ---- meta and history

    def meta(self, name: str) -> Any:
        """A described thing of the store; None when there is none."""
        for body, stored in self._db.execute("SELECT body, crc FROM meta WHERE name = ?", (name,)):
            check(f"the entry {name!r}", stored, name.encode(), body)
            return unpack(body)
        return None

    def _put_meta(self, name: str, found: Any) -> None:
        body = pack(found)
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, body, crc(name.encode(), body))
        )

    def history(self) -> Iterator[tuple[int, str, Any]]:
        """Starts, chain changes and retries: (position, kind, details), in order."""
        for position, kind, body, stored in self._db.execute(
            "SELECT position, kind, body, crc FROM history ORDER BY id"
        ):
            check(f"the history at position {position}", stored, b"%d" % position, kind.encode(), body)
            yield position, kind, unpack(body)

    def _remember(self, position: int, kind: str, details: Any) -> None:
        body = pack(details)
        self._db.execute(
            "INSERT INTO history (position, kind, body, crc) VALUES (?, ?, ?, ?)",
            (position, kind, body, crc(b"%d" % position, kind.encode(), body)),
        )

    # ---- the chain and its state

    def start(
        self,
        chain: list[Any],
        names: Iterable[tuple[str, str]],
        moves: dict[tuple[str, str], tuple[str, str] | None],
        note: Any,
        app: Any,
    ) -> None:
        """Record the chain that runs from here on.

        `names` are its tables and values, as (task, name); `moves` maps an old one to its new name, or to
        None to drop it. The state of a task that is merely absent is kept for its return.
        """
        failpoint("start.before")
        with self._transaction():
            known = self.tables()
            next_id = max([0, *known.values(), *self.progress.sums]) + 1
            if any(target is None for target in moves.values()):
                self._fold.deltas_waiting = max(self._fold.deltas_waiting, 1)
                self._fold.step(self.progress, self._epoch + 1, whole=True)
            tables: dict[tuple[str, str], int] = {}
            for name, number in known.items():
                target = moves.get(name, name)
                if target is None:
                    self._db.execute("DELETE FROM cells WHERE tbl = ?", (number,))
                    self.progress.sums.pop(number, None)
                else:
                    tables[target] = number
            for name in names:
                if name not in tables:
                    tables[name] = next_id
                    next_id += 1
            self._put_meta("app", app)
            self._put_meta("chain", chain)
            self._put_meta("tables", [[list(k), i] for k, i in tables.items()])
            self._remember(self.progress.position, "start", note)
            self._write_progress(self._epoch)
            failpoint("start.commit")
        self._tables = tables
        failpoint("start.after")

    def tables(self) -> dict[tuple[str, str], int]:
        """The number of each table and value the store knows, by (task, name)."""
        return {(task, name): number for (task, name), number in self.meta("tables") or []}

    def load(
        self,
        codecs: dict[tuple[str, str], CellCodec],
        moves: dict[tuple[str, str], tuple[str, str] | None] | None = None,
    ) -> dict[tuple[str, str], dict[Any, Any]]:
        """All committed cells at rest, by task and table (as named after `moves`).

        Raises `StoreDamaged` where a checksum fails, `Unreadable` where a cell is not of its declared type.
        """
        moves = moves or {}
        with _translated(self.directory):
            numbers: dict[tuple[str, str], int] = {}
            for name, number in self.tables().items():
                target = moves.get(name, name)
                if target is not None and target in codecs:
                    numbers[target] = number
            cells: dict[tuple[str, str], dict[Any, Any]] = {name: {} for name in codecs}
            by_number = {number: (name, codecs[name], cells[name]) for name, number in numbers.items()}
            for number in by_number:
                self._load_table(number, *by_number[number])
            self._apply_deltas(by_number)
        self._fold.cells_total = sum(map(len, cells.values()))
        return cells

    def _load_table(self, number: int, name: tuple[str, str], codec: CellCodec, into: dict[Any, Any]) -> None:
        total = 0
        cursor = self._db.execute("SELECT key, entry FROM cells WHERE tbl = ?", (number,))
        while rows := list(islice(cursor, _LOAD_ROWS)):
            total += sum_of_cells(rows)
            with _readable(name):
                into.update(codec.decode_rows(rows))
        if total != self.progress.sums.get(number, 0):
            raise damaged(f"the cells of table {number} do not match their checksum")

    def _apply_deltas(self, by_number: dict[int, tuple[tuple[str, str], CellCodec, dict[Any, Any]]]) -> None:
        last = self.progress.folded
        rows = self._db.execute(
            "SELECT epoch, previous, body, crc FROM deltas WHERE epoch > ? ORDER BY epoch", (last,)
        )
        count = 0
        for epoch, previous, body, stored in rows:
            check(f"the delta of epoch {epoch}", stored, b"%d" % previous, body)
            if count and previous != last:
                raise damaged(f"the delta before epoch {epoch} is missing")
            if not count and previous > self.progress.folded:
                raise damaged(f"the delta of epoch {previous} is missing")
            for delta in decode_delta(body):
                if delta.table not in by_number:
                    continue  # a table that this chain no longer has
                name, codec, into = by_number[delta.table]
                with _readable(name):
                    keys = codec.keys(delta.keys)
                    into.update(zip(keys, codec.entries(delta.entries), strict=True))
                    self._fold.cells_waiting += len(keys)
                    for key in codec.keys(delta.gone):
                        into.pop(key, None)
            last, count = epoch, count + 1
        self._fold.deltas_waiting = count
        if self.progress.last_delta > self.progress.folded and last != self.progress.last_delta:
            raise damaged(f"the delta of epoch {self.progress.last_delta} is missing")

    # ---- committing

    def commit(
        self,
        progress: Progress,
        deltas: dict[tuple[str, str], Any],
        outputs: list[OutputRow],
        letters: list[StoredLetter],
        history: list[tuple[str, Any]] = [],  # noqa: B006  # never changed
        letter_status: dict[int, str] | None = None,
    ) -> None:
        """Make an epoch durable: when this returns, all of it is; when it raises, none of it is."""
        epoch = self._epoch + 1
        began_at = self.progress.position
        failpoint("commit.before")
        self.progress = progress
        with self._transaction():
            db = self._db
            if deltas:
                parts = [table_delta(self._tables[name], d.changed, d.gone) for name, d in deltas.items()]
                body = encode_delta(parts)
                previous = progress.last_delta
                db.execute(
                    "INSERT INTO deltas VALUES (?, ?, ?, ?)",
                    (epoch, previous, body, crc(b"%d" % previous, body)),
                )
                progress.last_delta = epoch
                self._fold.added(sum(len(d.changed) + len(d.gone) for d in deltas.values()))
            for row in outputs:
                self._put_output(row)
            for letter in letters:
                body = pack(letter)
                db.execute(
                    "INSERT INTO dead_letters VALUES (?, 'open', ?, ?)",
                    (progress.letters, body, crc(b"%d" % progress.letters, b"open", body)),
                )
                progress.letters += 1
            for number, status in (letter_status or {}).items():
                self._set_letter_status(number, status)
            for kind, details in history:
                self._remember(began_at, kind, details)
            self._fold.step(progress, epoch)
            self._prune()
            failpoint("commit.write.after")
            self._write_progress(epoch)
            failpoint("commit.sync.before")
        self._epoch = epoch
        failpoint("commit.after")

    def _write_progress(self, epoch: int) -> None:
        """Take the next turn, which only the writer of the last one can."""
        turn = self._turn + 1
        row = _progress_row(turn, epoch, self.progress)
        self._db.execute(
            "UPDATE progress SET turn = ?, epoch = ?, body = ?, crc = ? WHERE turn = ?",
            (turn, epoch, *row, self._turn),
        )
        if self._db.changes() != 1:
            raise StoreError(
                f"another process has taken over {self.directory}; this one stops without committing, nothing is lost"
            )
        self._turn = turn

    def _put_output(self, row: OutputRow) -> None:
        progress = self.progress
        total = progress.totals.get(row.stream, 0) + len(row.body)
        positions = pack(_squeeze(row.positions))
        self._db.execute(
            "INSERT INTO outputs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.stream,
                row.first,
                row.count,
                row.format,
                total,
                positions,
                row.body,
                crc(
                    row.stream.encode(),
                    b"%d %d" % (row.first, row.count),
                    row.format.encode(),
                    positions,
                    row.body,
                ),
            ),
        )
        progress.totals[row.stream] = total
        progress.numbers[row.stream] = row.first + row.count

    def _prune(self) -> None:
        """Forget outputs that their sink holds for certain, but for the last ones."""
        for stream, state in self.progress.sinks.items():
            oldest = self.progress.totals.get(stream, 0) - KEEP_OUTPUT_BYTES
            if oldest <= 0 or not state:
                continue
            self._db.execute(
                "DELETE FROM outputs WHERE stream = ? AND first + count <= ? AND total <= ?",
                (stream, state["number"], oldest),
            )
            if self._db.changes():
                rows = self._db.execute("SELECT min(first) FROM outputs WHERE stream = ?", (stream,))
                (first,) = next(iter(rows))
                self.progress.kept_from[stream] = state["number"] if first is None else first
                failpoint("prune.after")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction; a failed one is the last: what this process knows may differ from the disk."""
        if self._failed:
            raise StoreError(f"an earlier write to {self.directory} failed; open the store again to go on")
        try:
            with _translated(self.directory):
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
        except BaseException:
            self._failed = True
            with contextlib.suppress(apsw.Error):
                # SQLite may have rolled back by itself; the first error is the one to report.
                self._db.execute("ROLLBACK")
            raise

    # ---- outputs and dead letters

    def outputs(self, stream: str, after: int = 0, upto: int | None = None) -> Iterator[OutputRow]:
        """The kept outputs of a stream from number `after` on, in order."""
        expected: int | None = None
        with _translated(self.directory):
            for first, count, format_, positions, body, stored in self._db.execute(
                "SELECT first, count, format, positions, body, crc FROM outputs "
                "WHERE stream = ? AND first + count > ? ORDER BY first",
                (stream, after),
            ):
                check(
                    f"output {first} of {stream}",
                    stored,
                    stream.encode(),
                    b"%d %d" % (first, count),
                    format_.encode(),
                    positions,
                    body,
                )
                kept_from = max(after, self.progress.kept_from.get(stream, 0))
                if first > kept_from if expected is None else first != expected:
                    raise damaged(f"outputs before number {first} of {stream} are missing")
                expected = first + count
                if upto is not None and first >= upto:
                    return
                yield OutputRow(stream, first, count, format_, _stretch(unpack(positions)), body)
        number = self.progress.numbers.get(stream, 0)
        if upto is None and (expected if expected is not None else after) < number:
            raise damaged(f"outputs up to number {number} of {stream} are missing")

    def letters(self, status: str | None = None) -> Iterator[tuple[int, str, StoredLetter]]:
        """Dead letters as (id, status, letter), in the order of the stream."""
        found = 0
        for number, state, body, stored in self._db.execute(
            "SELECT id, status, body, crc FROM dead_letters ORDER BY id"
        ):
            check(f"dead letter {number}", stored, b"%d" % number, state.encode(), body)
            found += 1
            if status is None or state == status:
                yield number, state, decode_letter(body)
        if found < self.progress.letters:
            raise damaged("dead letters are missing")

    def letter(self, number: int) -> tuple[str, StoredLetter] | None:
        """One dead letter with its status; None when there is none of that number."""
        for state, body, stored in self._db.execute(
            "SELECT status, body, crc FROM dead_letters WHERE id = ?", (number,)
        ):
            check(f"dead letter {number}", stored, b"%d" % number, state.encode(), body)
            return state, decode_letter(body)
        return None

    def _set_letter_status(self, number: int, status: str) -> None:
        found = self.letter(number)
        if found is not None:
            body = pack(found[1])
            self._db.execute(
                "UPDATE dead_letters SET status = ?, crc = ? WHERE id = ?",
                (status, crc(b"%d" % number, status.encode(), body), number),
            )


@contextlib.contextmanager
def _readable(name: tuple[str, str]) -> Iterator[None]:
    try:
        yield
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise Unreadable(name, str(error)) from error


class _translated:  # noqa: N801  # reads as a phrase: `with _translated(directory):`
    """Turns SQLite's errors into ours, naming the directory and the way out."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        where = self._directory or "memory"
        if isinstance(error, apsw.FullError):
            raise StoreFull(
                f"no space left for the store {where}; nothing of the last epoch was acknowledged. Free some space "
                f"and run again: it goes on where it stopped"
            ) from error
        if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
            raise damaged(f"{where}: {error}") from error
        if isinstance(error, apsw.IOError):
            raise StoreError(
                f"writing or reading the store {where} failed: {error} (code {error.extendedresult}); nothing of the "
                f"last epoch was acknowledged. Look at the disk (space, limits on file size, its health) and run "
                f"again: it goes on where it stopped"
            ) from error
        if isinstance(error, apsw.SQLError):
            raise damaged(f"{where}: {error}") from error
        if isinstance(error, apsw.Error):
            raise StoreError(f"the store {where} cannot be used: {error}") from error


def connect(path: Path, *, readonly: bool = False, vfs: str | None = None) -> apsw.Connection:
    """A connection to a store's file."""
    flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    with _translated(path.parent):
        db = apsw.Connection(str(path), flags=flags, vfs=vfs)
        db.set_busy_timeout(5_000)
    return db


def require_sqlite() -> None:
    """Refuse a SQLite that can corrupt a WAL database."""
    found = tuple(map(int, apsw.sqlite_lib_version().split(".")[:3]))
    if found < SQLITE_MIN:
        need = ".".join(map(str, SQLITE_MIN))
        raise StoreError(
            f"SQLite {apsw.sqlite_lib_version()} has a bug that corrupts databases; secondpass needs {need}: "
            f"pip install -U apsw"
        )


def _sync_directory(path: Path) -> None:
    """Make the names in a directory durable: SQLite may swallow an error here, so we do it ourselves."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        raise StoreError(f"cannot make {path} durable: {error.strerror}") from error
    finally:
        os.close(fd)


def _progress_row(turn: int, epoch: int, progress: Progress) -> tuple[bytes, int]:
    body = encode_progress(progress)
    return body, crc(b"%d %d" % (turn, epoch), body)


def _squeeze(positions: list[int]) -> Any:
    """Consecutive positions as their ends; one position may have put out several, another none."""
    if positions and positions == list(range(positions[0], positions[0] + len(positions))):
        return {"from": positions[0], "to": positions[-1]}
    return positions


def _stretch(stored: Any) -> list[int]:
    return list(range(stored["from"], stored["to"] + 1)) if isinstance(stored, dict) else stored


__all__ = ["OutputRow", "Store", "StoreDamaged", "Unreadable"]
