"""The command line: `secondpass COMMAND`, a face of the package that nothing imports.

    group.py            the commands and their one-line descriptions; a command's module is imported when it runs
    exits.py            how a command can end: exit codes, and which error means which
    apart.py            work that leaves the processor to everything else
    options.py          arguments and options that several commands share
    text.py             numbers, sizes, tables: what is printed, plain and aligned
    shapes.py           what `--json` prints
    apps.py, places.py  finding the app, finding a store
    reading.py          what a store holds, as plain data
    watching.py         how far a run is: progress.py in lines, terminal.py as a bar
    explain.py          why an event became what it became, as a tree
    rehearse.py         what a changed chain would have put out; rehearsal_page.py is its HTML report
    commanding.py       giving the app a command; standing.py is what its tasks are, settings.py how they are written
    order.py            which events wait for which; picture.py draws it
    <command>.py        one command, or one group of them

Invariants: results go to standard output, everything else to standard error; what reads a store never
imports the app's code; `secondpass --help` imports neither apsw nor rich.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from secondpass.cli.exits import ended
from secondpass.cli.group import cli
from secondpass.unheard import unheard


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without our letters gets them spelled
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = unheard(sys.stderr)  # a run goes on where nobody reads how it goes
    # Click leaves colours to terminals; NO_COLOR (no-color.org) takes them from there too.
    color = False if os.environ.get("NO_COLOR") else None
    return ended(lambda: cli.main(arguments, prog_name="secondpass", standalone_mode=False, color=color))
