"""Cheap chains, file to file, all guarantees on, against the loops one would write by hand.

    python benchmarks/cheap_chains.py [--events N] [--rounds N] [--only TEXT]

The hand-written loops read and write the same files and make no promise at all: no durability, no types
checked (with the standard library), no dead letters. secondpass commits every epoch with a synced
transaction.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import deque
from pathlib import Path

import msgspec
from harness import main

from secondpass import App, Event, Task, UntypedEvent, table
from secondpass.connectors import JsonLines

WINDOW_S = 300.0
FIRST_CID, CIDS = 131000000201, 1099


class Detection(Event):
    cid: int
    time: float


class SuppressNeighbours(Task[Detection]):
    window_s: float = WINDOW_S
    last_seen = table(int, float)

    def handle(self, event: Detection) -> Detection | None:
        time = event.time
        last = self.last_seen.get(event.cid)
        for cid in (event.cid - 1, event.cid, event.cid + 1):
            self.last_seen[cid] = time
        return event if last is None or time - last >= self.window_s else None


class SuppressNeighboursTtl(Task[Detection]):
    """As in the design's example."""

    window_s: float = WINDOW_S
    last_seen = table(int, float, ttl_s="window_s")

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid - 1, event.cid, event.cid + 1)

    def handle(self, event: Detection) -> Detection | None:
        last = self.last_seen.get(event.cid)
        for cid in self.keys(event):
            self.last_seen[cid] = event.time
        return event if last is None else None


class SuppressUntyped(Task[UntypedEvent]):
    window_s: float = WINDOW_S
    last_seen = table(int, float)

    def handle(self, event: UntypedEvent) -> UntypedEvent | None:
        cid, time = event["cid"], event["time"]
        last = self.last_seen.get(cid)
        for neighbour in (cid - 1, cid, cid + 1):
            self.last_seen[neighbour] = time
        return event if last is None or time - last >= self.window_s else None


class SlidingMean(Task[Detection]):
    """Pass a detection when its camera's last eight came faster than usual; lists are changed in place."""

    times = table(int, list[float], factory=list)

    def handle(self, event: Detection) -> Detection | None:
        times = self.times[event.cid]
        times.append(event.time)
        if len(times) <= 8:
            return None
        del times[0]
        return event if (times[-1] - times[0]) / 7 < 60.0 else None


def keep_known(event: Detection) -> Detection | None:
    return event if event.cid >= FIRST_CID else None


def keep_positive(event: Detection) -> Detection | None:
    return event if event.time > 0.0 else None


def keep_sane(event: Detection) -> Detection | None:
    return event if event.cid < 200000000000 else None


def app_case(name: str, task: list, typed: bool = True):
    def case(directory: Path) -> None:
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).mkdir()
        kept = directory / name / "kept.jsonl"
        source = (
            JsonLines(directory / "events.jsonl", Detection)
            if typed
            else JsonLines(directory / "events.jsonl")
        )
        App("bench", source=source, tasks=task, sink=JsonLines(kept)).run(store=directory / name / "store")

    return case


def stdlib_suppress(directory: Path) -> None:
    last_seen: dict[int, float] = {}
    with (directory / "events.jsonl").open() as source, (directory / "std.jsonl").open("w") as sink:
        for line in source:
            event = json.loads(line)
            cid, time = event["cid"], event["time"]
            last = last_seen.get(cid)
            for neighbour in (cid - 1, cid, cid + 1):
                last_seen[neighbour] = time
            if last is None or time - last >= WINDOW_S:
                sink.write(json.dumps(event) + "\n")


def msgspec_suppress(directory: Path) -> None:
    last_seen: dict[int, float] = {}
    decode = msgspec.json.Decoder(Detection).decode
    encode = msgspec.json.Encoder().encode
    with (directory / "events.jsonl").open("rb") as source, (directory / "fast.jsonl").open("wb") as sink:
        for line in source:
            event = decode(line)
            cid, time = event.cid, event.time
            last = last_seen.get(cid)
            for neighbour in (cid - 1, cid, cid + 1):
                last_seen[neighbour] = time
            if last is None or time - last >= WINDOW_S:
                sink.write(encode(event) + b"\n")


def stdlib_sliding(directory: Path) -> None:
    windows: dict[int, list[float]] = {}
    with (directory / "events.jsonl").open() as source, (directory / "std.jsonl").open("w") as sink:
        for line in source:
            event = json.loads(line)
            times = windows.get(event["cid"])
            if times is None:
                times = windows[event["cid"]] = []
            times.append(event["time"])
            if len(times) <= 8:
                continue
            del times[0]
            if (times[-1] - times[0]) / 7 < 60.0:
                sink.write(json.dumps(event) + "\n")


def stdlib_pass(directory: Path) -> None:
    with (directory / "events.jsonl").open() as source, (directory / "std.jsonl").open("w") as sink:
        for line in source:
            event = json.loads(line)
            if event["cid"] < FIRST_CID:
                continue
            if not event["time"] > 0.0:
                continue
            if not event["cid"] < 200000000000:
                continue
            sink.write(json.dumps(event) + "\n")


CASES = {
    "suppress, typed": app_case("typed", [SuppressNeighbours()]),
    "suppress, typed, ttl_s": app_case("ttl", [SuppressNeighboursTtl()]),
    "suppress, untyped": app_case("untyped", [SuppressUntyped()], typed=False),
    "lists changed in place": app_case("sliding", [SlidingMean()]),
    "three tasks pass everything": app_case("pass", [keep_known, keep_positive, keep_sane]),
    "json loop": stdlib_suppress,
    "msgspec loop": msgspec_suppress,
    "json loop, lists": stdlib_sliding,
    "json loop, three ifs": stdlib_pass,
}
PAIRS = [
    ("suppress, typed", "json loop"),
    ("suppress, typed", "msgspec loop"),
    ("suppress, typed, ttl_s", "json loop"),
    ("suppress, untyped", "json loop"),
    ("lists changed in place", "json loop, lists"),
    ("three tasks pass everything", "json loop, three ifs"),
]


def prepare(directory: Path, given) -> None:
    """A stream of detections from a fixed seed; each pair of files must agree before anything is timed."""
    rng = random.Random(1)
    time, lines = 1632192265.0, deque()
    with (directory / "events.jsonl").open("w") as file:
        for _ in range(given.events):
            time += rng.random() * 0.5
            lines.append(f'{{"cid":{FIRST_CID + rng.randrange(CIDS)},"time":{time:.2f}}}\n')
            if len(lines) == 10_000:
                file.writelines(lines)
                lines.clear()
        file.writelines(lines)


if __name__ == "__main__":
    main(__file__, CASES, PAIRS, prepare)
