"""What it costs to push events: durable appends from processes and threads while a cheap chain takes them.

    python benchmarks/pushed.py [--events N] [--single N] [--rounds N]

Two processes append batches of 500 while the app runs, and the app keeps up: the time is that until its last commit.
Four threads append event after event, each call returning when its event is durable. The disk's own sync is measured
beside them, after appends of the same sizes. The log's share: CPU seconds of the processes that append, and what
reading the log takes of the hub's.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from harness import machine

from secondpass import App, Event, Log, Task, table
from secondpass.engine.loop import Hub
from secondpass.engine.pushed import LogFeed
from secondpass.engine.run import run_app
from secondpass.store.log import datasync

BATCH, PROCESSES, THREADS = 500, 2, 4


class Detection(Event):
    cid: int
    time: float
    lane: int
    score: float


class Suppress(Task[Detection]):
    """A cheap task: a look at a cell, and now and then a new value."""

    window_s: float = 30.0
    last_seen = table(int, float)

    def handle(self, event: Detection) -> Detection | None:
        last = self.last_seen.get(event.cid)
        if last is not None and event.time - last < self.window_s:
            return None
        self.last_seen[event.cid] = event.time
        return event


def detections(first: int, count: int) -> list[Detection]:
    return [Detection(cid=n % 997, time=n / 100, lane=n % 4, score=0.5) for n in range(first, first + count)]


def feed(store: str, events: int) -> None:
    """A process that appends; it says how long that took, and what it computed."""
    made = [detections(first, BATCH) for first in range(0, events, BATCH)]
    log = Log(store)
    log.last("nobody")  # open
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu = time.perf_counter(), time.process_time()
    for batch in made:
        log.append(batch)
    print(time.perf_counter() - began, time.process_time() - cpu, flush=True)


class Watched:
    """The hub's time in reading the log, and when all was committed."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.read_s = 0.0
        self.ended_at = 0.0
        self.behind: list[int] = []

    def started(self, hub: Hub) -> None:
        (feed,) = (f.reader for f in hub.intake._feeds)
        assert isinstance(feed, LogFeed)
        read = feed.read

        def timed(limit: int) -> Any:
            began = time.thread_time()
            found = read(limit)
            self.read_s += time.thread_time() - began
            return found

        feed.read = timed  # type: ignore[method-assign]  # the same call, timed
        self.feed = feed

    def epoch(self, hub: Hub) -> None:
        if hub.summary.events_in:
            self.behind.append(self.feed.reader.durable - hub.summary.position)
        if hub.summary.events_in >= self.events and not self.ended_at:
            self.ended_at = time.perf_counter()


def batches(directory: Path, events: int) -> dict[str, float]:
    """Two processes and the app at once."""
    store, each = directory / "store", events // PROCESSES // BATCH * BATCH
    command = [sys.executable, __file__, "--feed", str(store), "--events", str(each)]
    feeders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for feeder in feeders:
        assert feeder.stdout is not None
        feeder.stdout.readline()
    watched = Watched(each * PROCESSES)
    app = App("pushed", tasks=[Suppress()], workers=0)
    began = 0.0

    def started(hub: Hub) -> None:
        nonlocal began
        watched.started(hub)
        began = time.perf_counter()
        for feeder in feeders:
            assert feeder.stdin is not None
            feeder.stdin.write("go\n")
            feeder.stdin.flush()

    cpu = time.process_time()
    run_app(app, store=store, limit=watched.events, on_start=started, on_epoch=watched.epoch)
    cpu = time.process_time() - cpu
    told = [list(map(float, feeder.communicate()[0].split())) for feeder in feeders]
    wall_s, append_s, append_cpu_s = (
        watched.ended_at - began,
        max(t[0] for t in told),
        sum(t[1] for t in told),
    )
    return {
        "appended": watched.events / append_s,
        "committed": watched.events / wall_s,
        "behind": statistics.median(watched.behind),
        "append_us": append_cpu_s / watched.events * 1e6,
        "read_us": watched.read_s / watched.events * 1e6,
        "hub_us": cpu / watched.events * 1e6,
        "bytes": sum(p.stat().st_size for p in (store / "log").glob("*.log")) / watched.events,
    }


def singly(directory: Path, events: int, threads: int) -> float:
    """Events a second, one in each call."""
    log = Log(directory / f"single-{threads}")
    log.last("nobody")
    made = detections(0, events // threads)

    def append() -> None:
        for event in made:
            log.append(event)

    feeding = [threading.Thread(target=append) for _ in range(threads)]
    began = time.perf_counter()
    for thread in feeding:
        thread.start()
    for thread in feeding:
        thread.join()
    rate = len(made) * threads / (time.perf_counter() - began)
    log.close()
    return rate


def sync_ms(directory: Path, size: int, count: int = 200) -> float:
    """The disk's own: so many bytes are appended to a file and synced."""
    taken: list[float] = []
    fd = os.open(directory / f"plain-{size}", os.O_RDWR | os.O_CREAT)
    for n in range(count):
        os.pwrite(fd, os.urandom(size), n * size)
        began = time.perf_counter()
        datasync(fd)
        taken.append((time.perf_counter() - began) * 1000)
    os.close(fd)
    return statistics.median(taken)


def latency_ms(directory: Path, events: int) -> float:
    """From the call of `append` to the output, in an app that has nothing else to do."""
    late: list[float] = []
    app = App("late", sink=lambda event: late.append((time.monotonic() - event.time) * 1000), workers=0)
    log = Log(directory / "late")

    def append() -> None:
        for n in range(events):
            time.sleep(0.01)  # so that each finds the app idle
            log.append(Detection(cid=n, time=time.monotonic(), lane=0, score=0.5))

    thread = threading.Thread(target=append)
    thread.start()
    app.run(store=directory / "late", limit=events)
    thread.join()
    return statistics.median(late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--single", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--feed", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.feed:
        feed(given.feed, given.events)
        return
    rounds: list[dict[str, float]] = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
            directory = Path(name)
            found = batches(directory, given.events)
            found["sync of a batch"] = sync_ms(directory, round(found["bytes"] * BATCH))
            for threads in (1, THREADS, 16):
                found[f"{threads} threads"] = singly(directory, given.single, threads)
            found["sync of one"] = sync_ms(directory, round(found["bytes"]) + 60)
            found["latency"] = latency_ms(directory, max(10, given.single // 100))
            rounds.append(found)
    m = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{given.events:,} events in batches, {given.single:,} singly; {given.rounds} rounds; {machine()}\n"
    )
    print("| | |\n|-|-|")
    print(f"| {PROCESSES} processes append batches of {BATCH}, durably | {m['appended']:,.0f}/s |")
    print(f"| ... and the app commits them meanwhile | {m['committed']:,.0f}/s |")
    print(f"| behind the log after an epoch, median | {m['behind']:,.0f} events |")
    print(f"| the disk's own sync after a batch | {m['sync of a batch']:.2f} ms |")
    for threads in (1, THREADS, 16):
        label = "1 thread appends" if threads == 1 else f"{threads} threads append"
        print(f"| {label} one by one, durably | {m[f'{threads} threads']:,.0f}/s |")
    print(f"| the disk's own sync after one | {m['sync of one']:.2f} ms |")
    print(f"| from `append` to the committed output, idle, median | {m['latency']:.1f} ms |")
    print(f"| CPU to append an event (check, encode, write) | {m['append_us']:.2f} µs |")
    print(f"| CPU to read an event from the log | {m['read_us']:.2f} µs |")
    print(f"| CPU of the hub for an event, all in all | {m['hub_us']:.2f} µs |")
    print(
        f"| the log's share of both | {(m['append_us'] + m['read_us']) / (m['append_us'] + m['hub_us']):.0%} |"
    )
    print(f"| an event in the log | {m['bytes']:.0f} bytes |")
    print(f"| peak memory of the hub | {peak:.0f} MB |")


if __name__ == "__main__":
    main()
