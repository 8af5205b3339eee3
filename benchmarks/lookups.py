"""Reference data: what a look costs an event, and how long a reload holds the stream.

    python benchmarks/lookups.py [--events N] [--rows N] [--rounds N]

looking     a task that looks each event's camera up, beside the same task with a plain dict made in setup()
reloading   a file of many rows is replaced while the app runs: how long the stream is held for what changed

Both tasks run in this process, over events in memory; their outputs are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import machine

from secondpass import App, Event, Loaded, Task, lookup
from secondpass.connectors import Csv

CAMERAS = 1_099


class Camera(Event):
    cid: int
    road: str


class Seen(Event):
    cid: int
    time: float
    road: str = ""


class Looked(Task[Seen]):
    cameras = lookup(int, Camera)

    def handle(self, event: Seen) -> Seen | None:
        camera = self.cameras.get(event.cid)
        return event if camera is None or camera.road else None


class ByHand(Task[Seen]):
    def setup(self) -> None:
        self.cameras = cameras(CAMERAS)

    def handle(self, event: Seen) -> Seen | None:
        camera = self.cameras.get(event.cid)
        return event if camera is None or camera.road else None


def cameras(count: int, moved: int = 0) -> dict[int, Camera]:
    return {cid: Camera(cid=cid, road=f"road {cid % 7 + (cid < moved)}") for cid in range(count)}


def cpu_of(task: Task[Any], events: list[Seen], lookups: dict[str, Any]) -> tuple[float, int]:
    app = App("looks", source=events, tasks=[task], lookups=lookups)
    began = time.process_time()
    summary = app.run(store=None, workers=0)
    return time.process_time() - began, summary.outputs["main"]


class Flowing:
    """Events until somebody says that it is enough."""

    def __init__(self) -> None:
        self.enough = threading.Event()

    def __iter__(self) -> Iterator[Seen]:
        n = 0
        while not self.enough.is_set():
            yield Seen(cid=n % CAMERAS, time=n / 1000)
            n += 1
            if n % 100 == 0:
                time.sleep(0.001)  # gaps, so that what a reload holds is not lost in an epoch's work


def put(path: Path, held: dict[int, Camera]) -> None:
    new = path.with_suffix(".new")
    new.write_text("cid,road\n" + "".join(f"{c.cid},{c.road}\n" for c in held.values()))
    new.rename(path)


def held_ms(rows: int, changed: int, directory: Path) -> float:
    """How long one reload that changes so many rows holds the stream."""
    file, source, hubs = directory / "cameras.csv", Flowing(), list[Any]()
    put(file, cameras(rows))
    app = App(
        "reloads",
        source=source,
        tasks=[Looked()],
        lookups={"cameras": Csv(file, Camera, key="cid", reload_s=0.2)},
    )

    def change() -> None:
        put(file, cameras(rows, changed))
        while not hubs[0].held:
            time.sleep(0.01)  # looks again whether the reload is done
        source.enough.set()

    def started(hub: Any) -> None:
        hubs.append(hub)
        threading.Thread(target=change).start()

    app.run(store=directory / "store", workers=0, on_start=started)
    ((kind, seconds),) = hubs[0].held
    assert kind == "reload"
    return seconds * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"{given.events:,} events, {given.rows:,} rows, {given.rounds} rounds; {machine()}\n")
    events = [Seen(cid=n % (2 * CAMERAS), time=n / 1000) for n in range(given.events)]
    pairs: list[tuple[float, float]] = []
    for _ in range(given.rounds):
        ours, put_out = cpu_of(Looked(), events, {"cameras": Loaded(lambda: cameras(CAMERAS))})
        hand, same = cpu_of(ByHand(), events, {})
        assert put_out == same == given.events
        pairs.append((ours, hand))
    ours, hand = (statistics.median(pair[i] for pair in pairs) / given.events * 1e6 for i in (0, 1))
    print("| | lookup | a dict of its own | ratio |\n|-|-|-|-|")
    print(f"| an event | {ours:.2f} us | {hand:.2f} us | {statistics.median(a / b for a, b in pairs):.2f} |")
    print("\n| a reload that changes | holds the stream, median | worst |\n|-|-|-|")
    for changed in (1, 100, 10_000):
        found: list[float] = []
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
                found.append(held_ms(given.rows, changed, Path(name)))
        print(
            f"| {changed:,} of {given.rows:,} rows | {statistics.median(found):.1f} ms | {max(found):.1f} ms |"
        )


if __name__ == "__main__":
    main()
