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
from typing import Any

from secondpass.engine.bundle import decode_answer
from secondpass.engine.crew import Crew, Flight, setup_ended, setup_failed
from secondpass.engine.executor import BETWEEN, DECODING, SETTING_UP, Death, Done, Lost
from secondpass.engine.lanes import InlineLane, WorkerLane
from secondpass.engine.quarantine import never_left_alone
from secondpass.engine.schedule import Sent
from secondpass.engine.stage import Cut, Passed
from secondpass.errors import InternalError
from secondpass.record import event_crc

LINGERS_S = 15.0
"""When no worker has answered for so long, somebody looks at which events they are."""


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
        lane.gauge.bytes += message.size
        self._crew.submit(worker, Flight(number, lane, sent, alone), message, lane.limit_of(sent))

    def _receive(self, *, wait: bool) -> None:
        if wait and not self._crew.flying:
            raise InternalError("the schedule stands still: events wait, and none of them runs")
        found = self._crew.wait(LINGERS_S if wait else 0.0)
        if wait and not found:
            self._tell_of_lingering()
        for event in found:
            if isinstance(event, Done):
                answer = decode_answer(event.answer.body)
                flight = self._crew.landed(event.worker, answer.number)
                if flight is None:
                    continue  # of an epoch that was given up
                lane: WorkerLane = flight.lane
                lane.gauge.bytes += event.answer.size
                if answer.setup_error is not None:
                    raise setup_failed(lane.stage.name, *answer.setup_error)
                self._crew.set_up(lane.stage.name)
                if lane not in self._remote:
                    continue
                if flight.alone:
                    self._crew.quarantine.survived(lane.place_of(flight.sent.nodes[0]))
                lane.receive(flight.sent, answer, event.answer.beside)
            else:
                self._lost(event)

    def _tell_of_lingering(self) -> None:
        """Say for which event everything waits: now, and when it has taken twice as long, and so on."""
        for flight, index, looks in self._crew.lingering():
            lane: WorkerLane = flight.lane
            position, name, _ = lane.place_of(flight.sent.nodes[index])
            if lane.limit_s is None and looks >= 2 * self._crew.told.get(name, 0):
                self._crew.told[name] = looks
                logging.getLogger("secondpass").warning(
                    "%s has been at the %s at position %d for more than %g s, and what comes behind waits; "
                    ".options(limit_s=...) bounds the time of an event",
                    name,
                    "batch with the event" if lane.batches and not lane.singly else "event",
                    position,
                    looks * LINGERS_S,
                )

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
                raise setup_ended(name, death)
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
                lane.give_up(node, never_left_alone(death))
                return
            lane.suspend(node)
            return
        verdict = verdict._replace(crc=event_crc(lane.event_of(node)))
        self._crew.record(verdict)
        lane.stage.verdicts[verdict.position, verdict.path] = verdict
        lane.give_up(node, verdict)
