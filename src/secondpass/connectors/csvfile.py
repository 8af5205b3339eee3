"""CSV files: one row is one event, as a source; one output is one row, as a sink."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.connectors.jsonlines import MAX_LINE_BYTES, check_options, check_type
from secondpass.connectors.maker import TimeUnit, check_declared
from secondpass.errors import SettingsError
from secondpass.lookups import checked_key, checked_reload_s

if TYPE_CHECKING:
    from secondpass.connectors.contract import Reader, Sink


class Csv:
    r"""A CSV file, as a source or as a sink.

    >>> from secondpass import App, Event
    >>> class Alarm(Event, rename={"time": "start_timestamp"}):
    ...     device_id: int
    ...     time: float
    >>> _ = Path("alarms.csv").write_text("device_id,start_timestamp\n7,12.5\n")
    >>> Csv("alarms.csv", Alarm).open(None).read(10).events
    [Alarm(device_id=7, time=12.5)]

    The first line names the fields. With a `type`, cells are converted to the fields' types: an empty
    cell is None where the type allows it, else the default where there is one; a tuple, a mapping or a struct is
    JSON in its cell. Without a type cells stay text, except that a numeric `time` becomes a float.
    `delimiter` separates the cells; the other options are those of `JsonLines`, `max_line_bytes` being the
    limit of a row. As a lookup it needs a `key`, the field or the fields that tell rows apart, and is read again every
    `reload_s` seconds. As a sink it writes None as an empty cell, and refuses outputs with fields that the first
    one did not have. Raises `DefinitionError` and `SettingsError` as `JsonLines` does.
    """

    def __init__(
        self,
        path: str | Path,
        type: Any = None,  # noqa: A002 - it is what users call it
        *,
        delimiter: str = ",",
        follow: bool = False,
        time_unit: TimeUnit = "s",
        max_line_bytes: int = MAX_LINE_BYTES,
        name: str | None = None,
        key: str | tuple[str, ...] | None = None,
        reload_s: float | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.type: Any = type
        self.following = follow
        self.time_unit: TimeUnit = time_unit
        self.max_line_bytes = max_line_bytes
        self.delimiter = delimiter
        self.name = self.path if name is None else name
        self.key = checked_key(key)
        self.reload_s = checked_reload_s(reload_s)
        check_declared(type, time_unit)
        check_type(type, repr(self))
        check_options(self.path, follow, max_line_bytes)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise SettingsError(
                f"delimiter={delimiter!r}: give one character that is no quote and ends no line"
            )

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Reader:
        from secondpass.connectors.csv_records import CsvRecords
        from secondpass.connectors.feed import refuse_other_kind
        from secondpass.connectors.lines import LineReader
        from secondpass.connectors.maker import Maker
        from secondpass.connectors.opening import open_feed

        feed, mark = open_feed(self.path, offset, follow=follow or self.following, accept=accept)
        try:
            if mark is not None and mark.records and mark.fields is None:
                raise refuse_other_kind(self.path, mark)
            parser = CsvRecords(
                Maker(self.type, self.time_unit, self.name),
                self.name,
                delimiter=self.delimiter,
                max_bytes=self.max_line_bytes,
                fields=None if mark is None else mark.fields,
            )
        except BaseException:
            feed.close()
            raise
        return LineReader(feed, parser, name=self.name, max_bytes=self.max_line_bytes, mark=mark)

    def sink(self) -> Sink:
        """This file as a sink."""
        from secondpass.connectors.csv_rows import CsvOutput, CsvSink

        return CsvOutput(self.delimiter) if self.path == "-" else CsvSink(self.path, self.delimiter)

    def __repr__(self) -> str:
        return f"Csv({self.path!r})"
