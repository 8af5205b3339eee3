"""The plain loop over a recorded log, record by record: what `reference.run` does, with somebody who looks on.

Invariant: over a log from its beginning it gives what `reference.run` gives; `tests/replay` compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secondpass.app import MAIN, App
from secondpass.change import Link
from secondpass.engine.epoch import Epoch
from secondpass.engine.replay import Base, Commanded, Replay, Restarted, records_of
from secondpass.engine.standing import Standing
from secondpass.errors import NotRepeated, SetupFailed, TaskError
from secondpass.record import INTAKE, DeadLetter, Refused, Retry, Told, error_text, event_crc, trace_text
from secondpass.reference import stop_error
from secondpass.step import CAUGHT, Step
from secondpass.store.reader import StoreReader

RECORDS_AT_ONCE = 1000


class Onlooker:
    """What happens in a walk, told as it happens; this one listens to nothing."""

    def begin(self, position: int, record: Any, now: float) -> None:
        """A record comes: an event, `Refused`, `DeadLetter` (refused for its time), `Retry`, `Commanded`."""

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

    def run(self, upto: int | None = None) -> None:
        """Go through the log to its end, or up to a position."""
        end = self.replay.end if upto is None else upto
        while (left := end - self.position) > 0:
            item = self.replay.next(min(left, RECORDS_AT_ONCE))
            if item is None:
                break
            if isinstance(item, Epoch):
                for position, record, now in records_of(item):
                    self.now = now
                    self._take(position, record)
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

    def _take(self, position: int, record: Any) -> None:
        onlooker = self._onlooker
        onlooker.begin(position, record, self.now)
        try:
            if isinstance(record, Refused):
                onlooker.set_aside(
                    DeadLetter(
                        position, INTAKE, record.reason, "", None, record.raw, record.offset, record.source
                    )
                )
            elif isinstance(record, DeadLetter):
                onlooker.set_aside(record._replace(position=position))
            elif isinstance(record, Retry):
                names = [link.name for link, _ in self._steps]
                first = names.index(record.task) if record.task in names else 0
                self._pass_on(record.event, position, (), first)
            else:
                self._pass_on(record, position, (), 0)
        except TaskError as stop:
            raise NotRepeated(f"run again, the app stops where it did not stop when it ran: {stop}") from stop
        onlooker.end(position)

    def _pass_on(self, event: Any, position: int, path: tuple[int, ...], first: int) -> None:
        onlooker = self._onlooker
        for depth in range(first, len(self._steps)):
            link, step = self._steps[depth]
            if link.stopped or not step.takes(event):
                onlooker.passed_by(step, event, path, "stopped" if link.stopped else "type")
                continue
            try:
                verdict = (
                    self.replay.verdicts.get((position, link.name, path)) if self.replay.verdicts else None
                )
                if verdict is not None and verdict.crc == event_crc(event):
                    raise Told(verdict.error, verdict.traceback)
                results, branched = step.call(event, position, self.now, path)
            except KeyboardInterrupt:
                raise
            except CAUGHT as error:
                if isinstance(error, TaskError) or step.on_error == "stop":
                    raise stop_error(step.task, position, event, error) from error
                onlooker.called(step, event, path, [], error, branched=False)
                if step.on_error == "pass":
                    continue
                onlooker.set_aside(
                    DeadLetter(position, link.name, error_text(error), trace_text(error), event)
                )
                return
            onlooker.called(step, event, path, results, None, branched=branched)
            for stream, emitted in step.moment.emitted:
                onlooker.put_out(position, stream, emitted)
            if branched:
                for k, result in enumerate(results):
                    self._pass_on(result, position, (*path, k), depth + 1)
                return
            if not results:
                return
            (event,) = results
        onlooker.put_out(position, MAIN, event)


def _plain_step(link: Link) -> Step:
    return Step(link.task, link.cells, link.values)


def _same_state(a: Link, b: Link) -> bool:
    return a.values is b.values and all(a.cells[name] is b.cells[name] for name in a.cells)
