"""The tasks of `commands.py`, in a module that worker processes import."""

from __future__ import annotations

from heavy_tasks import burn

from secondpass import Event, Task, table


class Seen(Event):
    n: int
    time: float


class Known(Task[Seen]):
    """One cell for every number."""

    window_s: float = 1e9
    last = table(int, float, ttl_s="window_s")

    def keys(self, event: Seen) -> tuple[int]:
        return (event.n,)

    def handle(self, event: Seen) -> Seen | None:
        first = event.n not in self.last
        self.last[event.n] = event.time
        return None if first else event


class Busy(Task[Seen]):
    """Work without state."""

    spins: int

    def handle(self, event: Seen) -> Seen:
        burn(self.spins)
        return event


class Mark(Task[Seen]):
    """Next to nothing."""

    mark: str = "m"

    def handle(self, event: Seen) -> Seen:
        return event


class Other(Known):
    """The same state, other code."""

    def handle(self, event: Seen) -> Seen | None:
        self.last[event.n] = event.time
        return event
