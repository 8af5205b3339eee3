"""`secondpass outputs`: what an app put out, from its store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from secondpass.app import MAIN
from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.group import HELP
from secondpass.cli.options import debug_option, json_option, limit_option, store_option, stored_app_argument
from secondpass.cli.places import find_store
from secondpass.cli.shapes import OutputLine, line

LOOK_EVERY_S = 0.1
READ_BYTES = 4_000_000
"""Read at once: while somebody reads page by page, the store must not be held at one moment."""


@click.command(context_settings=HELP)
@stored_app_argument
@store_option
@click.option("--stream", metavar="NAME", default=MAIN, help="The stream to print.  [default: main]")
@click.option(
    "--after",
    type=click.IntRange(min=-1),
    metavar="NUMBER",
    default=-1,
    help="Begin after the output of that number; the first has number 0.",
)
@limit_option("Print at most so many.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more; Ctrl-C ends it.")
@json_option
@debug_option
def outputs(
    app: str | None,
    store: Path | None,
    stream: str,
    after: int,
    limit: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Print outputs from an app's store.

    One event is one line of JSON; with --json its stream, number and position stand beside it. The store
    keeps all outputs that have no sink, and the last ones (16 MB of each stream) of those that have.
    """
    directory = find_store(app, store)
    left = limit
    for found in _lines(directory, stream, after + 1, follow=follow):
        text.say(line(found) if as_json else line(found.event))
        if left is not None:
            left -= 1
            if not left:
                return


def _lines(directory: Path, stream: str, number: int, *, follow: bool) -> Iterator[OutputLine]:
    """Outputs from `number` on; the store is held only while a piece of them is read."""
    from secondpass.cli.reading import plain, snapshot
    from secondpass.engine.outbox import decode_plain
    from secondpass.store.database import Store

    store = Store.open_to_read(directory)
    try:
        with snapshot(store):
            kept_from = store.progress.kept_from.get(stream, 0)
            known = list(store.progress.numbers)
            sink: dict[str, Any] = store.progress.sinks.get(stream) or {}
        if stream not in known and not follow:
            have = f"; it has {', '.join(known)}" if known else ""
            text.warn(f"{shown(directory)} has no outputs of {stream} yet{have}")
        if number < kept_from:
            text.warn(
                f"outputs {number} to {kept_from - 1} of {stream} are no longer in the store; {sink.get('path', 'their sink')} has them"
            )
            number = kept_from
        while True:
            pieces: list[OutputLine] = []
            with snapshot(store):
                read = 0
                for row in store.outputs(stream, after=number):
                    events = zip(
                        range(row.first, row.first + row.count), row.positions, decode_plain(row), strict=True
                    )
                    pieces += [
                        OutputLine(stream=stream, number=n, position=p, event=plain(e))
                        for n, p, e in events
                        if n >= number
                    ]
                    read += len(row.body)
                    number = row.first + row.count
                    if read >= READ_BYTES:
                        break
            yield from pieces
            if not pieces:
                if not follow:
                    return
                time.sleep(LOOK_EVERY_S)
    finally:
        store.close()
