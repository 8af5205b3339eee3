"""What a run did, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgspec

from secondpass.engine.placement import Placed
from secondpass.reference import Tally


@dataclass
class Deaths:
    """What became of the events at which workers died."""

    convicted: int = 0
    acquitted: int = 0
    """They ran well when they ran alone."""
    seconds: float = 0.0
    """From each suspicion to its end, added up."""


@dataclass
class SourceState:
    """What became of a function that is a source."""

    name: str
    state: Literal["running", "waiting", "ended", "stopped"] = "running"
    """`waiting`: it has raised, and is started again at `again_at`."""
    events: int = 0
    """Appended by it in this run."""
    restarts: int = 0
    error: str | None = None
    """What it raised last."""
    again_at: float | None = None
    pid: int | None = None
    """Its process, if it has its own."""


@dataclass
class Summary:
    """What one run of an app did; `App.run` returns it.

    Counts are of this run; `position`, `tasks_total` and `outputs_total` of the store's whole life. Seconds are wall time.
    """

    app: str
    store: str | None
    ended: Literal["end of input", "stopped", "limit"] = "end of input"
    events_in: int = 0
    position: int = 0
    ticks: int = 0
    """Records of time that passed without an event."""
    epochs: int = 0
    seconds: float = 0.0
    outputs: dict[str, int] = field(default_factory=dict[str, int])
    outputs_total: dict[str, int] = field(default_factory=dict[str, int])
    dead_letters: int = 0
    tasks: dict[str, Tally] = field(default_factory=dict[str, Tally])
    tasks_total: dict[str, Tally] = field(default_factory=dict[str, Tally])
    busy_s: dict[str, float] = field(default_factory=dict[str, float])
    workers: int = 0
    """Processes that ran tasks beside this one; 0 where none was started."""
    placed: dict[str, Placed] = field(default_factory=dict[str, Placed])
    """Where each task ran."""
    deaths: Deaths = field(default_factory=Deaths)
    sources: list[SourceState] = field(default_factory=list[SourceState])
    """The functions that are sources."""
    signal: int | None = None
    """The signal that asked to stop, if one did."""
    commands: int = 0
    """So many commands to the chain or the app were done."""
    changes: list[str] = field(default_factory=list[str])

    @property
    def nothing_new(self) -> bool:
        """Whether the input held nothing beyond what earlier runs had done."""
        return self.events_in == 0 and self.position > 0

    @property
    def events_per_second(self) -> float:
        return self.events_in / self.seconds if self.seconds > 0 else 0.0

    @property
    def silent_tasks(self) -> list[str]:
        """Tasks that never passed anything in the store's life: perhaps their handle forgets to return the event."""
        totals = self.tasks_total
        return [n for n, t in totals.items() if n in self.tasks and t.dropped > 1 and t.passed == 0]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        found = asdict(self)
        found["placed"] = {name: msgspec.to_builtins(placed) for name, placed in self.placed.items()}
        found["events_per_second"] = round(self.events_per_second, 1)
        found["nothing_new"] = self.nothing_new
        return found


def merge_tally(total: Tally, part: Tally) -> None:
    """Add one epoch's tally to a longer one; a streak goes on only through epochs of nothing but errors."""
    calls = part.events + part.fired
    if calls:
        all_failed = part.errors == calls
        total.error_streak = total.error_streak + part.errors if all_failed else part.error_streak
    total.events += part.events
    total.fired += part.fired
    total.passed += part.passed
    total.dropped += part.dropped
    total.errors += part.errors
    total.add(part.counts)
