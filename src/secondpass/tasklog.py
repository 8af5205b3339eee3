"""Logging from a task: lines appear once, when their epoch is committed, however often it was run."""

from __future__ import annotations

import logging
from typing import Any


class TaskLogger(logging.Logger):
    """Hands its records to the moment of the call, which keeps them until the commit."""

    def __init__(self, task: Any) -> None:
        super().__init__(f"secondpass.task.{task.name}")
        self._task = task
        # For levels: what is not wanted there is not kept at all.
        self.parent = logging.getLogger("secondpass.task")

    def handle(self, record: logging.LogRecord) -> None:
        try:
            # Now: what the line is about may have changed when the epoch is committed.
            record.msg, record.args = record.getMessage(), None
        except Exception:  # noqa: BLE001, S110 - as with any logger, a wrong format is told where it is written
            pass
        self._task._moment.log(record)
