"""Commands to an app from Python: in the process that runs it, or in any other of the machine.

    app.control            the app as it is defined here
    control(directory)     the app of a store, without its code

A running app does a command within moments; otherwise it waits beside the store for the next run.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from secondpass.aside import is_aside
from secondpass.codec import pack, unpack
from secondpass.description import AGAIN
from secondpass.errors import ChangeRefused, SettingsError, StoreError
from secondpass.store.line import Asked, Broken, Line
from secondpass.store.lock import holder_of
from secondpass.store.reader import StoreReader
from secondpass.store.spool import PREPARATION_LIMIT_S, Command, Kind, Spool, new_name
from secondpass.task import FunctionTask, Task

if TYPE_CHECKING:
    from secondpass.app import App
    from secondpass.engine.loop import Hub

_POLL_S = 0.01
# How the log came to be: to be read so again, not done to the app.
_TAKEN = ("intake", "taken", "ahead", "tick", "ordered")
WAIT_S = 60.0
_PREPARED = ("start", "set", "add", "replace")  # what may take its time before it has a position


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    command: str
    """Its name; empty for one in the process that runs the app."""
    position: int | None
    """Its place in the stream; None while it waits for the app's next run."""

    @property
    def waits(self) -> bool:
        return self.position is None


class Control:
    """Commands to one app: each takes effect between two events, for every task and worker at once.

    >>> from secondpass import App, Event, Task
    >>> class Seen(Event):
    ...     n: int
    >>> class Halve(Task[Seen]):
    ...     def handle(self, event: Seen) -> Seen:
    ...         if event.n == 1:
    ...             app.control.stop("Halve", reason="enough", wait=False)
    ...         return event.replace(n=event.n // 2)
    >>> passed = []
    >>> app = App("halves", source=[Seen(n=n) for n in (1, 10)], tasks=[Halve()], sink=passed.append, workers=0)
    >>> summary = app.run(store=None)
    >>> summary.changes
    ['position 2: stop Halve']

    Every command may carry a `reason`, which the history keeps beside who gave it and when. Without `wait` it returns at
    once; inside of `handle` it must, since the app cannot go on before `handle` returns. Where an app's tasks run once more
    (explained, rehearsed, checked, tried, in `testing.run`) a command does nothing. Raises `ChangeRefused` where the
    app says that it cannot be done, and why.
    """

    def __init__(self, directory: Path | None, app: App | None = None) -> None:
        self._directory = directory
        self._app = app

    # ---- the chain

    def start(self, task: str, *, fresh: bool = False, reason: str = "", wait: bool = True) -> Done:
        """Let a stopped task handle events again, with what it remembers or, `fresh`, without."""
        return self._give("start", task, fresh=fresh, reason=reason, wait=wait)

    def stop(self, task: str, *, reason: str = "", wait: bool = True) -> Done:
        """Let events pass a task by; it keeps what it remembers."""
        return self._give("stop", task, reason=reason, wait=wait)

    def set(
        self,
        task: str,
        settings: Mapping[str, Any] | None = None,
        /,
        *,
        reason: str = "",
        wait: bool = True,
        **more: Any,
    ) -> Done:
        """Give a task other settings: `app.control.set("SuppressNeighbours", window_s=600.0)`.

        They may also stand in a mapping, as those must that are called `reason` or `wait`.
        """
        given = {**(settings or {}), **more}
        if not given:
            raise SettingsError(f"set({task!r}): say which settings, as keywords")
        plain = {name: unpack(pack(value)) for name, value in given.items()}
        return self._give("set", task, settings=plain, reason=reason, wait=wait)

    def add(
        self,
        task: Task[Any] | str,
        *,
        before: str | None = None,
        stopped: bool = False,
        reason: str = "",
        wait: bool = True,
    ) -> Done:
        """Put a task into the chain, before another one or at its end; a name is looked up in the app's file.

        `stopped`, it lets events pass until it is started.
        """
        return self._give("add", task, before=before, stopped=stopped, reason=reason, wait=wait)

    def remove(self, task: str, *, reason: str = "", wait: bool = True) -> Done:
        """Take a task out of the chain; what it remembers is put aside for its return."""
        return self._give("remove", task, reason=reason, wait=wait)

    def replace(
        self,
        task: Task[Any] | str,
        *,
        name: str = "",
        trial: int | None = None,
        reason: str = "",
        wait: bool = True,
    ) -> Done:
        """Let other code stand in for a task; a name is looked up in the app's file, which is read again.

        It is tried first on the last events that the task was given, at most 100 or `trial` (0: not at all); the
        stream goes on meanwhile. What the task remembers stays; where it is declared in another way, or `upgrade(old)`
        is new, that brings it over.
        """
        return self._give("replace", task, name=name, trial=trial, reason=reason, wait=wait)

    def drop(self, task: str, state: str | None = None, *, reason: str = "", wait: bool = True) -> Done:
        """Give up what a task remembers, or only one table or value of it; for good."""
        return self._give("drop-state", task, state=state, reason=reason, wait=wait)

    # ---- dead letters

    def retry_letter(
        self, number: int, event: Mapping[str, Any] | None = None, *, reason: str = "", wait: bool = True
    ) -> Done:
        """Send a dead letter again, to the task that failed; fields in `event` replace those of the event."""
        mended = None if event is None else unpack(pack(dict(event)))
        return self._give("retry", "", letter=number, event=mended, reason=reason, wait=wait)

    def drop_letter(self, number: int, *, reason: str = "", wait: bool = True) -> Done:
        """Give a dead letter up; it stays in the store, marked as dropped."""
        return self._give("drop", "", letter=number, reason=reason, wait=wait)

    # ---- the app

    def pause(self, *, reason: str = "", wait: bool = True) -> Done:
        """Let the app take no events until `resume`, also across restarts; commands are still done."""
        return self._give("pause", "", reason=reason, wait=wait)

    def resume(self, *, reason: str = "", wait: bool = True) -> Done:
        """Let a paused app go on."""
        return self._give("resume", "", reason=reason, wait=wait)

    def end(self, *, reason: str = "", wait: bool = True) -> Done:
        """End the run, after the epoch at hand; raises `ChangeRefused` where nothing runs."""
        store = self._at()
        if not is_aside() and self._hub() is None and (store is None or holder_of(store) is None):
            raise ChangeRefused("nothing runs here")
        return self._give("end", "", reason=reason, wait=wait)

    def history(self, last: int | None = None) -> list[dict[str, Any]]:
        """What was done to the app, or the `last` so many of it, oldest first: `kind`, `position`, and what each tells.

        A `kind` is `start`, `command`, `left out` (with the reason), `timetable` (a switch that changed nothing), `retry`
        or `drop` (of a dead letter), `verdict`, `loaded` (what a lookup held at first; a reload is a `command`).
        """
        with _reading(self._store()) as store:
            found = store.recent_history(last, without=_TAKEN)
        return [
            {"kind": kind, "position": position, **{n: v for n, v in details.items() if n != "cells"}}
            for position, kind, details in reversed(found)
        ]

    # ---- how

    def _give(
        self, kind: Kind, task: Task[Any] | str, *, wait: bool, name: str = "", reason: str = "", **more: Any
    ) -> Done:
        if is_aside():
            return Done("", None)
        hub = self._hub()
        given = None if isinstance(task, str) else task
        target = task if isinstance(task, str) else name or task.name
        command = Command(kind, at=time.time(), reason=reason, by=_who(), task=target, **more)
        if hub is not None and hub.store.directory is None:
            return self._here(hub, command, given, wait=wait)
        if given is not None:
            if hub is not None:
                return self._here(hub, command, given, wait=wait)
            where, settings = _by_reference(given)
            command = msgspec.structs.replace(command, cls=where, settings=settings)
        return self._leave(command, wait=wait)

    def _hub(self) -> Hub | None:
        from secondpass.engine.run import running_here  # only where there is an app is there an engine

        return None if self._app is None else running_here(self._app)

    def _at(self) -> Path | None:
        """The store: that of the run in this process, or that has started it, or else the one that the app has by default."""
        hub = self._hub()
        if hub is not None:
            return hub.store.directory
        if self._app is None:
            return self._directory
        from secondpass.engine.eventlog import told_store  # as above

        return told_store(self._app.name) or self._directory

    def _store(self) -> Path:
        store = self._at()
        if store is None:
            raise StoreError("the app runs in memory, where no history is kept")
        if not store.is_dir():
            raise StoreError(f"there is no store in {store}, and the app does not run in this process")
        return store

    @staticmethod
    def _here(hub: Hub, command: Command, given: Any, *, wait: bool) -> Done:
        answer = hub.commands.give(command, given)
        if not wait:
            return Done("", None)
        if not answer.done.wait(_patience_s(command)):
            raise _unanswered(command)
        if answer.refusal is not None:
            raise ChangeRefused(answer.refusal)
        return Done("", answer.position)

    def _leave(self, command: Command, *, wait: bool) -> Done:
        """Give it to the hub that runs the app, or leave it beside the store for the next."""
        directory, name = self._store(), new_name()
        with contextlib.suppress(Broken):
            return _ask(directory, name, command, wait=wait)
        if _told(directory, name) is None:  # else the line broke after it was done
            Spool(directory).put(command, name)
        if not wait:
            return Done(name, None)
        until = time.monotonic() + _patience_s(command)
        while True:
            running = holder_of(directory) is not None
            found = _told(directory, name)
            if found is not None:
                position, kind, details = found
                if kind == "left out":
                    raise ChangeRefused(details["reason"])
                return Done(name, position)
            if not running:
                return Done(name, None)
            if time.monotonic() > until:
                raise _unanswered(command)
            time.sleep(_POLL_S)


def control(store: str | Path) -> Control:
    """The app of a store, for commands; its code is not loaded.

    >>> control(".secondpass/roadside").stop("SuppressNeighbours")  # doctest: +SKIP
    Done(command='...', position=1207)
    """
    return Control(Path(store))


def _ask(directory: Path, name: str, command: Command, *, wait: bool) -> Done:
    """Ask the running app; raises `Broken` where nobody answers, or no more."""
    line = Line.to(directory)
    try:
        try:
            line.ask(Asked(name, command, wait))
        except TimeoutError:
            raise Broken from None
        if not wait:
            return Done(name, None)
        try:
            found = line.answer(_patience_s(command))
        except TimeoutError:
            raise _unanswered(command) from None
    finally:
        line.close()
    if found.refusal is not None:
        raise ChangeRefused(found.refusal)
    return Done(name, found.position)


def _patience_s(command: Command) -> float:
    """How long to wait for an answer."""
    return WAIT_S + (PREPARATION_LIMIT_S if command.kind in _PREPARED else 0.0)


def _unanswered(command: Command) -> ChangeRefused:
    return ChangeRefused(
        f"the app has not taken the {command.kind} within {_patience_s(command):g} s; it stays asked for, `secondpass history` shows what "
        f"becomes of it. From inside a task's handle, give it with wait=False"
    )


def _who() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}, process {os.getpid()}"


def _by_reference(task: Task[Any]) -> tuple[str, dict[str, Any]]:
    """A task as another process finds it: where its class stands, and its settings."""
    target: Any = task.function if isinstance(task, FunctionTask) else type(task)
    module, qualname = target.__module__.partition(AGAIN)[0], target.__qualname__
    if "<" in qualname or module == "__main__":
        raise SettingsError(
            f"the task {task.name} is defined in {module}.{qualname}, where the process that runs the app cannot find it; "
            f"put it at the top level of a module"
        )
    settings = {} if target is not type(task) else {n: getattr(task, n) for n in type(task)._shape.settings}
    return f"{module}:{qualname}", {name: unpack(pack(value)) for name, value in settings.items()}


def _told(directory: Path, name: str) -> tuple[int, str, Mapping[str, Any]] | None:
    """What the history says of a command; None as long as it says nothing."""
    try:
        with _reading(directory) as store:
            for position, kind, details in store.recent_history(200):
                told = cast("dict[str, Any]", details) if isinstance(details, dict) else {}
                if told.get("command") == name:
                    return position, kind, told
    except StoreError:
        return None  # not there yet
    return None


class _reading:  # noqa: N801  # reads as a phrase
    def __init__(self, directory: Path) -> None:
        self._store = StoreReader.open_to_read(directory)

    def __enter__(self) -> StoreReader:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


__all__ = ["Control", "Done", "control"]
