"""What the hub asks of whoever runs bundles: processes of this machine today, a cluster engine another day.

A bundle is bytes, and so is its answer (`bundle.py` says what is in them); large arrays lie beside them. A worker
handles its bundles one after the other, in the order in which they were submitted. It owns nothing: whatever it had
when it is lost is run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

BETWEEN, SETTING_UP, DECODING = -1, -2, -3
"""Stand for the index of an event: the worker was between bundles, in a task's `setup()`, or reading a bundle."""


class Parcel(NamedTuple):
    """A bundle or an answer on its way."""

    body: bytes | memoryview
    beside: Sequence[bytes | memoryview] = ()
    """What is too large to be copied into the body, in the order in which the body counts it."""

    @property
    def size(self) -> int:
        return len(self.body) + sum(map(len, self.beside))


class Death(NamedTuple):
    """How a worker ended, and where it was."""

    how: str
    """In words: `killed by SIGSEGV`, `ended with exit code 3`, `ran longer than limit_s=2.0`."""
    own: bool
    """Whether what it ran brought it about; a signal from outside tells nothing about an event."""
    bundle: int
    """The number of the bundle that it was running."""
    event: int
    """The index of the event in that bundle; or BETWEEN, SETTING_UP, DECODING."""
    stack: str
    """Its last Python stack, where it could be told."""


class Done(NamedTuple):
    """A worker's answer to its oldest bundle."""

    worker: int
    answer: Parcel


class Lost(NamedTuple):
    """A worker is gone, and with it every bundle that it had not answered."""

    worker: int
    death: Death


class Executor(Protocol):
    """Runs bundles on workers, numbered from 0; each is started when its first bundle comes."""

    size: int

    def submit(self, worker: int, number: int, bundle: Parcel, limit_s: float | None = None) -> None:
        """Give a worker a bundle, behind those that it has; never waits. `limit_s` bounds each event."""
        ...

    def renew(self, worker: int) -> None:
        """Let the worker's next bundle, which comes when it has none, run in a new process."""
        ...

    def at(self, worker: int) -> tuple[int, int] | None:
        """The number of the bundle that a worker was at last, and the index of its event; None where nobody can tell."""
        ...

    def wait(self, timeout_s: float | None) -> list[Done | Lost]:
        """What has happened, waiting for the first of it at most so long; None waits for good."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
