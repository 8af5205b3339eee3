"""What the store keeps of a task, to tell at the next start what has changed."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from secondpass import codec
from secondpass.task import FunctionTask, Task

AGAIN = "__again"
"""Ends, with a number, the name of a module that was loaded another time while the app runs."""


def code_of(task: Task[Any]) -> Any:
    """The class, or the function, that says what a task does."""
    return task.function if isinstance(task, FunctionTask) else type(task)


def what_it_does(code: types.CodeType) -> tuple[Any, ...]:
    """What tells one piece of code from another, wherever it stands in its file."""
    consts = [
        what_it_does(c) if isinstance(c, types.CodeType) else (type(c).__name__, repr(c))
        for c in code.co_consts
    ]
    return (code.co_code, code.co_names, code.co_varnames, tuple(consts))


def source_has_changed(code: Any) -> bool:
    """Whether the source of a task's code is another one now than when it was described first."""
    return _source_hash.__wrapped__(code) != _source_hash(code)


def code_hash(task: Task[Any]) -> str:
    """A fingerprint of the task's source, to tell a changed file from an unchanged one."""
    target = code_of(task)
    try:
        return _source_hash(target)
    except TypeError:  # a callable object without a hash
        return _source_hash.__wrapped__(target)


@functools.lru_cache(maxsize=1024)  # finding a class's source parses its whole file
def _source_hash(target: Any) -> str:
    from hashlib import blake2b  # both only at the start of a run
    from inspect import getsource

    try:
        text = getsource(target)
    except (OSError, TypeError):
        text = repr(sorted(target.__dict__))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _as_stored(value: Any) -> Any:
    """A setting as plain data, sets in a fixed order: theirs must not look like a change."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(_as_stored, typing.cast("Iterable[Any]", value)), key=codec.pack)
    if isinstance(value, (list, tuple)):
        return list(map(_as_stored, typing.cast("Iterable[Any]", value)))
    if isinstance(value, Mapping):
        found = typing.cast("Mapping[Any, Any]", value)
        return {codec.unpack(codec.pack(k)): _as_stored(v) for k, v in found.items()}
    return codec.unpack(codec.pack(value))


def describe(task: Task[Any]) -> dict[str, Any]:
    """All that the store keeps about a task to compare it at the next start."""
    target = code_of(task)
    settings = (
        {k: getattr(task, k) for k in type(task)._shape.settings} if type(task) is not FunctionTask else {}
    )
    lookups = {n: s.describe() for n, s in type(task)._shape.lookups.items()}
    return {
        "name": task.name,
        "class": target.__qualname__,
        "module": target.__module__.partition(AGAIN)[0],
        "code": code_hash(task),
        "settings": {k: _as_stored(v) for k, v in settings.items()},
        "state": type(task)._shape.state(),
        # Not part of the comparison: a reader of the store needs it to know what has expired.
        "ttl_s": {n: s.ttl_of(task) for n, s in type(task)._shape.tables.items() if s.ttl_s is not None},
        "on_error": task._options.on_error,
        "options": msgspec.to_builtins(task._options),
        **({"lookups": lookups} if lookups else {}),
    }
