"""The kernel's own kills where memory runs out: the only SIGKILL that tells something about an event.

The signal does not say who sent it. What tells it is a count that has gone up:

    in the control group    of those whom this process shares its memory with, now
    on the machine          over several starts of a unit or a container, whose group is made anew each time
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def kills_in_group() -> int:
    """How many processes were killed for want of memory in this one's control group, or on the machine if it has none."""
    for path in _group_files():
        if (kills := _count(path)) is not None:
            return kills
    return kills_on_machine()


def kills_on_machine() -> int:
    """How many processes were killed for want of memory since the machine was started."""
    return _count(Path("/proc/vmstat")) or 0


def boot() -> bytes:
    """Which start of which machine this is, in 16 bytes; zeros where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", ""))
    return bytes(16)


def _group_files() -> Iterator[Path]:
    """Where this process's control group would tell, in either version of them."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield _GROUPS / path[1:] / "memory.events"
            elif "memory" in controllers.split(","):
                yield _GROUPS / "memory" / path[1:] / "memory.oom_control"


def _count(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        return int(next(line[9:] for line in path.read_text().splitlines() if line.startswith("oom_kill ")))
    return None
