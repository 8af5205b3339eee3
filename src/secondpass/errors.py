"""Every error that secondpass raises, in one tree.

    SecondpassError
    ├── UsageError              you asked for something that cannot be: the way out is in your hands
    │   ├── DefinitionError     a class or an app is defined in a way that cannot work
    │   ├── ChainChanged        the app's state changed its names; say which is which
    │   ├── ChangeRefused       a command cannot be done; the chain runs on as it was
    │   ├── NotRepeated         the app as it is now does not repeat what ran
    │   └── SettingsError       an option or an argument does not fit
    ├── TaskError               your task's code did something at one event
    │   ├── TaskFault           it broke a rule of meaning (a wrong type in a cell, a returned bool, ...)
    │   ├── TaskStopped         it raised, and `on_error="stop"` asks to stop there
    │   ├── SetupFailed         its `setup()` raised
    │   └── WorkerLost          somebody ends its worker, again and again
    ├── WorldError              the world outside failed
    │   ├── InputError          an input cannot be read, or is not the one read before
    │   ├── OutputError         an output cannot be written, or is not the one written before
    │   └── StoreError          the store cannot be used
    │       ├── StoreLocked     another process holds it
    │       ├── StoreFull       there is no space left
    │       ├── StoreDamaged    its content fails its checksums
    │       └── StoreVersion    it was written by a newer secondpass
    └── InternalError           a bug of ours

A message says what happened, where, and what to do next. Errors pickle, so they can cross processes.
"""

from __future__ import annotations

from typing import Any


class SecondpassError(Exception):
    """The root of the tree: `except SecondpassError` catches all of them."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), str(self), self.details))

    def __str__(self) -> str:
        return str(self.args[0])


def _rebuild(cls: type[SecondpassError], message: str, details: dict[str, Any]) -> SecondpassError:
    return cls(message, **details)


class UsageError(SecondpassError):
    """The caller asked for something that cannot be."""


class DefinitionError(UsageError, TypeError):
    """A task, an event or an app is defined in a way that cannot work."""


class ChainChanged(UsageError):
    """State was removed while other state was added: say `--rename Old=New` or `--drop Old`."""


class ChangeRefused(UsageError):
    """A command to a chain cannot be done; the chain runs on as it was."""


class NotRepeated(UsageError):
    """Run again, the app does not give what it gave: its code or its input has changed, or it depends on more."""


class SettingsError(UsageError, ValueError):
    """An option or an argument does not fit."""


class TaskError(SecondpassError):
    """A task's own code stopped the app at one event; `details` hold task and position."""


class TaskFault(TaskError):
    """A task broke a rule of meaning; what precedes the event is committed."""


class TaskStopped(TaskError):
    """A task with `on_error="stop"` raised; what precedes the event is committed."""


class SetupFailed(TaskError):
    """A task's `setup()` raised."""


class WorkerLost(TaskError):
    """Whenever an event runs, its worker is ended from outside."""


class WorldError(SecondpassError):
    """Something outside the program failed."""


class InputError(WorldError):
    """An input cannot be read, or it is not the one that was read before."""


class OutputError(WorldError):
    """An output cannot be written, or it is not the one that was written before."""


class StoreError(WorldError):
    """The store cannot be used."""


class StoreLocked(StoreError):
    """Another process holds the store; the message names it."""


class StoreFull(StoreError):
    """No space is left where the store lives."""


class StoreDamaged(StoreError):
    """The store's content does not match its checksums."""


class StoreVersion(StoreError):
    """The store has a format that this version cannot read."""


class InternalError(SecondpassError):
    """A bug of secondpass; please report it."""
