"""How long a store with a million cells takes from the start of the process to its first new output.

python benchmarks/reopen.py [--cells N] [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import machine

from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines


class Seen(Event):
    key: int
    time: float


class Last(Task[Seen]):
    last = table(int, float)

    def handle(self, event: Seen) -> Seen | None:
        again = event.key in self.last
        self.last[event.key] = event.time
        return event if again else None


def run(directory: Path) -> None:
    app = App("reopen", source=JsonLines(directory / "in.jsonl", Seen), tasks=[Last()],
              sink=lambda event: print(time.time(), flush=True))  # fmt: skip
    app.run(store=directory / "store")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.directory:
        run(given.directory)
        return
    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
        directory = Path(name)
        with (directory / "in.jsonl").open("w") as file:
            file.writelines(f'{{"key":{n},"time":{n}.5}}\n' for n in range(given.cells))
        run(directory)
        taken: list[float] = []
        for n in range(given.rounds):
            with (directory / "in.jsonl").open("a") as file:
                file.write(f'{{"key":{n},"time":{given.cells}.5}}\n')
            began = time.time()
            child = subprocess.run(
                [sys.executable, __file__, "--directory", name], check=True, capture_output=True
            )
            taken.append(float(child.stdout) - began)
        size = sum(p.stat().st_size for p in (directory / "store").iterdir()) / 2**20
    print(f"{given.cells:,} cells, {size:.0f} MB on disk, {given.rounds} rounds; {machine()}\n")
    print(
        f"process start to first new output: median {statistics.median(taken):.2f} s, worst {max(taken):.2f} s"
    )


if __name__ == "__main__":
    main()
