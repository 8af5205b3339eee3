"""An app that follows its input for SECONDPASS_SOAK_SECONDS (6 in the normal run) while everything goes wrong around it.

A writer appends some hundred lines a second, cut anywhere. The app is killed, stopped and taken over,
interrupted, its disk fails, and dead letters are sent again; with tasks on workers, these are killed and stopped too.
Between faults its memory, its open files, its processes and its store are watched: none may grow with the length of the
run, and no worker may outlive its hub. At the end all is compared with the plain loop.
"""

import os
import random
import signal
import time
from collections.abc import Callable
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
    all_gone,
    lines,
    until,
)
from soaking import DISK_FAILURES, Family, Faults, harm

from secondpass.errors import StoreError
from secondpass.store.database import Store
from secondpass.store.spool import Command

SPECS = (NAME, MIXED, ON_WORKERS)
SECONDS = float(os.environ.get("SECONDPASS_SOAK_SECONDS") or 12) / 2 / len(SPECS)
LINES_PER_S = 300


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


def follow(
    case: Case,
    rng: random.Random,
    writer: Writer,
    family: Family,
    faults: Faults,
    process: Process,
    seconds: float,
) -> list[psutil.Process]:
    """Write, look, and harm the workers for so long; gives the processes of the hub as they were last."""
    until_s = time.monotonic() + seconds
    found: list[psutil.Process] = []
    while time.monotonic() < until_s and not process.ended(0.0):
        writer.write()
        found = family.look(process.pid)
        if found and rng.random() < 0.03:
            harm(found, rng, faults)
        time.sleep(0.02)
        if rng.random() < 0.005:
            ask(case, rng)
    return found


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
    spec: str,
    server: Server,
    tmp_path: Path,
    rng: random.Random,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    case = Case.make(tmp_path / "case", server, [])
    if spec != NAME:
        case.on_workers(spec)
    writer, family, faults = Writer(case, rng), Family(case.store), Faults()
    ends = time.monotonic() + SECONDS
    longest_s = max(0.5, min(60.0, SECONDS / 20))
    stopped: list[Process] = []
    env: dict[str, str] = {}
    process = case.start("--follow")
    try:
        while time.monotonic() < ends:
            found = follow(case, rng, writer, family, faults, process, rng.uniform(0.1, longest_s))
            fault = rng.choice(("kill hub", "kill hub", "interrupt hub", "stop hub", "fail disk"))
            faults[fault] += 1
            env = {"SECONDPASS_TEST_FAIL": rng.choice(DISK_FAILURES)} if fault == "fail disk" else {}
            if not process.ended(0.0):
                if fault == "stop hub":
                    process.kill(signal.SIGSTOP)
                    stopped.append(process)
                else:
                    process.kill(signal.SIGINT if fault == "interrupt hub" else signal.SIGKILL)
                    process.wait()
                    all_gone(found, 2.0)
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
        record_property("soak", f"{faults}\n{family}")
        family.check()
    except BaseException as error:
        error.add_note(f"SEED={seed}: {faults}\n{family}")
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
