"""The commands: their names, and where each is found when it is wanted.

`secondpass --help` shows the descriptions below without importing a command, so that it answers at once.
"""

from __future__ import annotations

import difflib
import importlib

import click

from secondpass import __version__
from secondpass.cli.exits import MEANINGS, ReaderGone, set_debug

# By section, in the order of a first day: name -> (module and attribute, description). A test keeps the
# descriptions equal to the first lines of the commands' own help.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Begin": {
        "demo": ("demo:demo", "Watch a simulated motorway's alarms being sorted."),
        "init": ("init:init", "Write a small working app with its test."),
        "try": ("try_app:try_app", "Run an app in memory and print what it puts out."),
    },
    "Run": {
        "run": ("run:run", "Run an app until its input ends; again, it goes on where it stopped."),
        "check": ("check:check", "Run an app in several ways and show the first difference."),
        "schedule": ("schedule:schedule", "Show which events wait for which, and how many can run at once."),
    },
    "Command": {
        "task": ("task:task", "List, start, stop, set and replace tasks while the app runs."),
        "pause": ("commanding:pause", "Let an app take no more events until `resume`."),
        "resume": ("commanding:resume", "Let a paused app go on."),
        "stop": ("commanding:stop", "End a run and wait until its process has gone."),
    },
    "Understand": {
        "explain": ("explain:explain", "Show why an event became what it became."),
        "rehearse": ("rehearse:rehearse", "Show what a changed chain would have put out."),
    },
    "Look": {
        "status": ("status:status", "Show where an app stands."),
        "history": ("history:history", "Show what was done to an app: when, by whom and why."),
        "outputs": ("outputs:outputs", "Print outputs from an app's store."),
        "dead-letters": (
            "dead_letters:dead_letters",
            "List, show, retry and drop events that were set aside.",
        ),
        "state": ("state:state", "List and look up what tasks remember."),
        "doctor": ("doctor:doctor", "Examine this machine, and a store if one is given."),
    },
}
COMMANDS = {name: found for section in SECTIONS.values() for name, found in section.items()}

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found: click.Command = getattr(importlib.import_module(f"secondpass.cli.{module}"), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            advice = f"did you mean {near[0]}?" if near else "`secondpass --help` lists the commands"
            if args[0].partition(":")[0].endswith(".py"):
                advice = f"to run the app in it: secondpass run {args[0]}"
            ctx.fail(f"no command {args[0]!r}; {advice}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error  # click would end with 1, which means something else here

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()], col_max=14)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()], col_max=14)


@click.group(cls=LazyGroup, context_settings=HELP)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=set_debug,
    is_eager=True,
    help="Show whole tracebacks; also SECONDPASS_DEBUG=1.",
)
def cli() -> None:
    """Second-stage analysis of event streams in plain Python.

    APP is FILE.py, FILE.py:attribute, module:attribute or module:factory().
    """
