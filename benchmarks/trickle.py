"""How long a single event takes from its append to its committed output, on a stream that trickles.

    python benchmarks/trickle.py [--events N] [--rate N]

A writer process appends lines to a file; the app follows it, commits each event with a synced transaction,
and hands it to a callable, which reads the clock. The disk's own sync is measured in the same directory,
in turn with the stream, since no commit can be faster than that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from harness import machine

from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines


class Detection(Event):
    cid: int
    time: float
    sent_s: float


class Count(Task[Detection]):
    seen = table(int, int, default=0)

    def handle(self, event: Detection) -> Detection:
        self.seen[event.cid] += 1
        return event


def write(path: str, events: int, rate: float) -> None:
    """The writer process."""
    with Path(path).open("ab", buffering=0) as file:
        due = time.monotonic()
        for n in range(events):
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))  # at the rate that is asked for
            file.write(b'{"cid":%d,"time":%d.0,"sent_s":%.9f}\n' % (n % 100, n, time.monotonic()))


def fsyncs(directory: Path, taken_ms: list[float], done: threading.Event) -> None:
    """The disk's own sync of one page, while the stream trickles."""
    with (directory / "page").open("wb", buffering=0) as file:
        while not done.wait(0.05):
            file.write(os.urandom(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken_ms.append((time.perf_counter() - began) * 1000)


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000)[round(share * 1000) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(given.write, given.events, given.rate)
        return
    late_ms: list[float] = []
    sync_ms: list[float] = []
    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
        directory = Path(name)
        source = directory / "events.jsonl"
        source.touch()
        app = App("trickle", source=JsonLines(source, Detection), tasks=[Count()],
                  sink=lambda event: late_ms.append((time.monotonic() - event.sent_s) * 1000))  # fmt: skip
        done = threading.Event()
        disk = threading.Thread(target=fsyncs, args=(directory, sync_ms, done))
        options = ["--write", str(source), "--events", str(given.events), "--rate", str(given.rate)]
        writer = subprocess.Popen([sys.executable, __file__, *options])
        disk.start()
        app.run(store=directory / "store", follow=True, limit=given.events)
        done.set()
        disk.join()
        writer.wait()
    print(f"{given.events} events at {given.rate:g} a second; {machine()}\n")
    print("| | p50 | p99 |\n|-|-|-|")
    rows = {"append to committed output": late_ms[20:], "the disk's own sync": sync_ms}
    found = {label: (percentile(v, 0.5), percentile(v, 0.99)) for label, v in rows.items()}
    for label, (p50, p99) in found.items():
        print(f"| {label} | {p50:.1f} ms | {p99:.1f} ms |")
    ours, theirs = found.values()
    print(f"| above the disk's sync | {ours[0] - theirs[0]:.1f} ms | {ours[1] - theirs[1]:.1f} ms |")


if __name__ == "__main__":
    main()
