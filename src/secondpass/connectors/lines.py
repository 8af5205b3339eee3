"""The reader of files of lines: cuts a feed's bytes into whole lines and hands them to a parser.

    peek a window      sized for `limit` records by what records took so far
    cut it             after its last newline; an unterminated last line counts when nothing will follow it
    parse              the parser takes as many records as it may and says how many bytes they were
    advance            the feed moves on by exactly these bytes

Surplus bytes are not kept: the next window begins where the last batch ended, so the offset of a batch is
always exact. A line beyond `max_bytes` is skipped in pieces and never held in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from secondpass.connectors.contract import Batch
from secondpass.connectors.feed import Feed, Mark
from secondpass.errors import InputError
from secondpass.record import Refused

WINDOW_MIN = 4 << 10
WINDOW_MAX = 8 << 20
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
        self._offset = self._place()

    def read(self, limit: int) -> Batch | None:
        if limit < 1:
            return self._nothing()
        feed = self._feed
        want = int(limit * self._record_bytes * 1.1) + 256
        want = min(max(want, WINDOW_MIN), self._window_max)
        while True:
            if self._oversized is not None:
                return self._skip()
            data = feed.peek(want)
            self._check_join(data)
            lead = len(BOM) if feed.position == 0 and data.startswith(BOM) else 0
            end = data.rfind(b"\n") + 1
            whole_file = feed.last
            if whole_file and data[end:].strip() and (end or lead < len(data)):
                end = len(data)  # the unterminated last line is a record: nothing will complete it
            if end > lead:
                lines, start = data[lead:end], feed.position + lead
                parsed = self._parser.parse(lines, start, limit, final=whole_file)
                if not parsed.used and len(data) > self._max_bytes:
                    # A record that does not end within the largest window is given up.
                    parsed = self._parser.parse(lines, start, 1, final=True)
                if parsed.used:
                    feed.advance(data, parsed.used + lead)
                    if parsed.count:
                        return self._batch(parsed)
                    self._offset = self._place()  # blank lines only
                    continue
            if whole_file:
                if not feed.turn():
                    return None
                self._parser.restart()
                self._offset = self._place()
                continue
            if len(data) < want:
                feed.wait()
                return self._nothing()
            if len(data) > self._max_bytes:
                self._oversized = _Oversized(feed.position, 0, data[:OVERSIZED_KEPT])
                continue
            want = min(want * 4, self._max_bytes + 1)

    def _batch(self, parsed: Parsed) -> Batch:
        self._records += parsed.count
        # Follows quickly when records grow, slowly when they shrink: a window too large costs less
        # than a second read.
        seen = parsed.used / parsed.count
        self._record_bytes = max(seen, (self._record_bytes * 3 + seen) / 4)
        self._offset = self._place()
        return Batch(
            parsed.events, self._offset, count=parsed.count, origin=parsed.origin, refused=parsed.refused
        )

    def _nothing(self) -> Batch:
        return Batch([], self._offset)

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

    def _skip(self) -> Batch:
        """Pass over the rest of a line beyond `max_bytes`; the offset stays before it until its end is found."""
        found = self._oversized
        assert found is not None
        feed = self._feed
        passed = 0
        while passed < SKIP_PER_READ:
            data = feed.peek(SKIP_WINDOW)
            newline = data.find(b"\n")
            used = len(data) if newline < 0 else newline + 1
            feed.advance(data, used)
            passed += used
            found.length += len(data) if newline < 0 else newline
            if newline >= 0 or (feed.last and len(data) < SKIP_WINDOW):
                self._parser.skipped()
                self._oversized = None
                reason = f"the line has {found.length} bytes, more than max_line_bytes={self._max_bytes}"
                self._records += 1
                self._offset = self._place()
                refused = Refused(reason, found.kept, found.start, self._name)
                return Batch([], self._offset, count=1, origin=(), refused={0: refused})
            if len(data) < SKIP_WINDOW:
                feed.wait()
                break
        return self._nothing()

    def verify(self) -> None:
        self._feed.verify()
        tail = self._feed.tail
        if tail and not tail.endswith(b"\n") and self._oversized is None:
            self._check_join(self._feed.peek(self._window_max))

    def progress(self) -> tuple[int, int] | None:
        return self._feed.progress()

    def close(self) -> None:
        self._feed.close()
