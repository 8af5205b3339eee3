"""The pushed log: records that any process of the machine appends, durable before anybody is told that they are kept.

    log/                    beside the store
        00000000000000000000.log    segments (`store/segments.py`)
        ends                where the log ends, shared by all (`store/ends.py`)
        lock, sync          held (flock) by who appends, and by who syncs
        reader, wake        held by the hub; a pipe that wakes it

Invariants:

- One process at a time changes files, under `lock`. A record has one number for good; numbers have no gaps.
- `append` returns when its records are durable: a sync that began after they were written has ended well, whoever
  made it. What only the page cache holds is read by nobody.
- A torn tail is cut by the next who appends, and nothing else ever is: frames behind it tell whether anybody was told.
- All segments but the last are durable and complete. They go oldest first, each before the next.
- After a failed sync nobody appends until somebody opens the log anew, which cuts what was not durable: what the page
  cache then shows need not be what the disk holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import threading
import time
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple, NoReturn

from secondpass.errors import SettingsError, StoreDamaged, StoreError, StoreFull
from secondpass.failpoints import failpoint
from secondpass.store.ends import FILE as ENDS
from secondpass.store.ends import Ends, durable_in
from secondpass.store.files import sync_directory
from secondpass.store.segments import (
    FRAME_BYTES_MAX,
    Frame,
    Header,
    Producer,
    damaged,
    heads,
    pack_frame,
    pack_header,
    read_header,
    scan,
    segment_path,
    segments,
)

DIRECTORY = "log"
SEGMENT_BYTES = 32 << 20
AHEAD_BYTES = 64 << 20
"""So far ahead of what a running hub has committed `append` goes on at once; then it waits for the hub."""
WAITING_BYTES_MAX = 1 << 30
"""So much may wait while no hub runs; then `append` raises `StoreFull`."""
_POLL_S = 0.002
_NOBODY = -1


class Last(NamedTuple):
    """The last append of a producer: its sequence, the numbers of its records, and their bytes if they are there."""

    sequence: int
    records: range
    body: bytes | None


class Standing(NamedTuple):
    """What a look from outside tells of a log."""

    oldest: int
    durable: int
    bytes: int


def standing(store: Path) -> Standing | None:
    """Where a log stands, without opening it; None where there is none."""
    directory = store / DIRECTORY
    try:
        there = segments(directory)
        size = sum(segment_path(directory, first).stat().st_size for first in there)
        durable = durable_in((directory / ENDS).read_bytes())
    except OSError:
        return None
    return Standing(there[0], max(durable, there[-1]), size) if there else None


def datasync(fd: int) -> None:
    """Make a file's content durable, and its size."""
    getattr(os, "fdatasync", os.fsync)(fd)


class StoredLog:
    """The log of one store; any number of threads and processes may use it at once."""

    def __init__(self, store: Path) -> None:
        self.directory = store / DIRECTORY
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        """Nothing is open; also in a forked child, whose parent's locks and descriptors are not its own."""
        self._mutex = threading.Lock()
        self._sync_mutex = threading.Lock()
        self._stopped = threading.Event()
        self._ends: Ends | None = None
        self._locks: dict[str, int] = {}
        self._fd = self._sync_fd = self._wake_fd = -1
        self._sync_segment = -1
        self._header = Header(log=0, first=-1, base=0, created=0.0)
        self._offset = 0
        self._producers: dict[str, Producer] = {}
        self._repairs = 0
        self._failure: str | None = None

    # ---- opening

    @property
    def ends(self) -> Ends:
        """The shared numbers; opens the log where it is not open."""
        if self._ends is None:
            with self._mutex, _told(self.directory):
                self._open()
        assert self._ends is not None
        return self._ends

    def _open(self) -> None:
        if self._ends is not None:
            return
        made = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in made:
            sync_directory(path.parent)
        try:
            with self._holding("lock"):
                ends = Ends(self.directory / ENDS)
                if not ends.known or ends.failed:
                    self._repair(ends)
                with contextlib.suppress(OSError):  # there is one, or this file system has none
                    os.mkfifo(self.directory / "wake", 0o600)
        except BaseException:
            self._let_go()  # whoever asks again finds nothing open
            raise
        self._ends = ends

    @contextlib.contextmanager
    def _changing(self) -> Generator[Ends]:
        """Hold `lock`, knowing all that others have appended."""
        _ = self.ends
        with self._mutex, _told(self.directory), self._holding("lock"):
            yield self._follow()

    @contextlib.contextmanager
    def _syncing(self) -> Generator[None]:
        """Hold `sync`; who holds `lock` may do so too, never the other way round."""
        with self._sync_mutex, self._holding("sync"):
            yield

    @contextlib.contextmanager
    def _holding(self, name: str) -> Generator[None]:
        """Hold one of the files that are locks; the caller holds the mutex that goes with it."""
        fd = self._lock_fd(name)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def _lock_fd(self, name: str) -> int:
        if name not in self._locks:
            self._locks[name] = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._locks[name]

    # ---- repairing

    def _repair(self, ends: Ends) -> None:
        """Make the numbers again from the files, after the machine has started or a process died; holds `lock`."""
        with self._syncing():
            vouched, failed = ends.vouched, ends.failed
            ends.busy = 1
            found = segments(self.directory)
            if not found:
                if vouched:
                    self._refuse_gap(0, vouched)
                self._new_segment(Header(secrets.randbits(48), 0, 0, time.time()))
                found = [0]
            path = segment_path(self.directory, found[-1])
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                header = read_header(fd, path)
                end = self._cut(fd, path, header, vouched, failed=bool(failed))
            finally:
                os.close(fd)
            sync_directory(self.directory)
            ends.segment, ends.offset, ends.next = header.first, end[1], end[0]
            ends.bytes = header.base + end[1] - header.size
            ends.durable = end[0]
            ends.failed = 0
            ends.repairs += 1
            if ends.committed > end[0]:
                ends.committed = ends.committed_bytes = 0  # the hub says so again when it starts
            failpoint("log.repair.before")
            ends.made()

    def _cut(self, fd: int, path: Path, header: Header, vouched: int, *, failed: bool) -> tuple[int, int]:
        """Cut what is torn and sync the rest; gives the number and the offset at which the segment ends then."""
        size = os.fstat(fd).st_size
        with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as data:
            found = scan(data, header)
        frames, end = found.frames, found.end
        if failed:
            frames = [f for f in frames if f.first + f.records <= vouched]
            end = frames[-1].end if frames else header.size
        following = frames[-1].first + frames[-1].records if frames else header.first
        if found.vouched > following:
            raise damaged(path, end)
        if vouched > following:
            self._refuse_gap(following, vouched)
        if end < size:
            failpoint("log.cut.before")
            os.ftruncate(fd, end)
        os.fsync(fd)
        failpoint("log.cut.after")
        return following, end

    def _refuse_gap(self, following: int, vouched: int) -> NoReturn:
        raise StoreDamaged(
            f"the log {self.directory} ends at record {following}, and records up to {vouched} had been acknowledged; "
            f"restore its files from a backup, or delete {self.directory / ENDS} to go on without them"
        )

    # ---- appending

    def append(
        self,
        body: bytes,
        count: int,
        producer: str = "",
        sequence: int | None = None,
        *,
        timeout_s: float | None = None,
    ) -> range:
        """Append records as one frame, and give their numbers once they are durable.

        A sequence at or below the producer's last is a resend: nothing is appended, and the numbers are those it has;
        none where its records have left the log.
        """
        if len(body) > FRAME_BYTES_MAX:
            raise SettingsError(
                f"{count} records of {len(body):,} bytes at once; append at most {FRAME_BYTES_MAX:,} at a time"
            )
        self._wait_for_room(timeout_s)
        with self._changing() as ends:
            failpoint("log.append.before")
            records = self._resent(producer, sequence, count)
            if records is None:
                records = self._write(ends, body, count, producer, sequence)
        failpoint("log.append.after")
        self.sync(records.stop)
        return records

    def _follow(self) -> Ends:
        """Know what others have appended; repair what one who died has left."""
        ends = self._ends
        if ends is None:
            raise StoreError(f"the log {self.directory} is closed; nothing was appended")
        self._refuse_failed(ends)
        if not ends.known or not self._ends_there(ends):
            self._repair(ends)
        if ends.segment != self._header.first or ends.repairs != self._repairs:
            self._take_up(ends)
        for frame in heads(self._fd, self._offset, ends.offset, self._path):
            self._saw(frame)
        self._offset = ends.offset
        return ends

    def _ends_there(self, ends: Ends) -> bool:
        """Whether the last segment ends where the numbers say: a frame that was left torn shows here."""
        if self._header.first == ends.segment:
            found = os.fstat(self._fd)
            return found.st_size == ends.offset and found.st_nlink > 0  # somebody may have deleted it
        return segment_path(self.directory, ends.segment).stat().st_size == ends.offset

    @property
    def _path(self) -> Path:
        return segment_path(self.directory, self._header.first)

    def _take_up(self, ends: Ends) -> None:
        """Know the last segment from its header on."""
        path = segment_path(self.directory, ends.segment)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._header = read_header(fd, path)
        self._producers = dict(self._header.producers)
        self._offset = self._header.size
        self._repairs = ends.repairs

    def _saw(self, frame: Frame) -> None:
        if frame.producer:
            self._producers[frame.producer] = Producer(
                frame.sequence, frame.first, frame.records, offset=frame.start
            )

    def _resent(self, producer: str, sequence: int | None, count: int) -> range | None:
        """The numbers of an append that is there already; None for a new one."""
        last = self._producers.get(producer)
        if sequence is None or last is None or sequence > last.sequence:
            return None
        found: tuple[int, int] | None = (last.first, last.count)
        if sequence < last.sequence:
            found = self._find(producer, sequence)
        if found is None:
            return range(0)
        if found[1] != count:
            raise SettingsError(
                f"producer {producer!r} has appended {found[1]} records with the sequence {sequence}, and now sends "
                f"{count}; a resend is the same records, and new ones have a higher sequence"
            )
        return range(found[0], found[0] + found[1])

    def _find(self, producer: str, sequence: int) -> tuple[int, int] | None:
        """An earlier append of a producer; None where it has left the log."""
        header = self._header
        for first in reversed(segments(self.directory)):
            path = segment_path(self.directory, first)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                header = read_header(fd, path)
                end = self._offset if first == self._header.first else os.fstat(fd).st_size
                for frame in heads(fd, header.size, end, path):
                    if frame.producer == producer and frame.sequence == sequence:
                        return frame.first, frame.records
            finally:
                os.close(fd)
        before = header.producers.get(producer)
        if before is not None and sequence <= before.sequence:
            return None
        raise SettingsError(
            f"producer {producer!r} has appended a higher sequence than {sequence}, and never that one: the sequences of "
            f"a producer increase; give each thread or process that appends on its own a name of its own"
        )

    def _write(self, ends: Ends, body: bytes, count: int, producer: str, sequence: int | None) -> range:
        """Write one frame; the caller makes it durable."""
        if self._offset >= SEGMENT_BYTES:
            self._rotate(ends)
        if not producer:
            sequence = _NOBODY
        elif sequence is None:
            last = self._producers.get(producer)
            sequence = last.sequence + 1 if last is not None else 0
        first, start = ends.next, self._offset
        frame = pack_frame(
            self._header.log, first, count, producer.encode(), sequence, time.time(), ends.durable, body
        )
        ends.busy = 1
        failpoint("log.write.before")
        try:
            write_all(self._fd, frame, start)
        except OSError as error:
            os.ftruncate(self._fd, start)  # should that fail too, the next one repairs: it is still `busy`
            ends.busy = 0
            self._fail_write(error)
        failpoint("log.write.after")
        ends.offset = self._offset = start + len(frame)
        ends.next = first + count
        ends.bytes += len(frame)
        ends.busy = 0
        if producer:
            self._producers[producer] = Producer(sequence, first, count, offset=start)
        return range(first, first + count)

    def _fail_write(self, error: OSError) -> NoReturn:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"no space left for the log {self.directory}; nothing was appended. Free some space and append again"
            ) from error
        self._fail(str(error.strerror or error), error)

    def _fail(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        self._failure = reason
        raise self._failed() from cause

    def _failed(self) -> StoreError:
        return StoreError(
            f"writing the log {self.directory} failed: {self._failure}; nothing that was not acknowledged is sure to be "
            f"kept. Look at the disk, then end this process and append again from a new one"
        )

    def _refuse_failed(self, ends: Ends) -> None:
        if self._failure is not None:
            raise self._failed()
        if ends.failed:
            self._fail("another process could not make its records durable")

    def _rotate(self, ends: Ends) -> None:
        """Begin a new segment, after all before it is durable."""
        failpoint("log.rotate.before")
        with self._syncing():
            self._datasync(self._fd, ends)
            if ends.next > ends.durable:
                ends.durable = ends.next
        failpoint("log.rotate.synced")
        ends.busy = 1
        header = Header(self._header.log, ends.next, ends.bytes, time.time(), self._carried())
        self._new_segment(header)
        ends.segment = header.first
        self._take_up(ends)
        ends.offset = self._offset
        ends.busy = 0
        failpoint("log.rotate.after")

    def _carried(self) -> dict[str, Producer]:
        """All producers, with the records of their last append: the segment that holds them may leave the log."""
        carried: dict[str, Producer] = {}
        for name, last in self._producers.items():
            body = self._body_of(last)
            carried[name] = Producer(last.sequence, last.first, last.count, body)
        return carried

    def _body_of(self, last: Producer) -> bytes | None:
        if last.offset < 0:
            return last.body
        head = next(heads(self._fd, last.offset, last.offset + 1, self._path))
        return os.pread(self._fd, head.end - head.body, head.body)

    def _new_segment(self, header: Header) -> None:
        """A segment has its name only once its header is durable."""
        path = segment_path(self.directory, header.first)
        partial = path.with_suffix(".new")
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, pack_header(header), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        failpoint("log.rotate.named")
        partial.rename(path)
        sync_directory(self.directory)

    # ---- making durable

    def sync(self, end: int, *, wait: bool = True) -> None:
        """Return once the records below `end` are durable; one sync does for all that were written before it.

        Without `wait` it is left to another process where one syncs now: that one may have been stopped.
        """
        ends = self.ends
        if ends.durable >= end:
            return
        with self._sync_mutex, _told(self.directory):
            if ends.durable >= end or not (wait or self._free("sync")):
                return
            with self._holding("sync"):
                if ends.durable < end:
                    self._sync(ends)
        self._wake(ends)

    def _sync(self, ends: Ends) -> None:
        self._refuse_failed(ends)
        # In this order: where a segment was begun in between, all that was before it is durable already.
        target, segment = ends.next, ends.segment
        if segment != self._sync_segment:
            if self._sync_fd >= 0:
                os.close(self._sync_fd)
                self._sync_fd = -1
            self._sync_fd = os.open(segment_path(self.directory, segment), os.O_RDWR | os.O_CLOEXEC)
            self._sync_segment = segment
        failpoint("log.sync.before")
        self._datasync(self._sync_fd, ends)
        failpoint("log.sync.after")
        if target > ends.durable:
            ends.durable = target

    def _datasync(self, fd: int, ends: Ends) -> None:
        try:
            datasync(fd)
        except OSError as error:
            ends.failed = 1
            self._fail(str(error.strerror or error), error)

    # ---- what there is

    def last(self, producer: str) -> Last | None:
        """The last append of a producer, made durable; None where it has appended nothing."""
        with self._changing():
            found = self._producers.get(producer)
            body = None if found is None else self._body_of(found)
        if found is None:
            return None
        end = found.first + found.count
        self.sync(end)
        return Last(found.sequence, range(found.first, end), body)

    # ---- letting go of old records

    def retain(self, committed: int, *, age_s: float | None = None, size: int | None = None) -> int:
        """Let the oldest segments go whose records are all committed, while they are older or all are larger than that.

        Gives the first record that is still there. Waits for nobody: who appends now is asked again later.
        """
        names = segments(self.directory)
        if (age_s is None and size is None) or not self._free("lock"):
            return names[0]
        with self._changing() as ends:
            names = segments(self.directory)
            total = sum(segment_path(self.directory, first).stat().st_size for first in names)
            oldest_s = -1.0 if age_s is None else time.time() - age_s

            def leaves(following: int, newest: float) -> bool:
                return following <= committed and (newest < oldest_s or (size is not None and total > size))

            if ends.next > self._header.first and leaves(ends.next, self._header.created):
                self._rotate(ends)
                names.append(ends.segment)
            while len(names) > 1 and leaves(names[1], self._created(names[1])):
                path = segment_path(self.directory, names.pop(0))
                total -= path.stat().st_size
                failpoint("log.retain.before")
                path.unlink()
                sync_directory(self.directory)  # one at a time: or a loss of power could leave a gap
                failpoint("log.retain.after")
        return names[0]

    def _free(self, name: str) -> bool:
        fd = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def _created(self, first: int) -> float:
        """When a segment began, and the one before it ended."""
        path = segment_path(self.directory, first)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_header(fd, path).created
        finally:
            os.close(fd)

    # ---- back-pressure, and waking the hub

    def _wait_for_room(self, timeout_s: float | None) -> None:
        """Wait while a running hub is too far behind; raises `StoreFull` where too much waits for one."""
        if self._stopped.is_set():
            raise StoreError(f"the log {self.directory} is closed; nothing was appended")
        ends = self.ends
        if ends.bytes - ends.committed_bytes <= AHEAD_BYTES:
            return
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (behind := ends.bytes - ends.committed_bytes) > AHEAD_BYTES:
            if not self.has_reader():
                if behind <= WAITING_BYTES_MAX:
                    return
                raise StoreFull(
                    f"{behind:,} bytes wait in the log {self.directory} and no hub runs that takes them: run the app; "
                    f"nothing was appended"
                )
            if until is not None and time.monotonic() > until:
                raise StoreFull(
                    f"the hub is {behind:,} bytes behind the log {self.directory}, for more than {timeout_s} seconds; "
                    f"nothing was appended"
                )
            if self._stopped.wait(_POLL_S):
                raise StoreError(f"the log {self.directory} is closed; nothing was appended")

    def has_reader(self) -> bool:
        """Whether a hub reads the log now."""
        fd = os.open(self.directory / "reader", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _wake(self, ends: Ends) -> None:
        if not ends.waiting:
            return
        with contextlib.suppress(OSError):  # nobody reads, or it was woken already
            if self._wake_fd < 0:
                self._wake_fd = os.open(self.directory / "wake", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(self._wake_fd, b"\0")

    # ---- closing

    def stop(self) -> None:
        """Append nothing more; who waits for room is told so."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of all files; what is asked next opens them again."""
        with self._mutex, self._sync_mutex:
            self._let_go()
        stopped = self._stopped
        self._forget()
        self._stopped = stopped

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the process may be at its end
            self._close_files()  # and not the numbers: somebody may still look at them

    def _let_go(self) -> None:
        self._close_files()
        if self._ends is not None:
            self._ends.close()

    def _close_files(self) -> None:
        fds, self._locks = [*self._locks.values(), self._fd, self._sync_fd, self._wake_fd], {}
        self._fd = self._sync_fd = self._wake_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of it; raises `OSError` where that cannot be."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


@contextlib.contextmanager
def _told(directory: Path) -> Generator[None]:
    """What the operating system refuses is told in our words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"no space left for the log {directory}; nothing was appended. Free some space and append again"
            ) from error
        raise StoreError(f"the log {directory} cannot be used: {error.strerror or error}") from error


_all: weakref.WeakSet[StoredLog] = weakref.WeakSet()


def _after_fork() -> None:
    """A child has its parent's descriptors, and with them its locks: let go of them, and open anew when asked."""
    for log in list(_all):
        log._let_go()
        log._forget()


os.register_at_fork(after_in_child=_after_fork)
