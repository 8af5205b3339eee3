"""At start: what commands made of the chain that the app's file describes, as far as the file has not overruled it.

What was changed while the app ran goes on after a restart: settings, tasks that were stopped, that came in or left. What
changed in the file since the last start overrides that, setting by setting: who edits the file means it.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from secondpass.app import App, as_task
from secondpass.description import describe
from secondpass.errors import ChainChanged, SettingsError
from secondpass.record import Change, error_text
from secondpass.store.reader import StoreReader
from secondpass.task import Options, Task, from_plain, is_task_class, with_options, with_settings

Described = dict[str, Any]
KINDS = {"drop-state": "drop"}
"""What a command is called among changes, where that is another word: of dead letters there is a `drop` too."""


class Live:
    """An app as it runs on from where its store stands."""

    def __init__(
        self,
        app: App,
        store: StoreReader,
        drop: tuple[str, ...] = (),
        rename: Mapping[str, str] | None = None,
    ) -> None:
        self.file: list[Described] = [describe(task) for task in app.tasks]
        """The chain of the file."""
        self.notes: list[str] = []
        names = rename or {}
        known: list[Described] | None = store.meta("chain")  # an empty one, where all tasks left, is one too
        self._running: list[Described] = _renamed(self.file if known is None else known, names)
        before: list[Described] = _renamed(store.meta("file") or self._running, names)
        self._before = {d["name"]: d for d in before}
        running = {d["name"]: d for d in self._running}
        tasks: list[Task[Any]] = []
        for task, described in zip(app.tasks, self.file, strict=True):
            if task.name in self._before and task.name not in running:
                self.notes.append(f"task {task.name} stays removed; `secondpass task add` brings it back")
            elif task.name in self._before:
                tasks.append(self._as_set(task, described, running[task.name]))
            else:
                tasks.append(task)
        self._add_those_that_came(app, tasks, drop)
        self.stopped = {n for n, d in running.items() if d.get("stopped")} & {t.name for t in tasks}
        self.notes += [f"task {task.name} stays stopped" for task in tasks if task.name in self.stopped]
        self.app = copy.copy(app)
        self.app.tasks = tuple(tasks)

    def _as_set(self, task: Task[Any], described: Described, running: Described) -> Task[Any]:
        """A task of the file with the settings that a command gave it and that the file has not changed since."""
        was, now, told = self._before[task.name]["settings"], running["settings"], described["settings"]
        kept = {
            name: value
            for name, value in now.items()
            if name in told and was.get(name) != value and was.get(name) == told[name]
        }
        if not kept:
            return task
        self.notes += [
            f"{task.name}.{name} stays {value!r}, as set while it ran" for name, value in kept.items()
        ]
        try:
            return with_settings(task, kept)
        except SettingsError as error:
            raise ChainChanged(f"{error}; it was set while the app ran. Change it in the file too") from None

    def _add_those_that_came(self, app: App, tasks: list[Task[Any]], drop: tuple[str, ...]) -> None:
        """The tasks that came in by a command and that the file does not have."""
        known = {task.name for task in app.tasks} | set(self._before) | set(drop)
        for at, described in enumerate(self._running):
            if described["name"] in known:
                continue
            behind = [d["name"] for d in self._running[at + 1 :]]
            names = [task.name for task in tasks]
            place = next((names.index(name) for name in behind if name in names), len(tasks))
            tasks.insert(place, self._found_again(described))
            self.notes.append(f"task {described['name']} stays, as added while it ran")

    def _found_again(self, described: Described) -> Task[Any]:
        where = f"{described['module']}:{described['class']}"
        options = msgspec.convert(described["options"], Options)
        try:
            return task_of(where, described["settings"], options)
        except SettingsError as error:
            raise ChainChanged(
                f"task {described['name']} was added while the app ran, and cannot be loaded again: {error}. Put it into "
                f"the app's file, or let it go with its state: --drop {described['name']}"
            ) from error


def _renamed(chain: list[Described], names: Mapping[str, str]) -> list[Described]:
    """A described chain with the tasks' names as the file has them now."""
    return [{**d, "name": names.get(d["name"], d["name"])} for d in chain]


def task_of(where: str, settings: dict[str, Any], options: Options | None = None) -> Task[Any]:
    """The task that `module:qualname` and some settings describe; raises `SettingsError` where there is none."""
    module, _, qualname = where.partition(":")
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise SettingsError(f"there is no {where} here ({error_text(error)})") from error
    task = found(**from_plain(found, settings)) if is_task_class(found) else as_task(found)
    return task if options is None else with_options(task, options)


def recorded_change(details: dict[str, Any]) -> Change:
    """A command as the history tells it, with the code that is there now; raises `SettingsError` where it is gone."""
    to: Task[Any] | None = None
    if "to" in details:
        came: Described = details["to"]
        options = msgspec.convert(came["options"], Options)
        to = task_of(f"{came['module']}:{came['class']}", came["settings"], options)
    kind: Any = KINDS.get(details["asked"], details["asked"])
    more = {name: details[name] for name in ("before", "fresh", "state", "stopped") if name in details}
    return Change(kind, details["task"], to, **more)
