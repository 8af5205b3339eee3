"""Events that kill their workers: suspected by the marker, tried alone, convicted by three deaths.

A worker marks the event that it is about to run. When it dies, that event is suspect: it runs again, alone, in a
new process. If it survives there, it was innocent. If three processes die of it, the verdict is recorded, for good:
the task is not called for that event, by this run or any replay. Deaths by signals from outside tell nothing about
an event and do not count, but an event that is never left alone to finish stops the app in the end.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from secondpass.engine.bundle import OUT_OF_MEMORY
from secondpass.engine.executor import Death
from secondpass.errors import WorkerLost
from secondpass.record import Verdict

KILLED = "killed its worker"
"""How the error of a convicted event begins."""
CONVICTED = 3
"""So many deaths alone, by its own doing, convict an event."""
OUTSIDE_MAX = 10
"""So often in a row an event may be killed from outside while it runs alone."""
OUTSIDE_SUSPECT = 3
"""So often an event may be the one at which a worker was killed from outside, until it has to run alone."""

Place = tuple[int, str, tuple[int, ...]]
"""Position, task and path: what a verdict is about."""


@dataclass
class _Trial:
    deaths: list[Death] = field(default_factory=list[Death])
    outside: int = 0
    began: float = field(default_factory=time.monotonic)


class Quarantine:
    """The suspects of a run, and what became of them."""

    def __init__(self) -> None:
        self._trials: dict[Place, _Trial] = {}
        self._outside: dict[Place, int] = {}
        self.convicted = 0
        self.acquitted = 0
        self.seconds = 0.0
        """What deaths have cost: from each suspicion to its end."""

    def suspect(self, place: Place) -> None:
        """A worker died at this event, among others."""
        self._trials.setdefault(place, _Trial())

    def killed_at(self, place: Place) -> bool:
        """A worker was killed from outside at this event, among others: whether that happened too often for chance."""
        self._outside[place] = self._outside.get(place, 0) + 1
        return self._outside[place] >= OUTSIDE_SUSPECT

    def survived(self, place: Place) -> None:
        """The event ran alone and its worker lived."""
        self.seconds += time.monotonic() - self._trials.pop(place).began
        self.acquitted += 1

    def died(self, place: Place, death: Death) -> Verdict | None:
        """The event ran alone and its worker died: the verdict, if that was enough."""
        trial = self._trials[place]
        if not death.own:
            trial.outside += 1
            return None
        trial.outside = 0
        trial.deaths.append(death)
        if len(trial.deaths) < CONVICTED:
            return None
        self.seconds += time.monotonic() - self._trials.pop(place).began
        self.convicted += 1
        how = ", ".join(dict.fromkeys(cause(d) for d in trial.deaths))
        return Verdict(*place, f"{KILLED} {CONVICTED} times when it ran alone: {how}", _users(death))

    def hopeless(self, place: Place) -> bool:
        """Whether it was killed from outside too often to go on."""
        return self._trials[place].outside >= OUTSIDE_MAX

    def forget(self) -> None:
        """The epoch is given up: what was not decided is open again."""
        self._trials.clear()
        self._outside.clear()


def never_left_alone(death: Death) -> WorkerLost:
    """What stops the app at an event that is `hopeless`."""
    return WorkerLost(
        f"whenever this event runs, its worker is ended from outside ({death.how}); find out who does "
        f"that, then run again: the event is next"
    )


def _users(death: Death) -> str:
    """The stack without our own frames, as dead letters show it."""
    ours = f'  File "{os.path.dirname(os.path.dirname(__file__))}{os.sep}'  # noqa: PTH120 - compared as text
    lines = [x for x in death.stack.splitlines() if not x.startswith((ours, '  File "<string>"'))]
    if death.how.startswith("ran longer"):
        lines = lines[2:]  # the signal that ended it, which was ours
    return "\n".join(lines)


def cause(death: Death) -> str:
    """How a worker ended, in words."""
    return "out of memory" if death.how == f"ended with exit code {OUT_OF_MEMORY}" else death.how
