"""Outputs written to standard output: for pipes and for looking on. A crash may repeat some."""

from __future__ import annotations

import errno
import os
import select
import sys
from typing import Any, Literal

from secondpass.connectors.contract import Delivery
from secondpass.connectors.filesink import undelivered, unwritable
from secondpass.errors import OutputError

SHOWN = "standard output"
_DESCRIPTOR = 1


class StandardOutput:
    """JSON lines on standard output."""

    format: Literal["json", "events"] = "json"
    at_least_once = True

    def __init__(self) -> None:
        self._number = 0

    def open(self, state: dict[str, Any] | None, *, accept: bool = False) -> None:  # noqa: ARG002 - it is as it is
        self._number = int((state or {}).get("number", 0))

    def deliver(self, delivery: Delivery, events: list[Any] | None) -> None:  # noqa: ARG002 - the body is JSON
        done = undelivered(delivery, self._number, SHOWN)
        if done < delivery.count:
            self.write(delivery.body.split(b"\n", done)[done] if done else delivery.body)
            self._number = delivery.first + delivery.count

    def write(self, data: bytes) -> None:
        """All of these bytes, however slowly the reader takes them."""
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison] - None when it is closed at start
            sys.stdout.flush()  # what was printed before stays before
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(_DESCRIPTOR, view) :]
            except BlockingIOError:
                select.select([], [_DESCRIPTOR], [])
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise OutputError(
                        f"{SHOWN} was closed by its reader; run again to go on with output number {self._number}"
                    ) from None
                raise unwritable(SHOWN, error) from None

    def recovered(self) -> None:
        """Nobody knows what the reader of a pipe has got."""

    def sync(self) -> dict[str, Any]:
        return {"number": self._number}

    def close(self) -> None:
        """It is not ours to close."""
