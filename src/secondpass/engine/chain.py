"""The chain over an epoch: each started task in turn, and the order of what it puts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from secondpass.app import LATE, MAIN, Streams, streams_of
from secondpass.change import Aside, Link
from secondpass.engine.crew import Crew
from secondpass.engine.epoch import Epoch, Outcome, Where, path_of
from secondpass.engine.flow import Flow
from secondpass.engine.lanes import InlineLane, WorkerLane
from secondpass.engine.placement import Placement
from secondpass.engine.stage import Again, Cut, Passed, Stage
from secondpass.engine.summary import merge_tally
from secondpass.engine.timed import Soon, Timed
from secondpass.lookups import Contents
from secondpass.record import INTAKE, DeadLetter, Late, Refused
from secondpass.reference import Tally

Parts = list[tuple[int, list[Passed]]]
"""By depth: what a stage put out, in parts, in order."""


class Chain:
    """The stages of an app, in order, and where they run."""

    def __init__(
        self,
        stages: list[Stage],
        crew: Crew | None = None,
        streams: Streams | None = None,
        lookups: Mapping[str, Contents[Any, Any]] | None = None,
    ) -> None:
        self.crew = crew
        self.warming = False
        """Whether tasks that should run on workers run here until those have started."""
        self.lookups: Mapping[str, Contents[Any, Any]] = lookups or {}
        """What the tasks look into."""
        self._streams = streams or {}
        self._lead_s = 0.0
        """How far ahead of the stream's time timers were set when that was last looked at."""
        self.put_aside: dict[str, Aside] = {}
        """The state of tasks that left, as far as it is in memory."""
        self.stages: list[Stage] = []
        self.placement = Placement((), 0)
        self.set_stages(stages)

    def set_stages(self, stages: list[Stage]) -> None:
        """These are the tasks from now on; what is known of their costs stays."""
        code = {type(stage.given) for stage in self.stages}
        known, isolated = self.placement.by_name(), self.placement.isolated
        before = {s.name: known[s.name] for s in stages if s.name in known and type(s.given) in code}
        self.stages, self.warming = stages, False
        self.writers = {**self._streams, **streams_of(stage.given for stage in stages)}
        size = 0 if self.crew is None else self.crew.size
        self.placement = Placement(tuple(s.given for s in stages), size, before)
        self.placement.isolated = isolated and self.crew is not None

    @property
    def has_timers(self) -> bool:
        """Whether a started task has timers, so that all run in this process."""
        return any(stage.timers and not stage.stopped for stage in self.stages)

    @property
    def links(self) -> list[Link]:
        """The chain as a command sees it."""
        return [Link(s.given, s.tables, s.values, stopped=s.stopped) for s in self.stages]

    def run(self, epoch: Epoch, careful: bool) -> Outcome:
        """Run every started task over the epoch, in chain order; raises `Cut` where the app must stop."""
        first_depth = 0
        if epoch.retry is not None and epoch.retry.task != INTAKE:
            first_depth = [s.name for s in self.stages].index(epoch.retry.task)
        started = [depth for depth in range(first_depth, len(self.stages)) if not self.stages[depth].stopped]
        if self.has_timers:
            return self._timed(epoch, first_depth, careful)
        chosen = self._places(epoch, started)
        places = [(depth, chosen[depth]) for depth in started]
        if any(place for _, place in places):
            try:
                parts, events, where = self._flow(epoch, places, careful)
            except (Again, Cut):
                if careful:
                    raise
                # Where the app is to stop, too: what a task before it has done wrong at the same event shows only so.
                self.discard()
                parts, events, where = self._flow(epoch, places, True)
        else:
            parts, events, where = self._in_turn(epoch, started, careful)
        outcome = Outcome()
        outcome.streams[MAIN] = (events, _indexes(where))
        self._add(outcome, epoch, parts)
        return outcome

    def _timed(self, epoch: Epoch, first_depth: int, careful: bool) -> Outcome:
        """All in this process, with the timers that become due."""
        self.placement.keep_inline("the chain has timers")
        before = [stage.busy_s for stage in self.stages]
        # Each way is right where the ones before it have to give up.
        ways = [(True, 0.0)] if careful else [(False, self._lead_s), (False, 0.0), (True, 0.0)]
        while True:
            careful, lead_s = ways.pop(0)
            timed = Timed(self.stages, epoch, first_depth, lead_s)
            try:
                timed.run(careful)
                break
            except Again:
                ways = [(True, 0.0)]
            except Soon:
                pass
            self.discard()
        if timed.singly:
            self._lead_s = max(timed.lead_seen_s, 0.0)
        outcome = Outcome()
        outcome.streams[MAIN] = (timed.events, _indexes(timed.where))
        for begin, end, parts in timed.atoms:
            refused = [i for i in range(begin, end) if i in epoch.refused] if epoch.refused else []
            self._put_out(outcome, epoch, [(depth, [passed]) for depth, passed in parts], refused)
        for depth, tally in timed.tallies.items():
            seconds = self.stages[depth].busy_s - before[depth]
            self.placement.gauges[depth].measured(tally.events + tally.fired, seconds, careful=careful)
        outcome.tallies = {self.stages[depth].name: tally for depth, tally in timed.tallies.items()}
        self._keep_changes(outcome, epoch, [stage for stage in self.stages if not stage.stopped])
        return outcome

    def warm_up(self) -> None:
        """Start workers where tasks should run on them and may run here meanwhile."""
        was_warming, self.warming = self.warming, False
        if self.crew is None or self.has_timers:
            return
        places = self.placement.wanted([i for i, stage in enumerate(self.stages) if not stage.stopped])
        if not any(places) or not self.placement.may_run_here(places):
            return
        if not self.crew.started:
            self.crew.warm_up(
                {s.number: s.given for s, place in zip(self.stages, places, strict=True) if place}
            )
        self.warming = not self.crew.warm()
        if was_warming:
            for stage in self.stages:
                stage.home = None  # a worker may have been lost meanwhile

    def _places(self, epoch: Epoch, started: list[int]) -> list[bool]:
        """For each stage: whether it runs on workers."""
        if epoch.dangerous and self.crew is not None:
            return [True] * len(self.stages)
        if self.warming:
            self.placement.keep_inline("the workers are starting")
            return [False] * len(self.stages)
        return self.placement.choose(started)

    def _in_turn(self, epoch: Epoch, started: list[int], careful: bool) -> tuple[Parts, list[Any], Any]:
        """All in this process, one task after the other."""
        end = Passed(epoch.kinds)
        end.events = epoch.events
        where: Any = epoch.origin
        parts: Parts = []
        stop: Cut | None = None
        for depth in started:
            stage = self.stages[depth]
            busy_s, events = stage.busy_s, len(end.events)
            try:
                end = stage.run(epoch, end.events, where, end.kinds, careful)
            except Cut as cut:
                # The tasks behind it may stop the app earlier, at what it passed on before.
                stop, end = cut, cut.passed
            where = end.where
            self.placement.gauges[depth].measured(events, stage.busy_s - busy_s, careful=careful)
            parts.append((depth, [end]))
        if stop is not None:
            raise stop
        return parts, end.events, where

    def _flow(
        self, epoch: Epoch, places: list[tuple[int, bool]], careful: bool
    ) -> tuple[Parts, list[Any], Any]:
        """Some in this process and some on workers, all at once."""
        assert self.crew is not None
        lanes: list[InlineLane | WorkerLane] = []
        for depth, place in places:
            stage, gauge = self.stages[depth], self.placement.gauges[depth]
            lanes.append(
                WorkerLane(stage, gauge, epoch) if place else InlineLane(stage, gauge, epoch, careful)
            )
        Flow(lanes, self.crew).run(epoch.events, epoch.origin, epoch.kinds)
        last = lanes[-1].parts
        events = [event for part in last for event in part.events]
        where = [w for part in last for w in part.where]
        return [(depth, lane.parts) for (depth, _), lane in zip(places, lanes, strict=True)], events, where

    def _add(self, outcome: Outcome, epoch: Epoch, parts: Parts) -> None:
        """What all stages did over the whole epoch."""
        for depth, found in parts:
            tally = outcome.tallies.setdefault(self.stages[depth].name, Tally())
            for passed in found:
                merge_tally(tally, passed.tally)
        self._put_out(outcome, epoch, parts, epoch.refused)
        self._keep_changes(outcome, epoch, [self.stages[depth] for depth, _ in parts])

    def _put_out(self, outcome: Outcome, epoch: Epoch, parts: Parts, refused: Iterable[int]) -> None:
        """Add what stages put out beside the chain's own stream, in the order of the plain loop."""
        emitted: dict[str, list[tuple[Where, int, int, Any]]] = {n: [] for n in self.writers if n != MAIN}
        letters: list[tuple[tuple[int, ...], int, DeadLetter]] = []
        for i in refused:
            found = epoch.refused[i]
            if isinstance(found, Late):
                emitted[LATE].append((i, -1, -1, found.event))
            else:
                letters.append(((i,), -1, _letter(epoch, i, found)))
        for depth, found in parts:
            seq = count()
            for passed in found:
                outcome.logged += passed.logged
                letters += [(path_of(w), depth, letter) for w, letter in passed.letters]
                for stream, event, w in passed.emitted:
                    emitted[stream].append((w, depth, next(seq), event))
        for stream, put_out in emitted.items():
            if len(self.writers[stream]) > 1:
                put_out.sort(key=_plain_order)
            events, where = outcome.streams.setdefault(stream, ([], []))
            events += [f[3] for f in put_out]
            where += _indexes([f[0] for f in put_out])
        letters.sort(key=lambda found: found[:2])
        outcome.letters += [letter for _, _, letter in letters]

    def _keep_changes(self, outcome: Outcome, epoch: Epoch, stages: list[Stage]) -> None:
        for stage in stages:
            deltas, outcome.values[stage.name] = stage.changes(epoch.now_after)
            outcome.deltas.update({(stage.name, table): delta for table, delta in deltas.items()})

    def earliest(self) -> float | None:
        """When the first timer of a started task fires; None where none is pending."""
        times = [stage.earliest() for stage in self.stages if not stage.stopped]
        return min((time for time in times if time is not None), default=None)

    def judged(self, position: int) -> bool:
        """Whether there is a verdict on an event at or after a position.

        What timers do comes to any record that moves time, and no record waits for a verdict on it.
        """
        return any(
            at >= position and not (path and path[0] < 0)
            for stage in self.stages
            for at, path in stage.verdicts
        )

    def apply(self, outcome: Outcome) -> None:
        """The epoch is committed: its deltas are the base of the next."""
        for stage in self.stages:
            if stage.name in outcome.tallies:
                stage.apply()

    def discard(self) -> None:
        """The epoch is not committed: forget it."""
        if self.crew is not None:
            self.crew.give_up()
        for stage in self.stages:
            stage.discard()


def _plain_order(found: tuple[Where, int, int, Any]) -> tuple[tuple[int, ...], int, int]:
    """By path, then by task, then as emitted: the order of the plain loop."""
    return path_of(found[0]), found[1], found[2]


def _indexes(where: Any) -> list[int]:
    return [w if type(w) is int else path_of(w)[0] for w in where]


def _letter(epoch: Epoch, index: int, refused: Refused | DeadLetter) -> DeadLetter:
    if isinstance(refused, DeadLetter):
        return refused._replace(position=epoch.first + index)
    return DeadLetter(
        epoch.first + index, INTAKE, refused.reason, "", None, refused.raw, refused.offset, refused.source
    )


__all__ = ["Chain", "Cut"]
