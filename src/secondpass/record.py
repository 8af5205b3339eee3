"""What a log holds, as the engine and the reference take it: events, refusals, retries, ticks, changes and verdicts."""

from __future__ import annotations

import math
import os
import traceback
import zlib
from typing import Any, Literal, NamedTuple

import msgspec

from secondpass.codec import encode_hook, pack, unpack
from secondpass.event import LATEST_TIME_S, Event

_OURS = os.path.dirname(__file__) + os.sep  # noqa: PTH120  # compared with what frames hold: text

ChangeKind = Literal[
    "start", "stop", "set", "replace", "add", "remove", "drop", "pause", "resume", "end", "reload"
]

NEW_TASK = ("set", "replace", "add")
"""Kinds of changes that bring a task in."""

INTAKE = ""
"""Stands for a task's name where an event was set aside before the chain."""


class Refused(NamedTuple):
    """A record that is no event: a malformed line, a missing field, something too large."""

    reason: str
    raw: bytes
    offset: int
    source: str


class Late(NamedTuple):
    """An event that came too late to be put in order: it goes to the output `late`; time does not move."""

    event: Any


class Ahead(NamedTuple):
    """An event that was too far ahead of the clock at intake, as decided then; it is set aside, and time does not move."""

    event: Any
    reason: str


class Firing(Event):
    """Stands for the event of a timer's call, where that failed: in its dead letter, and where that is sent again."""

    timer: str
    key: Any
    """As msgpack has it: an enum is its value."""
    time: float

    @classmethod
    def of(cls, timer: str, key: Any, time: float) -> Firing:
        return cls(timer=timer, key=unpack(pack(key)), time=time)


class Retry(NamedTuple):
    """A dead letter sent again: it enters at the task that failed; time does not move."""

    letter: int
    task: str
    event: Any


class Tick(NamedTuple):
    """Time that passed without an event: it moves the stream's time and nothing else."""

    time: float


class Change(NamedTuple):
    """A command: the chain changes here, between two events; time does not move.

    start, stop     the task handles events, or they pass it by; stopped, it keeps its state
    set             the task `to` stands in for it: the same code with other settings
    replace         the task `to` stands in for it: other code, which takes over its state
    add, remove     the task `to` comes into the chain before the task `before` (at its end without one), `stopped` or not; or
                    it leaves
    drop            its state is gone, or only that of the table or value `state`
    pause, resume   the app took no records for a while, or ended: the chain stays as it is
    end
    reload          the lookup `task` holds the mapping `to` from here on
    """

    kind: ChangeKind
    task: str
    to: Any = None
    before: str | None = None
    fresh: bool = False
    """Whether a task that starts forgets what it had."""
    state: str | None = None
    stopped: bool = False
    """Whether a task that comes in lets events pass until it is started."""


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


class Verdict(NamedTuple):
    """An event, or a timer's call, killed its workers: that task is not called for it, as decided once, by trial.

    In a log it stands before the event that it is about, and takes no position of its own.
    """

    position: int
    task: str
    path: tuple[int, ...]
    """The event's index in each list it was emitted in; empty for the record's own event. What timers do at the record begins
    with a negative number, -1 for the first that fires."""
    error: str
    traceback: str
    crc: int = 0
    """Of the event, or of the `Firing` that stands for it: where live sources come in another order after a crash, another event may stand in its place."""

    @property
    def place(self) -> tuple[int, str, tuple[int, ...]]:
        return self.position, self.task, self.path


def event_crc(event: Any) -> int:
    """What tells one event from another, in every process: the elements of a set have no order there."""
    try:
        return zlib.crc32(_in_order(event))
    except TypeError:  # a mapping whose keys are no text has no sets beside it, as a rule
        return zlib.crc32(pack(event))


_in_order = msgspec.msgpack.Encoder(enc_hook=encode_hook, order="deterministic").encode


class Told(Exception):
    """An error that happened in another process, or that a verdict tells of: its text and its traceback."""

    def __init__(self, text: str, traceback: str) -> None:
        super().__init__(text)
        self.text = text
        self.traceback = traceback


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
    if isinstance(error, Told):
        return error.text
    said = said_by(error).strip().splitlines()
    if said and type(error) is AttributeError and said[0].startswith("immutable type: "):
        said[0] += "; event.replace(field=value) gives a changed one"  # msgspec names no way out
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def said_by(error: BaseException) -> str:
    """What an error says, in text that can be stored, whatever it is made of."""
    try:
        return storable(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001 - user code
        return f"(its text raised {type(failure).__name__})"


def storable(text: str) -> str:
    """The text with its lone surrogates, which UTF-8 does not have, written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def trace_text(error: BaseException) -> str:
    """The traceback of the task's own frames and what they call, so that it is the same wherever the call was made.

    It ends with them too: where we refused something, our lines tell nobody what to mend.
    """
    if isinstance(error, Told):
        return error.traceback
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, frame in enumerate(frames) if not frame.filename.startswith(_OURS)]
    kept = frames[own[0] : own[-1] + 1] if own else frames[-1:]
    told = ["Traceback (most recent call last):\n", *traceback.format_list(kept), error_text(error), "\n"]
    return storable("".join(told))
