"""What an app really put out, from its store, beside what it gives when it is run again.

Outputs and dead letters are numbered, so the n-th of one must be the n-th of the other, of the same position. The first
that is not raises `NotRepeated`: what is run again is not what ran then, and explains nothing.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec

from secondpass import codec
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.outbox import decode_events, decode_plain, encode_events, encode_json
from secondpass.engine.replay import untold
from secondpass.errors import NotRepeated, OutputError, SecondpassError
from secondpass.record import INTAKE, DeadLetter
from secondpass.store.format import OutputRow
from secondpass.store.reader import StoreReader

_READ_BYTES = 4_000_000
_ADDRESS = re.compile(r"0x[0-9a-f]+")

_WHY = (
    "Its tasks have the code that ran then, so something else has changed: what they call or load, the input, or handle "
    "depends on more than event and state (`secondpass check` finds out)"
)


class _Stream:
    """The recorded outputs of one stream, from a number on."""

    def __init__(self, store: StoreReader, name: str, number: int) -> None:
        self._store = store
        self.name = name
        self.number = number
        """Of the next output of the re-run."""
        self._end = store.progress.numbers.get(name, 0)
        self._kept_from = store.progress.kept_from.get(name, 0)
        self._rows: deque[OutputRow] = deque()
        self._decoded: tuple[OutputRow, list[Any]] | None = None
        self.compared = 0
        self.forgotten = 0
        self.next_position: float = math.inf
        self._look()

    def put_out(self, position: int, event: Any) -> int:
        """The re-run gives this output: its number; raises where another one was recorded."""
        row = self._row()
        if row is not None:
            at = self.number - row.first
            if row.positions[at] != position or not self._same(row, at, event):
                raise self._differs(row, at, position, event)
            self.compared += 1
        elif self.number >= self._end:
            raise NotRepeated(
                f"run again, position {position} puts {_told(event)} out on {self.name}, which it did not do when it ran. "
                f"{_why(self._store)}",
                position=position,
                stream=self.name,
                number=self.number,
            )
        else:
            self.forgotten += 1
        self.number += 1
        self._look()
        return self.number - 1

    def put_out_all(self, positions: list[int], events: list[Any]) -> None:
        """The re-run gives these outputs; many at once where they are the same."""
        done = 0
        while done < len(events):
            row = self._row()
            if row is not None and row.format == "json":
                at = self.number - row.first
                count = min(len(events) - done, row.count - at)
                lines = encode_json(events[done : done + count]).splitlines()
                if (
                    row.positions[at : at + count] == positions[done : done + count]
                    and self._lines(row)[at : at + count] == lines
                ):
                    self.compared += count
                    self.number += count
                    self._look()
                    done += count
                    continue
            self.put_out(positions[done], events[done])
            done += 1

    def missing(self, position: int) -> NotRepeated:
        """The store has an output of this position, and the re-run has not."""
        row = self._row()
        assert row is not None
        at = self.number - row.first
        found = self._plain(row)[at]
        return NotRepeated(
            f"position {position} put {_told(found)} out on {self.name} (number {self.number}), which it does not do when "
            f"it is run again. {_why(self._store)}",
            position=position,
            stream=self.name,
            number=self.number,
        )

    def _look(self) -> None:
        row = self._row()
        self.next_position = math.inf if row is None else row.positions[self.number - row.first]

    def _row(self) -> OutputRow | None:
        """The row that holds the next output; None where it is not kept, or there is none."""
        rows = self._rows
        while rows and self.number >= rows[0].first + rows[0].count:
            rows.popleft()
        if not rows and self._kept_from <= self.number < self._end:
            read = 0
            for row in self._store.outputs(self.name, after=self.number):
                rows.append(row)
                read += len(row.body)
                if read > _READ_BYTES:
                    break
        return rows[0] if rows and rows[0].first <= self.number else None

    def _same(self, row: OutputRow, at: int, event: Any) -> bool:
        if row.format == "json":
            if self._lines(row)[at] == encode_json([event]).rstrip(b"\n"):
                return True
            return _unordered(event) and _sorted(self._plain(row)[at]) == _sorted(
                msgspec.json.decode(encode_json([event]))
            )
        try:
            return codec.same(self._events(row)[at], event)
        except OutputError:  # its class has another name now
            return (
                self._plain(row)[at]
                == decode_plain(OutputRow("", 0, 1, "events", [0], encode_events([event])))[0]
            )

    def _lines(self, row: OutputRow) -> list[Any]:
        return self._once(row, row.body.splitlines)

    def _events(self, row: OutputRow) -> list[Any]:
        return self._once(row, lambda: decode_events(row.body))

    def _once(self, row: OutputRow, decode: Any) -> list[Any]:
        if self._decoded is None or self._decoded[0] is not row:
            self._decoded = (row, decode())
        return self._decoded[1]

    @staticmethod
    def _plain(row: OutputRow) -> list[Any]:
        return decode_plain(row)

    def _differs(self, row: OutputRow, at: int, position: int, event: Any) -> NotRepeated:
        was = row.positions[at]
        return NotRepeated(
            f"output {self.number} of {self.name} was {_told(self._plain(row)[at])} at position {was}; run again it is "
            f"{_told(event)} at position {position}. {_why(self._store)}",
            position=min(position, was),
            stream=self.name,
            number=self.number,
        )


class Recorded:
    """What the store holds from some numbers on, compared as the re-run goes along."""

    def __init__(
        self, store: StoreReader, streams: Iterable[str], numbers: Mapping[str, int], letters: int
    ) -> None:
        self._store = store
        self._streams = {
            name: _Stream(store, name, numbers.get(name, 0)) for name in {*streams, *store.progress.numbers}
        }
        self._letter = letters
        self._letters_end = store.progress.letters
        self._letter_position = self._position_of_letter()

    @property
    def compared(self) -> int:
        """How many outputs were found to be the same."""
        return sum(stream.compared for stream in self._streams.values())

    @property
    def forgotten(self) -> int:
        """How many came out that the store does not keep any more."""
        return sum(stream.forgotten for stream in self._streams.values())

    def put_out(self, position: int, stream: str, event: Any) -> int:
        """The re-run puts this out: the number of the output."""
        found = self._streams.get(stream)
        if found is None:
            found = self._streams[stream] = _Stream(self._store, stream, 0)
        return found.put_out(position, event)

    def epoch(self, epoch: Epoch, outcome: Outcome) -> None:
        """The re-run gives all of this."""
        for stream, (events, where) in outcome.streams.items():
            if events:
                found = self._streams.get(stream) or self._streams.setdefault(
                    stream, _Stream(self._store, stream, 0)
                )
                found.put_out_all([epoch.first + i for i in where], events)
        for letter in outcome.letters:
            self.set_aside(letter)
        self.end(epoch.first + epoch.count - 1)

    def set_aside(self, letter: DeadLetter) -> int:
        """The re-run sets this aside: the number of the dead letter."""
        number = self._letter
        found = None if number >= self._letters_end else self._store.letter(number)
        was = None if found is None else found[1]
        if (
            was is None
            or (was.position, was.task) != (letter.position, letter.task)
            or not _alike(was.error, letter.error)
        ):
            kept = (
                "there was none"
                if was is None
                else f"it was position {was.position}, {_where(was.task)}: {was.error}"
            )
            raise NotRepeated(
                f"dead letter {number}: {kept}; run again it is position {letter.position}, {_where(letter.task)}: "
                f"{letter.error}. {_why(self._store)}",
                position=letter.position,
            )
        self._letter += 1
        self._letter_position = self._position_of_letter()
        return number

    def end(self, position: int) -> None:
        """Nothing more comes of a position when it is run again."""
        for stream in self._streams.values():
            if stream.next_position <= position:
                raise stream.missing(position)
        if self._letter_position <= position:
            raise NotRepeated(
                f"position {position} was set aside (dead letter {self._letter}); run again it is not. {_why(self._store)}",
                position=position,
            )

    def _position_of_letter(self) -> float:
        found = None if self._letter >= self._letters_end else self._store.letter(self._letter)
        return math.inf if found is None else found[1].position


def outputs_from(store: StoreReader, stream: str, number: int) -> Iterator[tuple[int, int, Any]]:
    """The kept outputs of a stream: (number, position, event as plain data); the store is held piece by piece."""
    number = max(number, store.progress.kept_from.get(stream, 0))
    while True:
        rows: list[OutputRow] = []
        read = 0
        for row in store.outputs(stream, after=number):
            rows.append(row)
            read += len(row.body)
            if read > _READ_BYTES:
                break
        if not rows:
            return
        for row in rows:
            for at, event in enumerate(decode_plain(row)):
                if row.first + at >= number:
                    yield row.first + at, row.positions[at], event
            number = row.first + row.count


def _why(store: StoreReader) -> str:
    """What may be the cause where something else comes out."""
    known = untold(store)
    return _WHY if known is None else f"{known[0].upper()}{known[1:]}. Otherwise: {_WHY[0].lower()}{_WHY[1:]}"


def _where(task: str) -> str:
    return "the input" if task == INTAKE else f"task {task}"


def _alike(a: str, b: str) -> bool:
    """Whether two errors say the same; where an object lies in memory is another each time."""
    return a == b or _ADDRESS.sub("", a) == _ADDRESS.sub("", b)


def _told(event: Any) -> str:
    try:
        text = encode_json([event]).decode().rstrip("\n")
    except SecondpassError:
        text = repr(event)
    return text if len(text) <= 300 else text[:297] + "..."


def _unordered(value: Any) -> bool:
    """Whether a value holds a set, whose elements have no order."""
    if isinstance(value, (set, frozenset)):
        return True
    if isinstance(value, msgspec.Struct):
        return any(_unordered(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, Mapping):
        return any(map(_unordered, cast("Mapping[Any, Any]", value).values()))
    if isinstance(value, (list, tuple)):
        return any(map(_unordered, cast("list[Any]", value)))
    return False


def _sorted(value: Any) -> Any:
    """Plain data with every list in order."""
    if isinstance(value, dict):
        return {k: _sorted(v) for k, v in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return sorted(map(_sorted, cast("list[Any]", value)), key=repr)
    return value
