"""One call of a task: kept whole or undone whole."""

from __future__ import annotations

import errno
import select
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from secondpass.binding import attach, attach_state, bind
from secondpass.calls import call_of, expand
from secondpass.errors import TaskFault
from secondpass.record import error_text
from secondpass.state import MISSING, CallValues, Moment, Table
from secondpass.task import Task, accepts
from secondpass.timers import Timing

T = TypeVar("T")

CAUGHT = BaseException
"""What a task may raise without stopping anything but its own call: all but `KeyboardInterrupt`.

A panic of a library written in Rust is no `Exception`, and must not stop the app at every start.
"""


def _refuse_to_go_on_unheard(error: OSError) -> None:
    """Raise `TaskFault` where nobody hears any more what is printed: no event is to blame, and all that print would fail alike."""
    for name, stream in (("output", sys.stdout), ("error", sys.stderr)):
        try:
            waiting = select.poll()
            waiting.register(stream.fileno(), 0)  # a reader that has gone is always reported
            gone = waiting.poll(0)
        except (AttributeError, OSError, ValueError):
            continue  # it is no file, or was closed here
        if gone:
            raise TaskFault(
                f"{error_text(error)}: nobody reads standard {name} any more, and the task prints there"
            ) from error


class Step:
    """A task bound to resting cells, whose every call is kept whole or undone whole."""

    def __init__(self, task: Task[Any], cells: dict[str, Any], values: dict[str, bytes]) -> None:
        shape = type(task)._shape
        self.moment = Moment()
        self.task = bind(task, self.moment)
        self.types = accepts(task)
        self.on_error = task._options.on_error
        self.tables: dict[str, Table[Any, Any]] = {
            n: Table[Any, Any](s, cells.setdefault(n, {}), self.moment, s.ttl_of(task))
            for n, s in shape.tables.items()
        }
        self.values = CallValues(shape.values, values)
        self.timers = shape.timers
        self.timing = Timing()
        attach(self.task, _values=self.values)
        attach_state(self.task, self.tables, self.moment, self.timing)
        self._parts: list[Table[Any, Any] | CallValues] = [*self.tables.values(), self.values]
        self._call = call_of(self.task)

    def takes(self, event: Any) -> bool:
        return not self.types or isinstance(event, self.types)

    def call(
        self,
        event: Any,
        position: int,
        now: float,
        path: tuple[int, ...],
        allowed: frozenset[Any] | None = None,
    ) -> tuple[list[Any], bool]:
        """The events put out, and whether they branch; raises and changes nothing when the call fails.

        `allowed` are the only keys that the call may touch; None allows all of the task's state.
        """
        return self._kept_whole(
            lambda: expand(self._call(event), event, self.task.name), position, now, path, allowed
        )

    def fire(
        self, name: str, key: Any, position: int, now: float, path: tuple[int, ...]
    ) -> tuple[list[Any], bool]:
        """As `call`, of a timer's method."""
        call = self.timers[name].call
        self.timing.firing = True
        try:
            return self._kept_whole(
                lambda: expand(call(self.task, key), MISSING, self.task.name, name), position, now, path, None
            )
        finally:
            self.timing.firing = False

    def upgrade(self, old: dict[str, Any], position: int, now: float) -> None:
        """Let the task bring over the state of the one that it stands in for."""
        found: Any = self.task
        self._kept_whole(lambda: found.upgrade(old), position, now, (), None)

    def _kept_whole(
        self,
        call: Callable[[], T],
        position: int,
        now: float,
        path: tuple[int, ...],
        allowed: frozenset[Any] | None,
    ) -> T:
        moment = self.moment
        moment.position, moment.now, moment.path = position, now, path
        moment.begin()
        if allowed is not None:
            self._allow(allowed)
        try:
            found = call()
            # All are looked at before any is kept: a call is kept whole.
            for table in self._parts:
                table.check()
            for table in self._parts:
                table.keep()
        except BaseException as error:
            for table in self._parts:
                table.undo()
            moment.begin()
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
                _refuse_to_go_on_unheard(error)
            raise
        finally:
            if allowed is not None:
                self._allow(None)
        return found

    def _allow(self, keys: frozenset[Any] | None) -> None:
        for table in self.tables.values():
            table.allowed = keys
        self.values.barred = keys is not None
