"""Lookups of a running app: a reload stands at one place, for every task and worker, and the plain loop gives the same."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lookup_app import CHAIN, Camera, OncePerPlace, Place, Seen, cameras, text

from secondpass import App, Loaded, Task, reference
from secondpass.connectors import Csv
from secondpass.control import Control
from secondpass.engine.explain import Explainer
from secondpass.engine.live import recorded_change
from secondpass.engine.outbox import decode_events
from secondpass.engine.rehearse import rehearse
from secondpass.engine.replay import Base
from secondpass.engine.snapshots import DIRECTORY, Kept
from secondpass.errors import InputError
from secondpass.record import Change
from secondpass.store.copy import Moment
from secondpass.store.reader import StoreReader


class Flowing:
    """Events for as long as somebody is at work on the lookups, and some more."""

    def __init__(self, work: Callable[[], None], least: int = 2_000) -> None:
        self.events: list[Seen] = []
        self._least = least
        self._work = threading.Thread(target=work)

    def __iter__(self) -> Iterator[Seen]:
        self._work.start()
        left = self._least
        while left:
            n = len(self.events)
            self.events.append(Seen(cid=n * 5 % 9, time=n / 10))
            yield self.events[-1]
            if not self._work.is_alive():
                left -= 1
            elif n > self._least:
                time.sleep(0.0005)  # nobody need wait for a million of them


def put(path: Path, content: str) -> None:
    """A new version in the place of the old one, at once."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


def reloads(store: Path) -> list[dict[str, Any]]:
    return [e for e in Control(store).history() if e["kind"] == "command" and e["asked"] == "reload"]


def until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def stored(store: Path) -> list[Any]:
    found = StoreReader.open_to_read(store)
    try:
        return [event for row in found.outputs("main") for event in decode_events(row.body)]
    finally:
        found.close()


def meant(
    events: list[Any], store: Path, versions: list[dict[int, Camera]], tasks: tuple[Task[Any], ...] = CHAIN
) -> list[Any]:
    """What the plain loop gives, with the n-th reload as the n-th version."""
    log: list[Any] = list(events)
    later = iter(versions[1:])
    for entry in Control(store).history():
        if entry["kind"] == "command":
            reload = entry["asked"] == "reload"
            record = Change("reload", "cameras", next(later)) if reload else recorded_change(entry)
            log.insert(entry["position"], record)
    assert next(later, None) is None
    return reference.run(tasks, log, lookups={"cameras": versions[0]}).outputs


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reload_stands_at_one_place_for_all_tasks_and_workers(tmp_path: Path, workers: int) -> None:
    file, store = tmp_path / "cameras.csv", tmp_path / "store"
    put(file, text(0))

    def work() -> None:
        for version in range(1, 12):
            put(file, text(version))
            until(lambda version=version: len(reloads(store)) == version)

    source = Flowing(work)
    tasks = tuple(t.options(place="workers") if workers else t for t in CHAIN)
    lookups = {"cameras": Csv(file, Camera, key="cid", reload_s=0.02)}
    app = App("looking", source=source, tasks=tasks, lookups=lookups)
    summary = app.run(store=store, workers=workers)
    versions = [cameras(version) for version in range(12)]
    assert stored(store) == meant(source.events, store, versions)
    assert summary.position == len(source.events) + 11
    assert len({e.road for e in stored(store)}) == 8, "the versions did not show"


def test_what_changed_while_the_app_was_down_is_the_first_record_of_the_next_run(tmp_path: Path) -> None:
    file, store = tmp_path / "cameras.csv", tmp_path / "store"
    events = [Seen(cid=n * 5 % 9, time=n / 10) for n in range(300)]
    for upto, version in ((100, 0), (200, 1), (300, 1)):
        put(file, text(version))
        lookups = {"cameras": Csv(file, Camera, key="cid")}
        App("looking", source=events[:upto], tasks=CHAIN, lookups=lookups).run(store=store, workers=0)
    (entry,) = reloads(store)
    assert entry["position"] == 100
    assert entry["by"] == str(file)
    assert entry["rows"] == len(cameras(1))
    assert [e["rows"] for e in Control(store).history() if e["kind"] == "loaded"] == [len(cameras(0))]
    assert stored(store) == meant(events, store, [cameras(0), cameras(1)])


def test_a_file_that_cannot_be_read_stops_the_first_start_and_no_later_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, store = tmp_path / "cameras.csv", tmp_path / "store"
    events = [Seen(cid=n * 5 % 9, time=n / 10) for n in range(200)]

    def run(upto: int) -> None:
        lookups = {"cameras": Csv(file, Camera, key="cid")}
        App("looking", source=events[:upto], tasks=CHAIN, lookups=lookups).run(store=store, workers=0)

    with pytest.raises(InputError, match=r"cameras\.csv"):
        run(100)
    put(file, text(0))
    run(100)
    put(file, "cid,road,near\n7,north,not a list\n")
    run(200)
    assert "lookup cameras goes on with what was loaded last: " in caplog.text
    assert reloads(store) == []
    assert stored(store) == meant(events, store, [cameras(0)])


def status(store: Path) -> str:
    command = [sys.executable, "-m", "secondpass", "status", "--store", str(store)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


BROKEN = {
    "cid,road,near\nx,north,[]\n": "byte 14",
    "cid,road,near\n7,north,[]\n7,south,[]\n": "two rows have the key 7",
    "road\nnorth\n": "no column 'cid'",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_version_is_said_and_passed_over(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, store = tmp_path / "cameras.csv", tmp_path / "store"
    put(file, text(0))

    def work() -> None:
        put(file, content)
        until(lambda: "goes on with what was loaded last" in caplog.text)
        told.append(status(store))
        put(file, text(1))
        until(lambda: len(reloads(store)) == 1)

    told: list[str] = []
    source = Flowing(work, least=100)
    lookups = {"cameras": Csv(file, Camera, key="cid", reload_s=0.01)}
    App("looking", source=source, tasks=CHAIN, lookups=lookups).run(store=store, workers=0)
    assert BROKEN[content] in caplog.text
    assert BROKEN[content] in " ".join(told[0].split())
    assert "cannot be read again" in told[0]
    assert "cannot be read again" not in status(store)
    assert "it can be read again" in caplog.text
    assert stored(store) == meant(source.events, store, [cameras(0), cameras(1)])


def test_a_file_that_was_away_and_comes_back_as_it_was_can_be_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, store = tmp_path / "cameras.csv", tmp_path / "store"
    put(file, text(0))

    def work() -> None:
        file.rename(tmp_path / "away")
        until(lambda: "goes on with what was loaded last" in caplog.text)
        (tmp_path / "away").rename(file)
        until(lambda: "it can be read again" in caplog.text)

    lookups = {"cameras": Csv(file, Camera, key="cid", reload_s=0.01)}
    App("looking", source=Flowing(work, least=100), tasks=CHAIN, lookups=lookups).run(store=store, workers=0)
    assert reloads(store) == []
    assert "cannot be read again" not in status(store)


def test_a_function_is_asked_again(tmp_path: Path) -> None:
    store, held = tmp_path / "store", [cameras(0)]

    def work() -> None:
        held.append({7: Camera(cid=7, road="alone")})
        until(lambda: len(reloads(store)) == 1)

    source = Flowing(work, least=100)
    lookups = {"cameras": Loaded(lambda: held[-1], reload_s=0.01)}
    App("looking", source=source, tasks=CHAIN, lookups=lookups).run(store=store, workers=0)
    assert stored(store) == meant(source.events, store, held)
    assert stored(store)[-1].road == "alone of 1"


def test_a_task_that_comes_later_looks_into_the_same(tmp_path: Path) -> None:
    file, store = tmp_path / "cameras.csv", tmp_path / "store"
    put(file, text(0))

    def work() -> None:
        control.replace(Place(), name="Place")
        control.add(Place().options(name="Again"))
        put(file, text(1))
        until(lambda: len(reloads(store)) == 1)

    source = Flowing(work, least=200)
    lookups = {"cameras": Csv(file, Camera, key="cid", reload_s=0.01)}
    app = App("looking", source=source, tasks=CHAIN, lookups=lookups)
    control = Control(store, app)
    app.run(store=store, workers=0)
    assert {e.road for e in stored(store)[-9:]} == {
        f"r{(cid + 1) % 4} of {len(cameras(1))}" for cid in {e.cid for e in stored(store)[-9:]}
    }
    assert stored(store) == meant(source.events, store, [cameras(0), cameras(1)])


def test_a_task_that_looks_into_what_is_not_loaded_is_refused(tmp_path: Path) -> None:
    from secondpass import lookup
    from secondpass.errors import ChangeRefused

    class Zoned(Task[Seen]):
        zones = lookup(int, str)

        def handle(self, event: Seen) -> Seen:
            return event

    told: list[str] = []

    def work() -> None:
        with pytest.raises(ChangeRefused) as refused:
            control.add(Zoned())
        told.append(str(refused.value))

    app = App("looking", source=Flowing(work, least=50), tasks=CHAIN, lookups={"cameras": {}})
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", workers=0)
    assert told == [
        "Zoned looks into zones, which the running app has not loaded; stop the app and run it again"
    ]


def test_other_types_begin_with_what_the_file_holds_now(tmp_path: Path) -> None:
    """Stored under a type that is not declared any more, it is loaded anew."""
    from secondpass import Event, lookup

    class Other(Event):
        cid: str
        road: int

    class Counted(Task[Seen]):
        cameras = lookup(str, Other)

        def handle(self, event: Seen) -> Seen:
            return event.replace(road=str(self.cameras[str(event.cid)].road))

    store, events = tmp_path / "store", [Seen(cid=n * 5 % 9, time=n / 10) for n in range(20)]
    App("looking", source=events[:10], tasks=[Place()], lookups={"cameras": cameras(0)}).run(store=store)
    others = {str(cid): Other(cid=str(cid), road=cid) for cid in range(9)}
    App("looking", source=events, tasks=[Counted()], lookups={"cameras": others}).run(store=store, workers=0)
    assert [e.road for e in stored(store)[-10:]] == [str(e.cid) for e in events[10:]]


def test_keys_that_were_looked_up_order_the_events_on_workers() -> None:
    assert OncePerPlace().with_lookups(cameras=cameras(0)).keys(Seen(cid=1, time=0.0)) == (1, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_held_then_is_looked_into_again(tmp_path: Path, workers: int) -> None:
    """Explained and rehearsed, from the beginning or from a snapshot, whatever the file holds by now."""
    file, store = tmp_path / "cameras.csv", tmp_path / "store"
    events = [Seen(cid=n * 5 % 9, time=n / 10) for n in range(400)]
    tasks = tuple(t.options(place="workers") if workers else t for t in CHAIN)
    lookups = {"cameras": Csv(file, Camera, key="cid")}

    def app(upto: int) -> App:
        return App("looking", source=events[:upto], tasks=tasks, lookups=lookups)

    for version in range(4):
        put(file, text(version))
        app(100 * (version + 1)).run(store=store, workers=0)
        if version == 1:
            moment = Moment(store, store / DIRECTORY)
            moment.copy()
            moment.close()
    put(file, text(9))
    opened = StoreReader.open_to_read(store)
    try:
        want = meant(events, store, [cameras(version) for version in range(4)])
        for find in (lambda _: Base(), Kept(opened).nearest):
            explainer = Explainer(app(400), opened, find)
            explained = [explainer.explain(position) for position in range(opened.progress.position)]
            assert [output.event for one in explained for output in one.outputs] == want
            assert explained[100].ended.startswith("a command")
            last = [look for call in explained[-1].calls for look in call.looks]
            assert [(look.lookup, look.key, look.since) for look in last[:1]] == [
                ("cameras", events[-1].cid, 302)
            ]
            assert last[0].row == cameras(3).get(events[-1].cid)
        assert explained[-1].since > 0, "no snapshot was used"
        found = rehearse(app(400), opened, workers=workers)
        assert found.differences == 0
        assert [stream.same for stream in found.streams if stream.name == "main"] == [len(want)]
    finally:
        opened.close()
