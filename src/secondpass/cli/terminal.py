"""Progress on a terminal, drawn by rich; imported where there is one."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from secondpass.cli import text
from secondpass.cli.progress import Pace, Progress, Step, done_of

if TYPE_CHECKING:
    from secondpass.engine.loop import Hub

REDRAW_EVERY_S = 0.1


class Told(ProgressColumn):
    """What there is to say about a run; that it is ending is said at once, however long the epoch takes."""

    max_refresh = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.hub: Hub | None = None
        self.told = "starting"

    def render(self, task: Task) -> Text:  # noqa: ARG002 - rich's signature
        # Called by a thread of rich's, also while a task computes.
        if self.hub is not None and self.hub.stopping:
            return Text("ending after this epoch; Ctrl-C again: at once")
        return Text(self.told)


class Terminal(Progress):
    """A bar, or a live line where the end is not known."""

    def __init__(self, name: str) -> None:
        self._pace = Pace()
        self._drawn_at = 0.0
        self._console = Console(stderr=True, highlight=False)
        self._column = Told()
        title = TextColumn("{task.description}", markup=False)
        # Narrow: where `^C` breaks the line, rich cannot take it back.
        self._finite = (title, BarColumn(bar_width=20), self._column)
        self._bar = Bar(
            SpinnerColumn(),
            title,
            self._column,
            console=self._console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, hub: Hub) -> None:
        self._column.hub = hub
        if done_of(hub) is not None:
            self._bar.columns = self._finite
        self._draw(hub)

    def epoch(self, hub: Hub) -> None:
        if time.monotonic() - self._drawn_at >= REDRAW_EVERY_S:
            self._draw(hub)

    def _draw(self, hub: Hub) -> None:
        self._drawn_at = time.monotonic()
        events, letters = hub.summary.events_in, hub.summary.dead_letters
        per_s = self._pace.rate(events)
        parts = [text.plural(events, "event"), text.rate(per_s)]
        if letters:
            parts.append(text.plural(letters, "dead letter"))
        done = done_of(hub)
        if hub.store.progress.paused:
            parts.append("paused")
        elif done is None:
            if not per_s:
                parts.append("waiting for more; Ctrl-C ends it")
        else:
            self._bar.update(self._task, completed=done[0], total=done[1])
            left_s = self._bar.tasks[0].time_remaining
            parts = [text.percent(*done), *parts]
            if left_s is not None and not self._bar.tasks[0].finished:
                parts.append(f"{text.remaining(left_s)} left")
        self._column.told = "  ".join(parts)

    def write(self, line: str) -> None:
        self._console.print(Text.from_ansi(line), soft_wrap=True)

    def result(self, line: str) -> None:
        if sys.__stdout__ is not None and sys.__stdout__.isatty():
            self.write(line)  # the same terminal: above the bar
        else:
            click.echo(line)


class StepBar(Step):
    """A bar that starts anew with each step."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__(names, silent=True)
        self._bar = Bar(console=Console(stderr=True), transient=True, refresh_per_second=4)
        self._task = self._bar.add_task("", total=None)
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def told(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._last:
            self._bar.reset(self._task, description=self._names.get(what, what))
        elif now - self._drawn_at < REDRAW_EVERY_S:
            return
        self._last, self._drawn_at = what, now
        self._bar.update(self._task, completed=done, total=total)
