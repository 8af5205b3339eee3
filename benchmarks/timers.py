"""A million pending timers, and cameras that are watched for silence, beside a loop written by hand.

    python benchmarks/timers.py [--cells N] [--events N] [--rounds N]

watched     each event moves its camera's timer a minute ahead, and some timers become due: what an event costs
setting     each event sets a timer of its own: what that costs, and what a pending timer takes in memory
reopening   the process is started again with all of them pending: from its start to the first output
firing      a thousand events let all of them become due: what a fired timer costs

The loop by hand reads and writes the same files with a dict and a heap. It keeps nothing: what is pending is lost with the
process.
"""

from __future__ import annotations

import argparse
import heapq
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from harness import machine

from secondpass import App, Event, Task, timer
from secondpass.connectors import JsonLines

CAMERAS = 10_000


class Seen(Event):
    cid: int
    time: float


class Silent(Event):
    cid: int
    time: float


class Watch(Task[Seen]):
    after_s: float = 60.0

    def handle(self, event: Seen) -> None:
        self.silent.at(event.time + self.after_s, event.cid)

    @timer
    def silent(self, cid: int) -> Silent:
        return Silent(cid=cid, time=self.now)


def ours(directory: Path, after_s: float) -> None:
    source, sink = JsonLines(directory / "in.jsonl", Seen), JsonLines(directory / "out.jsonl")
    App("timers", source=source, tasks=[Watch(after_s=after_s)], sink=sink).run(
        store=directory / "store", workers=0
    )


def by_hand(directory: Path, after_s: float) -> None:
    decode, encode = msgspec.json.Decoder(Seen).decode, msgspec.json.Encoder().encode
    due: dict[int, float] = {}
    heap: list[tuple[float, int]] = []
    now = float("-inf")
    with (directory / "in.jsonl").open("rb") as lines, (directory / "by_hand.jsonl").open("wb") as out:
        for line in lines:
            event = decode(line)
            now = max(now, event.time)
            while heap and heap[0][0] <= now:
                at, cid = heapq.heappop(heap)
                if due.get(cid) == at:
                    del due[cid]
                    out.write(encode(Silent(cid=cid, time=at)) + b"\n")
            due[event.cid] = event.time + after_s
            heapq.heappush(heap, (event.time + after_s, event.cid))


def child(case: str, directory: Path, after_s: float) -> dict[str, float]:
    """One case in a process of its own: its seconds, and its memory in MB."""
    began = time.time()
    asked = [sys.executable, __file__, "--case", case, "--directory", str(directory), "--after", str(after_s)]
    said = subprocess.run(asked, check=True, capture_output=True).stdout.split()
    return {"seconds": float(said[0]), "memory_mb": float(said[1]), "wall_s": time.time() - began}


def write(directory: Path, events: Iterator[tuple[int, float]], mode: str = "w") -> None:
    with (directory / "in.jsonl").open(mode) as file:
        file.writelines(f'{{"cid":{cid},"time":{at:.2f}}}\n' for cid, at in events)


def watched(count: int) -> Iterator[tuple[int, float]]:
    """Each camera every 20 s; now and then one falls silent for two minutes."""
    for n in range(count):
        cid, turn = n % CAMERAS, n // CAMERAS
        if (cid + turn // 8) % 97:
            yield cid, n * 20.0 / CAMERAS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    for hidden, kind in (("--case", str), ("--directory", Path), ("--after", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        began = time.process_time()
        {"ours": ours, "by hand": by_hand}[given.case](given.directory, given.after)
        print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    print(
        f"{given.events:,} events of {CAMERAS:,} cameras, {given.cells:,} pending timers; {given.rounds} rounds; {machine()}\n"
    )
    print("| | secondpass | by hand | ratio |\n|-|-|-|-|")
    rows: dict[str, list[tuple[float, float]]] = {}
    memory: list[tuple[float, float]] = []
    again: list[float] = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
            directory = Path(name)
            write(directory, watched(given.events))
            lines = sum(1 for _ in (directory / "in.jsonl").open())
            both = [child(case, directory, 60.0)["seconds"] / lines for case in ("ours", "by hand")]
            rows.setdefault("watched: an event", []).append((both[0], both[1]))
            assert (directory / "out.jsonl").read_bytes() == (directory / "by_hand.jsonl").read_bytes()
        with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
            directory = Path(name)
            write(directory, ((n, n / 1000) for n in range(1000)))
            small = [child(case, directory, 1e7)["memory_mb"] for case in ("ours", "by hand")]
            write(directory, ((n, n / 1000) for n in range(1000, given.cells)), "a")
            (base,) = [child("by hand", directory, 1e7)]
            set_all = child("ours", directory, 1e7)
            rows.setdefault("setting: an event", []).append(
                (set_all["seconds"] / given.cells, base["seconds"] / given.cells)
            )
            memory.append(
                tuple((found["memory_mb"] - few) * 2**20 / given.cells for found, few in zip((set_all, base), small, strict=True))
            )  # fmt: skip
            again.append(child("ours", directory, 1e7)["wall_s"])
            before = again[-1]
            write(directory, ((-1, 1e7 + n * given.cells / 1e6) for n in range(1001)), "a")
            fire, hand = child("ours", directory, 1e7), child("by hand", directory, 1e7)
            rows.setdefault("firing: a timer", []).append(
                ((fire["wall_s"] - before) / given.cells, (hand["seconds"] - base["seconds"]) / given.cells)
            )
            assert (directory / "out.jsonl").read_bytes() == (directory / "by_hand.jsonl").read_bytes()
    for what, found in rows.items():
        mine, theirs = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        ratio = statistics.median(a / b for a, b in found)
        print(f"| {what} | {mine * 1e6:.2f} us | {theirs * 1e6:.2f} us | {ratio:.1f} |")
    mine, theirs = (statistics.median(pair[i] for pair in memory) for i in (0, 1))
    print(f"| memory of a pending timer | {mine:.0f} bytes | {theirs:.0f} bytes | {mine / theirs:.1f} |")
    print(
        f"\nreopening with {given.cells:,} pending timers: median {statistics.median(again):.2f} s, worst {max(again):.2f} s"
    )


if __name__ == "__main__":
    main()
