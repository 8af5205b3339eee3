"""`secondpass run`: an app with its store, from where it stopped."""

from __future__ import annotations

from pathlib import Path

import click

from secondpass.app import App
from secondpass.cli import text
from secondpass.cli.apps import load_app, shown, writes_to_stdout
from secondpass.cli.commanding import Meant
from secondpass.cli.group import HELP
from secondpass.cli.options import (
    app_argument,
    confirmed,
    debug_option,
    json_option,
    limit_option,
    quiet_option,
    workers_option,
)
from secondpass.cli.progress import Pauses, logging_to
from secondpass.cli.run_report import code_of, report_of, say_hints, summary_lines
from secondpass.cli.shapes import document
from secondpass.cli.watching import progress_for
from secondpass.errors import TaskFault


def _renames(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text_ in given:
        old, equals, new = text_.partition("=")
        if not (old and equals and new):
            raise click.BadParameter(f"{text_!r}: write Old=New, the task's (or Task.table's) names")
        found[old] = new
    return found


@click.command(context_settings=HELP)
@app_argument
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The store's directory.  [default: .secondpass/NAME beside the app]",
)
@click.option("--follow", is_flag=True, help="Wait for more at the end of the input.")
@limit_option("Stop after so many events of this run.")
@click.option("--fresh", is_flag=True, help="Throw the store and its output files away first; asks.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--rename",
    metavar="OLD=NEW",
    multiple=True,
    callback=_renames,
    help="State of the task (or Task.table) OLD goes on as NEW.",
)
@click.option(
    "--drop", metavar="OLD", multiple=True, help="State of the task (or Task.table) OLD is dropped."
)
@click.option(
    "--take-over", is_flag=True, help="End the process that holds the store, if it no longer answers."
)
@click.option(
    "--accept-input", is_flag=True, help="The input was moved or copied; what was read of it is compared."
)
@click.option(
    "--accept-output", is_flag=True, help="An output was changed or removed; go on after what is there."
)
@workers_option
@quiet_option
@json_option
@debug_option
def run(
    app: str,
    store: Path | None,
    follow: bool,
    limit: int | None,
    fresh: bool,
    yes: bool,
    rename: dict[str, str],
    drop: tuple[str, ...],
    take_over: bool,
    accept_input: bool,
    accept_output: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run an app until its input ends; again, it goes on where it stopped.

    Ctrl-C ends it after the current epoch (a fraction of a second), a second Ctrl-C at once; nothing that
    was committed is lost either way. The summary goes to standard output, unless the app writes there.
    """
    loaded = load_app(app)
    directory = store if store is not None else loaded.default_store()
    if fresh and (directory / "store.db").exists():
        confirmed(f"Throw away {_what_is_in(directory, loaded)}?", yes=yes)

    from secondpass.engine.loop import Hub
    from secondpass.engine.run import run_app

    stdout_is_data = writes_to_stdout(loaded)
    progress = progress_for(loaded.name, quiet=quiet or as_json, bar=not stdout_is_data)

    pauses = Pauses(progress, Meant(app, store, directory).line("resume"))

    def started(hub: Hub) -> None:
        if hub.summary.changes and not as_json:
            progress.write("since the last run:")
            for change in hub.summary.changes:
                progress.write(f"  {change}")
        progress.started(hub)
        pauses.look(hub)

    def epoch(hub: Hub) -> None:
        pauses.look(hub)
        progress.epoch(hub)

    try:
        with progress, logging_to(progress, quiet=quiet):
            summary = run_app(
                loaded,
                store=directory,
                follow=follow,
                fresh=fresh,
                limit=limit,
                rename=rename,
                drop=drop,
                take_over=take_over,
                accept_input=accept_input,
                accept_output=accept_output,
                workers=workers,
                on_start=started,
                on_epoch=epoch,
            )
    except TaskFault as fault:
        from secondpass.reference import what_is_next

        said = f"{fault}\n  mend it and run again: what precedes is committed, {what_is_next(fault.details)}"
        raise TaskFault(said, **fault.details) from fault.__cause__
    report = report_of(summary, loaded, loaded.sinks)
    if as_json:
        text.say(document(report), err=stdout_is_data)
    else:
        if not quiet:
            text.say(summary_lines(report, app), err=stdout_is_data)
        say_hints(report)
    return code_of(summary)


def _what_is_in(directory: Path, app: App) -> str:
    """What `--fresh` would throw away, in words."""
    from secondpass.engine.run import _reading  # the same look that throwing away takes

    with _reading(directory) as old:
        inside = "a store that cannot be read" if old is None else text.plural(old.progress.position, "event")
    files = [shown(s.path) for s in app.sinks.values() if str(getattr(s, "path", "-")) != "-"]
    also = f", and its output {', '.join(files)}" if files else ""
    return f"the store {shown(directory)} ({inside}){also}"
