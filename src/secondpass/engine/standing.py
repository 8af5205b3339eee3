"""The chain of an app with its state at a position of the recorded log, brought forward by what changes it.

The store says which tasks ran, with which settings, and tells their code by its hash. They are run again with the code
that is there now, where that is the same; where it is not, that is said.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import msgspec

from secondpass.app import App
from secondpass.change import Aside, Link, _with_earlier, changed, times_to_live
from secondpass.description import code_hash, describe
from secondpass.engine.compare import codecs_of
from secondpass.engine.live import Described, recorded_change, task_of
from secondpass.engine.lookups import Recalled
from secondpass.engine.replay import Base, Commanded, Restarted, WasLoaded
from secondpass.errors import ChangeRefused, NotRepeated, SettingsError
from secondpass.record import Change, DeadLetter, Retry
from secondpass.store.reader import StoreReader, Unreadable
from secondpass.task import FunctionTask, Options, Task, with_options, with_settings


class Standing:
    """The chain with its state at a position of the log, brought forward by what changes it."""

    def __init__(self, app: App, base: Base) -> None:
        self._app = app
        self._base = base
        self.links: list[Link] = []
        self.put_aside: dict[str, Aside] = {}
        self._lookups = Recalled(base.snapshot)
        snapshot = base.snapshot
        if snapshot is None:
            return
        chain: list[Described] = snapshot.meta("chain") or []
        described = [(one, task) for one in chain if (task := self._task(one, base.position)) is not None]
        try:
            cells = snapshot.load(codecs_of(tuple(task for _, task in described)))
        except Unreadable as error:
            raise NotRepeated(
                f"the state of {'.'.join(error.name)} at position {base.position} is not of the type that is declared now "
                f"({error.why})"
            ) from error
        for one, task in described:
            shape, ttl_s = type(task)._shape, times_to_live(task)
            tables = {
                name: _living(cells[task.name, name], one["ttl_s"].get(name), ttl_s.get(name), base.now)
                for name in shape.tables
            }
            values = {n: cells[task.name, n][None] for n in shape.values if cells[task.name, n]}
            self.links.append(Link(task, tables, values, stopped=one.get("stopped", False)))
        asides: dict[str, Any] = snapshot.meta("aside") or {}
        self.put_aside = {name: Aside(left["state"], left["ttl_s"], {}, {}) for name, left in asides.items()}
        self._look_into(base.position)

    def _look_into(self, position: int) -> None:
        """Let the tasks see what their lookups held."""
        for link in self.links:
            link.task = self._lookups.attached(link.task, position)

    def was_loaded(self, item: WasLoaded) -> None:
        """A lookup was loaded when the app started."""
        self._lookups.note(item.lookup, item.cells, whole=True)

    def _task(self, described: Described, position: int) -> Task[Any] | None:
        """The task that stands for the one that ran; None for none."""
        return task_for(described, self._app, position)

    def commanded(self, item: Commanded, now: float) -> None:
        """Do a command again."""
        if item.details["asked"] == "reload":
            self._lookups.note(item.details["task"], item.details["cells"], whole=False)
            return
        change = _change_of(item.details, item.position)
        if change.kind == "add" and change.to is not None:
            self._bring_back(change.to)
        try:
            self.links = changed(self.links, self.put_aside, change, item.position, now)
            for link in self.links:
                link.let_go(now)
            self._look_into(item.position)
        except ChangeRefused as error:
            raise NotRepeated(
                f"the command at position {item.position} cannot be done again: {error}"
            ) from error

    def restarted(self, item: Restarted, now: float) -> None:
        """Go on with the chain of another start; what state it does not have is put aside."""
        for link in self.links:
            left = Aside.of(link)
            left.cells, left.values = dict(left.cells), dict(left.values)
            self.put_aside[link.name] = _with_earlier(self.put_aside.get(link.name), left)
        for old, new in item.moves:
            self._move(old, new)
        self.links = []
        for one in item.chain:
            task = self._task(one, item.position)
            if task is not None:
                link = self._came(task, item.position, now)
                link.stopped = one.get("stopped", False)
                self.links.append(link)
        self._look_into(item.position)

    def _came(self, task: Task[Any], position: int, now: float) -> Link:
        """A task that comes into the chain, with what it left behind when it was there before."""
        self._bring_back(task)
        try:
            (link,) = changed([], self.put_aside, Change("add", task.name, task), position, now)
        except ChangeRefused as error:
            raise NotRepeated(f"the start at position {position}: {error}") from error
        link.let_go(now)
        return link

    def _move(self, old: tuple[str, str], new: tuple[str, str] | None) -> None:
        left = self.put_aside.get(old[0])
        if left is None or old[1] not in left.declared:
            return
        if new is not None:
            self._load_aside(old[0], [old[1]])
            into = self.put_aside.setdefault(new[0], Aside({}, {}, {}, {}))
            for parts, moved_ in (
                (left.declared, into.declared),
                (left.ttl_s, into.ttl_s),
                (left.cells, into.cells),
                (left.values, into.values),
            ):
                part: Any = parts
                if old[1] in part:
                    moved_[new[1]] = part[old[1]]
        for parts in (left.declared, left.ttl_s, left.cells, left.values):
            parts.pop(old[1], None)

    def _bring_back(self, task: Task[Any]) -> None:
        """Have at hand what a task that comes put aside before the base."""
        left = self.put_aside.get(task.name)
        if left is None:
            return
        declared = type(task)._shape.state()
        self._load_aside(
            task.name, [n for n in left.declared if declared.get(n) == left.declared[n]], codecs_of((task,))
        )

    def _load_aside(self, name: str, states: list[str], codecs: dict[Any, Any] | None = None) -> None:
        left = self.put_aside[name]
        missing = [n for n in states if n not in left.cells and n not in left.values]
        if not missing or self._base.snapshot is None:
            return
        if codecs is None:
            codecs = codecs_of(self._app.tasks)
        wanted = {(name, n): codecs[name, n] for n in missing if (name, n) in codecs}
        for (_, n), cells in self._base.snapshot.load(wanted).items():
            if left.declared[n]["kind"] != "value":
                left.cells[n] = cells
            elif None in cells:
                left.values[n] = cells[None]

    def entry(self, retry: Retry) -> int | None:
        """Behind how many tasks a dead letter that was sent again enters; None where it is not sent."""
        return next((at for at, link in enumerate(self.links) if link.name == retry.task), 0)

    def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """These were set aside when it ran again."""

    def tasks(self) -> list[Task[Any]]:
        """The tasks of the chain, in order."""
        return [link.task for link in self.links]


def _living(cells: dict[Any, Any], ttl_s: float | None, longer_s: float | None, now: float) -> dict[Any, Any]:
    """Cells without those that have expired and that a longer time to live would bring back."""
    if ttl_s is None or longer_s is None or longer_s <= ttl_s:
        return cells
    return {key: entry for key, entry in cells.items() if now - entry[1] < ttl_s}


# ---------------------------------------------------------------- the code that ran


def task_for(described: Described, app: App, position: int) -> Task[Any]:
    """The task that ran from a position on; raises `NotRepeated` where its code is not there any more."""
    task = next((t for t in app.tasks if t.name == described["name"]), None)
    if task is None or code_hash(task) != described["code"]:
        task = _elsewhere(described) or task
    if task is None:
        raise _gone(described["name"], position, "the app has no such task")
    if not described.get("stopped"):
        _refuse_other_code(task, described, position)
    here = describe(task)
    if here["settings"] != described["settings"] and not isinstance(task, FunctionTask):
        try:
            task = with_settings(task, described["settings"])
        except SettingsError as error:
            raise _gone(described["name"], position, str(error)) from error
    if here["options"] != described["options"]:
        task = with_options(copy.copy(task), msgspec.convert(described["options"], Options))
    return task


def _change_of(details: dict[str, Any], position: int) -> Change:
    """A command with the code that it brought; raises `NotRepeated` where that is not there any more."""
    came: Described | None = details.get("to")
    try:
        change = recorded_change(details)
    except SettingsError as error:
        raise _gone(details["task"], position, str(error)) from error
    if came is not None and change.to is not None:
        _refuse_other_code(change.to, came, position)
    return change


def gone_from(app: App, store: StoreReader, base: Base) -> float:
    """The position from which on what ran since a base cannot be run again, as its code is gone; infinite for none."""
    entries = [
        (number, at, details)
        for kind in ("start", "command")
        for number, at, details in store.history_of(kind)
        if number > base.entries and ("chain" in details or "to" in details)
    ]
    at = base.position
    chain: list[Described] = [] if base.snapshot is None else base.snapshot.meta("chain") or []
    try:
        for one in chain:
            task_for(one, app, at)
        for _, at, details in sorted(entries, key=itemgetter(0)):
            for one in details.get("chain", ()):
                task_for(one, app, at)
            if "to" in details:
                _change_of(details, at)
    except NotRepeated:
        return at
    return math.inf


def _elsewhere(described: Described) -> Task[Any] | None:
    """A task that came by a command, and that the app's file does not have under this name."""
    options = msgspec.convert(described["options"], Options)
    try:
        found = task_of(f"{described['module']}:{described['class']}", described["settings"], options)
    except SettingsError:
        return None
    return found if code_hash(found) == described["code"] else None


def _refuse_other_code(task: Task[Any], described: Described, position: int) -> None:
    if code_hash(task) != described["code"]:
        raise NotRepeated(
            f"the code of task {task.name} has changed since position {position}: what ran then cannot be run again. "
            f"Bring back the file as it was (from version control, say) to explain what it did; what ran since its last "
            f"change can be explained from a snapshot that was kept after it",
            task=task.name,
            position=position,
        )


def _gone(name: str, position: int, why: str) -> NotRepeated:
    return NotRepeated(
        f"task {name}, which ran at position {position}, is not there any more ({why}); bring it back to run again what "
        f"it did",
        task=name,
        position=position,
    )
