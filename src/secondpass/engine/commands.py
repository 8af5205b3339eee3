"""Commands from the spool, each an epoch of its own: a dead letter sent again or dropped.

A command that cannot be done is left out, which is recorded with its reason: it must not stop this start
or any later one. Its file goes once it is committed, and is recognised if a crash comes in between.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from secondpass.engine.epoch import Epoch
from secondpass.engine.intake import Intake
from secondpass.engine.outbox import decode_event
from secondpass.engine.quarantine import KILLED
from secondpass.event import owned, untyped
from secondpass.record import INTAKE, Retry, error_text
from secondpass.store.database import Store
from secondpass.store.format import Progress, StoredLetter
from secondpass.store.spool import Command, Spool

KEPT = 64
"""So many names of done commands are remembered in the progress record."""


class Commands:
    """The commands that wait for one app."""

    def __init__(self, store: Store, intake: Intake, tasks: list[str]) -> None:
        self._spool = Spool(store.directory) if store.directory is not None else None
        self._store = store
        self._intake = intake
        self._tasks = tasks
        self._waiting: list[tuple[str, Command]] = []
        self._refusal: str | None = None
        """Why the command at hand is left out."""

    def next_epoch(self, number: int) -> Epoch | None:
        """The oldest waiting command as an epoch; None when none waits."""
        if self._spool is None:
            return None
        progress = self._store.progress
        if not self._waiting:
            for name, command in self._spool.waiting():
                if name in progress.commands:
                    self._spool.remove(name)  # a crash came between its commit and this
                else:
                    self._waiting.append((name, command))
        return self._epoch(number, progress, self._waiting[0][1]) if self._waiting else None

    def _epoch(self, number: int, progress: Progress, command: Command) -> Epoch:
        self._refusal, retry = None, Retry(command.letter, INTAKE, None)
        events: list[Any] = []
        dangerous = False
        found = self._store.letter(command.letter)
        if found is None:
            self._refusal = f"there is no dead letter {command.letter}"
        elif found[0] != "open":
            self._refusal = f"dead letter {command.letter} was {found[0]} already"
        elif command.kind == "retry":
            letter = found[1]
            dangerous = letter.error.startswith(KILLED)
            task = letter.task if letter.task in self._tasks else INTAKE
            try:
                retry = Retry(command.letter, task, self._event_of(letter, command))
                events = [retry.event]
            except Exception as error:  # noqa: BLE001 - data from outside, and a type's own checks may raise anything
                self._refusal = f"dead letter {command.letter} is no event: {error_text(error)}"
        if self._refusal is not None:
            logging.getLogger("secondpass").warning("the %s is left out: %s", command.kind, self._refusal)
        return Epoch(
            number=number,
            first=progress.position,
            count=1,
            events=events,
            origin=range(len(events)),
            times=[progress.now] * len(events),
            refused={},
            now=progress.now,
            now_after=progress.now,
            offsets=progress.sources,
            kinds=set(map(type, events)),
            retry=retry,
            dangerous=dangerous,
        )

    def _event_of(self, letter: StoredLetter, command: Command) -> Any:
        """The event to send again: as it was, or mended with new fields."""
        event = decode_event(letter.event)
        if event is None:
            raw = letter.raw if command.event is None else msgspec.json.encode(command.event)
            return self._intake.decode(letter.source, raw)
        if command.event is None:
            return event
        if isinstance(event, dict):
            return untyped(command.event)
        return owned(msgspec.convert({**msgspec.to_builtins(event), **command.event}, event.__class__))

    def settle(self, progress: Progress) -> tuple[tuple[str, Any], dict[int, str]]:
        """What to commit of the command at hand, noted in `progress`: its history, and its letter's status."""
        name, command = self._waiting[0]
        progress.commands = [*progress.commands, name][-KEPT:]
        details = {"letter": command.letter, "command": name, "reason": self._refusal or command.reason}
        if self._refusal is not None:
            return ("left out", details), {}
        return (command.kind, details), {command.letter: "sent" if command.kind == "retry" else "dropped"}

    def done(self) -> None:
        """The command at hand is committed, or has stopped the app: it must not come again."""
        name, _ = self._waiting.pop(0)
        if self._spool is not None:
            self._spool.remove(name)
