"""The line to a running app: a socket beside its store, on which other processes give it commands.

    client      the command, with the name that is its identity
    hub         kept: it waits beside the store, durable, whatever becomes of either side from here on
    hub         done: what became of it

Each is a line of JSON. Only the owner of the store may connect (mode 0600). Where nobody answers, or the line breaks, the
client leaves the command beside the store itself, under the same name: it is done once in any case.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Generator
from pathlib import Path

import msgspec

from secondpass.errors import StoreError
from secondpass.store.spool import NAME, Command

FILE = "control.sock"
MODE = 0o600
KEPT_S = 10.0
"""So long a hub that answers at all takes to keep a command."""
LONGEST = 64 * 1024 * 1024
_ADDRESS_MAX = 100  # of 108 bytes on Linux, 104 elsewhere


class Asked(msgspec.Struct, frozen=True):
    """What a client asks for."""

    name: str
    command: Command
    wait: bool = True
    """Whether the client stays to hear what became of it."""


class Answered(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the hub answers: first that it is kept, then what became of it."""

    name: str
    done: bool = False
    position: int | None = None
    """Its place in the stream; None, once it is done, where it waits for the next run."""
    refusal: str | None = None


class Broken(Exception):
    """Nobody answers, or no more."""


@contextlib.contextmanager
def _address(directory: Path) -> Generator[str]:
    """The socket's address, which is short, unlike some paths."""
    path = str(directory / FILE)
    if len(os.fsencode(path)) <= _ADDRESS_MAX:
        yield path
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{FILE}"
    finally:
        os.close(fd)


def listen(directory: Path) -> socket.socket:
    """The hub's end; raises `OSError` where the file system has no sockets, or the path is too long for this system."""
    (directory / FILE).unlink(missing_ok=True)  # of a run that was killed: the store is ours
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the socket: it is never open to others. Elsewhere it is for a moment.
        with contextlib.suppress(OSError):
            os.fchmod(sock.fileno(), MODE)
        with _address(directory) as address:
            sock.bind(address)
        (directory / FILE).chmod(MODE)
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return sock


class Line:
    """One command's line, either end of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")

    @classmethod
    def to(cls, directory: Path) -> Line:
        """The client's end; raises `Broken` where no app runs."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(KEPT_S)  # a hub that hangs is not waited for
            with _address(directory) as address:
                sock.connect(address)
        except OSError as error:
            sock.close()
            raise Broken from error
        return cls(sock)

    def ask(self, asked: Asked) -> None:
        """Give the hub a command; it is kept when this returns. Raises `Broken`, or `StoreError` as the hub says."""
        self._send(asked)
        found = self.answer(KEPT_S)
        if found.refusal is not None:
            raise StoreError(found.refusal)

    def answer(self, timeout_s: float) -> Answered:
        """What the hub says next; raises `TimeoutError` where it takes longer, `Broken` where it is gone."""
        line = self._read(timeout_s)
        try:
            return msgspec.json.decode(line, type=Answered)
        except msgspec.MsgspecError as error:
            raise Broken from error

    def asked(self) -> Asked:
        """What a client asks for; raises `Broken` where it is gone, `StoreError` where it is no command."""
        line = self._read(KEPT_S)
        try:
            found = msgspec.json.decode(line, type=Asked)
        except msgspec.MsgspecError as error:
            raise StoreError(f"this is no command: {error}") from error
        if not re.fullmatch(NAME, found.name):
            raise StoreError("this is no command: its name is none")
        return found

    def tell(self, answered: Answered) -> None:
        """Answer a client; raises `Broken` where it is gone."""
        self._send(answered)

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _send(self, content: msgspec.Struct) -> None:
        try:
            self._socket.settimeout(KEPT_S)
            self._socket.sendall(msgspec.json.encode(content) + b"\n")
        except OSError as error:
            raise Broken from error

    def _read(self, timeout_s: float) -> bytes:
        try:
            self._socket.settimeout(timeout_s)
            line = self._file.readline(LONGEST)
        except TimeoutError:
            raise
        except OSError as error:
            raise Broken from error
        if not line.endswith(b"\n"):
            raise Broken
        return line
