"""How SQLite is opened, which SQLite, and what its errors mean in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import apsw
import msgspec

from secondpass.errors import StoreError, StoreFull
from secondpass.store.format import PAGE_SIZE, damaged

SQLITE_MIN = (3, 51, 3)
"""Older ones can corrupt a WAL database (the WAL-reset bug, mended in 3.51.3)."""
WAL_PAGES = 4000
"""How many pages the WAL may hold before they are copied into the database."""
_CACHE_KIB = 32 * 1024
_BUSY_MS = 5_000


class Database(Protocol):
    """What the store needs of an `apsw.Connection`, whose own types cannot be checked before Python 3.12."""

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, sql: str, bindings: Sequence[Any] = ..., /) -> Iterator[Any]: ...
    def executemany(self, sql: str, bindings: Iterable[Sequence[Any]], /) -> Iterator[Any]: ...
    def pragma(self, name: str, value: int | str | None = ..., /) -> Any: ...
    def changes(self) -> int: ...
    def interrupt(self) -> None: ...
    def config(self, option: int, value: int, /) -> int: ...
    def set_busy_timeout(self, milliseconds: int, /) -> None: ...
    def close(self, force: bool = ..., /) -> None: ...


def connect_to_write(
    path: Path | None, vfs: str | None = None, *, synchronous: str = "FULL", wal_pages: int = WAL_PAGES
) -> Database:
    """A connection for the one writer; without a path, to a database in memory."""
    name = ":memory:" if path is None else str(path)
    db = _connect(name, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, vfs)
    keep_wal(db)  # until a clean close
    _set_up(db)
    if path is not None:
        db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        mode = db.pragma("journal_mode", "WAL")
        if mode != "wal":
            raise StoreError(
                f"the file system of {path.parent} cannot hold a store: SQLite's WAL does not work there (is it on "
                f"the network?); use a local directory"
            )
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {wal_pages}")
    return db


def connect_to_read(path: Path) -> Database:
    """A connection beside the writer, which changes neither the database nor its WAL."""
    db = _connect(str(path), apsw.SQLITE_OPEN_READONLY)
    keep_wal(db)
    _set_up(db)
    return db


def _connect(name: str, flags: int, vfs: str | None = None) -> Database:
    return cast("Database", apsw.Connection(name, flags=flags, vfs=vfs))


def _set_up(db: Database) -> None:
    db.set_busy_timeout(_BUSY_MS)
    db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    db.execute("PRAGMA mmap_size = 0")  # a failed read through a mapping is a signal, not an error
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA trusted_schema = OFF")


def keep_wal(db: Database, *, keep: bool = True) -> None:
    """Whether to close without copying the WAL into the database and deleting it.

    After a failed write, or before the store is known to be whole, the disk decides what there is.
    """
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(keep))


def require_sqlite() -> None:
    """Refuse a SQLite that can corrupt a WAL database."""
    found = tuple(map(int, apsw.sqlite_lib_version().split(".")[:3]))
    if found < SQLITE_MIN:
        need = ".".join(map(str, SQLITE_MIN))
        raise StoreError(
            f"SQLite {apsw.sqlite_lib_version()} has a bug that corrupts databases; secondpass needs {need}: "
            f"pip install -U apsw"
        )


class translated:  # noqa: N801  # reads as a phrase: `with translated(directory):`
    """Turns SQLite's errors into ours, naming the directory and the way out."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        where = self._directory or "memory"
        if isinstance(error, apsw.FullError):
            raise StoreFull(
                f"no space left for the store {where}; nothing of the last epoch was acknowledged. Free some space "
                f"and run again: it goes on where it stopped"
            ) from error
        if isinstance(error, (apsw.CorruptError, apsw.NotADBError, apsw.SQLError)):
            raise damaged(f"{where}: {error}") from error
        if isinstance(error, apsw.IOError):
            code = getattr(error, "extendedresult", 0)
            raise StoreError(
                f"writing or reading the store {where} failed: {error} (code {code}); nothing of the "
                f"last epoch was acknowledged. Look at the disk (space, limits on file size, its health) and run "
                f"again: it goes on where it stopped"
            ) from error
        if isinstance(error, apsw.Error):
            raise StoreError(f"the store {where} cannot be used: {error}") from error


@contextlib.contextmanager
def reading(directory: Path | None) -> Generator[None]:
    """What cannot be read as what it must be is damage, wherever it shows first."""
    try:
        with translated(directory):
            yield
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise damaged(f"{directory or 'memory'}: {error}") from error
