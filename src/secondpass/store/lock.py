"""One process at a time writes a store: a file lock that names its holder.

The lock is the kernel's (`flock`), so a dead holder's is free at once. The file beside it says who holds
it, for messages and for `take_over`, which ends a holder that no longer answers (stopped, hung) and waits
for its lock: two processes never write, whatever the first one does when it wakes up.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
import weakref
from pathlib import Path
from typing import Any

import msgspec

from secondpass.errors import StoreError, StoreLocked
from secondpass.failpoints import failpoint

FILE = "hub.lock"
_GLANCE_S = 0.2  # for one who only looks who holds it (`holder_of`), and for a killed one's last moment
_GRACE_S = 5.0  # for a running holder to end its epoch after SIGTERM
_SHIFT_S = 2.0  # by which a clock that is set moves the start times that the system tells
_PATIENCE_S = 30.0  # for the kernel to take the lock from a killed one


class StoreLock:
    """The lock of one store directory, held from `acquire` to `release` or death."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._fd, self._owner = -1, 0

    def acquire(self, *, take_over: bool = False) -> None:
        """Take the lock; raises `StoreLocked`, naming the holder, when another process has it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _wait_for_lock(fd, _GLANCE_S):
                holder = _read_holder(fd)
                if not take_over:
                    raise StoreLocked(
                        f"the store {self.path.parent} is in use by {_describe(holder)}; end that run first, or "
                        f"end it from here with --take-over if it no longer answers",
                        holder=holder,
                    )
                _end(fd, holder, self.path.parent)
            failpoint("lock.name.before")
            os.ftruncate(fd, 0)
            failpoint("lock.name.empty")
            os.pwrite(fd, msgspec.json.encode(_me()), 0)
            os.fsync(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._owner = fd, os.getpid()
        _held.add(self)
        failpoint("lock.after")

    def release(self) -> None:
        """Let the store go."""
        if self._fd >= 0:
            if self._owner == os.getpid():
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # a child that a task has forked has it open as well
            self.let_go()

    def let_go(self) -> None:
        """Close the file, as a forked child does: the lock is its parent's."""
        _held.discard(self)
        fd, self._fd = self._fd, -1
        os.close(fd)


_held: weakref.WeakSet[StoreLock] = weakref.WeakSet()


def _let_go_of_all() -> None:
    for lock in list(_held):
        lock.let_go()


os.register_at_fork(after_in_child=_let_go_of_all)


def holder_of(directory: Path) -> dict[str, Any] | None:
    """Who holds the lock of a store now; None when nobody does."""
    try:
        fd = os.open(directory / FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_lock(fd) else _read_holder(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot_id(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _read_holder(fd: int) -> dict[str, Any]:
    try:
        named = msgspec.json.decode(os.pread(fd, 4096, 0), type=dict[str, Any])
    except msgspec.MsgspecError:
        named = {}
    pid = _holder_by_kernel(fd)
    if pid is None or named.get("pid") == pid:
        return named
    # It has the lock and has not written its name yet; what stands there is its predecessor's.
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "boot": boot_id(),
        "started": _started(pid),
        "since": "just now",
    }


def _holder_by_kernel(fd: int) -> int | None:
    """The process that holds the lock as /proc/locks tells it; None where it does not.

    A line of it: `1: FLOCK  ADVISORY  WRITE 1234 fe:00:131 0 EOF` (process, device in hex, inode).
    """
    inode = os.fstat(fd).st_ino
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None  # not Linux
    found = [line.split() for line in lines if " FLOCK " in line and " -> " not in line]
    pids = {int(parts[4]) for parts in found if parts[5].endswith(f":{inode}")}
    # An inode of the same number on another device would be a second one; 0 is a process we cannot see.
    return pids.pop() if len(pids) == 1 and min(pids) > 0 else None


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that is just starting"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def boot_id() -> str:
    """What tells this start of the machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""  # not Linux: the start time alone tells a reused process number


def _started(pid: int) -> float | None:
    """When a process started, to tell it from a later one with its number; None when it is gone."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _is_alive(pid: int, started: Any) -> bool:
    """Whether it is still the process that started then; a start time shifts a little with the clock."""
    now = _started(pid)
    return now is not None and isinstance(started, float) and abs(now - started) < _SHIFT_S


def has_gone(holder: dict[str, Any]) -> bool:
    """Whether the process that held a lock has ended; one on another machine counts as gone."""
    import psutil

    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    try:
        found = psutil.Process(pid)
        return found.status() == psutil.STATUS_ZOMBIE or not _is_alive(pid, holder.get("started"))
    except psutil.NoSuchProcess:
        return True


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP, a debugger): it cannot answer."""
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return False


def _end(fd: int, holder: dict[str, Any], directory: Path) -> None:
    """End the holder, gently first, and wait for its lock."""
    pid = holder.get("pid")
    if (
        holder.get("host") != socket.gethostname()
        or holder.get("boot") != boot_id()
        or not isinstance(pid, int)
    ):
        raise StoreError(
            f"the store {directory} is held by {_describe(holder)}, which is not on this machine; end it there"
        )
    grace_s = 0.0 if _is_stopped(pid) else _GRACE_S
    for signal_number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _PATIENCE_S)):
        if _is_alive(pid, holder.get("started")):
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                pass  # it ended just now
        if _wait_for_lock(fd, wait_s):
            return
    raise StoreError(
        f"{_describe(holder)} was killed and still holds {directory / FILE}; is it stuck in the kernel?"
    )


def _wait_for_lock(fd: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # flock has no wait with a limit
    return True
