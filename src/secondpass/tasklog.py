"""Logging from a task: lines appear once, when their epoch is committed, however often it was run."""

from __future__ import annotations

import logging
from typing import Any


class TaskLogger(logging.Logger):
    """Hands its records to the moment of the call, which keeps them until the commit."""

    def __init__(self, task: str, moment: Any) -> None:
        super().__init__(f"secondpass.task.{task}")
        self._moment = moment
        # For levels: what is not wanted there is not kept at all.
        self.parent = logging.getLogger("secondpass.task")

    def handle(self, record: logging.LogRecord) -> None:
        self._moment.log(record)
