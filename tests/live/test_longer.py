"""A longer time to live brings nothing back: what has expired is deleted before the command has its position, a little at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from live_app import Known, KnownToo, Marked, Seen, seen
from test_commands import Fed, agrees, meant

from secondpass import App, Task
from secondpass.control import Control
from secondpass.engine import pacer, reclaim
from secondpass.engine.compare import codecs_of
from secondpass.state import live_cells
from secondpass.store.reader import StoreReader

NAME = ("Known", "last")


class Steps:
    """The steps of all reclaiming, by command: at which time, how many cells were deleted, and whether that was all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[tuple[float, int, bool]]] = [[]]
        step = reclaim.Reclaim.step

        def noted(found: reclaim.Reclaim, now: float) -> Any:
            deltas, done = step(found, now)
            self.commands[-1].append((now, sum(len(delta.gone) for delta in deltas.values()), done))
            if done:
                self.commands.append([])
            return deltas, done

        monkeypatch.setattr(reclaim.Reclaim, "step", noted)

    @property
    def deleted(self) -> int:
        return sum(gone for steps in self.commands for _, gone, _ in steps)

    @property
    def over_time(self) -> int:
        """Of how many commands what was to be deleted was deleted while the stream's time went on."""
        return sum(len({now for now, gone, _ in steps if gone}) > 1 for steps in self.commands)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Steps are small, and so are epochs."""
    monkeypatch.setattr(reclaim, "COPIED_AT_ONCE", 40)
    monkeypatch.setattr(reclaim, "SORTED_AT_ONCE", 10)
    monkeypatch.setattr(reclaim, "DELETED_AT_ONCE", 3)
    monkeypatch.setattr(reclaim, "SORTING_S", 0.0)
    monkeypatch.setenv(pacer.VARIABLE, "16")
    return Steps(monkeypatch)


def holds_what_is_meant(
    store: Path, events: list[Seen], task: Known, tasks: tuple[Task[Any], ...] = (Known(),)
) -> None:
    """What the store holds of the task's tables is what the plain loop has there."""
    reader = StoreReader.open_to_read(store)
    try:
        now, found = reader.progress.now, reader.load(codecs_of((task,)))
    finally:
        reader.close()
    want = meant(tasks, events, Control(store).history())
    for name, spec in type(task)._shape.tables.items():
        assert live_cells(spec, found["Known", name], spec.ttl_of(task), now) == want.state["Known"][name]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_expires_while_a_longer_time_to_live_is_made_ready_stays_gone(
    tmp_path: Path, seed: int, workers: int, steps: Steps
) -> None:
    rng = random.Random(seed)

    def give() -> None:
        for _ in range(3):
            control.set("Known", window_s=rng.choice([1.0, 2.0]))
            control.set("Known", window_s=rng.choice([6.0, 9.0]))
            control.replace(KnownToo(window_s=4.0), name="Known", trial=0)
            control.replace(Known(window_s=rng.choice([1.0, 12.0])), name="Known", trial=0)
            control.remove("Known")
            control.add(Known(window_s=15.0))

    source = Fed(2_000, {500: give})
    known = Known().options(place="workers") if workers else Known()
    app = App("longer", source=source, tasks=[known])
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", workers=workers)
    assert len(agrees(tmp_path / "store", source.events, (known,))) == 18
    holds_what_is_meant(tmp_path / "store", source.events, Known(window_s=15.0))
    assert steps.deleted > 50, "hardly anything had expired: the test shows too little"
    assert steps.over_time > 2, "nothing expired meanwhile: the test shows too little"


def test_what_a_task_put_aside_in_an_earlier_run_stays_gone_where_it_had_expired(
    tmp_path: Path, steps: Steps
) -> None:
    store, events, tasks = tmp_path / "store", seen(900), (Known(), Marked())

    def run(upto: int) -> None:
        App("longer", source=events[:upto], tasks=tasks).run(store=store, workers=0)

    control = Control(store)
    run(300)
    control.remove("Known")
    run(320)
    control.add(Known(window_s=30.0), before="Marked")
    run(600)
    assert steps.deleted > 20
    for upto in (600, 900):  # and again, from what the store holds
        run(upto)
        agrees(store, events[:upto], tasks)
        holds_what_is_meant(store, events[:upto], Known(window_s=30.0), tasks)


def test_a_command_waits_for_what_has_expired_also_where_no_event_comes_any_more(
    tmp_path: Path, steps: Steps
) -> None:
    store, events = tmp_path / "store", seen(400)
    App("longer", source=events, tasks=[Known()]).run(store=store, workers=0)
    Control(store).set("Known", window_s=100.0)
    App("longer", source=events, tasks=[Known()]).run(store=store, workers=0)
    assert len(agrees(store, events, (Known(),))) == 1
    holds_what_is_meant(store, events, Known(window_s=100.0))
    assert steps.deleted > 20
    assert len(steps.commands[0]) > 20
