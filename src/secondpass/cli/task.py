"""`secondpass task`: the tasks of an app, running or at rest, and commands to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.commanding import Meant, give
from secondpass.cli.group import HELP
from secondpass.cli.options import (
    command_options,
    confirmed,
    debug_option,
    json_option,
    store_option,
    stored_app_argument,
)
from secondpass.cli.places import find_store, is_app
from secondpass.cli.settings import settings_in, with_quotes, written
from secondpass.cli.shapes import (
    ChainTask,
    document,
    line,
)
from secondpass.cli.standing import expect, exported, listed
from secondpass.errors import ChangeRefused, OutputError

if TYPE_CHECKING:
    from secondpass.control import Control, Done


@click.group(context_settings=HELP)
def task() -> None:
    """List, start, stop, set and replace tasks while the app runs.

    A running app does it within moments, between two events; otherwise the next run does, before anything else.
    """


# ---------------------------------------------------------------- what there is


@task.command(
    "list", context_settings=HELP, short_help="List the tasks, and what tasks that left have put aside."
)
@stored_app_argument
@store_option
@json_option
@debug_option
def list_(app: str | None, store: Path | None, as_json: bool) -> None:
    """List the tasks of the chain, and what tasks that left it have put aside.

    Settings that were changed by a command show what the app's file has too.
    """
    directory = find_store(app, store)
    found = listed(directory)
    if as_json:
        text.say(document(found))
        return
    rows = [
        [
            t.place,
            t.name,
            "stopped" if t.stopped else "started",
            text.size(t.size_bytes) if t.size_bytes else text.DASH,
            ", ".join(_settings(t)),
        ]
        for t in found.tasks
    ]
    text.say(text.table(["place", "task", "state", "remembers", "settings"], rows, right="rllrl"))
    if found.aside:
        rows = [[a.name, ", ".join(a.state), text.size(a.size_bytes)] for a in found.aside]
        text.say(["", *text.table(["put aside by", "what", "size"], rows, right="llr")])
    gone = [name for name in found.removed if name not in [a.name for a in found.aside]]
    if gone:
        text.say(["", f"taken out by a command, without anything to remember: {', '.join(gone)}"])
    if found.paused:
        text.say(["", f"paused; to go on: {Meant(app, store, directory).line('resume')}"])


def _settings(found: ChainTask) -> list[str]:
    told = ["added while it ran"] if found.added else []
    for name, value in found.settings.items():
        there = f" (file: {line(found.file_settings[name])})" if name in found.file_settings else ""
        told.append(f"{name}={line(value)}{there}")
    return told


@task.command("export", context_settings=HELP)
@click.argument("words", metavar="[APP] NAME", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there."
)
@store_option
@json_option
@debug_option
def export(words: tuple[str, ...], out: Path | None, store: Path | None, as_json: bool) -> None:  # noqa: ARG001 - it is JSON anyway
    """Print what a task remembers as JSON, as it is at this moment.

    Also of a task that has left the chain. The app runs on meanwhile.
    """
    app, (name,) = _words(words, 1, 1)
    directory = find_store(app, store)
    if out is not None and not out.parent.is_dir():
        raise OutputError(f"{out} cannot be written: there is no folder {out.parent}")
    found = document(exported(directory, name))
    if out is None:
        text.say(found)
        return
    try:
        out.write_text(found + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    text.say(f"{name}: {text.size(out.stat().st_size)} in {shown(out)}")


# ---------------------------------------------------------------- commands


@task.command("start", context_settings=HELP)
@click.argument("words", metavar="[APP] NAME", nargs=-1, required=True)
@click.option("--fresh", is_flag=True, help="Without what it remembers: that is dropped.")
@command_options
def start(
    words: tuple[str, ...], fresh: bool, store: Path | None, reason: str, no_wait: bool, as_json: bool
) -> None:
    """Let a stopped task handle events again, with what it remembered."""
    app, (name,) = _words(words, 1, 1)
    meant = Meant.of(app, store)
    expect(meant.directory, name)
    give(
        meant,
        "start",
        name,
        lambda control: control.start(name, fresh=fresh, reason=reason, wait=not no_wait),
        undo=meant.line("task stop", name),
        no_wait=no_wait,
        as_json=as_json,
    )


@task.command("stop", context_settings=HELP)
@click.argument("words", metavar="[APP] NAME", nargs=-1, required=True)
@command_options
def stop(words: tuple[str, ...], store: Path | None, reason: str, no_wait: bool, as_json: bool) -> None:
    """Let events pass a task by; it keeps what it remembers."""
    app, (name,) = _words(words, 1, 1)
    meant = Meant.of(app, store)
    expect(meant.directory, name)
    give(
        meant,
        "stop",
        name,
        lambda control: control.stop(name, reason=reason, wait=not no_wait),
        undo=meant.line("task start", name),
        no_wait=no_wait,
        as_json=as_json,
    )


@task.command("set", context_settings=HELP)
@click.argument("words", metavar="[APP] NAME.SETTING=VALUE...", nargs=-1, required=True)
@command_options
def set_(words: tuple[str, ...], store: Path | None, reason: str, no_wait: bool, as_json: bool) -> None:
    """Give a task other settings, from one event to the next.

    VALUE is JSON (600, true, [3, 4], "17"); what is no JSON is taken as text. NAME may also stand before its settings: NAME
    SETTING=VALUE... All of them hold from the same event on.
    """
    app, name, settings = settings_in(words)
    meant = Meant.of(app, store)
    described = expect(meant.directory, name, settings)
    was: dict[str, Any] = {} if described is None else described["settings"]
    undo = [written(name, n, was[n]) for n in settings if n in was and was[n] != settings[n]]

    def act(control: Control) -> Done:
        try:
            return control.set(name, settings, reason=reason, wait=not no_wait)
        except ChangeRefused as refused:
            raise ChangeRefused(with_quotes(str(refused), name, settings), **refused.details) from None

    def more(record: dict[str, Any]) -> str:
        changed: dict[str, Any] = record.get("was", {})
        told = ", ".join(f"{n} {line(v)} -> {line(record['to']['settings'][n])}" for n, v in changed.items())
        return f"; {told or 'it had these settings already'}"

    give(
        meant,
        "set",
        name,
        act,
        undo=meant.line("task set", *undo) if undo else None,
        no_wait=no_wait,
        as_json=as_json,
        more=more,
    )


@task.command("add", context_settings=HELP)
@click.argument("words", metavar="[APP] NAME", nargs=-1, required=True)
@click.option("--before", metavar="OTHER", help="The task that it comes before.  [default: at the end]")
@click.option("--stopped", is_flag=True, help="It lets events pass until it is started.")
@command_options
def add(
    words: tuple[str, ...],
    before: str | None,
    stopped: bool,
    store: Path | None,
    reason: str,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Put a task of the app's file into the chain.

    The file is read again. What the task put aside when it was there before comes back.
    """
    app, (name,) = _words(words, 1, 1)
    meant = Meant.of(app, store)
    _say_that_the_next_run_reads_the_file(meant)
    give(
        meant,
        "add",
        name,
        lambda control: control.add(name, before=before, stopped=stopped, reason=reason, wait=not no_wait),
        undo=meant.line("task remove", name),
        no_wait=no_wait,
        as_json=as_json,
    )


@task.command("remove", context_settings=HELP, short_help="Take a task out; what it remembers is put aside.")
@click.argument("words", metavar="[APP] NAME", nargs=-1, required=True)
@command_options
def remove(words: tuple[str, ...], store: Path | None, reason: str, no_wait: bool, as_json: bool) -> None:
    """Take a task out of the chain; what it remembers is put aside for its return."""
    app, (name,) = _words(words, 1, 1)
    meant = Meant.of(app, store)
    expect(meant.directory, name)
    tasks = listed(meant.directory).tasks
    at = next((i for i, t in enumerate(tasks) if t.name == name), len(tasks))
    as_it_was = ["--stopped" for t in tasks[at : at + 1] if t.stopped]
    as_it_was += [word for t in tasks[at + 1 : at + 2] for word in ("--before", t.name)]
    give(
        meant,
        "remove",
        name,
        lambda control: control.remove(name, reason=reason, wait=not no_wait),
        undo=meant.line("task add", name, *as_it_was),
        no_wait=no_wait,
        as_json=as_json,
    )


@task.command("replace", context_settings=HELP)
@click.argument("words", metavar="[APP] NAME", nargs=-1, required=True)
@click.option(
    "--trial",
    type=click.IntRange(min=0),
    metavar="N",
    help="Try it on so many of the last events first; 0: on none.  [default: as many as are at hand, at most 100]",
)
@command_options
def replace(
    words: tuple[str, ...],
    trial: int | None,
    store: Path | None,
    reason: str,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Let the code that the app's file has now stand in for a task.

    It is tried first, beside the stream; if that fails the old code runs on. What the task remembers stays: where it is
    declared in another way, `upgrade(self, old)` in the new code says what becomes of it.
    """
    app, (name,) = _words(words, 1, 1)
    meant = Meant.of(app, store)
    expect(meant.directory, name)
    _say_that_the_next_run_reads_the_file(meant)

    def more(record: dict[str, Any]) -> str:
        return f"; tried on {text.plural(record['tried'], 'event')}" if "tried" in record else ""

    give(
        meant,
        "replace",
        name,
        lambda control: control.replace(name, trial=trial, reason=reason, wait=not no_wait),
        undo=None,
        no_wait=no_wait,
        as_json=as_json,
        more=more,
    )
    if not as_json:
        text.say(f"to undo: put the old code back into the file, then {meant.line('task replace', name)}")


@task.command(
    "drop", context_settings=HELP, short_help="Give up what a task remembers, or one table or value of it."
)
@click.argument("words", metavar="[APP] NAME [STATE]", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@command_options
def drop(
    words: tuple[str, ...], yes: bool, store: Path | None, reason: str, no_wait: bool, as_json: bool
) -> None:
    """Give up what a task remembers, or only one table or value of it; for good.

    Also what a task that has left the chain has put aside.
    """
    app, (name, *rest) = _words(words, 1, 2)
    meant = Meant.of(app, store)
    state = rest[0] if rest else None
    expect(meant.directory, name, aside=True, state=state)
    full = f"{name}.{state}" if state else name
    export_line = meant.line("task export", name)
    confirmed(
        f"Give up {full if state else 'all that ' + name + ' remembers'}, for good? `{export_line}` keeps a copy.",
        yes=yes,
    )
    give(
        meant,
        "drop",
        full,
        lambda control: control.drop(name, state, reason=reason, wait=not no_wait),
        undo=None,
        no_wait=no_wait,
        as_json=as_json,
    )


# ---------------------------------------------------------------- words


def _words(words: tuple[str, ...], least: int, most: int) -> tuple[str | None, list[str]]:
    """APP, where one is given, and the names after it."""
    found = list(words)
    app = None
    if len(found) > most or (len(found) > least and is_app(found[0])):
        app = found.pop(0)
    if len(found) > most:
        raise click.UsageError(f"unexpected argument {found[most]!r}")
    return app, found


def _say_that_the_next_run_reads_the_file(meant: Meant) -> None:
    from secondpass.store.lock import holder_of

    if holder_of(meant.directory) is None:
        text.hint("nothing runs here; the next run takes the app's file as it is, without being asked")


__all__ = ["task"]
