"""How the benchmarks measure: whole processes, in turn, several rounds; medians and ratios pair by pair.

A script lists cases; each case runs in a process of its own (`SCRIPT --case NAME`), so that no case warms or
burdens another. The operating system's own accounting gives CPU seconds (user and system) and the peak of
memory. Machines are noisy: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Case = Callable[[Path], None]


class Taken(NamedTuple):
    cpu_s: float
    wall_s: float
    peak_mb: float


def run_once(script: str, case: str, directory: Path, extra: list[str]) -> Taken:
    """One case in a process of its own."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, script, "--case", case, "--directory", str(directory), *extra])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{script} --case {case} failed with {child.returncode}")
    return Taken(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def ratios(
    script: str, pairs: list[tuple[str, str]], directory: Path, rounds: int, extra: list[str]
) -> list[str]:
    """Rows `| ours | baseline | cpu x | wall x |`: how many times faster ours is, median over the rounds."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            taken[name].append(run_once(script, name, directory, extra))
    rows: list[str] = []
    for ours, base in pairs:
        both = list(zip(taken[base], taken[ours], strict=True))
        cpu = statistics.median(b.cpu_s / o.cpu_s for b, o in both)
        wall = statistics.median(b.wall_s / o.wall_s for b, o in both)
        o_cpu = statistics.median(t.cpu_s for t in taken[ours])
        b_cpu = statistics.median(t.cpu_s for t in taken[base])
        peak = statistics.median(t.peak_mb for t in taken[ours])
        rows.append(
            f"| {ours} | {base} | {cpu:.2f} x | {wall:.2f} x | {o_cpu:.2f} s | {b_cpu:.2f} s | {peak:.0f} MB |"
        )
    return rows


HEAD = "| secondpass | compared with | CPU | wall | CPU, ours | CPU, theirs | peak memory, ours |\n|-|-|-|-|-|-|-|"


def machine() -> str:
    """The machine and the versions, for the page that quotes the numbers."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def main(
    script: str,
    cases: dict[str, Case],
    pairs: list[tuple[str, str]],
    prepare: Callable[[Path, argparse.Namespace], None],
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """The command line that every comparing benchmark has."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--only", help="only pairs whose name holds this text")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options(parser)
    given = parser.parse_args()
    if given.case:
        cases[given.case](given.directory)
        return
    chosen = [p for p in pairs if not given.only or given.only in p[0]]
    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
        directory = Path(name)
        prepare(directory, given)
        print(f"{given.events:,} events, {given.rounds} rounds; {machine()}\n\n{HEAD}", flush=True)
        for pair in chosen:
            for row in ratios(script, [pair], directory, given.rounds, []):
                print(row, flush=True)
