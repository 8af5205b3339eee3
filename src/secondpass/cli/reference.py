"""The reference page of the command line, made from the commands themselves.

    python -m secondpass.cli.reference > docs/reference/cli.md

A test keeps the page equal to what this prints.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import click
import msgspec

from secondpass.cli.exits import MEANINGS
from secondpass.cli.group import COMMANDS, cli
from secondpass.cli.shapes import DOCUMENTS, Shape

WIDTH = 96

HEAD = """\
# The command line

`secondpass COMMAND`, or `python -m secondpass COMMAND`. This page is made from the commands' own help:
`python -m secondpass.cli.reference`.

- APP is `FILE.py` (its only app), `FILE.py:attribute`, `module:attribute` or `module:factory()`. Commands that
  read a store (`status`, `outputs`, `dead-letters`, `state`, `doctor`) never import the app's code: they find the
  store beside the file, and also take the app's name, `--store DIR`, or nothing where there is one store only.
- Results go to standard output, all else (progress, hints, warnings, errors) to standard error. An app that
  writes to standard output itself has it for its own: `run` then prints its summary to standard error.
- On a terminal a run shows a bar, or a live line where the end is not known; elsewhere a line every few seconds.
  `--quiet` leaves results, warnings and errors.
- An error is one line, `error:` what, where, and what to do next. A traceback shows your own code's frames, where
  that is what must be mended; `--debug` or `SECONDPASS_DEBUG=1` shows all of them. `NO_COLOR` is respected.
- Completion: `eval "$(_SECONDPASS_COMPLETE=bash_source secondpass)"`, or `zsh_source`, `fish_source`.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD, "\n".join(_exit_codes())]
    parts += ["## Commands\n", _fenced(_help(["secondpass"], cli))]
    for name in COMMANDS:
        context = click.Context(cli, info_name="secondpass")
        command = cli.get_command(context, name)
        assert command is not None
        parts += _command([name], command)
    parts.append("\n".join(_json()))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | meaning |"
    yield "|-|-|"
    yield from (f"| {code} | {meaning} |" for code, meaning in MEANINGS.items())
    yield ""
    yield "SIGTERM ends a run as Ctrl-C does, after the current epoch, with 0. A closed pipe (`| head`) ends a command"
    yield "that prints with 0."


def _command(path: list[str], command: click.Command) -> list[str]:
    parts = [f"## {' '.join(path)}\n", _fenced(_help(["secondpass", *path], command))]
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            parts += _command([*path, name], inner)
    return parts


def _help(path: list[str], command: click.Command) -> str:
    """A command's `--help`, at a width of its own."""
    parent: click.Context | None = None
    for name in path[:-1]:
        parent = click.Context(cli, info_name=name, parent=parent)
    context = click.Context(
        command, info_name=path[-1], parent=parent, terminal_width=WIDTH, **command.context_settings
    )
    return command.get_help(context)


def _fenced(said: str) -> str:
    return f"```text\n{said}\n```\n"


# ---------------------------------------------------------------- JSON


def _json() -> Iterator[str]:
    yield "## JSON\n"
    yield "What `--json` prints: one document, or where it says so one line each. Fields may be added; none changes its"
    yield "meaning within a major version. Errors are text on standard error, with the exit code.\n"
    done: set[type[Shape]] = set()
    for name, shapes in DOCUMENTS.items():
        links = " or ".join(f"[{shape.__name__}](#{shape.__name__.lower()})" for shape in shapes)
        yield f"- `{name}`: {links}"
    yield "- `demo`: the numbers of its report"
    yield ""
    for shapes in DOCUMENTS.values():
        for shape in shapes:
            yield from _shape(shape, done)


def _shape(shape: type[Shape], done: set[type[Shape]]) -> Iterator[str]:
    if shape in done:
        return
    done.add(shape)
    yield f"### {shape.__name__}\n"
    yield f"{(shape.__doc__ or '').strip()}\n"
    yield "| field | type | meaning |"
    yield "|-|-|-|"
    hints = typing.get_type_hints(shape, include_extras=True)
    parts: list[type[Shape]] = []
    for field in msgspec.structs.fields(shape):
        tp, meaning = hints[field.name], ""
        if get_origin(tp) is typing.Annotated:
            tp, *more = get_args(tp)
            meaning = next((m.description or "" for m in more if isinstance(m, msgspec.Meta)), "")
        yield f"| `{field.name}` | {_type(tp, parts)} | {meaning} |"
    yield ""
    for part in parts:
        yield from _shape(part, done)


def _type(tp: Any, parts: list[type[Shape]]) -> str:
    """A type in the words of JSON."""
    origin, args = get_origin(tp), get_args(tp)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(arg, parts) for arg in args)
    if origin is list:
        return f"list of {_type(args[0], parts)}"
    if origin is dict:
        return f"map to {_type(args[1], parts)}"
    if origin is typing.Literal:
        return " or ".join(f'`"{arg}"`' for arg in args)
    if isinstance(tp, type) and issubclass(tp, Shape):
        parts.append(tp)
        return f"[{tp.__name__}](#{tp.__name__.lower()})"
    return {
        int: "integer",
        float: "number",
        str: "text",
        bool: "boolean",
        type(None): "null",
        Any: "anything",
    }[tp]


if __name__ == "__main__":
    click.echo(page(), nl=False)
