"""An epoch: consecutive records on their way through the chain, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from secondpass.engine.overlay import Delta
from secondpass.record import DeadLetter, Late, Refused, Retry
from secondpass.reference import Tally

Where = int | tuple[int, ...]
"""An event's path: the index of its record in the epoch, then its index in each list it was emitted in.

A call that returns its event, or one other, keeps the path; so most paths are plain ints.
"""


def path_of(where: Where) -> tuple[int, ...]:
    """A path as a tuple: their order is the order of the plain loop.

    >>> path_of(7), path_of((7, 1))
    ((7,), (7, 1))
    """
    return where if isinstance(where, tuple) else (where,)


@dataclass
class Epoch:
    """Consecutive records to be run and committed together.

    `origin[i]` is the record index of `events[i]`; `refused` holds the records that are no events.
    `times[i]` is the time of `events[i]`; `now` and `now_after` are the stream's time before and after the epoch.
    """

    number: int
    first: int
    count: int
    events: list[Any]
    origin: Sequence[int]
    times: list[float]
    refused: dict[int, Refused | DeadLetter | Late]
    now: float
    now_after: float
    offsets: list[Any]
    kinds: set[type]
    retry: Retry | None = None
    tick: float | None = None
    """The time that a tick says, where the one record of this epoch is one."""
    dangerous: bool = False
    """Whether it holds an event that has ended its process before."""
    ahead: list[int] = field(default_factory=list[int])
    """The records that were too far ahead of the clock, as it stood at `ahead_of`."""
    ahead_of: float = 0.0
    intake_time: float | None = None
    taken: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    decided: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What sources had decided before it, that does not follow from their input."""
    behind: int = 0
    """So many records were taken together with these, and came before them."""
    _nows: list[float] | None = None

    @classmethod
    def of_tick(cls, number: int, first: int, time: float, now: float, offsets: list[Any]) -> Epoch:
        """An epoch of one record, a tick; the sources stand at `offsets`."""
        return cls(
            number=number,
            first=first,
            count=1,
            events=[],
            origin=range(0),
            times=[],
            refused={},
            now=now,
            now_after=max(now, time) + 0.0,
            offsets=offsets,
            kinds=set(),
            tick=time,
        )

    def nows(self) -> list[float]:
        """The stream's time at each record."""
        if self._nows is None:
            times = self.times
            if self.tick is not None:
                times = [self.tick]
            if len(times) == self.count and times[0] >= self.now and times == sorted(times):
                nows = times
            else:
                at = times
                if len(times) != self.count:
                    at = [self.now] * self.count
                    for i, time in zip(self.origin, times, strict=True):
                        at[i] = time
                nows = list(accumulate(at, max, initial=self.now))[1:]
            # They never fall, so where there is a zero is easily told; -0.0 is made 0.0, as everywhere.
            self._nows = [now + 0.0 for now in nows] if nows[0] <= 0.0 <= nows[-1] else nows
        return self._nows

    def cut(self, index: int, offsets: list[Any]) -> Epoch:
        """The part of this epoch before the record `index`, after which the sources stand at `offsets`."""
        kept = sum(1 for i in self.origin if i < index)
        return Epoch(
            number=self.number,
            first=self.first,
            count=index,
            events=self.events[:kept],
            origin=self.origin[:kept],
            times=self.times[:kept],
            refused={i: r for i, r in self.refused.items() if i < index},
            now=self.now,
            now_after=max(self.now, max(self.times[:kept], default=self.now)) + 0.0,
            offsets=offsets,
            kinds=self.kinds,
            ahead=[i for i in self.ahead if i < index],
            ahead_of=self.ahead_of,
            intake_time=self.intake_time,
            taken=_first(self.taken, index),
            decided=self.decided,
            behind=self.behind,
        )

    def rest(self, index: int) -> Epoch:
        """The part of this epoch from the record `index` on."""
        kept = sum(1 for i in self.origin if i < index)
        return Epoch(
            number=self.number + 1,
            first=self.first + index,
            count=self.count - index,
            events=self.events[kept:],
            origin=[i - index for i in self.origin[kept:]],
            times=self.times[kept:],
            refused={i - index: r for i, r in self.refused.items() if i >= index},
            now=max(self.now, max(self.times[:kept], default=self.now)) + 0.0,
            now_after=self.now_after,
            offsets=self.offsets,
            kinds=self.kinds,
            ahead=[i - index for i in self.ahead if i >= index],
            ahead_of=self.ahead_of,
            intake_time=self.intake_time,
            taken=_after(self.taken, index),
            behind=self.behind + index,
        )


def _first(taken: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """What was taken from which source for the first `count` records.

    >>> _first([(0, 3), (1, 4)], 5)
    [(0, 3), (1, 2)]
    """
    before = accumulate((n for _, n in taken), initial=0)
    return [(i, min(n, count - b)) for (i, n), b in zip(taken, before, strict=False) if b < count]


def _after(taken: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """What was taken from which source for the records behind the first `count`.

    >>> _after([(0, 3), (1, 4)], 5)
    [(1, 2)]
    """
    found: list[tuple[int, int]] = []
    for i, n in taken:
        left = n - count
        if left > 0:
            found.append((i, min(n, left)))
        count = max(0, -left)
    return found


@dataclass
class Outcome:
    """What an epoch changes: all of it is committed in one transaction."""

    streams: dict[str, tuple[list[Any], list[int]]] = field(
        default_factory=dict[str, tuple[list[Any], list[int]]]
    )
    """By stream: the events put out, and the record index of each."""
    letters: list[DeadLetter] = field(default_factory=list[DeadLetter])
    deltas: dict[tuple[str, str], Delta] = field(default_factory=dict[tuple[str, str], Delta])
    """By task and table."""
    values: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    tallies: dict[str, Tally] = field(default_factory=dict[str, Tally])
    logged: list[Any] = field(default_factory=list[Any])
