"""Timetables: clock times at which a task starts and stops.

The rule, for every case: what counts is the last switch that the clock has passed. It is done once. Switches that were
missed while the app was down, or that a clock jumped over, are made up for by the last of them alone; a clock that is
set back repeats none. Where a start and a stop come at once, the stop counts. A time that a change of the clocks skips is the moment of the change; of one that it doubles the
first counts (cronsim, as Debian's cron does).
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from secondpass.errors import DefinitionError
from secondpass.task import Task

if TYPE_CHECKING:
    from cronsim import CronSim


class Switch(NamedTuple):
    """A moment at which a timetable starts or stops its task."""

    at: float
    """Seconds since 1970, by the wall clock."""
    kind: Literal["start", "stop"]


class Timetable:
    """Start and stop a task by the clock: `App(timetables=[...])`.

    >>> rush = Timetable("rush hour", "Congestion", start="0 7 * * *", stop="0 9 * * *", tz="Asia/Shanghai")
    >>> rush.before(1_790_812_800.0)  # 2026-10-01 08:00 in Shanghai
    Switch(at=1790809200.0, kind='start')
    >>> rush.after(1_790_812_800.0)
    Switch(at=1790816400.0, kind='stop')

    `task` is a task of the chain or its name; `start` and `stop` are cron lines (minute, hour, day, month, weekday), `tz` is
    the time zone that they are in. Raises `DefinitionError` for what is none.
    """

    def __init__(self, name: str, task: Task[Any] | str, *, start: str, stop: str, tz: str = "UTC") -> None:
        self.name = name
        self.task = task if isinstance(task, str) else task.name
        self.start = start
        self.stop = stop
        self.tz = tz
        import zoneinfo  # only apps with timetables need it

        try:
            self._zone = zoneinfo.ZoneInfo(tz)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise DefinitionError(
                f"Timetable({name!r}, tz={tz!r}): no such time zone here; write one like 'Europe/Berlin' (where the "
                f"system has none at all: pip install tzdata)"
            ) from None
        for line in (start, stop):
            self._next(line, 0.0)

    def after(self, at: float) -> Switch:
        """The first switch after a moment; where both come at once, the stop."""
        start, stop = self._next(self.start, at), self._next(self.stop, at)
        return Switch(start, "start") if start < stop else Switch(stop, "stop")

    def before(self, at: float) -> Switch:
        """The last switch at or before a moment; where both come at once, the stop."""
        start, stop = self._last(self.start, at), self._last(self.stop, at)
        return Switch(start, "start") if start > stop else Switch(stop, "stop")

    def between(self, after: float, upto: float) -> list[Switch]:
        """The switches after a moment, up to another."""
        found: list[Switch] = []
        while (switch := self.after(after)).at <= upto and len(found) < _MANY:
            found.append(switch)
            after = switch.at
        return found

    def _last(self, line: str, at: float) -> float:
        """The last moment of a cron line that is not after another; found forwards, where clocks change it differs."""
        guess = at
        while True:
            guess = self._next(line, guess, reverse=True) - _CHANGE_S
            found = self._next(line, guess)
            if found <= at:
                break
        while (later := self._next(line, found)) <= at:
            found = later
        return found

    def _next(self, line: str, at: float, *, reverse: bool = False) -> float:
        from cronsim import CronSimError

        # Backwards, the moment itself counts; cron lines have whole minutes.
        moment = datetime.datetime.fromtimestamp(at // 1 + 1 if reverse else at // 1, self._zone)
        try:
            moments = (found.timestamp() for found in self._lines(line, moment, reverse=reverse))
            # In a doubled hour cronsim begins again with the first of the two.
            return next(found for found in moments if reverse or found > at)
        except (CronSimError, StopIteration) as error:
            raise DefinitionError(
                f"Timetable({self.name!r}): {line!r} is no cron line that ever comes ({error}); write minute, hour, day, "
                f"month and weekday, like '0 7 * * MON-FRI'"
            ) from None

    @staticmethod
    def _lines(line: str, moment: datetime.datetime, *, reverse: bool) -> CronSim:
        from cronsim import CronSim, CronSimError  # only apps with timetables need it

        if len(line.split()) != 5:
            raise CronSimError("Wrong number of fields")
        return CronSim(line, moment, reverse=reverse)

    def __repr__(self) -> str:
        return f"Timetable({self.name!r}, {self.task!r}, start={self.start!r}, stop={self.stop!r}, tz={self.tz!r})"


_MANY = 10_000
_CHANGE_S = 3 * 3600.0  # more than clocks are ever changed by
