"""Snapshots of a running app's state: what `explain` and `rehearse` begin from.

    taken       by a thread beside the hub, from one committed moment, at intervals that grow with their cost; where old
                records leave the log, often enough that there is one in what stays
    kept        so many, so old, so much at most: the recent ones close together, the old ones far apart
    used        only where they are whole and of this store; the beginning of the log is always one more

The hub does not wait for them. What is half-written when a process ends is not there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from secondpass.amounts import Keep
from secondpass.app import App
from secondpass.engine.eventlog import NAME as LOG
from secondpass.engine.pushed import is_logs
from secondpass.engine.replay import Base, Replay
from secondpass.errors import InputError, SecondpassError, StoreError
from secondpass.store.copy import PARTIAL, Moment, interrupted
from secondpass.store.format import Progress
from secondpass.store.reader import StoreReader
from secondpass.store.segments import segments

DIRECTORY = "snapshots"
KEPT = 16
"""So many are kept at most."""
RECORDS_MIN = 20_000
"""Fewer records are run again in no time."""
RECORDS_MANY = 250_000
"""So many take seconds to run again: then no interval is waited for, as long as snapshots are cheap."""
PER_LOG = 4
"""So many are taken at least while the log keeps a record by its age."""
FIRST_S, LAST_S = 2.0, 60.0
"""The interval doubles from the first to the last."""
SHARE = 0.02
"""The share of one processor's time that goes into snapshots at most."""
LAST_MOMENT_S = 0.25
"""So long the end of a run waits at most for the snapshot of its end."""
_LOOK_S = 0.25
_NICE = 10


class Kept:
    """The snapshots that are kept beside a store."""

    def __init__(self, store: StoreReader) -> None:
        assert store.directory is not None
        self._store = store
        self._directory = store.directory / DIRECTORY
        self._created = store.meta("store")

    def positions(self) -> list[int]:
        """Where there are snapshots, in order."""
        return sorted(files(self._directory))

    def nearest(self, position: int) -> Base:
        """The nearest place at or before a position to run from: a snapshot, or the beginning."""
        for at in reversed(self.positions()):
            if at <= position:
                found = self._open(at)
                if found is not None:
                    return Base(found)
        return Base()

    def oldest(self, app: App) -> Base:
        """The first place from which the log can be read again; raises `InputError` where there is none."""
        first: InputError | None = None
        for at in [0, *self.positions()]:
            base = self.nearest(at)
            if at and base.position >= self._store.progress.position:
                base.close()
                break
            try:
                Replay(self._store, app, base).close()
            except InputError as error:
                base.close()
                first = first or error
            else:
                return base
        raise first or InputError("nothing of the input can be read again")

    def _open(self, position: int) -> StoreReader | None:
        """A snapshot, if it is whole, and of this store."""
        try:
            found = StoreReader.open_to_read(self._directory, f"{position}.db")
        except StoreError as error:
            logging.getLogger("secondpass").warning(
                "the snapshot at position %d is left out: %s", position, error
            )
            return None
        if found.meta("store") != self._created or found.progress.position != position:
            found.close()
            return None
        return found


def files(directory: Path) -> dict[int, Path]:
    """The snapshots of a directory, by position."""
    return {int(path.stem): path for path in directory.glob("*.db") if path.stem.isdigit()}


class Snapshots:
    """Takes snapshots of one running app, in a thread of its own."""

    def __init__(
        self, directory: Path, keep: Keep, progress: Callable[[], Progress], keep_log: Keep | None = None
    ) -> None:
        self._store = directory
        self._directory = directory / DIRECTORY
        self._log, self._keep_log = directory / LOG, keep_log
        self._keep = keep if keep_log is None else Keep(_less(keep.age_s, keep_log.age_s), keep.bytes)
        self._progress = progress
        """Where the hub stands: read by the thread, so it is one plain read of what never changes."""
        self._last_s = time.monotonic()
        self._segment = self._segment_taken()
        self._pinned: deque[Moment] = deque()
        self._current: Moment | None = None
        self._wake = threading.Event()
        self._ended = False
        self._interval_s = FIRST_S
        self._next_s = self._affordable_s = 0.0
        self._last = max(files(self._directory), default=0)
        for path in self._directory.glob(f"*{PARTIAL}*"):
            path.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._run, name="secondpass-snapshots", daemon=True)
        self._thread.start()

    def pin(self) -> None:
        """Take one of this very moment: the chain is another from here on."""
        with contextlib.suppress(StoreError):
            self._pinned.append(Moment(self._store, self._directory))
            self._wake.set()

    def close(self) -> None:
        """End the thread, with a snapshot of the end where that takes but a moment."""
        self._ended = True
        self._wake.set()
        self._thread.join(LAST_MOMENT_S)
        current = self._current
        if current is not None:
            current.interrupt()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # where threads have no priority of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            if not self._ended:
                self._wake.wait(_LOOK_S)
            self._wake.clear()
            while self._pinned:
                self._take(self._pinned.popleft())
            if self._due():
                self._take(None)
            if self._ended:
                return

    def _due(self) -> bool:
        records, now = self._progress().position - self._last, time.monotonic()
        if records > 0 and self._leaving(now):
            return self._ended or now >= self._affordable_s
        if records < RECORDS_MIN:
            return False
        if self._ended:
            return True
        return now >= (self._next_s if records < RECORDS_MANY else self._affordable_s)

    def _leaving(self, now: float) -> bool:
        """Whether what came before the last snapshot, and that with it, may soon be of no use: the log forgets."""
        keep = self._keep_log
        if keep is None:
            return False
        if keep.age_s is not None and now - self._last_s > keep.age_s / PER_LOG:
            return True
        return self._segment_taken() != self._segment

    def _segment_taken(self) -> int | None:
        """The segment of the log that is being taken.

        Whole segments leave it: with a snapshot near the beginning of each, what stays can be run again.
        """
        place = None if self._keep_log is None else next(filter(is_logs, self._progress().sources), None)
        if place is None:
            return None
        taken = place["offset"]["next"]
        return max((first for first in segments(self._log) if first < taken), default=None)

    def _take(self, moment: Moment | None) -> None:
        began = time.monotonic()
        segment = self._segment_taken()
        try:
            if moment is None:
                moment = self._current = Moment(self._store, self._directory)
            path = moment.copy()
            self._last = int(path.stem)
            if not self._last:
                path.unlink()  # the beginning is there anyway
            self._last_s, self._segment = began, segment
            thin(self._directory, self._keep)
        except (SecondpassError, OSError) as error:
            if not (isinstance(error, StoreError) and interrupted(error)):
                logging.getLogger("secondpass").warning("no snapshot was taken: %s", error)
        finally:
            self._current = None
            if moment is not None:
                moment.close()
            now = time.monotonic()
            self._affordable_s = now + (now - began) / SHARE
            self._next_s = max(now + self._interval_s, self._affordable_s)
            self._interval_s = min(2 * self._interval_s, LAST_S)


def _less(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def thin(directory: Path, keep: Keep) -> None:
    """Remove what is too old, too many or too much."""
    found = files(directory)
    if keep.age_s is not None:
        too_old = time.time() - keep.age_s
        for position in [p for p, path in found.items() if path.stat().st_mtime < too_old]:
            found.pop(position).unlink(missing_ok=True)
    while len(found) > KEPT:
        found.pop(least_missed(sorted(found))).unlink(missing_ok=True)
    sizes = {position: path.stat().st_size for position, path in found.items()}
    while keep.bytes is not None and sizes and sum(sizes.values()) > keep.bytes:
        oldest = min(sizes)
        sizes.pop(oldest)
        found.pop(oldest).unlink(missing_ok=True)


def least_missed(positions: list[int]) -> int:
    """The one of several snapshots without which the way to any position grows least, for its age.

    >>> least_missed([0, 100, 200, 300, 400])
    100
    >>> least_missed([0, 200, 300, 350, 400])
    350
    """
    newest = positions[-1]
    inner = range(1, len(positions) - 1)
    return positions[
        min(inner, key=lambda i: (positions[i + 1] - positions[i - 1]) / (1 + newest - positions[i - 1]))
    ]
