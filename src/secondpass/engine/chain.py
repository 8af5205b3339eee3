"""The chain over an epoch: each started task in turn, and the order of what it puts out."""

from __future__ import annotations

from typing import Any

from secondpass.app import MAIN
from secondpass.engine.epoch import Epoch, Outcome, Where, path_of
from secondpass.engine.stage import Cut, Stage
from secondpass.record import INTAKE, DeadLetter, Refused


class Chain:
    """The stages of an app, in order."""

    def __init__(self, stages: list[Stage], streams: dict[str, tuple[str, ...]]) -> None:
        self.stages = stages
        self.writers = streams

    def run(self, epoch: Epoch, careful: bool) -> Outcome:
        """Run every task over the epoch, in chain order; raises `Cut` where the app must stop."""
        outcome = Outcome()
        emitted: dict[str, list[tuple[Where, int, int, Any]]] = {n: [] for n in self.writers if n != MAIN}
        letters: list[tuple[tuple[int, ...], int, DeadLetter]] = [
            ((i,), -1, _letter(epoch, i, refused)) for i, refused in epoch.refused.items()
        ]
        events: list[Any] = epoch.events
        where: Any = epoch.origin
        kinds, first_depth = epoch.kinds, 0
        if epoch.retry is not None and epoch.retry.task != INTAKE:
            first_depth = [s.name for s in self.stages].index(epoch.retry.task)
        stop: Cut | None = None
        for depth, stage in enumerate(self.stages):
            if depth < first_depth:
                continue
            try:
                passed = stage.run(epoch, events, where, kinds, careful)
            except Cut as cut:
                # The tasks behind it may stop the app earlier, at what it passed on before.
                stop, passed = cut, cut.passed
            events, where, kinds = passed.events, passed.where, passed.kinds
            outcome.tallies[stage.name] = passed.tally
            outcome.logged += passed.logged
            letters += [(path_of(w), depth, letter) for w, letter in passed.letters]
            for seq, (stream, event, w) in enumerate(passed.emitted):
                emitted[stream].append((w, depth, seq, event))
        if stop is not None:
            raise stop
        outcome.streams[MAIN] = (events, _indexes(where))
        for stream, found in emitted.items():
            if len(self.writers[stream]) > 1:
                found.sort(key=_plain_order)
            outcome.streams[stream] = ([f[3] for f in found], _indexes([f[0] for f in found]))
        letters.sort(key=lambda found: found[:2])
        outcome.letters = [letter for _, _, letter in letters]
        now = epoch.now_after
        for depth, stage in enumerate(self.stages):
            if depth >= first_depth:
                deltas, outcome.values[stage.name] = stage.changes(now)
                outcome.deltas.update({(stage.name, table): delta for table, delta in deltas.items()})
        return outcome

    def apply(self, outcome: Outcome) -> None:
        """The epoch is committed: its deltas are the base of the next."""
        for stage in self.stages:
            if stage.name in outcome.tallies:
                stage.apply()

    def discard(self) -> None:
        """The epoch is not committed: forget it."""
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
