"""What a command makes of a chain: its tasks, which of them are stopped, and the state that each goes on with.

State is never lost by a guess. A task that is stopped or leaves keeps it for its return. One that stands in for
another takes over every table and value of the same declaration; where it does not have one of them any more, it
says in `upgrade(old)` what becomes of it, or the command is refused. Code that comes with the `upgrade` of the code
before it has been through it: it is called where the state is declared in another way, or `upgrade` is another. Cells that have expired are gone before a
longer time to live could bring them back.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from secondpass.description import what_it_does
from secondpass.errors import ChangeRefused
from secondpass.record import Change, error_text
from secondpass.state import live_cells
from secondpass.step import CAUGHT, Step
from secondpass.task import Task

Cells = dict[str, dict[Any, Any]]
"""By table: resting cells."""


class Link:
    """A task in a chain, with its resting state."""

    def __init__(
        self,
        task: Task[Any],
        cells: Cells | None = None,
        values: dict[str, bytes] | None = None,
        *,
        stopped: bool = False,
    ) -> None:
        shape = type(task)._shape
        self.task = task
        self.cells: Cells = {} if cells is None else cells
        for name in shape.tables:
            self.cells.setdefault(name, {})
        self.values: dict[str, bytes] = {} if values is None else values
        self.stopped = stopped
        self.outlived: dict[str, float] = {}
        """By table whose cells have a longer time to live from here on: the one that they had."""

    @property
    def name(self) -> str:
        return self.task.name

    def let_go(self, now: float) -> None:
        """Delete the cells that have expired, and that a longer time to live would bring back."""
        for name, ttl_s in self.outlived.items():
            cells = self.cells[name]
            for key in [key for key, entry in cells.items() if now - entry[1] >= ttl_s]:
                del cells[key]
        self.outlived = {}

    def __repr__(self) -> str:
        return f"Link({self.task!r}{', stopped' if self.stopped else ''})"


class Aside:
    """The state of a task that has left, for its return: as it was declared, with its times to live."""

    def __init__(
        self, declared: dict[str, Any], ttl_s: dict[str, float], cells: Cells, values: dict[str, bytes]
    ) -> None:
        self.declared = declared
        self.ttl_s = ttl_s
        self.cells = cells
        self.values = values

    @classmethod
    def of(cls, link: Link) -> Aside:
        shape = type(link.task)._shape
        return cls(shape.state(), times_to_live(link.task), link.cells, link.values)


def times_to_live(task: Task[Any]) -> dict[str, float]:
    """By table: after how many seconds its cells are gone, where they are."""
    found = {name: spec.ttl_of(task) for name, spec in type(task)._shape.tables.items()}
    return {name: ttl_s for name, ttl_s in found.items() if ttl_s is not None}


def outlived(declared: dict[str, Any], ttl_s: dict[str, float], task: Task[Any]) -> dict[str, float]:
    """By table of this state that a task takes over with a longer time to live: the one that its cells had."""
    is_now, longer_s = type(task)._shape.state(), times_to_live(task)
    return {
        name: ttl_s[name]
        for name, state in declared.items()
        if name in ttl_s and state == is_now.get(name) and longer_s[name] > ttl_s[name]
    }


def changed(
    chain: Sequence[Link], put_aside: dict[str, Aside], change: Change, position: int, now: float
) -> list[Link]:
    """The chain from this position on; raises `ChangeRefused`, with nothing changed, where it cannot be.

    `put_aside` holds the state of tasks that left, for their return. Links that change are new ones; tables that
    do not change are the same dicts, also where cells in them have to go (`Link.let_go`).
    """
    links = list(chain)
    if change.kind in ("pause", "resume", "end", "reload"):
        return links
    at = index_of(chain, change)
    link = links[at] if at is not None else None
    if change.kind == "add":
        task = change.to
        came = _returned(put_aside, task)
        came.stopped = change.stopped
        links.insert(len(links) if change.before is None else _named(chain, change.before), came)
        return links
    if link is None:  # dropped: the state of a task that has left
        left = put_aside.get(change.task)
        if left is None:
            raise ChangeRefused(f"there is no state of {change.task}, in the chain or put aside")
        if change.state is not None and change.state not in left.declared:
            raise _no_such_state(change, left.declared)
        for name in list(left.declared):
            if change.state in (None, name):
                _take_out(left, name)
        if not left.declared:
            del put_aside[change.task]
        return links
    assert at is not None
    if change.kind == "remove":
        links.pop(at)
        put_aside[link.name] = _with_earlier(put_aside.get(link.name), Aside.of(link))
    elif change.kind in ("set", "replace"):
        links[at] = _taken_over(link, change.to, position, now)
    elif change.kind == "drop":
        links[at] = _without(link, change)
    else:
        links[at] = twin = _without(link, change) if change.fresh else copy.copy(link)
        twin.stopped = change.kind == "stop"
    return links


def index_of(chain: Sequence[Link], change: Change) -> int | None:
    """Where the task of a change stands; raises `ChangeRefused` where it may not, or does not, stand there."""
    names = [link.name for link in chain]
    have = ", ".join(names) or "none"
    if change.kind == "add":
        if change.to.name in names:
            raise ChangeRefused(
                f"the chain has a task {change.to.name} already; replace it, or name one of them"
            )
        if change.before is not None and change.before not in names:
            raise ChangeRefused(f"there is no task {change.before} to come before; the chain has: {have}")
        return None
    if change.task not in names:
        if change.kind == "drop":
            return None
        raise ChangeRefused(f"the chain has no task {change.task}; it has: {have}")
    at = names.index(change.task)
    link = chain[at]
    if change.kind == "start" and not link.stopped and not change.fresh:
        raise ChangeRefused(f"{change.task} runs already")
    if change.kind == "stop" and link.stopped:
        raise ChangeRefused(f"{change.task} is stopped already")
    return at


def _named(chain: Sequence[Link], name: str) -> int:
    return [link.name for link in chain].index(name)


def _without(link: Link, change: Change) -> Link:
    """The task without its state, or without the part of it that is dropped."""
    dropped, declared = change.state, type(link.task)._shape.state()
    if dropped is not None and dropped not in declared:
        raise _no_such_state(change, declared)
    cells = {name: {} if dropped in (None, name) else found for name, found in link.cells.items()}
    values = {name: rest for name, rest in link.values.items() if dropped not in (None, name)}
    return Link(link.task, cells, values, stopped=link.stopped)


def _no_such_state(change: Change, declared: dict[str, Any]) -> ChangeRefused:
    return ChangeRefused(
        f"{change.task} has no state {change.state}; it has: {', '.join(declared) or 'none'}"
    )


def _returned(put_aside: dict[str, Aside], task: Task[Any]) -> Link:
    """A task that comes into the chain, with what it left behind when it was there before."""
    left, link = put_aside.get(task.name), Link(task)
    if left is None:
        return link
    declared = type(task)._shape.state()
    back = [name for name in left.declared if name in declared]
    for name in back:
        if declared[name] != left.declared[name]:
            raise ChangeRefused(
                f"{task.name} left the chain with another {name}; drop that first, or give the new one another name"
            )
    link.outlived = outlived(left.declared, left.ttl_s, task)
    for name in back:
        if name in left.cells:
            link.cells[name] = left.cells[name]
        elif name in left.values:
            link.values[name] = left.values[name]
        _take_out(left, name)
    if not left.declared:
        del put_aside[task.name]
    return link


def _take_out(left: Aside, name: str) -> None:
    del left.declared[name]
    left.cells.pop(name, None)
    left.values.pop(name, None)


def _with_earlier(earlier: Aside | None, left: Aside) -> Aside:
    """What a task leaves behind, beside what it had left behind before and never took up again."""
    if earlier is None:
        return left
    return Aside(
        {**earlier.declared, **left.declared},
        {**earlier.ttl_s, **left.ttl_s},
        {**earlier.cells, **left.cells},
        {**earlier.values, **left.values},
    )


def _taken_over(old: Link, task: Task[Any], position: int, now: float) -> Link:
    """A task with the state of the one that it stands in for."""
    before, after = type(old.task)._shape, type(task)._shape
    was, is_now = before.state(), after.state()
    kept = [name for name in is_now if was.get(name) == is_now[name]]
    lost = [name for name in was if name not in kept]
    upgrade = getattr(type(task), "upgrade", None)
    if lost and upgrade is None:
        raise ChangeRefused(
            f"{task.name} no longer has {_listing(lost)} as it was declared; say in `def upgrade(self, old)` what "
            f"becomes of it, or drop it first"
        )
    cells = {name: old.cells[name] if name in kept else {} for name in after.tables}
    values = {name: rest for name, rest in old.values.items() if name in kept and name in after.values}
    link = Link(task, cells, values, stopped=old.stopped)
    link.outlived = outlived(was, times_to_live(old.task), task)
    if upgrade is not None and (
        was != is_now or not _same_function(upgrade, getattr(type(old.task), "upgrade", None))
    ):
        _upgrade(link, plain_state(old.task, old.cells, old.values, now), position, now)
    return link


def _same_function(one: Any, other: Any) -> bool:
    """Whether the code that runs has this very `upgrade` already: it would bring the same state over twice."""
    first, second = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if first is None or second is None:
        return one is other
    return what_it_does(first) == what_it_does(second)


def _upgrade(link: Link, old: dict[str, Any], position: int, now: float) -> None:
    """Let a task that stands in for another bring the state over."""
    link.cells = {name: dict(cells) for name, cells in link.cells.items()}
    link.values = dict(link.values)
    link.let_go(now)
    step = Step(link.task, link.cells, link.values)
    try:
        step.upgrade(old, position, now)
    except KeyboardInterrupt:
        raise
    except CAUGHT as error:
        raise ChangeRefused(f"{link.name}.upgrade raised {error_text(error)}") from error


def plain_state(task: Task[Any], cells: Cells, values: dict[str, bytes], now: float) -> dict[str, Any]:
    """A task's state as plain values: `{table: {key: value}, value name: value}`."""
    shape = type(task)._shape
    found: dict[str, Any] = {}
    for name, spec in shape.tables.items():
        found[name] = live_cells(spec, cells.get(name, {}), spec.ttl_of(task), now)
    for name, value_spec in shape.values.items():
        found[name] = value_spec.codec.decode(values.get(name, value_spec.initial))
    return found


def _listing(names: Sequence[str]) -> str:
    return " and ".join(names)
