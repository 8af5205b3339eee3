"""What a task class declares, collected and checked when the class is defined.

A class that could keep state in an undeclared place is refused here, before any event.
"""

from __future__ import annotations

import collections
import typing
from typing import TYPE_CHECKING, Any, ClassVar

from secondpass import codec
from secondpass.errors import DefinitionError
from secondpass.event import event_types
from secondpass.lookups import LookupSpec
from secondpass.state import OutputSpec, TableSpec, ValueSpec
from secondpass.timers import TimerSpec

if TYPE_CHECKING:
    from secondpass.task import Task

_DECLARED = (TableSpec, ValueSpec, OutputSpec, TimerSpec, LookupSpec)
_VARARGS, _COROUTINE, _ASYNC_GENERATOR = 0x04, 0x80, 0x200  # CO_VARARGS and so on of `inspect`
_MUTABLE = (list, dict, set, bytearray, collections.deque)


class Shape:
    """What a task class declares, collected once when the class is defined."""

    def __init__(self, cls: type[Any]) -> None:
        self.settings: dict[str, Any] = {}
        self.tables: dict[str, TableSpec] = {}
        self.values: dict[str, ValueSpec[Any]] = {}
        self.outputs: dict[str, OutputSpec] = {}
        self.timers: dict[str, TimerSpec] = {}
        """What is pending of each is in the table of the same name."""
        self.lookups: dict[str, LookupSpec] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited = base.__dict__.get("_shape")
            if isinstance(inherited, Shape):
                for part in ("settings", "tables", "values", "outputs", "timers", "lookups"):
                    getattr(self, part).update(getattr(inherited, part))

    @property
    def stateful(self) -> bool:
        return bool(self.tables or self.values)

    def state(self) -> dict[str, dict[str, Any]]:
        """The description of all state, as the store keeps it."""
        return {n: s.describe() for n, s in (*self.tables.items(), *self.values.items())}


def define(cls: type[Task[Any]], top: type[Task[Any]]) -> None:
    """Give the class its shape, `top` being `Task`; raises `DefinitionError` for what a task must not be."""
    shape = Shape(cls)
    namespace = dict(cls.__dict__)
    for forbidden in ("__init__", "__new__", "__setattr__", "__getattribute__", "__getattr__"):
        if forbidden in namespace and cls.__module__ != top.__module__:
            raise DefinitionError(
                f"{cls.__name__} defines {forbidden}: settings are annotated attributes "
                f"(`window_s: float = 300.0`), state is `table(...)` and `value(...)`, resources belong in setup()"
            )
    annotations = _annotations(cls)
    for name in (*annotations, *(n for n, f in namespace.items() if isinstance(f, _DECLARED))):
        if name in vars(top) and not name.startswith("_"):
            raise DefinitionError(
                f"{cls.__name__}.{name}: every task has {name!r} already; choose another name"
            )
    for name, found in namespace.items():
        if isinstance(found, _DECLARED):
            if name in annotations:
                raise DefinitionError(
                    f"{cls.__name__}.{name}: declared state carries no annotation; remove it"
                )
            _claim(cls, shape, name, found)
        elif name in shape.timers:
            raise DefinitionError(
                f"{cls.__name__}.{name} is a timer in a class above; put @timer before it here too"
            )
        elif issubclass(type(found), _MUTABLE) and not name.startswith("__"):
            raise DefinitionError(
                f"{cls.__name__}.{name} is a mutable {type(found).__name__} that would be lost in a crash and "
                f"shared between runs; for memory write `{name} = table(K, V)`, for a setting use an immutable type"
            )
    for name, tp in annotations.items():
        if typing.get_origin(tp) is ClassVar or tp is ClassVar or name in ("_shape", "_options"):
            continue
        if cls.__module__ != top.__module__:  # FunctionTask's only setting is code
            mutable = codec.mutable_part(tp)
            if mutable is not None:
                part, instead = mutable
                raise DefinitionError(
                    f"{cls.__name__}.{name}: a setting is immutable, and {codec.describe(part)} is not; use "
                    f"{instead}, or table(...) if it is memory"
                )
        shape.settings[name] = tp
    for name in ("handle", "handle_batch", "setup"):
        function = namespace.get(name)
        if is_async(function):
            raise DefinitionError(
                f"{cls.__name__}.{name} is async; analysis is CPU-bound here: write a plain function, and do "
                f"waiting in a source or a sink"
            )
    if "handle_batch" in namespace and shape.outputs:
        raise DefinitionError(
            f"{cls.__name__}.handle_batch cannot say which event a named output belongs to: write handle, or return "
            f"the events and let a second task emit them"
        )
    if "handle_batch" in namespace and (shape.tables or shape.values):
        raise DefinitionError(f"{cls.__name__} has state, so it handles one event at a time: write handle")
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        if isinstance(origin, type) and issubclass(origin, top):
            (cls._event_type,) = typing.get_args(base) or (None,)
    event_types(cls._event_type)
    cls._shape = shape


def refuse_what_cannot_handle(cls: type[Task[Any]], top: type[Task[Any]]) -> None:
    """Raise `DefinitionError` for a task class without a `handle` that takes one event; `top` is `Task`."""
    batch: Any = getattr(cls, "handle_batch", None)
    if batch is not None:
        if not takes(batch, 2):
            raise DefinitionError(f"{cls.__name__}.handle_batch is called with a list: write (self, events)")
    elif cls.handle is top.handle:
        from difflib import get_close_matches  # only where something is wrong

        meant = get_close_matches("handle", [name for name in vars(cls) if not name.startswith("_")], 1)
        raise DefinitionError(
            f"{cls.__name__} has neither handle nor handle_batch{f' (is {meant[0]} a misspelling?)' if meant else ''}: "
            f"write `def handle(self, event)`, which returns the event to pass it on"
        )
    elif not takes(cls.handle, 2):
        raise DefinitionError(f"{cls.__name__}.handle is called with one event: write (self, event)")


def takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments, told from its code; what has none can."""
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    needed = code.co_argcount - len(function.__defaults__ or ())
    by_name = code.co_kwonlyargcount - len(function.__kwdefaults__ or {})
    return not by_name and needed <= count and (count <= code.co_argcount or bool(code.co_flags & _VARARGS))


def is_async(function: Any) -> bool:
    """Whether this is an `async def`, told from its code so that nothing has to be imported."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return bool(flags & (_COROUTINE | _ASYNC_GENERATOR))


def _annotations(cls: type) -> dict[str, Any]:
    own: dict[str, Any] = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - inspect costs 9 ms to import
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise DefinitionError(f"{cls.__name__}: an annotation names something unknown: {error}") from None
    return {name: hints.get(name, tp) for name, tp in own.items()}


def _claim(cls: type[Task[Any]], shape: Shape, name: str, spec: Any) -> None:
    if isinstance(spec, TimerSpec):
        spec.claim(name, cls.__name__)
        shape.timers[name], shape.tables[name] = spec, spec.table
        setattr(cls, name, spec.method)  # for super(); a task's own attribute comes before it
        return
    if isinstance(spec, LookupSpec):
        spec.claim(name, cls.__name__)
        shape.lookups[name] = spec
        delattr(cls, name)
        return
    spec.name, spec.owner = name, cls.__name__
    shape.timers.pop(name, None)
    if isinstance(spec, TableSpec):
        shape.tables[name] = spec
    elif isinstance(spec, OutputSpec):
        shape.outputs[name] = spec
    else:
        shape.values[name] = spec
        return  # a value stays on the class: it is a descriptor
    # Off the class, so that the instance attribute is found in one step.
    delattr(cls, name)
