"""What the demo did, for people (`render`) and programs (`as_json`)."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from secondpass.demo.scoring import PAGED_S, Score
from secondpass.demo.simulation import CAMERAS, SPACING_KM

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class TaskRow(msgspec.Struct, frozen=True):
    """What became of the events that reached one task."""

    name: str
    events: int
    passed: int
    dropped: int
    busy_s: float


class DemoReport(msgspec.Struct, frozen=True):
    """What one run of the demo did, and how good it was."""

    directory: str
    seed: int
    hours: float
    detections: int
    seconds: float
    """How long the app ran, start and commits included."""
    events_per_second: float
    epochs: int
    tasks: tuple[TaskRow, ...]
    incidents: Score
    pages: Score
    edited: bool = False
    """Whether the app in the directory is another than the demo's own, which has run."""


def as_json(report: DemoReport) -> dict[str, Any]:
    """The report as plain data."""
    return msgspec.to_builtins(report)


def render(report: DemoReport, console: Console) -> None:
    """Print the report: what came in, what each task did, how that compares with what really happened."""
    length_km = CAMERAS * SPACING_KM
    console.print()
    console.print(
        f"[bold]A simulated motorway[/bold]: {length_km:g} km, {2 * CAMERAS} cameras, {report.hours:g} hours, "
        f"seed {report.seed}"
    )
    console.print(
        f"{report.detections:,} detections, {len(report.tasks)} tasks, {report.seconds:.1f} s: "
        f"{report.events_per_second:,.0f} a second, each committed to disk once"
    )
    console.print()
    console.print(_chain(report))
    console.print()
    console.print(_truth(report))
    console.print()
    _hints(report, console)


def render_scores(incidents: Score, pages: Score, console: Console) -> None:
    """Print only the comparison with what really happened."""
    console.print(_scores(incidents, pages))


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _chain(report: DemoReport) -> Table:
    table = _table("task", "events in", "passed", "dropped", "seconds")
    for row in report.tasks:
        table.add_row(row.name, f"{row.events:,}", f"{row.passed:,}", f"{row.dropped:,}", f"{row.busy_s:.2f}")
    return table


def _truth(report: DemoReport) -> Table:
    return _scores(report.incidents, report.pages)


def _scores(incidents: Score, pages: Score) -> Table:
    table = _table("against what really happened", "incidents", f"pages (over {PAGED_S / 60.0:g} min)")

    def row(name: str, show: str, *values: float) -> None:
        table.add_row(name, *(format(value, show) for value in values))

    row("to be found", ",", incidents.incidents, pages.incidents)
    row("found", ",", incidents.found, pages.found)
    row("missed", ",", incidents.missed, pages.missed)
    row("told more than once", ",", incidents.repeated, pages.repeated)
    row("told of nothing", ",", incidents.false, pages.false)
    row("half of them found within, s", ".0f", incidents.delay_s, pages.delay_s)
    row("nine of ten within, s", ".0f", incidents.delay_s_p90, pages.delay_s_p90)
    return table


def _hints(report: DemoReport, console: Console) -> None:
    from rich.markup import escape

    folder = escape(report.directory)
    run = f"      {escape(_program())} run {folder}/roadside_app.py --fresh"
    compare = f"      {escape(_python())} -m secondpass.demo {folder}"
    edited = (
        f"These are the figures of the demo's own app. [bold]{folder}/roadside_app.py[/bold] has been changed and has not run.",
        "To run it, and to compare what it finds with what really happened:",
        run,
        compare,
    )
    own = (
        f"The app is [bold]{folder}/roadside_app.py[/bold], a hundred lines. What to try next:",
        "  - Run it, end it with Ctrl-C or kill -9, and run it again without --fresh: the outputs are the same.",
        run,
        "  - Let ConfirmByRepetition ask for 3 reports, or put SuppressNeighbours first, and run it with --fresh;",
        "    then compare again with what really happened.",
        compare,
        f"  - Append a line to {folder}/detections.jsonl and run it without --fresh: it goes on where it was.",
    )
    for line in edited if report.edited else own:
        console.print(line, soft_wrap=True, highlight=False)


def _program() -> str:
    """How `secondpass` is called here: `make demo` installs it where no PATH leads."""
    if shutil.which("secondpass"):
        return "secondpass"
    beside = Path(sys.executable).with_name("secondpass")
    return _typed(beside) if beside.is_file() else f"{_python()} -m secondpass"


def _python() -> str:
    """How the Python that runs this is called here."""
    found = shutil.which("python")
    # Not resolved: the Python of a virtual environment is a link to the one that lacks our packages.
    is_ours = found is not None and Path(found).parent == Path(sys.executable).parent
    return "python" if is_ours else _typed(Path(sys.executable))


def _typed(program: Path) -> str:
    """A program's path as one would type it here: relative where it lies below."""
    here = Path.cwd()
    return shlex.quote(str(program.relative_to(here) if program.is_relative_to(here) else program))
