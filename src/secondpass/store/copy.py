"""A snapshot: one moment of a store's state in a file of its own, taken beside the writer.

It has the store's own format, of which it holds what the state needs: progress, descriptions, cells and deltas, but no
outputs, dead letters and history. It is read with `StoreReader.open_to_read(directory, file)`, and checked as a store is.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import quote

import apsw

from secondpass.errors import StoreError
from secondpass.store.connection import _connect, keep_wal, translated
from secondpass.store.files import sync_directory, sync_file
from secondpass.store.format import FILE, FORMAT, PAGE_SIZE, SCHEMA

PARTIAL = ".partial"
_TABLES = ("meta", "cells", "deltas", "progress")


class Moment:
    """A moment of a store, held until it is copied or let go; the writer goes on meanwhile.

    SQLite gives up the interpreter's lock while it copies, so a thread that does it costs the others nothing but the
    processor's and the disk's time.
    """

    def __init__(self, directory: Path, into: Path) -> None:
        self._directory = directory
        self._into = into
        into.mkdir(exist_ok=True)
        self._partial = into / f"{id(self)}{PARTIAL}"
        with translated(directory):
            self._partial.unlink(missing_ok=True)
            self._db = _connect(
                str(self._partial),
                apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI,
            )
            try:
                self._begin()
            except BaseException:
                self.close()
                raise

    def _begin(self) -> None:
        db = self._db
        keep_wal(db)
        db.set_busy_timeout(5_000)
        db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        db.execute("PRAGMA journal_mode = OFF")  # a half-written one is thrown away
        db.execute("PRAGMA synchronous = OFF")  # it is synced once, when it is whole
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("ATTACH ? AS live", (f"file:{quote(str(self._directory / FILE))}?mode=ro",))
        db.execute("BEGIN")
        list(db.execute("SELECT turn FROM live.progress"))  # from here on it is this moment

    def copy(self) -> Path:
        """Copy it; gives the file, whose name is the position: durable, or not there at all."""
        from secondpass.store.reader import StoreReader

        with translated(self._directory):
            db = self._db
            db.execute(SCHEMA)
            for table in _TABLES:
                db.execute(f"INSERT INTO main.{table} SELECT * FROM live.{table}")
            db.execute(f"PRAGMA main.user_version = {FORMAT}")
            db.execute("COMMIT")
            db.close(True)
        sync_file(self._partial)
        copied = StoreReader.open_to_read(self._into, self._partial.name)
        position = copied.progress.position
        copied.close()
        target = self._into / f"{position}.db"
        self._partial.replace(target)
        sync_directory(self._into)
        return target

    def interrupt(self) -> None:
        """End a copy that goes on in another thread: it raises there."""
        with contextlib.suppress(apsw.Error):
            self._db.interrupt()

    def close(self) -> None:
        """Let it go."""
        with contextlib.suppress(apsw.Error):
            self._db.close(True)
        for path in self._into.glob(f"{self._partial.name}*"):
            path.unlink(missing_ok=True)


def interrupted(error: StoreError) -> bool:
    """Whether a copy was ended by `interrupt`."""
    return isinstance(error.__cause__, apsw.InterruptError)
