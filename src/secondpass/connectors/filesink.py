"""Outputs appended to a file: nothing twice, nothing missing, and the file never shrinks.

    |---- delivered, covered by the last state ----|---- delivered, perhaps, before a crash ----|
    0                                          state.size                                 file's size

What lies beyond the state's size was written after the last commit of a state, possibly cut off in the
middle of a line. The store holds these outputs still and delivers them again: `deliver` compares what
is there with what it would write, and appends from where the file ends. Whatever else is there stops
the app: someone else writes to the file.

One delivery is one `write`, so a reader of the file sees half a line for no longer than that.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from secondpass.connectors.contract import Delivery
from secondpass.connectors.feed import FINGERPRINT_BYTES, fingerprint
from secondpass.errors import OutputError

COMPARE_BYTES = 1 << 20

ADVICE: dict[int, str] = {
    errno.ENOSPC: "free space and run again: nothing is lost, and nothing will be there twice",
    errno.EDQUOT: "free space and run again: nothing is lost",
    errno.EFBIG: "the file has reached the largest size allowed; move it away and give --accept-output",
    errno.EIO: "the disk failed; mend it and run again: nothing is lost",
    errno.EACCES: "give this user the right to write it and run again: nothing is lost",
    errno.EPERM: "give this user the right to write it and run again: nothing is lost",
    errno.EROFS: "mount it for writing and run again: nothing is lost",
    errno.ENOENT: "create the directory that it stands in and run again",
    errno.EISDIR: "give the path of a file in it",
    errno.ENOTDIR: "a part of its path is a file; give another path",
}

ACCEPT = "to take the file as it is now and append from the next undelivered output on: `secondpass run APP --accept-output`"


class SinkState(msgspec.Struct):
    """What a file sink left, as the store keeps it."""

    path: str = ""
    number: int = 0
    size: int = 0
    tail: tuple[int, int] = (0, 0)
    """Length and crc of the last bytes before `size`."""
    fields: tuple[str, ...] | None = None
    """The header of a CSV file."""


def unwritable(shown: str, error: OSError) -> OutputError:
    """What the operating system refused, with what to do."""
    advice = ADVICE.get(error.errno or 0, "mend that and run again: nothing is lost")
    return OutputError(f"{shown} cannot be written: {error.strerror or error}; {advice}")


def undelivered(delivery: Delivery, number: int, shown: str) -> int:
    """How many outputs at the beginning of a delivery have been delivered already.

    The first delivery may have any number: a stream may have got its sink late.
    """
    if delivery.first > number > 0:
        raise OutputError(
            f"{shown}: the next output to deliver is number {number}, and the store gives {delivery.first}: outputs "
            f"are missing from the store; restore it from a backup, or start over with `secondpass run APP --fresh`"
        )
    return min(max(number - delivery.first, 0), delivery.count)


class FileSink(ABC):
    """The bytes of outputs, appended to a file; subclasses say what the bytes of a delivery are."""

    format: Literal["json", "events"] = "json"
    at_least_once = False

    def __init__(self, path: str) -> None:
        self.path = path
        self._target = path
        self._descriptor = -1
        self._state = SinkState(path)
        self._at = 0
        """Up to here the file holds what this sink delivered."""
        self._end = 0
        """Where the file ended when it was opened; beyond `_at` only until what was lost is delivered again."""
        self._accept = False
        self._mend_line = False
        self._created = False
        self._identity = (0, 0)

    # ------------------------------------------------------------ the life of a sink

    def open(self, state: dict[str, Any] | None, *, accept: bool = False) -> None:
        self._state = _state_from(state, self.path)
        self._accept = accept
        self._target = os.path.abspath(self.path)  # noqa: PTH100 - Path.absolute keeps `..`
        if self._state.path not in ("", self.path) and not accept:
            raise OutputError(
                f"{self.path}: {self._state.number} outputs went to {self._state.path}; give the app the path it had, "
                f"or, {ACCEPT}"
            )
        missing = self._is_missing()
        if missing and self._state.size and not accept:
            raise OutputError(
                f"{self.path} is gone: the {self._state.size} bytes of {self._state.number} outputs were there. "
                f"Restore it; or, {ACCEPT}"
            )
        try:
            # O_APPEND: should someone else write at the same time, neither overwrites the other.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(self._target, flags, 0o666)
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._created = missing
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise OutputError(f"{self.path} is no regular file; give the path '-' to write to a pipe")
        self._identity = (found.st_dev, found.st_ino)
        self._end = found.st_size
        self._at = self._state.size
        differs = self._differs()
        if differs is not None:
            if not accept:
                self.close()
                raise OutputError(
                    f"{self.path} is not as this app left it: {differs}. Restore it; or, {ACCEPT}"
                )
            self._take_as_it_is()

    def deliver(self, delivery: Delivery, events: list[Any] | None) -> None:
        done = undelivered(delivery, self._state.number, self.path)
        if done == delivery.count:
            return
        body = self.encode(delivery, events, done)
        there = self._already_there(body)
        if there:
            self._write_again(body[:there])
        if there < len(body):
            self._append(body[there:])
        self._at += len(body)
        self._end = max(self._end, self._at)
        self._state.number = delivery.first + delivery.count

    def recovered(self) -> None:
        if self._at == self._end:
            return
        if self._accept:
            self._take_as_it_is()
            return
        more = self._end - self._at
        if self._state.size == 0 and self._state.number == 0:
            raise OutputError(
                f"{self.path} exists and holds {self._end} bytes that this run did not write (running with --fresh "
                f"again would put every output there twice). Move it away; or, {ACCEPT}"
            )
        raise OutputError(
            f"{self.path} has {self._end} bytes where {self._at} are expected: someone appended {more} bytes. "
            f"Remove them; or, {ACCEPT}"
        )

    def sync(self) -> dict[str, Any]:
        try:
            os.fsync(self._descriptor)
            if self._created:
                # A new file's name is durable when its directory is.
                directory = os.open(Path(self._target).parent, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
                self._created = False
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._state.path = self.path
        self._state.size = self._at
        tail = min(self._at, FINGERPRINT_BYTES)
        self._state.tail = fingerprint(self._read(tail, self._at - tail))
        return msgspec.to_builtins(self._state)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self, state: dict[str, Any]) -> None:
        """Remove the file that an earlier run left, for one that starts over.

        Raises `OutputError` when it is another: what others wrote is not ours to throw away.
        """
        left = _state_from(state, self.path)
        if left.path != self.path or not left.size:
            return  # its outputs went elsewhere, or there are none
        path = Path(os.path.abspath(self.path))  # noqa: PTH100 - Path.absolute keeps `..`
        length, _ = left.tail
        try:
            with path.open("rb") as file:
                file.seek(left.size - length)
                tail = fingerprint(file.read(length))
            if tail != left.tail:
                raise OutputError(
                    f"{self.path} is not as this app left it: the {length} bytes before byte {left.size} are others. "
                    f"Move it away and run again"
                )
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise unwritable(self.path, error) from None

    # ------------------------------------------------------------ what a kind of file adds

    @abstractmethod
    def encode(self, delivery: Delivery, events: list[Any] | None, done: int) -> bytes:
        """The bytes of a delivery without its first `done` outputs; the same whenever it is asked."""

    def accepted(self) -> None:
        """The file is taken as it is, and holds something: make sure that outputs can follow it."""
        # Another's half line must not swallow our first one.
        self._mend_line = self._read(1, self._end - 1) != b"\n"

    # ------------------------------------------------------------ the file

    def _is_missing(self) -> bool:
        try:
            Path(self._target).stat()
        except FileNotFoundError:
            return True
        except OSError as error:
            raise unwritable(self.path, error) from None
        return False

    def _read(self, size: int, position: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, position)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _differs(self) -> str | None:
        if self._end < self._at:
            return f"it has {self._end} bytes, {self._at} are expected: it was truncated or replaced"
        length, _ = self._state.tail
        if fingerprint(self._read(length, self._at - length)) != self._state.tail:
            return f"the {length} bytes before byte {self._at} are not those that were written: it was edited or replaced"
        return None

    def _take_as_it_is(self) -> None:
        self._at = self._end
        if self._end:
            self.accepted()

    def _already_there(self, body: bytes) -> int:
        """How many of these bytes the file holds already, from a run that crashed."""
        there = min(len(body), self._end - self._at)
        for start in range(0, there, COMPARE_BYTES):
            part = body[start : min(start + COMPARE_BYTES, there)]
            if self._read(len(part), self._at + start) != part:
                if self._accept:
                    self._take_as_it_is()
                    return 0
                if self._state.size == 0:
                    self.recovered()
                raise OutputError(
                    f"{self.path}: what follows byte {self._at} is not what was being written when the app stopped: "
                    f"someone else wrote to it. Cut it off after byte {self._at}; or, {ACCEPT}"
                )
        return there

    def _write_again(self, data: bytes) -> None:
        """Write what the file shows already, since it may be in memory only.

        After a failed sync the system takes its pages for written: a later sync says yes and writes nothing.
        """
        try:
            # A descriptor of its own: one that appends (O_APPEND) writes at the end whatever the offset.
            descriptor = os.open(self._target, os.O_WRONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor)
                if (found.st_dev, found.st_ino) != self._identity:
                    return  # it was replaced a moment ago: what is to be appended next says so
                done = 0
                while done < len(data):
                    done += os.pwrite(descriptor, data[done:], self._at + done)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _append(self, data: bytes) -> None:
        self._check_untouched()
        if self._mend_line:
            self._mend_line = False
            self._write(b"\n")
            self._at = self._end
        self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._descriptor, view)
                self._end += written
                view = view[written:]
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _check_untouched(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size != self._end:
            raise OutputError(
                f"{self.path} has {size} bytes where {self._end} are expected: someone else wrote to it or truncated it "
                f"while the app ran. Restore it; or, {ACCEPT}"
            )
        try:
            found = Path(self._target).stat()
        except OSError:
            raise OutputError(
                f"{self.path} was deleted or moved while the app ran. Restore it; or, {ACCEPT}"
            ) from None
        if (found.st_dev, found.st_ino) != self._identity:
            raise OutputError(
                f"{self.path} was replaced by another file while the app ran (an output is not rotated). "
                f"Restore it; or, {ACCEPT}"
            )


def _state_from(state: dict[str, Any] | None, shown: str) -> SinkState:
    if state is None:
        return SinkState()
    try:
        return msgspec.convert(state, SinkState)
    except msgspec.ValidationError:
        raise OutputError(
            f"{shown}: the store holds the state of another kind of sink; give the app the sink it had, "
            f"or start over with `secondpass run APP --fresh`"
        ) from None


# ---------------------------------------------------------------- compression

# Written out, since libraries differ in what they put here: no flags, no time, default effort, Unix.
_MEMBER_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"


def gzip_member(data: bytes) -> bytes:
    """One gzip member; the same bytes for the same data.

    >>> import gzip
    >>> gzip.decompress(gzip_member(b"a") + gzip_member(b"b"))
    b'ab'
    """
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    ends = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return b"".join([_MEMBER_HEAD, deflate.compress(data), deflate.flush(), ends])


class CompressibleSink(FileSink):
    """A file sink that writes one gzip member per delivery when its path ends in `.gz`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._compressed = path.endswith(".gz")

    def encode(self, delivery: Delivery, events: list[Any] | None, done: int) -> bytes:
        text = self.text(delivery, events, done)
        return gzip_member(text) if self._compressed else text

    @abstractmethod
    def text(self, delivery: Delivery, events: list[Any] | None, done: int) -> bytes:
        """The text of a delivery without its first `done` outputs."""

    def accepted(self) -> None:
        if not self._compressed:
            return super().accepted()
        try:
            for _ in self._plain():
                pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OutputError(
                f"{self.path} is damaged or incomplete ({error}), and nothing can follow it; move it away: "
                f"with --accept-output a new file is begun"
            ) from None

    def _plain(self) -> Iterator[bytes]:
        """The text that the file holds, in parts."""
        with ExitStack() as stack:
            text: IO[bytes] | gzip.GzipFile = stack.enter_context(os.fdopen(os.dup(self._descriptor), "rb"))
            text.seek(0)
            if self._compressed:
                text = stack.enter_context(gzip.open(text))
            while part := text.read(COMPARE_BYTES):
                yield part


class JsonSink(CompressibleSink):
    """JSON lines, one per output."""

    def text(self, delivery: Delivery, events: list[Any] | None, done: int) -> bytes:  # noqa: ARG002 - the body is JSON
        return delivery.body.split(b"\n", done)[done] if done else delivery.body
