"""What was put out and is not kept any more: the chain as it was, run again beside a rehearsal.

What of it is kept is compared on the way, and so is what comes right behind it. So what is told here is what was put
out, or `NotRepeated` is raised.
"""

from __future__ import annotations

from collections.abc import Iterable

from secondpass.app import App
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.outbox import encode_json
from secondpass.engine.recorded import Recorded
from secondpass.engine.replay import Base, Replay
from secondpass.engine.rerun import Rerun
from secondpass.engine.standing import Standing
from secondpass.errors import NotRepeated
from secondpass.store.reader import StoreReader

CHECKED = 10_000
"""So many records behind it are compared."""


class Again:
    """The chain as it was, from a position on."""

    def __init__(
        self,
        app: App,
        store: StoreReader,
        base: Base,
        first: int,
        streams: Iterable[str],
        workers: int | None,
    ) -> None:
        self._end = store.progress.position
        self._found: dict[str, tuple[list[int], list[bytes]]] = {name: ([], []) for name in streams}
        self._recorded = Recorded(store, app.streams, base.numbers, base.letters)
        self._rerun = Rerun(app, Replay(store, app, base), Standing(app, base), workers)
        self._told = False
        self._run(first)
        self._told = True
        self._run(min(first + 1, self._end))  # with the first chain it is seen whether its code is there

    def close(self) -> None:
        """End the workers, let go of the sources."""
        self._rerun.close()

    def upto(self, stream: str, position: int) -> tuple[list[int], list[bytes]]:
        """What a stream was given before a position, and was not told yet."""
        self._run(position)
        found, self._found[stream] = self._found[stream], ([], [])
        return found

    def check(self) -> None:
        """Compare what comes next with what is kept of it."""
        self._told = False
        self._run(min(self._rerun.replay.position + CHECKED, self._end))

    def _run(self, position: int) -> None:
        self._rerun.run(position, self._on_epoch)
        if self._rerun.stopped is not None:
            raise NotRepeated(
                f"run again, the app stops where it did not stop when it ran: {self._rerun.stopped}"
            ) from self._rerun.stopped

    def _on_epoch(self, epoch: Epoch, outcome: Outcome) -> None:
        self._recorded.epoch(epoch, outcome)
        if not self._told:
            return
        for name, (positions, lines) in self._found.items():
            events, where = outcome.streams.get(name, ([], []))
            positions += [epoch.first + i for i in where]
            lines += encode_json(events).splitlines() if events else []
