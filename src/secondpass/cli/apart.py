"""Work that leaves the processor to everything else on the machine.

    nice            low priority, which workers inherit
    autogroup       where the kernel groups processes by session, priorities count within one session only. So the work is
                    done by a child in a session of its own, and that session gets the low priority

A service with a weight of its own (a cgroup) is beyond both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

from secondpass.cli.exits import ended

NICE = 15
"""Beside a busy processor it still gets about a thirtieth of it."""
_ENABLED, _OWN = Path("/proc/sys/kernel/sched_autogroup_enabled"), Path("/proc/self/autogroup")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def apart(work: Callable[[], int]) -> int:
    """Do it with low priority; gives its exit code."""
    if not _by_session():
        with _nice():
            return work()
    parent = os.getpid()
    child = os.fork()
    if not child:
        code = _alone(work, parent)
        sys.stderr.flush()
        os._exit(code)
    return _wait(child)


def _by_session() -> bool:
    """Whether this process is in such a group: one in a cgroup of its own is in none, and the file is empty."""
    with contextlib.suppress(OSError):
        return _ENABLED.read_text().strip() == "1" and bool(_OWN.read_text().strip())
    return False


def _alone(work: Callable[[], int], parent: int) -> int:
    """What the child does; whatever becomes of it is told here."""

    def begin() -> int:
        _end_with(parent)
        os.setsid()
        for _ in range(3):
            try:
                _OWN.write_text(str(NICE))
                break
            except BlockingIOError:  # the kernel allows it ten times a second
                time.sleep(0.1)  # when it allows the next
            except OSError:
                break
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICE))
        return work()

    return ended(begin)


def _end_with(parent: int) -> None:
    """Be ended by the system when the parent is."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise KeyboardInterrupt


def _wait(child: int) -> int:
    """The child's exit code. Ctrl-C reaches this process only, so it is passed on."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _nice() -> Generator[None]:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(before, NICE))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # only root may go back
            os.setpriority(os.PRIO_PROCESS, 0, before)
