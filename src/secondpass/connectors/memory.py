"""Sources and sinks that are Python objects: any iterable, any callable.

A sequence, or a function that gives an iterable, is replayable: reading again begins anew and passes over
what was read, comparing the last item. A generator object can be read once.
"""

from __future__ import annotations

import inspect
import io
import os
import time
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from secondpass import codec
from secondpass.connectors.contract import Batch, Delivery, Reader, Sink, Source
from secondpass.connectors.filesink import undelivered
from secondpass.errors import DefinitionError, InputError, OutputError
from secondpass.event import Event, owned
from secondpass.record import Refused

READ_S_MAX = 0.05
"""An iterable that takes its time (a generator that sleeps) gives what it has after so long."""
RAW_KEPT = 1 << 10


def as_source(obj: Any, index: int = 0) -> Source:
    """The source that an app's `source=` means: a connector itself, or any iterable.

    >>> reader = as_source([{"n": 1}, {"n": 2}]).open(None)
    >>> [event["n"] for event in reader.read(10).events], reader.read(10)
    ([1, 2], None)

    Raises `DefinitionError` for what is neither, saying what to give.
    """
    if isinstance(obj, (str, bytes, os.PathLike)):
        path = os.fsdecode(typing.cast("str | bytes", obj))
        raise DefinitionError(
            f"source={path!r}: a path alone does not say what is in it; give JsonLines({path!r})"
        )
    if isinstance(obj, type):
        raise DefinitionError(f"source={obj.__name__}: pass an object, {obj.__name__}(...)")
    if hasattr(obj, "open") and not isinstance(obj, io.IOBase):
        return typing.cast("Source", obj)
    if isinstance(obj, io.IOBase):
        raise DefinitionError(
            "source= is an open file; give JsonLines(path), which can continue after a crash"
        )
    if isinstance(obj, (Mapping, Event)):
        raise DefinitionError("source= is a single event; give a list of events")
    if hasattr(obj, "__aiter__") or inspect.isasyncgenfunction(obj) or inspect.iscoroutinefunction(obj):
        raise DefinitionError("source= is asynchronous; give an iterable or a plain generator function")
    if isinstance(obj, Iterable):
        return MemorySource(typing.cast("Iterable[Any]", obj), _name(index))
    if callable(obj):
        return MemorySource(typing.cast("Callable[[], Iterable[Any]]", obj), _name(index))
    raise DefinitionError(
        f"source={obj!r}: a source is a connector such as JsonLines(path), an iterable of events, or a function "
        f"that gives one"
    )


def _name(index: int) -> str:
    return "memory" if index == 0 else f"memory:{index}"


class MemorySource:
    """An iterable of events or mappings, or a function without arguments that gives one."""

    type: Any = Any
    following = False

    def __init__(self, items: Iterable[Any] | Callable[[], Iterable[Any]], name: str = "memory") -> None:
        self.name = name
        self._items = items
        self._spent = False

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Reader:  # noqa: ARG002 - it ends where it ends, and its content is compared
        return _MemoryReader(self._fresh(), self.name, offset)

    def _fresh(self) -> Iterable[Any]:
        if callable(self._items):
            try:
                found = self._items()
            except Exception as error:
                raise _failed(self.name, 0, error) from error
            if not isinstance(found, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - users' functions
                raise InputError(
                    f"{self.name}: the source's function gave a {type(found).__name__}, not an iterable"
                )
            return found
        if isinstance(self._items, Iterator):
            if self._spent:
                raise InputError(
                    f"{self.name}: a generator can be read once, and it was; give the function that makes it "
                    f"(source=events, not source=events())"
                )
            self._spent = True
        return self._items


def _failed(name: str, number: int, error: Exception) -> InputError:
    return InputError(
        f"{name}: the source raised {type(error).__name__}: {error} when asked for item {number}; "
        f"mend it and run again: it goes on from the last commit"
    )


def _crc(record: Any) -> int:
    return zlib.crc32(record.raw if isinstance(record, Refused) else codec.pack(record))


class _MemoryReader:
    def __init__(self, items: Iterable[Any], name: str, offset: dict[str, Any] | None) -> None:
        self._name = name
        self._sized = items if isinstance(items, Sequence) else None
        self._items = iter(items)
        self._count = 0
        self._last: Any = None
        self._ended = False
        if offset is not None:
            self._pass_over(offset)

    def read(self, limit: int) -> Batch | None:
        events: list[Any] = []
        origin: list[int] = []
        refused: dict[int, Refused] = {}
        until = time.monotonic() + READ_S_MAX
        for index in range(limit):
            try:
                record = self._next()
            except StopIteration:
                self._ended = True
                break
            if isinstance(record, Refused):
                refused[index] = record
            else:
                events.append(record)
                origin.append(index)
            if time.monotonic() > until:
                break
        count = len(events) + len(refused)
        if not count and self._ended:
            return None
        return Batch(events, self._offset(), count=count, origin=origin if refused else None, refused=refused)

    def _next(self) -> Any:
        if self._ended:
            raise StopIteration
        try:
            item = next(self._items)
        except StopIteration:
            raise
        except Exception as error:
            raise _failed(self._name, self._count, error) from error
        self._last = self._record(item)
        self._count += 1
        return self._last

    def _record(self, item: Any) -> Any:
        if not isinstance(item, (Event, Mapping)):
            reason = f"not an event: a {type(item).__name__}; a source gives Event objects or mappings"
            return Refused(reason, _shown(item), self._count, self._name)
        try:
            return owned(item)
        except Exception as error:  # noqa: BLE001 - a type's own checks may raise anything
            return Refused(f"not an event: {error}", _shown(item), self._count, self._name)

    def _offset(self) -> dict[str, Any]:
        return {"count": self._count, "crc": _crc(self._last) if self._count else 0}

    def _pass_over(self, offset: dict[str, Any]) -> None:
        try:
            count, crc = int(offset["count"]), int(offset["crc"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{self._name}: the store holds an offset of another kind of source; give the app the source it "
                f"had, or start over with `secondpass run APP --fresh`"
            ) from None
        out = "give the app the items it had, or start over with `secondpass run APP --fresh`"
        for _ in range(count):
            try:
                self._next()
            except StopIteration:
                raise InputError(
                    f"{self._name}: {count} items had been read, and it has only {self._count}; {out}"
                ) from None
        if count and _crc(self._last) != crc:
            raise InputError(f"{self._name}: item {count - 1} is not the one that was read before; {out}")

    def verify(self) -> None:
        """What was read is in the batch, and no longer the iterable's."""

    def progress(self) -> tuple[int, int] | None:
        return None if self._sized is None else (self._count, max(len(self._sized), self._count))

    def close(self) -> None:
        close = getattr(self._items, "close", None)
        if close is not None:
            close()  # a generator's `finally`


def _shown(item: Any) -> bytes:
    try:
        return repr(item).encode(errors="replace")[:RAW_KEPT]
    except Exception:  # noqa: BLE001 - a user's __repr__ may raise anything
        return b""


# ---------------------------------------------------------------- sinks


def as_sink(obj: Any) -> Sink:
    """The sink that an app's `sink=` means: a connector, or any callable.

    >>> passed = []
    >>> sink = as_sink(passed.append)
    >>> sink.open(None)
    >>> sink.deliver(Delivery(first=0, count=1, body=b""), [{"n": 1}])
    >>> passed, sink.sync()
    ([{'n': 1}], {'number': 1})

    Raises `DefinitionError` for what is neither, saying what to give.
    """
    if isinstance(obj, list):
        raise DefinitionError("sink= is a list; give its append: sink=passed.append")
    if isinstance(obj, (str, bytes, os.PathLike)):
        path = os.fsdecode(typing.cast("str | bytes", obj))
        raise DefinitionError(
            f"sink={path!r}: a path alone does not say what to write; give JsonLines({path!r})"
        )
    if isinstance(obj, type):
        raise DefinitionError(f"sink={obj.__name__}: pass an object, {obj.__name__}(...)")
    make = getattr(obj, "sink", None)
    if callable(make):
        return typing.cast("Sink", make())
    if hasattr(obj, "open") and hasattr(obj, "deliver"):
        return typing.cast("Sink", obj)
    if inspect.iscoroutinefunction(obj):
        raise DefinitionError("sink= is asynchronous; give a plain function")
    if callable(obj):
        return CallableSink(typing.cast("Callable[[Any], object]", obj))
    raise DefinitionError(
        f"sink={obj!r}: a sink is a connector such as JsonLines(path), or a function of one event"
    )


class CallableSink:
    """Calls a function with every output, in order; a crash may repeat some."""

    format: Literal["json", "events"] = "events"
    at_least_once = True

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function
        self._name = getattr(function, "__qualname__", type(function).__name__)
        self._number = 0

    def open(self, state: dict[str, Any] | None, *, accept: bool = False) -> None:  # noqa: ARG002 - it is as it is
        self._number = int((state or {}).get("number", 0))

    def deliver(self, delivery: Delivery, events: list[Any] | None) -> None:
        done = undelivered(delivery, self._number, f"the sink {self._name}")
        self._number = delivery.first + done
        for event in (events or [])[done:]:
            try:
                self._function(event)
            except Exception as error:
                raise OutputError(
                    f"the sink {self._name} raised {type(error).__name__}: {error} at output number {self._number}; mend "
                    f"it and run again: that output is the next",
                    number=self._number,
                ) from error
            self._number += 1

    def recovered(self) -> None:
        """Nobody knows what a function did with what it was given."""

    def sync(self) -> dict[str, Any]:
        return {"number": self._number}

    def close(self) -> None:
        """There is nothing to close."""
