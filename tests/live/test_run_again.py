"""What commands, live sources, pushed events, timers and clocks brought about is run again as it ran."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from live_app import Count, First, Marked, Other, Seen, seen
from test_commands import CHAIN, Fed

from secondpass import App, Event, Task, timer
from secondpass.connectors import JsonLines
from secondpass.control import Control
from secondpass.engine import seek
from secondpass.engine.explain import Explanation
from secondpass.engine.rehearse import Rehearsal, rehearse
from secondpass.errors import ChangeRefused
from secondpass.store.reader import StoreReader


def again(app: App, store: Path, **more: Any) -> Rehearsal:
    """The unchanged chain over the recorded log."""
    opened = StoreReader.open_to_read(store)
    try:
        return rehearse(app, opened, workers=0, **more)
    finally:
        opened.close()


def explained(app: App, store: Path) -> list[Explanation]:
    """Every position of the log, each compared with what was recorded."""
    opened = StoreReader.open_to_read(store)
    end = opened.progress.position
    opened.close()
    return [app.explain(position, store=store) for position in range(end)]


@pytest.mark.parametrize("workers", [0, 2])
def test_commands_are_done_again_at_their_places(tmp_path: Path, rng: random.Random, workers: int) -> None:
    def command() -> None:
        gives = (
            lambda: control.start("Count", fresh=rng.random() < 0.5),
            lambda: control.stop("Count"),
            lambda: control.set("First", window_s=rng.choice([0.5, 2.0, 5.0])),
            lambda: control.add(Marked(mark="x").options(name="X"), before="Count"),
            lambda: control.remove("X"),
            lambda: control.replace(rng.choice([Other(), Count(step=3)]), name="Count"),
            lambda: control.drop("Count"),
        )
        for _ in range(4):
            try:
                rng.choice(gives)()
            except ChangeRefused:
                continue

    source = Fed(1_000, dict.fromkeys(range(100, 1_000, 200), command))
    app = App("live", source=source, tasks=CHAIN)
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", workers=workers)
    replayed = App("live", source=source.events, tasks=CHAIN)
    found = again(replayed, tmp_path / "store")
    assert (found.differences, found.changes, found.notes) == (0, [], [])
    done = [entry for entry in control.history() if entry["kind"] == "command"]
    assert done
    told = replayed.explain(done[-1]["position"], store=tmp_path / "store")
    assert (told.kind, told.event["asked"]) == ("command", done[-1]["asked"])


def test_a_far_way_back_with_commands_on_it_names_the_same_records_as_the_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    app = App("live", source=seen(60), tasks=CHAIN, keep_snapshots=None)
    control = Control(store, app)
    app.run(store=store, workers=0, limit=20)
    control.drop("Count")
    app.run(store=store, workers=0, limit=20)
    control.stop("First")
    control.start("First", fresh=True)
    app.run(store=store, workers=0)
    plain = explained(app, store)
    first = next(e for e in plain[21:] if any(call.task == "Count" for call in e.calls))
    (total,) = [read.by for call in first.calls for read in call.reads if read.name == "total"]
    assert (total.position, total.kind, total.event["asked"]) == (20, "command", "drop-state")
    monkeypatch.setattr(seek, "FAR", 2)
    monkeypatch.setattr(seek, "NEAR", 1)
    assert [e.calls for e in explained(app, store)] == [e.calls for e in plain]


class Deadly(Task[Seen]):
    """Ends the process that handles one event."""

    def handle(self, event: Seen) -> Seen:
        if event.n == 7:
            os._exit(3)
        return event


@pytest.mark.parametrize("workers", [0, 2])
def test_an_event_that_ended_its_workers_is_not_tried_again(tmp_path: Path, workers: int) -> None:
    app = App("deadly", source=seen(20), tasks=[Deadly().options(place="workers"), Count()], workers=2)
    app.run(store=tmp_path / "store")
    store = StoreReader.open_to_read(tmp_path / "store")
    found = rehearse(app, store, workers=workers)
    store.close()
    assert (found.differences, found.stopped, found.notes) == (0, None, [])
    told = app.explain(7, store=tmp_path / "store")
    assert [(s.task, "exit code 3" in s.error) for s in told.set_aside] == [("Deadly", True)]
    assert told.calls[0].outcome == "failed"


class Arriving:
    """A followed source that gives a few records at a time and is never at its end."""

    type: Any = Any
    following = True

    def __init__(self, events: list[Seen], name: str) -> None:
        self._events, self.name = events, name

    def open(self, offset: Any, *, follow: bool = False, accept: bool = False) -> Any:
        from secondpass.connectors.memory import MemorySource

        reader = MemorySource(self._events, self.name).open(offset)
        read = reader.read

        def few(limit: int) -> Any:
            batch = read(min(limit, 3))
            if batch is None:
                from secondpass.connectors.contract import Batch

                return Batch([], {"count": len(self._events), "crc": 0}, count=0)
            return batch

        reader.read = few  # type: ignore[method-assign]
        return reader


def test_what_live_sources_gave_is_taken_in_the_same_order(tmp_path: Path) -> None:
    def app() -> App:
        return App("live", sources=[Arriving(seen(40), "a"), Arriving(seen(25), "b")], tasks=CHAIN)

    for upto in (10, 31, 65):

        def stop(hub: Any, upto: int = upto) -> None:
            hub.stopping = hub.store.progress.position >= upto

        app().run(store=tmp_path / "store", workers=0, limit=upto, on_epoch=stop)
    assert again(app(), tmp_path / "store").differences == 0
    assert len(explained(app(), tmp_path / "store")) == 65


def test_pushed_events_are_run_again_from_the_log(tmp_path: Path) -> None:
    app = App("pushed", tasks=CHAIN)
    app.running_store = tmp_path / "store"
    app.log.append(seen(50))
    app.running_store = None
    app.run(store=tmp_path / "store", limit=50, workers=0)
    assert again(app, tmp_path / "store").differences == 0
    assert app.explain(30, store=tmp_path / "store").event == Seen(n=30, time=3.0)


def test_events_that_were_too_far_ahead_of_the_clock_are_so_again(tmp_path: Path) -> None:
    now = time.time()
    times = [now, now + 1000.0, now + 1.0, now + 50.0, now + 2.0]
    app = App(
        "ahead", source=[Seen(n=n, time=t) for n, t in enumerate(times)], tasks=[Marked()], max_ahead_s=20.0
    )
    app.run(store=tmp_path / "store", workers=0)
    assert again(app, tmp_path / "store").differences == 0
    found = explained(app, tmp_path / "store")
    assert [e.kind for e in found] == ["event", "refused", "event", "refused", "event"]
    assert "ahead of the clock" in found[1].set_aside[0].error
    assert [e["kind"] for e in Control(tmp_path / "store").history()] == [
        "start"
    ]  # the rest was not done to it


class Silent(Event):
    cid: int
    time: float


class Watch(Task[Seen]):
    """Reports what says nothing for a minute; one of them fails."""

    def handle(self, event: Seen) -> None:
        self.silent.at(event.time + 60.0, event.n)

    @timer
    def silent(self, cid: int) -> Silent | None:
        if cid == 3:
            raise ValueError("three")
        return Silent(cid=cid, time=self.now) if cid else None


def test_a_timer_is_explained_by_the_event_that_set_it(tmp_path: Path) -> None:
    events = [Seen(n=n, time=t) for n, t in ((0, 0.0), (7, 10.0), (3, 11.0), (7, 20.0), (9, 200.0))]
    app = App("watch", source=events, tasks=[Watch(), Marked()])
    app.run(store=tmp_path / "store", workers=0)
    assert again(app, tmp_path / "store").differences == 0
    found = app.explain(4, store=tmp_path / "store")
    fired = [(c.timer, c.event.key, c.event.time, c.outcome) for c in found.calls if c.timer]
    assert fired == [
        ("silent", 0, 60.0, "fired"),
        ("silent", 3, 71.0, "failed"),
        ("silent", 7, 80.0, "emitted"),
    ]
    set_by = {c.event.key: c.reads[0].by.position for c in found.calls if c.timer}
    assert set_by == {0: 0, 3: 2, 7: 3}  # the one that was set again, by the later event
    assert [o.event.cid for o in found.outputs] == [7]
    assert [(s.task, s.error) for s in found.set_aside] == [("Watch", "ValueError: three")]
    moved = app.explain(3, store=tmp_path / "store").calls[0]
    assert [(w.name, w.key, w.before, w.after) for w in moved.writes] == [("silent", 7, 70.0, 80.0)]


def test_time_that_passed_on_an_idle_stream_is_a_record_too(tmp_path: Path) -> None:
    class Idle:
        """Gives one event, then nothing for good."""

        type: Any = Any
        following = True
        name = "idle"

        def open(self, offset: Any, *, follow: bool = False, accept: bool = False) -> Any:
            return Arriving([Seen(n=7, time=1000.0)], "idle").open(offset)

    class Soon(Task[Seen]):
        def handle(self, event: Seen) -> None:
            self.due.at(event.time + 0.05)

        @timer
        def due(self) -> Silent:
            return Silent(cid=0, time=self.now)

    app = App("idle", source=Idle(), tasks=[Soon()])

    def stop(hub: Any) -> None:
        hub.stopping = hub.store.progress.numbers.get("main", 0) > 0

    app.run(store=tmp_path / "store", workers=0, on_epoch=stop)
    assert again(app, tmp_path / "store").differences == 0
    found = app.explain(1, store=tmp_path / "store")
    assert (found.kind, found.event) == ("tick", None)
    assert [(c.timer, c.reads[0].by.position) for c in found.calls] == [("due", 0)]
    assert found.ended == "output 0 of main"
    assert [e["kind"] for e in Control(tmp_path / "store").history()] == ["start"]  # time was not done to it


__all__ = ["First"]


def test_finite_sources_that_have_grown_since_are_merged_as_they_were(tmp_path: Path) -> None:
    def grown(name: str, *lines: str) -> JsonLines:
        with (tmp_path / name).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
        return JsonLines(tmp_path / name, Seen)

    def line(n: int, at: float) -> str:
        return f'{{"n": {n}, "time": {at}}}'

    for first, second in (([line(0, 10.0)], [line(1, 1.0)]), (["{", line(2, 11.0)], [line(3, 5.0)])):
        app = App("grown", sources=[grown("a.jsonl", *first), grown("b.jsonl", *second)], tasks=[Marked()])
        app.run(store=tmp_path / "store", workers=0)
    # In the second run the line that is none has no event before it.
    found = explained(app, tmp_path / "store")
    assert [e.outputs[0].number if e.outputs else None for e in found] == [0, 1, None, 2, 3]
    assert again(app, tmp_path / "store").differences == 0
