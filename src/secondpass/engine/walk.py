"""The plain loop over a recorded log, record by record: what `reference.run` does, with somebody who looks on.

Invariant: over a log from its beginning it gives what `reference.run` gives; `tests/replay` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from operator import itemgetter
from typing import Any

from secondpass.app import LATE, MAIN, App
from secondpass.aside import aside
from secondpass.change import Link
from secondpass.due import Pending, begin_schedules, first_due, take_due
from secondpass.engine.epoch import Epoch
from secondpass.engine.replay import Base, Commanded, Replay, Restarted, WasLoaded, records_of
from secondpass.engine.standing import Standing
from secondpass.errors import NotRepeated, SetupFailed, TaskError
from secondpass.record import (
    INTAKE,
    DeadLetter,
    Firing,
    Late,
    Refused,
    Retry,
    Tick,
    Told,
    error_text,
    event_crc,
    trace_text,
)
from secondpass.reference import stop_error
from secondpass.state import MISSING
from secondpass.step import CAUGHT, Step
from secondpass.store.reader import StoreReader

RECORDS_AT_ONCE = 1000


class Onlooker:
    """What happens in a walk, told as it happens; this one listens to nothing."""

    def begin(self, position: int, record: Any, now: float) -> None:
        """A record comes: an event, `Refused`, `DeadLetter` (for its time), `Late`, `Retry`, `Tick`, `Commanded`."""

    def restarted(self, item: Restarted, before: list[Link], after: list[Link]) -> None:
        """The app was started with another chain."""

    def commanded(self, before: list[Link], after: list[Link]) -> None:
        """A command has changed the chain."""

    def called(
        self,
        step: Step,
        event: Any,
        path: tuple[int, ...],
        results: list[Any],
        error: BaseException | None,
        *,
        branched: bool,
    ) -> None:
        """A task was called for an event, and gave this."""

    def passed_by(self, step: Step, event: Any, path: tuple[int, ...], why: str) -> None:
        """A task was not called for an event: it is stopped, or handles other types."""

    def scheduled(self, step: Step, name: str, time: float) -> None:
        """A schedule has its first moment."""

    def fires(self, step: Step, due: Pending, following: Any) -> None:
        """A timer is about to fire, and is gone; `following` is the next time of a schedule."""

    def put_out(self, position: int, stream: str, event: Any) -> None:
        """An output."""

    def set_aside(self, letter: DeadLetter) -> None:
        """A dead letter."""

    def end(self, position: int) -> None:
        """Nothing more comes of the record."""


class Walk:
    """A chain with its state at a position of the log, on its way through it."""

    def __init__(
        self,
        store: StoreReader,
        app: App,
        base: Base,
        upto: int | None = None,
        onlooker: Onlooker | None = None,
        make: Callable[[Link], Step] | None = None,
    ) -> None:
        self.replay = Replay(store, app, base, upto)
        self.now = base.now
        self._onlooker = onlooker or Onlooker()
        self._make = make or _plain_step
        self._steps: list[tuple[Link, Step]] = []
        self._timed = False
        try:
            self.standing = Standing(app, base)
            self._set_up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the sources."""
        self.replay.close()

    def watched_by(self, onlooker: Onlooker, make: Callable[[Link], Step]) -> None:
        """Let somebody look on from here."""
        self._onlooker, self._make, self._steps = onlooker, make, []
        self._set_up()

    @property
    def position(self) -> int:
        """The position of the next record."""
        return self.replay.position

    def take_over(self) -> None:
        """Go on from where somebody else has brought replay and standing."""
        self.now = self.replay.now
        self._steps = []
        self._set_up()

    @aside()
    def run(self, upto: int | None = None) -> None:
        """Go through the log to its end, or up to a position."""
        end = self.replay.end if upto is None else upto
        while (left := end - self.position) > 0:
            item = self.replay.next(min(left, RECORDS_AT_ONCE))
            if item is None:
                break
            if isinstance(item, Epoch):
                for position, record, then in records_of(item):
                    self._take(position, record, then)
            elif isinstance(item, WasLoaded):
                self.standing.was_loaded(item)
            elif isinstance(item, Restarted):
                before = self.standing.links
                self.standing.restarted(item, self.now)
                self._set_up()
                self._onlooker.restarted(item, before, self.standing.links)
            else:
                self._onlooker.begin(item.position, item, self.now)
                self._obey(item)
                self._onlooker.end(item.position)

    def _obey(self, item: Commanded) -> None:
        before = self.standing.links
        self.standing.commanded(item, self.now)
        self._set_up()
        self._onlooker.commanded(before, self.standing.links)

    def _set_up(self) -> None:
        """A step for each link; what has not changed keeps the one it has."""
        known = {id(link.task): (link, step) for link, step in self._steps}
        steps: list[tuple[Link, Step]] = []
        for link in self.standing.links:
            old = known.get(id(link.task))
            if old is not None and _same_state(old[0], link):
                steps.append((link, old[1]))
                continue
            try:
                steps.append((link, self._make(link)))
            except TaskError:
                raise
            except Exception as error:
                raise SetupFailed(
                    f"task {link.name}: setup() failed: {error_text(error)}", task=link.name
                ) from error
        self._steps = steps
        self._timed = any(step.timers for _, step in steps)

    def _take(self, position: int, record: Any, then: float) -> None:
        onlooker = self._onlooker
        onlooker.begin(position, record, then)
        numbers = count()  # of the timers that fire at this position
        for _, step in self._steps:
            step.timing.past = 0
        try:
            if isinstance(record, Refused):
                onlooker.set_aside(
                    DeadLetter(
                        position, INTAKE, record.reason, "", None, record.raw, record.offset, record.source
                    )
                )
            elif isinstance(record, DeadLetter):
                onlooker.set_aside(record._replace(position=position))
            elif isinstance(record, Late):
                onlooker.put_out(position, LATE, record.event)
            elif isinstance(record, Retry):
                self._retry(record, position)
            else:
                self._move_to(then, position, numbers)
                if not isinstance(record, Tick):
                    self._pass_on(record, position, (), 0)
            self._fire_due(self.now, position, numbers)
        except TaskError as stop:
            raise NotRepeated(f"run again, the app stops where it did not stop when it ran: {stop}") from stop
        onlooker.end(position)

    def _retry(self, record: Retry, position: int) -> None:
        names = [link.name for link, _ in self._steps]
        at = names.index(record.task) if record.task in names else -1
        if not isinstance(record.event, Firing):
            self._pass_on(record.event, position, (), max(at, 0))
            return
        link, step = self._steps[at] if at >= 0 else (None, None)
        if link is not None and step is not None and not link.stopped and record.event.timer in step.timers:
            key = step.timers[record.event.timer].wake(record.event.key)
            self._fire(at, record.event, key, position, ())

    def _pass_on(self, event: Any, position: int, path: tuple[int, ...], first: int) -> None:
        onlooker = self._onlooker
        for depth in range(first, len(self._steps)):
            link, step = self._steps[depth]
            if link.stopped or not step.takes(event):
                onlooker.passed_by(step, event, path, "stopped" if link.stopped else "type")
                continue
            found = self._called(
                step, event, position, path, partial(self._handled, step, event, position, path)
            )
            if found is None:
                if step.on_error == "pass":
                    continue
                return
            results, branched = found
            if branched:
                for k, result in enumerate(results):
                    self._pass_on(result, position, (*path, k), depth + 1)
                return
            if not results:
                return
            (event,) = results
        onlooker.put_out(position, MAIN, event)

    def _handled(
        self, step: Step, event: Any, position: int, path: tuple[int, ...]
    ) -> tuple[list[Any], bool]:
        self._obey_verdict(step, event, position, path)
        return step.call(event, position, self.now, path)

    def _obey_verdict(self, step: Step, event: Any, position: int, path: tuple[int, ...]) -> None:
        if self.replay.verdicts:
            verdict = self.replay.verdicts.get((position, step.task.name, path))
            if verdict is not None and verdict.crc == event_crc(event):
                raise Told(verdict.error, verdict.traceback)

    def _called(
        self,
        step: Step,
        event: Any,
        position: int,
        path: tuple[int, ...],
        call: Callable[[], tuple[list[Any], bool]],
    ) -> tuple[list[Any], bool] | None:
        """What a call puts out, and whether it branches; None where it fails."""
        onlooker = self._onlooker
        try:
            results, branched = call()
        except KeyboardInterrupt:
            raise
        except CAUGHT as error:
            if isinstance(error, TaskError) or step.on_error == "stop":
                raise stop_error(step.task, position, event, error) from error
            onlooker.called(step, event, path, [], error, branched=False)
            if step.on_error != "pass":
                onlooker.set_aside(
                    DeadLetter(position, step.task.name, error_text(error), trace_text(error), event)
                )
            return None
        onlooker.called(step, event, path, results, None, branched=branched)
        for stream, emitted in step.moment.emitted:
            onlooker.put_out(position, stream, emitted)
        return results, branched

    # ---- timers

    def _move_to(self, then: float, position: int, numbers: Iterator[int]) -> None:
        """The stream's time is at least this from now on; what is due until then fires first."""
        for link, step in self._steps:
            if step.timers and not link.stopped:
                unset = [n for n, spec in step.timers.items() if spec.repeats and None not in link.cells[n]]
                begin_schedules(step.timers, link.cells, then)
                for name in unset:
                    self._onlooker.scheduled(step, name, link.cells[name][None])
        self._fire_due(then, position, numbers)
        self.now = then

    def _fire_due(self, until: float, position: int, numbers: Iterator[int]) -> None:
        """Fire what is due at a time, one after the other; what they put out flows on before the next one fires."""
        while self._timed:
            due = [
                first
                for depth, (link, step) in enumerate(self._steps)
                if step.timers
                and not link.stopped
                and (first := first_due(step.timers, link.cells, depth, until)) is not None
            ]
            if not due:
                return
            first = min(due, key=itemgetter(slice(4)))
            self.now = max(self.now, first.time) + 0.0
            link, step = self._steps[first.depth]
            times = link.cells[first.name]
            take_due(step.timers[first.name], times, first)
            self._onlooker.fires(step, first, times.get(first.key, MISSING))
            event = Firing.of(first.name, first.key, first.time)
            self._fire(first.depth, event, first.key, position, (-1 - next(numbers),))

    def _fire(self, depth: int, event: Firing, key: Any, position: int, path: tuple[int, ...]) -> None:
        """Call a timer's method, and pass on what it puts out."""
        _, step = self._steps[depth]

        def fired() -> tuple[list[Any], bool]:
            self._obey_verdict(step, event, position, path)
            return step.fire(event.timer, key, position, self.now, path)

        found = self._called(step, event, position, path, fired)
        if found is not None:
            results, branched = found
            for k, result in enumerate(results):
                self._pass_on(result, position, (*path, k) if branched else path, depth + 1)


def _plain_step(link: Link) -> Step:
    return Step(link.task, link.cells, link.values)


def _same_state(a: Link, b: Link) -> bool:
    return a.values is b.values and all(a.cells[name] is b.cells[name] for name in a.cells)
