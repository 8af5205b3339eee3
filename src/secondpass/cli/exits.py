"""How a command ends: its exit code, and what it says when something is wrong.

    what happened       -> said on standard error as `error: what, where, what to do next`
    whose fault it is   -> the exit code, by the tree in errors.py

A traceback is shown where it is the user's own code that must be mended, and for a bug of ours; with
`--debug` or SECONDPASS_DEBUG=1 the whole of it always is.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

import click

from secondpass.cli import text
from secondpass.errors import (
    InputError,
    InternalError,
    NotRepeated,
    OutputError,
    SecondpassError,
    StoreError,
    TaskError,
    UsageError,
    WorldError,
)

DONE, DIFFERENCE, USAGE, TASK, INPUT, OUTPUT, STORE, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 70, 130

MEANINGS: dict[int, str] = {
    DONE: "done",
    DIFFERENCE: "`check` found a difference, or a re-run did, or a rehearsal stopped",
    USAGE: "the command, the app or an option is wrong",
    TASK: "a task stopped the app",
    INPUT: "an input cannot be read, or is not the one read before",
    OUTPUT: "an output cannot be written, or is not the one written before",
    STORE: "the store cannot be used: locked, full, damaged, too new",
    INTERNAL: "a bug of secondpass",
    INTERRUPTED: "ended by Ctrl-C; what was committed stays",
}
"""Every exit code. SIGTERM ends a run as Ctrl-C does, after the current epoch, with 0."""

# The first that fits, so a class stands before the one it inherits from.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (NotRepeated, DIFFERENCE),
    (UsageError, USAGE),
    (TaskError, TASK),
    (InputError, INPUT),
    (OutputError, OUTPUT),
    (StoreError, STORE),
    (WorldError, STORE),
    (SecondpassError, INTERNAL),
)

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100, PTH120 - frames hold strings


class ReaderGone(Exception):
    """Whoever read our results has closed the pipe: it has all it wanted."""


def ended(command: Callable[[], object]) -> int:
    """Do what a command does, say what is wrong where it fails, and give its exit code."""
    try:
        code = command()
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third Ctrl-C has nothing left to end
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        _give_up_stdout()  # `secondpass outputs | head`
        return 0
    except Exception as found:  # noqa: BLE001 - the last place where an error can be told
        error = _users_name(found) if exit_code(found) == INTERNAL else found
        report(error)
        try:
            sys.stdout.flush()
        except OSError:
            _give_up_stdout()
        return exit_code(error)
    return code if isinstance(code, int) else 0


def _users_name(error: Exception) -> Exception:
    """What looks like a bug of ours, and comes of an app with the name of one of Python's modules."""
    from secondpass.loading import hides_pythons

    return hides_pythons(error) or error


def _give_up_stdout() -> None:
    """Let what is still buffered go nowhere: Python flushes once more at exit, and has a code of its own for that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class AppBroken(UsageError):
    """The user's file could not be imported; `__cause__` says why."""


def exit_code(error: BaseException) -> int:
    """The code that an error means."""
    if isinstance(error, click.ClickException):
        return USAGE
    return next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)


def debugging() -> bool:
    """Whether whole tracebacks are wanted."""
    context = click.get_current_context(silent=True)
    asked = context is not None and context.find_root().meta.get("secondpass.debug", False)
    return bool(asked) or os.environ.get("SECONDPASS_DEBUG", "") not in ("", "0")


def set_debug(context: click.Context, _: click.Parameter, asked: bool) -> None:
    """The callback of `--debug`: the environment is where worker processes see it too."""
    if asked:
        context.find_root().meta["secondpass.debug"] = True
        os.environ["SECONDPASS_DEBUG"] = "1"


def report(error: BaseException) -> None:
    """Say on standard error what went wrong."""
    if isinstance(error, click.ClickException):
        command = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "secondpass"
        )
        _say(f"{_begin_small(error.format_message())}\n  `{command} --help` says how it is used")
        return
    ours = exit_code(error) == INTERNAL
    if debugging() or ours:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    else:
        frames = users_frames(error)
        if frames:
            click.echo(text.printable(frames), err=True)
    said = str(error).strip()
    if ours and not isinstance(error, InternalError):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if ours:
        said += "\n  this is a bug of secondpass, nothing that was committed is lost; please report it with the lines above"
    _say(said)


def _say(said: str) -> None:
    # What an event held must not move the cursor of whoever reads the error.
    click.echo(click.style("error:", fg="red", bold=True) + f" {text.printable(said)}", err=True)


def _begin_small(said: str) -> str:
    """Click begins its sentences large; after `error:` ours begin small."""
    return said[:1].lower() + said[1:] if said[1:2].islower() else said


def users_frames(error: BaseException) -> str:
    """The traceback of the user's own code, where that is what must be mended; empty otherwise."""
    if isinstance(error, TaskError):
        stored = error.details.get("traceback")
        if isinstance(stored, str):
            return stored
    elif not isinstance(error, AppBroken):
        return ""
    cause = error.__cause__
    if cause is None:
        return ""
    found = traceback.TracebackException.from_exception(cause)
    _keep_users(found)
    if isinstance(cause, SecondpassError):  # what it says is said below
        return "".join(["Traceback (most recent call last):\n", *found.stack.format()]) if found.stack else ""
    return "".join(found.format())


def _keep_users(found: traceback.TracebackException) -> None:
    """Leave out our frames and the import machinery's, here and in what caused it."""
    kept = [frame for frame in found.stack if _is_users(frame.filename)]
    found.stack = traceback.StackSummary.from_list(kept)
    for inner in (found.__cause__, found.__context__):
        if inner is not None:
            _keep_users(inner)


def _is_users(filename: str) -> bool:
    return not filename.startswith((_PACKAGE, "<frozen "))
