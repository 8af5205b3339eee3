"""An epoch of a chain that has timers: its records one by one, or many at once where nothing can become due.

    at each record      what is due fires, each firing's events flow on through the chain before the next one fires;
                        then the record's own event goes through; then fires what was set for a time that had come
    quiet stretch       the records before the first one whose time reaches what is pending: nothing fires among them,
                        so each task runs over all of them at once, as where there are no timers

A stretch is no longer than timers have lately been set ahead. Where a call in it sets one all the same that would have
fired within it, that is seen at its end: `Soon`, and the epoch is run again, its records one by one.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from itertools import count
from typing import Any

from secondpass.due import Pending
from secondpass.engine.epoch import Epoch, Where
from secondpass.engine.stage import Cut, Passed, Stage
from secondpass.engine.summary import merge_tally
from secondpass.record import Firing
from secondpass.reference import Tally

Parts = list[tuple[int, Passed]]
"""By depth: what the tasks put out."""


class Always:
    """The stream's time at each record of an epoch, where one time holds for all: that of the timer that fires."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __getitem__(self, _: int) -> float:
        return self.now

    def __len__(self) -> int:
        return 0


class Soon(Exception):
    """A timer was set that should have fired among the records that were run at once."""


class Timed:
    """One epoch's way through the chain; raises `Cut` where the app must stop, `Again`, and `Soon`.

    `lead_s` is how far ahead of the stream's time timers are set, as far as is known; with 0 each record is run by itself.
    """

    def __init__(self, stages: list[Stage], epoch: Epoch, first_depth: int, lead_s: float) -> None:
        self._stages = [(depth, stage) for depth, stage in enumerate(stages) if not stage.stopped]
        self._clocked = [(depth, stage) for depth, stage in self._stages if stage.timers]
        self._epoch = epoch
        self._first_depth = first_depth
        self._lead_s = lead_s
        self.lead_seen_s = math.inf
        """How far ahead they were set in this epoch; it is known only where each record was run by itself (`singly`)."""
        self.singly = True
        self._nows = epoch.nows()
        self._now = epoch.now
        # The same epoch, at the time of the timer that fires.
        self._always = Always()
        self._firing = copy.copy(epoch)
        self._firing._nows = self._always  # type: ignore[assignment]  # it is asked for single times only
        self.tallies: dict[int, Tally] = {depth: Tally() for depth, _ in self._stages}
        self.atoms: list[tuple[int, int, Parts]] = []
        """What was put out beside the chain's own stream, in parts that follow each other in the plain loop's order: the
        records that were run, as begin and end, or a firing at one."""
        self.events: list[Any] = []
        self.where: list[Where] = []
        """The chain's own stream."""
        self._numbers = count()

    def run(self, careful: bool) -> None:
        epoch, nows = self._epoch, self._nows
        for _, stage in self._stages:
            stage.begin(epoch.count, careful)
        index = 0
        while index < epoch.count:
            self._numbers = count()
            for _, stage in self._clocked:
                stage.timing.past = 0
            end = index + 1
            if self._moves_time(index):
                for _, stage in self._clocked:
                    stage.begin_schedules(nows[index])
                self._fire_due(nows[index], index)
                self._now = nows[index]
                end = self._end_of_stretch(index)
            self._run_events(index, end)
            self._now = nows[end - 1]
            self._fire_due(self._now, end - 1)
            index = end
        for _, stage in self._stages:
            stage.end()

    def _moves_time(self, index: int) -> bool:
        return index not in self._epoch.refused and self._epoch.retry is None

    def _end_of_stretch(self, index: int) -> int:
        """The first record that may not be run together with this one."""
        if self._lead_s <= 0.0:
            return index + 1
        until = self._nows[index] + self._lead_s
        for depth, stage in self._clocked:
            due = stage.first_due(depth)
            if due is not None and due.time < until:
                until = due.time
        return bisect_left(self._nows, until, index + 1)

    def _run_events(self, begin: int, end: int) -> None:
        """Let the events of some records go through the chain."""
        epoch, parts = self._epoch, Parts()
        a, b = bisect_left(epoch.origin, begin), bisect_left(epoch.origin, end)
        if a < b and epoch.retry is not None and isinstance(epoch.events[0], Firing):
            firing: Firing = epoch.events[0]
            ((_, stage),) = [found for found in self._stages if found[0] == self._first_depth]
            key = stage.timers[firing.timer].wake(firing.key)
            due = Pending(firing.time, self._first_depth, firing.timer, None, key)
            passed = stage.fire(epoch, due, begin, again=True)
            self._note(self._first_depth, passed, parts)
            self._flow(passed, self._first_depth + 1, epoch, parts)
        elif a < b:
            came = Passed(epoch.kinds)
            came.events, came.where = epoch.events[a:b], list(epoch.origin[a:b])
            for _, stage in self._clocked:
                stage.agenda.forget_sets()
            self._flow(came, self._first_depth, epoch, parts)
            self._look_ahead(begin, end)
        if parts or epoch.refused:
            self.atoms.append((begin, end, parts))

    def _look_ahead(self, begin: int, end: int) -> None:
        """See how far ahead timers were set; raises `Soon` where one should have fired among these records."""
        earliest = min(stage.agenda.earliest_set for _, stage in self._clocked)
        if end - begin == 1:
            self.lead_seen_s = min(self.lead_seen_s, earliest - self._nows[begin])
            return
        self.singly = False
        if earliest <= self._nows[end - 1]:
            raise Soon

    def _flow(self, passed: Passed, first_depth: int, epoch: Epoch, parts: Parts) -> None:
        """Let what came out of a task, or of the sources, go through the tasks from a depth on."""
        stop: Cut | None = None
        for depth, stage in self._stages:
            if depth < first_depth:
                continue
            if not passed.events:
                break
            try:
                passed = stage.pass_through(epoch, passed.events, passed.where, passed.kinds)
            except Cut as cut:
                # The tasks behind it may stop the app earlier, at what it passed on before.
                stop, passed = cut, cut.passed
            self._note(depth, passed, parts)
        if stop is not None:
            raise stop
        self.events += passed.events
        self.where += passed.where

    def _note(self, depth: int, passed: Passed, parts: Parts) -> None:
        merge_tally(self.tallies[depth], passed.tally)
        if passed.emitted or passed.letters or passed.logged:
            parts.append((depth, passed))

    # ---- timers

    def _fire_due(self, until: float, index: int) -> None:
        """Fire what is due at a time, one after the other; what they put out flows on before the next one fires."""
        while True:
            first: tuple[Pending, Stage] | None = None
            for depth, stage in self._clocked:
                due = stage.first_due(depth)
                if due is not None and (first is None or due.time < first[0].time):
                    first = due, stage
            if first is None or first[0].time > until:
                return
            due, stage = first
            self._now = self._always.now = max(self._now, due.time) + 0.0
            parts = Parts()
            passed = stage.fire(self._firing, due, (index, -1 - next(self._numbers)))
            self._note(due.depth, passed, parts)
            self._flow(passed, due.depth + 1, self._firing, parts)
            if parts:
                self.atoms.append((index, index, parts))
