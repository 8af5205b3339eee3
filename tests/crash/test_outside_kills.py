"""Workers ended from outside: that tells nothing about an event, unless the kernel did it for want of memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from secondpass.engine.oom import kills_in_group, kills_on_machine
from secondpass.store.database import Store

pytestmark = pytest.mark.usefixtures("memory_kills")

APP = """
import os, signal
from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines

class Seen(Event):
    n: int

class Fatal(Task[Seen]):
    seen = table(int, int, default=0)
    def keys(self, event: Seen) -> tuple[int]:
        return (event.n % 7,)
    def handle(self, event: Seen) -> Seen:
        self.seen[event.n % 7] += 1
        if event.n == 50:
            {at_fifty}
        return event

app = App("fatal", source=[Seen(n=n) for n in range(200)], tasks=[Fatal().options(place="workers")],
          sink=JsonLines("out.jsonl"))
"""
HUNGRY = "bytearray(500_000_000)"


def run(directory: Path, enter: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secondpass", "run", "app.py", "--workers", "2"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=enter,
    )


def test_an_event_at_which_a_worker_is_always_killed_stops_the_app_in_front_of_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP.format(at_fifty="os.kill(os.getpid(), signal.SIGKILL)"))
    done = run(tmp_path)
    assert done.returncode == 3
    assert "ended from outside (killed by SIGKILL)" in done.stderr
    assert "position 50" in done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 50
    (tmp_path / "app.py").write_text(APP.format(at_fifty="pass"))
    assert run(tmp_path).returncode == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 200


def test_an_event_for_which_the_kernel_has_no_memory_is_set_aside(
    tmp_path: Path, little_memory: Callable[[], None]
) -> None:
    (tmp_path / "app.py").write_text(APP.format(at_fifty=HUNGRY))
    done = run(tmp_path, little_memory)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 199
    store = Store.open_to_read(tmp_path / ".secondpass" / "fatal")
    try:
        ((_, _, letter),) = store.letters()
    finally:
        store.close()
    assert letter.position == 50
    assert letter.error.endswith("killed by the kernel for want of memory")


def test_a_kill_for_memory_in_another_control_group_is_none_of_this_one(
    little_memory: Callable[[], None],
) -> None:
    here, everywhere = kills_in_group(), kills_on_machine()
    hungry = f"from secondpass.engine import oom; print(oom.kills_in_group(), flush=True); {HUNGRY}"
    done = subprocess.run(
        [sys.executable, "-c", hungry], capture_output=True, text=True, check=False, preexec_fn=little_memory
    )
    assert (done.returncode, done.stdout) == (-9, "0\n")
    assert kills_on_machine() > everywhere
    assert kills_in_group() == here
