"""The log as a source of the hub, and what a run does for it beside reading.

The log's place is `{"log": which one, "next": the number of the next record}`: what was taken is in the commit, as
with a file, so each record is taken exactly once.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secondpass.app import PUSHED, App
from secondpass.connectors.contract import Batch, Source
from secondpass.connectors.memory import as_source
from secondpass.engine.eventlog import NAME, Log, decode, decode_refused
from secondpass.engine.loop import Hub
from secondpass.engine.sources import Sources
from secondpass.errors import InputError
from secondpass.record import Refused
from secondpass.store.log import DIRECTORY, StoredLog
from secondpass.store.logreader import LogReader

RETAIN_EVERY_S = 1.0


def sources_of(app: App, log: Source | None = None) -> list[Source]:
    """The sources of an app; its log is the one given, or what its own store's log holds now."""

    def source(found: Any, index: int) -> Source:
        if found is not PUSHED:
            return as_source(found, index)
        if log is not None:
            return log
        store = app.default_store()
        return LogSource(store, ended=lambda: True) if (store / DIRECTORY).is_dir() else as_source([], index)

    return [source(found, i) for i, found in enumerate(app.sources)]


def places_of(sources: list[Source], stored: list[Any]) -> list[Any]:
    """Where each source stands: the log is known by its place, the others by their order."""
    rest = iter([place for place in stored if not is_logs(place)])
    logs = next(filter(is_logs, stored), None)
    if logs is not None:
        # What was taken of a batch may have left the log already: no reason to read and skip it.
        logs = {**logs, "offset": {**logs["offset"], "next": _taken(logs)}, "skip": 0}
    return [logs if isinstance(source, LogSource) else next(rest, None) for source in sources]


def is_logs(place: Any) -> bool:
    """Whether a source's place is one in a log."""
    return bool(place) and "log" in (place["offset"] or {})


def _taken(place: dict[str, Any]) -> int:
    """The number of the next record, by a log's place."""
    return place["offset"]["next"] + place["skip"]


class LogSource:
    """A log that is read to where it is durable, again and again, until it has ended."""

    name = NAME
    type: Any = Any
    following = True

    def __init__(self, store: Path, *, ended: Callable[[], bool] | None = None, claim: bool = False) -> None:
        self._store = store
        self._ended = ended
        self._claim = claim
        self.feed: LogFeed | None = None
        """The log, once it is open."""

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> LogFeed:  # noqa: ARG002 - it is always followed
        feed = LogFeed(StoredLog(self._store), self._ended or (lambda: False))
        try:
            feed.begin(offset, claim=self._claim, accept=accept)
        except BaseException:
            feed.close()
            raise
        self.feed = feed
        return feed


class LogFeed:
    """An open log: the reader that the contract asks for."""

    def __init__(self, log: StoredLog, ended: Callable[[], bool]) -> None:
        self._log = log
        self.reader = LogReader(log)
        self._ended = ended
        self._records: list[Any] = []
        self._taken = 0
        self._next = 0
        self.begins_at: dict[str, Any] = {}
        """The offset that it was opened at, or would have been."""
        self._mixed = False
        """Whether what is at hand holds a refused record."""

    def begin(self, offset: dict[str, Any] | None, *, claim: bool, accept: bool) -> None:
        """Stand after what the offset covers."""
        if claim:
            self.reader.claim()
        oldest = self.reader.oldest
        if offset is None:
            if oldest:
                logging.getLogger("secondpass").warning(
                    "the first %d records have left the log; this run begins after them", oldest
                )
            start = oldest
        else:
            start = self._start(offset, oldest, accept)
        self._next = start
        self.begins_at = {"log": self.reader.log, "next": start}
        self.reader.seek(start)
        if self.reader.next < start:  # in the middle of a frame
            (frame, body), *_ = self.reader.frames(1)
            self._take(decode(body, frame.first)[start - frame.first :])

    def _start(self, offset: dict[str, Any], oldest: int, accept: bool) -> int:
        if "log" not in offset or "next" not in offset:
            raise InputError(
                "log: the store holds an offset of another kind of source; give the app the source it had, or start "
                "over with `secondpass run APP --fresh`"
            )
        if offset["log"] != self.reader.log:
            raise InputError(
                f"{self._log.directory} is not the log that was read before: it was deleted or replaced; bring it back, or "
                f"start over with `secondpass run APP --fresh`"
            )
        start = int(offset["next"])
        if start < oldest and accept:
            return oldest
        if start < oldest:
            raise InputError(
                f"the records {start} to {oldest - 1} have left the log {self._log.directory}, and were not taken yet: the "
                f"store is older than the log's `keep_log`; go on without them with --accept-input",
                gone=(start, oldest - 1),
            )
        if start > self.reader.durable:
            raise InputError(
                f"the log {self._log.directory} ends at record {self.reader.durable}, and records up to {start} had been "
                f"taken; restore it, or start over with `secondpass run APP --fresh`"
            )
        return start

    def _take(self, records: list[Any]) -> None:
        self._records, self._taken = records, 0
        self._mixed = Refused in set(map(type, records))

    def read(self, limit: int) -> Batch | None:
        if self._taken == len(self._records):
            ended = self._ended()  # before looking: what was appended until then is there
            records: list[Any] = []
            for frame, body in self.reader.frames(limit):
                records += decode(body, frame.first)
            if not records and ended and self.reader.all_read:
                return None
            self._take(records)
        part = self._records[self._taken : self._taken + limit]
        self._taken += len(part)
        self._next += len(part)
        offset = {"log": self.reader.log, "next": self._next}
        if not self._mixed:
            return Batch(part, offset)
        refused = {i: r for i, r in enumerate(part) if isinstance(r, Refused)}
        origin = [i for i in range(len(part)) if i not in refused]
        return Batch([part[i] for i in origin], offset, count=len(part), origin=origin, refused=refused)

    def verify(self) -> None:
        """Each frame was compared with its checksum when it was read."""

    def progress(self) -> tuple[int, int] | None:
        return None

    def decode(self, raw: bytes) -> Any:
        """A refused record that is sent again."""
        return decode_refused(raw)

    def close(self) -> None:
        self.reader.close()
        self._log.close()


class Pushing:
    """What a run does for the log of its app, from its start to its end."""

    def __init__(self, app: App, store: Path | None) -> None:
        self._app = app
        self._temporary = None if store is not None else Path(tempfile.mkdtemp(prefix="secondpass-"))
        self.store: Path = store if self._temporary is None else self._temporary  # type: ignore[assignment]
        self.log = Log(self.store)
        self.sources = Sources(app, self.store, self.log)
        self.source = LogSource(self.store, ended=self.ended, claim=True)
        self._retained_at = 0.0
        app.running_store = self.store

    def ended(self) -> bool:
        """Whether nothing more is expected: there are functions that are sources, and all are done."""
        return bool(self._app.feeders) and self.sources.ended

    def join(self, hub: Hub) -> None:
        """Start the sources; let the hub sleep until something is appended, and hear of each epoch."""
        told = hub.on_epoch

        def on_epoch(hub: Hub) -> None:
            self.committed(hub.store.progress.sources)
            self.sources.look()
            told(hub)

        hub.on_epoch, hub.sleep, hub.summary.sources = on_epoch, self.pause, self.sources.states
        self.sources.start()

    def pause(self, seconds: float) -> None:
        """Wait until something is there, or so long."""
        feed = self.source.feed
        time.sleep(seconds) if feed is None else feed.reader.wait(seconds)

    def committed(self, places: list[Any]) -> None:
        """After each epoch: say how far the log is taken, and let go of what is old."""
        feed, place = self.source.feed, next(filter(is_logs, places), None)
        if feed is None or place is None:
            return
        feed.reader.committed(_taken(place))
        now, keep = time.monotonic(), self._app.keep_log
        if keep is not None and now - self._retained_at > RETAIN_EVERY_S:
            self._retained_at = now
            feed.reader.retain(age_s=keep.age_s, size=keep.bytes)

    def close(self) -> None:
        """The run is over."""
        self.sources.stop()
        self._app.running_store = None
        self.log.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
