"""One line, one JSON value, one record.

The whole-buffer decoder is five times as fast as a loop over lines, but it separates values by their own
ends: two values on one line or one value over two lines are all the same to it. It is used only where it
cannot differ. Every newline then stands between a `}` and a `{`, which inside a JSON value occurs only in
a string, where the decoder refuses a raw newline: so no value spans lines, each line holds at least one,
and as many values as lines means one on each.

Where that does not hold, the lines are taken in pieces, and within a piece that does not pass one by one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from secondpass import codec
from secondpass.connectors.lines import RAW_KEPT, Parsed, newline_number
from secondpass.connectors.maker import LOOKED_AT, Maker, reason_of
from secondpass.record import Refused

PIECE = 16 << 10
"""So many bytes are tried at once after a larger buffer did not pass."""


_NO_SKELETON = bytes(byte for byte in range(256) if byte not in b"{}\n")


def _flat_lines(data: bytes) -> int | None:
    r"""How many lines `data` has when each holds exactly one pair of braces; None when that is not so.

    The braces and newlines alone say it, and to leave out all else is twice as fast as to count pairs of
    characters. When as many objects as lines are then decoded, and nothing else, no brace is left to stand in a
    string: every line holds one object, and none reaches over its end.

    >>> _flat_lines(b'{"a":1}\n{"b":2}\n'), _flat_lines(b'{"a":{}}\n')
    (2, None)
    """
    if not data.endswith(b"\n"):
        return None  # what follows the last newline may hold no brace at all
    if not data.endswith(b"}\n"):
        return None
    skeleton = data.translate(None, _NO_SKELETON)
    lines = len(skeleton) // 3
    return lines if lines and skeleton == b"{}\n" * lines else None


class JsonRecords:
    """The parser of JSON lines."""

    def __init__(self, maker: Maker, name: str) -> None:
        self._maker = maker
        self._name = name
        self._decoder = msgspec.json.Decoder(maker.decoded_type, dec_hook=codec.decode_hook)
        self._as_is = msgspec.json.Decoder()

    def restart(self) -> None:
        """Nothing is kept from one file to the next."""

    def skipped(self) -> None:
        """A line more or less makes no difference to the next one."""

    def offset(self) -> dict[str, Any]:
        return {}

    def parse(self, data: bytes, start: int, limit: int, *, final: bool) -> Parsed:  # noqa: ARG002 - a line is whole as it is
        flat = _flat_lines(data) if self._maker.objects_only else None
        lines = flat if flat is not None else data.count(b"\n") + (not data.endswith(b"\n"))
        if lines > limit:
            data = data[: newline_number(data, limit)]
            lines = limit
        parsed = Parsed(used=len(data))
        events = self._whole(data, lines, flat=flat is not None)
        if events is None:
            self._in_pieces(data, start, parsed)
        else:
            parsed.events, parsed.count = events, lines
        return parsed

    def _whole(self, data: bytes, lines: int, *, flat: bool = False) -> list[Any] | None:
        """The events of `data` when it can be decoded at once, else None; `flat` as `_flat_lines` found."""
        if not flat:
            if not (data.startswith(b"{") and data.endswith((b"}\n", b"}\r\n", b"}"))):
                return None
            joints = data.count(b"}\n{")
            if joints != lines - 1 and joints + data.count(b"}\r\n{") != lines - 1:
                return None
        try:
            if not data.isascii():
                data.decode()  # fields that the type ignores are skipped unseen
            found: list[Any] = self._decoder.decode_lines(data)
        except Exception:  # noqa: BLE001 - whatever is wrong is found again, and said, line by line
            return None
        if len(found) != lines or (self._maker.untyped and set(map(type, found)) != {dict}):
            return None
        single = not self._maker.untyped or (b"[" not in data and (flat or data.count(b"{") == lines))
        events = self._maker.all(found, data, flat=single)
        if events is not None and self._maker.looks:
            for event, line in zip(events, data.split(b"\n", LOOKED_AT), strict=False):
                self._look(event, line)
        return events

    def _in_pieces(self, data: bytes, start: int, parsed: Parsed) -> None:
        if len(data) <= PIECE:
            self._one_by_one(data, start, parsed)
            return
        at = 0
        while at < len(data):
            end = data.find(b"\n", min(at + PIECE, len(data) - 1)) + 1 or len(data)
            piece = data[at:end]
            lines = piece.count(b"\n") + (not piece.endswith(b"\n"))
            events = self._whole(piece, lines)
            if events is None:
                self._one_by_one(piece, start + at, parsed)
            else:
                parsed.add_all(events)
            at = end

    def _one_by_one(self, piece: bytes, start: int, parsed: Parsed) -> None:
        for line in piece.split(b"\n"):
            if line.strip():
                try:
                    event = self.decode(line)
                except Exception as error:  # noqa: BLE001 - a type's own checks may raise anything
                    parsed.refuse(Refused(reason_of(error), line[:RAW_KEPT], start, self._name))
                else:
                    if self._maker.looks:
                        self._look(event, line)
                    parsed.add(event)
            start += len(line) + 1

    def decode(self, line: bytes) -> Any:
        """The event of one line; raises when it holds none. What every faster way must equal."""
        line.decode()
        return self._maker.one(self._decoder.decode(line))

    def _look(self, event: Any, line: bytes) -> None:
        if self._maker.looks:
            self._maker.look(event, self._as_is.decode(line))
