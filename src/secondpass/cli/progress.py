"""How far a run is, on standard error: a bar or a live line on a terminal, log lines elsewhere.

    terminal, finite input      a bar with rate and remaining time
    terminal, followed input    one live line
    no terminal                 a log line every few seconds
    --quiet                     nothing

Invariant: looking on costs the run nothing that could be measured: the hub calls after each epoch, and
most calls return at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import click

from secondpass.cli import text

if TYPE_CHECKING:
    from secondpass.engine.loop import Hub

LINE_EVERY_S = 5.0
RATE_OVER_S = 5.0


class Progress:
    """Says nothing; what `--quiet` shows. The others build on it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, hub: Hub) -> None:
        """The hub is about to take its first epoch."""

    def epoch(self, hub: Hub) -> None:
        """An epoch was committed, or there was nothing to take."""

    def write(self, line: str) -> None:
        """A line between others (a task's log, a dead letter)."""
        click.echo(line, err=True)

    def result(self, line: str) -> None:
        """A line of results, on standard output."""
        click.echo(line)


class Pace:
    """Events per second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def rate(self, events: int) -> float:
        now = time.monotonic()
        self._seen.append((now, events))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        then, before = self._seen[0]
        elapsed = now - then
        return (events - before) / elapsed if elapsed > 0 else 0.0


def done_of(hub: Hub) -> tuple[int, int] | None:
    """How much of the work is done, as (done, total); None when nobody knows."""
    if hub.limit is not None:
        return min(hub.summary.events_in, hub.limit), hub.limit
    found = hub.intake.progress()
    return found if found is not None and found[1] > 0 else None


class LogLines(Progress):
    """A line every few seconds, for logs."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._began_at = self._said_at = time.monotonic()

    def epoch(self, hub: Hub) -> None:
        now = time.monotonic()
        if now - self._said_at < LINE_EVERY_S:
            return
        self._said_at = now
        events = hub.summary.events_in
        per_s = self._pace.rate(events)
        parts = [f"{text.duration(now - self._began_at)}: {text.plural(events, 'event')}", text.rate(per_s)]
        done = done_of(hub)
        if done is not None:
            parts.append(text.percent(*done))
        if hub.summary.dead_letters:
            parts.append(text.plural(hub.summary.dead_letters, "dead letter"))
        if hub.store.progress.paused:
            parts.append("paused")
        self.write(", ".join(parts))


class Pauses:
    """Says when an app is paused, and how it goes on: it would wait in silence otherwise."""

    def __init__(self, progress: Progress, resume: str) -> None:
        self._progress = progress
        self._resume = resume
        self._paused = False

    def look(self, hub: Hub) -> None:
        """Say it where that has changed."""
        progress = hub.store.progress
        if progress.paused != self._paused:
            self._paused = progress.paused
            self._progress.write(
                f"paused: it takes no events; to go on: {self._resume}" if progress.paused else "resumed"
            )


class _Writer(Protocol):
    def write(self, line: str) -> None: ...


class LogHandler(logging.Handler):
    """Puts what tasks and connectors log between the lines of the progress."""

    def __init__(self, progress: _Writer) -> None:
        super().__init__()
        self._progress = progress
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(short)s: %(message)s", "%H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        record.short = record.name.removeprefix("secondpass.")
        return super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.write(text.printable(self.format(record)))


class logging_to:  # noqa: N801  # reads as a phrase: `with logging_to(progress):`
    """Shows the log of secondpass and its tasks while a command runs, unless the app set up logging itself."""

    def __init__(self, progress: _Writer, *, quiet: bool) -> None:
        self._handler = LogHandler(progress)
        self._level = logging.WARNING if quiet else logging.INFO
        self._logger = logging.getLogger("secondpass")
        self._before: Any = None

    def __enter__(self) -> None:
        if logging.getLogger().handlers or self._logger.handlers:
            return
        self._before = self._logger.level
        self._logger.setLevel(self._level)
        self._logger.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self._logger.removeHandler(self._handler)
            self._logger.setLevel(self._before)


class Step:
    """Several steps of known length, one after the other: a line for each; what `--quiet` shows is none."""

    def __init__(self, names: dict[str, str], *, silent: bool) -> None:
        self._names = names
        self._silent = silent
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def told(self, what: str, done: int, total: int) -> None:  # noqa: ARG002 - a line tells no amount
        """So much of a step is done."""
        if what != self._last and not self._silent:
            click.echo(f"{self._names.get(what, what)} ...", err=True)
        self._last = what
