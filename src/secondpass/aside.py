"""Code that runs once more, for somebody who looks on: what it asks of the app, or appends to a log, was done already.

So it is for explaining and rehearsing, for trials and comparisons, and for the plain loop: a task that gives a command or
appends an event does so in the app's own run alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator

VARIABLE = "SECONDPASS_ASIDE"
"""The environment variable that tells the processes which such code starts."""


class _Here(threading.local):
    on = False


_here = _Here()


@contextlib.contextmanager
def aside() -> Generator[None]:
    """What this thread runs, and the workers that it starts, does nothing to any app."""
    before, _here.on = _here.on, True
    try:
        yield
    finally:
        _here.on = before


def is_aside() -> bool:
    """Whether this code runs so."""
    return _here.on or VARIABLE in os.environ


def environment() -> dict[str, str] | None:
    """For a process that is started now; None where it is as this one's."""
    return {**os.environ, VARIABLE: "1"} if _here.on else None
