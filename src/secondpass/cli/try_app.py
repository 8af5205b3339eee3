"""`secondpass try`: an app in memory, its outputs on the terminal; no store, none of its sinks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from secondpass.app import MAIN
from secondpass.cli import text
from secondpass.cli.apps import load_app
from secondpass.cli.exits import DONE
from secondpass.cli.group import HELP
from secondpass.cli.letters import letter_of
from secondpass.cli.options import (
    app_argument,
    debug_option,
    json_option,
    limit_option,
    quiet_option,
    workers_option,
)
from secondpass.cli.progress import Progress, logging_to
from secondpass.cli.run_report import (
    code_of,
    counter_lines,
    function_table,
    headline,
    place_table,
    report_of,
    say_hints,
    task_table,
)
from secondpass.cli.shapes import Letter, RunReport, TryLine, line
from secondpass.cli.watching import progress_for
from secondpass.errors import SettingsError

if TYPE_CHECKING:
    from secondpass.connectors.contract import Delivery
    from secondpass.engine.loop import Hub

SHOWN_ON_TERMINAL = 20
"""Outputs of each stream that a terminal shows; a pipe or a file gets all of them."""
LETTERS_SHOWN = 3


class Shown:
    """A sink that prints: the chosen stream as JSON lines on standard output, others named, beside it."""

    format: Literal["json", "events"] = "json"
    at_least_once = True

    def __init__(
        self, stream: str, chosen: str, progress: Progress, limit: int | None, *, as_json: bool
    ) -> None:
        self._stream = stream
        self._chosen = stream == chosen
        self._progress = progress
        self._left = limit
        self._as_json = as_json
        self._number = 0

    def open(self, state: dict[str, Any] | None, *, accept: bool = False) -> None:
        """There is nothing to prepare."""

    def deliver(self, delivery: Delivery, events: list[Any] | None) -> None:  # noqa: ARG002 - the body is JSON
        self._number += delivery.count
        if self._left is None and self._chosen and not self._as_json:
            sys.stdout.buffer.write(delivery.body)
            sys.stdout.buffer.flush()
            return
        for found in delivery.body.splitlines()[: self._left]:
            self._print(found)
        if self._left is not None:
            self._left = max(0, self._left - delivery.count)

    def _print(self, found: bytes) -> None:
        if self._as_json:
            self._progress.result(line(TryLine(stream=self._stream, event=msgspec.Raw(found))))
        elif self._chosen:
            self._progress.result(found.decode())
        else:
            self._progress.write(click.style(f"{self._stream}:", fg="cyan") + f" {found.decode()}")

    def recovered(self) -> None:
        """A store in memory has nothing to recover."""

    def sync(self) -> dict[str, Any]:
        return {"number": self._number}

    def close(self) -> None:
        """Standard output is not ours to close."""


class LetterWatch:
    """Shows the first dead letters as they come: they are why one tries an app."""

    def __init__(self, progress: Progress, *, as_json: bool) -> None:
        self._progress = progress
        self._as_json = as_json
        self._seen = 0

    def look(self, hub: Hub) -> None:
        while self._seen < hub.store.progress.letters:
            if self._as_json or self._seen < LETTERS_SHOWN:
                found = hub.store.letter(self._seen)
                if found is not None:
                    self._show(letter_of(self._seen, *found))
            self._seen += 1

    def _show(self, letter: Letter) -> None:
        if self._as_json:
            self._progress.result(line(TryLine(dead_letter=letter)))
            return
        where = f"task {letter.task}" if letter.task else "the input"
        event = line(letter.event) if letter.event is not None else letter.raw
        head = click.style("set aside:", fg="yellow", bold=True)
        error = text.one_line(letter.error)
        place = f"at {where}, position {letter.position}, {text.one_line(event)}"
        self._progress.write(f"{head} {error}\n  {place}")
        frames = letter.traceback.splitlines()[1:-1]  # the error itself is said above
        for frame in frames:
            self._progress.write(f"  {text.one_line(frame)}")


@click.command("try", context_settings=HELP)
@app_argument
@limit_option("Take so many events of the input.")
@click.option(
    "--stream", metavar="NAME", default=MAIN, help="The stream that goes to standard output.  [default: main]"
)
@click.option(
    "--show",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Print so many outputs of each stream.  [default: {SHOWN_ON_TERMINAL} on a terminal, else all]",
)
@workers_option
@quiet_option
@json_option
@debug_option
def try_app(
    app: str,
    limit: int | None,
    stream: str,
    show: int | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run an app in memory and print what it puts out.

    No store is made and the app's sinks are left alone. What the chain passes goes to standard output as
    JSON lines; named outputs, set-aside events and the summary to standard error.
    """
    loaded = load_app(app)
    if stream not in loaded.streams:
        raise SettingsError(
            f"--stream {stream}: the app has no such stream; it has {', '.join(loaded.streams)}"
        )

    from secondpass.engine.run import run_app

    real_sinks = loaded.sinks
    if show is None and sys.stdout.isatty() and not as_json:
        show = SHOWN_ON_TERMINAL
    progress = progress_for(loaded.name, quiet=quiet or as_json)
    letters = LetterWatch(progress, as_json=as_json)
    loaded.sinks = {name: Shown(name, stream, progress, show, as_json=as_json) for name in loaded.streams}

    def looked(hub: Hub) -> None:
        if not quiet:
            letters.look(hub)
        progress.epoch(hub)

    with progress, logging_to(progress, quiet=quiet):
        summary = run_app(
            loaded, store=None, limit=limit, workers=workers, on_start=progress.started, on_epoch=looked
        )
    report = report_of(summary, loaded, real_sinks)
    if as_json:
        text.say(line(TryLine(summary=report)))
    else:
        if not quiet:
            text.say(_summary_lines(report, show, app), err=True)
        say_hints(report)
    return code_of(summary) or DONE


def _summary_lines(report: RunReport, show: int | None, spec: str) -> list[str]:
    lines = ["", headline(report), ""]
    if report.tasks:
        lines += [*task_table(report), *counter_lines(report), ""]
        if report.workers:
            lines += [*place_table(report.tasks, report.workers, report.seconds), ""]
    if report.functions:
        lines += [*function_table(report.functions), ""]
    for stream in report.streams:
        hidden = 0 if show is None else max(0, stream.outputs - show)
        told = f" ({text.count(hidden)} not shown: --show {stream.outputs})" if hidden else ""
        lines.append(f"{stream.name}: {text.plural(stream.outputs, 'output')}{told}")
    if report.dead_letters:
        told = f" (the first {LETTERS_SHOWN} shown)" if report.dead_letters > LETTERS_SHOWN else ""
        lines.append(f"{text.plural(report.dead_letters, 'event')} set aside{told}")
    lines.append(f"nothing was stored; to keep state and outputs: secondpass run {spec}")
    return lines
