"""What goes wrong outside, what is watched meanwhile and must stay flat, and what is told at the end."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter, defaultdict, deque
from pathlib import Path

import apsw
import psutil
from harness import nursery_of, told_of, workers_of

WORKERS = 2
DISK_FAILURES = (
    "sys.wal.write:9:EIO",
    "sys.wal.sync:5:ENOSPC",
    "sys.sink.write:4:ENOSPC",
    "sys.sink.sync:3:EIO",
)
REAL_PER_MINUTE = 1.0
"""How many faults a minute a machine is assumed to have that is in a bad way."""
_MIB = 1 << 20
HOGGING = 150 * _MIB
"""Only an event that wants more than there is makes a process use so much, until the kernel ends it."""
HOGS_EACH = 6
"""So many processes may do so for one event: it meets one, then three that try it alone, and others where it was killed."""
HOG_S = 30.0
"""For no longer than this, also where a process is stopped while it does."""
WAL_MAX = 20 * _MIB
"""SQLite copies it back at 4000 pages, which a commit may exceed."""
STORE_MAX = _MIB


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def _thirds(values: list[int]) -> tuple[list[int], list[int]]:
    """The middle one and the last: the first third may grow."""
    third = len(values) // 3
    return values[third : 2 * third], values[-third:]


class Watch:
    """What one kind of process holds: over the whole run, whoever it was, and in each life."""

    def __init__(self, kind: str, *, files_max: int, children_max: int) -> None:
        self._kind = kind
        self._files_max, self._children_max = files_max, children_max
        self._rss: list[int] = []
        self._files: list[int] = []
        self._held: list[int] = []
        """Open files at three looks in a row at one process, the fewest: a fork begins with those of its parent."""
        self._children = 0
        self._hogging: dict[tuple[int, float], list[float]] = defaultdict(list)
        """When a process was seen to use much memory."""
        self._lives: dict[tuple[int, float], list[tuple[float, int]]] = defaultdict(list)
        self._recent: dict[tuple[int, float], deque[int]] = defaultdict(lambda: deque(maxlen=3))

    def look(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error), process.oneshot():
            rss, files, children = process.memory_info().rss, process.num_fds(), len(process.children())
            who = process.pid, process.create_time()
            if rss > HOGGING:
                self._hogging[who].append(time.monotonic())
                return
            self._rss.append(rss)
            self._files.append(files)
            self._children = max(self._children, children)
            self._lives[who].append((time.monotonic(), rss))
            recent = self._recent[who]
            recent.append(files)
            if len(recent) == recent.maxlen:
                self._held.append(min(recent))

    def check(self, hogs: int) -> None:
        """Raise unless it is flat; so many events wanted more memory than there is."""
        assert self._children <= self._children_max, f"{self._kind}: {self._children} children"
        assert max(self._files, default=0) < self._files_max, f"{self._kind}: {max(self._files)} open files"
        times = [(at[-1] - at[0], who) for who, at in self._hogging.items()]
        assert len(times) <= HOGS_EACH * hogs, (
            f"{self._kind}: much memory in {len(times)} lives, {hogs} events"
        )
        assert max(times, default=(0.0,))[0] < HOG_S, f"{self._kind}: much memory for long: {max(times)}"
        for rss in (self._rss, *([r for _, r in life] for life in self._lives.values())):
            if len(rss) > 300:
                early, late = map(_median, _thirds(rss))
                assert late < early * 1.2 + 16 * _MIB, (
                    f"{self._kind}: memory grew from {early / _MIB:.0f} to {late / _MIB:.0f} MiB"
                )
        if len(self._held) > 300:
            early, late = map(max, _thirds(self._held))
            assert late <= early + 4, f"{self._kind}: open files grew from {early} to {late}"

    def __str__(self) -> str:
        if len(self._rss) < 3:
            return f"{self._kind}: not seen"
        life = max(self._lives.values(), key=lambda life: life[-1][0] - life[0][0])
        (began, at_first), (ended, at_last) = life[min(len(life) - 1, 30)], life[-1]
        held = self._held if len(self._held) >= 3 else self._files
        rss, files = _thirds(self._rss), _thirds(held)
        return (
            f"{self._kind}: {len(self._lives)} lives, MiB {_median(rss[0]) / _MIB:.1f} then {_median(rss[1]) / _MIB:.1f}, "
            f"open files {max(files[0])} then {max(files[1])}, children at most {self._children}, "
            f"longest life {ended - began:.0f} s, MiB {at_first / _MIB:.1f} then {at_last / _MIB:.1f}"
        )


class Family:
    """The processes of one app, whoever is its hub at the moment, and its store."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._hub = Watch("hub", files_max=64, children_max=2)
        # It may have a worker more that has been killed and not yet been waited for, and a fork to count threads.
        self._nursery = Watch("nursery", files_max=64, children_max=2 * WORKERS + 1)
        self._workers = Watch("workers", files_max=64, children_max=0)
        self._sizes: dict[str, list[int]] = {"store.db": [], "store.db-wal": []}

    def look(self, hub: int) -> list[psutil.Process]:
        """Sample all; gives the nursery and its workers, if there are any."""
        with contextlib.suppress(psutil.Error):
            self._hub.look(psutil.Process(hub))
        with contextlib.suppress(OSError):
            for name, sizes in self._sizes.items():
                sizes.append((self._store / name).stat().st_size)
        nursery = nursery_of(hub)
        if nursery is None:
            return []
        self._nursery.look(nursery)
        workers = workers_of(hub)
        for worker in workers:
            self._workers.look(worker)
        return [nursery, *workers]

    def check(self, hogs: int = 0) -> None:
        """Raise unless all is flat, but for so many events that wanted more memory than there is."""
        for watch in (self._hub, self._nursery, self._workers):
            watch.check(hogs)
        assert max(self._sizes["store.db-wal"], default=0) < WAL_MAX, "the write-ahead log grows"
        assert self._flat_part() < STORE_MAX, f"{self._flat_part()} bytes of state, outputs and free pages"

    def _flat_part(self) -> int:
        """The bytes of the database that have no reason to grow: all but the dead letters and the history."""
        db = apsw.Connection(str(self._store / "store.db"), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            grows = "SELECT sum(pgsize) FROM dbstat WHERE name IN ('dead_letters', 'history')"
            return (self._store / "store.db").stat().st_size - (db.execute(grows).get or 0)
        finally:
            db.close()

    def __str__(self) -> str:
        sizes = [
            f"{name}: at most {' then '.join(f'{max(third) / _MIB:.1f}' for third in _thirds(sizes))} MiB"
            for name, sizes in self._sizes.items()
            if len(sizes) >= 3
        ]
        sizes.append(f"store.db without dead letters and history: {self._flat_part() / _MIB:.2f} MiB")
        return "\n".join(map(str, (self._hub, self._nursery, self._workers, *sizes)))


class Faults(Counter[str]):
    """How often was done what."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()

    def per_minute(self) -> float:
        return self.total() * 60 / (time.monotonic() - self._began)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.items()))
        hours = self.total() / REAL_PER_MINUTE / 60
        return (
            f"{self.total()} faults in {time.monotonic() - self._began:.0f} s, {self.per_minute():.0f} a minute; "
            f"at {REAL_PER_MINUTE:g} a minute they fill {hours:.1f} hours: {kinds}"
        )


def _has_begun(worker: psutil.Process) -> bool:
    """Whether a forked worker is past its first lines: from then on it does not catch what its nursery catches."""
    caught = int(told_of(worker).get("SigCgt", "0"), 16)
    return not caught >> (signal.SIGCHLD - 1) & 1


def harm(family: list[psutil.Process], rng: random.Random, faults: Faults) -> None:
    """Kill a worker, mostly; or stop one, or do that to the nursery and with it to all."""
    nursery, *workers = family
    who, victim = "nursery", nursery
    if rng.random() < 0.85:
        if not workers:
            return  # a nursery that is killed three times before it has begun stops the app
        who, victim = "worker", rng.choice(workers)
    # One that is stopped before its first line cannot see its hub die; a nursery with workers has begun.
    stop = bool(workers) and rng.random() < 0.2 and (victim is nursery or _has_begun(victim))
    with contextlib.suppress(psutil.Error):
        (victim.suspend if stop else victim.kill)()
        faults[f"{'stop' if stop else 'kill'} {who}"] += 1
