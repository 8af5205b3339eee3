"""Commands for an app, as files beside its store: how a second process asks for something.

Only the hub writes the database. What is asked of an app is a file in `commands/`, which only the store's owner may
enter: put there by the hub where one runs and is asked (`line.py`), else by whoever asks. The hub takes it between two
epochs, now or at its next start, and removes it once it is committed. The file's name is the command's identity, so
a crash between commit and removal does nothing twice.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from secondpass.errors import StoreError
from secondpass.failpoints import failpoint

DIRECTORY = "commands"
NAME = r"\d{20}-[0-9a-f]{8}\.json"
PREPARATION_LIMIT_S = 120.0
"""So long the app may load, set up and try what a command brings in: those that come after it wait for it."""
_TICK_NS = 2_000_000_000  # the coarsest clock of a file system in use


Kind = Literal[
    "retry", "drop",
    "start", "stop", "set", "add", "remove", "replace", "drop-state",
    "pause", "resume", "end",
]  # fmt: skip


class Command(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is asked for: of a dead letter (retry, drop), of a task, or of the app (pause, resume, end)."""

    kind: Kind
    letter: int = -1
    event: Any = None
    """The mended event as plain data; None to send it as it was."""
    at: float = 0.0
    """When it was given, by the wall clock."""
    reason: str = ""
    by: str = ""
    """Who gave it."""
    task: str = ""
    settings: dict[str, Any] = {}
    """As plain data; those that change, or for a task that comes in, all that are given."""
    cls: str = ""
    """`module:qualname` of the class, or function, of a task that comes in; empty: the app's file is read again."""
    before: str | None = None
    fresh: bool = False
    state: str | None = None
    stopped: bool = False
    timetable: str = ""
    """The timetable that gave it, for its switch that was `due` then."""
    due: float = 0.0
    trial: int | None = None
    """On so many of the last events other code is tried first; None: as many as there are at hand."""


def new_name() -> str:
    """The identity of a command that is given now; names sort as their times do."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"


class Spool:
    """The commands waiting beside one store."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / DIRECTORY
        self._seen_at = -1

    def put(self, command: Command, name: str | None = None) -> str:
        """Leave a command, durable when this returns; gives its name, by which leaving it again changes nothing."""
        name = name or new_name()
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            partial = self._path / f".{name}.{secrets.token_hex(4)}"
            with partial.open("wb") as file:
                file.write(msgspec.json.encode(command))
                file.flush()
                os.fsync(file.fileno())
            failpoint("spool.put.before")
            partial.rename(self._path / name)
            failpoint("spool.put.after")
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"cannot leave a command in {self._path}: {error.strerror or error}") from error
        return name

    def waiting(self) -> list[tuple[str, Command]]:
        """The commands that wait, oldest first; cheap while nothing changes."""
        try:
            changed_at = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if changed_at == self._seen_at:
            return []
        # Looked at before listing: what arrives in between is found the next time. A change within the
        # same tick of the file system's clock would not show, so a young time is not relied upon.
        self._seen_at = changed_at if time.time_ns() - changed_at > _TICK_NS else -1
        found: list[tuple[str, Command]] = []
        for path in sorted(self._path.glob("[0-9]*.json")):
            try:
                found.append((path.name, msgspec.json.decode(path.read_bytes(), type=Command)))
            except (msgspec.MsgspecError, OSError) as error:
                raise StoreError(f"{path} is no command ({error}); remove it and run again") from error
        return found

    def remove(self, name: str) -> None:
        """The command is committed."""
        failpoint("spool.remove.before")
        (self._path / name).unlink(missing_ok=True)
        failpoint("spool.remove.after")
