"""Known counts of real event data through the engine, and the model case: a table coupled by neighbours."""

from __future__ import annotations

import collections
import csv
import random
from pathlib import Path
from typing import Any

import engine_runs
import pytest
from engine_runs import Pace, Scripted, in_memory, in_store, steady, stored

from secondpass import App, Event, Task, table


class Alarm(Event, rename={"time": "start_timestamp"}):
    alarm_id: int
    device_id: int
    time: float


class Suppress(Task[Alarm]):
    """Drops an alarm when one was emitted at the same or a linked device at most `window_s` before."""

    window_s: float = 300.0
    same_type: bool = False
    links: tuple[tuple[int, ...], ...] = ()
    emitted = table(tuple[int, int], float)

    def keys(self, event: Alarm) -> list[tuple[int, int]]:
        kind = event.alarm_id if self.same_type else -1
        return [(device, kind) for device in self.links[event.device_id]]

    def handle(self, event: Alarm) -> Alarm | None:
        for key in self.keys(event):
            last = self.emitted.get(key)
            if last is not None and event.time - last <= self.window_s:
                return None
        self.emitted[event.device_id, event.alarm_id if self.same_type else -1] = event.time
        return event


@pytest.fixture(scope="module")
def links(shared_data: Path) -> tuple[tuple[int, ...], ...]:
    """By device: itself and the devices that it is linked with."""
    found: dict[int, set[int]] = collections.defaultdict(set)
    with (shared_data / "telecom_alarms" / "links.csv").open() as file:
        for row in csv.DictReader(file):
            a, b = int(row["device_a"]), int(row["device_b"])
            found[a].add(b)
            found[b].add(a)
    return tuple((device, *sorted(found[device])) for device in range(439))


@pytest.fixture(scope="module")
def alarms(shared_data: Path) -> list[Alarm]:
    with (shared_data / "telecom_alarms" / "alarms.csv").open() as file:
        return [
            Alarm(
                alarm_id=int(r["alarm_id"]), device_id=int(r["device_id"]), time=float(r["start_timestamp"])
            )
            for r in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    ("window_s", "same_type", "kept"),
    [
        (30.0, False, 25_948),
        (300.0, False, 13_963),
        (900.0, False, 6_744),
        (30.0, True, 46_656),
        (300.0, True, 29_120),
        (900.0, True, 15_267),
    ],
)
def test_telecom_alarms_are_suppressed_as_a_naive_loop_suppresses_them(
    links: Any, alarms: list[Alarm], window_s: float, same_type: bool, kept: int
) -> None:
    task = Suppress(window_s=window_s, same_type=same_type, links=links)
    passed: list[Alarm] = []
    summary = App("alarms", source=alarms, tasks=[task], sink=passed.append).run(store=None)
    assert len(passed) == kept
    assert (summary.events_in, summary.dead_letters) == (64_598, 0)


@pytest.mark.parametrize(("same_type", "kept"), [(False, 13_963), (True, 29_120)])
def test_telecom_alarms_are_suppressed_on_workers_as_in_a_naive_loop(
    links: Any, alarms: list[Alarm], same_type: bool, kept: int
) -> None:
    task = Suppress(same_type=same_type, links=links).options(place="workers")
    passed: list[Alarm] = []
    summary = App("alarms", source=alarms, tasks=[task], sink=passed.append).run(store=None, workers=2)
    assert len(passed) == kept
    assert (summary.events_in, summary.dead_letters, summary.workers) == (64_598, 0, 2)
    assert summary.placed["Suppress"].shipped == 64_598


def test_telecom_alarms_from_the_file_are_kept_exactly_once_when_killed_on_the_way(
    links: Any, shared_data: Path, rng: random.Random
) -> None:
    from secondpass.connectors import Csv

    def app() -> App:
        source = Csv(shared_data / "telecom_alarms" / "alarms.csv", Alarm)
        return App("alarms", source=source, tasks=[Suppress(links=links)])

    with engine_runs.memory_folder() as folder:
        ended, kills = "killed", 0
        for _ in range(100):
            pace = Pace(random.Random(rng.random()), [500, 3000, 9000], 0.1)
            kill_at = rng.randint(3, 60) if kills < 12 else None
            ended = in_store([], [], folder / "store", pace, app=app(), kill_at=kill_at)
            kills += ended == "killed"
            if ended == "end of input":
                break
        assert ended == "end of input"
        left = stored([Suppress(links=links)], folder / "store")
    assert kills
    assert len(left.streams["main"]) == 13_963
    assert left.position == 64_598
    assert left.positions["main"] == sorted(set(left.positions["main"]))


class Onset(Event):
    sensor: int
    time: float


class SuppressOnset(Task[Onset]):
    window_s: float = 300.0
    near: tuple[tuple[int, ...], ...] = ()
    emitted = table(int, float)

    def handle(self, event: Onset) -> Onset | None:
        for sensor in self.near[event.sensor]:
            last = self.emitted.get(sensor)
            if last is not None and event.time - last <= self.window_s:
                return None
        self.emitted[event.sensor] = event.time
        return event


class Speeds(Event):
    """One five-minute step of all sensors."""

    time: float
    mph: tuple[float, ...]


class Onsets(Task[Speeds]):
    """A speed below 40 after one of 40 or more."""

    before = table(int, float)

    def handle(self, event: Speeds):
        for sensor, mph in enumerate(event.mph):
            if mph < 40 <= self.before.get(sensor, 0.0):
                yield Onset(sensor=sensor, time=event.time)
            self.before[sensor] = mph


@pytest.mark.parametrize(("window_s", "kept"), [(300.0, 2_667), (900.0, 1_897)])
def test_freeway_onsets_are_found_and_suppressed_as_a_naive_loop_does(
    shared_data: Path, window_s: float, kept: int
) -> None:
    folder = shared_data / "la_freeway"
    with (folder / "los_adj.csv").open() as file:
        near = tuple(tuple(i for i, w in enumerate(row) if float(w) > 0) for row in csv.reader(file))
    with (folder / "los_speed.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    log = [Speeds(time=300.0 * i, mph=tuple(map(float, row))) for i, row in enumerate(rows)]
    onsets = in_memory([Onsets()], log, steady(500))
    assert len(onsets.streams["main"]) == 4_302
    passed = in_memory([Onsets(), SuppressOnset(window_s=window_s, near=near)], log, steady(500))
    assert len(passed.streams["main"]) == kept


# ---------------------------------------------------------------- the model case


class Detection(Event):
    cid: int
    time: float


class SuppressNeighbours(Task[Detection]):
    window_s: float = 300.0
    last_seen = table(int, float, ttl_s="window_s")

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid - 1, event.cid, event.cid + 1)

    def handle(self, event: Detection) -> Detection | None:
        last = self.last_seen.get(event.cid)
        for cid in self.keys(event):
            self.last_seen[cid] = event.time
        return event if last is None else None


@pytest.mark.parametrize("jitter", [0.0, 30.0], ids=["in order", "running backwards"])
def test_neighbours_are_suppressed_as_a_naive_loop_suppresses_them(rng: random.Random, jitter: float) -> None:
    now, log = 1632192000.0, []
    for _ in range(20_000):
        now += rng.expovariate(0.5)
        cid = rng.randint(131000000201, 131000001299)
        log.append(Detection(cid=cid, time=round(now - rng.random() * jitter, 2)))

    kept, written, largest = [], {}, float("-inf")
    for event in log:
        largest = max(largest, event.time)
        known = written.get(event.cid)
        if known is None or largest - known[1] >= 300.0:
            kept.append(event)
        for cid in (event.cid - 1, event.cid, event.cid + 1):
            written[cid] = (event.time, largest)

    for pace in (steady(100_000), steady(997), Pace(random.Random(1), [1, 50, 3000], 0.2)):
        assert in_memory([SuppressNeighbours()], log, pace, [Scripted(log)]).streams["main"] == kept
    with engine_runs.memory_folder() as folder:
        kills = 0
        while True:
            kill_at = rng.randint(2, 40) if kills < 5 else None
            ended = in_store(
                [SuppressNeighbours()], log, folder / "store", Pace(rng, [300, 5000], 0.1), kill_at=kill_at
            )
            kills += ended == "killed"
            if ended == "end of input":
                break
        left = stored([SuppressNeighbours()], folder / "store")
    assert left.streams["main"] == kept
    assert left.state["SuppressNeighbours"]["last_seen"] == {
        cid: time for cid, (time, at) in sorted(written.items()) if largest - at < 300.0
    }
