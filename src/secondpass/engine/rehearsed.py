"""What is different in a rehearsed chain, and the chain that it makes of the one that ran, at any place in the log.

What the app's file has otherwise than at the last start counts: code, settings, tasks that came or went. Beside that
stand the settings and the tasks left out that were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from secondpass.app import App
from secondpass.change import changed
from secondpass.description import describe
from secondpass.engine.compare import _task_changes
from secondpass.engine.live import Described
from secondpass.engine.replay import Base, Commanded, Restarted
from secondpass.engine.sentagain import SentAgain
from secondpass.engine.standing import Standing, task_for
from secondpass.errors import ChangeRefused, NotRepeated, SettingsError
from secondpass.record import Change, DeadLetter, Retry
from secondpass.store.reader import Renames, StoreReader
from secondpass.task import FunctionTask, Task, with_settings


@dataclass
class Changes:
    """What is different in the rehearsed chain; tasks are named as they are called now."""

    renames: Renames = field(default_factory=lambda: Renames([]))
    """What a recorded name is now."""
    code: dict[str, Task[Any]] = field(default_factory=dict[str, Task[Any]])
    """By name: tasks with other code than ran last."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """By name: settings that hold throughout."""
    without: set[str] = field(default_factory=set[str])
    added: list[tuple[Task[Any], list[str]]] = field(default_factory=list[tuple[Task[Any], list[str]]])
    """Tasks that the chain did not have, each with the names of those behind it."""
    told: list[str] = field(default_factory=list[str])
    """In words."""

    def __bool__(self) -> bool:
        return bool(self.told)

    def leaves_out(self, name: str, position: int) -> bool:
        """Whether the task that had this name at a position is left out."""
        return self.renames.now(name, position) in self.without

    def code_of(self, name: str, position: int) -> Task[Any] | None:
        """The other code of the task that had this name at a position, under this name; None where it is as it was."""
        now = self.renames.now(name, position)
        task = self.code.get(now)
        return task if task is None or name == now else task.options(name=name)

    def modified(self, task: Task[Any], position: int) -> Task[Any]:
        """A task, as it was named at a position, with the settings of the rehearsal."""
        given = self.settings.get(self.renames.now(task.name, position))
        return with_settings(task, given) if given else task


class _Ran(NamedTuple):
    """A task of a chain that ran."""

    name: str
    position: int
    """One at which it had this name."""
    code: str


def _ran_between(store: StoreReader, first: int, last: int) -> set[_Ran]:
    """The tasks of all chains that ran between two positions."""
    entries = [entry for kind in ("start", "command") for entry in store.history_of(kind)]
    chain: dict[str, _Ran] = {}
    found: set[_Ran] = set()
    for _, position, details in sorted(entries, key=itemgetter(0)):
        if position >= last:
            break
        if position > first:
            found.update(chain.values())
        if "chain" in details:
            chain = {one["name"]: _Ran(one["name"], position, one["code"]) for one in details["chain"]}
        elif "to" in details:
            chain[details["task"]] = _Ran(details["task"], position, details["to"]["code"])
        elif details.get("asked") == "remove":
            chain.pop(details["task"], None)
    return found.union(chain.values())


def changes_of(
    app: App,
    store: StoreReader,
    settings: Mapping[str, Mapping[str, Any]],
    without: Sequence[str],
    first: int,
    last: int,
) -> Changes:
    """What an app's chain, some settings and tasks left out make of the chain that a store says ran last.

    What the app's file has otherwise than at the last start counts as a change: code, settings, tasks; but no code that
    ran all the time between the `first` position and the `last`.
    """
    found = Changes(store.renames())
    ran: dict[str, set[str]] = {}
    """By name, as tasks are called now: the codes that ran."""
    ran_as: dict[str, str] = {}
    for one in _ran_between(store, first, last):
        ran_as[one.name] = found.renames.now(one.name, one.position)
        ran.setdefault(ran_as[one.name], set()).add(one.code)
    running: list[Described] = store.meta("chain") or []
    before: list[Described] = store.meta("file") or running
    was = {one["name"]: one for one in before}
    names = [task.name for task in app.tasks]
    for at, task in enumerate(app.tasks):
        here = describe(task)
        old = was.get(task.name)
        if old is None:
            found.added.append((task, names[at + 1 :]))
            found.told.append(f"task {task.name} added")
            continue
        if ran.get(task.name) == {here["code"]}:
            old = {**old, "code": here["code"], "state": here["state"]}
        found.told += _task_changes(task.name, old, here)
        if here["code"] != old["code"]:
            found.code[task.name] = task
        elif not isinstance(task, FunctionTask):
            for name, value in here["settings"].items():
                if old["settings"].get(name) != value:
                    found.settings.setdefault(task.name, {})[name] = getattr(task, name)
    known = {*names, *(one["name"] for one in running)}
    there = {*known, *was}
    gone = [name for name in was if name not in names]

    def called(name: str) -> str:
        """What a task is called now; it may have been renamed."""
        return name if name in there else ran_as.get(name) or found.renames.since(name)

    for name in dict.fromkeys([*gone, *map(called, without)]):
        if name not in there and name not in ran:
            raise SettingsError(f"the chain has no task {name}; it has: {', '.join(sorted(known))}")
        found.without.add(name)
        found.told.append(f"without task {name}")
    asked: dict[str, dict[str, Any]] = {}
    for name, given in settings.items():
        asked.setdefault(called(name), {}).update(given)
    for name, given in asked.items():
        if name in found.without:
            raise SettingsError(f"task {name} is left out, and so has no settings: say one or the other")
        _set(found, app, running, name, given)
    return found


def _set(found: Changes, app: App, running: list[Described], name: str, given: Mapping[str, Any]) -> None:
    described = next((one for one in running if one["name"] == name), None)
    tasks = {task.name: task for task in app.tasks}
    if described is None and name not in tasks:
        have = ", ".join(dict.fromkeys([*tasks, *(one["name"] for one in running)]))
        raise SettingsError(f"the chain has no task {name}; it has: {have}")
    task = tasks.get(name)
    if task is None:
        assert described is not None
        task = task_for({**described, "stopped": True}, app, 0)
    before = (described or describe(task))["settings"]
    after = with_settings(task, given)  # raises for what does not fit
    for setting in given:
        was, now = before.get(setting), describe(after)["settings"][setting]
        # What was set last may not have held from the beginning on.
        found.told.append(
            f"{name}.{setting}: {now!r} throughout" if was == now else f"{name}.{setting}: {was!r} -> {now!r}"
        )
    if name in found.code:
        found.code[name] = with_settings(found.code[name], given)
    found.settings.setdefault(name, {}).update(given)
    found.added = [(with_settings(t, given) if t.name == name else t, behind) for t, behind in found.added]


class Rehearsed(Standing):
    """The chain as it would have been: as the log says it was, with the changes in it from `begin` on."""

    def __init__(self, app: App, base: Base, changes: Changes, first: int, sent_again: SentAgain) -> None:
        self._changes = changes
        self.begun = base.position == first
        self.left_out: list[str] = []
        """Recorded commands that mean nothing to the changed chain."""
        self.not_sent = 0
        """Dead letters that were sent again, and that this chain does not set aside."""
        self._sent_again = sent_again
        chain: list[Described] = [] if base.snapshot is None else base.snapshot.meta("chain") or []
        self._ran = [one["name"] for one in chain]
        """The tasks of the chain as it ran, in order."""
        super().__init__(app, base)
        if self.begun:
            self._add(base.position, base.now)
            self._look_into(base.position)

    def begin(self, position: int, now: float) -> None:
        """Change the chain here, as commands would."""
        self.begun = True
        self._ran = [link.name for link in self.links]
        for link in list(self.links):
            # The chain is the one of the record before this position: a start here, which may rename, comes behind it.
            task = self._standing_for(link.task, position - 1)
            if task is None:
                self._do(Change("remove", link.name), position, now)
            elif task is not link.task:
                self._do(Change("replace", link.name, task), position, now)
        self._add(position, now)
        self._look_into(position)

    def restarted(self, item: Restarted, now: float) -> None:
        super().restarted(item, now)
        self._ran = [one["name"] for one in item.chain]
        if self.begun:
            self._add(item.position, now)
            self._look_into(item.position)

    def commanded(self, item: Commanded, now: float) -> None:
        if not self.begun or item.details["asked"] == "reload":
            super().commanded(item, now)
            return
        name, kind = item.details["task"], item.details["asked"]
        came: Described | None = item.details.get("to")
        if kind == "remove" and name in self._ran:
            self._ran.remove(name)
        elif kind == "add":
            before: str | None = item.details.get("before")
            at = len(self._ran) if before is None or before not in self._ran else self._ran.index(before)
            self._ran.insert(at, name)
            if before is not None:
                there = {link.name for link in self.links}
                before = next((behind for behind in self._ran[at + 1 :] if behind in there), None)
                item = item._replace(details={**item.details, "before": before})
        has_other_code = self._changes.code_of(name, item.position) is not None
        if self._changes.leaves_out(name, item.position) or (came is not None and has_other_code):
            self.left_out.append(f"position {item.position}: {kind} {name}")
            return
        try:
            super().commanded(item, now)
        except (NotRepeated, ChangeRefused) as error:
            self.left_out.append(f"position {item.position}: {kind} {name} ({error})")
            return
        for at, link in enumerate(self.links):
            task = self._changes.modified(link.task, item.position)
            if task is not link.task and describe(task)["settings"] != describe(link.task)["settings"]:
                (twin,) = changed([link], {}, Change("set", link.name, task), item.position, now)
                twin.let_go(now)
                self.links[at] = twin
        self._look_into(item.position)

    def entry(self, retry: Retry) -> int | None:
        if self._sent_again.is_missing(retry.letter):
            self.not_sent += 1
            return None
        if retry.task not in self._ran or any(link.name == retry.task for link in self.links):
            return super().entry(retry)
        behind = self._ran[self._ran.index(retry.task) + 1 :]
        return next((at for at, link in enumerate(self.links) if link.name in behind), len(self.links))

    def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        self._sent_again.set_aside(letters)

    def _task(self, described: Described, position: int) -> Task[Any] | None:
        if not self.begun:
            return super()._task(described, position)
        name = described["name"]
        if self._changes.leaves_out(name, position):
            return None
        other = self._changes.code_of(name, position)
        if other is not None:
            return other
        task = super()._task(described, position)
        return None if task is None else self._changes.modified(task, position)

    def _standing_for(self, task: Task[Any], position: int) -> Task[Any] | None:
        if self._changes.leaves_out(task.name, position):
            return None
        return self._changes.code_of(task.name, position) or self._changes.modified(task, position)

    def _add(self, position: int, now: float) -> None:
        for task, behind in self._changes.added:
            names = [link.name for link in self.links]
            if task.name not in names:
                called = [self._changes.renames.now(name, position) for name in names]
                at = next((called.index(name) for name in behind if name in called), len(called))
                self.links.insert(at, self._came(task, position, now))

    def _do(self, change: Change, position: int, now: float) -> None:
        try:
            self.links = changed(self.links, self.put_aside, change, position, now)
            for link in self.links:
                link.let_go(now)
        except ChangeRefused as error:
            raise NotRepeated(f"the chain cannot be changed at position {position}: {error}") from error
