"""The outbox: outputs are numbered, committed with their epoch, and handed to sinks after it.

A sink's state (what it holds for certain) is recorded with the next commit. After a crash every output
after that state is handed over again; a file sink finds in its tail what is there already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from secondpass import codec
from secondpass.codec import codec_for, pack
from secondpass.connectors.contract import Delivery, Sink
from secondpass.engine.names import find_type, type_name
from secondpass.errors import OutputError
from secondpass.event import Event, UntypedEvent, untyped
from secondpass.failpoints import failpoint
from secondpass.record import DeadLetter
from secondpass.store.database import OutputRow, Store
from secondpass.store.format import StoredLetter

SYNC_EVERY_S = 1.0
SYNC_EVERY_BYTES = 32 * 1024 * 1024
_RAW_MAX = 64 * 1024


def _json_hook(obj: Any) -> Any:
    if codec.is_numpy(obj, "ndarray"):
        return obj.tolist()
    return codec.encode_hook(obj)


_json = msgspec.json.Encoder(enc_hook=_json_hook)
_parts = msgspec.msgpack.Decoder(tuple[list[str | None], list[int] | None, list[msgspec.Raw]]).decode
_letter_parts = msgspec.msgpack.Decoder(tuple[str | None, msgspec.Raw]).decode


def encode_json(events: list[Any]) -> bytes:
    """Events as JSON lines."""
    try:
        return _json.encode_lines(events)
    except (TypeError, ValueError, OverflowError) as error:
        for event in events:
            try:
                _json.encode(event)
            except (TypeError, ValueError, OverflowError) as cause:
                raise OutputError(f"{event!r} cannot be written as JSON: {cause}") from cause
        raise OutputError(f"events cannot be written as JSON: {error}") from error


def encode_events(events: list[Any]) -> bytes:
    """Events with their types, so that they come back as they were."""
    kinds = list(dict.fromkeys(map(type, events)))
    which = None if len(kinds) < 2 else [kinds.index(e.__class__) for e in events]
    return pack([[type_name(k) for k in kinds], which, events])


def decode_events(body: bytes, find: Callable[[str], type[Event]] = find_type) -> list[Any]:
    """The inverse of `encode_events`."""
    names, which, raws = _parts(body)
    decoders = [_untyped if n is None else codec_for(find(n)).decode for n in names]
    if which is None:
        return [decoders[0](raw) for raw in raws]
    return [decoders[k](raw) for k, raw in zip(which, raws, strict=True)]


def decode_plain(row: OutputRow) -> list[dict[str, Any]]:
    """A row's outputs as plain dicts, without the app's classes."""
    if row.format == "json":
        return msgspec.json.Decoder().decode_lines(row.body)
    return [codec.unpack(raw) for raw in _parts(row.body)[2]]


def encode_event(event: Any) -> bytes:
    """One event with its type; empty for None."""
    if event is None:
        return b""
    try:
        return pack([type_name(event.__class__), event])
    except (OverflowError, TypeError, ValueError):
        return pack([None, {"unstorable": repr(event)[:65536]}])


def decode_event(data: bytes) -> Any:
    """The inverse of `encode_event`."""
    if not data:
        return None
    name, raw = _letter_parts(data)
    return _untyped(raw) if name is None else codec_for(find_type(name)).decode(raw)


def type_in(data: bytes) -> str | None:
    """The name of an event's type; None where it has none."""
    return _letter_parts(data)[0] if data else None


def decode_event_plain(data: bytes) -> Any:
    """One event as a plain dict, without the app's classes."""
    return codec.unpack(_letter_parts(data)[1]) if data else None


def stored_letter(letter: DeadLetter) -> StoredLetter:
    """A dead letter in the form that the store keeps."""
    return StoredLetter(
        letter.position,
        letter.task,
        letter.error,
        letter.traceback,
        encode_event(letter.event),
        letter.raw[:_RAW_MAX],
        letter.offset,
        letter.source,
    )


def _untyped(raw: Any) -> UntypedEvent:
    return untyped(codec.unpack(raw))


class Outbox:
    """The sinks of an app, fed from the store."""

    def __init__(self, sinks: dict[str, Sink]) -> None:
        self._sinks = sinks
        self._states: dict[str, Any] = {}
        self._synced_at = time.monotonic()
        self._unsynced = 0

    def recover(self, store: Store, *, accept: bool) -> None:
        """Open the sinks and hand over what earlier runs committed and may not have delivered."""
        failpoint("recover.before")
        for stream, sink in self._sinks.items():
            state = store.progress.sinks.get(stream)
            sink.open(state, accept=accept)
            number = state["number"] if state else store.progress.kept_from.get(stream, 0)
            for row in store.outputs(stream, after=number):
                failpoint("recover.deliver.before")
                self._hand_over(sink, row, None, skip=max(0, number - row.first))
                failpoint("recover.deliver.after")
            sink.recovered()
        self._states = {stream: sink.sync() for stream, sink in self._sinks.items()}
        failpoint("recover.after")

    def rows(
        self, store: Store, streams: dict[str, tuple[list[Any], list[int]]], first: int
    ) -> list[OutputRow]:
        """An epoch's outputs as rows to commit, numbered."""
        rows: list[OutputRow] = []
        for stream, (events, where) in streams.items():
            if not events:
                continue
            sink = self._sinks.get(stream)
            as_json = sink is not None and sink.format == "json"
            body = encode_json(events) if as_json else encode_events(events)
            number = store.progress.numbers.get(stream, 0)
            positions = [first + i for i in where]
            rows.append(
                OutputRow(stream, number, len(events), "json" if as_json else "events", positions, body)
            )
        return rows

    def deliver(self, rows: list[OutputRow], streams: dict[str, tuple[list[Any], list[int]]]) -> None:
        """Hand committed outputs to their sinks."""
        for row in rows:
            sink = self._sinks.get(row.stream)
            if sink is not None:
                failpoint("deliver.before")
                self._hand_over(sink, row, streams[row.stream][0])
                failpoint("deliver.after")
                self._unsynced += len(row.body)
                if sink.at_least_once:
                    # A new dict: the last one is in the last commit, and must stay what was committed.
                    self._states = {**self._states, row.stream: sink.sync()}

    def _hand_over(self, sink: Sink, row: OutputRow, events: list[Any] | None, skip: int = 0) -> None:
        body, first, count = row.body, row.first, row.count
        if sink.format == "events" and events is None:
            events = (
                decode_events(body) if row.format == "events" else [untyped(d) for d in decode_plain(row)]
            )
        elif sink.format == "json" and row.format != "json":
            body = encode_json(decode_events(body))
        if skip:
            # A row is delivered whole or not at all, except through an at-least-once sink.
            first, count = first + skip, count - skip
            body = b"".join(body.splitlines(keepends=True)[skip:]) if sink.format == "json" else body
            events = events[skip:] if events is not None else None
        sink.deliver(Delivery(first, count, body), events)

    def sync(self, *, now: bool = False) -> dict[str, Any]:
        """Now and then make the sinks durable; gives the states to record with the next commit."""
        due = time.monotonic() - self._synced_at > SYNC_EVERY_S or self._unsynced > SYNC_EVERY_BYTES
        if (due and self._unsynced) or now:
            failpoint("sink.sync.before")
            self._states = {stream: sink.sync() for stream, sink in self._sinks.items()}
            failpoint("sink.sync.after")
            self._synced_at, self._unsynced = time.monotonic(), 0
        return dict(self._states)

    def close(self) -> None:
        """Let go of all sinks."""
        for sink in self._sinks.values():
            sink.close()
