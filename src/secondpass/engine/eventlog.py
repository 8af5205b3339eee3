"""`Log`: appending events to the log of a store, from any thread and any process of the machine.

What a frame of the log holds: `[names of types, which event has which, [event, ...]]`, as `engine/bundle.py` has it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from secondpass import loading
from secondpass.aside import is_aside
from secondpass.codec import codec_for, pack, unpack
from secondpass.engine.bundle import Encoded, decode_events, encode_events
from secondpass.engine.names import find_type
from secondpass.errors import SecondpassError, SettingsError
from secondpass.event import Event, owned, untyped
from secondpass.record import Refused, error_text
from secondpass.store.log import StoredLog

NAME = "log"
"""The log's name among the sources."""
VARIABLE = "SECONDPASS_LOGS"
"""The environment variable that tells the processes a run starts where its store is: a JSON map from app to directory."""
_NAME_MAX = 256


class Appended(NamedTuple):
    """The last append of a producer: its sequence, the positions in the log, and the last of its events."""

    sequence: int
    positions: range
    event: Any


class Log:
    """The log of a store: what is appended here the app takes, exactly once.

    >>> import tempfile
    >>> from secondpass import Log
    >>> log = Log(tempfile.mkdtemp())
    >>> log.append([{"n": 1}, {"n": 2}])
    range(0, 2)
    >>> log.append([{"n": 3}], producer="meter", sequence=7)
    range(2, 3)
    >>> log.append([{"n": 3}], producer="meter", sequence=7)    # sent again, since the answer was lost
    range(2, 3)

    `store` is the store's directory; `app.log` is that of the app's own. When `append` returns, the events are durable,
    and it gives their positions in the log. Any number of threads and processes may append at once; an object may be
    pickled, and used after a fork.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self._store = Path(store).absolute()
        self._log = StoredLog(self._store)

    def append(
        self,
        events: Iterable[Any],
        *,
        producer: str | None = None,
        sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> range:
        """Append events (Event objects or mappings), and give their positions once they are durable.

        They are taken in this order, nothing of others in between. A `producer` is a name of the caller's choice, its
        `sequence` a number that goes up with each call: a call that is repeated appends nothing. Raises `SettingsError`,
        naming the first event that is none, before anything is written; `StoreFull` where there is no room. While a
        running app is too far behind, it waits, at most `timeout_s`. Where an app's tasks run once more (explained, rehearsed,
        checked, tried, in `testing.run`) nothing is appended.
        """
        if loading.at_rest is not None:
            loading.at_rest(f"appends to {self}")
        name = _checked(producer, sequence)
        found = _owned(events)
        if not found or is_aside():
            return range(0)
        return self._log.append(pack(encode_events(found)), len(found), name, sequence, timeout_s=timeout_s)

    def last(self, producer: str) -> Appended | None:
        """The last append of a producer, for one that must know where it stopped; None where there is none.

        >>> import tempfile
        >>> from secondpass import Log
        >>> log = Log(tempfile.mkdtemp())
        >>> _ = log.append([{"n": 1}, {"n": 2}], producer="meter")
        >>> log.last("meter")
        Appended(sequence=0, positions=range(0, 2), event={'n': 2})
        """
        found = self._log.last(_checked(producer, None))
        if found is None:
            return None
        records = [] if found.body is None else decode(found.body, found.records.start)
        event = records[-1] if records and not isinstance(records[-1], Refused) else None
        return Appended(found.sequence, found.records, event)

    @property
    def directory(self) -> Path:
        """The store's directory."""
        return self._store

    def stop(self) -> None:
        """Append nothing more through this object; who waits for the app to catch up is told so."""
        self._log.stop()

    def close(self) -> None:
        """Let go of the log's files; the next call opens them again."""
        self._log.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Log, (str(self._store),)

    def __repr__(self) -> str:
        return f"Log({str(self._store)!r})"


def _checked(producer: str | None, sequence: int | None) -> str:
    if producer is None:
        if sequence is not None:
            raise SettingsError(f"sequence={sequence!r}: whose? give producer='...' too")
        return ""
    if not isinstance(producer, str) or not 0 < len(producer) <= _NAME_MAX:  # pyright: ignore[reportUnnecessaryIsInstance] - users' input
        raise SettingsError(f"producer={producer!r}: a producer is a name of 1 to {_NAME_MAX} letters")
    if sequence is not None and (type(sequence) is not int or not 0 <= sequence < 1 << 63):
        raise SettingsError(f"sequence={sequence!r}: a sequence is a whole number from 0 on that goes up")
    return producer


def _owned(events: Iterable[Any]) -> list[Any]:
    """The events as they will be read; a single one may come alone."""
    if not isinstance(events, Iterable) and not isinstance(events, Event):  # pyright: ignore[reportUnnecessaryIsInstance] - users' values
        raise SettingsError(
            f"{repr(events)[:100]} is no event: a {type(events).__name__}; append Event objects or mappings. Nothing was appended"
        )
    given: list[Any] = [events] if isinstance(events, (Event, Mapping)) else list(events)
    kinds = set(map(type, given))
    if len(kinds) == 1 and issubclass(kind := kinds.pop(), Event) and all(map(codec_for(kind).exact, given)):
        return given  # by far the most there are
    found: list[Any] = []
    for i, event in enumerate(given):
        if not isinstance(event, (Event, Mapping)):
            raise SettingsError(
                f"event {i} is none: a {type(event).__name__}; append Event objects or mappings. Nothing was appended"
            )
        try:
            found.append(owned(event))
        except Exception as error:
            raise SettingsError(
                f"event {i} cannot be appended: {error_text(error)}. Nothing was appended",
                event=repr(cast("Any", event))[:1000],
            ) from error
    return found


# ---------------------------------------------------------------- reading


_parts = msgspec.msgpack.Decoder(Encoded).decode
_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def decode(body: bytes, first: int) -> list[Any]:
    """The records of a frame: events, and a `Refused` in the place of each that the app's code cannot read."""
    encoded = _parts(body)
    try:
        return decode_events(encoded)
    except (SecondpassError, msgspec.MsgspecError, TypeError, ValueError):
        names, which, raws = encoded
        bodies = _raws(raws)
        kinds = [names[0]] * len(bodies) if which is None else [names[i] for i in which]
        return [_one(name, raw, first + i) for i, (name, raw) in enumerate(zip(kinds, bodies, strict=True))]


def _one(name: str | None, raw: msgspec.Raw, number: int) -> Any:
    if name is None:
        return untyped(unpack(raw))
    try:
        kind = find_type(name)
    except SecondpassError:
        return _refused(
            name, raw, number, f"the app defines no event class {name}; bring it back and send this again"
        )
    try:
        return codec_for(kind).decode(raw)
    except Exception as error:  # noqa: BLE001 - a type's own checks may raise anything
        return _refused(name, raw, number, f"it is no {name} any more: {error_text(error)}")


def _refused(name: str, raw: msgspec.Raw, number: int, reason: str) -> Refused:
    return Refused(reason, _json.encode({"type": name, "event": unpack(raw)}), number, NAME)


_json = msgspec.json.Encoder()


class _Told(msgspec.Struct):
    type: str
    event: msgspec.Raw


def decode_refused(raw: bytes) -> Any:
    """A refused record, as it was or mended, as an event."""
    told = msgspec.json.decode(raw, type=_Told)
    codec = codec_for(find_type(told.type))
    return owned(msgspec.json.decode(told.event, type=codec.type, dec_hook=codec._hook))


# ---------------------------------------------------------------- where an app's log is


def told_store(app: str) -> Path | None:
    """The store of the run that has started this process, if one of that app has."""
    found = _told_stores().get(app)
    return Path(found) if found else None


def tell_store(app: str, store: Path | None) -> None:
    """Let the processes that this one starts know where an app's store is; None for no longer."""
    stores = _told_stores()
    stores.pop(app, None)
    if store is not None:
        stores[app] = str(store.absolute())
    if stores:
        os.environ[VARIABLE] = json.dumps(stores)
    else:
        os.environ.pop(VARIABLE, None)


def _told_stores() -> dict[str, str]:
    try:
        found: Any = json.loads(os.environ.get(VARIABLE) or "{}")
    except ValueError:
        return {}
    return cast("dict[str, str]", found) if isinstance(found, dict) else {}
