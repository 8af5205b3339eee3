"""An epoch on its way through hub and workers at once: a lane for each task, bundles in flight on all of them.

    give        events come into a lane in order, from the source or from the lane before
    send        nodes that wait for nothing go out in bundles: two to each worker, so that none is ever idle
    receive     answers come back in any order; changed cells join the epoch's delta at once
    release     what is done up to the first gap leaves the lane, in order, into the next

So a task sees its events in the order of the plain loop where order can matter, and every lane works while the
others do. An inline lane runs slices of what has come, between two looks at the workers.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from secondpass.codec import pack
from secondpass.engine.bundle import (
    DROPPED,
    KEPT,
    KEYED,
    MORE,
    PASSED,
    WHOLE,
    Answer,
    More,
    decode_answer,
    decode_events,
    encode_events,
    encode_keys,
)
from secondpass.engine.crew import Crew, Flight
from secondpass.engine.epoch import Epoch, Where, path_of
from secondpass.engine.executor import BETWEEN, DECODING, SETTING_UP, Death, Done, Lost
from secondpass.engine.placement import Gauge, serial
from secondpass.engine.quarantine import Place, cause
from secondpass.engine.schedule import Schedule, Sent
from secondpass.engine.stage import Cut, Passed, Stage
from secondpass.engine.summary import merge_tally
from secondpass.errors import InternalError, SetupFailed, TaskFault, WorkerLost
from secondpass.record import Told, Verdict, event_crc
from secondpass.reference import Tally
from secondpass.state import MISSING
from secondpass.store.format import CellCodec
from secondpass.task import keys_of

BUNDLE_S, BUNDLE_MANY_S = 0.008, 0.004
"""A bundle takes about this long: long beside the way there and back (0.1 ms of the hub), short beside an epoch.

Many workers share an epoch's width, and shorter bundles spread it better (`benchmarks/simulate_workers.py`).
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

    def __init__(self, stage: Stage, gauge: Gauge, number: int, epoch: Epoch) -> None:
        super().__init__(stage, gauge)
        self.number = number
        self._epoch = epoch
        self._nows = epoch.nows()
        self.order = Schedule()
        self._events: list[Any] = []
        self._where: list[Where] = []
        self._became: list[Any] = []
        self._slots: list[int] = []  # of a node: the index of its event
        self._next = 0
        self.singly = False
        self._suspended: set[int] = set()
        shape = type(stage.given)._shape
        self._stateful = shape.stateful
        self._serial = serial(stage.given)
        self._plain_keys = all(spec.key.scalar for spec in shape.tables.values())
        self._keyed = self._stateful and not self._serial
        self.batches = hasattr(type(stage.given), "handle_batch")
        self.limit_s = stage.given._options.limit_s
        self.copies = stage.given._options.copies
        stage.begin_elsewhere()
        self._codecs = {n: CellCodec.of(spec) for n, spec in stage.specs.items()}

    # ---- give

    def give(self, events: list[Any], where: Any, kinds: set[type]) -> None:
        stage, slots = self.stage, self._slots
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
        bundle_s = BUNDLE_MANY_S if workers > MANY else BUNDLE_S
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

    def message(self, sent: Sent, number: int, worker: int, behind: Sent | None) -> bytes:
        """A bundle as bytes: its events, and the cells that its worker does not have already."""
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
        values: dict[str, bytes] = {}
        mode = KEYED
        if sent.whole:
            mode = KEPT if self.stage.home == worker else WHOLE
            self.stage.home = worker
            if mode == WHOLE:
                cells, values = self._all_cells(), dict(self.stage.values_after)
        elif self._stateful:
            found: Any = [self.order.keys[node] for node in sent.nodes]
            keys = encode_keys(found, plain=self._plain_keys)
            wanted = frozenset[Any]().union(*found)
            if behind is not None and inherits:
                there: Any = [self.order.keys[node] for node in behind.nodes]
                wanted = wanted.difference(*there)
            cells = self._cells(wanted)
        return pack(
            (
                number,
                self.number,
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
            found[name] = (own, entries)
        return found

    def _all_cells(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, base in self.stage.tables.items():
            delta = self.stage.deltas[name]
            cells = {k: e for k, e in base.items() if k not in delta.gone} | delta.changed
            found[name] = (list(cells), list(cells.values()))
        return found

    # ---- receive

    def receive(self, sent: Sent, answer: Answer) -> None:
        """Take what came of a bundle."""
        became, slots, more = self._became, self._slots, iter(answer.more)
        for node, what in zip(sent.nodes, answer.became, strict=True):
            became[slots[node]] = next(more) if what == MORE else what
        stage = self.stage
        for name, (keys, entries, gone) in answer.cells.items():
            codec, delta, base = self._codecs[name], stage.deltas[name], stage.tables[name]
            changed = codec.keys(keys)
            delta.changed.update(zip(changed, codec.entries(entries), strict=True))
            if delta.gone:
                delta.gone.difference_update(changed)
            for key in codec.keys(gone):
                delta.changed.pop(key, None)
                if key in base:
                    delta.gone.add(key)
        if answer.values:
            stage.values_after = {**stage.values_after, **answer.values}
        if not sent.whole:
            stage.home = None  # whoever had all cells has them no more as they are
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
                    self._release(what, event, w, passed)
                    continue
                tally.events += 1
                tally.error_streak = 0
        finally:
            self._next = at
            self.parts.append(passed)
        return passed

    def _release(self, what: More | Verdict | WorkerLost, event: Any, where: Where, passed: Passed) -> None:
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
        results = [event] if what.itself else [] if what.results is None else decode_events(what.results)
        tally = passed.tally
        tally.error_streak = 0
        tally.add(what.counts)
        tally.passed += len(results)
        tally.dropped += not results
        passed.extend(results, what.branched, where)
        for stream, encoded in what.emitted:
            passed.emitted += [(stream, emitted, where) for emitted in decode_events(encoded)]
        passed.logged += [
            logging.LogRecord(name, level, "", 0, text, None, None) for name, level, text in what.logged
        ]


class Flow:
    """All lanes of an epoch, and the workers."""

    def __init__(self, lanes: list[InlineLane | WorkerLane], crew: Crew) -> None:
        self.lanes = lanes
        self._crew = crew
        self._remote = [lane for lane in lanes if isinstance(lane, WorkerLane)]

    def run(self, events: list[Any], where: Any, kinds: set[type]) -> None:
        """Bring an epoch's events through all lanes; raises `Cut` where the app must stop."""
        self.lanes[0].give(events, where, kinds)
        self.lanes[0].close()
        stop: Cut | None = None
        first = 0  # the lanes before it are given up: what they would still do is after the stop
        while not self.lanes[-1].ended:
            self._send()
            moved = False
            for i in range(first, len(self.lanes)):
                try:
                    moved |= self._step(i)
                except Cut as cut:
                    # The tasks behind it may stop the app earlier, at what it passed on before.
                    stop, first = cut, i + 1
                    if first == len(self.lanes):
                        raise
                    self._hand_on(i, cut.passed)
                    self.lanes[first].close()
                    self._remote = [lane for lane in self._remote if lane in self.lanes[first:]]
                    moved = True
            if not moved or self._remote:
                self._receive(wait=not moved)
        if stop is not None:
            raise stop

    def _step(self, i: int) -> bool:
        lane = self.lanes[i]
        was_ended = lane.ended
        passed = lane.step()
        if passed is not None:
            self._hand_on(i, passed)
        if lane.ended and not was_ended and i + 1 < len(self.lanes):
            self.lanes[i + 1].close()
        return passed is not None or lane.ended is not was_ended

    def _hand_on(self, i: int, passed: Passed) -> None:
        if i + 1 < len(self.lanes):
            self.lanes[i + 1].give(passed.events, passed.where, passed.kinds)

    # ---- workers

    def _send(self) -> None:
        """Give every worker something to do, and something to do next."""
        crew = self._crew
        for worker in crew.by_load(0):
            for lane in reversed(self._remote):
                if lane.may_go_to(worker) and self._send_from(lane, worker, 0):
                    break
        trials = [lane for lane in self._remote if lane.trial(take=False) is not None]
        for worker in crew.by_load(1):
            if trials and any(lane.may_go_to(worker) for lane in trials):
                trials = []  # it is kept free: a trial begins when it has nothing in hand
                continue
            for lane in reversed(self._remote):
                if not lane.dear and lane.may_go_to(worker) and self._send_from(lane, worker, 1):
                    break

    def _send_from(self, lane: WorkerLane, worker: int, depth: int) -> bool:
        crew = self._crew
        if depth == 0 and (node := lane.trial(take=True)) is not None:
            sent = lane.order.take_one(node)
            crew.renew(worker)
            self._forget_home(worker)
            self._submit(lane, worker, sent, None, alone=True)
            return True
        behind = crew.last(worker, lane)
        if crew.alone(worker):
            return False
        if not lane.order.ready() and behind is None:
            return False
        sent = lane.order.take(lane.size(crew.size), behind)
        if sent is None:
            return False
        self._submit(lane, worker, sent, behind, alone=False)
        return True

    def _submit(self, lane: WorkerLane, worker: int, sent: Sent, behind: Sent | None, *, alone: bool) -> None:
        number = self._crew.next_number()
        message = lane.message(sent, number, worker, behind)
        lane.gauge.bytes += len(message)
        self._crew.submit(worker, Flight(number, lane, sent, alone), message, lane.limit_of(sent))

    def _receive(self, *, wait: bool) -> None:
        if wait and not self._crew.flying:
            raise InternalError("the schedule stands still: events wait, and none of them runs")
        for event in self._crew.wait(None if wait else 0.0):
            if isinstance(event, Done):
                answer = decode_answer(event.answer)
                flight = self._crew.landed(event.worker, answer.number)
                if flight is None:
                    continue  # of an epoch that was given up
                lane: WorkerLane = flight.lane
                lane.gauge.bytes += len(event.answer)
                if answer.setup_error is not None:
                    text, trace = answer.setup_error
                    raise SetupFailed(
                        f"task {lane.stage.name}: setup() failed on a worker: {text}\n{trace}".rstrip(),
                        task=lane.stage.name,
                    )
                self._crew.set_up(lane.stage.name)
                if lane not in self._remote:
                    continue
                if flight.alone:
                    self._crew.quarantine.survived(lane.place_of(flight.sent.nodes[0]))
                lane.receive(flight.sent, answer)
            else:
                self._lost(event)

    def _lost(self, lost: Lost) -> None:
        """A worker is gone: its bundles wait again, and the event at which it died is suspect."""
        death, explained = lost.death, False
        self._forget_home(lost.worker)
        for flight in self._crew.crashed(lost.worker):
            lane: WorkerLane = flight.lane
            if lane not in self._remote:
                continue  # given up: what it would still do is after the stop
            lane.lose(flight.sent)
            if death.bundle == flight.number and death.event != BETWEEN:
                explained = True
                self._look_into(lane, flight, death)
            elif flight.alone:
                lane.suspend(flight.sent.nodes[0])
        if not explained:
            self._crew.unexplained(death)

    def _forget_home(self, worker: int) -> None:
        """The process of a worker is another one now: it has no task's cells."""
        for lane in self.lanes:
            if lane.stage.home == worker:
                lane.stage.home = None

    def _look_into(self, lane: WorkerLane, flight: Flight, death: Death) -> None:
        quarantine, name = self._crew.quarantine, lane.stage.name
        if death.event == SETTING_UP:
            if flight.alone:
                lane.suspend(flight.sent.nodes[0])
            if death.own or self._crew.setups_lost(name):
                raise SetupFailed(
                    f"task {name}: setup() ended its worker: {cause(death)}\n{death.stack}".rstrip(),
                    task=name,
                )
            return
        sent = flight.sent.nodes
        if not flight.alone:
            at = sent if death.event == DECODING else [sent[death.event]]
            if lane.batches and not lane.singly and len(sent) > 1:
                if death.own or quarantine.killed_at(lane.place_of(at[0])):
                    lane.singly = True  # which of the batch it was shows when they run one by one
                return
            for node in at:
                place = lane.place_of(node)
                if death.own or quarantine.killed_at(place):
                    quarantine.suspect(place)
                    lane.suspend(node)
            return
        (node,) = sent
        place = lane.place_of(node)
        verdict = quarantine.died(place, death)
        if verdict is None:
            if quarantine.hopeless(place):
                lane.give_up(
                    node,
                    WorkerLost(
                        f"whenever this event runs, its worker is ended from outside ({death.how}); find out who does "
                        f"that, then run again: the event is next"
                    ),
                )
                return
            lane.suspend(node)
            return
        verdict = verdict._replace(crc=event_crc(lane.event_of(node)))
        self._crew.record(verdict)
        lane.stage.verdicts[verdict.position, verdict.path] = verdict
        lane.give_up(node, verdict)


def tally_of(parts: list[Passed]) -> Tally:
    """The tally of an epoch from those of its parts."""
    total = Tally()
    for part in parts:
        merge_tally(total, part.tally)
    return total
