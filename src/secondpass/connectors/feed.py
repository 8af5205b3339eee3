"""The bytes of an input: where a reader stands in them, and proof that they are those read before.

    head         ...          tail      position        what `peek` shows
    [<= 4 KiB]                [<= 4 KiB]|-------------------------> end

A feed remembers the head of the file and the last bytes before its position. Both are compared again
when an offset is resumed and before every commit, so that a file that was truncated, replaced or edited
in place is noticed before anything that was read from it counts.

`last` says, after a `peek`, that the bytes shown reach the end for good: nothing will be appended.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import msgspec

from secondpass.errors import InputError

FINGERPRINT_BYTES = 4096
"""How much of a file's head, and of what was read last, is remembered and compared."""

WAYS_OUT = (
    "restore the file as it was; or start over with `secondpass run APP --fresh`. (A file that was only moved or "
    "copied goes on with --accept-input; one whose content differs never does)"
)


class Mark(msgspec.Struct):
    """A place in a file, as it is stored: a `Batch.offset` of a file is this, as a dict."""

    path: str
    bytes: int
    head: tuple[int, int] = (0, 0)
    """Length and crc of the head of what was read."""
    tail: tuple[int, int] = (0, 0)
    """Length and crc of the last bytes before the place."""
    file: tuple[int, int] | None = None
    """Device and inode; None while the file did not exist."""
    records: int = 0
    fields: tuple[str, ...] | None = None
    """The header of a CSV file."""


def mark_from(offset: dict[str, Any], shown: str) -> Mark:
    """The place that a stored offset means; raises `InputError` when it is no place in a file."""
    try:
        return msgspec.convert(offset, Mark)
    except msgspec.ValidationError:
        raise InputError(
            f"{shown}: the store holds an offset of another kind of source ({_short(offset)}); "
            f"give the app the source it had, or start over with `secondpass run APP --fresh`"
        ) from None


def refuse_other_kind(shown: str, mark: Mark) -> InputError:
    """The place is one in a file of another format."""
    was = "JSON lines" if mark.fields is None else "CSV"
    return InputError(
        f"{shown}: it was read as {was} until byte {mark.bytes}; give the app the source it had, or start over "
        f"with `secondpass run APP --fresh`"
    )


def _short(offset: dict[str, Any]) -> str:
    text = ", ".join(f"{k}={v!r}" for k, v in offset.items())
    return text if len(text) <= 200 else text[:197] + "..."


def fingerprint(data: bytes) -> tuple[int, int]:
    """Length and crc."""
    return (len(data), zlib.crc32(data))


def open_regular(path: str, shown: str) -> int:
    """A descriptor of a regular file; raises `InputError` for everything else."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        where = f" (looked for {path})" if path != shown else ""
        raise InputError(
            f"{shown}: no such file{where}; check the path, or wait for it with follow=True"
        ) from None
    except OSError as error:
        raise unreadable(shown, error) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise InputError(f"{shown} is a directory; give the path of a file in it")
    raise InputError(
        f"{shown} is no regular file, so it cannot be read again after a crash; "
        f"write it to a file first, or pipe it in and give the path '-'"
    )


def unreadable(shown: str, error: OSError) -> InputError:
    """What the operating system refused, with what to do."""
    advice = {
        errno.EACCES: "give this user the right to read it",
        errno.EPERM: "give this user the right to read it",
        errno.EIO: "the disk failed; copy the file from elsewhere",
        errno.ESTALE: "the network file system lost it; mount it again",
    }.get(error.errno or 0, "mend that and run again; nothing is lost")
    return InputError(f"{shown} cannot be read: {error.strerror or error}; {advice}")


def identity(descriptor: int) -> tuple[int, int]:
    """Device and inode of an open file."""
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino)


class Feed(ABC):
    """What a reader asks of the bytes of an input; the fingerprints are kept here for all kinds."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        """The path as it was given, for messages."""
        self.position = 0
        self.last = False
        self.head = b""
        self.tail = b""

    @abstractmethod
    def peek(self, size: int) -> bytes:
        """Up to `size` bytes from the position on, as far as they are there now; sets `last`."""

    def advance(self, data: bytes, used: int) -> None:
        """The first `used` bytes of the `data` that `peek` showed have been read."""
        if len(self.head) < FINGERPRINT_BYTES:
            self.head += data[: min(used, FINGERPRINT_BYTES - len(self.head))]
        if used >= FINGERPRINT_BYTES:
            self.tail = data[used - FINGERPRINT_BYTES : used]
        else:
            self.tail = (self.tail + data[:used])[-FINGERPRINT_BYTES:]
        self.position += used

    def wait(self) -> None:
        """Nothing more is to be had now; raises `InputError` when nothing more can come though it should."""

    def turn(self) -> bool:
        """The end has been read: go on with the file that follows this one, if there is one."""
        return False

    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the file being read; None when there is none."""
        return None

    def mark(self) -> dict[str, Any]:
        """The place where the reader stands: a `Mark` as plain data."""
        return {
            "path": self.shown,
            "bytes": self.position,
            "head": fingerprint(self.head),
            "tail": fingerprint(self.tail),
            "file": self.identity(),
        }

    def verify(self) -> None:
        """Look again whether the bytes read are still there; raises `InputError` when they are not."""

    def progress(self) -> tuple[int, int] | None:
        """Bytes read and to be read; None when nobody knows."""
        return None

    def close(self) -> None:
        """Let go of what is open."""


class FileFeed(Feed):
    """A plain file."""

    def __init__(self, path: str, shown: str, *, watch_path: bool = True) -> None:
        super().__init__(shown)
        self.path = path
        self._descriptor = open_regular(path, shown)
        self._identity = identity(self._descriptor)
        # A rotated file moves to another path while it is read: then only its content is watched.
        self._watch_path = watch_path

    def identity(self) -> tuple[int, int]:
        return self._identity

    def size(self) -> int:
        """The file's size now."""
        return os.fstat(self._descriptor).st_size

    def modified_ns(self) -> int:
        """When the file was written last."""
        return os.fstat(self._descriptor).st_mtime_ns

    def _at(self, size: int, position: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, position)
        except OSError as error:
            raise unreadable(self.shown, error) from None

    def peek(self, size: int) -> bytes:
        data = self._at(size, self.position)
        self.last = len(data) < size
        if not data and self.size() < self.position:
            raise self._truncated(self.size())
        return data

    def resume(self, mark: Mark) -> str | None:
        """Go to a stored place; says what differs from what was read before, None when nothing does."""
        size = self.size()
        if size < mark.bytes:
            return f"{mark.bytes} bytes of it had been read, and it has {size}: it was truncated or replaced"
        head = self._at(mark.head[0], 0)
        if fingerprint(head) != mark.head:
            return (
                f"its first {mark.head[0]} bytes are not those that were read: another file, or it was edited"
            )
        tail = self._at(mark.tail[0], mark.bytes - mark.tail[0])
        if fingerprint(tail) != mark.tail:
            return f"the {mark.tail[0]} bytes before byte {mark.bytes} are not those that were read: it was edited"
        self.head, self.tail, self.position = head, tail, mark.bytes
        return None

    def verify(self) -> None:
        size = self.size()
        if size < self.position:
            raise self._truncated(size)
        if self._at(len(self.head), 0) != self.head:
            raise InputError(
                f"{self.shown}: its first {len(self.head)} bytes changed while it was read; {WAYS_OUT}"
            )
        tail = len(self.tail)
        if self._at(tail, self.position - tail) != self.tail:
            raise InputError(
                f"{self.shown}: the {tail} bytes before byte {self.position} changed while it was read; {WAYS_OUT}"
            )
        if self._watch_path:
            self._verify_path()

    def _verify_path(self) -> None:
        try:
            found = Path(self.path).stat()
        except OSError:
            return  # deleted: all of it can still be read, and its return is checked when it is opened again
        if (found.st_dev, found.st_ino) != self._identity:
            raise InputError(
                f"{self.shown} was replaced by another file while it was read; run again: what was read is "
                f"compared with the new file, and it goes on from there (a log that is rotated is read with follow=True)"
            )

    def _truncated(self, size: int) -> InputError:
        return InputError(
            f"{self.shown} was truncated while it was read: {self.position} bytes had been read, {size} are left "
            f"(rotating by copying and truncating loses lines; rotate by renaming). What to do: {WAYS_OUT}"
        )

    def progress(self) -> tuple[int, int]:
        return (self.position, max(self.size(), self.position))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
