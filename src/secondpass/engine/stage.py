"""One task in a running chain: its committed state, and how it runs over an epoch.

Two ways lead over an epoch, and they give the same:

    fast        plain calls over an overlay; nothing is guarded, an error drops the overlay
    careful     every call is kept whole or undone whole, every cell is checked (`step.Step`)

A stage runs fast. At the first error it runs the part before it again, settles that, and goes on
carefully: running again at every error would be quadratic. The first epoch of a run and one in fifty after
it are small and careful throughout, so that a broken rule is found early.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import repeat
from typing import Any

from secondpass.binding import attach, attach_state
from secondpass.calls import batch_results, call_of, expand, keys_of
from secondpass.codec import pack
from secondpass.due import Pending
from secondpass.engine.agenda import Agenda
from secondpass.engine.epoch import Epoch, Where, path_of
from secondpass.engine.overlay import Cells, Delta, Layered, Mirror, Suspect, mirrors, overlay_for
from secondpass.errors import TaskError, TaskFault
from secondpass.record import DeadLetter, Firing, Told, Verdict, error_text, event_crc, trace_text
from secondpass.reference import Tally
from secondpass.state import MISSING, CallValues, Moment, Output
from secondpass.step import CAUGHT, Step
from secondpass.task import Task, accepts
from secondpass.timers import Timing

RECENT = 100
"""So many events of each task are at hand to try other code on."""


class Cut(Exception):
    """The epoch must end before one of its records, and the app with it."""

    def __init__(self, index: int, task: Task[Any], event: Any, error: BaseException, passed: Passed) -> None:
        super().__init__(index)
        self.index = index
        self.task = task
        self.event = event
        self.error = error
        self.passed = passed
        """What the task passed on before."""


class Clock:
    """The stream's time for tables with a time to live, set before each event that needs it."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = float("-inf")


class FastMoment:
    """The place in the stream during a fast run, found only when a task asks.

    The index of the running event is what the loop's iterator has left, so a task that never asks pays
    nothing.
    """

    __slots__ = ("_epoch", "_events", "_total", "_where", "counts", "drawing", "emitted", "logged")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.emitted: list[tuple[str, Any, int]] = []
        self.logged: list[Any] = []
        self.drawing: tuple[str, Any] | None = None
        self._events: Any = iter(())
        self._total = 0

    def begin(self, epoch: Epoch, events: Any, total: int, where: Any) -> None:
        self._epoch, self._events, self._total, self._where = epoch, events, total, where
        self.counts, self.emitted, self.logged, self.drawing = {}, [], [], None

    def index(self) -> int:
        """The index of the running event."""
        index = self._total - self._events.__length_hint__() - 1
        if index < 0:
            raise TaskFault(
                "handle_batch handles many events at once, so there is no one position, time or random"
            )
        return index

    @property
    def _path(self) -> tuple[int, ...]:
        return path_of(self._where[self.index()])

    @property
    def now(self) -> float:
        return self._epoch.nows()[self._path[0]]

    @property
    def position(self) -> int:
        return self._epoch.first + self._path[0]

    @property
    def path(self) -> tuple[int, ...]:
        return self._path[1:]

    def emit(self, output: str, event: Any) -> None:
        self.emitted.append((output, event, self.index()))

    def count(self, name: str, n: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + n

    def log(self, record: Any) -> None:
        self.logged.append(record)


def no_moment() -> FastMoment:
    """The moment of a call that handles many events at once: it has counts and logs, and no one place."""
    return FastMoment()


class Passed:
    """What a stage put out over an epoch."""

    __slots__ = ("emitted", "events", "kinds", "letters", "logged", "tally", "where")

    def __init__(self, kinds: set[type]) -> None:
        self.events: list[Any] = []
        self.where: list[Where] = []
        self.kinds = kinds
        self.emitted: list[tuple[str, Any, Where]] = []
        self.letters: list[tuple[Where, DeadLetter]] = []
        self.logged: list[Any] = []
        self.tally = Tally()

    def extend(self, results: list[Any], branched: bool, where: Where) -> None:
        """Add what one call returned."""
        self.events += results
        if branched:
            path = path_of(where)
            self.where += [(*path, k) for k in range(len(results))]
        elif results:
            self.where.append(where)
        self.kinds.update(map(type, results))


class Again(Exception):
    """The epoch has to be run again carefully: something in it is not exact, and only each call can tell where."""


class Stage:
    """A task with its committed cells."""

    def __init__(
        self,
        task: Task[Any],
        tables: dict[str, dict[Any, Any]],
        values: dict[str, bytes],
        *,
        elsewhere: bool = False,
        number: int = 0,
        stopped: bool = False,
        step: Step | None = None,
    ) -> None:
        shape = type(task)._shape
        self.name = task.name
        self.number = number
        """The task's index among those that workers know."""
        self.stopped = stopped
        """Events pass it by."""
        self.recent: deque[Any] = deque(maxlen=RECENT)
        """The last events that came here: other code is tried on them."""
        self.given = task
        self.types = accepts(task)
        self.on_error = task._options.on_error
        self.specs = shape.tables
        self.timers = shape.timers
        self._agenda: Agenda | None = None
        self._pending: dict[str, Any] = {}
        """The tables of what is pending, as this run of the epoch sees them."""
        self.tables = {n: tables.setdefault(n, {}) for n in shape.tables}
        self.values = values
        self.verdicts: dict[tuple[int, tuple[int, ...]], Verdict] = {}
        """By position and path: events that are not to be run."""
        self.ttl_s = {n: s.ttl_of(task) for n, s in shape.tables.items()}
        self.ticking = any(t is not None for t in self.ttl_s.values())
        self._batch = hasattr(type(task), "handle_batch")
        self._clock = Clock()
        self._moment = FastMoment()
        self._overlays: dict[str, Cells] = {
            n: overlay_for(s, self.tables[n], self._clock, self.ttl_s[n]) for n, s in shape.tables.items()
        }
        self._live = CallValues(shape.values, dict(values))
        self._outputs = {n: Output[Any](s, self._moment.emit) for n, s in shape.outputs.items()}
        self._swept = {
            n: 2 * len(cells) + 1024 for n, cells in self.tables.items() if self.ttl_s[n] is not None
        }
        self.deltas: dict[str, Delta] = {}
        self.values_after = values
        self._is_careful = False
        self._entered = ""
        """The way of running that the task is bound for: `fast`, `careful`, or none yet in this epoch."""
        self.home: int | None = None
        """The worker that has all of the task's cells as they are."""
        self._fed: list[tuple[list[Any], Any, set[type]]] = []
        self.busy_s = 0.0
        self._step: Step | None = None
        if step is not None:
            self.bind(step)
        elif not elsewhere:
            self._bound()

    @property
    def is_bound(self) -> bool:
        """Whether the task is set up in this process."""
        return self._step is not None

    def _bound(self) -> Step:
        """The task bound to this stage, set up when it is first needed: both ways of running share it."""
        return self._step or self.bind(Step(self.given, {}, {}))

    def bind(self, step: Step) -> Step:
        """Run the task as it is set up there."""
        self._step = step
        self._call = call_of(step.task)
        return step

    @property
    def task(self) -> Task[Any]:
        return self._bound().task

    # ---- running

    def run(self, epoch: Epoch, events: list[Any], where: Any, kinds: set[type], careful: bool) -> Passed:
        """Run the task over an epoch's events; `changes` then gives what it changed.

        Raises `Cut` where the app must stop before a record.
        """
        self.begin(len(events), careful)
        try:
            passed = self.feed(epoch, events, where, kinds)
            self.end()
        except Again:
            self._rollback()
            self.begin(len(events), careful=True)
            passed = self.feed(epoch, events, where, kinds)
            self.end()
        return passed

    def begin(self, events: int, careful: bool) -> None:
        """Begin an epoch of about so many events."""
        self.deltas = {n: Delta({}, set()) for n in self.tables}
        self.values_after = self.values
        self._is_careful, self._fed, self.home, self._entered = careful, [], None, ""
        if not careful:
            self._choose_overlays(events)
        if self.timers:
            self._pending = {
                n: Layered(self.tables[n], self.deltas[n]) if careful else self._overlays[n]
                for n in self.timers
            }

    def came(self, events: list[Any]) -> None:
        """Keep the last of the events that come to the task."""
        self.recent.extend(events[-RECENT:])

    def begin_elsewhere(self) -> None:
        """Begin an epoch whose calls are made by workers: what they change is put into `deltas` and `values_after`."""
        self.deltas = {n: Delta({}, set()) for n in self.tables}
        self.values_after = self.values
        self._is_careful = True

    def feed(self, epoch: Epoch, events: list[Any], where: Any, kinds: set[type]) -> Passed:
        """Run the task over the next events of the epoch; raises `Cut`, and `Again`."""
        began = time.perf_counter()
        passed = Passed(set(kinds))
        self.came(events)
        try:
            if not self._is_careful and self._condemned(epoch):
                self._go_carefully(epoch)
            if self._is_careful:
                self._run_carefully(epoch, events, where, 0, passed)
                return passed
            failed_at = self._run_fast(epoch, events, where, passed)
            if failed_at is None:
                self._fed.append((events, where, kinds))
                return passed
            passed = Passed(set(kinds))
            self._fed.append((events[:failed_at], where[:failed_at], kinds))
            self._go_carefully(epoch, passed)
            self._run_carefully(epoch, events, where, failed_at, passed)
            return passed
        finally:
            self.busy_s += time.perf_counter() - began

    def end(self) -> None:
        """The epoch has no more events; raises `Again` where what the task left is not exact."""
        if not self._is_careful and not self._settle():
            raise Again

    def _go_carefully(self, epoch: Epoch, last: Passed | None = None) -> None:
        """Settle what was fed so far, running it again, and go on call by call; `last` takes what comes of its end."""
        self._rollback()
        for i, (events, where, kinds) in enumerate(self._fed):
            passed = last if last is not None and i == len(self._fed) - 1 else Passed(set(kinds))
            if events and self._run_fast(epoch, events, where, passed) is not None:
                raise Again
        if not self._settle():
            raise Again
        self._is_careful, self._fed = True, []

    def verdict_on(self, event: Any, position: int, path: tuple[int, ...]) -> Verdict | None:
        """The verdict on an event, if there is one."""
        verdict = self.verdicts.get((position, path)) if self.verdicts else None
        return verdict if verdict is not None and verdict.crc == event_crc(event) else None

    def obey_verdict(self, event: Any, position: int, path: tuple[int, ...]) -> None:
        """Look, before each careful call, whether a verdict forbids it: raises what that says."""
        verdict = self.verdict_on(event, position, path) if self.verdicts else None
        if verdict is not None:
            raise Told(verdict.error, verdict.traceback)

    def _condemned(self, epoch: Epoch) -> bool:
        """Whether a verdict is about a call in this epoch."""
        return any(epoch.first <= at < epoch.first + epoch.count for at, _ in self.verdicts)

    def _choose_overlays(self, events: int) -> None:
        """Small tables are mirrored, large ones laid over: whichever costs less for so many events."""
        for name, overlay in self._overlays.items():
            spec, base, ttl_s = self.specs[name], self.tables[name], self.ttl_s[name]
            if mirrors(spec, base, ttl_s, events) != isinstance(overlay, Mirror):
                make = overlay_for if isinstance(overlay, Mirror) else Mirror
                self._overlays[name] = make(spec, base, self._clock, ttl_s)

    def _enter_fast(self) -> None:
        if self._entered == "fast":
            return
        self._entered = "fast"
        attach(self.task, _moment=self._moment, _values=self._live, **self._outputs)
        attach_state(self.task, self._overlays, self._moment, self.timing, self._on_set)

    def _run_fast(self, epoch: Epoch, events: list[Any], where: Any, passed: Passed) -> int | None:
        """Plain calls; gives the index of the first event whose call fails, None when all went well."""
        self._enter_fast()
        handle, types, clock, moment = self._call, self.types, self._clock, self._moment
        mixed = bool(types) and not all(issubclass(kind, types) for kind in passed.kinds)
        remaining = iter(events)
        moment.begin(epoch, remaining, len(events), where)
        ticks: Any = repeat(None)
        if self.ticking:
            nows = epoch.nows()
            plain = isinstance(where, range) and len(where) == len(nows)
            ticks = nows if plain else [nows[w if type(w) is int else path_of(w)[0]] for w in where]
        out, kept, skipped, branches = passed.events.append, passed.where.append, 0, 0
        try:
            if self._batch:
                results = self._run_batch(events, types, mixed)
                handle = iter(results).__next__
                handle = _ignoring_argument(handle)
            # The innermost loop of all.
            for clock.now, w, event in zip(ticks, where, remaining):  # noqa: B905  # repeat() has no end
                if mixed and not isinstance(event, types):
                    skipped += 1
                    out(event)
                    kept(w)
                    continue
                result = handle(event)
                if result is event:
                    out(result)
                    kept(w)
                elif result is not None:
                    results, branched = expand(result, event, self.name)
                    passed.extend(results, branched, w)
                    branches += len(results) - 1 if results else 0
        except KeyboardInterrupt:
            raise
        except CAUGHT:
            return moment.index() if not self._batch else 0
        passed.emitted = [(name, event, where[i]) for name, event, i in moment.emitted]
        passed.logged = moment.logged
        tally = passed.tally
        tally.events = len(events) - skipped
        tally.passed = len(passed.events) - skipped
        tally.dropped = tally.events - (tally.passed - branches)
        tally.counts = moment.counts
        return None

    def _run_batch(self, events: list[Any], types: tuple[type, ...], mixed: bool) -> list[Any]:
        return batch_results(self.task, [e for e in events if isinstance(e, types)] if mixed else events)

    def _run_carefully(self, epoch: Epoch, events: list[Any], where: Any, start: int, passed: Passed) -> None:
        """Call by call from `start` on, over the deltas settled so far."""
        step, nows, tally = self._enter_careful(), epoch.nows(), passed.tally
        keyed = hasattr(type(self.given), "keys")
        for i in range(start, len(events)):
            event, w = events[i], where[i]
            if self.types and not isinstance(event, self.types):
                passed.events.append(event)
                passed.where.append(w)
                continue
            path = path_of(w)
            tally.events += 1
            try:
                self.obey_verdict(event, epoch.first + path[0], path[1:])
                allowed = keys_of(step.task, event) if keyed else None
                results, branched = step.call(event, epoch.first + path[0], nows[path[0]], path[1:], allowed)
            except KeyboardInterrupt:
                raise
            except CAUGHT as error:
                self.failed(epoch, event, w, error, passed)
                continue
            tally.error_streak = 0
            tally.add(step.moment.counts)
            tally.passed += len(results)
            tally.dropped += not results
            passed.extend(results, branched, w)
            passed.emitted += [(name, emitted, w) for name, emitted in step.moment.emitted]
            passed.logged += step.moment.logged
        self.values_after = dict(step.values.rests)

    def failed(self, epoch: Epoch, event: Any, where: Where, error: BaseException, passed: Passed) -> None:
        """Note what becomes of an event at which the task failed; raises `Cut` where the app must stop."""
        index = path_of(where)[0]
        if isinstance(error, TaskError) or self.on_error == "stop":
            raise Cut(index, self.given, event, error, passed) from error
        passed.tally.errors += 1
        passed.tally.error_streak += 1
        if self.on_error == "pass":
            if event.__class__ is Firing:
                return  # it was no event, so none goes on
            passed.events.append(event)
            passed.where.append(where)
            passed.kinds.add(event.__class__)
            return
        letter = DeadLetter(epoch.first + index, self.name, error_text(error), trace_text(error), event)
        passed.letters.append((where, letter))

    def _enter_careful(self) -> Step:
        step = self._bound()
        if self._entered == "careful":
            return step
        self._entered = "careful"
        for name, table in step.tables.items():
            table._cells = Layered(self.tables[name], self.deltas[name])
        step.values.clear()
        step.values.rests = dict(self.values_after)
        moment: Moment = step.moment
        outputs = {n: Output[Any](s, moment.emit) for n, s in type(self.task)._shape.outputs.items()}
        attach(self.task, _moment=moment, _values=step.values, **outputs)
        attach_state(self.task, step.tables, moment, step.timing, self._on_set)
        return step

    # ---- timers: `timed.Timed` says when they fire

    @property
    def agenda(self) -> Agenda:
        """What is pending of the task's timers."""
        if self._agenda is None:
            self._agenda = Agenda(self.timers, self.tables)
        return self._agenda

    @property
    def _on_set(self) -> dict[str, Any] | None:
        return self.agenda.on_set if self.timers else None

    @property
    def timing(self) -> Timing:
        return self._bound().timing

    def begin_schedules(self, now: float) -> None:
        """Let the schedules that have no next moment yet count from now."""
        self.agenda.begin(self._pending, now)

    def first_due(self, depth: int) -> Pending | None:
        """The task's timer that fires next; None where none is pending."""
        return self.agenda.first(self._pending, depth)

    def earliest(self) -> float | None:
        """When the task's first timer fires, between two epochs; None where none is pending."""
        due = self.agenda.first(self.tables, 0) if self.timers else None
        return None if due is None else due.time

    def pass_through(self, epoch: Epoch, events: list[Any], where: list[Where], kinds: set[type]) -> Passed:
        """As `feed`, for an epoch that is run again as a whole where something in it is not as it should be."""
        began = time.perf_counter()
        passed = Passed(set(kinds))
        self.came(events)
        if self._is_careful:
            self._run_carefully(epoch, events, where, 0, passed)
        elif self._condemned(epoch) or self._run_fast(epoch, events, where, passed) is not None:
            raise Again
        self.busy_s += time.perf_counter() - began
        return passed

    def fire(self, epoch: Epoch, due: Pending, where: Where, *, again: bool = False) -> Passed:
        """Call a timer's method; what was pending is gone whatever comes of it. `again`: its dead letter was sent."""
        began = time.perf_counter()
        passed = Passed(set())
        tally = passed.tally
        tally.fired = 1
        if not self._is_careful and self._condemned(epoch):
            raise Again
        if not again:
            self.agenda.take(due, self._pending[due.name])
        if self._is_careful:
            step = self._enter_careful()
            path, now = path_of(where), epoch.nows()[0]
            position, event = epoch.first + path[0], Firing.of(due.name, due.key, due.time)
            try:
                self.obey_verdict(event, position, path[1:])
                results, branched = step.fire(due.name, due.key, position, now, path[1:])
            except KeyboardInterrupt:
                raise
            except CAUGHT as error:
                self.failed(epoch, event, where, error, passed)
                return passed
            finally:
                self.values_after = dict(step.values.rests)
            moment: Any = step.moment
            passed.emitted = [(name, emitted, where) for name, emitted in moment.emitted]
        else:
            results, branched = self._fire_fast(epoch, due, where)
            moment = self._moment
            if moment.emitted:
                passed.emitted = [(name, emitted, where) for name, emitted, _ in moment.emitted]
        if moment.counts:
            tally.add(moment.counts)
        tally.passed = len(results)
        passed.logged = moment.logged
        passed.extend(results, branched, where)
        self.busy_s += time.perf_counter() - began
        return passed

    def _fire_fast(self, epoch: Epoch, due: Pending, where: Where) -> tuple[list[Any], bool]:
        self._enter_fast()
        one = iter((None,))
        next(one)
        self._moment.begin(epoch, one, 1, [where])
        self._clock.now = epoch.nows()[0]
        self.timing.firing = True
        try:
            return expand(self.timers[due.name].call(self.task, due.key), MISSING, self.name, due.name)
        except KeyboardInterrupt:
            raise
        except CAUGHT:
            raise Again from None
        finally:
            self.timing.firing = False

    # ---- the end of an epoch

    def _rollback(self) -> None:
        for overlay in self._overlays.values():
            overlay.rollback()
        self._live.clear()

    def _settle(self) -> bool:
        """Turn overlays into deltas; gives False, with everything rolled back, where one is suspect."""
        try:
            deltas = {n: o.settle() for n, o in self._overlays.items()}
            for delta in deltas.values():
                pack(list(delta.changed.values()))
                pack(list(delta.changed))
            self._live.check()
            self._live.keep()
        except (Suspect, TaskFault, TypeError, ValueError, OverflowError):
            self._rollback()
            return False
        self.deltas = deltas
        self.values_after = dict(self._live.rests)
        return True

    def changes(self, now: float) -> tuple[dict[str, Delta], dict[str, bytes]]:
        """What the epoch changed: deltas by table, and resting values by name."""
        for name, limit in self._swept.items():
            if len(self.tables[name]) > limit:
                self._sweep(name, now)
        changed = {n: v for n, v in self.values_after.items() if self.values.get(n) != v}
        return {n: d for n, d in self.deltas.items() if d}, changed

    def _sweep(self, name: str, now: float) -> None:
        """Reclaim expired cells; they have been invisible since they expired."""
        delta, ttl_s, cells = self.deltas[name], self.ttl_s[name], self.tables[name]
        assert ttl_s is not None
        expired = {k for k, entry in cells.items() if now - entry[1] >= ttl_s and k not in delta.changed}
        delta.gone |= expired
        self._swept[name] = 2 * (len(cells) - len(expired)) + 1024

    def apply(self) -> None:
        """The epoch is committed: the store has brought `tables` up to date, the base of the next one."""
        self.values.update(self.values_after)
        self._live.rests = dict(self.values)
        self._rollback()
        if self._agenda is not None:
            self._agenda.settle(self.tables)

    def discard(self) -> None:
        """Forget an epoch that is not committed."""
        self.home = None
        self._live.rests = dict(self.values)
        self._rollback()
        if self._agenda is not None:
            self._agenda.restore()


def _ignoring_argument(following: Any) -> Any:
    def handle(_: Any) -> Any:
        return following()

    return handle
