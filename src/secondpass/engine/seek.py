"""Long stretches of a recorded log at the engine's speed: to a place near a position, and to who changed a cell last.

    forward     the engine runs to the place, noting which epoch changed each cell last
    writers     the engine runs once more, and the plain loop takes over in just those epochs

Both give what the plain loop gives over the whole stretch, several times as fast, but for one thing: a cell that was
changed and changed back within an epoch was not changed. Where commands changed cells, or a start renamed them, the plain
loop does it all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from secondpass.app import App
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.recorded import Recorded
from secondpass.engine.replay import Base
from secondpass.engine.rerun import OnEpoch, Rerun
from secondpass.engine.trail import Changed, Place, Watch
from secondpass.engine.walk import Walk
from secondpass.errors import NotRepeated
from secondpass.store.reader import StoreReader

FAR = 20_000
"""A shorter stretch is run by the plain loop."""
NEAR = 500
"""So far before the position the plain loop takes over."""
_HARMLESS = ("stop", "pause", "resume", "end", "reload")


class Stretch(NamedTuple):
    """Consecutive positions."""

    first: int
    end: int


class Epochs:
    """By cell: the stretch in which it was changed last."""

    def __init__(self) -> None:
        self._stretches: list[Stretch] = []
        self._last: dict[tuple[str, str], dict[object, int]] = {}

    def note(self, epoch: Epoch, outcome: Outcome) -> None:
        """What an epoch has changed."""
        number = len(self._stretches)
        self._stretches.append(Stretch(epoch.first, epoch.first + epoch.count))
        for name, delta in outcome.deltas.items():
            self._last.setdefault(name, {}).update(dict.fromkeys(delta.changed, number))
        for task, values in outcome.values.items():
            for name in values:
                self._last.setdefault((task, name), {})[None] = number

    def of(self, place: Place) -> Stretch | None:
        """The stretch in which a cell was changed last; None where it was not."""
        number = self._last.get(place[:2], {}).get(place.key)
        return None if number is None else self._stretches[number]


class Seeker:
    """Goes through stretches of one app's recorded log."""

    def __init__(self, app: App, store: StoreReader, workers: int | None = None) -> None:
        self._app = app
        self._store = store
        self._workers = workers

    def forward(self, base: Base, upto: int, end: int, recorded: Recorded) -> tuple[Walk, Epochs | None]:
        """A walk that stands near a position, or at the base where that is near; and what was changed on the way."""
        walk = Walk(self._store, self._app, base, end)
        if upto - base.position < FAR or not self._plain(base.position, upto):
            return walk, None
        epochs = Epochs()

        def on_epoch(epoch: Epoch, outcome: Outcome) -> None:
            epochs.note(epoch, outcome)
            recorded.epoch(epoch, outcome)

        try:
            self._run(walk, upto - NEAR, on_epoch)
        except BaseException:
            walk.close()
            raise
        return walk, epochs

    def _run(self, walk: Walk, upto: int, on_epoch: OnEpoch) -> None:
        rerun = Rerun(self._app, walk.replay, walk.standing, self._workers)
        try:
            rerun.run(upto, on_epoch)
        finally:
            rerun.dismiss()
        if rerun.stopped is not None:
            raise NotRepeated(
                f"run again, the app stops where it did not stop when it ran: {rerun.stopped}"
            ) from rerun.stopped
        walk.take_over()

    def _plain(self, first: int, end: int) -> bool:
        """Whether nothing but events has changed cells there."""
        for _, position, details in self._store.history_of("command"):
            if first <= position < end and (details["asked"] not in _HARMLESS):
                return False
        return not any(
            first <= position < end and "moves" in details
            for _, position, details in self._store.history_of("start")
        )

    def writers(
        self, base: Base, upto: int, wanted: Iterable[Place], epochs: Epochs | None = None
    ) -> dict[Place, Changed]:
        """Who changed cells last, between a base and a position; `epochs` is what is known of it already."""
        places = set(wanted)
        found: dict[Place, Changed] = {}
        if upto - base.position >= FAR and self._plain(base.position, upto):
            if epochs is None:
                epochs = Epochs()
                walk = Walk(self._store, self._app, base, upto)
                try:
                    self._run(walk, upto, epochs.note)
                finally:
                    walk.close()
            stretches = {place: stretch for place in places if (stretch := epochs.of(place)) is not None}
            if not stretches:
                return {}
            if sum(s.end - s.first for s in set(stretches.values())) < (upto - base.position) / 2:
                found = self._within(base, sorted(set(stretches.values())))
                # An epoch may have assigned to a cell what it held: who changed it is in a stretch before, not looked into.
                found = {
                    place: changed
                    for place, stretch in stretches.items()
                    if (changed := found.get(place)) is not None
                    and stretch.first <= changed.position < stretch.end
                }
                if len(found) == len(stretches):
                    return found
        watch = Watch(set())
        walk = Walk(self._store, self._app, base, upto, watch, watch.make)
        try:
            walk.run()
        finally:
            walk.close()
        return {place: watch.changed[place] for place in places if place in watch.changed}

    def _within(self, base: Base, stretches: list[Stretch]) -> dict[Place, Changed]:
        """Who changed each cell last in some stretches."""
        watch = Watch(set())
        walk = Walk(self._store, self._app, base, stretches[-1].end, watch, watch.make)
        try:
            for stretch in stretches:
                if walk.position < stretch.first:
                    self._run(walk, stretch.first, lambda _epoch, _outcome: None)
                walk.run(stretch.end)
        finally:
            walk.close()
        return watch.changed
