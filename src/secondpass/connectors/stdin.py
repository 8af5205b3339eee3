"""Standard input: read as it comes, once."""

from __future__ import annotations

import os
import select

from secondpass.connectors.feed import Feed, Mark, unreadable
from secondpass.errors import InputError

SHOWN = "standard input"
_DESCRIPTOR = 0
_CHUNK = 1 << 20


class StandardInput(Feed):
    """What is piped in. Reading never waits for the other end."""

    def __init__(self) -> None:
        super().__init__("-")
        self._buffer = bytearray()
        self._ended = False

    def peek(self, size: int) -> bytes:
        try:
            while len(self._buffer) < size and not self._ended and select.select([_DESCRIPTOR], [], [], 0)[0]:
                part = os.read(_DESCRIPTOR, _CHUNK)
                self._buffer += part
                self._ended = not part
        except BlockingIOError:
            pass  # another process took what was there
        except OSError as error:
            raise unreadable(SHOWN, error) from None
        data = bytes(self._buffer[:size])
        self.last = self._ended and len(data) < size
        return data

    def advance(self, data: bytes, used: int) -> None:
        super().advance(data, used)
        del self._buffer[:used]


def refuse_again(mark: Mark | None) -> None:
    """Raises `InputError` when some of standard input has been read: it cannot be read again."""
    if mark is not None and mark.bytes:
        raise InputError(
            f"{SHOWN} cannot be read again: {mark.records} records of it were read by an earlier run. Write it to a "
            f"file and give its path, which goes on where it stopped, or start over with `secondpass run APP --fresh`"
        )
