"""What it costs to be able to explain and rehearse, and how long they take.

python benchmarks/explain.py [--events N] [--rounds N]

    snapshots       a run with them, and the same run without them, in turn
    explain         the last event, one in the middle, one in the first tenth, each by the command in a process of its own
    rehearse        the whole log with another setting, by the command, beside a run in memory
    live            a run, alone and with rehearsals beside it that never end, from another session, in turn
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from harness import machine

BUSY_CPU_S = 0.3
"""So much is more than starting Python and importing."""

APP = """
import os
from pathlib import Path

from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines

HERE = Path(__file__).parent


class Detection(Event):
    cid: int
    time: float


class Suppress(Task[Detection]):
    window_s: float = 300.0
    last = table(int, float, ttl_s="window_s")

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid - 1, event.cid, event.cid + 1)

    def handle(self, event: Detection) -> Detection | None:
        was = self.last.get(event.cid)
        for cid in (event.cid - 1, event.cid, event.cid + 1):
            self.last[cid] = event.time
        return event if was is None else None


class Count(Task[Detection]):
    seen = table(int, int, default=0)

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid,)

    def handle(self, event: Detection) -> Detection:
        self.seen[event.cid] += 1
        spin = int(os.environ.get("SPIN", "0"))
        for _ in range(spin):
            pass
        return event


keep = None if os.environ.get("SNAPSHOTS") == "none" else ("30d", "1GB")
app = App("bench", source=JsonLines(HERE / "in.jsonl", Detection), tasks=[Suppress(), Count()],
          sink=JsonLines(HERE / os.environ.get("SINK", "out.jsonl")), keep_snapshots=keep)
"""


def command(directory: Path, *arguments: str, **environment: str) -> tuple[float, float]:
    """A command in a process of its own: wall and CPU seconds."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "secondpass", *arguments],
        cwd=directory,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {child.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def run(directory: Path, name: str, *arguments: str, **environment: str) -> tuple[float, float]:
    """A fresh run into a store of its own."""
    subprocess.run(["rm", "-rf", name, f"{name}.jsonl"], cwd=directory, check=True)
    return command(
        directory, "run", "app.py", "-q", "--store", name, *arguments, SINK=f"{name}.jsonl", **environment
    )


def snapshots(directory: Path, rounds: int) -> None:
    taken: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    for _ in range(rounds):
        taken["with"].append(run(directory, "with"))
        taken["without"].append(run(directory, "without", SNAPSHOTS="none"))
    pairs = list(zip(taken["with"], taken["without"], strict=True))
    wall = statistics.median(a[0] / b[0] for a, b in pairs)
    cpu = statistics.median(a[1] / b[1] for a, b in pairs)
    count = len(list((directory / "with" / "snapshots").glob("*.db")))
    print(f"| a run with snapshots ({count} kept), to one without: wall | {wall:.3f} |")
    print(f"| the same: CPU | {cpu:.3f} |", flush=True)


def explain(directory: Path, events: int, rounds: int) -> None:
    for name, position in (
        ("the last event", events - 1),
        ("one in the middle", events // 2),
        ("one in the first tenth", events // 20),
    ):
        walls = [
            command(directory, "explain", "app.py", str(position), "--store", "with", SINK="with.jsonl")[0]
            for _ in range(rounds)
        ]
        print(
            f"| explain {name}, from the start of the command | {statistics.median(walls):.2f} s |",
            flush=True,
        )


def rehearse(directory: Path, events: int, rounds: int) -> None:
    rehearsals, runs = [], []
    for _ in range(rounds):
        rehearsals.append(
            command(
                directory,
                "rehearse",
                "app.py",
                "--store",
                "with",
                "--set",
                "Suppress.window_s=600",
                SINK="with.jsonl",
            )[0]
        )
        runs.append(run(directory, "plain")[0])
    ratio = statistics.median(a / b for a, b in zip(rehearsals, runs, strict=True))
    print(f"| a rehearsal, to a run into a store: wall | {ratio:.2f} |")
    print(f"| a rehearsal | {events / statistics.median(rehearsals):,.0f} records/s |", flush=True)


def until_busy(pid: int) -> None:
    """Wait until what a shell has started computes: beyond starting Python and importing."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            times = [child.cpu_times() for child in psutil.Process(pid).children(recursive=True)]
            if sum(t.user + t.system for t in times) > BUSY_CPU_S:
                return
        time.sleep(0.02)  # looks again
    raise RuntimeError("the rehearsal does not begin")


def live(directory: Path, rounds: int, workers: str, spin: str) -> str:
    """How much longer a run takes beside a rehearsal that never ends: that is given from another session, as from another
    terminal, since the kernel shares the processor by sessions first. Runs alone before and after it, and how much these differ among themselves."""
    ratios, alone = [], []

    def once() -> float:
        return run(directory, "live", "--workers", workers, SPIN=spin)[0]

    before = once()
    for _ in range(rounds):
        loop = (
            "while true; do $0 -m secondpass rehearse app.py --store with --set Suppress.window_s=600; done"
        )
        beside = subprocess.Popen(
            ["sh", "-c", loop, sys.executable], cwd=directory, env={**os.environ, "SINK": "with.jsonl"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            until_busy(beside.pid)
            taken = once()
        finally:
            os.killpg(beside.pid, 9)
            beside.wait()
        after = once()
        ratios.append(2 * taken / (before + after))
        alone.append(after / before)
        before = after
    return f"{statistics.median(ratios):.2f} | {min(alone):.2f} to {max(alone):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
        directory = Path(name)
        (directory / "app.py").write_text(APP)
        rng, at = random.Random(1), 0.0
        with (directory / "in.jsonl").open("w") as file:
            for _ in range(given.events):
                at += rng.expovariate(2.0)
                file.write(f'{{"cid":{rng.randrange(2000)},"time":{at:.2f}}}\n')
        print(
            f"{given.events:,} events, two tasks with state, {given.rounds} rounds; {machine()}\n\n| | |\n|-|-|"
        )
        snapshots(directory, given.rounds)
        explain(directory, given.events, given.rounds)
        rehearse(directory, given.events, given.rounds)
        inline = live(directory, given.rounds, "0", "0")
        print(
            "\n| a run beside rehearsals, to the run alone: wall | median | two runs alone, for comparison |\n|-|-|-|"
        )
        print(f"| in one process | {inline} |", flush=True)
        spun = live(directory, given.rounds, "2", "400")
        print(f"| on two workers | {spun} |", flush=True)


if __name__ == "__main__":
    main()
