"""The reader of files of lines: cuts a feed's bytes into whole lines and hands them to a parser.

    peek a window      sized for `limit` records by what records took so far
    cut it             after its last newline; an unterminated last line counts when nothing will follow it
    parse              the parser takes as many records as it may and says how many bytes they were
    advance            the feed moves on by exactly these bytes

A batch is made of as many windows as it takes. Surplus bytes are not kept: the next window begins where the
last record ended, so the offset of a batch is always exact. A line beyond `max_bytes` is skipped in pieces and never held in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from secondpass.connectors.contract import Batch
from secondpass.connectors.feed import Feed, Mark
from secondpass.errors import InputError
from secondpass.record import Refused

WINDOW_MIN = 4 << 10
WINDOW_MAX = 120 << 10
"""Each window is looked at several times: it should stay in the processor's cache, and below the size from
which the allocator asks the system for fresh memory every time (8 MiB cost a fifth more)."""
READ_BYTES = 8 << 20
"""One `read` takes no more than about this."""
SKIP_WINDOW = 1 << 20
SKIP_PER_READ = 64 << 20
"""How much of an oversized line is passed over in one `read`, so that the hub gets its turn."""
RAW_KEPT = 64 << 10
"""How much of a refused line is kept."""
OVERSIZED_KEPT = 1 << 10
"""How much of a line beyond `max_bytes` is kept."""
BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Parsed:
    """What a parser made of a window: as in a `Batch`, with the number of bytes that it used."""

    used: int = 0
    count: int = 0
    events: list[Any] = field(default_factory=list[Any])
    origin: list[int] | None = None
    """None while no record is refused: then every record is an event."""
    refused: dict[int, Refused] | None = None

    def add(self, event: Any) -> None:
        """The next record is this event."""
        self.events.append(event)
        if self.origin is not None:
            self.origin.append(self.count)
        self.count += 1

    def add_all(self, events: list[Any]) -> None:
        """The next records are these events."""
        self.events += events
        if self.origin is not None:
            self.origin += range(self.count, self.count + len(events))
        self.count += len(events)

    def append(self, more: Parsed) -> None:
        """The next records are those of `more`."""
        if not self.count:
            self.events, self.origin, self.refused, self.count = (
                more.events,
                more.origin,
                more.refused,
                more.count,
            )
        elif more.refused is None or more.origin is None:
            self.add_all(more.events)
        else:
            if self.refused is None or self.origin is None:
                self.refused, self.origin = {}, list(range(self.count))
            self.events += more.events
            self.origin += [self.count + index for index in more.origin]
            self.refused.update({self.count + index: refused for index, refused in more.refused.items()})
            self.count += more.count
        self.used += more.used

    def refuse(self, refused: Refused) -> None:
        """The next record is no event."""
        if self.refused is None or self.origin is None:
            self.refused, self.origin = {}, list(range(self.count))
        self.refused[self.count] = refused
        self.count += 1


class Parser(Protocol):
    """Turns whole lines into records."""

    def parse(self, data: bytes, start: int, limit: int, *, final: bool) -> Parsed:
        """Up to `limit` records from `data`, whole lines that begin at byte `start` of the file.

        A record whose end is not in `data` is left, unless the data is `final`: nothing will complete it.
        """
        ...

    def restart(self) -> None:
        """Another file begins."""
        ...

    def skipped(self) -> None:
        """A line beyond the limit was passed over."""
        ...

    def offset(self) -> dict[str, Any]:
        """What has to be stored beside the place in the file."""
        ...


def newline_number(data: bytes, number: int) -> int:
    r"""The place after the `number`-th newline of `data`, which holds at least that many.

    >>> newline_number(b"a\nbb\nc\n", 2)
    5
    """
    low, high = 0, len(data)  # counted in halves: bytes.count is the fastest look at bytes there is
    while high - low > 64:
        middle = (low + high) // 2
        found = data.count(b"\n", low, middle)
        if found >= number:
            high = middle
        else:
            number -= found
            low = middle
    for _ in range(number):
        low = data.index(b"\n", low) + 1
    return low


@dataclass(slots=True)
class _Oversized:
    start: int
    length: int
    kept: bytes


class LineReader:
    """A `Reader` of a feed through a parser."""

    def __init__(self, feed: Feed, parser: Parser, *, name: str, max_bytes: int, mark: Mark | None) -> None:
        self._feed = feed
        self._parser = parser
        self._name = name
        self._max_bytes = max_bytes
        self._window_max = min(WINDOW_MAX, max_bytes + 1)
        self._records = 0 if mark is None else mark.records
        self._record_bytes = 200.0  # a guess until the first batch
        self._oversized: _Oversized | None = None
        self._unfinished: tuple[int, int] = (-1, 0)
        """Where a record begins that did not end, and how many bytes of whole lines were there then."""
        self._offset = self._place()

    def read(self, limit: int) -> Batch | None:
        found = Parsed()
        while found.count < limit and found.used < READ_BYTES:
            parsed = self._window(limit - found.count, first=not found.count)
            if parsed is None:
                return None
            if not parsed.count:
                break
            found.append(parsed)
        if not found.count:
            return Batch([], self._offset)
        self._records += found.count
        self._offset = self._place()
        return Batch(
            found.events, self._offset, count=found.count, origin=found.origin, refused=found.refused
        )

    def _window(self, limit: int, *, first: bool) -> Parsed | None:
        """The records of one window: none when nothing is there now, None at the end.

        Only the `first` window of a batch goes on to the next file, so that a batch is of one file.
        """
        feed = self._feed
        want = int(limit * self._record_bytes * 1.1) + 256
        want = min(max(want, WINDOW_MIN), self._window_max)
        if self._unfinished[0] == feed.position:
            want = min(max(want, self._unfinished[1] + WINDOW_MIN), self._max_bytes + 1)
        while True:
            if self._oversized is not None:
                return self._skip(first=first)
            data = feed.peek(want)
            self._check_join(data)
            lead = len(BOM) if feed.position == 0 and data.startswith(BOM) else 0
            end = data.rfind(b"\n") + 1
            whole_file = feed.last
            if whole_file and data[end:].strip() and (end or lead < len(data)):
                end = len(data)  # the unterminated last line is a record: nothing will complete it
            if end > lead and (whole_file or (feed.position, end) != self._unfinished):
                parsed = self._parse(data, lead, end, limit, whole_file=whole_file)
                if parsed.used:
                    feed.advance(data, parsed.used + lead)
                    if parsed.count:
                        # Follows quickly when records grow, slowly when they shrink: a window too large
                        # costs less than another read.
                        seen = parsed.used / parsed.count
                        self._record_bytes = max(seen, (self._record_bytes * 3 + seen) / 4)
                        return parsed
                    self._offset = self._place()  # blank lines only
                    continue
                self._unfinished = (feed.position, end)
            if whole_file:
                if not first:
                    return Parsed()
                if not feed.turn():
                    return None
                self._parser.restart()
                self._unfinished = (-1, 0)
                self._offset = self._place()
                continue
            if len(data) < want:
                if first:
                    feed.wait()
                return Parsed()
            if len(data) > self._max_bytes:
                self._oversized = _Oversized(feed.position, 0, data[:OVERSIZED_KEPT])
                continue
            want = min(want * 4, self._max_bytes + 1)

    def _parse(self, data: bytes, lead: int, end: int, limit: int, *, whole_file: bool) -> Parsed:
        lines, start = data[lead:end], self._feed.position + lead
        parsed = self._parser.parse(lines, start, limit, final=whole_file)
        if not parsed.used and len(data) > self._max_bytes:
            # A record that does not end within the largest window is given up.
            parsed = self._parser.parse(lines, start, 1, final=True)
        return parsed

    def _place(self) -> dict[str, Any]:
        return {**self._feed.mark(), "records": self._records, **self._parser.offset()}

    def _check_join(self, data: bytes) -> None:
        """What was taken for an unterminated last line must not have gone on since."""
        feed = self._feed
        if not feed.tail or feed.tail.endswith(b"\n") or not data:
            return
        if data.partition(b"\n")[0].strip():
            start = feed.position - len(feed.tail) + feed.tail.rfind(b"\n") + 1
            raise InputError(
                f"{feed.shown}: the last line was incomplete when it was read: the line around byte {start} went on "
                f"after byte {feed.position}, so it was taken for a shorter event than it is. Its writer appends while "
                f"it is read: use follow=True, which waits for the end of a line, and start over with "
                f"`secondpass run APP --fresh`"
            )

    def _skip(self, *, first: bool) -> Parsed:
        """Pass over the rest of a line beyond `max_bytes`; the offset stays before it until its end is found."""
        found = self._oversized
        assert found is not None
        feed = self._feed
        parsed = Parsed()
        while parsed.used < SKIP_PER_READ:
            data = feed.peek(SKIP_WINDOW)
            newline = data.find(b"\n")
            used = len(data) if newline < 0 else newline + 1
            feed.advance(data, used)
            parsed.used += used
            found.length += len(data) if newline < 0 else newline
            if newline >= 0 or (feed.last and len(data) < SKIP_WINDOW):
                self._parser.skipped()
                self._oversized = None
                reason = f"the line has {found.length} bytes, more than max_line_bytes={self._max_bytes}"
                parsed.refuse(Refused(reason, found.kept, found.start, self._name))
                break
            if len(data) < SKIP_WINDOW:
                if first:
                    feed.wait()
                break
        return parsed

    def verify(self) -> None:
        self._feed.verify()
        tail = self._feed.tail
        if tail and not tail.endswith(b"\n") and self._oversized is None:
            self._check_join(self._feed.peek(self._window_max))

    def progress(self) -> tuple[int, int] | None:
        return self._feed.progress()

    def close(self) -> None:
        self._feed.close()
