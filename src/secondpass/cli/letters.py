"""Dead letters as they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from secondpass.cli.shapes import Letter
from secondpass.engine.outbox import decode_event_plain

if TYPE_CHECKING:
    from secondpass.store.format import StoredLetter


def letter_of(number: int, status: str, stored: StoredLetter) -> Letter:
    """A dead letter without the app's classes."""
    return Letter(
        number=number,
        status=cast("Any", status),
        position=stored.position,
        task=stored.task or None,
        error=stored.error,
        traceback=stored.traceback,
        event=decode_event_plain(stored.event),
        raw=stored.raw.decode(errors="replace"),
        source=stored.source,
        offset=stored.offset,
    )
