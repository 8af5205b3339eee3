"""The usual hand-made design, for comparison: a process pool, and the task behind a manager's proxy.

    python benchmarks/by_hand.py [--events N] [--rounds N]

Each event is submitted to a `ProcessPoolExecutor(4)`; the task object with its dict lives in a manager
process, so that all workers see one state; a lock around `handle` keeps check-then-update together. The
order of events is lost, a crash loses state and events, and a cell is read over a socket.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.managers import BaseManager
from pathlib import Path

import cheap_chains
from harness import main

WINDOW_S = 300.0


class SuppressNeighbours:
    """The same task as in `cheap_chains.py`, as a plain object that several processes call."""

    def __init__(self) -> None:
        self.last_seen: dict[int, float] = {}
        self.lock = threading.Lock()

    def handle(self, event: dict) -> dict | None:
        cid, time = event["cid"], event["time"]
        with self.lock:
            last = self.last_seen.get(cid)
            for neighbour in (cid - 1, cid, cid + 1):
                self.last_seen[neighbour] = time
        return event if last is None or time - last >= WINDOW_S else None


class Manager(BaseManager):
    pass


Manager.register("SuppressNeighbours", SuppressNeighbours)

proxy = None


def start(shared) -> None:
    global proxy
    proxy = shared


def work(line: str) -> dict | None:
    return proxy.handle(json.loads(line))


def by_hand(directory: Path) -> None:
    with Manager() as manager:
        shared = manager.SuppressNeighbours()
        with (
            ProcessPoolExecutor(4, initializer=start, initargs=(shared,)) as pool,
            (directory / "events.jsonl").open() as source,
            (directory / "hand.jsonl").open("w") as sink,
        ):
            for future in [pool.submit(work, line) for line in source]:
                kept = future.result()
                if kept is not None:
                    sink.write(json.dumps(kept) + "\n")


if __name__ == "__main__":
    cases = {
        "suppress, typed": cheap_chains.CASES["suppress, typed"],
        "process pool and manager proxy": by_hand,
    }
    main(__file__, cases, [("suppress, typed", "process pool and manager proxy")], cheap_chains.prepare)
