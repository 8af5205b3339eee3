"""An app that follows its input for SECONDPASS_SOAK_SECONDS (3 in the normal run) while everything goes wrong around it.

A writer appends some hundred lines a second, cut anywhere. The app is killed, stopped and taken over,
interrupted, its disk fails, and dead letters are sent again. Between faults its memory and its open files
are watched: neither may grow with the length of the run. At the end all is compared with the plain loop.
"""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from harness import MALFORMED, Case, Process, Server, lines, until

from secondpass.errors import StoreError
from secondpass.store.database import Store
from secondpass.store.spool import Command

SECONDS = float(os.environ.get("SECONDPASS_SOAK_SECONDS") or 3)
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
    """What one process holds, sampled while it runs."""

    def __init__(self) -> None:
        self.rss: list[int] = []
        self.files_max = 0

    def look(self, pid: int) -> None:
        try:
            process = psutil.Process(pid)
            self.rss.append(process.memory_info().rss)
            self.files_max = max(self.files_max, process.num_fds())
        except psutil.NoSuchProcess:
            pass

    def check(self) -> None:
        assert self.files_max < 64, f"{self.files_max} open files"
        third = len(self.rss) // 3
        if third > 100:
            early, late = (
                sorted(self.rss[third : 2 * third])[third // 2],
                sorted(self.rss[-third:])[third // 2],
            )
            assert late < early * 1.2 + (16 << 20), f"memory grew from {early >> 20} to {late >> 20} MiB"


def follow(
    case: Case, rng: random.Random, writer: Writer, watch: Watch, process: Process, seconds: float
) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s and not process.ended(0.0):
        writer.write()
        watch.look(process.pid)
        time.sleep(0.02)
        if rng.random() < 0.005:
            ask(case, rng)


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
def test_an_app_withstands_what_goes_wrong_around_it(
    server: Server, tmp_path: Path, rng: random.Random, seed: int
) -> None:
    case = Case.make(tmp_path / "case", server, [])
    writer, watch = Writer(case, rng), Watch()
    ends = time.monotonic() + SECONDS
    longest_s = max(0.5, min(60.0, SECONDS / 20))
    history: list[str] = []
    stopped: list[Process] = []
    env: dict[str, str] = {}
    process = case.start("--follow")
    try:
        while time.monotonic() < ends:
            follow(case, rng, writer, watch, process, rng.uniform(0.1, longest_s))
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
