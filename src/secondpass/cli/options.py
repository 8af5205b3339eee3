"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from secondpass.app import WORKERS_MAX
from secondpass.cli.exits import set_debug

F = TypeVar("F", bound=Callable[..., Any])


def _complete_app(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    return [CompletionItem(incomplete, type="file")]


def app_argument(function: F) -> F:
    """APP, for commands that import the app."""
    return click.argument("app", metavar="APP", shell_complete=_complete_app)(function)


def stored_app_argument(function: F) -> F:
    """APP or nothing, for commands that read a store."""
    return click.argument("app", metavar="[APP]", required=False, shell_complete=_complete_app)(function)


def debug_option(function: F) -> F:
    """`--debug`, wherever it is written."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=set_debug,
        is_eager=True,
        help="Show whole tracebacks.",
    )(function)


def json_option(function: F) -> F:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people."
    )(function)


def quiet_option(function: F) -> F:
    """`--quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="Say nothing but results, warnings and errors.")(
        function
    )


def store_option(function: F) -> F:
    """`--store`, for commands that read one."""
    return click.option(
        "--store",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="The store's directory.  [default: the app's .secondpass/NAME, or the only one here]",
    )(function)


def reason_option(function: F) -> F:
    """`--reason TEXT`."""
    return click.option("--reason", metavar="TEXT", default="", help="Why, for the store's history.")(
        function
    )


def command_options(function: F) -> F:
    """What every command to an app takes: `--reason`, `--no-wait`, `--store`, `--json`, `--debug`."""
    function = debug_option(json_option(store_option(function)))
    function = click.option("--no-wait", is_flag=True, help="Ask for it and return at once.")(function)
    return reason_option(function)


def limit_option(text: str, *, default: int | None = None) -> Callable[[F], F]:
    """`--limit N`."""

    def add(function: F) -> F:
        return click.option("--limit", type=click.IntRange(min=1), metavar="N", default=default, help=text)(
            function
        )

    return add


def workers_option(function: F) -> F:
    """`--workers N`."""
    return click.option(
        "--workers",
        type=click.IntRange(0, WORKERS_MAX),
        metavar="N",
        help="Processes that may run tasks beside this one; 0: none.  [default: the app's, or one for each core]",
    )(function)


def confirmed(question: str, *, yes: bool) -> None:
    """Ask before something is thrown away; raises `click.Abort` on no.

    Where nobody can answer, `--yes` has to be given: raises `click.UsageError`.
    """
    if yes:
        return
    if not os.isatty(0):
        raise click.UsageError(f"{question} Add --yes to do it without being asked.")
    if not click.confirm(question, err=True):
        click.echo("nothing was done", err=True)
        raise click.exceptions.Exit(0)
