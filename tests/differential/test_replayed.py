"""What a store recorded can be run again: whatever killed, stopped or restarted the app, it gives what it gave."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import engine_runs
import pytest
from engine_runs import Left, Scripted, difference, stored

from secondpass import App
from secondpass.change import plain_state
from secondpass.engine.replay import Base
from secondpass.engine.snapshots import DIRECTORY, Kept, files
from secondpass.engine.walk import Onlooker, Walk
from secondpass.record import DeadLetter
from secondpass.store.reader import StoreReader

CASES = int(os.environ.get("SECONDPASS_DIFFERENTIAL_CASES") or 200)
PARTS = 10


@pytest.fixture
def directory() -> Iterator[Path]:
    with engine_runs.memory_folder() as folder:
        yield folder


class PutOut(Onlooker):
    """All that a walk puts out."""

    def __init__(self, streams: Any) -> None:
        self.streams: dict[str, list[Any]] = {name: [] for name in streams}
        self.positions: dict[str, list[int]] = {name: [] for name in streams}
        self.letters: list[DeadLetter] = []

    def put_out(self, position: int, stream: str, event: Any) -> None:
        self.streams.setdefault(stream, []).append(event)
        self.positions.setdefault(stream, []).append(position)

    def set_aside(self, letter: DeadLetter) -> None:
        self.letters.append(letter)


def replayed(app: App, directory: Path, position: int = 0) -> tuple[Left, Base]:
    """What a walk over the recorded log gives, from the nearest snapshot on; and where that was."""
    store = StoreReader.open_to_read(directory)
    put_out = PutOut(app.streams)
    base = Kept(store).nearest(position) if position else Base()
    walk = Walk(store, app, base, onlooker=put_out)
    try:
        walk.run()
    finally:
        walk.close()
        base.close()
        store.close()
    links, now = walk.standing.links, walk.now
    state = {link.name: plain_state(link.task, link.cells, link.values, now) for link in links}
    left = Left(put_out.streams, put_out.letters, state, {}, now, None, put_out.positions, walk.position)
    return left, base


def wrong(case: cases.Case, directory: Path) -> str | None:
    """The first difference between what a store holds and the same run again, in words."""
    rng = random.Random(f"{case.seed} ways")
    if cases.refused_whole(case):
        return None
    with engine_runs.pressed(random.Random(rng.random())), engine_runs.snapshots_now_and_then(rng):
        assert cases._in_store_differs(case, rng, directory) is None
    tasks = case.tasks()
    sources = [Scripted(records, f"source {i}") for i, records in enumerate(case.sources)]
    want = stored(tasks, directory / "store")
    if not want.position:
        return None
    app = App("case", sources=sources, tasks=tasks)
    want.tallies = {}
    for at in [0, *sorted(files(directory / "store" / DIRECTORY))]:
        got, base = replayed(app, directory / "store", at)
        if base.position != at:
            return f"the snapshot at {at} is not used"
        found = difference(behind(want, base), got)
        if found is not None:
            return f"from {at}: {found}"
        if at == 0 and want.positions != got.positions:
            return f"positions: {want.positions} stored, {got.positions} again"
    return None


def behind(left: Left, base: Base) -> Left:
    """What was put out behind a base."""
    streams = {name: events[base.numbers.get(name, 0) :] for name, events in left.streams.items()}
    return dataclasses.replace(left, streams=streams, letters=left.letters[base.letters :])


@pytest.mark.timeout(0 if CASES > 20_000 else 600)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_generated_app_gives_again_what_its_store_holds(part: int, seed: int, directory: Path) -> None:
    for number in range(part, CASES, PARTS):
        case = cases.generate(f"{seed} replayed {number}")
        found = wrong(case, directory)
        assert found is None, f"{found}\n{case}"
