"""What many cells cost: memory per cell, and the time of a commit beside that of a small table.

    python benchmarks/many_cells.py [--cells 10000,10000000] [--events 1000] [--epochs 20000]

Each size is measured in a process of its own: a store is filled and closed, opened and loaded (the growth of
resident memory, divided by the cells), and then written in epochs that change random cells. Commits wait for
the disk; so wall time and CPU time are both given, folding and checkpoints included. As in the loop, Python's
look for garbage is off while a commit runs.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from harness import machine

from secondpass.codec import codec_for
from secondpass.engine.overlay import Delta
from secondpass.store.database import Store
from secondpass.store.format import CellCodec

NAME = ("task", "table")
CODECS = {NAME: CellCodec(codec_for(int), codec_for(float), ttl=False)}
STEP = 20_000


def opened(directory: Path) -> tuple[Store, dict[Any, Any]]:
    store = Store.open(directory)
    cells = store.load(CODECS)
    store.start([], CODECS, {}, {}, {})
    return store, cells[NAME]


def commit(store: Store, changed: dict[int, float]) -> None:
    before = store.progress
    progress = msgspec.structs.replace(before, position=before.position + len(changed))
    store.commit(progress, {NAME: Delta(changed, set())}, [], [])


def measure(directory: Path, cells: int, events: int, epochs: int) -> None:
    """Print one row of the table."""
    process = psutil.Process()
    gc.disable()
    store, _ = opened(directory)
    for first in range(0, cells, STEP):
        commit(store, {key: key / 2 for key in range(first, min(cells, first + STEP))})
    store.close()
    # In a child: what filling left behind in this process must not hide the growth.
    subprocess.run([sys.executable, __file__, "--load", str(directory)], check=True)
    began = time.perf_counter()
    store, base = opened(directory)
    load_s = time.perf_counter() - began
    rng = random.Random(1)
    wall: list[float] = []
    cpu = 0.0
    disk_began = process.io_counters().write_bytes
    for _ in range(epochs):
        keys = [rng.randrange(cells) for _ in range(events)]
        changed = {key: base[key] + 1.0 for key in keys}  # a task reads a cell before it writes it
        began, cpu_began = time.perf_counter(), time.process_time()
        commit(store, changed)
        wall.append(time.perf_counter() - began)
        cpu += time.process_time() - cpu_began
    disk = process.io_counters().write_bytes - disk_began
    store.close()
    wall.sort()
    print(
        f"{load_s:.1f} s | {statistics.fmean(wall) * 1e3:.2f} ms | {statistics.median(wall) * 1e3:.2f} ms | "
        f"{wall[len(wall) * 99 // 100] * 1e3:.1f} ms | {wall[-1] * 1e3:.0f} ms | {cpu / epochs * 1e3:.2f} ms | "
        f"{disk / epochs / 1024:.0f} KiB |"
    )


def print_bytes_per_cell(directory: Path) -> None:
    store = Store.open_to_read(directory)
    process = psutil.Process()
    before = process.memory_info().rss
    cells = store.load(CODECS)
    print(f"{(process.memory_info().rss - before) / len(cells[NAME]):.0f} B | ", end="", flush=True)
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="10000,10000000")
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20_000)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory otherwise")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        print_bytes_per_cell(given.load)
        return
    if given.measure:
        measure(given.directory, given.measure, given.events, given.epochs)
        return
    print(f"{given.epochs:,} epochs that change {given.events:,} random cells each; {machine()}\n")
    print("| cells | memory per cell | load | commit, mean | median | 99 % | worst | CPU | written |")
    print("|-|-|-|-|-|-|-|-|-|")
    for cells in map(int, given.cells.split(",")):
        with tempfile.TemporaryDirectory(prefix="secondpass-bench-", dir=given.directory) as directory:
            print(f"| {cells:,} | ", end="", flush=True)
            command = [sys.executable, __file__, "--measure", str(cells), "--directory", directory]
            options = ["--events", str(given.events), "--epochs", str(given.epochs)]
            subprocess.run([*command, *options], check=True)


if __name__ == "__main__":
    main()
