"""Snapshots: one moment each, bounded in number, size and age, and used only where they are whole and of this store."""

from __future__ import annotations

import itertools
import linecache
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from secondpass import App, Event, Task, table
from secondpass.amounts import Keep
from secondpass.description import _source_hash
from secondpass.engine import snapshots
from secondpass.engine.explain import Explainer, positions_where
from secondpass.engine.rehearse import rehearse
from secondpass.engine.snapshots import DIRECTORY, KEPT, Kept, files, least_missed, thin
from secondpass.errors import InputError, NotRepeated, SettingsError
from secondpass.loading import load
from secondpass.store.copy import PARTIAL, Moment
from secondpass.store.reader import StoreReader
from secondpass.store.segments import segments


class Seen(Event):
    n: int
    time: float


class Count(Task[Seen]):
    step: int = 1
    seen = table(int, int, default=0)

    def handle(self, event: Seen) -> Seen | None:
        self.seen[event.n % 10] += self.step
        return event if self.seen[event.n % 10] % 3 else None


def events(count: int) -> list[Seen]:
    return [Seen(n=n, time=float(n)) for n in range(count)]


def app_of(count: int, task: Task[Any] | None = None, **more: Any) -> App:
    return App("counts", source=events(count), tasks=[task or Count()], **more)


def take(store: Path) -> Path:
    moment = Moment(store, store / DIRECTORY)
    try:
        return moment.copy()
    finally:
        moment.close()


def places(store: Path) -> list[int]:
    return sorted(files(store / DIRECTORY))


def base_of(store: Path, position: int) -> int:
    opened = StoreReader.open_to_read(store)
    base = Kept(opened).nearest(position)
    base.close()
    opened.close()
    return base.position


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots after every few records, as soon as the thread looks."""
    monkeypatch.setattr(snapshots, "RECORDS_MIN", 50)
    monkeypatch.setattr(snapshots, "FIRST_S", 0.0)
    monkeypatch.setattr(snapshots, "SHARE", 1e9)
    monkeypatch.setattr(snapshots, "_LOOK_S", 0.001)


class Slow:
    """Events that come while somebody waits for snapshots to be taken."""

    def __init__(self, store: Path, count: int, wanted: int) -> None:
        self._store, self._count, self._wanted = store, count, wanted

    def __iter__(self) -> Iterator[Seen]:
        until = time.monotonic() + 30
        n = 0
        while n < self._count or (len(places(self._store)) < self._wanted and time.monotonic() < until):
            yield Seen(n=n, time=float(n))
            n += 1


def test_a_run_takes_snapshots_on_its_way_and_each_is_a_base(often: None, tmp_path: Path) -> None:
    store = tmp_path / "store"
    App("counts", source=Slow(store, 1000, 3), tasks=[Count()]).run(store=store, workers=0)
    taken = places(store)
    assert len(taken) >= 3
    opened = StoreReader.open_to_read(store)
    end = opened.progress.position
    app = app_of(end)
    for at in taken[-3:]:
        found = Explainer(app, opened, Kept(opened).nearest).explain(min(at, end - 1))
        assert found.since == (at if at < end else taken[-2])
    opened.close()


def test_a_tiny_run_takes_none(tmp_path: Path) -> None:
    app_of(1000).run(store=tmp_path / "store", workers=0)
    assert places(tmp_path / "store") == []


def test_none_are_taken_where_none_are_wanted(often: None, tmp_path: Path) -> None:
    app_of(5000, keep_snapshots=None).run(store=tmp_path / "store", workers=0)
    assert not (tmp_path / "store" / DIRECTORY).exists()


def test_a_moment_is_one_however_much_is_written_meanwhile(tmp_path: Path) -> None:
    store = tmp_path / "store"
    app_of(300).run(store=store, workers=0)
    moment = Moment(store, store / DIRECTORY)
    app_of(900, keep_snapshots=None).run(store=store, workers=0)
    assert moment.copy() == store / DIRECTORY / "300.db"
    moment.close()
    copied = StoreReader.open_to_read(store / DIRECTORY, "300.db")
    assert copied.progress.position == 300
    copied.close()


def test_what_is_half_written_is_not_there(tmp_path: Path) -> None:
    store = tmp_path / "store"
    app_of(300).run(store=store, workers=0)
    moment = Moment(store, store / DIRECTORY)
    moment.interrupt()
    moment.close()
    assert list((store / DIRECTORY).iterdir()) == []
    left = store / DIRECTORY / f"17{PARTIAL}"
    left.write_bytes(b"of a process that was killed")
    app_of(400).run(store=store, workers=0)
    assert not left.exists()


def test_a_damaged_snapshot_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "store"
    app_of(100).run(store=store, workers=0)
    take(store)
    app_of(300).run(store=store, workers=0)
    path = take(store)
    app_of(400).run(store=store, workers=0)
    assert base_of(store, 399) == 300
    path.write_bytes(path.read_bytes()[:5000] + b"\0" * 3000)
    assert base_of(store, 399) == 100
    assert "the snapshot at position 300 is left out" in caplog.text


def test_a_snapshot_of_another_store_is_left_out(tmp_path: Path) -> None:
    for name in ("one", "other"):
        app_of(300).run(store=tmp_path / name, workers=0)
        time.sleep(0.01)  # stores are told apart by when they were made
    take(tmp_path / "other").rename(tmp_path / "moved.db")
    (tmp_path / "one" / DIRECTORY).mkdir()
    (tmp_path / "moved.db").rename(tmp_path / "one" / DIRECTORY / "300.db")
    assert base_of(tmp_path / "one", 300) == 0


def test_a_fresh_start_throws_snapshots_away(tmp_path: Path) -> None:
    store = tmp_path / "store"
    app_of(300).run(store=store, workers=0)
    take(store)
    app_of(300).run(store=store, workers=0, fresh=True)
    assert places(store) == []


# ---------------------------------------------------------------- a log that forgets


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.store.log.SEGMENT_BYTES", 1000)
    monkeypatch.setattr("secondpass.engine.pushed.RETAIN_EVERY_S", 0.0)
    monkeypatch.setattr(snapshots, "_LOOK_S", 0.001)
    monkeypatch.setattr(snapshots, "SHARE", 1e9)


def test_what_stays_of_a_log_that_forgets_can_be_run_again(small_segments: None, tmp_path: Path) -> None:
    store = tmp_path / "store"
    app = App("pushed", tasks=[Count()], keep_log="5kB")

    def push(hub: Any = None) -> None:
        time.sleep(0.005)  # for the thread to look
        first = hub.store.progress.position if hub else 0
        app.log.append([Seen(n=n, time=float(n)) for n in range(first, first + 20)])

    app.running_store = store
    push()
    app.run(store=store, workers=0, limit=2000, on_epoch=push)
    left = segments(store / "log")
    assert left[0] > 0
    opened = StoreReader.open_to_read(store)
    oldest = Kept(opened).oldest(app)
    assert left[0] <= oldest.position < 2000
    assert positions_where(app, opened, oldest, {"n": "1990"}) == [1990]
    with pytest.raises(
        SettingsError, match=rf"no event since position {oldest.position} \(what was before is gone\)"
    ):
        positions_where(app, opened, oldest, {"n": "3"})
    found = rehearse(app, opened, settings={"Count": {"step": 2}}, workers=0)
    assert (found.begin, found.end) == (oldest.position, 2000)
    assert found.notes[0] == f"the input before position {oldest.position} is gone: it begins there"
    for begin in (0, 0.0):
        with pytest.raises(InputError, match=rf"what came since can be rehearsed: --from {oldest.position}"):
            rehearse(app, opened, begin=begin, workers=0)
    oldest.close()
    opened.close()
    assert app.explain(1999, store=store).event == Seen(n=1999, time=1999.0)
    with pytest.raises(InputError, match=rf"are gone .* from position {oldest.position} on can still be"):
        app.explain(0, store=store)


def test_a_slow_stream_whose_log_forgets_by_age_has_snapshots_of_that_age(
    small_segments: None, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    app = App("slow", source=events(60), tasks=[Count()], keep_log="200ms")
    app.run(store=store, workers=0, on_epoch=lambda _hub: time.sleep(0.06))
    assert places(store)
    assert all(time.time() - path.stat().st_mtime < 1.0 for path in files(store / DIRECTORY).values())


APP = """
from secondpass import App, Event, Task, table


class Seen(Event):
    n: int
    time: float


class Count(Task[Seen]):
    seen = table(int, int, default=0)

    def handle(self, event: Seen) -> Seen:
        self.seen[event.n % 10] += 1
        return event


def counts(upto: int) -> App:
    return App("counts", source=[Seen(n=n, time=float(n)) for n in range(upto)], tasks=[Count()])
"""


def test_what_ran_since_a_change_of_code_is_explained_from_the_snapshot_of_that_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    store, file = tmp_path / "store", tmp_path / "counting_app.py"

    def app(upto: int) -> App:
        monkeypatch.setitem(sys.modules, "counting_app", ModuleType("counting_app"))
        return load(f"{file}:made_of_{upto}()")

    ends = "\n\ndef made_of_300():\n    return counts(300)\n\n\ndef made_of_400():\n    return counts(400)\n"
    file.write_text(APP + ends)
    app(300).run(store=store, workers=0)
    file.write_text(APP.replace("+= 1", "+= 5") + ends)
    linecache.checkcache(str(file))
    _source_hash.cache_clear()
    changed = app(400)
    changed.run(store=store, workers=0)
    assert places(store) == [300]
    found = changed.explain(350, store=store)
    (write,) = found.calls[0].writes
    assert (found.since, write.after - write.before) == (300, 5)
    (read,) = found.calls[0].reads
    assert read.by.position == 340
    # What the other code wrote is there, and that nobody can say who wrote it.
    (read,) = changed.explain(305, store=store).calls[0].reads
    assert (read.value, read.by.position) == (30, None)
    assert "the code of task Count has changed since position 0" in read.by.unknown
    with pytest.raises(NotRepeated, match="the code of task Count has changed since position 0"):
        changed.explain(250, store=store)


# ---------------------------------------------------------------- bounds


def made(directory: Path, positions: list[int], size: int = 10) -> None:
    directory.mkdir(exist_ok=True)
    for i, position in enumerate(positions):
        path = directory / f"{position}.db"
        path.write_bytes(b"x" * size)
        os.utime(path, (1000.0 + i, 1000.0 + i))


def test_many_snapshots_are_thinned_out_the_old_ones_most(tmp_path: Path) -> None:
    directory = tmp_path / DIRECTORY
    directory.mkdir()
    for position in range(100, 100_001, 100):
        (directory / f"{position}.db").write_bytes(b"x")
        thin(directory, Keep())
    kept = sorted(files(directory))
    assert len(kept) == KEPT
    assert (kept[0], kept[-1]) == (100, 100_000)
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert gaps[-1] == 100
    assert max(gaps) == max(gaps[:3])
    # From any position the next one before it is near, for its age.
    assert all(gap <= 0.6 * (100_000 - before) + 200 for gap, before in zip(gaps, kept, strict=False))


def test_too_old_ones_go_and_then_the_oldest_until_the_rest_is_small_enough(tmp_path: Path) -> None:
    directory = tmp_path / DIRECTORY
    made(directory, [1, 2, 3, 4, 5])
    thin(directory, Keep(age_s=time.time() - 1001.5))
    assert sorted(files(directory)) == [3, 4, 5]
    thin(directory, Keep(bytes=25))
    assert sorted(files(directory)) == [4, 5]


def test_the_first_and_the_last_are_never_the_least_missed(tmp_path: Path) -> None:
    assert least_missed([0, 1, 1000]) == 1
    assert least_missed([0, 999, 1000]) == 999


def test_taking_snapshots_ends_with_the_run(often: None, tmp_path: Path) -> None:
    App("counts", source=Slow(tmp_path / "store", 500, 1), tasks=[Count()]).run(
        store=tmp_path / "store", workers=0
    )
    assert "secondpass-snapshots" not in [thread.name for thread in threading.enumerate()]
