"""Reading a log: what is durable of it, from any record on, and who reads it for the hub.

Invariants: nothing is read that could still be lost. One hub reads at a time; it says how far it has committed, which
is what `append` and retention go by.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

from secondpass.errors import StoreDamaged, StoreError, StoreLocked
from secondpass.store.log import StoredLog
from secondpass.store.segments import (
    Frame,
    Header,
    damaged,
    frame_at,
    head_at,
    heads,
    read_header,
    segment_path,
    segments,
)

CHUNK_BYTES = 1 << 20
_STRAGGLER_S = 0.05
"""Records that are written and not durable after so long are those of a process that died: the hub syncs them."""


class LeftTheLog(StoreError):
    """Records that are asked for have left the log."""


class LogReader:
    """The durable records of a log, frame by frame."""

    def __init__(self, log: StoredLog) -> None:
        self._log = log
        self._ends = log.ends
        self._fd = -1
        self._reader_fd = self._wake_fd = -1
        self._woken = select.poll()
        self._header = Header(0, -1, 0, 0.0)
        self._at = 0
        self._data, self._offset = b"", 0
        self._passed: collections.deque[tuple[int, int]] = collections.deque()
        self._unsynced_since: tuple[int, float] | None = None
        self.next = 0
        """The first record of the frame that is read next."""
        self._open(self.oldest)
        self.log = self._header.log
        """What tells this log from every other."""

    @property
    def oldest(self) -> int:
        """The first record that is there."""
        return segments(self._log.directory)[0]

    @property
    def durable(self) -> int:
        """The number of the first record that is not durable yet."""
        return self._ends.durable

    @property
    def all_read(self) -> bool:
        """Whether nothing is left, not even what is written and not durable yet."""
        return self.next >= self._ends.next

    # ---- the hub's part

    def claim(self) -> None:
        """Be the hub that takes the records; raises `StoreLocked` where another does."""
        self._reader_fd = os.open(
            self._log.directory / "reader", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        until = time.monotonic() + 0.2  # one who looks whether a hub runs holds it for a moment
        while True:
            try:
                fcntl.flock(self._reader_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StoreLocked(
                        f"another run reads the log {self._log.directory}; end it first"
                    ) from None
                time.sleep(0.005)
        with contextlib.suppress(OSError):  # without a pipe the hub looks by itself, some milliseconds later
            self._wake_fd = os.open(self._log.directory / "wake", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._woken.register(self._wake_fd, select.POLLIN)

    def committed(self, end: int) -> None:
        """The records below are committed."""
        passed, bytes_ = self._passed, -1
        while passed and passed[0][0] <= end:
            bytes_ = passed.popleft()[1]
        if bytes_ >= 0:
            self._ends.committed_bytes = bytes_
        self._ends.committed = end

    def wait(self, timeout_s: float) -> None:
        """Sleep until something more is durable, or so long."""
        ends = self._ends
        if self._wake_fd < 0:
            time.sleep(timeout_s)
            return
        ends.waiting = 1
        try:
            if ends.durable <= self.next:
                self._woken.poll(timeout_s * 1000)
        finally:
            ends.waiting = 0
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_fd, 4096)

    def _sync_stragglers(self) -> None:
        ends = self._ends
        written, durable = ends.next, ends.durable
        if written <= durable:
            self._unsynced_since = None
            return
        known, now = self._unsynced_since, time.monotonic()
        if known is None or known[0] != durable:
            self._unsynced_since = durable, now
        elif now - known[1] > _STRAGGLER_S:
            self._unsynced_since = None
            self._log.sync(written, wait=False)

    # ---- reading

    def seek(self, record: int) -> None:
        """Go on with the frame that holds that record; raises `LeftTheLog` where it is gone."""
        there = segments(self._log.directory)
        if record < there[0]:
            raise LeftTheLog(
                f"the records {record} to {there[0] - 1} have left the log {self._log.directory}",
                oldest=there[0],
            )
        durable = self.durable
        if record > durable:
            raise StoreDamaged(
                f"the log {self._log.directory} ends at record {durable}, and records up to {record} had been read"
            )
        self._open(max(first for first in there if first <= record))
        self.next = self._header.first
        if self.next < durable and self.next < record:
            for frame in self._heads():
                if frame.first + frame.records > record:
                    break
                self._at, self.next = frame.end, frame.first + frame.records
                if self.next == record:
                    break
        self._passed.clear()
        if self._reader_fd >= 0:
            self._ends.committed_bytes = self._header.base + self._at - self._header.size
            self._ends.committed = record

    def _heads(self) -> Iterator[Frame]:
        # To the file's end, which may grow: whoever goes on to a record that is durable passes whole frames only.
        return heads(self._fd, self._header.size, os.fstat(self._fd).st_size, self._path)

    @property
    def _path(self) -> Path:
        return segment_path(self._log.directory, self._header.first)

    def _open(self, first: int) -> None:
        path = segment_path(self._log.directory, first)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreDamaged(
                f"{path} is gone: the log cannot be read on; restore it from a backup"
            ) from None
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._header = read_header(fd, path)
        self._at = self._header.size
        self._data, self._offset = b"", self._at

    def frames(self, records: int) -> list[tuple[Frame, bytes]]:
        """Durable frames with what they hold, until they have so many records; none when none is there now."""
        self._sync_stragglers()
        durable = self._ends.durable
        found: list[tuple[Frame, bytes]] = []
        while self.next < durable and records > 0:
            frame = self._frame()
            if frame is None:
                self._open(self.next)
                continue
            found.append((frame, self._data[frame.body - self._offset : frame.end - self._offset]))
            records -= frame.records
            self._at, self.next = frame.end, frame.first + frame.records
            self._passed.append((self.next, self._header.base + frame.end - self._header.size))
        return found

    def _frame(self) -> Frame | None:
        """The frame to read next; None at the segment's end."""
        at = self._at - self._offset
        frame = frame_at(self._data, at, self._header.log, self._offset)
        if frame is None:
            self._data, self._offset = os.pread(self._fd, CHUNK_BYTES, self._at), self._at
            head = head_at(self._data, 0, self._at)
            if head is not None and head.end - self._at > len(self._data):
                self._data = os.pread(self._fd, head.end - self._at, self._at)
            frame = frame_at(self._data, 0, self._header.log, self._offset)
            if frame is None and not self._data:
                return None
        if frame is None or frame.first != self.next:
            raise damaged(self._path, self._at)
        return frame

    def retain(self, *, age_s: float | None, size: int | None) -> None:
        """Let what is committed and older or more than that leave the log."""
        self._log.retain(self._ends.committed, age_s=age_s, size=size)

    def close(self) -> None:
        """Let go of all files."""
        for fd in (self._fd, self._reader_fd, self._wake_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._reader_fd = self._wake_fd = -1
