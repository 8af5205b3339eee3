"""A process that runs bundles, as the hub sees it: what it has in hand, whether it is late or stopped, how it ended."""

from __future__ import annotations

import signal
import socket
from collections import deque
from typing import NamedTuple

from secondpass.engine.channel import Channel
from secondpass.engine.executor import Death
from secondpass.engine.nursery import Desk

_OWN_SIGNALS = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGSYS,
        signal.SIGTRAP,
        signal.SIGXCPU,
        signal.SIGXFSZ,
    }
)
KILLED = "killed by SIGKILL"
LOOK_S = 1.0
"""How long a process may be silent until somebody looks what is the matter with it, and between two looks."""
RESOLUTION_S = 0.005


class Given(NamedTuple):
    """A bundle on its way."""

    number: int
    limit_s: float | None


class Process:
    """A worker's process: started, or about to be."""

    def __init__(self, key: int, worker: int, sock: socket.socket, desk: Desk, now: float) -> None:
        self.key = key
        self.worker = worker
        self.channel = Channel(sock, blocking=False)
        self.desk = desk
        self.given: deque[Given] = deque()
        self.worn = False
        self.heard = now
        self.stops = Stops()
        self.verdict: Death | None = None
        """What the hub has against it; how it ended then says nothing more."""
        self.excused = 0.0
        """When it was stopped: its event has all its time from then on."""
        self.aborted: float | None = None
        self.killed: float | None = None
        self.cut_off: float | None = None
        """Since when its channel is at its end while it is not reported dead."""

    @property
    def pid(self) -> int | None:
        """Its process id, once there is a process."""
        return self.desk.cells[3] or None

    def overdue(self, now: float, resumed: float) -> tuple[float, Death | None]:
        """In how many seconds to look at the limit again; and what to say of an event that is over it."""
        limit_s = self.given[0].limit_s if self.given else None
        if limit_s is None:
            return LOOK_S, None
        cells = self.desk.cells
        began, bundle, index = cells[2], cells[0], cells[1]
        if not began or bundle != self.given[0].number or index < 0 or cells[2] != began:
            return max(limit_s, RESOLUTION_S), None
        left_s = max(began / 1e9, resumed, self.excused) + limit_s - now
        if left_s > 0:
            return max(left_s, RESOLUTION_S), None
        return 0.0, Death(f"ran longer than limit_s={limit_s:g}", True, bundle, index, "")

    def death(self, how: str, own: bool) -> Death:
        """How it ended, and where it was."""
        cells, stack = self.desk.cells, self.desk.stack()
        verdict = self.verdict
        if verdict is None:
            return Death(how, own, cells[0], cells[1], stack)
        if verdict.event >= 0 and not (self.given and self.given[0].number == verdict.bundle):
            # It went on while it was being stopped, and has answered: no event is to blame for its end.
            return Death(verdict.how, False, cells[0], cells[1], stack)
        return verdict._replace(stack=stack)


class Stops:
    """Whether a process is stopped and stays so: seen twice, since Ctrl-Z and `fg` may come between two looks."""

    def __init__(self) -> None:
        self._looked = 0.0
        self._seen = False

    def look(self, pid: int, now: float) -> bool:
        """Look again, if it is time to; whether it was stopped both times."""
        if now - self._looked < LOOK_S:
            return False
        seen = self._seen and now - self._looked < 3 * LOOK_S
        self._looked = now
        self._seen = is_stopped(pid)
        return seen and self._seen


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped now."""
    import psutil  # a run in which nobody falls silent needs none

    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def how_it_ended(code: int | None) -> tuple[str, bool]:
    """How a process ended, in words, and whether it brought that about itself."""
    if code is None:
        return "ended, and other code took its exit code", False
    if code >= 0:
        return f"ended with exit code {code}", True
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}", -code in _OWN_SIGNALS


def in_the_past(how: str) -> str:
    """The same in a sentence about what is over."""
    return f"was {how}" if how.startswith("killed") else how
