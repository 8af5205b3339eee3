"""The kernel's own kills where memory runs out: the only SIGKILL that tells something about an event.

The signal does not say who sent it. What tells it is a count that has gone up, as long as the machine was not started
again in between.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


def kills_for_memory() -> int:
    """How many processes the kernel has killed since it started, on the whole machine, where memory ran out.

    A control group counts its own more exactly, but is made anew with each start of a unit or a container.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))
    return 0


def boot() -> bytes:
    """Which start of which machine this is, in 16 bytes; zeros where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", ""))
    return bytes(16)
