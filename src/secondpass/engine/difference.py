"""What a changed chain puts out beside what was put out: stream by stream, position by position, and over time.

Both sides are lines of JSON. An output that only one side has at a position is gone, or new; where both have another
one there, it is changed. Dead letters are compared as a stream of their own.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import msgspec

from secondpass.engine.again import Again
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.outbox import decode_plain, encode_json
from secondpass.engine.recorded import _sorted, _unordered
from secondpass.engine.replay import records_of
from secondpass.engine.summary import merge_tally
from secondpass.record import DeadLetter, Late, Retry
from secondpass.reference import Tally
from secondpass.store.format import OutputRow
from secondpass.store.reader import StoreReader

FIRST = 20
"""So many differences are told one by one: the first ones."""
OF_EACH = 3
"""So many of each stream are among them, however late they come."""
BINS = 120
"""Over the stream's time there are at least so many, and less than twice as many, once it is long enough."""
LETTERS = "dead letters"
"""The name under which dead letters are compared, beside the streams."""
_READ_BYTES = 2_000_000

Kind = Literal["gone", "new", "changed"]


@dataclass(frozen=True)
class Different:
    """One output that was put out and is not any more, or the other way round; or one that is another."""

    kind: Kind
    stream: str
    position: int
    time: float
    event: Any
    """The record's own event."""
    recorded: Any
    """As plain data; None where there was none."""
    rehearsed: Any


@dataclass
class StreamDifference:
    """One stream, as it was and as it would have been."""

    name: str
    recorded: int = 0
    rehearsed: int = 0
    same: int = 0
    gone: int = 0
    new: int = 0
    changed: int = 0

    @property
    def differences(self) -> int:
        return self.gone + self.new + self.changed


@dataclass
class Rates:
    """How many outputs over the stream's time, both ways; the bins grow with the time that there is."""

    width_s: float = 1.0
    begin: float = math.nan
    bins: dict[str, dict[int, list[int]]] = field(default_factory=dict[str, dict[int, list[int]]])
    """By stream and number: `[recorded, rehearsed]`."""

    def add(self, stream: str, at: float, recorded: int, rehearsed: int) -> None:
        """So many outputs at a time."""
        if not math.isfinite(at):
            return  # before the stream has a time
        if math.isnan(self.begin):
            self.begin = at
        number = max(0, int((at - self.begin) // self.width_s))
        while number >= 2 * BINS:
            self._widen()
            number //= 2
        both = self.bins.setdefault(stream, {}).setdefault(number, [0, 0])
        both[0] += recorded
        both[1] += rehearsed

    def _widen(self) -> None:
        self.width_s *= 2
        for stream, bins in self.bins.items():
            wider: dict[int, list[int]] = {}
            for number, (recorded, rehearsed) in bins.items():
                both = wider.setdefault(number // 2, [0, 0])
                both[0] += recorded
                both[1] += rehearsed
            self.bins[stream] = wider


class _Lines:
    """The recorded outputs of one stream as lines of JSON, position by position."""

    def __init__(self, store: StoreReader, name: str, first: int) -> None:
        self._store = store
        self.name = name
        self._number = self._first_at(first)
        self._rows: list[OutputRow] = []
        self._positions: list[int] = []
        self._lines: list[bytes] = []
        self._at = 0

    def _first_at(self, position: int) -> int:
        """The number of the first kept output at or behind a position."""
        low = self._store.progress.kept_from.get(self.name, 0)
        high = self._store.progress.numbers.get(self.name, 0)
        while low < high:
            middle = (low + high) // 2
            row = next(iter(self._store.outputs(self.name, after=middle)), None)
            if row is None:
                return middle
            if row.positions[max(0, middle - row.first)] < position:
                low = max(middle, row.first) + 1
            else:
                high = middle
        return low

    def upto(self, position: int) -> tuple[list[int], list[bytes]]:
        """The outputs before a position that were not given yet."""
        positions: list[int] = []
        lines: list[bytes] = []
        while self._at < len(self._positions) or self._more():
            if self._positions[-1] < position:
                until = len(self._positions)
            else:
                until = self._at
                while self._positions[until] < position:
                    until += 1
            positions += self._positions[self._at : until]
            lines += self._lines[self._at : until]
            self._at = until
            if until < len(self._positions):
                break
        return positions, lines

    def _more(self) -> bool:
        read = 0
        self._positions, self._lines, self._at = [], [], 0
        for row in self._store.outputs(self.name, after=self._number):
            skip = max(0, self._number - row.first)
            body = row.body if row.format == "json" else encode_json(decode_plain(row))
            self._positions += row.positions[skip:]
            self._lines += body.splitlines()[skip:]
            self._number = row.first + row.count
            read += len(row.body)
            if read > _READ_BYTES:
                break
        return bool(self._positions)


class _Both:
    """The outputs of a stream whose first ones are not kept any more."""

    def __init__(self, again: Again, kept: _Lines, since: int) -> None:
        self._again, self._kept, self._since = again, kept, since

    def upto(self, position: int) -> tuple[list[int], list[bytes]]:
        """The outputs before a position that were not given yet."""
        positions, lines = self._again.upto(self._kept.name, min(position, self._since))
        own = bisect_left(positions, self._since)  # it may have gone further for other streams
        positions, lines = positions[:own], lines[:own]
        if position > self._since:
            kept = self._kept.upto(position)
            positions, lines = positions + kept[0], lines + kept[1]
        return positions, lines


class _Letters:
    """The recorded dead letters, as an output stream has it."""

    def __init__(self, store: StoreReader, first: int) -> None:
        self._found = [
            (letter.position, _letter_line(letter.task, letter.error))
            for _, _, letter in store.letters()
            if letter.position >= first
        ]
        self._at = 0

    def upto(self, position: int) -> tuple[list[int], list[bytes]]:
        """The letters before a position that were not given yet."""
        until = self._at
        while until < len(self._found) and self._found[until][0] < position:
            until += 1
        part = self._found[self._at : until]
        self._at = until
        return [p for p, _ in part], [line for _, line in part]


def _letter_line(task: str, error: str) -> bytes:
    return msgspec.json.encode({"task": task, "error": error})


class Comparison:
    """What comes of each epoch, beside what the store has for its positions."""

    def __init__(
        self,
        store: StoreReader,
        streams: list[str],
        begin: int,
        again: Again | None = None,
        forgotten: Mapping[str, int] | None = None,
    ) -> None:
        self.streams = {name: StreamDifference(name) for name in [*streams, LETTERS]}
        self._recorded: dict[str, _Lines | _Letters | _Both] = {
            name: _Lines(store, name, begin) for name in streams
        }
        if again is not None:
            for name, since in (forgotten or {}).items():
                self._recorded[name] = _Both(again, _Lines(store, name, since), since)
        self._recorded[LETTERS] = _Letters(store, begin)
        self._first: dict[str, list[Different]] = {name: [] for name in self.streams}
        self.rates = Rates()
        self.tallies: dict[str, Tally] = {}

    @property
    def first(self) -> list[Different]:
        """The first differences, in the order of the log, and some of each stream."""
        chosen = [one for found in self._first.values() for one in found[:OF_EACH]]
        others = [one for found in self._first.values() for one in found[OF_EACH:]]
        others.sort(key=attrgetter("position"))
        chosen += others[: max(0, FIRST - len(chosen))]
        return sorted(chosen, key=attrgetter("position"))

    def epoch(self, epoch: Epoch, outcome: Outcome) -> None:
        """Compare an epoch."""
        for name, tally in outcome.tallies.items():
            merge_tally(self.tallies.setdefault(name, Tally()), tally)
        for name in self.streams:
            if name == LETTERS:
                events: list[Any] = outcome.letters
                lines = [_letter_line(letter.task, letter.error) for letter in outcome.letters]
                positions = [letter.position for letter in outcome.letters]
            else:
                events, where = outcome.streams.get(name, ([], []))
                lines = encode_json(events).splitlines() if events else []
                positions = [epoch.first + i for i in where]
            self._stream(name, epoch, positions, lines, events)

    def _stream(
        self, name: str, epoch: Epoch, positions: list[int], lines: list[bytes], events: list[Any]
    ) -> None:
        was_at, was = self._recorded[name].upto(epoch.first + epoch.count)
        found = self.streams[name]
        found.recorded += len(was)
        found.rehearsed += len(lines)
        if not was and not lines:
            return
        nows = epoch.nows() if epoch.events or epoch.tick is not None else [epoch.now] * epoch.count
        for at in was_at:
            self.rates.add(name, nows[at - epoch.first], 1, 0)
        for at in positions:
            self.rates.add(name, nows[at - epoch.first], 0, 1)
        if lines == was and positions == was_at:
            found.same += len(lines)
            return
        self._by_position(found, epoch, nows, was_at, was, positions, lines, events)

    def _by_position(
        self,
        found: StreamDifference,
        epoch: Epoch,
        nows: list[float],
        was_at: list[int],
        was: list[bytes],
        positions: list[int],
        lines: list[bytes],
        events: list[Any],
    ) -> None:
        i, j, first = 0, 0, self._first[found.name]
        while i < len(was) or j < len(lines):
            at = min(was_at[i] if i < len(was) else 1 << 62, positions[j] if j < len(lines) else 1 << 62)
            i_end, j_end = i, j
            while i_end < len(was) and was_at[i_end] == at:
                i_end += 1
            while j_end < len(lines) and positions[j_end] == at:
                j_end += 1
            gone, new = _unmatched(was[i:i_end], lines[j:j_end], events[j:j_end])
            found.same += len(was[i:i_end]) - len(gone)
            both = min(len(gone), len(new))
            found.changed += both
            found.gone += len(gone) - both
            found.new += len(new) - both
            for k in range(max(len(gone), len(new))):
                if len(first) < FIRST:
                    kind: Kind = "changed" if k < both else "gone" if k < len(gone) else "new"
                    first.append(
                        Different(
                            kind,
                            found.name,
                            at,
                            nows[at - epoch.first],
                            _event_at(epoch, at),
                            msgspec.json.decode(gone[k]) if k < len(gone) else None,
                            msgspec.json.decode(new[k]) if k < len(new) else None,
                        )
                    )
            i, j = i_end, j_end


def _unmatched(was: list[bytes], lines: list[bytes], events: list[Any]) -> tuple[list[bytes], list[bytes]]:
    """What only one side has, of the outputs of one position."""
    gone, new = list(was), list[bytes]()
    for line, event in zip(lines, events, strict=True):
        if line in gone:
            gone.remove(line)
            continue
        if not isinstance(event, DeadLetter) and _unordered(event):
            mine = _sorted(msgspec.json.decode(line))
            same = next((other for other in gone if _sorted(msgspec.json.decode(other)) == mine), None)
            if same is not None:
                gone.remove(same)
                continue
        new.append(line)
    return gone, new


def _event_at(epoch: Epoch, position: int) -> Any:
    record = next(record for at, record, _ in records_of(epoch) if at == position)
    return record.event if isinstance(record, (DeadLetter, Late, Retry)) else record
