"""What of a task's timers is due, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from secondpass.timers import TimerSpec


class Pending(NamedTuple):
    """A timer that waits: they are ordered by time, the task's place in the chain, name and key."""

    time: float
    depth: int
    name: str
    order: Any
    """Stands for the key where keys do not compare."""
    key: Any


def begin_schedules(timers: Mapping[str, TimerSpec], tables: Mapping[str, Any], now: float) -> None:
    """Let the schedules that have no next moment yet count from now."""
    for name, spec in timers.items():
        if spec.repeats and tables[name].get(None) is None:
            tables[name][None] = spec.after(now)


def first_due(
    timers: Mapping[str, TimerSpec], tables: Mapping[str, Any], depth: int, until: float
) -> Pending | None:
    """The first of a task's timers that are due at a time; None where none is."""
    due = [
        Pending(time, depth, name, spec.order(key), key)
        for name, spec in timers.items()
        for key in tables[name]
        if (time := tables[name].get(key)) <= until
    ]
    return min(due, key=_before_key, default=None)


def _before_key(due: Pending) -> tuple[Any, ...]:
    return due[:4]


def take_due(spec: TimerSpec, table: Any, due: Pending) -> None:
    """A timer is about to fire: it is gone, or, of a schedule, set for its next moment."""
    if spec.repeats:
        table[due.key] = spec.after(due.time)
    else:
        del table[due.key]
