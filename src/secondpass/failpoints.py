"""Named points at which a test can end the process, so that every crash can be provoked on purpose.

`SECONDPASS_KILL_AT=commit.after:3` ends the process with SIGKILL the third time it passes
`failpoint("commit.after")`. Several, separated by commas, arm one after the other's name.
Unset, a point costs one test of an empty dict; no point lies on the path of a single event.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "SECONDPASS_KILL_AT"


def _parse(text: str) -> dict[str, int]:
    armed: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, passes = part.partition(":")
        armed[name] = int(passes or 1)
    return armed


_armed = _parse(os.environ.get(VARIABLE, ""))


def failpoint(name: str) -> None:
    """End this process here when the environment asks for it."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
