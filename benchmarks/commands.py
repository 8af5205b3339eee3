"""How long a command holds the stream up, from its position on until the next event can run.

    python benchmarks/commands.py

The chain has a table of a million cells, a task of 0.2 ms on two workers, and a cheap one. While events flow, a second
thread gives commands of every kind, one after the other. What is made ready beside the stream (loading, `setup`, a trial,
new workers) does not count, since events flow meanwhile; the commit of the command does. A longer `ttl_s` looks once at each
cell of its table, to bring back none that has expired, and so takes longer the larger that is. The baseline is the same
run's commits of epochs.
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

from heavy_tasks import spins_for
from live_tasks import Busy, Known, Mark, Seen

from secondpass import App
from secondpass.control import Control

WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--each", type=int, default=15)
    given = parser.parse_args()
    hubs: list[Any] = []
    commits: list[float] = []
    ended = threading.Event()

    def source() -> Iterator[Seen]:
        for n in range(given.cells):
            yield Seen(n=n, time=0.0)
        thread = threading.Thread(target=give)
        thread.start()
        n = given.cells
        while thread.is_alive():
            n += 1
            yield Seen(n=n % given.cells, time=float(n))
        ended.set()

    def give() -> None:
        for i in range(given.each):
            control.stop("Busy")
            control.start("Busy")
            control.set("Mark", mark=f"m{i}")
            control.add(Mark(mark="x").options(name="X"), before="Mark")
            control.remove("X")
            control.replace(Mark(mark=f"r{i}"))
        for i in range(3):
            control.set("Known", window_s=1e9 + 1 + i, reason="longer")

    def on_start(hub: Any) -> None:
        hubs.append(hub)
        commit = hub.store.commit

        def timed(*args: Any, **more: Any) -> None:
            began = time.perf_counter()
            commit(*args, **more)
            if more.get("chain") is None and len(args) > 1 and args[1]:
                commits.append(time.perf_counter() - began)

        hub.store.commit = timed

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        tasks = [Known(), Busy(spins=spins_for(0.0002)).options(place="workers"), Mark()]
        app = App("commands", source=source(), tasks=tasks)
        control = Control(store, app)
        app.run(store=store, workers=WORKERS, on_start=on_start)
    assert ended.is_set()
    by_kind: dict[str, list[float]] = {}
    held = list(hubs[0].held)
    for number, (kind, held_s) in enumerate(held):
        if number >= len(held) - 3:
            kind = "set a longer ttl_s"
        by_kind.setdefault(kind, []).append(held_s * 1e3)
    commit_ms = statistics.median(commits[len(commits) // 2 :]) * 1e3
    print(f"{given.cells:,} cells; an epoch's commit takes {commit_ms:.1f} ms (median)\n")
    print("| command | times | median | longest | median, in commits |\n|-|-|-|-|-|")
    for kind, held in by_kind.items():
        print(
            f"| {kind} | {len(held)} | {statistics.median(held):.1f} ms | {max(held):.1f} ms "
            f"| {statistics.median(held) / commit_ms:.1f} x |"
        )


if __name__ == "__main__":
    main()
