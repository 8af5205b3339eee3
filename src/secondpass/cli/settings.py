"""Settings on the command line: how they are read, and written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from secondpass.cli import text
from secondpass.cli.places import is_app
from secondpass.cli.shapes import line

_SETTING = re.compile(r"(?:(?P<task>[^=]+)\.)?(?P<name>[^\W\d]\w*)=(?P<value>.*)", re.DOTALL)


def settings_in(words: tuple[str, ...]) -> tuple[str | None, str, dict[str, Any]]:
    """APP, the task, and its settings: `NAME.SETTING=VALUE...` or `NAME SETTING=VALUE...`."""
    found, rest = list(words), list[str]()
    while found and (
        (is_app(found[0]) and Path(found[0].partition(":")[0]).is_file()) or "=" not in found[0]
    ):
        rest.append(found.pop(0))
    settings: dict[str, Any] = {}
    names: list[str] = []
    for word in found:
        parts = _SETTING.fullmatch(word)
        if parts is None:
            raise click.UsageError(f"{word!r}: write NAME.SETTING=VALUE")
        if parts["name"] in settings:
            raise click.UsageError(f"{word!r}: {parts['name']} is given twice")
        settings[parts["name"]] = _parsed(parts["value"])
        names += [parts["task"]] if parts["task"] else []
    if not settings:
        raise click.UsageError(_without_equals(rest))
    has_task = not names and rest and not (len(rest) == 1 and is_app(rest[0]))
    if len(names) != len(settings) and not has_task:
        alone = next(word for word in found if "." not in word.partition("=")[0])
        raise click.UsageError(f"say whose setting it is: {shlex.quote(f'TASK.{alone}')}")
    names = names or [rest.pop()]
    if len(set(names)) > 1:
        raise click.UsageError(f"one task at a time: {' and '.join(dict.fromkeys(names))} are two commands")
    if len(rest) > 1:
        raise click.UsageError(f"unexpected argument {rest[1]!r}")
    return (rest[0] if rest else None), names[0], settings


def _without_equals(words: list[str]) -> str:
    """How to write what words without `=` are likely to mean."""
    if len(words) > 1 and is_app(words[0]):
        words = words[1:]
    where, value = words[0], words[1:]
    if "." not in where and value:
        where, value = f"{where}.{value[0]}", value[1:]
    if "." not in where or is_app(where) or len(value) > 1:
        task = "TASK" if is_app(words[-1]) else words[-1]
        return f"say which setting, and its value: {task}.SETTING=VALUE"
    setting = f"{where}={value[0] if value else 'VALUE'}"
    return f"write {shlex.quote(setting)}"


def _parsed(value: str) -> Any:
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value


def written(task: str, name: str, value: Any) -> str:
    """A setting as `set` reads it."""
    return f"{task}.{name}={value if isinstance(value, str) and _parsed(value) == value else line(value)}"


def with_quotes(said: str, task: str, settings: dict[str, Any]) -> str:
    """A refusal, with how a text is written that reads as something else."""
    if "Expected `str" not in said:
        return said
    name = next((n for n in settings if f"({n}=" in said and not isinstance(settings[n], str)), None)
    return said if name is None else f"{said}; for text: {shell_text(task, name, settings[name])}"


def shell_text(task: str, name: str, value: Any) -> str:
    """How to give a text that would be read as a number."""
    return shlex.quote(f'{task}.{name}="{line(value)}"')


def warn_of_type(task: str, setting: str, was: Any, now: Any) -> None:
    """Nothing runs that knows the declared type: say what looks wrong beside the value that there is."""
    kinds: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("true or false", lambda v: isinstance(v, bool)),
        ("a number", lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)),
        ("text", lambda v: isinstance(v, str)),
    )
    before = next((kind for kind, fits in kinds if fits(was)), None)
    after = next((kind for kind, fits in kinds if fits(now)), None)
    if before and after and before != after:
        text.warn(
            f"{task}.{setting} is {line(was)}, {before}, and {line(now)} is {after}; if that does not fit, the next run "
            f"leaves the command out"
        )
