"""Older formats: what is done when a store of one is opened to be written.

To add a format: raise `FORMAT`, say here what makes an older database one of the new format, and keep a
store of the old one in tests/store/fixtures. The upgrade is part of the transaction that opens the store,
so it happens as a whole or not at all; a copy of the store as it was is made before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from secondpass.errors import StoreError
from secondpass.store.connection import Database
from secondpass.store.files import sync_directory, sync_file
from secondpass.store.format import FORMAT

UPGRADES: dict[int, Callable[[Database], None]] = {}
"""What makes a database of this format one of the next."""


def back_up(db: Database, directory: Path) -> None:
    """Copy a store of an older format to `store-format-1.db` beside it, before it is upgraded."""
    found: int = db.pragma("user_version")
    copy = directory / f"store-format-{found}.db"
    if found >= FORMAT or copy.exists():
        return
    partial = copy.with_suffix(".partial")
    try:
        partial.unlink(missing_ok=True)
        db.execute("VACUUM INTO ?", (str(partial),))
        sync_file(partial)
        partial.rename(copy)
    except OSError as error:
        raise StoreError(f"cannot copy the store to {copy} before its upgrade: {error.strerror}") from error
    sync_directory(directory)


def upgrade(db: Database) -> None:
    """Bring the database to the format of this version, inside the transaction under way."""
    for number in range(db.pragma("user_version"), FORMAT):
        UPGRADES[number](db)
        db.pragma("user_version", number + 1)
