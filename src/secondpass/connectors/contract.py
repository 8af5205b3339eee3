"""What the engine asks of sources and sinks: the contract that every connector keeps.

A source is opened at an offset and gives a `Reader`; a reader gives `Batch`es. A sink is opened with the
state that the last commit recorded about it and is handed numbered outputs, in order, after their commit.

What the contract promises to the rest:

- Reading again from an offset gives the same records, or `InputError` says why it cannot.
- Bad input is a `Refused` record in its place. It never raises and is never left out.
- Delivering a number twice leaves one output at the sink, or the sink says `at_least_once = True`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from secondpass.record import Late, Refused


class Batch:
    """Consecutive records of one source.

    `events` are the decoded ones; `origin[i]` is the index of `events[i]` among the batch's `count`
    records; `refused` maps the remaining indexes to what is wrong there, or to what came too late. `offset` is where the reader
    stands after the batch: plain msgpack data that `Source.open` takes.

    A batch of no records may tell with `decided` what does not follow from the input, as numbers of records, counted from the
    next one to be given: the next batch has records, and with them it is recorded. Where the log is read again, the reader is
    told (`again`, `recall`), and decides nothing itself.
    """

    __slots__ = ("count", "decided", "events", "offset", "origin", "refused")

    def __init__(
        self,
        events: list[Any],
        offset: dict[str, Any],
        *,
        count: int | None = None,
        origin: Sequence[int] | None = None,
        refused: Mapping[int, Refused | Late] | None = None,
        decided: Mapping[str, list[int]] | None = None,
    ) -> None:
        self.events = events
        self.offset = offset
        self.count = len(events) if count is None else count
        self.origin: Sequence[int] = range(len(events)) if origin is None else origin
        self.refused: Mapping[int, Refused | Late] = refused or {}
        self.decided = decided


class Reader(Protocol):
    """A source being read, from one offset on."""

    def read(self, limit: int) -> Batch | None:
        """Up to `limit` records without waiting: an empty batch when none is there now, None at the end.

        A reader that follows a growing input never gives None.
        """
        ...

    def verify(self) -> None:
        """Look again, before a commit, at what was read; raises `InputError` when it has changed."""
        ...

    def progress(self) -> tuple[int, int] | None:
        """How far the reader is, as (done, total) in any unit; None when nobody knows."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class Source(Protocol):
    """Where events come from; replayable: reading again from an offset gives the same records."""

    name: str
    """What identifies the source in messages and in the store (a path, `memory`)."""
    type: Any
    """The declared event type, a union of them, None for untyped events, or `Any` when nobody knows."""
    following: bool
    """Whether this source itself asks to be followed (`JsonLines(path, follow=True)`)."""

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Reader:
        """A reader that starts after what `offset` covers; raises `InputError` when that is not the input
        that was read before (renamed, truncated, replaced), saying what to do.

        With `accept` the input may have moved (another path, a copy), as long as what was read is the
        same; content that differs is never accepted.
        """
        ...


class Delivery(msgspec.Struct, frozen=True):
    """Consecutive outputs of one stream, as committed together: numbers `first` to `first + count - 1`."""

    first: int
    count: int
    body: bytes
    """JSON lines when the sink's `format` is "json", else what `outputs.decode_outputs` reads."""


class Sink(Protocol):
    """Where a stream of outputs goes.

    Life: `open(state)`, then every delivery that the store holds after `state`, `recovered()`, then
    deliveries as they are committed, now and then `sync()`, at last `close()`. A delivery that is
    repeated is cut as it was before (a compressed output is the same bytes only then).

    An object that is a source and a sink gives its sink with `sink()`; `memory.as_sink` knows.
    """

    format: Literal["json", "events"]
    """"json": `Delivery.body` is JSON lines; "events": `deliver` is given the decoded events."""
    at_least_once: bool
    """Whether a crash may deliver an output twice (pipes, callables)."""

    def open(self, state: dict[str, Any] | None, *, accept: bool = False) -> None:
        """Prepare to deliver after what `state` (of the last commit; None at first) covers.

        With `accept` a target that is not what this sink left is taken as it is, and the next output
        is put after it.
        """
        ...

    def deliver(self, delivery: Delivery, events: list[Any] | None) -> None:
        """Put outputs out. During recovery some of them, or a part of one, may be there already.

        Raises `OutputError` when the target is not what this sink left there, saying what to do.
        """
        ...

    def recovered(self) -> None:
        """All outputs of earlier runs have been delivered; raises `OutputError` when the target holds more."""
        ...

    def sync(self) -> dict[str, Any]:
        """Make what was delivered durable and give the state to record; it holds `number`, the next one."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...
