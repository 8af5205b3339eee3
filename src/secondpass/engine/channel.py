"""Framed messages over a Unix stream socket, with descriptors and with what is large beside it.

    magic    4   `2dps`
    parts    4   how many parts are in a shared memory file, whose descriptor comes with the frame; or 0
    fds      2   how many descriptors come with the frame, that file's first
    size     8   bytes of the body, or of that file
    tag      8   the sender's own
    body         `size` bytes, unless it is shared

A shared file holds the body and what goes beside it, each from a multiple of 64 on, then the sizes of them all,
8 bytes each. That is the only copy of it: the sender writes it from where it lies, the receiver looks at the map.

Invariants: a channel that does not block never waits for the other side, in `send` no more than in `receive`; what
the other side had sent before it ended is received. A descriptor that was given to `send` belongs to the channel,
one that came with a message to the receiver. A shared body stays mapped for as long as anybody looks at it, and no
longer.
"""

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import mmap
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from secondpass.codec import SealedMap

SHARED_FROM = 1 << 20
"""From this size on, a body in a shared file costs no more than one in the socket, whose buffer it would not fit."""

_HEADER = struct.Struct("<4sIHQq")
_MAGIC = b"2dps"
_BUFFER = 1 << 18
_MAX_FDS = 4
_ALIGN = 64
_PARTS_AT_ONCE = 1000  # the system takes 1024
_ANCILLARY = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_CLOSE_ON_EXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_NO_SIGPIPE = int(getattr(socket, "MSG_NOSIGNAL", 0))
_TRUNCATED = int(socket.MSG_CTRUNC)


class Garbled(Exception):
    """What came through a channel is no message."""


class Message(NamedTuple):
    """What the other side sent, once it is complete."""

    tag: int
    body: bytes | memoryview
    fds: tuple[int, ...] = ()
    beside: Sequence[bytes | memoryview] = ()


def shared_file(name: str) -> int:
    """The descriptor of an empty file in memory that has no name in any directory."""
    if sys.platform == "linux":
        return os.memfd_create(name, os.MFD_CLOEXEC)
    import tempfile  # half the time that this module takes

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_whole(fd: int, *parts: bytes | memoryview) -> None:
    """Write all of them, one behind the other."""
    rest = deque(part for part in parts if len(part))
    while rest:
        _shorten(rest, os.writev(fd, list(itertools.islice(rest, _PARTS_AT_ONCE))))


def _shorten(parts: deque[bytes | memoryview], count: int) -> None:
    """Take away what was written."""
    while parts and count >= len(parts[0]):
        count -= len(parts.popleft())
    if count:
        parts[0] = memoryview(parts[0])[count:]


class Channel:
    """One end of a connection; `ended` once the other end is closed and all that it sent was received."""

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        self.ended = False
        self._sock = sock
        self._blocking = blocking
        sock.setblocking(blocking)
        # A message that fits the buffer is gone with one call; the kernel gives what it may.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * SHARED_FROM)
        self._outgoing: deque[_Outgoing] = deque()
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._begun: _Begun | None = None
        self._fds: deque[int] = deque()

    def fileno(self) -> int:
        return self._sock.fileno()

    # ---------------------------------------------------------------- sending

    def send(
        self,
        body: bytes | memoryview,
        tag: int = 0,
        fds: Iterable[int] = (),
        beside: Sequence[bytes | memoryview] = (),
    ) -> None:
        """Send a message, or as much of it as the socket takes now; `flush` sends the rest.

        Nothing is raised when the other side is gone: who receives learns that.
        """
        self._outgoing.append(_Outgoing(body, tag, [*fds], beside))
        self.flush()

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it."""
        try:
            while self._outgoing and self._outgoing[0].write(self._sock):
                self._outgoing.popleft()
        except (BrokenPipeError, ConnectionResetError):
            self._drop_outgoing()

    @property
    def wants_write(self) -> bool:
        """Whether something is waiting for `flush`."""
        return bool(self._outgoing)

    def _drop_outgoing(self) -> None:
        while self._outgoing:
            self._outgoing.popleft().close()

    # ---------------------------------------------------------------- receiving

    def receive(self) -> list[Message]:
        """All complete messages that are there; a blocking channel waits for the first, or for the end.

        Raises `Garbled` for what no channel has sent.
        """
        found: list[Message] = []
        while not self.ended and self._read():
            self._take(found)
            if self._blocking and found:
                break
        return found

    def _read(self) -> bool:
        """Read once; False when nothing is there, or nothing more will come."""
        into = self._view[self._filled :] if self._begun is None else self._begun.rest
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into([into], _ANCILLARY, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            count, ancillary, flags = 0, [], 0
        for _level, _kind, data in ancillary:
            fds = array.array("i")
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            self._fds.extend(fds)
            if not _CLOSE_ON_EXEC:
                for fd in fds:
                    os.set_inheritable(fd, False)
        if flags & _TRUNCATED:
            raise Garbled("descriptors were lost on their way: this process has too many files open")
        if count == 0:
            self.ended = True
        elif self._begun is None:
            self._filled += count
        else:
            self._begun.rest = self._begun.rest[count:]
        return count > 0

    def _take(self, found: list[Message]) -> None:
        """Take the messages out of what was read."""
        begun = self._begun
        if begun is not None:
            if not begun.rest:
                found.append(Message(begun.tag, begun.body.toreadonly(), begun.fds))
                self._begun = None
            return
        start, view = 0, self._view
        while self._filled - start >= _HEADER.size:
            magic, parts, fd_count, size, tag = _HEADER.unpack_from(self._buffer, start)
            if (
                magic != _MAGIC
                or fd_count > _MAX_FDS
                or (parts and not fd_count)
                or (not parts and size >= SHARED_FROM)
            ):
                raise Garbled("what came through the channel is no message")
            fds = self._claim(fd_count)
            start += _HEADER.size
            if parts:
                body, *beside = _map(fds[0], size, parts)
                found.append(Message(tag, body, fds[1:], beside))
            elif self._filled - start >= size:
                found.append(Message(tag, bytes(view[start : start + size]), fds))
                start += size
            else:
                # The rest of the body is read to where it stays.
                self._begun = begun = _Begun(tag, memoryview(bytearray(size)), fds)
                there = self._filled - start
                begun.body[:there] = view[start : self._filled]
                begun.rest = begun.body[there:]
                start = self._filled
        left = self._filled - start
        if start and left:
            self._buffer[:left] = self._buffer[start : self._filled]
        self._filled = left

    def _claim(self, count: int) -> tuple[int, ...]:
        if count > len(self._fds):
            raise Garbled("a message came without its descriptors")
        return tuple(self._fds.popleft() for _ in range(count))

    def close(self) -> None:
        """Close this end, and every descriptor that nobody has taken; more than once does no harm."""
        self._drop_outgoing()
        fds = [*self._fds, *(self._begun.fds if self._begun else ())]
        self._fds.clear()
        self._begun = None
        for fd in fds:
            os.close(fd)
        self._sock.close()


class _Begun:
    """A message of which the body is still coming."""

    __slots__ = ("body", "fds", "rest", "tag")

    def __init__(self, tag: int, body: memoryview, fds: tuple[int, ...]) -> None:
        self.tag, self.body, self.rest, self.fds = tag, body, body, fds


class _Outgoing:
    """A message on its way out."""

    __slots__ = ("_fds", "_parts", "_shared")

    def __init__(
        self, body: bytes | memoryview, tag: int, fds: list[int], beside: Sequence[bytes | memoryview]
    ) -> None:
        # The shared file is made when the message's turn has come: a queue of large messages holds one descriptor.
        self._shared = _laid_out([body, *beside]) if beside or len(body) >= SHARED_FROM else []
        self._fds = fds
        if self._shared:
            header = (1 + len(beside), len(fds) + 1, sum(map(len, self._shared)))
            content: list[bytes | memoryview] = []
        else:
            header = (0, len(fds), len(body))
            content = [body] if len(body) else []
        self._parts = deque([_HEADER.pack(_MAGIC, *header, tag), *content])

    def write(self, sock: socket.socket) -> bool:
        """Write what the socket takes; whether that was all."""
        if self._shared:
            fd = shared_file("secondpass-message")
            self._fds.insert(0, fd)
            write_whole(fd, *self._shared)
            self._shared = []
        while self._parts:
            ancillary: list[Any] = (
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self._fds))] if self._fds else []
            )
            try:
                count = sock.sendmsg(self._parts, ancillary, _NO_SIGPIPE)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:  # too many descriptors of this user are on their way
                    raise
                return False
            self.close()  # descriptors travel with the first byte
            _shorten(self._parts, count)
        return True

    def close(self) -> None:
        """Close the descriptors that the message still holds."""
        while self._fds:
            os.close(self._fds.pop())


def _laid_out(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The content of a shared file, piece by piece."""
    found: list[bytes | memoryview] = []
    for part in parts:
        found += (part, bytes(-len(part) % _ALIGN))
    return [*found, struct.pack(f"<{len(parts)}Q", *map(len, parts))]


def _map(fd: int, size: int, count: int) -> list[memoryview]:
    """The parts of a shared file, mapped until the last view of them is gone."""
    try:
        # Older Pythons keep a descriptor of their own for as long as the map lives.
        more: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        whole = memoryview(SealedMap(fd, size, access=mmap.ACCESS_READ, **more))
        sizes = struct.unpack_from(f"<{count}Q", whole, size - 8 * count)
    except (OSError, ValueError, struct.error) as error:
        raise Garbled(f"a shared message cannot be mapped: {error}") from None
    finally:
        os.close(fd)
    *starts, end = itertools.accumulate((n + -n % _ALIGN for n in sizes), initial=0)
    if end != size - 8 * count:
        raise Garbled("the parts of a shared message do not fill it")
    return [whole[at : at + n] for at, n in zip(starts, sizes, strict=True)]
