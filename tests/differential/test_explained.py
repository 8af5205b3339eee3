"""What `explain` says of each call is what a search by force finds: what it read, and who had changed it last."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import engine_runs
import pytest
from engine_runs import Scripted

from secondpass import App
from secondpass.engine import seek
from secondpass.engine.explain import Explainer
from secondpass.engine.replay import Base
from secondpass.engine.snapshots import Kept
from secondpass.engine.walk import Onlooker, Walk
from secondpass.state import MISSING
from secondpass.store.reader import StoreReader

CASES = int(os.environ.get("SECONDPASS_DIFFERENTIAL_CASES") or 60)
PARTS = 5

Cells = dict[tuple[str, str, Any], Any]


@pytest.fixture
def directory() -> Iterator[Path]:
    with engine_runs.memory_folder() as folder:
        yield folder


class ByForce(Onlooker):
    """Compares all cells of all tasks after each call."""

    def __init__(self) -> None:
        self.walk: Any = None
        self.before: list[Cells] = []
        """By position: all cells before it."""
        self.changed: list[dict[Any, int]] = []
        """By position: who changed each cell last before it."""
        self._cells: Cells = {}
        self._position = -1
        self._changed: dict[Any, int] = {}

    def cells(self) -> Cells:
        found: Cells = {}
        for link in self.walk.standing.links:
            for name, cells in link.cells.items():
                found |= {(link.name, name, key): entry for key, entry in cells.items()}
            found |= {(link.name, name, None): rest for name, rest in link.values.items()}
        return found

    def begin(self, position: int, record: Any, now: float) -> None:
        self._cells, self._position = self.cells(), position
        self.before.append(self._cells)
        self.changed.append(dict(self._changed))

    def called(self, *call: Any, branched: bool) -> None:
        after = self.cells()
        for place in {*after, *self._cells}:
            if after.get(place, MISSING) != self._cells.get(place, MISSING):
                self._changed[place] = self._position
        self._cells = after


def by_force(app: App, store: StoreReader) -> ByForce:
    found = ByForce()
    found.walk = walk = Walk(store, app, Base(), onlooker=found)
    walk.run()
    walk.close()
    return found


def ran(case: cases.Case, directory: Path) -> tuple[App, Path] | None:
    """A case's app and its store, after it ran with whatever its seed does to it."""
    rng = random.Random(f"{case.seed} ways")
    if cases.refused_whole(case) or not case.log:
        return None
    with engine_runs.pressed(random.Random(rng.random())), engine_runs.snapshots_now_and_then(rng):
        assert cases._in_store_differs(case, rng, directory) is None
    sources = [Scripted(records, f"source {i}") for i, records in enumerate(case.sources)]
    return App("case", sources=sources, tasks=case.tasks()), directory / "store"


def wrong(app: App, directory: Path, bases: Callable[[StoreReader], Any], *, swept: bool) -> str | None:
    """The first thing that an explanation says otherwise than the search by force."""
    store = StoreReader.open_to_read(directory)
    try:
        want = by_force(app, store)
        explainer = Explainer(app, store, bases(store))
        positions = range(store.progress.position)
        for position in positions:
            found = explainer.explain(position)
            mine: set[Any] = set()
            for call in found.calls:
                for read in call.reads:
                    place = (call.task, read.name, read.key)
                    if place in mine:
                        if read.by.position != position:
                            return f"{position}: {place} was changed by the record itself, not by {read.by}"
                        continue
                    by = want.changed[position].get(place)
                    # Of a cell that is not there nobody is named who lies before a snapshot: it may have expired.
                    unnamed = read.by.position is None and not read.there
                    if by != read.by.position and not (
                        unnamed and (swept or place not in want.before[position])
                    ):
                        return f"{position}: {place} was changed last by {by}, not {read.by}"
                mine |= {(call.task, w.name, w.key) for w in call.writes}
        return None
    finally:
        store.close()


@pytest.mark.timeout(0 if CASES > 20_000 else 600)
@pytest.mark.parametrize("part", range(PARTS))
def test_who_changed_what_was_read_is_who_did(
    part: int, seed: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(part, CASES, PARTS):
        case = cases.generate(f"{seed} explained {number}")
        found = ran(case, directory)
        if found is not None:
            app, store = found
            beginning, nearest = (lambda _: lambda _: Base()), (lambda opened: Kept(opened).nearest)
            for way, far, swept in (
                (beginning, 20_000, False),
                (nearest, 20_000, True),
                (beginning, 2, True),
            ):
                monkeypatch.setattr(seek, "FAR", far)  # from so many records on the engine runs them
                monkeypatch.setattr(seek, "NEAR", 1)
                monkeypatch.setattr(seek, "WINDOW", 1 + number % 5)
                told = wrong(app, store, way, swept=swept)
                assert told is None, f"{told}\n{case}"
