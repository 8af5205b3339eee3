"""Logging from a task: lines appear once, when their epoch is committed, however often it was run."""

from __future__ import annotations

import logging
from typing import Any

from secondpass.record import error_text, storable

_FORMATTER = logging.Formatter()


class TaskLogger(logging.Logger):
    """Hands its records to the moment of the call, which keeps them until the commit."""

    def __init__(self, task: Any) -> None:
        super().__init__(f"secondpass.task.{task.name}")
        self._task = task
        # For levels: what is not wanted there is not kept at all.
        self.parent = logging.getLogger("secondpass.task")

    def handle(self, record: logging.LogRecord) -> None:
        # Now: what the line is about may have changed when the epoch is committed.
        try:
            line = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a line is no reason to lose an event, or to stop
            line = f"{record.msg!r} cannot be formatted: {error_text(error)}"
        record.msg, record.args = storable(line), None
        if record.exc_info:
            record.exc_text = storable(_FORMATTER.formatException(record.exc_info))
        self._task._moment.log(record)
