"""Lookups: reference data that tasks read, and that only the run changes, between two records.

Invariants: what a lookup holds is the same for every task and every worker at every position; keys and values are exactly
of the declared types; values are immutable, since all calls share them.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from secondpass.codec import describe, mutable_part, ordered
from secondpass.errors import DefinitionError, InputError, SettingsError, TaskFault
from secondpass.state import MISSING, TableSpec

if TYPE_CHECKING:
    from typing_extensions import TypeForm

K = TypeVar("K")
V = TypeVar("V")


class LookupSpec:
    """The declaration `name = lookup(K, V)`."""

    def __init__(self, key: Any, value: Any) -> None:
        self.table = TableSpec(key, value, MISSING, None, None)
        """How its cells are checked and stored."""
        mutable = mutable_part(value)
        if mutable is not None:
            part, instead = mutable
            raise DefinitionError(
                f"lookup({describe(key)}, {describe(value)}): all calls share its values, and {describe(part)} could be "
                f"changed by one of them; use {instead}"
            )

    def claim(self, name: str, owner: str) -> None:
        """It is declared under this name, in this class."""
        self.name = self.table.name = name
        self.owner = self.table.owner = owner

    def describe(self) -> dict[str, Any]:
        """What the store compares at the next start."""
        return {"key": self.table.key.name, "value": self.table.value.name}

    def rests(self, given: Mapping[Any, Any], where: str) -> dict[Any, Any]:
        """The resting cells of a mapping; raises `InputError` for what is not of the declared types."""
        spec = self.table
        found: dict[Any, Any] = {}
        for key, value in given.items():
            try:
                spec.check_key(key)
                found[key] = spec.rest(key, value)
            except TaskFault as error:
                raise InputError(f"{where}: {error}") from None
            except (TypeError, ValueError, OverflowError) as error:
                raise InputError(f"{where}: {key!r} cannot be kept: {error}") from None
        return found

    def wake(self, rests: Mapping[Any, Any]) -> dict[Any, Any]:
        """Live values from resting cells."""
        wake = self.table.wake
        return {key: wake(rest) for key, rest in rests.items()}


class Contents(dict[K, V]):
    """What a lookup holds: a mapping in key order, for tasks to read.

    >>> cameras = Contents({9: "north", 7: "south"})
    >>> cameras[7], cameras.get(8), list(cameras)
    ('south', None, [7, 9])
    """

    __slots__ = ("_order",)

    def __init__(self, found: Mapping[K, V] | None = None) -> None:
        super().__init__(found or {})
        self._order: list[K] | None = None

    def take(self, changed: Mapping[K, V], gone: Iterable[K]) -> None:
        """Become what the run has loaded; tasks cannot."""
        dict[K, V].update(self, changed)
        for key in gone:
            dict[K, V].pop(self, key, None)
        self._order = None

    def become(self, found: Mapping[K, V]) -> None:
        """Hold this and nothing else."""
        self.take(found, [key for key in dict[K, V].keys(self) if key not in found])

    def __iter__(self) -> Iterator[K]:
        if self._order is None:
            self._order = ordered(dict[K, V].keys(self))
        return iter(self._order)

    def __reversed__(self) -> Iterator[K]:
        return reversed(list(self))

    def keys(self) -> KeysView[K]:  # type: ignore[override]  # in key order, where those of a dict are not
        return KeysView(self)

    def items(self) -> ItemsView[K, V]:  # type: ignore[override]
        return ItemsView(self)

    def values(self) -> ValuesView[V]:  # type: ignore[override]
        return ValuesView(self)

    def copy(self) -> dict[K, V]:
        return dict(self.items())

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TaskFault(
            "a lookup is read-only: what it holds is loaded by the run; for memory declare table(...)"
        )

    __setitem__ = __delitem__ = __ior__ = pop = popitem = clear = update = setdefault = _refuse  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


class Loaded:
    """What a function gives, as the content of a lookup, loaded again now and then.

    >>> from secondpass import App, Loaded, Task, lookup
    >>> class Named(Task):
    ...     names = lookup(int, str)
    ...     def handle(self, event):
    ...         return event.replace(name=self.names.get(event["cid"], "?"))
    >>> app = App("named", source=[{"cid": 7}], tasks=[Named()], lookups={"names": Loaded(lambda: {7: "south"})})

    The function gives a mapping, or an iterable of (key, value) pairs. With `reload_s` it is called again after so many
    seconds, in a thread; what it gives counts only where it differs. Raises `SettingsError` for what cannot be.
    """

    def __init__(
        self, function: Callable[[], Any], *, reload_s: float | None = None, name: str | None = None
    ) -> None:
        if not callable(function):
            raise SettingsError(f"Loaded({function!r}): give a function that returns a mapping")
        self.function = function
        self.reload_s = checked_reload_s(reload_s)
        self.name = name or str(getattr(function, "__qualname__", "function"))

    def __repr__(self) -> str:
        return f"Loaded({self.name})"


def checked_reload_s(reload_s: float | None) -> float | None:
    """A number of seconds that can be; raises `SettingsError` otherwise."""
    if reload_s is not None and (type(reload_s) not in (int, float) or not 0 < reload_s < 1e9):
        raise SettingsError(f"reload_s={reload_s!r}: write a positive number of seconds")
    return None if reload_s is None else float(reload_s)


def checked_key(key: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """The field, or the fields, that are a row's key; raises `SettingsError` for what names none."""
    names = key if isinstance(key, tuple) else () if key is None else (key,)
    if key == () or any(not isinstance(name, str) or not name for name in names):  # pyright: ignore[reportUnnecessaryIsInstance] - users
        raise SettingsError(f"key={key!r}: write a field's name, or a tuple of names")
    return key


def specs_of(tasks: Iterable[Any]) -> dict[str, LookupSpec]:
    """The lookups that some tasks declare, by name; raises `DefinitionError` where two declare another of one name."""
    found: dict[str, LookupSpec] = {}
    for task in tasks:
        declared: dict[str, LookupSpec] = task._shape.lookups
        for name, spec in declared.items():
            known = found.setdefault(name, spec)
            if known.describe() != spec.describe():
                raise DefinitionError(
                    f"{spec.owner}.{name} is lookup({spec.table.key.name}, {spec.table.value.name}), and {known.owner}.{name} is "
                    f"lookup({known.table.key.name}, {known.table.value.name}): one name is one lookup; declare the same, or give "
                    f"one another name"
                )
    return found


def contents_of(
    tasks: Iterable[Any], given: Mapping[str, Mapping[Any, Any]]
) -> dict[str, Contents[Any, Any]]:
    """What the lookups of some tasks hold, from plain mappings; raises `SettingsError` where one is missing."""
    found: dict[str, Contents[Any, Any]] = {}
    for name, spec in specs_of(tasks).items():
        if name not in given:
            raise SettingsError(f"{spec.owner} looks into {name!r}; give it: lookups={{{name!r}: ...}}")
        found[name] = Contents(spec.wake(spec.rests(given[name], f"lookups[{name!r}]")))
    return found


def lookup(key: TypeForm[K], value: TypeForm[V]) -> Contents[K, V]:
    """Declare reference data that a task reads: a mapping that the app loads, `App(lookups={name: ...})`.

    >>> from secondpass import Task, lookup
    >>> class Near(Task):
    ...     neighbours = lookup(int, tuple[int, ...])
    ...     def handle(self, event):
    ...         return event.replace(near=self.neighbours.get(event["cid"], ()))
    >>> from secondpass.testing import run
    >>> run(Near(), [{"cid": 7}], lookups={"neighbours": {7: (8, 9)}}).outputs[0]["near"]
    (8, 9)

    All tasks that declare the same name look into the same. It is loaded before the first event; where it is loaded
    again and differs, that is a record of the log, with a position. Values are immutable: scalars, tuples, events.
    Raises `DefinitionError` for other types.
    """
    found: Any = LookupSpec(key, value)
    return found


__all__ = ["Contents", "Loaded", "lookup"]
