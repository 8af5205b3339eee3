"""Making files and names durable."""

from __future__ import annotations

import os
from pathlib import Path

from secondpass.errors import StoreError


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: SQLite may swallow an error here, so we do it ourselves."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        raise StoreError(f"cannot make {path} durable: {error.strerror}") from error
    finally:
        os.close(fd)
