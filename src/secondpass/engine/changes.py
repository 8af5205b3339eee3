"""Commands to a running chain: made ready beside the stream, done between two events, in one commit.

    prepare     load, set up, try on the last events: beside the stream, in threads and processes of its own
    reclaim     delete what a longer time to live would bring back: a little between two epochs
    apply       at one position: the new chain, its state and the command's record, durable together

What cannot be done is refused, with the reason, and the chain runs on as it was.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

from secondpass.app import App, as_task
from secondpass.binding import look_into
from secondpass.change import Aside, Link, changed, index_of, outlived, times_to_live
from secondpass.description import code_of, describe, source_has_changed
from secondpass.engine.chain import Chain
from secondpass.engine.compare import codecs_of
from secondpass.engine.crew import Crew
from secondpass.engine.live import KINDS, task_of
from secondpass.engine.overlay import Delta
from secondpass.engine.placement import needs_workers, never_inline
from secondpass.engine.recipe import NotPortable, apps_at_rest
from secondpass.engine.reclaim import Reclaim
from secondpass.engine.stage import Stage
from secondpass.engine.trial import Trial
from secondpass.errors import ChangeRefused, SecondpassError, SetupFailed
from secondpass.loading import load_again
from secondpass.lookups import LookupSpec
from secondpass.record import NEW_TASK, Change, error_text
from secondpass.state import MISSING
from secondpass.step import CAUGHT, Step
from secondpass.store.database import NewChain, Store
from secondpass.store.reader import StoreReader, Unreadable
from secondpass.store.spool import PREPARATION_LIMIT_S, Command
from secondpass.task import Task, accepts, with_settings

TO_CHAIN = ("start", "stop", "set", "add", "remove", "replace", "drop-state")
"""The commands that change the chain."""
TRIAL_LIMIT_S = 60.0

CrewMaker = Callable[[App], Crew | None]


class Preparation:
    """One command on its way to its position; `ready` and `warm` tell when it can be done, or has been refused."""

    def __init__(
        self,
        command: Command,
        app: App,
        chain: Chain,
        store: Store,
        make_crew: CrewMaker,
        given: Any = None,
    ) -> None:
        self.command = command
        self.refusal: str | None = None
        self.change: Change | None = None
        self.step: Step | None = None
        self.crew: Crew | None = None
        self.app = app
        self.details: dict[str, Any] = {}
        self.left: Aside | None = None
        """What a task that comes in had put aside."""
        self._chain = chain
        self._store = store
        self._make_crew = make_crew
        self._given = given
        """A task object that came with a command from this process."""
        self._links = chain.links
        self._new_order: tuple[Task[Any], ...] = ()
        """The tasks as the workers of a new crew know them."""
        self._recent = {stage.name: list(stage.recent) for stage in chain.stages}
        self._not_set_up = {stage.name for stage in chain.stages if not stage.is_bound}
        self._began = time.monotonic()
        self._ready = threading.Event()
        self._ending = threading.Lock()
        if command.kind in NEW_TASK or (command.kind == "start" and command.task in self._not_set_up):
            threading.Thread(target=self._prepare, name=f"secondpass-{command.kind}", daemon=True).start()
        else:
            self._prepare()

    @property
    def ready(self) -> bool:
        if not self._ready.is_set() and self._late:
            self._end(self._too_late())
        return self._ready.is_set()

    @property
    def _late(self) -> bool:
        return time.monotonic() - self._began > PREPARATION_LIMIT_S

    @staticmethod
    def _too_late() -> str:
        return f"to load the code, set the task up and try it took longer than {PREPARATION_LIMIT_S:g} s"

    def warm(self) -> bool:
        """Whether its workers have started and set their tasks up, so that the stream need not wait for them.

        For the hub's thread, with which they end.
        """
        crew, running = self.crew, self._chain.crew
        if crew is None or running is None or self.refusal is not None:
            return True
        to = None if self.change is None else self.change.to
        if not running.started and (to is None or not never_inline(to)):
            return True
        try:
            if not crew.started:
                crew.warm_up(self._on_workers())
                self._began = time.monotonic()
            if crew.warm():
                return True
            if not self._late:
                return False
            self.refusal = self._too_late()
        except SetupFailed as error:
            self.refusal = str(error)
        return True

    def _on_workers(self) -> dict[int, Task[Any]]:
        """The tasks that are expected to run there, by the numbers that the new workers know them by."""
        there = {name for name, gauge in self._chain.placement.by_name().items() if gauge.on_workers}
        stopped = {link.name for link in self._links if link.stopped}
        return {
            i: task
            for i, task in enumerate(self._new_order)
            if task.name not in stopped
            and (task.name in there or task._options.place == "workers" or needs_workers(task) is not None)
        }

    def wait(self) -> None:
        """Wait until it is ready."""
        while not self.ready:
            self._ready.wait(1.0)

    def _prepare(self) -> None:
        refusal = None
        try:
            self.change = self._change()
            at = index_of(self._links, self.change)
            if self.change.kind == "add":
                self.left = _left_by(self.change, self._chain.put_aside, self._store)
                _bring_back(self.left, self.change.to, self._store)
            if self.change.to is not None:
                self._make_ready(self.change.to)
            elif self.change.kind == "start" and at is not None:
                self._set_up(self._links[at].task)
        except SecondpassError as error:
            refusal = str(error)
        except CAUGHT as error:  # the app's own code is loaded here
            refusal = error_text(error)
        self._end(refusal)

    def _end(self, refusal: str | None) -> None:
        """It is ready, or refused; what comes first counts, be it that it has taken too long."""
        with self._ending:
            if self._ready.is_set():
                self.give_up()
                return
            self.refusal = refusal
            self._ready.set()

    def _set_up(self, task: Task[Any]) -> None:
        """Bind a task that was stopped since the run began, where it runs in this process."""
        if task.name in self._not_set_up and (self._chain.crew is None or not never_inline(task)):
            self.step = Step(task, {}, {})

    def _change(self) -> Change:
        command = self.command
        task = self._new_task() if command.kind in NEW_TASK else None
        name = command.task if task is None else task.name
        kind: Any = KINDS.get(command.kind, command.kind)
        return Change(kind, name, task, command.before, command.fresh, command.state, command.stopped)

    def _new_task(self) -> Task[Any]:
        """The task that a command brings in, from wherever it says."""
        task, held = self._found_task(), self._chain.lookups
        for name, spec in type(task)._shape.lookups.items():
            if name not in held:
                raise ChangeRefused(
                    f"{task.name} looks into {name}, which the running app has not loaded; stop the app and run it again"
                )
            self._refuse_other_lookup(name, spec)
        return look_into(task, held)

    def _refuse_other_lookup(self, name: str, spec: LookupSpec) -> None:
        for link in self._links:
            known = type(link.task)._shape.lookups.get(name)
            if known is not None and known.describe() != spec.describe():
                raise ChangeRefused(
                    f"the lookup {name} is declared with other types in {link.name}; stop the app and run it again"
                )

    def _found_task(self) -> Task[Any]:
        command, given = self.command, self._given
        if command.kind == "set":
            old = self._old(command.task)
            return with_settings(old, command.settings)
        if given is not None:
            task = as_task(given)
        elif command.cls:
            task = task_of(command.cls, command.settings)
        else:
            with apps_at_rest():
                self.app = load_again(self.app)
            by_name = {task.name: task for task in self.app.tasks}
            if command.task not in by_name:
                raise ChangeRefused(
                    f"the app's file has no task {command.task}; it has: {', '.join(by_name) or 'none'}"
                )
            task = by_name[command.task]
            if command.kind == "replace":
                self._refuse_what_is_not_read_again(task, self._old(command.task))
        if command.kind == "replace":
            name = command.task or task.name
            old = self._old(name)
            self._refuse_other_events(task, old)
            if task.name != name:
                task = task.options(name=name)
        elif command.task and task.name != command.task:
            task = task.options(name=command.task)
        return task

    def _old(self, name: str) -> Task[Any]:
        index = index_of(self._links, Change("replace", name))
        assert index is not None
        return self._links[index].task

    @staticmethod
    def _refuse_what_is_not_read_again(task: Task[Any], old: Task[Any]) -> None:
        """The app's file is read again, and not what it imports: of that nothing new would come."""
        code = code_of(task)
        if code is code_of(old) and (describe(task) == describe(old) or source_has_changed(code)):
            raise ChangeRefused(
                f"{old.name} is defined in {code.__module__}, which the app's file imports: a running app reads its own file "
                f"again and not what that imports. Stop it and run it again, or move the task into the app's file"
            )

    @staticmethod
    def _refuse_other_events(task: Task[Any], old: Task[Any]) -> None:
        """The stream goes on with the event types that it has."""
        known = {tp.__qualname__: tp for tp in accepts(old)}
        for tp in accepts(task):
            if tp.__qualname__ in known and known[tp.__qualname__] is not tp:
                raise ChangeRefused(
                    f"the event type {tp.__qualname__} has changed in the file; a running app keeps its event types: stop "
                    f"it and run it again"
                )

    def _make_ready(self, task: Task[Any]) -> None:
        """Everything that takes time, so that the stream need not wait for it."""
        twin = copy.copy(self.app)
        twin.tasks = self._new_order = (*(x.task for x in self._links if x.name != task.name), task)
        try:
            self.crew = self._make_crew(twin)
        except NotPortable as error:
            raise ChangeRefused(f"{error}") from error
        if self.command.kind == "replace" and self.command.trial != 0:
            recent = self._recent.get(task.name, [])
            count = len(recent) if self.command.trial is None else self.command.trial
            trial = Trial(self.app, self._old(task.name), task, self._store.directory)
            self.details["tried"] = trial.run(recent[len(recent) - min(count, len(recent)) :], TRIAL_LIMIT_S)
        if self.crew is None or not never_inline(task):
            self.step = Step(task, {}, {})

    def reclaim(self) -> Reclaim:
        """What has to be deleted before its position: cells that a longer time to live would bring back."""
        change, found = self.change, dict[Any, tuple[dict[Any, Any], float]]()
        assert change is not None
        if change.kind in ("set", "replace"):
            old = next(link for link in self._links if link.name == change.task)
            ttl_s = outlived(type(old.task)._shape.state(), times_to_live(old.task), change.to)
            found = {(old.name, name): (old.cells[name], before_s) for name, before_s in ttl_s.items()}
        elif self.left is not None:
            ttl_s, cells = outlived(self.left.declared, self.left.ttl_s, change.to), self.left.cells
            found = {
                (change.task, name): (cells[name], before_s)
                for name, before_s in ttl_s.items()
                if name in cells
            }
        return Reclaim(found)

    def give_up(self) -> None:
        """It is refused at the last moment: what was made ready goes."""
        if self.crew is not None:
            self.crew.close()


class Applied:
    """A change at its position: what to commit, and the chain that runs once it is committed."""

    def __init__(self, found: Preparation, chain: Chain, store: Store) -> None:
        change = found.change
        assert change is not None
        self.change = change
        self._preparation = found
        self._chain = chain
        before, position, now = chain.links, store.progress.position, store.progress.now
        self.put_aside = dict(chain.put_aside)
        known = _left_by(change, chain.put_aside, store) if change.kind in ("remove", "drop") else found.left
        if known is not None and known.declared:
            self.put_aside[change.task] = known
        left = self.put_aside.get(change.task)
        self._left = (
            Aside({}, {}, {}, {})
            if left is None
            else Aside(dict(left.declared), left.ttl_s, dict(left.cells), dict(left.values))
        )
        self.links = changed(before, self.put_aside, change, position, now)
        self.deltas: dict[Any, Any] = {}
        self._given_up: list[Any] = []
        self._new: dict[Any, dict[Any, Any]] = {}
        old = {link.name: link for link in before}
        self._old = old.get(change.task)
        for link in self.links:
            if link is not old.get(link.name):
                self._compare_tables(link, old.get(link.name))
                self._compare_values(link, old.get(link.name))
        if change.kind == "drop" and change.task not in old:
            still = self.put_aside.get(change.task)
            kept = {} if still is None else still.declared
            self._given_up += [(change.task, name) for name in self._left.declared if name not in kept]
        self.new = NewChain(
            [_described(link) for link in self.links], self._aside(store), self._given_up, self._new
        )

    def _compare_tables(self, link: Link, old: Link | None) -> None:
        """What the store has to do for a task's tables; afterwards the link holds the dicts that the store keeps."""
        declared, was = _declared(link), _declared(old)
        for name in type(link.task)._shape.tables:
            cells, full = link.cells[name], (link.name, name)
            same = was.get(name) == declared[name]
            base = (
                old.cells[name] if old is not None and same else None if old else self._left.cells.get(name)
            )
            if base is None or (cells is not base and not cells):
                if name in was:
                    self._given_up.append(full)
                base = self._new[full] = {}
            elif old is None:
                self._new[full] = base
            if cells is not base:
                self.deltas[full] = _difference(base, cells)
                link.cells[name] = base
        self._given_up += [(link.name, name) for name in was if name not in declared]

    def _compare_values(self, link: Link, old: Link | None) -> None:
        declared, was = _declared(link), _declared(old)
        for name in type(link.task)._shape.values:
            rest, full = link.values.get(name), (link.name, name)
            if old is not None and was.get(name) == declared[name]:
                if rest != old.values.get(name):
                    self.deltas[full] = Delta(
                        {} if rest is None else {None: rest}, {None} if rest is None else set()
                    )
                continue
            if name in was:
                self._given_up.append(full)
            self._new[full] = {} if rest is None else {None: rest}
            if old is not None or name not in self._left.values:
                self.deltas[full] = Delta({} if rest is None else {None: rest}, set())

    def _aside(self, store: Store) -> dict[str, Any]:
        """What tasks that left have put aside, as the store keeps it."""
        found: dict[str, Any] = dict(store.meta("aside") or {})
        left = self.put_aside.get(self.change.task)
        if left is not None and left.declared:
            found[self.change.task] = {"state": left.declared, "ttl_s": left.ttl_s}
        elif self.change.kind in ("add", "drop"):
            found.pop(self.change.task, None)
        return found

    def told(self) -> dict[str, Any]:
        """What the record holds beside who gave the command, when and why: enough to do the same again."""
        change = self.change
        found: dict[str, Any] = {"task": change.task}
        if change.to is not None:
            described = describe(change.to)
            found["to"] = {
                name: described[name] for name in ("class", "module", "code", "settings", "options")
            }
        if change.kind == "set" and self._old is not None:
            before, after = describe(self._old.task)["settings"], found["to"]["settings"]
            found["was"] = {name: value for name, value in before.items() if value != after[name]}
        for name in ("before", "fresh", "state", "stopped"):
            if value := getattr(change, name):
                found[name] = value
        return found

    def take_effect(self) -> None:
        """It is committed: from the next event on the chain is this one."""
        chain, old = self._chain, self._chain.crew
        stages = self._stages()
        chain.crew = self._crew
        if old is not None and old is not chain.crew:
            threading.Thread(target=old.close, name="secondpass-crew", daemon=True).start()
        chain.put_aside = self.put_aside
        chain.set_stages(stages)

    @property
    def _crew(self) -> Crew | None:
        """The workers from here on: those there were do not know a task that comes in, whether there are new ones or none."""
        return self._chain.crew if self.change.to is None else self._preparation.crew

    def _step_of(self, link: Link) -> Step | None:
        """The task as it was made ready for this change."""
        meant = self.change.to if self.change.to is not None else self._old and self._old.task
        return self._preparation.step if link.task is meant else None

    def _stages(self) -> list[Stage]:
        """The chain that runs from here on."""
        found, before = self._preparation, {s.name: s for s in self._chain.stages}
        stages: list[Stage] = []
        for link in self.links:
            old = before.get(link.name)
            same = old is not None and old.given is link.task
            step = self._step_of(link)
            if (
                old is not None
                and same
                and all(link.cells[n] is old.tables[n] for n in old.tables)
                and link.values is old.values
            ):
                old.stopped = link.stopped
                if step is not None and not old.is_bound:
                    old.bind(step)
                stages.append(old)
                continue
            elsewhere = step is None and (
                link.stopped or (self._crew is not None and never_inline(link.task))
            )
            stage = Stage(
                link.task,
                link.cells,
                link.values,
                elsewhere=elsewhere,
                stopped=link.stopped,
                step=step or (old._step if same and old is not None else None),
            )
            if old is not None:
                stage.busy_s, stage.number = old.busy_s, old.number
                stage.verdicts = old.verdicts
                stage.recent = old.recent
            stages.append(stage)
        if found.crew is not None:
            # The workers of the new crew know the tasks in this order.
            others = [s for s in stages if found.change is not None and s.given is not found.change.to]
            for number, stage in enumerate([*others, *(s for s in stages if s not in others)]):
                stage.number, stage.home = number, None
        return stages


def _difference(before: dict[Any, Any], after: dict[Any, Any]) -> Delta:
    changed_ = {k: entry for k, entry in after.items() if before.get(k, MISSING) != entry}
    return Delta(changed_, {k for k in before if k not in after})


def _declared(link: Link | None) -> dict[str, Any]:
    return {} if link is None else type(link.task)._shape.state()


def _described(link: Link) -> dict[str, Any]:
    found = describe(link.task)
    return {**found, "stopped": True} if link.stopped else found


def _left_by(change: Change, put_aside: dict[str, Aside], store: Store) -> Aside:
    """What a task has put aside, also in an earlier run: its declarations, and its state as far as it is in memory."""
    here = put_aside.get(change.task, Aside({}, {}, {}, {}))
    asides: dict[str, dict[str, Any]] = store.meta("aside") or {}
    known = asides.get(change.task, {"state": {}, "ttl_s": {}})
    return Aside(
        {**known["state"], **here.declared},
        {**known["ttl_s"], **here.ttl_s},
        dict(here.cells),
        dict(here.values),
    )


def _bring_back(left: Aside, task: Task[Any], store: Store) -> None:
    """Read what a task that comes back had put aside in an earlier run; the store may be written meanwhile."""
    shape = type(task)._shape
    declared = shape.state()
    missing = [
        n
        for n in left.declared
        if n not in left.cells and n not in left.values and declared.get(n) == left.declared[n]
    ]
    if not missing or store.directory is None:
        return
    codecs = {n: codec for n, codec in codecs_of((task,)).items() if n[1] in missing}
    reader = StoreReader.open_to_read(store.directory)
    try:
        loaded = reader.load(codecs)
    except Unreadable as error:
        raise ChangeRefused(
            f"what {task.name} put aside cannot be read: {error.why}; drop it first"
        ) from error
    finally:
        reader.close()
    for (_, name), cells in loaded.items():
        if name not in shape.values:
            left.cells[name] = cells
        elif None in cells:
            left.values[name] = cells[None]


__all__ = ["TO_CHAIN", "Applied", "Preparation"]
