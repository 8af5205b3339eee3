"""How fast a store is read at a start, and what a small epoch costs beside the wait for the disk.

    python benchmarks/store_load.py [--cells N] [--rounds N]

Tables of several kinds are filled, closed, opened and loaded. Then epochs of one event and of a hundred are
committed to the first, with an output each, and their CPU time is taken.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from harness import machine

from secondpass.codec import codec_for, pack
from secondpass.engine.overlay import Delta
from secondpass.store.database import OutputRow, Store
from secondpass.store.format import CellCodec

NAME = ("task", "table")
STEP = 20_000
KINDS: dict[str, tuple[CellCodec, Callable[[int], Any], Callable[[int], Any]]] = {
    "int -> float": (CellCodec(codec_for(int), codec_for(float), ttl=False), int, float),
    "int -> float, ttl": (
        CellCodec(codec_for(int), codec_for(float), ttl=True),
        int,
        lambda n: (float(n), n / 2),
    ),
    "str -> int": (CellCodec(codec_for(str), codec_for(int), ttl=False), "camera {}".format, int),
    "(int, int) -> bool": (
        CellCodec(codec_for(tuple[int, int]), codec_for(bool), ttl=False),
        lambda n: (n, n % 7),
        lambda n: n % 2 == 0,
    ),
    "int -> list[float]": (
        CellCodec(codec_for(int), codec_for(list[float]), ttl=False),
        int,
        lambda n: pack([n / 2, n / 3, n / 4]),
    ),
}


def commit(store: Store, changed: dict[Any, Any], outputs: int = 0) -> None:
    before = store.progress
    progress = msgspec.structs.replace(
        before,
        position=before.position + len(changed),
        numbers=dict(before.numbers),
        totals=dict(before.totals),
        kept_from=dict(before.kept_from),
        sinks={"main": {"number": before.numbers.get("main", 0)}},
    )
    rows: list[OutputRow] = []
    if outputs:
        body = b'{"camera":17,"time":1790000000.5,"kind":"wrong-way"}\n' * outputs
        rows = [OutputRow("main", before.numbers.get("main", 0), outputs, "json", list(range(outputs)), body)]
    store.commit(progress, {NAME: Delta(changed, set())}, rows, [])


def load(directory: Path, codec: CellCodec) -> Store:
    store = Store.open(directory)
    store.load({NAME: codec})
    store.start([], [NAME], {}, {}, {})
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"{given.cells:,} cells, {given.rounds} rounds; {machine()}\n")
    print("| table | open and load | per cell | on disk |\n|-|-|-|-|")
    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
        for number, (kind, (codec, key, entry)) in enumerate(KINDS.items()):
            directory = Path(name) / str(number)
            store = load(directory, codec)
            for first in range(0, given.cells, STEP):
                commit(store, {key(n): entry(n) for n in range(first, min(given.cells, first + STEP))})
            store.close()
            taken: list[float] = []
            for _ in range(given.rounds):
                began = time.perf_counter()
                store = Store.open(directory)
                cells = store.load({NAME: codec})
                taken.append(time.perf_counter() - began)
                del cells
                store.close()
            size = sum(p.stat().st_size for p in directory.iterdir()) / given.cells
            median = statistics.median(taken)
            print(
                f"| {kind} | {median:.2f} s | {median / given.cells * 1e6:.2f} us | {size:.0f} B a cell |",
                flush=True,
            )
        print("\n| epoch | commit, CPU, median | mean | 99 % |\n|-|-|-|-|")
        store = load(Path(name) / "0", KINDS["int -> float"][0])
        for events, epochs in ((1, 3000), (100, 3000), (1000, 1000)):
            cpu: list[float] = []
            for n in range(epochs):
                changed = {(n * events + i) * 7 % given.cells: float(i) for i in range(events)}
                began = time.process_time()
                commit(store, changed, outputs=max(1, events // 10))
                cpu.append(time.process_time() - began)
            cpu.sort()
            print(
                f"| {events:,} events | {statistics.median(cpu) * 1e6:.0f} us | "
                f"{statistics.fmean(cpu) * 1e6:.0f} us | {cpu[len(cpu) * 99 // 100] * 1e6:.0f} us |"
            )
        store.close()


if __name__ == "__main__":
    main()
