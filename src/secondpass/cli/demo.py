"""`secondpass demo`: a simulated motorway, and how well its incidents are found."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from secondpass.cli import text
from secondpass.cli.group import HELP
from secondpass.cli.options import debug_option, json_option, quiet_option


@click.command(context_settings=HELP)
@click.argument(
    "directory", type=click.Path(file_okay=False, path_type=Path), default=Path("demo"), metavar="[DIRECTORY]"
)
@click.option("--seed", type=int, default=7, metavar="N", help="Another day on the motorway.  [default: 7]")
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    metavar="H",
    help="How long it is, about 11,000 detections an hour.  [default: 24]",
)
@quiet_option
@json_option
@debug_option
def demo(directory: Path, seed: int, hours: float, quiet: bool, as_json: bool) -> None:
    """Watch a simulated motorway's alarms being sorted.

    Writes what the cameras report, what really happened, and the app into DIRECTORY (demo), runs the app
    there with a store, and compares. Running it again starts over; a changed app stays.
    """
    from secondpass.cli.watching import step_for
    from secondpass.demo import as_json as plain_report
    from secondpass.demo import render, run_demo

    step = step_for({"simulate": "simulating the motorway", "run": "running the app"}, quiet=quiet or as_json)
    with step:
        report = run_demo(directory, seed=seed, hours=hours, progress=step.told)
    if as_json:
        text.say(msgspec.json.format(msgspec.json.encode(plain_report(report)), indent=2).decode())
    else:
        from rich.console import Console

        render(report, Console(highlight=False))
