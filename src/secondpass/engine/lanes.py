"""The lanes of an epoch: one task each, run here in slices or on workers in bundles.

    give        events come into a lane in order, from the source or from the lane before
    step        what is done up to the first gap leaves the lane, in order, into the next

A lane on workers keeps the dependency order of its events, makes their bundles, and takes what came of them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from secondpass.calls import keys_of
from secondpass.engine.bundle import (
    DROPPED,
    KEPT,
    KEYED,
    MORE,
    PASSED,
    WHOLE,
    Answer,
    Beside,
    More,
    decode_events,
    encode_events,
    encode_keys,
    entries_of,
    lay_beside,
    parcel,
    values_beside,
    values_of,
)
from secondpass.engine.epoch import Epoch, Where, path_of
from secondpass.engine.executor import Parcel
from secondpass.engine.placement import Gauge, serial
from secondpass.engine.quarantine import Place
from secondpass.engine.schedule import Schedule, Sent
from secondpass.engine.stage import Cut, Passed, Stage
from secondpass.errors import TaskFault, WorkerLost
from secondpass.record import Told, Verdict
from secondpass.state import MISSING
from secondpass.store.format import CellCodec

BUNDLE_S, BUNDLE_MANY_S, BUNDLE_FREE_S = 0.008, 0.004, 0.04
"""A bundle takes about this long: long beside the way there and back (0.2 ms of the hub), short beside an epoch.

Many workers share an epoch's width, and shorter bundles spread it better (`benchmarks/simulate_workers.py`). One of a
task without state may be longer: none of its events makes another wait.
"""
MANY = 4
BUNDLE_BYTES = 16 * 1024 * 1024
"""And has about so many bytes at most."""
BATCH = 32
"""A task with `handle_batch` gets so many events at least, where there are as many."""
DEAR_S = 0.02
"""Of longer events a worker has one in hand: at the end of an epoch a second one would wait while others are idle."""
SLICE_S = 0.002
"""An inline lane works so long before the hub looks at its workers again."""
_UNKNOWN_S = 0.001  # the cost of an event before one was measured
_FREE: frozenset[Any] = frozenset()


class Lane:
    """One task's part of an epoch."""

    def __init__(self, stage: Stage, gauge: Gauge) -> None:
        self.stage = stage
        self.gauge = gauge
        self.parts: list[Passed] = []
        """All that came out, in order."""
        self.closed = False
        """No more events come."""
        self.ended = False

    def close(self) -> None:
        self.closed = True


class InlineLane(Lane):
    """A task that runs in the hub, a slice at a time."""

    def __init__(self, stage: Stage, gauge: Gauge, epoch: Epoch, careful: bool) -> None:
        super().__init__(stage, gauge)
        self._epoch = epoch
        self._careful = careful
        self._waiting: deque[tuple[list[Any], Any, set[type]]] = deque()
        stage.begin(epoch.count, careful)

    def give(self, events: list[Any], where: Any, kinds: set[type]) -> None:
        if events:
            self._waiting.append((events, where, kinds))

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def step(self) -> Passed | None:
        """Run a slice of what has come; gives what it passed on."""
        if not self._waiting:
            if self.closed and not self.ended:
                self.stage.end()
                self.ended = True
            return None
        events, where, kinds = self._waiting.popleft()
        count = max(1, int(SLICE_S / (self.gauge.cost_s or _UNKNOWN_S)))
        if len(events) > count:
            self._waiting.appendleft((events[count:], where[count:], kinds))
            events, where = events[:count], where[:count]
        began = time.perf_counter()
        try:
            passed = self.stage.feed(self._epoch, events, where, kinds)
        except Cut as cut:
            self.parts.append(cut.passed)
            raise
        self.gauge.measured(len(events), time.perf_counter() - began, careful=self._careful)
        self.parts.append(passed)
        return passed


class WorkerLane(Lane):
    """A task whose events go to workers in bundles."""

    def __init__(self, stage: Stage, gauge: Gauge, epoch: Epoch) -> None:
        super().__init__(stage, gauge)
        self._epoch = epoch
        self._nows = epoch.nows()
        self.order = Schedule()
        self._events: list[Any] = []
        self._where: list[Where] = []
        self._became: list[Any] = []
        self._beside: dict[int, Beside] = {}  # by index: what large arrays of it came beside its answer
        self._slots: list[int] = []  # of a node: the index of its event
        self._next = 0
        self.singly = False
        self._suspended: set[int] = set()
        shape = type(stage.given)._shape
        self._stateful = shape.stateful
        self._serial = serial(stage.given)
        self._keyed = self._stateful and not self._serial
        self.batches = hasattr(type(stage.given), "handle_batch")
        self.limit_s = stage.given._options.limit_s
        self.copies = stage.given._options.copies
        stage.begin_elsewhere()
        self._codecs = {n: CellCodec.of(spec) for n, spec in stage.specs.items()}

    # ---- give

    def give(self, events: list[Any], where: Any, kinds: set[type]) -> None:
        stage, slots = self.stage, self._slots
        stage.came(events)
        first = len(self._events)
        self._events += events
        self._where += where
        self._became += [None] * len(events)
        keys: list[frozenset[Any] | None] = []
        plain = not stage.verdicts and (not stage.types or all(issubclass(k, stage.types) for k in kinds))
        # A task of few copies is set up on workers only, so its keys() does without.
        task = stage.task if self._keyed and self.copies is None else stage.given
        every = None if self._stateful else _FREE
        for slot, event in enumerate(events, first):
            if not plain and self._settled(slot, event):
                continue
            slots.append(slot)
            if self._keyed:
                try:
                    keys.append(keys_of(task, event))
                except TaskFault as fault:
                    slots.pop()
                    self._became[slot] = More(error=(True, str(fault), ""))
            else:
                keys.append(every)
        count = len(self.order)
        self.order.add(keys)
        self.gauge.shipped += len(keys)
        self.gauge.waited += sum(1 for node in range(count, len(self.order)) if self.order.waits_for(node))

    def _settled(self, slot: int, event: Any) -> bool:
        """Whether an event needs no call: it is of another type, or a verdict is about it."""
        stage = self.stage
        if stage.types and not isinstance(event, stage.types):
            self._became[slot] = PASSED
            return True
        path = path_of(self._where[slot])
        verdict = stage.verdict_on(event, self._epoch.first + path[0], path[1:])
        if verdict is not None:
            self._became[slot] = verdict
        return verdict is not None

    def event_of(self, node: int) -> Any:
        return self._events[self._slots[node]]

    def place_of(self, node: int) -> Place:
        path = path_of(self._where[self._slots[node]])
        return self._epoch.first + path[0], self.stage.name, path[1:]

    # ---- send

    def size(self, workers: int) -> int:
        """How many events the next bundle should have; smaller ones towards the end, so that all end together."""
        gauge = self.gauge
        bundle_s = BUNDLE_FREE_S if not self._stateful else BUNDLE_MANY_S if workers > MANY else BUNDLE_S
        wanted = round(bundle_s / (gauge.cost_s or _UNKNOWN_S))
        if self.batches:
            wanted = max(wanted, BATCH)  # it is faster with many, or would not be written so
        wanted = min(wanted, self.order.undone // (2 * workers))
        if gauge.bytes:
            wanted = min(wanted, BUNDLE_BYTES * gauge.shipped // gauge.bytes)
        return max(1, wanted)

    @property
    def dear(self) -> bool:
        """Whether an event takes so long that to wait for the next one does not count."""
        return (self.gauge.cost_s or 0.0) > DEAR_S

    def limit_of(self, sent: Sent) -> float | None:
        """The seconds that each call may take: one event's, or a whole batch's."""
        if self.limit_s is None or not self.batches or self.singly:
            return self.limit_s
        return self.limit_s * len(sent.nodes)

    def may_go_to(self, worker: int) -> bool:
        """Whether this worker may have this task."""
        return self.copies is None or worker < self.copies

    def message(self, sent: Sent, number: int, worker: int, behind: Sent | None) -> Parcel:
        """A bundle, ready to be sent: its events, and the cells that its worker does not have already."""
        slots = [self._slots[node] for node in sent.nodes]
        events = [self._events[s] for s in slots]
        places = [self._where[s] for s in slots]
        first, nows = self._epoch.first, self._nows
        indexes: Any = places
        paths: list[tuple[int, ...]] | None = None
        if any(p.__class__ is tuple for p in places):
            tuples = list(map(path_of, places))
            indexes, paths = [p[0] for p in tuples], [p[1:] for p in tuples]
        inherits = behind is not None and behind.whole is sent.whole and not sent.whole
        keys: Any = None
        cells: dict[str, Any] = {}
        values: dict[str, Any] = {}
        mode = KEYED
        if sent.whole:
            mode = KEPT if self.stage.home == worker else WHOLE
            self.stage.home = worker
            if mode == WHOLE:
                cells, values = self._all_cells(), values_beside(self.stage.values_after)
        elif self._stateful:
            found: Any = [self.order.keys[node] for node in sent.nodes]
            keys = encode_keys(found)
            wanted = frozenset[Any]().union(*found)
            if behind is not None and inherits:
                there: Any = [self.order.keys[node] for node in behind.nodes]
                wanted = wanted.difference(*there)
            cells = self._cells(wanted)
        return parcel(
            (
                number,
                self.stage.number,
                mode,
                inherits,
                self.singly,
                encode_events(events),
                [first + i for i in indexes],
                [nows[i] for i in indexes],
                paths,
                keys,
                cells,
                values,
            )
        )

    def _cells(self, keys: frozenset[Any]) -> dict[str, Any]:
        """The entries of some keys, as the epoch has left them."""
        stage = self.stage
        found: dict[str, Any] = {}
        for name, base in stage.tables.items():
            changed, gone, spec = stage.deltas[name].changed, stage.deltas[name].gone, stage.specs[name]
            kinds = spec.key.quick or ()
            own: list[Any] = []
            entries: list[Any] = []
            for key in keys:
                entry = changed.get(key, MISSING)
                if entry is MISSING:
                    if key in gone:
                        continue
                    entry = base.get(key, MISSING)
                    if entry is MISSING:
                        continue
                own.append(key if key.__class__ in kinds else spec.own_key(key, (*changed, *base)))
                entries.append(entry)
            found[name] = (own, lay_beside(entries, self._codecs[name]))
        return found

    def _all_cells(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, base in self.stage.tables.items():
            delta = self.stage.deltas[name]
            cells = {k: e for k, e in base.items() if k not in delta.gone} | delta.changed
            found[name] = (list(cells), lay_beside(list(cells.values()), self._codecs[name]))
        return found

    # ---- receive

    def receive(self, sent: Sent, answer: Answer, beside: Beside) -> None:
        """Take what came of a bundle."""
        became, slots, more = self._became, self._slots, iter(answer.more)
        for node, what in zip(sent.nodes, answer.became, strict=True):
            became[slots[node]] = next(more) if what == MORE else what
            if beside and what == MORE:
                self._beside[slots[node]] = beside
        stage = self.stage
        for name, (keys, entries, gone) in answer.cells.items():
            codec, delta, base = self._codecs[name], stage.deltas[name], stage.tables[name]
            changed = codec.keys(keys)
            delta.changed.update(zip(changed, _own(entries_of(entries, codec, beside), codec), strict=True))
            if delta.gone:
                delta.gone.difference_update(changed)
            for key in codec.keys(gone):
                delta.changed.pop(key, None)
                if key in base:
                    delta.gone.add(key)
        if answer.values:
            values = values_of(answer.values, beside)
            stage.values_after = {
                **stage.values_after,
                **{name: bytes(rest) for name, rest in values.items()},
            }
        if not sent.whole and any(map(self.order.keys.__getitem__, sent.nodes)):
            # Whoever had all cells has them no more as they are. (Events without keys touch none, and come home also
            # while those that have all are on their way.)
            stage.home = None
        self.order.done(sent.nodes)
        self.gauge.busy_s += answer.seconds
        stage.busy_s += answer.seconds
        self.gauge.measured(len(sent.nodes), answer.seconds)

    def lose(self, sent: Sent) -> None:
        """A bundle was lost with its worker: its events wait again."""
        self.order.put_back(sent.nodes)

    def suspend(self, node: int) -> None:
        """Keep an event for a trial of its own."""
        self.order.hold(node)
        self._suspended.add(node)

    def trial(self, *, take: bool) -> int | None:
        """An event to be tried now, alone; None when there is none."""
        for node in self._suspended:
            if not self.order.waits_for(node):
                if take:
                    self._suspended.discard(node)
                return node
        return None

    def give_up(self, node: int, why: Verdict | WorkerLost) -> None:
        """The event will not be run."""
        self._became[self._slots[node]] = why
        self.order.done([node])

    # ---- release

    def step(self) -> Passed | None:
        """What is done up to the first gap, in order; raises `Cut` where the app must stop."""
        became, at = self._became, self._next
        if at == len(became):
            if self.closed and not self.ended:
                self.ended = True
                if self._keyed and len(self.order):
                    self.gauge.looked(len(self.order) / self.order.height_max)
            return None
        if became[at] is None:
            return None
        passed = Passed(set())
        tally, kinds = passed.tally, passed.kinds
        events, where, types = self._events, self._where, self.stage.types
        end = len(became)
        try:
            while at < end and (what := became[at]) is not None:
                event, w = events[at], where[at]
                at += 1
                if what == PASSED:
                    passed.events.append(event)
                    passed.where.append(w)
                    kinds.add(event.__class__)
                    if types and not isinstance(event, types):
                        continue
                    tally.passed += 1
                elif what == DROPPED:
                    tally.dropped += 1
                else:
                    tally.events += 1
                    self._release(what, event, w, self._beside.pop(at - 1, ()), passed)
                    continue
                tally.events += 1
                tally.error_streak = 0
        finally:
            self._next = at
            self.parts.append(passed)
        return passed

    def _release(
        self, what: More | Verdict | WorkerLost, event: Any, where: Where, beside: Beside, passed: Passed
    ) -> None:
        """An event of which more came than passing or dropping it."""
        if isinstance(what, WorkerLost):
            self.stage.failed(self._epoch, event, where, what, passed)
            return
        if isinstance(what, Verdict):
            self.stage.failed(self._epoch, event, where, Told(what.error, what.traceback), passed)
            return
        if what.error is not None:
            fault, text, trace = what.error
            error = TaskFault(text) if fault else Told(text, trace)
            self.stage.failed(self._epoch, event, where, error, passed)
            return
        results = [event] if what.itself else []
        if what.results is not None:
            results = decode_events(what.results, beside)
        tally = passed.tally
        tally.error_streak = 0
        tally.add(what.counts)
        tally.passed += len(results)
        tally.dropped += not results
        passed.extend(results, what.branched, where)
        for stream, encoded in what.emitted:
            passed.emitted += [(stream, emitted, where) for emitted in decode_events(encoded, beside)]
        passed.logged += [
            logging.LogRecord(name, level, "", 0, text, None, None) for name, level, text in what.logged
        ]


def _own(entries: list[Any], codec: CellCodec) -> list[Any]:
    """Entries that came from a worker, off the message that they came with."""
    if not codec.objects:
        return entries
    if codec.ttl:
        return [(bytes(rest), written) for rest, written in entries]
    return list(map(bytes, entries))
