"""The workers of a run, as the flow sees them: what each has in hand, and what is known of those that died."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from secondpass.aside import aside
from secondpass.engine.bundle import decode_answer, without_events
from secondpass.engine.executor import SETTING_UP, Death, Done, Executor, Lost, Parcel
from secondpass.engine.lookups import Held, Lookups
from secondpass.engine.quarantine import OUTSIDE_MAX, Quarantine, cause
from secondpass.engine.schedule import Sent
from secondpass.engine.summary import Deaths, Summary
from secondpass.errors import SetupFailed
from secondpass.record import Verdict
from secondpass.task import Task

IN_HAND = 2
"""Bundles that a worker has at once: one that runs, and one so that it need not wait for the next."""


def setup_failed(task: str, text: str, trace: str) -> SetupFailed:
    """What to raise where a task's `setup()` raised on a worker."""
    return SetupFailed(f"task {task}: setup() failed on a worker: {text}\n{trace}".rstrip(), task=task)


def setup_ended(task: str, death: Death) -> SetupFailed:
    """What to raise where it ended the worker."""
    return SetupFailed(
        f"task {task}: setup() ended its worker: {cause(death)}\n{death.stack}".rstrip(), task=task
    )


class Flight(NamedTuple):
    """A bundle that is on its way."""

    number: int
    lane: Any
    sent: Sent
    alone: bool
    """Whether it is one event on trial."""


class Crew:
    """Workers with their bundles in hand; they are started when they are warmed up, or the first bundle goes out."""

    def __init__(
        self,
        size: int,
        start: Callable[[], Executor],
        record: Callable[[Verdict], None],
        lookups: Lookups | Held | None = None,
        start_scout: Callable[[], Executor] | None = None,
    ) -> None:
        self.size = size
        self._lookups = lookups
        self._known = [-1] * size
        """By worker: the version of the lookups' contents that it was given; -1 for a new process."""
        self.quarantine = Quarantine()
        self.record = record
        """Makes a verdict durable before anything follows from it."""
        self._start = start
        self._executor: Executor | None = None
        self._start_scout = start_scout
        self._scout: Executor | None = None
        self._flights: list[deque[Flight]] = [deque() for _ in range(size)]
        self._given_up: set[int] = set()
        self._warming: dict[int, str] = {}
        """The bundles without events that are on their way, and the tasks that they set up."""
        self._looks: dict[int, tuple[tuple[int, int], int]] = {}
        """By worker: the bundle and the event it was at, and at how many looks."""
        self.told: dict[str, int] = {}
        """By task: at how many looks at one event that was told last."""
        self._number = 0
        self._setups_lost: dict[str, int] = {}
        self._unexplained = 0

    @property
    def executor(self) -> Executor:
        if self._executor is None:
            self._executor = self._start()
        return self._executor

    @property
    def started(self) -> bool:
        """Whether there are processes."""
        return self._executor is not None

    # ---- the process that runs what ended the hub (`scouting.Scouting`)

    @property
    def may_scout(self) -> bool:
        """Whether there can be such a process."""
        return self._start_scout is not None

    @aside()
    def ask_scout(self, number: int, message: Parcel) -> Done | Lost:
        """Have it run something, and wait for its answer or its death."""
        if self._scout is None:
            assert self._start_scout is not None
            self._scout = self._start_scout()
        self._scout.submit(0, number, message)
        # Its death behind its answer tells nothing, and the next is another process.
        found = self._scout.wait(None)[0]
        if isinstance(found, Done):
            self._unexplained = 0
        return found

    # ---- workers

    def warm_up(self, tasks: Mapping[int, Task[Any]]) -> None:
        """Start the workers and set tasks up there, so that no event need wait for that; `warm` tells when it is done."""
        for index, task in tasks.items():
            for worker in range(min(self.size, task._options.copies or self.size)):
                self._bring_lookups(worker)  # `setup` may look into them
                number = self.next_number()
                self._warming[number] = task.name
                self._submit_unasked(worker, number, without_events(number, index))

    def warm(self) -> bool:
        """Whether nothing is left of a warming up; raises `SetupFailed` where a task could not be set up."""
        for event in self.wait(0.0) if self._warming else ():
            if isinstance(event, Lost):
                death = event.death
                task = self._warming.get(death.bundle, "")
                self.crashed(event.worker)
                if task and death.own and death.event == SETTING_UP:
                    raise setup_ended(task, death)
                continue  # an accident: the first event there waits for another worker
            answer = decode_answer(event.answer.body)
            task = self._warming.get(answer.number, "")
            self.landed(event.worker, answer.number)
            if answer.setup_error is not None:
                raise setup_failed(task, *answer.setup_error)
        return not self._warming

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def by_load(self, depth: int) -> Iterator[int]:
        """The workers that have so many bundles in hand."""
        return iter(
            [w for w, flights in enumerate(self._flights) if len(flights) == depth and depth < IN_HAND]
        )

    @property
    def flying(self) -> bool:
        """Whether a bundle is on its way."""
        return any(self._flights)

    def last(self, worker: int, lane: Any) -> Sent | None:
        """The bundle that a worker would have before the next one, if it is of this lane."""
        flights = self._flights[worker]
        return flights[-1].sent if flights and flights[-1].lane is lane else None

    def alone(self, worker: int) -> bool:
        """Whether a worker has an event on trial, beside which it gets nothing else."""
        return any(flight.alone for flight in self._flights[worker])

    def submit(self, worker: int, flight: Flight, message: Parcel, limit_s: float | None) -> None:
        self._bring_lookups(worker)
        self._flights[worker].append(flight)
        self.executor.submit(worker, flight.number, message, limit_s)

    def _bring_lookups(self, worker: int) -> None:
        """Give a worker what lookups hold, before the bundle whose events may look into them."""
        if self._lookups is None or self._known[worker] == self._lookups.version:
            return
        number = self.next_number()
        message = self._lookups.since(self._known[worker], number)
        self._known[worker] = self._lookups.version
        if message is not None:
            self._submit_unasked(worker, number, message)

    def _submit_unasked(self, worker: int, number: int, message: Parcel) -> None:
        """Give a worker a bundle for whose answer no lane waits."""
        self._flights[worker].append(Flight(number, None, Sent([], {}, whole=False), alone=False))
        self._given_up.add(number)
        self.executor.submit(worker, number, message)

    def renew(self, worker: int) -> None:
        self._known[worker] = -1
        self.executor.renew(worker)

    def wait(self, timeout_s: float | None) -> list[Done | Lost]:
        if self._executor is None:
            return []
        return self._executor.wait(timeout_s)

    def lingering(self) -> Iterator[tuple[Flight, int, int]]:
        """The events at which workers still are since the last look or longer: flight, index, since how many looks."""
        before, self._looks = self._looks, {}
        for worker, flights in enumerate(self._flights):
            if not flights or (at := self.executor.at(worker)) is None:
                continue
            number, index = at
            was, looks = before.get(worker, (at, -1))
            looks = looks + 1 if was == at else 0
            self._looks[worker] = at, looks
            if looks and index >= 0 and flights[0].number == number and number not in self._given_up:
                yield flights[0], index, looks

    def landed(self, worker: int, number: int) -> Flight | None:
        """The oldest bundle of a worker was answered; None if nobody wants it any more."""
        self._unexplained = 0
        flight = self._flights[worker].popleft()
        assert flight.number == number
        self._warming.pop(number, None)
        return None if number in self._given_up else flight

    def crashed(self, worker: int) -> list[Flight]:
        """A worker is gone: what it had in hand."""
        flights = [f for f in self._flights[worker] if f.number not in self._given_up]
        for flight in self._flights[worker]:
            self._warming.pop(flight.number, None)
        self._flights[worker].clear()
        self._known[worker] = -1
        return flights

    def give_up(self) -> None:
        """The epoch is given up: what is in flight does not count."""
        self._given_up = {f.number for flights in self._flights for f in flights}
        self.quarantine.forget()

    def setups_lost(self, task: str) -> bool:
        """A worker was ended from outside in a task's setup: whether that happened too often."""
        self._setups_lost[task] = self._setups_lost.get(task, 0) + 1
        return self._setups_lost[task] >= OUTSIDE_MAX

    def tell(self, summary: Summary) -> None:
        """Note in a run's summary what the workers did."""
        if self._executor is not None:
            summary.workers = self.size
        if self._executor is not None or self._scout is not None:
            found = self.quarantine
            summary.deaths = Deaths(found.convicted, found.acquitted, found.seconds)

    def set_up(self, task: str) -> None:
        """A worker has got through a task's setup."""
        self._setups_lost.pop(task, None)

    def unexplained(self, death: Death) -> None:
        """A worker died at no event: raises `SetupFailed` where no worker will do better."""
        self._unexplained += 1
        if (death.own and death.bundle < 0) or self._unexplained >= OUTSIDE_MAX:
            raise SetupFailed(
                f"workers end before they have run anything: {cause(death)}\n{death.stack}".rstrip()
            )

    def close(self) -> None:
        for executor in (self._executor, self._scout):
            if executor is not None:
                with contextlib.suppress(ProcessLookupError):
                    executor.close()
        self._executor = self._scout = None
