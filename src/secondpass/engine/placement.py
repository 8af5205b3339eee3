"""Where each task runs: in the hub, or on workers. The answer never depends on it, so measured cost decides.

    inline          one event costs the task's own time
    on workers      the same and the way there and back, on as many cores as there are, or as its keys allow

A task moves when it would gain a sixth, and back when it gains less than a twentieth; in between it stays where
it is. A task that may touch all its state at every event gains nothing by moving; it goes to a worker only when a
single event keeps the hub so long that the other tasks' workers would wait.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from secondpass.task import Task

HUB_S, WORKER_S = 12e-6, 15e-6
"""What an event on its way costs the hub and a worker (`benchmarks/shipping.py` measures both)."""
BYTE_S = 0.5e-9
"""What each byte of it costs either (`benchmarks/every_core.py`, arrays of 10 MB)."""
MOVE, STAY = 1 / 1.2, 1 / 1.05
DEAR_S = 2e-3
"""An event that keeps the hub longer than this lets workers wait."""
CAREFUL_S = 200e-6
"""Beside an event that takes longer, it hardly counts that each of its calls is checked."""
FORGET_AFTER = 64
"""After so many epochs inline, what was known of a task's keys is looked at anew."""
_WEIGHT, _EVENTS = 0.3, 200


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Gauge:
    """What is known of one task's cost, and where it runs."""

    on_workers: bool = False
    cost_s: float | None = None
    """Seconds of one event, in the task itself."""
    width: float | None = None
    """How many events could run at once, as far as their keys let them; None when nobody has looked."""
    inline_epochs: int = 0
    inline: bool = False
    """Whether it ran inline at all."""
    # In this run, on workers:
    shipped: int = 0
    """Events."""
    bytes: int = 0
    waited: int = 0
    """Events that had to wait for an earlier one."""
    busy_s: float = 0.0

    def measured(self, events: int, seconds: float, *, careful: bool = False) -> None:
        """So many events took so long; of what was run carefully, only what is dear anyway tells something."""
        if events:
            cost = seconds / events
            if careful and cost < CAREFUL_S:
                return
            # Many events tell more than one.
            weight = 1.0 if self.cost_s is None else max(0.02, min(_WEIGHT, events / _EVENTS))
            self.cost_s = cost if self.cost_s is None else self.cost_s + weight * (cost - self.cost_s)

    def looked(self, width: float) -> None:
        """An epoch's dependency order was so wide."""
        self.width = width if self.width is None else self.width + _WEIGHT * (width - self.width)


def serial(task: Task[Any]) -> bool:
    """Whether each event may touch all of a task's state, so that its events run one after the other."""
    return type(task)._shape.stateful and not hasattr(type(task), "keys")


def never_inline(task: Task[Any]) -> bool:
    """Whether a task that can go to workers needs nothing of it in the hub: neither `handle` nor `keys`."""
    options = task._options
    if options.copies is not None:
        return True
    return (options.place == "workers" or options.limit_s is not None) and not hasattr(type(task), "keys")


def needs_workers(task: Task[Any]) -> str | None:
    """The option of a task that only a worker can fulfil; None if it has none."""
    options = task._options
    if options.limit_s is not None:
        return "limit_s"
    return "copies" if options.copies is not None else None


class Placed(msgspec.Struct):
    """Where a task ran and what that cost, for people and programs; also kept in the store."""

    where: Literal["inline", "workers", "both"]
    """In this run; `both` where it moved."""
    now: Literal["inline", "workers"]
    cost_s: float | None
    """Of one event, as measured last."""
    busy_s: float
    """On workers."""
    shipped: int
    """Events that went to workers."""
    bytes: int
    """That went to workers and back."""
    waited: int
    """Of the events that went to workers: those that had to wait for an earlier one with a key of theirs."""
    width: float | None
    """How many events could run at once, as far as their keys let them."""
    why: str = ""
    """Why it cannot run elsewhere."""


class Placement:
    """Decides before each epoch where the tasks run."""

    def __init__(
        self, tasks: tuple[Task[Any], ...], workers: int, known: Mapping[str, Gauge] | None = None
    ) -> None:
        self._tasks = tasks
        self._workers = workers
        self._cores = min(cores(), workers + 1)
        self.gauges = [(known or {}).get(task.name) or Gauge() for task in tasks]
        self.isolated = False
        """Whether every task runs on workers, because one of them may end its process."""
        self.why = ""
        """Why no task runs on workers."""

    def by_name(self) -> dict[str, Gauge]:
        """What is known of each task."""
        return {task.name: gauge for task, gauge in zip(self._tasks, self.gauges, strict=True)}

    def keep_inline(self, why: str) -> None:
        """All tasks run in the hub in the next epoch."""
        self.why = why
        for gauge in self.gauges:
            gauge.on_workers, gauge.inline = False, True

    def wanted(self, started: Collection[int]) -> list[bool]:
        """For each task: whether it should run on workers in the next epoch; `started` are those that run."""
        if not self._workers:
            return [False] * len(self._tasks)
        places = [
            i in started and self._moves(t, g)
            for i, (t, g) in enumerate(zip(self._tasks, self.gauges, strict=True))
        ]
        for i, (task, gauge) in enumerate(zip(self._tasks, self.gauges, strict=True)):
            dear = (
                i in started
                and (gauge.cost_s or 0.0) > DEAR_S
                and task._options.place == "auto"
                and serial(task)
            )
            if dear and any(places[:i] + places[i + 1 :]):
                places[i] = True
        return places

    def choose(self, started: Collection[int]) -> list[bool]:
        """For each task: whether it does run there."""
        self.why = ""
        places = self.wanted(started)
        for gauge, place in zip(self.gauges, places, strict=True):
            gauge.on_workers = place
            gauge.inline |= not place
            gauge.inline_epochs = 0 if place else gauge.inline_epochs + 1
            if gauge.inline_epochs > FORGET_AFTER:
                gauge.width, gauge.inline_epochs = None, 0
        return places

    def may_run_here(self, places: list[bool]) -> bool:
        """Whether tasks that should run on workers may run in the hub as well."""
        return not self.isolated and all(
            task._options.place == "auto" and needs_workers(task) is None
            for task, place in zip(self._tasks, places, strict=True)
            if place
        )

    def cost_s(self) -> float:
        """Seconds of one event in all tasks, as far as it is known."""
        return sum(gauge.cost_s or 0.0 for gauge in self.gauges)

    @property
    def heavy(self) -> bool:
        """Whether a task runs on workers."""
        return any(gauge.on_workers for gauge in self.gauges)

    def placed(self) -> dict[str, Placed]:
        """Where each task runs, by name."""
        found: dict[str, Placed] = {}
        for task, gauge in zip(self._tasks, self.gauges, strict=True):
            now = "workers" if gauge.on_workers else "inline"
            where = "inline" if not gauge.shipped else "both" if gauge.inline else "workers"
            found[task.name] = Placed(
                where,
                now,
                gauge.cost_s,
                gauge.busy_s,
                gauge.shipped,
                gauge.bytes,
                gauge.waited,
                gauge.width,
                self.why,
            )
        return found

    def _moves(self, task: Task[Any], gauge: Gauge) -> bool:
        options = task._options
        if self.isolated or options.place == "workers" or options.limit_s or options.copies:
            return True
        if options.place == "inline" or gauge.cost_s is None or serial(task):
            return False
        there = self._cost_on_workers(gauge.cost_s, gauge)
        return there < gauge.cost_s * (STAY if gauge.on_workers else MOVE)

    def _cost_on_workers(self, cost_s: float, gauge: Gauge) -> float:
        """Seconds of one event on workers: the slowest of the hub, the workers and the cores."""
        lanes = min(self._workers, gauge.width or self._workers)
        way_s = BYTE_S * gauge.bytes / gauge.shipped if gauge.shipped else 0.0
        hub_s, worker_s = HUB_S + way_s, WORKER_S + way_s
        return max(hub_s, (cost_s + worker_s) / lanes, (hub_s + cost_s + worker_s) / self._cores)
