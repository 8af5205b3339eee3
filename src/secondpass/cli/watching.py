"""Which progress suits where standard error goes."""

from __future__ import annotations

import os
import sys

from secondpass.cli.progress import LogLines, Progress, Step


def progress_for(name: str, *, quiet: bool, bar: bool = True) -> Progress:
    """What suits where standard error goes; `bar=False` where other lines go to the same terminal."""
    if quiet:
        return Progress()
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return LogLines()
    if not bar:
        return Progress()
    # Rich is imported for terminals only: it takes longer than many a run.
    from secondpass.cli.terminal import Terminal

    return Terminal(name)


def step_for(names: dict[str, str], *, quiet: bool) -> Step:
    """What suits where standard error goes."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return Step(names, silent=quiet)
    from secondpass.cli.terminal import StepBar

    return StepBar(names)
