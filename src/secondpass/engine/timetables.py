"""Timetables of a running app: the switches that the clock has passed become commands, each once."""

from __future__ import annotations

import datetime
import time

from secondpass.engine.commands import Answer, Commands
from secondpass.store.spool import Command
from secondpass.timetable import Switch, Timetable


class Timetables:
    """The timetables of one run."""

    def __init__(self, timetables: tuple[Timetable, ...], commands: Commands) -> None:
        self._timetables = timetables
        self._commands = commands
        self._next = 0.0 if timetables else float("inf")
        self._given: dict[str, Answer] = {}
        self._looked = 0.0

    def look(self, done: dict[str, float]) -> None:
        """Give a command for every switch that is due; `done` are the last that were done, by timetable."""
        now = time.time()
        if self._looked <= now < self._next:
            return  # also a clock that was set back is looked at
        self._looked, upcoming = now, [float("inf")]
        for table in self._timetables:
            answer = self._given.get(table.name)
            if answer is not None and not answer.done.is_set():
                upcoming.append(now)
                continue
            due, last = table.before(now), done.get(table.name)
            if last is None or due.at > last:
                self._given[table.name] = self._commands.give(self._command(table, due, last))
                upcoming.append(now)
            else:
                upcoming.append(max(table.after(now).at, now))
        self._next = min(upcoming)

    @staticmethod
    def _command(table: Timetable, due: Switch, last: float | None) -> Command:
        missed = [] if last is None else table.between(last, due.at)[:-1]
        reason = f"{table.start if due.kind == 'start' else table.stop} {table.tz}, due at {shown(due.at)}"
        if missed:
            reason += f"; missed before it: {', '.join(f'{s.kind} at {shown(s.at)}' for s in missed[:3])}"
            reason += f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        return Command(
            due.kind, at=time.time(), reason=reason, by=f"timetable {table.name}", task=table.task,
            timetable=table.name, due=due.at,
        )  # fmt: skip


def shown(at: float) -> str:
    """A moment of the wall clock, for people."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
