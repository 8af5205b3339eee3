"""Rows of CSV files: one row is one record, and a quoted field may hold newlines.

Quoting is that of Python's csv module: `"` opens a field at its beginning only, and doubled it stands for
itself. A row ends where the csv module says it ends, which may be several lines further on; a quoted
field that is never closed costs its first line, and reading goes on with the next one.

Without a quote in sight every line is a row, and the csv module takes the whole buffer at once.
"""

from __future__ import annotations

import csv
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from secondpass import codec
from secondpass.connectors.lines import RAW_KEPT, Parsed, newline_number
from secondpass.connectors.maker import Maker, Unfit, reason_of
from secondpass.errors import InputError
from secondpass.record import Refused


class _Row(NamedTuple):
    first: int
    """The index of its first line."""
    end: int
    """The index of the line after its last."""
    cells: list[str] | Exception


class _NoMoreLines(Exception):
    """The buffer ended; the csv module alone would take an open field for a closed one."""


class CsvRecords:
    """The parser of CSV files; `fields` is the header where a file is continued."""

    def __init__(
        self,
        maker: Maker,
        name: str,
        *,
        delimiter: str,
        max_bytes: int,
        fields: tuple[str, ...] | None,
    ) -> None:
        self._maker = maker
        self._name = name
        self._delimiter = delimiter
        self._fields: list[str] | None = None
        self._columns: list[_Column] = []
        if fields is not None:
            self._begin(list(fields))
        # The csv module's own limit, of the whole process, is 128 KiB a field; ours is that of a line.
        csv.field_size_limit(max(csv.field_size_limit(), max_bytes))

    def restart(self) -> None:
        self._fields = None

    def skipped(self) -> None:
        if self._fields is None:
            raise InputError(f"{self._name}: the header is longer than max_line_bytes; is it a CSV file?")

    def offset(self) -> dict[str, Any]:
        return {} if self._fields is None else {"fields": self._fields}

    # ------------------------------------------------------------ the header

    def _begin(self, fields: list[str]) -> None:
        repeated = sorted({f for f in fields if fields.count(f) > 1})
        if repeated:
            raise InputError(
                f"{self._name}: the header names {repeated[0]!r} twice; every column needs its own name"
            )
        if "" in fields:
            raise InputError(
                f"{self._name}: column {fields.index('') + 1} of the header has no name; give it one"
            )
        types_ = self._maker.types
        if len(types_) == 1 and not self._maker.untyped:
            self._columns = _columns(types_[0])
            missing = [c.name for c in self._columns if c.required and c.name not in fields]
            if missing:
                raise InputError(
                    f"{self._name} has no column {missing[0]!r}, which {types_[0].__name__} requires; its columns are "
                    f"{', '.join(map(repr, fields))}. Rename it in the file, or in the type: "
                    f"class {types_[0].__name__}(Event, rename={{{missing[0]!r}: 'its name in the file'}})"
                )
            self._columns = [c for c in self._columns if c.name in fields and (c.empty != "keep" or c.json)]
        self._fields = fields

    def _header(self, data: bytes, *, final: bool) -> Parsed:
        rows, lines = self._rows(data, 1, final=final)
        if not rows:
            return Parsed(used=_bytes_of(data, lines))
        cells = rows[0].cells
        if isinstance(cells, Exception):
            raise InputError(
                f"{self._name}: the header cannot be read ({reason_of(cells)}); is it a CSV file?"
            )
        self._begin(cells)
        return Parsed(used=_bytes_of(data, rows[0].end))

    # ------------------------------------------------------------ rows

    def parse(self, data: bytes, start: int, limit: int, *, final: bool) -> Parsed:
        if self._fields is None:
            return self._header(data, final=final)
        parsed = self._parse(data, start, limit, final=final)
        if parsed.events and self._maker.looks:
            self._maker.look(parsed.events[0], self._fields)
        return parsed

    def _parse(self, data: bytes, start: int, limit: int, *, final: bool) -> Parsed:
        if b'"' not in data:
            lines = data.count(b"\n") + (not data.endswith(b"\n"))
            if lines > limit:
                data = data[: newline_number(data, limit)]
            events = self._whole(data)
            if events is not None:
                return Parsed(len(data), len(events), events)
        rows, lines = self._rows(data, limit, final=final)
        parsed = Parsed(used=_bytes_of(data, lines))
        width = len(self._fields or ())
        wrong = any(isinstance(r.cells, Exception) or len(r.cells) != width for r in rows)
        events = None if wrong else self._events([typing.cast("list[str]", r.cells) for r in rows], data)
        if events is None:
            self._one_by_one(data, start, rows, parsed)
        else:
            parsed.add_all(events)
        return parsed

    def _whole(self, data: bytes) -> list[Any] | None:
        """The events of lines without quotes; None when they have to be taken one by one."""
        try:
            lines = data.decode().split("\n")
            rows = [r for r in csv.reader(lines, delimiter=self._delimiter) if r]
        except (UnicodeDecodeError, csv.Error):
            return None
        width = len(self._fields or ())
        if any(len(r) != width for r in rows) or (width == 1 and not all(r[0].strip() for r in rows)):
            return None
        return self._events(rows, data)

    def _rows(self, data: bytes, limit: int, *, final: bool) -> tuple[list[_Row], int]:
        """Up to `limit` rows, and how many lines they and the blank lines between them took."""
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        rows: list[_Row] = []
        at = 0
        while len(rows) < limit:
            begin = at
            reader = csv.reader(_decoded(lines, begin), delimiter=self._delimiter)
            try:
                for cells in reader:
                    end = begin + reader.line_num
                    if cells and not (len(cells) == 1 and self._is_blank(lines[at])):
                        rows.append(_Row(at, end, cells))
                    at = end
                    if len(rows) == limit:
                        break
            except _NoMoreLines:
                if at == len(lines) or not final:
                    break
                rows.append(_Row(at, at + 1, Unfit("a quoted field is not closed")))
                at += 1
            except (csv.Error, UnicodeDecodeError) as error:
                rows.append(_Row(at, at + 1, error))
                at += 1
        return rows, at

    def _is_blank(self, line: bytes) -> bool:
        return not line.strip() and self._delimiter.encode() not in line

    def _one_by_one(self, data: bytes, start: int, rows: list[_Row], parsed: Parsed) -> None:
        lines = data.split(b"\n")
        at = 0
        for row in rows:
            start += sum(len(line) + 1 for line in lines[at : row.first])
            at = row.first
            try:
                parsed.add(self._event(row))
            except Exception as error:  # noqa: BLE001 - a type's own checks may raise anything
                raw = b"\n".join(lines[row.first : row.end])[:RAW_KEPT]
                parsed.refuse(Refused(reason_of(error), raw, start, self._name))

    # ------------------------------------------------------------ events

    def _event(self, row: _Row) -> Any:
        if isinstance(row.cells, Exception):
            raise row.cells
        fields = self._fields or []
        if len(row.cells) != len(fields):
            raise Unfit(f"{len(row.cells)} fields where the header has {len(fields)}")
        found: Any = self._prepared([row.cells])[0]
        if not self._maker.untyped:
            found = msgspec.convert(found, self._maker.decoded_type, strict=False, dec_hook=codec.decode_hook)
        return self._maker.one(found)

    def _events(self, rows: list[list[str]], data: bytes) -> list[Any] | None:
        """All events of these rows; None when one of them has to be refused."""
        try:
            found: list[Any] = self._prepared(rows)
            if not self._maker.untyped:
                kind: Any = list[self._maker.decoded_type]
                found = msgspec.convert(found, kind, strict=False, dec_hook=codec.decode_hook)
        except Exception:  # noqa: BLE001 - whatever is wrong is found again, and said, row by row
            return None
        return self._maker.all(found, data, flat=True)

    def _prepared(self, rows: list[list[str]]) -> list[dict[str, Any]]:
        """Rows as mappings, with what a cell's text cannot say filled in."""
        fields = self._fields or []
        found: list[dict[str, Any]] = [dict(zip(fields, r, strict=True)) for r in rows]
        for column in self._columns:
            for row in found:
                column.fill(row)
        if self._maker.untyped and "time" in fields:
            for row in found:
                row["time"] = _number_or_text(row["time"])
        return found


def _bytes_of(data: bytes, lines: int) -> int:
    """How many bytes the first `lines` lines take."""
    return newline_number(data, lines) if data.count(b"\n") >= lines else len(data)


def _decoded(lines: list[bytes], first: int) -> Iterator[str]:
    for line in lines[first:]:
        yield line.decode() + "\n"
    raise _NoMoreLines


def _number_or_text(cell: str) -> float | str:
    try:
        return msgspec.convert(cell, float, strict=False)
    except msgspec.ValidationError:
        return cell


# ---------------------------------------------------------------- columns of a declared type


class _Column(NamedTuple):
    name: str
    required: bool
    empty: str
    """What an empty cell means: "none", "default", or "keep" (the empty text)."""
    json: bool
    """Whether a cell holds JSON: a tuple, a mapping, a struct."""

    def fill(self, row: dict[str, Any]) -> None:
        """Replace this column's cell by what it means."""
        cell = row[self.name]
        if cell == "":
            if self.empty == "none":
                row[self.name] = None
            elif self.empty == "default":
                del row[self.name]
        elif self.json:
            row[self.name] = msgspec.json.decode(cell)


def _columns(tp: Any) -> list[_Column]:
    return [_column(f) for f in msgspec.structs.fields(tp)]


def _column(field: msgspec.structs.FieldInfo) -> _Column:
    kinds = _alternatives(field.type)
    if type(None) in kinds:
        empty = "none"
    elif str in kinds or field.required:
        empty = "keep"
    else:
        empty = "default"
    nested = any(codec.is_struct(k) or typing.get_origin(k) in (tuple, frozenset, Mapping) for k in kinds)
    return _Column(
        field.encode_name, field.required, empty, nested or bool(kinds & {tuple, frozenset, Mapping})
    )


def _alternatives(tp: Any) -> set[Any]:
    if typing.get_origin(tp) is typing.Annotated:
        return _alternatives(typing.get_args(tp)[0])
    if typing.get_origin(tp) in (typing.Union, types.UnionType):
        return {k for a in typing.get_args(tp) for k in _alternatives(a)}
    return {type(None) if tp is None else tp}
