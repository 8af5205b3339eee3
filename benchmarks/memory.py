"""Whether memory stays flat over a long stream whose state expires.

    python benchmarks/memory.py [--events N]

Every event of the stream has a key of its own for a while: the table grows without end unless expired cells
are reclaimed. The events are made as they are read. The process's resident memory is printed after each
tenth of the stream; the growth over the second half is the figure to look at.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from harness import machine

from secondpass import App, Event, Task, table
from secondpass.engine.run import run_app


class Seen(Event):
    key: int
    time: float


class Distinct(Task[Seen]):
    """Count what has not been seen for ten seconds; 1,000 new keys come a second."""

    seen = table(int, float, ttl_s=10.0)

    def handle(self, event: Seen) -> Seen | None:
        new = event.key not in self.seen
        self.seen[event.key] = event.time
        return event if new and event.key % 100_000 == 0 else None


def stream(events: int) -> Iterator[Seen]:
    for n in range(events):
        yield Seen(key=n // 2, time=n / 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000_000)
    events = parser.parse_args().events
    process = psutil.Process()
    marks: list[tuple[int, float, float]] = []

    def look(hub) -> None:
        if hub.summary.position >= len(marks) * events // 10:
            disk = sum(p.stat().st_size for p in Path(directory).rglob("*") if p.is_file())
            marks.append((hub.summary.position, process.memory_info().rss / 2**20, disk / 2**20))

    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as directory:
        app = App("memory", source=stream(events), tasks=[Distinct()])
        summary = run_app(app, store=Path(directory) / "store", on_epoch=look)
    print(f"{events:,} events in {summary.seconds:.0f} s; {machine()}\n")
    print("| events | resident memory | store on disk |\n|-|-|-|")
    for position, rss, disk in marks:
        print(f"| {position:,} | {rss:.0f} MB | {disk:.0f} MB |")
    half = next(m for m in marks if m[0] >= events // 2)
    print(f"\ngrowth over the second half: {marks[-1][1] / half[1]:.2f} x")


if __name__ == "__main__":
    main()
