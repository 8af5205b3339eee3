"""Work apart: in a session of its own, with low priority there and beside others, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondpass.cli import apart
from secondpass.errors import InputError

GROUPED = apart._by_session()

SLEEPS = """
import os, sys, time
from secondpass.cli import apart
from secondpass.cli.exits import ended

def work():
    print(os.getpid(), flush=True)
    time.sleep(60)
    return 0

apart.NICE = 0
apart._by_session = lambda: {by_session}
sys.exit(ended(lambda: apart.apart(work)))
"""


def priorities() -> tuple[int, str]:
    return os.getpriority(os.PRIO_PROCESS, 0), apart._OWN.read_text().split()[-1]


@pytest.mark.skipif(not GROUPED, reason="the kernel does not group processes by session")
def test_it_has_low_priority_within_its_session_and_beside_others(capfd: pytest.CaptureFixture[str]) -> None:
    session, before = os.getsid(0), priorities()

    def work() -> int:
        print(os.getsid(0) != session, *priorities())
        return 7

    assert apart.apart(work) == 7
    assert capfd.readouterr().out == f"True {apart.NICE} {apart.NICE}\n"
    assert priorities() == before


@pytest.mark.parametrize(
    ("file", "text"), [("_ENABLED", None), ("_ENABLED", "0\n"), ("_OWN", None), ("_OWN", "")]
)
def test_without_such_groups_it_is_done_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, text: str | None
) -> None:
    there = {"_ENABLED": "1\n", "_OWN": "/autogroup-7 nice 0\n"} | {file: text}
    for name, found in there.items():
        path = tmp_path / name
        if found is not None:
            path.write_text(found)
        monkeypatch.setattr(apart, name, path)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []

    def work() -> int:
        seen.extend([os.getpid(), os.getpriority(os.PRIO_PROCESS, 0)])
        return 3

    assert apart.apart(work) == 3
    assert seen == [os.getpid(), max(before, apart.NICE)]


def test_what_fails_there_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apart, "_by_session", lambda: True)

    def work() -> int:
        raise InputError("no such input")

    assert apart.apart(work) == 4
    found = capfd.readouterr()
    assert (found.out, found.err) == ("", "error: no such input\n")


@pytest.fixture(params=[True, False], ids=["in a session of its own", "in the command's process"])
def sleeping(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command that waits for its work, and the process that does it, whatever this machine's kernel groups."""
    program = SLEEPS.format(by_session=request.param)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def gone(pid: int) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_ctrl_c_ends_it(sleeping: tuple[subprocess.Popen[str], int]) -> None:
    process, child = sleeping
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "interrupted\n"
    assert process.returncode == 130
    assert gone(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_ends_with_who_waits_for_it(sleeping: tuple[subprocess.Popen[str], int], number: int) -> None:
    process, child = sleeping
    process.send_signal(number)
    process.wait(timeout=20)
    assert process.returncode in (-number, 128 + number)
    assert gone(child)
