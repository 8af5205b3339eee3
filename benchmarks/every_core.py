"""Tasks on every core against the loop one would write by hand, file to file, and against the usual pools.

    python benchmarks/every_core.py [--events N] [--rounds N] [--only TEXT] [--workers N]

The hand-written loop runs in one process, decodes with msgspec, does the same work and makes no promise. Each pair
runs in turn. "Per core" is the speed-up divided by the cores that were used; hub and workers share them. What two
processes without anything in common reach on this machine at that moment stands first: nothing can be above it.

Seconds are those of the run, from opening the files to closing them, without starting Python and importing. Events
are few for the first tenths of a second (the first epoch is short, the workers are started), which a short benchmark
feels and a long run does not: so the part after the first fifth of the events stands beside the whole. CPU is that of
the whole process and of all that it waited for; workers count through the process that starts them.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, NamedTuple, cast

import cheap_chains
import msgspec
from harness import Taken, machine, run_once
from heavy_tasks import (
    WINDOW_S,
    Detection,
    Heavy,
    HeavyOneKey,
    HeavyOwnKey,
    HeavySuppress,
    Suppress,
    burn,
    spins_for,
    write_events,
)

from secondpass import App
from secondpass.connectors import JsonLines
from secondpass.engine.loop import Hub
from secondpass.engine.placement import cores

SHORT = 0.1
"""Of the work of the other cases."""
POOL_CHUNK = 16
DECODE = msgspec.json.Decoder(Detection).decode
ENCODE = msgspec.json.Encoder().encode


class Given(NamedTuple):
    """What a case is told."""

    directory: Path
    spins: int
    workers: int


Case = Callable[[Given, "Clock"], None]


class Clock:
    """When the run began and ended, and how far it was at what time."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.marks: list[tuple[int, float]] = []

    def mark(self, position: int) -> None:
        self.marks.append((position, time.perf_counter() - self.began))

    def later_s(self, events: int) -> float | None:
        """Seconds for all events if they had all gone as those after the first fifth."""
        if not self.marks or self.marks[-1][0] < events:
            return None
        first = next(m for m in self.marks if m[0] >= events / 5)
        end = self.marks[-1]
        return (end[1] - first[1]) * events / (end[0] - first[0]) if end[0] > first[0] else None


# ---------------------------------------------------------------- secondpass


def ours(name: str, file: str, tasks: Callable[[int], list[Any]]) -> Case:
    def case(given: Given, clock: Clock) -> None:
        place = given.directory / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        source = JsonLines(given.directory / file, Detection)
        app = App(name, source=source, tasks=tasks(given.spins), sink=JsonLines(place / "out.jsonl"))

        def on_epoch(hub: Hub) -> None:
            clock.mark(hub.store.progress.position)

        clock.began = time.perf_counter()
        app.run(store=place / "store", workers=given.workers, on_epoch=on_epoch)

    return case


def cheap(name: str, *, on_workers: bool) -> Case:
    def case(given: Given, clock: Clock) -> None:
        place = given.directory / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        source = JsonLines(given.directory / "events.jsonl", cheap_chains.Detection)
        app = App(
            "cheap",
            source=source,
            tasks=[cheap_chains.SuppressNeighbours()],
            sink=JsonLines(place / "out.jsonl"),
        )
        clock.began = time.perf_counter()
        app.run(store=place / "store", workers=given.workers if on_workers else 0)

    return case


# ---------------------------------------------------------------- by hand


def plain(name: str, file: str, handle: Callable[[int], Callable[[Detection], bool]]) -> Case:
    def case(given: Given, clock: Clock) -> None:
        keeps = handle(given.spins)
        place = given.directory / name
        place.mkdir(exist_ok=True)
        with (given.directory / file).open("rb") as source, (place / "out.jsonl").open("wb") as sink:
            for line in source:
                event = DECODE(line)
                if keeps(event):
                    sink.write(ENCODE(event) + b"\n")

    return case


def suppress(spins: int) -> Callable[[Detection], bool]:
    last_seen: dict[int, float] = {}

    def keeps(event: Detection) -> bool:
        burn(spins)
        cid, at = event.cid, event.time
        last = last_seen.get(cid)
        for neighbour in (cid - 1, cid, cid + 1):
            last_seen[neighbour] = at
        return last is None or at - last >= WINDOW_S

    return keeps


def count_by(spins: int, key: Callable[[Detection], int]) -> Callable[[Detection], bool]:
    seen: Counter[int] = Counter()

    def keeps(event: Detection) -> bool:
        burn(spins)
        found = key(event)
        seen[found] += 1
        return bool(seen[found] % 3)

    return keeps


def count_all(spins: int) -> Callable[[Detection], bool]:
    return count_by(spins, lambda _: 0)


def count_own(spins: int) -> Callable[[Detection], bool]:
    return count_by(spins, lambda event: event.cid)


def worked(spins: int, line: bytes) -> Detection:
    """The part without state, in a pool's process."""
    event = DECODE(line)
    burn(spins)
    return event


def pool(given: Given, clock: Clock) -> None:
    """`map` with chunks for the work, a loop in order for the rest."""
    place = given.directory / "pool"
    place.mkdir(exist_ok=True)
    keeps = suppress(0)
    with (
        ProcessPoolExecutor(given.workers) as processes,
        (given.directory / "even.jsonl").open("rb") as source,
        (place / "out.jsonl").open("wb") as sink,
    ):
        work = functools.partial(worked, given.spins)
        for event in processes.map(work, source, chunksize=POOL_CHUNK):
            if keeps(event):
                sink.write(ENCODE(event) + b"\n")


class SharedSuppress:
    """The state behind a manager's proxy; its one thread for each caller takes turns, so a call is whole."""

    def __init__(self) -> None:
        self._keeps = suppress(0)
        self._lock = multiprocessing.Lock()

    def handle(self, event: Detection) -> Detection | None:
        with self._lock:
            return event if self._keeps(event) else None


class Manager(BaseManager):
    pass


Manager.register("SharedSuppress", SharedSuppress)

_proxy: Any = None


def _use(proxy: Any) -> None:
    global _proxy
    _proxy = proxy


def proxied(spins: int, line: bytes) -> Detection | None:
    return _proxy.handle(worked(spins, line))


def proxy(given: Given, clock: Clock) -> None:
    """The usual way to let a pool's processes see one state; in which order they do, nobody says."""
    place = given.directory / "proxy"
    place.mkdir(exist_ok=True)
    with Manager() as manager:
        shared: Any = getattr(manager, "SharedSuppress")()  # noqa: B009 - made by `register`
        with (
            ProcessPoolExecutor(given.workers, initializer=_use, initargs=(shared,)) as processes,
            (given.directory / "even.jsonl").open("rb") as source,
            (place / "out.jsonl").open("wb") as sink,
        ):
            work = functools.partial(proxied, given.spins)
            for event in processes.map(work, source, chunksize=POOL_CHUNK):
                if event is not None:
                    sink.write(ENCODE(event) + b"\n")


def alone(given: Given, clock: Clock) -> None:
    """Work and nothing else, in one process after the other."""
    for _ in range(2):
        _burn_apart(1, given.spins)


def together(given: Given, clock: Clock) -> None:
    """The same in two processes at once."""
    _burn_apart(2, given.spins)


def _burn_apart(processes: int, spins: int) -> None:
    found = [multiprocessing.Process(target=burn, args=(spins * 800,)) for _ in range(processes)]
    for process in found:
        process.start()
    for process in found:
        process.join()


# ---------------------------------------------------------------- what is compared


class Row(NamedTuple):
    """One comparison."""

    title: str
    ours: str
    base: str
    events: str
    """Which count of events it has."""
    required: float | None
    aim: float | None
    bound: str = ""
    """What the figure is measured against: the cores, one core, or the critical path."""
    exact: bool = True
    """Whether both must have written the same bytes."""


CASES: dict[str, Case] = {
    "alone": alone,
    "together": together,
    "plain": plain("plain", "even.jsonl", suppress),
    "plain short": plain("plain short", "short.jsonl", suppress),
    "plain one key": plain("plain one key", "even.jsonl", count_all),
    "plain skewed": plain("plain skewed", "skewed.jsonl", count_own),
    "plain steep": plain("plain steep", "steep.jsonl", count_own),
    "no state": ours("no-state", "even.jsonl", lambda spins: [Heavy(spins=spins), Suppress()]),
    "neighbours": ours("neighbours", "even.jsonl", lambda spins: [HeavySuppress(spins=spins)]),
    "neighbours short": ours("neighbours-short", "short.jsonl", lambda spins: [HeavySuppress(spins=spins)]),
    "one key": ours("one-key", "even.jsonl", lambda spins: [HeavyOneKey(spins=spins)]),
    "skewed": ours("skewed", "skewed.jsonl", lambda spins: [HeavyOwnKey(spins=spins)]),
    "steep": ours("steep", "steep.jsonl", lambda spins: [HeavyOwnKey(spins=spins)]),
    "cheap inline": cheap("cheap-inline", on_workers=False),
    "cheap": cheap("cheap-workers", on_workers=True),
    "pool": pool,
    "proxy": proxy,
}
WHERE = {
    "no state": "no-state",
    "neighbours short": "neighbours-short",
    "one key": "one-key",
    "cheap": "cheap-workers",
    "cheap inline": "cheap-inline",
}
CORES, ONE, PATH = "a core", "the loop", "the bound"
ROWS = [
    Row(
        "the machine: two processes, nothing shared", "together", "alone", "", None, None, CORES, exact=False
    ),
    Row("no state, 1 ms, then suppress", "no state", "plain", "events", 0.93, 0.97, CORES),
    Row("process pool, `map` in chunks", "pool", "plain", "events", None, None, CORES),
    Row("neighbour keys, 1 ms", "neighbours", "plain", "events", 0.88, 0.95, CORES),
    Row("process pool, manager proxy", "proxy", "plain", "events", None, None, CORES, exact=False),
    Row("neighbour keys, 0.1 ms", "neighbours short", "plain short", "short", 0.7, 0.85, CORES),
    Row("all on one key, 1 ms", "one key", "plain one key", "events", 0.93, 0.98, ONE),
    Row("skewed keys (Zipf 1.1), 1 ms", "skewed", "plain skewed", "events", 0.85, 0.95, PATH),
    Row("skewed keys (Zipf 2), 1 ms", "steep", "plain steep", "events", 0.85, 0.95, PATH),
    Row("cheap chain, workers beside none", "cheap", "cheap inline", "cheap", 0.97, 1.0, ONE),
]


class Run(NamedTuple):
    taken: Taken
    run_s: float
    later_s: float


def run(name: str, directory: Path, spins: int, workers: int, events: int) -> Run:
    """One case in a process of its own."""
    extra = ["--spins", str(spins), "--workers", str(workers), "--count", str(events)]
    taken = run_once(__file__, name, directory, extra)
    run_s, later_s = json.loads((directory / "took.json").read_text())
    return Run(taken, run_s, later_s or run_s)


def run_case(name: str, given: Given, events: int) -> None:
    """What that process does."""
    clock = Clock()
    CASES[name](given, clock)
    took = time.perf_counter() - clock.began
    (given.directory / "took.json").write_text(json.dumps((took, clock.later_s(events))))


def prepare(directory: Path, given: argparse.Namespace) -> dict[str, float]:
    """All inputs; gives the part of its events that is on the longest chain of each skewed one."""
    write_events(directory / "even.jsonl", given.events)
    write_events(directory / "short.jsonl", int(given.events * 0.5 / SHORT))
    cast("Any", cheap_chains).prepare(directory, argparse.Namespace(events=given.cheap_events))
    chains: dict[str, float] = {}
    for name, skew in (("skewed", 1.1), ("steep", 2.0)):
        cids = write_events(directory / f"{name}.jsonl", given.events, skew)
        chains[name] = max(Counter(cids).values()) / len(cids)
    return chains


def compare(
    rows: Iterable[Row],
    directory: Path,
    chains: dict[str, float],
    spins: dict[str, int],
    given: argparse.Namespace,
) -> None:
    """Print a line for each comparison."""
    used = min(given.workers, cores())
    counts = {"events": given.events, "short": int(given.events * 0.5 / SHORT), "cheap": given.cheap_events}
    for base, group in groupby(rows, key=lambda row: row.base):
        alike = list(group)
        events = counts.get(alike[0].events, 1)
        turns = spins.get(alike[0].events, spins["events"])
        theirs, mine = list[Run](), [list[Run]() for _ in alike]
        for _ in range(given.rounds):
            theirs.append(run(base, directory, turns, given.workers, events))
            for row, runs in zip(alike, mine, strict=True):
                runs.append(run(row.ours, directory, turns, given.workers, events))
                if row.exact:
                    _agree(directory, row)
        for row, runs in zip(alike, mine, strict=True):
            bound = {CORES: 1 / used, ONE: 1.0, PATH: max(1 / used, chains.get(row.ours, 0.0))}[row.bound]
            print(line(row, runs, theirs, bound), flush=True)


def line(row: Row, mine: list[Run], base: list[Run], bound: float) -> str:
    """A row of the table."""
    whole = statistics.median(b.run_s / m.run_s for b, m in zip(base, mine, strict=True))
    later = statistics.median(b.run_s / m.later_s for b, m in zip(base, mine, strict=True))
    against = row.bound if row.bound != PATH else f"{PATH} ({1 / bound:.2f} x)"
    goal = f"{row.required:g} | {row.aim:g}" if row.required is not None else "|"
    cpu = [statistics.median(r.taken.cpu_s for r in runs) for runs in (mine, base)]
    return (
        f"| {row.title} | {whole:.2f} x | {against} | {whole * bound:.2f} | {later * bound:.2f} | {goal} "
        f"| {statistics.median(m.run_s for m in mine):.2f} s | {cpu[0]:.2f} s | {cpu[1]:.2f} s |"
    )


def _agree(directory: Path, row: Row) -> None:
    found = [(directory / WHERE.get(n, n) / "out.jsonl").read_bytes() for n in (row.ours, row.base)]
    if not found[0] or found[0] != found[1]:
        raise SystemExit(f"{row.title}: {row.ours} and {row.base} wrote different files")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=10_000, help="of 1 ms; five times as many of 0.1 ms")
    parser.add_argument("--cheap-events", type=int, default=1_500_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="only comparisons whose title holds this text")
    for hidden in ("--case", "--directory"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--spins", "--count"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        run_case(given.case, Given(Path(given.directory), given.spins, given.workers), given.count)
        return
    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
        directory = Path(name)
        chains = prepare(directory, given)
        turns = spins_for(1e-3)
        spins = {"events": turns, "short": max(1, round(turns * SHORT))}
        print(
            f"{given.events:,} events of 1 ms ({turns:,} turns of a loop), {given.rounds} rounds, "
            f"{given.workers} workers; {machine()}\n\n"
            "| secondpass, or another | speed-up | figure beside | whole run | after the start | requirement | aim "
            "| run | CPU, ours | CPU, the loop's |\n|-|-|-|-|-|-|-|-|-|-|",
            flush=True,
        )
        rows = [row for row in ROWS if not given.only or given.only in row.title]
        compare(rows, directory, chains, spins, given)


if __name__ == "__main__":
    main()
