"""A task that registers and unregisters another from the worker that it runs on."""

from __future__ import annotations

from live_app import Seen

from secondpass import Task
from secondpass.control import control


class Asking(Task[Seen]):
    """Every `each` events it stops the task `target`, or starts it again."""

    store: str
    target: str
    each: int

    def handle(self, event: Seen) -> Seen:
        if event.n % self.each == 0:
            ask = control(self.store)
            (ask.start if event.n // self.each % 2 == 0 else ask.stop)(self.target, wait=False)
        return event
