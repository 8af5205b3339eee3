"""One life of a function that is a source: calling it, and appending what it gives.

In a thread of the hub, or in a process of its own that is started as
`from secondpass.engine.feeding import main; main(...)` and does not outlive the hub.

Invariant: a generator is resumed after a `yield` only when what it yielded is durable, unless it asked to run ahead
(`batch`).
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec

from secondpass.engine.eventlog import Log
from secondpass.engine.nursery import begin
from secondpass.engine.recipe import Recipe, load_recipe
from secondpass.errors import InputError, SettingsError
from secondpass.event import Event
from secondpass.feeder import Feeder
from secondpass.record import error_text, trace_text

_LOOK_S = 0.05
Give = Callable[[Any], "range | None"]


def live(
    feeder: Feeder,
    log: Log,
    stopping: threading.Event,
    gave: Callable[[int], None],
    leaving: threading.Event | None = None,
) -> float | None:
    """Call the function, at its times, until it has ended or is to stop; raises what it raises.

    `gave` hears how many events were appended. `leaving` ends it where it can go on later: between two calls, or after
    an event that it is given as `last`. Gives in how many seconds it is to go on then; None where it has ended.
    """
    leaving = leaving or stopping
    soon = leaving if feeder.takes_last else stopping
    if feeder.every is None:
        return 0.0 if _call(feeder, log, soon, gave) else None
    wait_s = feeder.every.waits()
    while not leaving.is_set():
        pause_s = wait_s()
        if pause_s > 0:
            leaving.wait(pause_s)
        elif _call(feeder, log, soon, gave):
            return 0.0
    return wait_s()


def _call(feeder: Feeder, log: Log, stopping: threading.Event, gave: Callable[[int], None]) -> bool:
    """One call; whether it was left before its end."""

    def append(events: list[Any]) -> range | None:
        found = log.append(events, producer=feeder.name) if events else None
        gave(len(events))
        return found

    arguments: dict[str, Any] = {"last": _last(feeder, log)} if feeder.takes_last else {}
    ahead = _Ahead(append, feeder.batch) if feeder.batch > 1 else None
    give = partial(_give, feeder, append if ahead is None else ahead.add)
    try:
        found = feeder.function(**arguments)
        if inspect.isasyncgen(found) or inspect.iscoroutine(found):
            return _run_async(found, give, stopping)
        if inspect.isgenerator(found):
            return _consume(found, give, stopping)
        if isinstance(found, Iterator):
            return _consume(_generator(cast("Iterator[Any]", found)), give, stopping)
        give(found)
        return False
    finally:
        if ahead is not None:
            ahead.close()


def _last(feeder: Feeder, log: Log) -> Any:
    """The last event that the source has appended, in this run or an earlier one."""
    last = log.last(feeder.name)
    if last is not None and last.event is None:
        raise InputError(
            f"the source {feeder.name} asks for its last event, which the app's code cannot read any more; bring its "
            f"class back, or give the source another name"
        )
    return None if last is None else last.event


def _give(feeder: Feeder, append: Callable[[list[Any]], range | None], found: Any) -> range | None:
    if found is None:
        return None
    if isinstance(found, (Event, Mapping)):
        return append([found])
    if isinstance(found, Iterable) and not isinstance(found, (str, bytes)):
        return append(list(cast("Iterable[Any]", found)))
    raise SettingsError(
        f"the source {feeder.name} gave a {type(found).__name__}; a source returns or yields an event, a list of events, "
        f"or None"
    )


def _generator(items: Iterator[Any]) -> Generator[Any, Any, None]:
    for item in items:  # noqa: UP028 - what `yield` gives is not sent on: an iterator takes nothing
        yield item


def _consume(generator: Generator[Any, Any, Any], give: Give, stopping: threading.Event) -> bool:
    """Append what it yields; whether it was left before its end."""
    step: Callable[[], Any] = partial(next, generator)
    try:
        while not stopping.is_set():
            try:
                found = step()
            except StopIteration:
                return False
            try:
                step = partial(generator.send, give(found))
            except SettingsError as error:
                step = partial(generator.throw, error)  # it may know what to do; else it ends so
        return True
    finally:
        generator.close()


def _run_async(
    found: AsyncGenerator[Any, Any] | Coroutine[Any, Any, Any], give: Give, stopping: threading.Event
) -> bool:
    """As `_consume`, in an event loop of its own."""
    import asyncio  # a third of what a run imports, and few sources are async

    async def consume() -> bool:
        if inspect.iscoroutine(found):
            await asyncio.to_thread(give, await found)
            return False
        generator: AsyncGenerator[Any, Any] = cast("Any", found)
        step: Any = generator.asend(None)
        try:
            while not stopping.is_set():
                try:
                    event = await step
                except StopAsyncIteration:
                    return False
                try:
                    step = generator.asend(await asyncio.to_thread(give, event))
                except SettingsError as error:
                    step = generator.athrow(error)
            return True
        finally:
            await generator.aclose()

    async def main() -> bool:
        consuming = asyncio.ensure_future(consume())
        while not consuming.done():
            if stopping.is_set():
                consuming.cancel()
            await asyncio.wait([consuming], timeout=_LOOK_S)
        try:
            return consuming.result()
        except asyncio.CancelledError:
            return True

    return asyncio.run(main())


class _Ahead:
    """Appends, in a thread of its own, what a source gives while it goes on."""

    def __init__(self, append: Callable[[list[Any]], object], most: int) -> None:
        self._append = append
        self._most = most
        self._waiting: list[Any] = []
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, events: list[Any]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._most or self._error is not None)
            if self._error is not None:
                raise self._error
            self._waiting += events
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                events, self._waiting = self._waiting, []
                self._changed.notify_all()
            if not events:
                return
            try:
                self._append(events)
            except BaseException as error:  # noqa: BLE001 - it is the source's, and raised there
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return

    def close(self) -> None:
        """Append what is left; raises what appending has raised."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise self._error


# ---------------------------------------------------------------- in a process of its own


class Report(msgspec.Struct, frozen=True):
    """How the life of a source ended in another process."""

    error: str
    trace: str


REPORT_AT = 8
"""Before it, the number of events that were appended."""


def main(lifeline: int, recipe: int, report: int, parent: int) -> NoReturn:
    """Live the life of a source; the exit code is 0 when it has ended."""
    begin(parent, lifeline, recipe, report)
    stopping = threading.Event()
    code = 1
    try:
        found = msgspec.msgpack.decode(os.pread(recipe, os.fstat(recipe).st_size, 0), type=Recipe)
        content: tuple[Feeder, str] = load_recipe(found)
        feeder, store = content
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # again: a module may have set its own

        def stop(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - the signature of a handler
            stopping.set()
            raise SystemExit

        signal.signal(signal.SIGTERM, stop)
        appended = 0

        def gave(count: int) -> None:
            nonlocal appended
            appended += count
            os.pwrite(report, appended.to_bytes(8, "little"), 0)

        live(feeder, Log(Path(store)), stopping, gave)
        code = 0
    except SystemExit:
        code = 0 if stopping.is_set() else 1
    except BaseException as error:  # noqa: BLE001 - whatever it is, the hub tells of it
        os.pwrite(report, msgspec.msgpack.encode(Report(error_text(error), trace_text(error))), REPORT_AT)
    finally:
        os._exit(code)
