"""What a log holds, as the engine and the reference take it: events, refusals, retries and ticks."""

from __future__ import annotations

import math
import os
import traceback
from typing import Any, NamedTuple

from secondpass.event import LATEST_TIME_S

_OURS = os.path.dirname(__file__) + os.sep  # noqa: PTH120  # compared with what frames hold: text

INTAKE = ""
"""Stands for a task's name where an event was set aside before the chain."""


class Refused(NamedTuple):
    """A record that is no event: a malformed line, a missing field, something too large."""

    reason: str
    raw: bytes
    offset: int
    source: str


class Retry(NamedTuple):
    """A dead letter sent again: it enters at the task that failed; time does not move."""

    letter: int
    task: str
    event: Any


class Tick(NamedTuple):
    """Time that passed without an event: it moves the stream's time and nothing else."""

    time: float


class DeadLetter(NamedTuple):
    """An event set aside, with all that is needed to mend it and send it again."""

    position: int
    task: str
    error: str
    traceback: str
    event: Any
    raw: bytes = b""
    offset: int = -1
    source: str = ""


def refuse_time(time: float) -> str | None:
    """Why an event time cannot be taken; None when it can.

    >>> refuse_time(1632192265.17)
    >>> refuse_time(1632192265170.0)
    '`time` is 1632192265170.0, beyond 1e+11 seconds: it looks like milliseconds; give the source time_unit="ms"'
    """
    if not math.isfinite(time):
        return f"`time` is {time!r}: an event's time is a finite number of seconds, or a datetime with a time zone"
    if time > LATEST_TIME_S:
        return (
            f"`time` is {time!r}, beyond {LATEST_TIME_S:g} seconds: it looks like milliseconds; "
            f'give the source time_unit="ms"'
        )
    return None


def error_text(error: BaseException) -> str:
    """`ValueError: what it says`, in one line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def trace_text(error: BaseException) -> str:
    """The traceback from the task's own frames on, so that it is the same wherever the call was made."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, frame in enumerate(frames) if not frame.filename.startswith(_OURS)]
    kept = frames[own[0] :] if own else frames[-1:]
    return "".join(
        ["Traceback (most recent call last):\n", *traceback.format_list(kept), error_text(error), "\n"]
    )
