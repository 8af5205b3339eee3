"""An app that follows its input for SECONDPASS_SOAK_SECONDS (6 in the normal run) while everything goes wrong around it.

A writer appends some hundred lines a second, cut anywhere. The app is killed, stopped and taken over,
interrupted, its disk fails, and dead letters are sent again; with tasks on workers, these are killed and stopped too.
Between faults its memory, its open files and its processes are watched: none may grow with the length of the run, and no
worker may outlive its hub. At the end all is compared with the plain loop.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from harness import (
    MALFORMED,
    MIXED,
    NAME,
    ON_WORKERS,
    Case,
    Process,
    Server,
    gone,
    lines,
    nursery_of,
    until,
    workers_of,
)

from secondpass.errors import StoreError
from secondpass.store.database import Store
from secondpass.store.spool import Command

SPECS = (NAME, MIXED, ON_WORKERS)
SECONDS = float(os.environ.get("SECONDPASS_SOAK_SECONDS") or 6) / len(SPECS)
WORKERS = 2
LINES_PER_S = 300
FAILURES = ("sys.wal.write:9:EIO", "sys.wal.sync:5:ENOSPC", "sys.sink.write:4:ENOSPC", "sys.sink.sync:3:EIO")


class Writer:
    """Appends what is due by the clock."""

    def __init__(self, case: Case, rng: random.Random) -> None:
        self._path = case.directory / "in.jsonl"
        self._rng = rng
        self._began = time.monotonic()
        self._made = 0
        self._rest = b""
        self.written = 0

    def write(self, *, whole: bool = False) -> None:
        due = int((time.monotonic() - self._began) * LINES_PER_S) - self._made
        if due > 0:
            self._rest += b"".join(lines(self._rng, due, first=self._made))
            self._made += due
        part = self._rest if whole else self._rest[: self._rng.randint(0, len(self._rest))]
        self._rest = self._rest[len(part) :]
        with self._path.open("ab") as file:
            self.written += file.write(part)


class Watch:
    """What one process holds, sampled while it runs: the hub, or the nursery."""

    def __init__(self) -> None:
        self.rss: list[int] = []
        self.files_max = 0
        self.children_max = 0

    def look(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            self.rss.append(process.memory_info().rss)
            self.files_max = max(self.files_max, process.num_fds())
            self.children_max = max(self.children_max, len(process.children()))

    def check(self) -> None:
        assert self.files_max < 64, f"{self.files_max} open files"
        # A nursery may have a worker more that has been killed and not yet been waited for, and a fork to count threads.
        assert self.children_max <= 2 * WORKERS + 1, f"{self.children_max} processes"
        third = len(self.rss) // 3
        if third > 100:
            early, late = (
                sorted(self.rss[third : 2 * third])[third // 2],
                sorted(self.rss[-third:])[third // 2],
            )
            assert late < early * 1.2 + (16 << 20), f"memory grew from {early >> 20} to {late >> 20} MiB"


def follow(
    case: Case,
    rng: random.Random,
    writer: Writer,
    watches: tuple[Watch, Watch],
    process: Process,
    seconds: float,
) -> list[psutil.Process]:
    """Write, look, and harm the workers for so long; gives the processes of the hub as they were last."""
    until_s = time.monotonic() + seconds
    family: list[psutil.Process] = []
    while time.monotonic() < until_s and not process.ended(0.0):
        writer.write()
        nursery = nursery_of(process.pid)
        family = [] if nursery is None else [nursery, *workers_of(process.pid)]
        with contextlib.suppress(psutil.Error):
            watches[0].look(psutil.Process(process.pid))
        if nursery is not None:
            watches[1].look(nursery)
            if rng.random() < 0.03:
                harm_a_worker(family, rng)
        time.sleep(0.02)
        if rng.random() < 0.005:
            ask(case, rng)
    return family


def harm_a_worker(family: list[psutil.Process], rng: random.Random) -> None:
    """Kill one, mostly; or stop one, or kill the nursery and with it all."""
    nursery, *workers = family
    with contextlib.suppress(psutil.Error):
        kind = rng.random()
        if kind < 0.1:
            nursery.kill()
        elif workers:
            (rng.choice(workers).suspend if kind < 0.2 else rng.choice(workers).kill)()


def ask(case: Case, rng: random.Random) -> None:
    try:
        found = case.letters()[-50:]
    except StoreError:
        return  # it is just being made
    if found:
        number, task = rng.choice(found)
        fields = {"n": 1, "cid": 2, "time": 3.0, "value": 4.0} if task == MALFORMED else {"value": 50.0}
        case.ask(rng.choice((Command("retry", number, fields), Command("drop", number))))


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_an_app_withstands_what_goes_wrong_around_it(
    spec: str, server: Server, tmp_path: Path, rng: random.Random, seed: int
) -> None:
    case = Case.make(tmp_path / "case", server, [])
    if spec != NAME:
        case.on_workers(spec)
    writer, watches = Writer(case, rng), (Watch(), Watch())
    ends = time.monotonic() + SECONDS
    longest_s = max(0.5, min(60.0, SECONDS / 20))
    history: list[str] = []
    stopped: list[Process] = []
    env: dict[str, str] = {}
    process = case.start("--follow")
    try:
        while time.monotonic() < ends:
            family = follow(case, rng, writer, watches, process, rng.uniform(0.1, longest_s))
            fault = rng.choice(("kill", "kill", "interrupt", "stop", "fail"))
            history.append(fault)
            env = {"SECONDPASS_TEST_FAIL": rng.choice(FAILURES)} if fault == "fail" else {}
            if not process.ended(0.0):
                if fault == "stop":
                    process.kill(signal.SIGSTOP)
                    stopped.append(process)
                else:
                    process.kill(signal.SIGINT if fault == "interrupt" else signal.SIGKILL)
                    process.wait()
                    until(lambda family=family: gone(family), timeout_s=2.0)
            # A take-over may itself be killed, so whoever was stopped once may still hold the store.
            process = case.start("--follow", *["--take-over"] * bool(stopped), **env)
        writer.write(whole=True)
        process.kill()
        process.wait()
        process = case.start("--follow", "--take-over")
        until(lambda: _caught_up(case, writer.written), timeout_s=120)
        process.kill(signal.SIGTERM)
        assert process.wait() == 0, case.log()
        case.check()
        for watch in watches:
            watch.check()
    except BaseException as error:
        error.add_note(f"SEED={seed}: {', '.join(history[-20:])}")
        raise
    finally:
        for left in stopped:  # one that was stopped before it had the lock is in nobody's way
            left.kill()


def _caught_up(case: Case, size: int) -> bool:
    store = Store.open_to_read(case.store)
    try:
        sources = store.progress.sources
        return bool(sources) and sources[0] is not None and sources[0]["offset"]["bytes"] == size
    finally:
        store.close()
