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
from engine_runs import Left, Scripted, difference, in_store, meant, steady, stored, without_verdicts

from secondpass import App, Event, Task, output, table, timer
from secondpass.change import plain_state
from secondpass.engine.replay import Base, Replay
from secondpass.engine.rerun import Rerun
from secondpass.engine.snapshots import DIRECTORY, Kept, files
from secondpass.engine.standing import Standing
from secondpass.engine.walk import Onlooker, Walk
from secondpass.record import DeadLetter, Firing, Verdict, event_crc
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


class Heard(Event):
    n: int
    time: float


class Echo(Task[Heard]):
    """Says again, by a timer, what it hears."""

    said = table(int, int, default=0)
    pages = output(Heard)

    def handle(self, event: Heard) -> Heard:
        self.said[event.n] += 1
        self.again.at(event.time + 1.5, event.n)
        return event

    @timer
    def again(self, n: int) -> list[Heard]:
        self.said[n] += 100
        self.pages.emit(Heard(n=n, time=self.now))
        return [Heard(n=n, time=self.now), Heard(n=-n, time=self.now)]


def behind_it(event: Heard) -> Heard:
    return event


def condemned(position: int, task: str, path: tuple[int, ...], event: Any) -> Verdict:
    return Verdict(position, task, path, "killed its worker", "", event_crc(event))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_replay_obeys_verdicts_on_events_and_on_timers(size: int, directory: Path) -> None:
    heard = [Heard(n=n, time=float(n)) for n in range(8)]
    said = Firing(timer="again", key=3, time=4.5)
    log = [
        condemned(2, "Echo", (), heard[2]),
        condemned(5, "Echo", (-1,), said),
        condemned(6, "behind_it", (-1, 1), Heard(n=-4, time=5.5)),
        *heard,
    ]
    tasks = App("case", source=[], tasks=[Echo(), behind_it]).tasks
    assert in_store(tasks, log, directory / "store", steady(size)) == "end of input"
    want = meant(tasks, log)
    assert [letter.event for letter in want.letters] == [heard[2], said, Heard(n=-4, time=5.5)]
    got = stored(tasks, directory / "store")
    assert difference(want, got) is None
    app = App("case", source=Scripted(without_verdicts(log)), tasks=tasks)
    again, _ = replayed(app, directory / "store")
    want.tallies = {}
    assert difference(want, again) is None
    letters: list[DeadLetter] = []
    store = StoreReader.open_to_read(directory / "store")
    rerun = Rerun(app, Replay(store, app, Base(), None), Standing(app, Base()), 0)
    try:
        rerun.run(len(heard), lambda _, outcome: letters.extend(outcome.letters))
    finally:
        rerun.close()
        store.close()
    assert letters == want.letters
