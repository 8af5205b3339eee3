"""Outputs as rows of a CSV file.

The header comes first and is that of the first output: its type's fields, or an untyped event's keys. None
is an empty cell, a float what `repr` gives, a bool true or false, a nested value JSON. Lines end with one
newline, and a cell is quoted when it holds a delimiter, a quote or a line's end.
"""

from __future__ import annotations

import csv
import io
import typing
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from secondpass import codec
from secondpass.connectors.contract import Delivery
from secondpass.connectors.filesink import CompressibleSink, undelivered
from secondpass.connectors.stdout import SHOWN, StandardOutput
from secondpass.errors import OutputError


class CsvRows:
    """Turns events into lines of text under one header."""

    def __init__(self, shown: str, delimiter: str) -> None:
        self._shown = shown
        self._delimiter = delimiter
        self._special = (delimiter, '"', "\n", "\r")
        self._names: dict[type, list[tuple[str, str]]] = {}

    def fields_of(self, event: Any) -> tuple[str, ...]:
        """The header that an event asks for."""
        return tuple(_cells(event, self._names))

    def header(self, fields: tuple[str, ...]) -> str:
        """The first line."""
        return self._line([self._quoted(f) for f in fields])

    def row(self, event: Any, fields: tuple[str, ...], number: int) -> str:
        """The line of one event; raises `OutputError` for fields that the header lacks."""
        cells = _cells(event, self._names)
        unknown = [name for name in cells if name not in fields]
        if unknown:
            raise OutputError(
                f"{self._shown}: output number {number} has fields that the header lacks: {', '.join(unknown)} (the "
                f"header is {', '.join(fields)}). Give all outputs the same fields, or write JsonLines"
            )
        return self._line([self._quoted(text_of(cells.get(f))) for f in fields])

    def _line(self, cells: list[str]) -> str:
        # A line of nothing but blanks would be no row at all.
        if len(cells) == 1 and not cells[0].strip():
            return f'"{cells[0]}"\n'
        return self._delimiter.join(cells) + "\n"

    def _quoted(self, text: str) -> str:
        if any(c in text for c in self._special):
            return '"' + text.replace('"', '""') + '"'
        return text


def _cells(event: Any, known: dict[type, list[tuple[str, str]]]) -> dict[str, Any]:
    if isinstance(event, Mapping):
        return {str(k): v for k, v in typing.cast("Mapping[Any, Any]", event).items()}
    kind: Any = event.__class__
    names = known.get(kind)
    if names is None:
        names = known[kind] = [(f.encode_name, f.name) for f in msgspec.structs.fields(kind)]
    cells = {encoded: getattr(event, name) for encoded, name in names}
    config = event.__struct_config__
    return {config.tag_field: config.tag, **cells} if config.tag_field else cells


def text_of(value: Any) -> str:
    """A cell's text.

    >>> [text_of(v) for v in (None, True, 0.1, 7, "x", (1, 2))]
    ['', 'true', '0.1', '7', 'x', '[1,2]']
    """
    if value is None:
        return ""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (str, int)) and type(value) in (str, int):
        return str(value)
    plain: Any = msgspec.to_builtins(value, enc_hook=codec.encode_hook)
    if plain is None or isinstance(plain, (str, int, float)):
        return text_of(plain)
    return msgspec.json.encode(plain).decode()


class CsvSink(CompressibleSink):
    """A CSV file."""

    format: Literal["json", "events"] = "events"

    def __init__(self, path: str, delimiter: str) -> None:
        super().__init__(path)
        self._delimiter = delimiter
        self._rows = CsvRows(path, delimiter)

    def text(self, delivery: Delivery, events: list[Any] | None, done: int) -> bytes:
        rest = (events or [])[done:]
        fields = self._state.fields
        if fields is None:
            fields = self._state.fields = self._rows.fields_of(rest[0])
        lines = [self._rows.header(fields)] if self._at == 0 else []
        lines += [self._rows.row(e, fields, delivery.first + done + i) for i, e in enumerate(rest)]
        return "".join(lines).encode()

    def accepted(self) -> None:
        super().accepted()
        head = next(self._plain(), b"").removeprefix(b"\xef\xbb\xbf")
        try:
            row = next(
                csv.reader(io.StringIO(head.decode(errors="strict"), newline=""), delimiter=self._delimiter)
            )
        except (StopIteration, csv.Error, UnicodeDecodeError):
            row = []
        if not row:
            raise OutputError(
                f"{self.path} has no header that rows could follow; move it away: with --accept-output a new file is begun"
            )
        self._state.fields = tuple(row)


class CsvOutput(StandardOutput):
    """CSV on standard output; each run begins with the header."""

    format: Literal["json", "events"] = "events"

    def __init__(self, delimiter: str) -> None:
        super().__init__()
        self._rows = CsvRows(SHOWN, delimiter)
        self._fields: tuple[str, ...] | None = None

    def deliver(self, delivery: Delivery, events: list[Any] | None) -> None:
        done = undelivered(delivery, self._number, SHOWN)
        rest = (events or [])[done:]
        if not rest:
            return
        lines: list[str] = []
        if self._fields is None:
            self._fields = self._rows.fields_of(rest[0])
            lines.append(self._rows.header(self._fields))
        lines += [self._rows.row(e, self._fields, delivery.first + done + i) for i, e in enumerate(rest)]
        self.write("".join(lines).encode())
        self._number = delivery.first + delivery.count
