"""Files of JSON lines: one line is one event, as a source; one output is one line, as a sink."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from secondpass import codec
from secondpass.connectors.maker import TimeUnit, check_declared
from secondpass.errors import DefinitionError, SettingsError
from secondpass.lookups import checked_key, checked_reload_s

if TYPE_CHECKING:
    from secondpass.connectors.contract import Reader, Sink

MAX_LINE_BYTES = 16 << 20


class JsonLines:
    r"""A file of JSON lines, as a source or as a sink.

    >>> from secondpass import App, Event
    >>> class Detection(Event):
    ...     cid: int
    ...     time: float
    >>> _ = Path("in.jsonl").write_text('{"cid": 7, "time": 12.5}\n')
    >>> app = App("copy", source=JsonLines("in.jsonl", Detection), sink=JsonLines("out.jsonl"))

    `path` is a path, or `-` for standard input and output; a path that ends in `.gz` is compressed. `type`
    is an `Event` class, or a union of tagged ones; without it events are read-only mappings. `follow`
    waits for more at the end and goes with a log through its rotations. `time_unit` is the unit of the
    input's `time`. Lines beyond `max_line_bytes` are set aside. `name` identifies the source in
    messages and in the store where the path should not. As a lookup it needs a `key`, the field or the fields that
    tell lines apart, and is read again every `reload_s` seconds. Raises `DefinitionError` for a type that cannot be
    decoded and `SettingsError` for options that do not fit.
    """

    def __init__(
        self,
        path: str | Path,
        type: Any = None,  # noqa: A002 - it is what users call it
        *,
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
        self.name = self.path if name is None else name
        self.key = checked_key(key)
        self.reload_s = checked_reload_s(reload_s)
        check_declared(type, time_unit)
        check_options(self.path, follow, max_line_bytes)
        check_type(type, repr(self))

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Reader:
        from secondpass.connectors.feed import refuse_other_kind
        from secondpass.connectors.json_records import JsonRecords
        from secondpass.connectors.lines import LineReader
        from secondpass.connectors.maker import Maker
        from secondpass.connectors.opening import open_feed

        feed, mark = open_feed(self.path, offset, follow=follow or self.following, accept=accept)
        if mark is not None and mark.fields is not None:
            feed.close()
            raise refuse_other_kind(self.path, mark)
        parser = JsonRecords(Maker(self.type, self.time_unit, self.name), self.name)
        return LineReader(feed, parser, name=self.name, max_bytes=self.max_line_bytes, mark=mark)

    def sink(self) -> Sink:
        """This file as a sink."""
        from secondpass.connectors.filesink import JsonSink
        from secondpass.connectors.stdout import StandardOutput

        return StandardOutput() if self.path == "-" else JsonSink(self.path)

    def __repr__(self) -> str:
        return f"JsonLines({self.path!r})"


def check_type(declared: Any, shown: str) -> None:
    """Raises `DefinitionError` for a type that msgspec cannot decode (a union without tags)."""
    try:
        msgspec.json.Decoder(Any if declared is None else declared, dec_hook=codec.decode_hook)
    except TypeError as error:
        raise DefinitionError(f"{shown}: {error}") from None


def check_options(path: str, follow: bool, max_line_bytes: int) -> None:
    """Raises `SettingsError` for options that do not fit each other."""
    if not path:
        raise SettingsError("the path is empty; give a file's path, or '-' for standard input and output")
    if follow and path.endswith(".gz"):
        from secondpass.connectors.opening import cannot_follow

        raise cannot_follow(path)
    if max_line_bytes < 1:
        raise SettingsError(f"max_line_bytes={max_line_bytes}: a line has at least one byte")
