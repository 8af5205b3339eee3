"""Commands to an app: how one is given and what is said of it; and those to the app as a whole.

They are given as any other process does it (`secondpass.control`): a running app does them within moments, the next
run otherwise. The app's code is not imported.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.group import HELP
from secondpass.cli.options import command_options, stored_app_argument
from secondpass.cli.places import file_of, find_store
from secondpass.cli.shapes import GivenCommand, document
from secondpass.errors import ChangeRefused, StoreError

if TYPE_CHECKING:
    from secondpass.control import Control, Done

GONE_WITHIN_S = 60.0
"""So long `stop` waits for a run that has taken the command."""
LOOK_EVERY_S = 0.02
TELL_AFTER_S = 3.0
"""After so long it is said that the app has not answered yet."""


@dataclass(frozen=True)
class Meant:
    """The app that a command is for, as it was named, and its store."""

    app: str | None
    store: Path | None
    directory: Path

    @classmethod
    def of(cls, app: str | None, store: Path | None) -> Meant:
        """Raises `SettingsError` where no store is found, or several are."""
        return cls(app, store, find_store(app, store))

    def line(self, command: str, *words: str) -> str:
        """A command line that means the same app."""
        found = ["secondpass", *command.split(), *([self.app] if self.app else []), *words]
        if self.store is not None:
            found += ["--store", str(self.store)]
        return shlex.join(found)

    @property
    def run(self) -> str:
        """The command line that runs it."""
        found = ["secondpass", "run", self.app or file_of(self.directory)]
        return shlex.join([*found, *(["--store", str(self.store)] if self.store is not None else [])])


def give(
    meant: Meant,
    kind: Any,
    task: str | None,
    act: Callable[[Control], Done],
    *,
    undo: str | None,
    no_wait: bool,
    as_json: bool,
    more: Callable[[dict[str, Any]], str] | None = None,
    then: Callable[[], None] | None = None,
    label: str = "to undo",
) -> None:
    """Give a command and say what became of it; raises `ChangeRefused` where the app says no.

    Of one that is done, `more` tells from its record what else there is to say; `then` comes before it is told.
    """
    from secondpass.control import Control
    from secondpass.store.lock import holder_of

    title = f"{kind} {task}" if task else str({"end": "stop"}.get(kind, kind))
    control = Control(meant.directory)
    with waiting(title, meant):
        done = act(control)
    if then is not None and not done.waits:
        then()
    holder = holder_of(meant.directory) if done.waits and no_wait else None
    outcome = "done" if not done.waits else "left for the next run" if holder is None else "asked for"
    if as_json:
        report = GivenCommand(
            store=str(meant.directory),
            command=kind,
            task=task,
            outcome=outcome,
            position=done.position,
            undo=undo,
        )
        text.say(document(report))
        return
    if outcome == "done":
        said = f"done at position {text.count(done.position or 0)}"
        if more is not None:
            said += more(_record(control, done))
    elif outcome == "asked for":
        pid = (holder or {}).get("pid", "just starting")
        said = f"asked for; the running app does it within moments (process {pid}): {meant.line('history')}"
    else:
        said = f"left for the next run: {meant.run}"
    text.say(f"{title}: {said}")
    if undo is not None:
        text.say(f"{label}: {undo}")


@contextlib.contextmanager
def waiting(title: str, meant: Meant) -> Generator[None]:
    """While the app is waited for: say so when that takes long, and what Ctrl-C and a refusal mean."""
    telling = threading.Timer(
        TELL_AFTER_S, text.hint, [f"waiting for the running app; Ctrl-C leaves the {title} asked for"]
    )
    telling.daemon = True
    telling.start()
    try:
        yield
    except KeyboardInterrupt:
        text.hint(f"the {title} stays asked for; what becomes of it: {meant.line('history')}")
        raise
    except ChangeRefused as error:
        raise ChangeRefused(f"refused: {error}", **error.details) from None
    finally:
        telling.cancel()


def _record(control: Control, done: Done) -> dict[str, Any]:
    """What the history keeps of a command that is done."""
    found = [entry for entry in control.history(50) if entry.get("command") == done.command]
    return found[0] if found else {}


@click.command(context_settings=HELP)
@stored_app_argument
@command_options
def pause(app: str | None, store: Path | None, reason: str, no_wait: bool, as_json: bool) -> None:
    """Let an app take no more events until `resume`.

    What it has taken is done and committed. It stays paused across restarts. Commands are still done while it is, and dead letters sent again.
    """
    meant = Meant.of(app, store)
    give(
        meant,
        "pause",
        None,
        lambda control: control.pause(reason=reason, wait=not no_wait),
        undo=meant.line("resume"),
        no_wait=no_wait,
        as_json=as_json,
        label="to go on",
    )


@click.command(context_settings=HELP)
@stored_app_argument
@command_options
def resume(app: str | None, store: Path | None, reason: str, no_wait: bool, as_json: bool) -> None:
    """Let a paused app go on."""
    meant = Meant.of(app, store)
    give(
        meant,
        "resume",
        None,
        lambda control: control.resume(reason=reason, wait=not no_wait),
        undo=meant.line("pause"),
        no_wait=no_wait,
        as_json=as_json,
    )


@click.command(context_settings=HELP)
@stored_app_argument
@command_options
def stop(app: str | None, store: Path | None, reason: str, no_wait: bool, as_json: bool) -> None:
    """End a run and wait until its process has gone.

    After the epoch at hand, as Ctrl-C does it in the app's own terminal; what was committed stays, and the next run goes on from there. Where
    nothing runs there is nothing to do. To stop one task: `secondpass task stop`.
    """
    from secondpass.store.lock import holder_of

    meant = Meant.of(app, store)
    holder = holder_of(meant.directory)
    if holder is None:
        _say_nothing_runs(meant, as_json=as_json)
        return
    give(
        meant,
        "end",
        None,
        lambda control: control.end(reason=reason, wait=not no_wait),
        undo=meant.run,
        no_wait=no_wait,
        as_json=as_json,
        more=lambda _: f"; process {holder.get('pid')} has gone",
        then=lambda: _wait_until_gone(meant.directory, holder),
        label="to go on",
    )


def _say_nothing_runs(meant: Meant, *, as_json: bool) -> None:
    if as_json:
        report = GivenCommand(
            store=str(meant.directory),
            command="end",
            task=None,
            outcome="nothing runs",
            position=None,
            undo=None,
        )
        text.say(document(report))
    else:
        text.say(f"nothing runs: {shown(meant.directory)} is at rest")


def _wait_until_gone(directory: Path, holder: dict[str, Any]) -> None:
    """Wait until another may take the store, and the process that had it has ended."""
    from secondpass.store.lock import has_gone, holder_of

    until = time.monotonic() + GONE_WITHIN_S
    while True:
        now = holder_of(directory)
        mine = now is not None and now.get("pid") == holder.get("pid")
        if not mine and has_gone(holder):
            return
        if time.monotonic() > until:
            break
        time.sleep(LOOK_EVERY_S)
    if mine:
        raise StoreError(
            f"process {holder.get('pid')} has taken the command and still has the store after {GONE_WITHIN_S:g} s; if it "
            f"no longer answers, `secondpass run APP --take-over` ends it"
        )
    raise StoreError(
        f"the run has ended, and its process {holder.get('pid')} goes on with something else after {GONE_WITHIN_S:g} s"
    )
