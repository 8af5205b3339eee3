"""Commands to a running app: wherever they are given, they stand at one place, and the plain loop gives the same."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_app import Count, First, Marked, Other, Seen, Wrong, seen

from secondpass import App, Task, reference
from secondpass.control import Control
from secondpass.engine.live import recorded_change
from secondpass.engine.outbox import decode_events
from secondpass.errors import ChangeRefused
from secondpass.store.reader import StoreReader

KINDS = (
    *("start", "stop", "set", "add", "remove", "drop-state") * 3,
    "replace",
)  # of which each has its trial, a process
CHAIN = (First(), Count(), Marked())


class Fed:
    """A source that starts threads at some of its events, and does not end before they have."""

    def __init__(self, count: int, at: dict[int, Callable[[], Any]]) -> None:
        self._count, self._at = count, at
        self.threads: list[threading.Thread] = []
        self.events: list[Seen] = []

    def __iter__(self) -> Iterator[Seen]:
        while len(self.events) < self._count or any(t.is_alive() for t in self.threads):
            n = len(self.events)
            if n in self._at:
                self.threads.append(threading.Thread(target=self._at[n]))
                self.threads[-1].start()
            self.events.append(Seen(n=n, time=n / 10))
            yield self.events[-1]
            if n > self._count:
                time.sleep(0.0005)  # all that is needed is that there are some


def meant(tasks: tuple[Task[Any], ...], events: list[Any], history: list[dict[str, Any]]) -> reference.Result:
    """What the plain loop gives for the events with the recorded commands among them."""
    log = list(events)
    for entry in history:
        if entry["kind"] == "command":
            log.insert(entry["position"], recorded_change(entry))
    return reference.run(tasks, log)


def stored(store: Path, stream: str = "main") -> list[Any]:
    found = StoreReader.open_to_read(store)
    try:
        return [event for row in found.outputs(stream) for event in decode_events(row.body)]
    finally:
        found.close()


def agrees(store: Path, events: list[Any], tasks: tuple[Task[Any], ...] = CHAIN) -> list[dict[str, Any]]:
    """Compare what a store holds with the plain loop over its log; gives the commands that were done."""
    history = Control(store).history()
    want = meant(tasks, events, history)
    for stream in want.streams:
        assert stored(store, stream) == want.streams[stream], stream
    return [entry for entry in history if entry["kind"] == "command"]


@pytest.mark.parametrize("workers", [0, 2])
def test_commands_from_other_threads_stand_each_at_one_place(tmp_path: Path, seed: int, workers: int) -> None:
    rng, told = random.Random(seed), list[str]()

    def command() -> None:
        kind = rng.choice(KINDS)
        try:
            if kind == "start":
                control.start(rng.choice(["Count", "Marked", "First"]), fresh=rng.random() < 0.3)
            elif kind == "stop":
                control.stop(rng.choice(["Count", "Marked", "First"]))
            elif kind == "set":
                control.set("First", window_s=rng.choice([0.5, 2.0, 5.0]))
            elif kind == "add":
                control.add(
                    rng.choice([Count(), Marked(mark="x").options(name="X")]),
                    before=rng.choice([None, "First"]),
                    stopped=rng.random() < 0.3,
                )
            elif kind == "remove":
                control.remove(rng.choice(["Count", "X"]))
            elif kind == "replace":
                control.replace(rng.choice([Other(), Count(step=3)]), name="Count")
            else:
                control.drop("Count")
        except ChangeRefused as refused:
            told.append(str(refused))

    def ten() -> None:
        for _ in range(10):
            command()

    source = Fed(10_000, dict.fromkeys(range(200, 10_000, 1400 if workers else 480), ten))
    tasks = tuple(t.options(place="workers") if workers and t.name != "Count" else t for t in CHAIN)
    app = App("live", source=source, tasks=tasks)
    control = Control(tmp_path / "store", app)
    summary = app.run(store=tmp_path / "store", workers=workers)
    done = agrees(tmp_path / "store", source.events)
    assert summary.position == len(source.events) + len(done)
    assert len(done) > 20, told


def test_code_that_fails_in_its_trial_does_not_take_over(tmp_path: Path) -> None:
    refused: list[str] = []

    def replace() -> None:
        while not stored(tmp_path / "store"):
            time.sleep(0.01)  # the task has had no event yet to try the new code on
        with pytest.raises(ChangeRefused) as error:
            control.replace(Wrong(), name="Count")
        refused.append(str(error.value))

    source = Fed(1_000, {500: replace})
    app = App("live", source=source, tasks=CHAIN)
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", workers=0)
    assert refused[0].startswith("Count failed in its trial: ValueError: not this one, at Seen(n=")
    assert agrees(tmp_path / "store", source.events) == []


def test_what_was_changed_goes_on_after_a_restart_and_the_file_overrules_only_what_it_changes(
    tmp_path: Path,
) -> None:
    store, events = tmp_path / "store", seen(300)

    def run(upto: int, *tasks: Task[Any]) -> list[str]:
        return App("live", source=events[:upto], tasks=tasks).run(store=store, workers=0).changes

    control = Control(store)
    run(100, *CHAIN)
    for give in (
        lambda: control.set("First", window_s=5.0),
        lambda: control.set("Marked", mark="z"),
        lambda: control.stop("Count"),
        lambda: control.add(Marked(mark="new").options(name="New"), before="Count"),
    ):
        assert give().waits
    run(200, *CHAIN)
    first = stored(store)[-1].by
    assert first.endswith("newz")
    assert "Count" not in first
    told = run(300, First(), Count(), Marked(mark="q"))
    assert any("New stays" in change for change in told)
    assert any("Count stays stopped" in change for change in told)
    assert stored(store)[-1].by.endswith("newq")
