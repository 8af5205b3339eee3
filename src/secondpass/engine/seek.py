"""Long stretches of a recorded log at the engine's speed: to a place near a position.

The engine gives what the plain loop gives, several times as fast. Who changed a cell on the way it cannot say: an epoch
knows what it changed, not what it changed back. That the plain loop finds (`writers`): in a window before the position,
then in one before that, four times as long, and so on, the engine going to where each begins. Where commands changed
cells, or a start renamed them, the plain loop does it all.
"""

from __future__ import annotations

from collections.abc import Iterable

from secondpass.app import App
from secondpass.engine.recorded import Recorded
from secondpass.engine.replay import Base
from secondpass.engine.rerun import OnEpoch, Rerun
from secondpass.engine.trail import Changed, Place, Watch
from secondpass.engine.walk import Walk
from secondpass.errors import NotRepeated
from secondpass.store.reader import StoreReader

FAR = 20_000
"""A shorter stretch is run by the plain loop."""
NEAR = 10_000
"""So far before the position the plain loop takes over: it sees who changed what, and most of what is read was young."""
WINDOW = 40_000
"""So many records before that the plain loop looks through first."""
_HARMLESS = ("stop", "pause", "resume", "end", "reload")


class Seeker:
    """Goes through stretches of one app's recorded log."""

    def __init__(self, app: App, store: StoreReader, workers: int | None = None) -> None:
        self._app = app
        self._store = store
        self._workers = workers

    def forward(self, base: Base, upto: int, end: int, recorded: Recorded) -> tuple[Walk, bool]:
        """A walk that stands near a position, or at the base where that is near; and whether the engine went there."""
        walk = Walk(self._store, self._app, base, end)
        if upto - base.position < FAR or not self._plain(base.position, upto):
            return walk, False
        try:
            self._run(walk, upto - NEAR, recorded.epoch)
        except BaseException:
            walk.close()
            raise
        return walk, True

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

    def writers(self, base: Base, upto: int, wanted: Iterable[Place]) -> dict[Place, Changed]:
        """Who changed cells last, between a base and a position: only the plain loop sees each change."""
        found: dict[Place, Changed] = {}
        left, end, size = set(wanted), upto, WINDOW
        by_windows = self._plain(base.position, upto)
        while left and end > base.position:
            first = max(base.position, end - size) if by_windows else base.position
            if first - base.position < FAR:
                first = base.position
            changed = self._changed(base, first, end)
            found |= {place: changed[place] for place in left if place in changed}
            left -= found.keys()
            end, size = first, 4 * size
        return found

    def _changed(self, base: Base, first: int, end: int) -> dict[Place, Changed]:
        """Who changed each cell last between two positions."""
        watch = Watch(set())
        walk = Walk(self._store, self._app, base, end)
        try:
            if first > base.position:
                self._run(walk, first, lambda _epoch, _outcome: None)
            walk.watched_by(watch, watch.make)
            walk.run()
        finally:
            walk.close()
        return watch.changed
