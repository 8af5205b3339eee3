"""What a task is asked, and what its answers mean: `handle`, `handle_batch`, `keys`."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from secondpass.errors import TaskFault
from secondpass.event import Event
from secondpass.state import own

if TYPE_CHECKING:
    from secondpass.task import Task


class _All:
    """The type of `ALL`."""

    def __repr__(self) -> str:
        return "ALL"

    def __reduce__(self) -> str:
        return "ALL"


ALL: Any = _All()
"""What `keys` returns for an event that may touch every cell: nothing else runs beside it."""


def call_of(task: Task[Any]) -> Callable[[Any], Any]:
    """The function that handles one event: `handle`, or `handle_batch` with a batch of one."""
    cls = type(task)
    batch = getattr(cls, "handle_batch", None)
    if batch is None:
        return types.MethodType(cls.handle, task)

    def handle_one(event: Any) -> Any:
        (result,) = batch_results(task, [event])
        return result

    return handle_one


def batch_results(task: Task[Any], events: list[Any]) -> list[Any]:
    """What `handle_batch` returns: one result per event."""
    # A list of its own: the task may sort it or take from it.
    results: Any = typing.cast("Any", type(task)).handle_batch(task, list(events))
    if results.__class__ is not list or len(results) != len(events):
        raise TaskFault(
            f"{task.name}.handle_batch returns a list with one result per event ({len(events)} here), "
            f"not {results.__class__.__name__}"
        )
    return results


# ---------------------------------------------------------------- what handle returned


def expand(result: Any, given: Any, name: str, method: str = "handle") -> tuple[list[Any], bool]:
    """The events that a call put out, and whether they form a branch (a list or a generator).

    Raises `TaskFault` with advice for everything that is no event; what a generator raises passes through.
    """
    if result is None:
        return [], False
    if isinstance(result, types.GeneratorType):
        return [_new(r, given, name, method) for r in typing.cast("Iterable[Any]", result)], True
    if type(result) is list:
        return [_new(r, given, name, method) for r in typing.cast("list[Any]", result)], True
    return [_new(result, given, name, method)], False


def _new(result: Any, given: Any, name: str, method: str) -> Any:
    if result is given:
        return result
    if isinstance(result, (Event, dict, Mapping)):
        return own(result, f"{name}.{method}")
    got = f"{type(result).__name__} {str(result)[:80]!r}"
    if isinstance(result, bool):
        advice = "return the event itself to pass it on, and None to drop it"
    elif isinstance(result, types.CoroutineType):
        result.close()
        advice = f"{method} must be a plain function, not async"
    elif isinstance(result, (tuple, set, frozenset)):
        advice = "return a list to emit several events"
    elif result is None:
        advice = "a list holds events only; leave None out"
    else:
        advice = "return the event, another event, a list of events, or None"
    raise TaskFault(f"{name}.{method} returned {got}: {advice}")


_NO_KEYS = (str, bytes, Event, Mapping)
"""What can be iterated, and is a mistake as keys."""


def keys_of(task: Task[Any], event: Any) -> frozenset[Any] | None:
    """The keys that a task declares for an event; None for all of them.

    What `keys` itself raises is no answer, so the event may touch all: then `handle` decides what becomes of it,
    as where nobody asks for keys. Raises `TaskFault` for what is no iterable of keys.
    """
    declare = getattr(type(task), "keys", None)
    if declare is None:
        return None
    found: Any
    try:
        found = declare(task, event)
        if found is ALL:
            return None
        if not isinstance(found, (tuple, *_NO_KEYS)) and isinstance(found, Iterable):
            found = tuple(typing.cast("Iterable[Any]", found))  # here: a generator, or a map, may raise yet
    except (TaskFault, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - user code, and as with handle it stops nothing else
        _warn_of_keys(task, error)
        return None
    if not isinstance(found, tuple):
        raise TaskFault(
            f"{task.name}.keys returned {found!r}: it returns an iterable of cell keys (a tuple like `({found!r},)`)"
            f" or ALL"
        )
    try:
        return frozenset(typing.cast("tuple[Hashable, ...]", found))
    except TypeError as error:
        raise TaskFault(f"{task.name}.keys returned {found!r}, which are no keys: {error}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a key's own hash
        _warn_of_keys(task, error)
        return None


def _warn_of_keys(task: Task[Any], error: BaseException) -> None:
    """Say once for each task that its keys() fails: such events wait for all others."""
    from logging import getLogger  # only where something is wrong

    if task.name not in _warned:
        _warned.add(task.name)
        getLogger("secondpass").warning(
            "%s.keys raised %s: %s; such an event may touch all cells, so nothing runs beside it",
            task.name,
            type(error).__name__,
            error,
        )


_warned: set[str] = set()
