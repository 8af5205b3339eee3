"""A task that ends the process in which it runs ends the hub once; then a worker finds the event."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from secondpass.engine.oom import kills_on_machine
from secondpass.store.database import Store
from secondpass.store.format import StoredLetter
from secondpass.store.spool import Command, Spool

pytestmark = pytest.mark.usefixtures("memory_kills")

APP = """
import faulthandler, os, signal
from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines

class Seen(Event):
    n: int
    time: float

class Fatal(Task[Seen]):
    counts = table(int, int, default=0)
    def handle(self, event: Seen) -> Seen:
        if event.n in {at}:
            {how}
        self.counts[event.n % 7] += 1
        return event

app = App("fatal", source=JsonLines("seen.jsonl", Seen), tasks=[Fatal()], sink=JsonLines("out.jsonl"))
"""
EVENTS = 3000
POISON = (700, 701, 2222)


def prepare(directory: Path, how: str) -> None:
    (directory / "app.py").write_text(APP.format(at=POISON, how=how))
    lines = [json.dumps({"n": n, "time": float(n)}) for n in range(EVENTS)]
    (directory / "seen.jsonl").write_text("\n".join(lines) + "\n")


def secondpass(
    directory: Path, *arguments: str, enter: Callable[[], None] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secondpass", *arguments],
        cwd=directory,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=enter,
    )


def outputs(directory: Path) -> list[int]:
    return [json.loads(line)["n"] for line in (directory / "out.jsonl").read_text().splitlines()]


def letters(directory: Path) -> list[StoredLetter]:
    store = Store.open_to_read(directory / ".secondpass" / "fatal")
    try:
        return [letter for _, _, letter in store.letters()]
    finally:
        store.close()


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("faulthandler._sigsegv()", -11, "killed by SIGSEGV"),
        ("os.abort()", -6, "killed by SIGABRT"),
        ("os._exit(3)", 3, "ended with exit code 3"),
    ],
)
def test_an_inline_crash_happens_once_and_the_next_run_finds_the_event(
    tmp_path: Path, how: str, code: int, said: str, workers: str
) -> None:
    prepare(tmp_path, how)
    check_crashes_once(tmp_path, code, said, workers)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_hub_that_the_kernel_kills_for_want_of_memory_is_killed_once(
    tmp_path: Path, workers: str, little_memory: Callable[[], None]
) -> None:
    prepare(tmp_path, "bytearray(500_000_000)")
    check_crashes_once(tmp_path, -9, "killed by the kernel for want of memory", workers, little_memory)


def check_crashes_once(
    directory: Path, code: int, said: str, workers: str, enter: Callable[[], None] | None = None
) -> None:
    """Run until all is done: each run that ended so has got further than the one before it."""
    command, reached = ("run", "app.py", "--workers", workers), list[int]()
    while (done := secondpass(directory, *command, enter=enter)).returncode == code:
        store = Store.open_to_read(directory / ".secondpass" / "fatal")
        reached.append(store.progress.position)
        store.close()
        assert len(reached) <= len(POISON)
    assert reached
    assert sorted(set(reached)) == reached
    assert done.returncode == 0, done.stderr
    assert outputs(directory) == [n for n in range(EVENTS) if n not in POISON]
    found = letters(directory)
    assert [letter.position for letter in found] == list(POISON)
    assert all(said in letter.error for letter in found)


def test_records_that_crashed_the_hub_stay_isolated_when_the_next_runs_are_cut_short(tmp_path: Path) -> None:
    prepare(tmp_path, "os._exit(3)")
    command = ("run", "app.py", "--workers", "0", "--limit", "1000")
    assert secondpass(tmp_path, *command).returncode == 3
    for point in ("take.before", "take.after", "commit.sync.before"):
        killed = secondpass(tmp_path, *command, SECONDPASS_KILL_AT=point)
        assert killed.returncode == -9
        assert "while it ran records " in killed.stderr
    assert secondpass(tmp_path, *command).returncode == 0
    assert [letter.position for letter in letters(tmp_path)] == list(POISON[:2])
    done = secondpass(tmp_path, "run", "app.py", "--limit", "10")
    assert "WARNING" not in done.stderr


def test_records_that_crashed_the_hub_stay_isolated_when_commands_take_their_places(tmp_path: Path) -> None:
    prepare(tmp_path, "os._exit(3)")
    command = ("run", "app.py", "--workers", "0", "--limit", "701")
    assert secondpass(tmp_path, *command, SECONDPASS_EPOCH_RECORDS="1").returncode == 3
    spool = Spool(tmp_path / ".secondpass" / "fatal")
    spool.put(Command("pause"))
    spool.put(Command("resume"))
    done = secondpass(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert [letter.position for letter in letters(tmp_path)] == [n + 2 for n in POISON[:2]]


@pytest.mark.parametrize("timers", ["", "    @every(10.0)\n    def tick(self):\n        return None\n"])
def test_where_no_other_process_can_load_the_tasks_the_start_says_so_and_what_to_do(
    tmp_path: Path, timers: str
) -> None:
    prepare(tmp_path, "os._exit(3)")
    text = (tmp_path / "app.py").read_text().replace("Task, table", "Task, every, table")
    text = text.replace("class Fatal(Task[Seen]):\n", f"class Fatal(Task[Seen]):\n{timers}")
    for turn in range(3):
        done = subprocess.run(
            [sys.executable, "-c", text + "\napp.run()"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert ("no worker can run them, so they run here again" in done.stderr) == (turn > 0)
        assert ("put them into a file, at its top level\n" in done.stderr) == (turn > 0)


def test_a_poison_event_sent_again_does_not_take_the_hub_down(tmp_path: Path) -> None:
    prepare(tmp_path, "os._exit(3)")
    while secondpass(tmp_path, "run", "app.py").returncode == 3:
        pass
    for letter, workers in ("0", "2"), ("1", "0"):
        assert secondpass(tmp_path, "dead-letters", "retry", "app.py", letter).returncode == 0
        while (done := secondpass(tmp_path, "run", "app.py", "--workers", workers)).returncode == 3:
            assert workers == "0"  # without workers once, and the next run has one
        assert done.returncode == 0, done.stderr
    assert outputs(tmp_path) == [n for n in range(EVENTS) if n not in POISON]
    assert len(letters(tmp_path)) == len(POISON) + 2


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_poison_event_is_sent_again_while_the_app_is_paused_and_killed(
    tmp_path: Path, workers: str
) -> None:
    prepare(tmp_path, "os._exit(3)")
    while secondpass(tmp_path, "run", "app.py").returncode == 3:
        pass
    spool = Spool(tmp_path / ".secondpass" / "fatal")
    for command in Command("pause"), Command("retry", 0), Command("drop", 1), Command("resume"):
        spool.put(command)
    run = ("run", "app.py", "--workers", workers)
    for point in "command.after", "take.before", "commit.before", "commit.after", "spool.remove.after":
        killed = secondpass(tmp_path, *run, SECONDPASS_KILL_AT=point)
        assert killed.returncode in (-9, 3), killed.stderr  # 3: where it ran in the hub, once
    while (done := secondpass(tmp_path, *run)).returncode == 3:
        assert workers == "0"
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path) == [n for n in range(EVENTS) if n not in POISON]
    with contextlib.closing(Store.open_to_read(tmp_path / ".secondpass" / "fatal")) as store:
        assert [status for _, status, _ in store.letters()] == [
            "sent", "dropped", *["open"] * (len(POISON) - 1)
        ]  # fmt: skip


def test_a_run_that_was_killed_once_goes_on_in_its_own_process(tmp_path: Path) -> None:
    prepare(
        tmp_path,
        "n = os.open('once', os.O_CREAT | os.O_RDWR); os.fstat(n).st_size or (os.write(n, b'x'), os.kill(os.getpid(), 9))",
    )
    before = kills_on_machine()
    assert secondpass(tmp_path, "run", "app.py").returncode == -9
    done = secondpass(tmp_path, "run", "app.py", "--json")
    assert done.returncode == 0, done.stderr
    if kills_on_machine() != before:
        pytest.skip("another program ran out of memory meanwhile, which is taken for this one's end")
    assert json.loads(done.stdout)["workers"] == 0
    assert outputs(tmp_path) == list(range(EVENTS))
    assert not letters(tmp_path)


def test_an_event_at_which_two_runs_were_killed_is_run_by_a_worker(tmp_path: Path) -> None:
    prepare(
        tmp_path,
        "n = os.open('twice', os.O_CREAT | os.O_RDWR | os.O_APPEND); "
        "os.fstat(n).st_size > 1 or (os.write(n, b'x'), os.kill(os.getpid(), 9))",
    )
    before = kills_on_machine()
    codes = [secondpass(tmp_path, "run", "app.py").returncode for _ in range(2)]
    if kills_on_machine() != before:
        pytest.skip("another program ran out of memory meanwhile, which is taken for this one's end")
    assert codes == [-9, -9]
    done = secondpass(tmp_path, "run", "app.py", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["workers"] > 0
    assert outputs(tmp_path) == list(range(EVENTS))


CHANGED = """
import os, signal
from pathlib import Path
from secondpass import App, Event, Task
from secondpass.connectors import JsonLines

class Seen(Event):
    n: int
    time: float
    by: str = ""

class Mark(Task[Seen]):
    mark: str = "old"
    def handle(self, event: Seen) -> Seen:
        killed = Path("killed")
        if event.n == 700 and killed.read_text() != "xx":
            killed.write_text(killed.read_text() + "x")
            os.kill(os.getpid(), signal.SIGKILL)
        return event.replace(by=self.mark)

app = App("changed", source=JsonLines("seen.jsonl", Seen), tasks=[Mark()], sink=JsonLines("out.jsonl"))
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_command_takes_effect_also_while_records_that_killed_runs_are_on_a_worker(
    tmp_path: Path, workers: str
) -> None:
    prepare(tmp_path, "")
    (tmp_path / "app.py").write_text(CHANGED)
    (tmp_path / "killed").write_text("")
    for _ in range(2):
        assert secondpass(tmp_path, "run", "app.py", "--workers", "0").returncode == -9
    store = tmp_path / ".secondpass" / "changed"
    for command in ("pause", "set", "resume"):  # so that no event passes while its workers start
        Spool(store).put(Command(command, task="Mark", settings={"mark": "new"}))  # type: ignore[arg-type]
    done = secondpass(tmp_path, "run", "app.py", "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert "while they ran records" in done.stderr, "a worker has them"
    read = Store.open_to_read(store)
    try:
        paused, position, _ = [p for p, kind, _ in read.history() if kind == "command"]
    finally:
        read.close()
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert 0 < paused == position - 1 <= 700
    assert [event["by"] for event in found] == ["old"] * paused + ["new"] * (EVENTS - paused)
