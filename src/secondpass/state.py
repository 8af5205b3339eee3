"""A task's memory: tables, values and named outputs, as a task declares and sees them.

Invariants (the rules of meaning, 1, 2, 6 and 8, in one place):

- A cell is a value. What is assigned is copied, and a cell rests in its *resting form*: a scalar as
  itself, everything else as its msgpack bytes. Two cells never share an object.
- A cell holds exactly its declared type.
- What a call touched becomes the cells' content when the call ends well, and nothing of it otherwise.
- A cell of a table with `ttl_s` is gone when `now - written >= ttl_s`, whenever memory is reclaimed.

`Table` is the plain, careful implementation. It serves the reference, a task used alone, and the engine
wherever a call may have to be undone; `engine/overlay.py` has the fast one with the same meaning.
"""

from __future__ import annotations

import contextlib
import decimal
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

import msgspec

from secondpass.codec import Codec, codec_for, is_numpy, is_struct, ordered, pack, plain
from secondpass.errors import DefinitionError, TaskFault
from secondpass.event import UntypedEvent, event_types, owned

if TYPE_CHECKING:
    from typing_extensions import TypeForm

K = TypeVar("K")
V = TypeVar("V")
E = TypeVar("E")
T = TypeVar("T")


class _Missing:
    """The type of `MISSING`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
"""Stands for "no such cell" where None is a possible value."""


class Moment:
    """The place in the stream at which a task is called; what `self.now` and its kin read."""

    __slots__ = ("counts", "drawing", "emitted", "logged", "now", "path", "position")

    def __init__(self) -> None:
        self.now: float = float("-inf")
        self.position: int = -1
        self.path: tuple[int, ...] = ()
        self.counts: dict[str, int] = {}
        self.emitted: list[tuple[str, Any]] = []
        self.logged: list[Any] = []
        self.drawing: tuple[str, Any] | None = None  # the call's random generator, with its seed

    def emit(self, output: str, event: Any) -> None:
        self.emitted.append((output, event))

    def count(self, name: str, n: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + n

    def log(self, record: Any) -> None:
        self.logged.append(record)

    def begin(self) -> None:
        """Forget what the last call put out."""
        self.counts, self.emitted, self.logged, self.drawing = {}, [], [], None


# ---------------------------------------------------------------- declarations


class TableSpec:
    """The declaration `name = table(K, V, ...)`."""

    def __init__(self, key: Any, value: Any, default: Any, factory: Any, ttl_s: float | str | None) -> None:
        self.name = ""
        self.owner = ""
        self.key: Codec = codec_for(key)
        self.value: Codec = codec_for(value)
        self.ttl_s = ttl_s
        _refuse_key_type(self.key.name, self.key.type)
        self.float_keys = _holds_float(self.key.type)
        self._plain_keys = tuple(kind for kind in (int, float, str) if kind in (self.key.quick or ()))
        self._factory: Callable[[], Any] | None = factory
        self._default = default
        if default is not MISSING and factory is not None:
            raise DefinitionError("table(): give default= or factory=, not both")
        if default is not MISSING and not self.value.exact(default):
            raise DefinitionError(f"table(default=): {self.value.explain(default)}")
        if isinstance(ttl_s, (int, float)) and not ttl_s > 0:
            raise DefinitionError(f"table(ttl_s=): {ttl_s!r} is not a positive number of seconds")

    @property
    def has_default(self) -> bool:
        return self._default is not MISSING or self._factory is not None

    def new_default(self) -> Any:
        return self._factory() if self._factory is not None else self._default

    def ttl_of(self, settings: Any) -> float | None:
        """The time to live in seconds, looked up when it names a setting."""
        if not isinstance(self.ttl_s, str):
            return None if self.ttl_s is None else float(self.ttl_s)
        ttl_s = getattr(settings, self.ttl_s, None)
        if not isinstance(ttl_s, (int, float)) or not ttl_s > 0:
            raise DefinitionError(
                f"{self.owner}.{self.name}: ttl_s={self.ttl_s!r} must name a setting that holds a positive "
                f"number of seconds, not {ttl_s!r}"
            )
        return float(ttl_s)

    def describe(self) -> dict[str, Any]:
        """What the store compares at the next start."""
        return {
            "kind": "table",
            "key": self.key.name,
            "value": self.value.name,
            "ttl": self.ttl_s is not None,
        }

    def check_key(self, key: Any) -> None:
        """Refuse a key that would not be found again under itself."""
        if not self.key.exact(key) or key != key:
            pack(key)  # raises what is the event's fault: an integer beyond 64 bits, a lone surrogate
            why = "NaN never equals itself" if key != key else self.key.explain(key)
            raise TaskFault(f"{self.owner}.{self.name}: as a key, {why}")
        if self.float_keys and has_odd_float(key):
            raise TaskFault(
                f"{self.owner}.{self.name}: {key!r} is no key: NaN never equals itself, and -0.0 equals 0.0; "
                f"write 0.0 (x + 0.0)"
            )

    def own_key(self, key: Any, cells: Iterable[Any]) -> Any:
        """The key under which `cells` hold what this one finds: 1.0 finds the cell 1, whose bytes are others."""
        if self.key.exact(key) and not (self.float_keys and has_odd_float(key)):
            return key
        if isinstance(key, (str, int, float)) or is_numpy(key, "number"):
            # Without a look at all cells: there is one number, or string, of the declared type that equals it.
            for kind in self._plain_keys:
                with contextlib.suppress(TypeError, ValueError, OverflowError):
                    own: Any = kind(key)
                    if own == key and not (self.float_keys and has_odd_float(own)):
                        return own
        return next((k for k in cells if k == key), key)

    def rest(self, key: Any, value: Any) -> Any:
        """The resting form of a value; raises `TaskFault` unless it is exactly of the declared type."""
        if not self.value.exact(value):
            pack(value)
            raise TaskFault(f"{self.owner}.{self.name}[{key!r}]: {self.value.explain(value)}")
        return value if self.value.scalar else self.value.encode(value)

    def wake(self, rest: Any) -> Any:
        """A live value from its resting form."""
        return rest if self.value.scalar else self.value.decode(rest)


_ONE_KEY: frozenset[Any] = frozenset({int, float, bool})


def _refuse_key_type(name: str, tp: Any, seen: frozenset[Any] = frozenset()) -> None:
    """Equal keys must have equal bytes, or the store would hold one cell twice."""
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    base = origin or tp
    if origin is typing.Literal or base in seen:
        return
    if base in (frozenset, Mapping):
        raise DefinitionError(f"table(key={name}): sets and mappings have no order; use a sorted tuple")
    if base is decimal.Decimal:
        raise DefinitionError(
            f"table(key={name}): Decimal('1.0') equals Decimal('1.00'); use a str or an int"
        )
    if base in (Any, object) or isinstance(base, TypeVar) or (base is tuple and not args):
        raise DefinitionError(
            f"table(key={name}): 1, 1.0 and True are one key in Python; say what a key holds"
        )
    if origin in (typing.Union, types.UnionType) and len(_ONE_KEY & set(args)) > 1:
        raise DefinitionError(
            f"table(key={name}): 1, 1.0 and True are one key in Python; declare one of them"
        )
    for part in _key_parts(tp):
        _refuse_key_type(name, part, seen | {base})


def _key_parts(tp: Any) -> list[Any]:
    """The types that a key of this type consists of."""
    tp = plain(tp)
    if is_struct(tp) or hasattr(tp, "_make"):  # a named tuple
        return list(typing.get_type_hints(tp).values())
    if typing.get_origin(tp) is typing.Literal:
        return []
    return [a for a in typing.get_args(tp) if a is not Ellipsis]


def _holds_float(tp: Any, seen: frozenset[Any] = frozenset()) -> bool:
    return plain(tp) is float or (
        tp not in seen and any(_holds_float(p, seen | {tp}) for p in _key_parts(tp))
    )


def has_odd_float(key: Any) -> bool:
    """Whether a key is, or holds, NaN or -0.0."""
    if type(key) is float:
        return key != key or (key == 0 and str(key) == "-0.0")
    if isinstance(key, tuple):
        return any(map(has_odd_float, cast("tuple[Any, ...]", key)))
    if is_struct(type(key)):
        return any(has_odd_float(getattr(key, name)) for name in key.__struct_fields__)
    return False


class ValueSpec(Generic[V]):
    """The declaration `name = value(T, default)`; at run time a descriptor over `task._values`."""

    def __init__(self, tp: Any, default: Any) -> None:
        self.name = ""
        self.owner = ""
        self.codec: Codec = codec_for(tp)
        if not self.codec.exact(default):
            raise DefinitionError(f"value(): {self.codec.explain(default)}")
        self.initial: bytes = self.codec.encode(default)

    @overload
    def __get__(self, task: None, owner: Any) -> ValueSpec[V]: ...
    @overload
    def __get__(self, task: object, owner: Any) -> V: ...
    def __get__(self, task: Any, owner: Any) -> Any:
        if task is None:
            return self
        return task._values[self.name]

    def __set__(self, task: Any, new: V) -> None:
        rest = self.rest(new)
        task._values[self.name] = new if self.codec.scalar else self.codec.decode(rest)

    def rest(self, new: Any) -> bytes:
        """The resting form: always bytes, there are few values."""
        data = self.codec.encode(new)
        if not self.codec.exact(new):
            raise TaskFault(f"{self.owner}.{self.name}: {self.codec.explain(new)}")
        return data

    def describe(self) -> dict[str, Any]:
        return {"kind": "value", "value": self.codec.name}


class OutputSpec:
    """The declaration `name = output(T)`."""

    def __init__(self, tp: Any) -> None:
        self.name = ""
        self.owner = ""
        self.type = tp
        self.types = event_types(tp)


# ---------------------------------------------------------------- live forms


class Cells(Protocol):
    """Where a `Table` keeps resting cells; a plain dict is one.

    An entry is the resting form, or `(resting form, written)` in a table with a time to live.
    """

    def get(self, key: Any, default: Any = None, /) -> Any: ...
    def __setitem__(self, key: Any, entry: Any, /) -> None: ...
    def __delitem__(self, key: Any, /) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...


class Table(MutableMapping[K, V]):
    """A task's declared table: a dict whose cells are values.

    >>> seen = Table(TableSpec(int, float, MISSING, None, None), {}, Moment(), None)
    >>> seen[7] = 1.5
    >>> seen == {7: 1.5}, seen.get(8)
    (True, None)

    Changes of a call are put aside until it ends: `check` all tables, then `keep`; or `undo`.
    """

    __slots__ = ("_cells", "_kept", "_moment", "_spec", "_touched", "_ttl_s", "allowed", "on_touch")

    def __init__(self, spec: TableSpec, cells: Cells, moment: Moment, ttl_s: float | None) -> None:
        self._spec = spec
        self._cells = cells
        self._moment = moment
        self._ttl_s = ttl_s
        # key -> [live value, written], or None for a deleted cell
        self._touched: dict[Any, list[Any] | None] = {}
        self._kept: dict[Any, Any] = {}
        self.allowed: frozenset[Any] | None = None
        """The keys this call may touch; None allows all of them."""

    # The five that everything else rests on.

    def _find(self, key: Any) -> list[Any] | None:
        """The live cell `[value, written]` of a key; None where there is none or it has expired."""
        if self.allowed is not None and key not in self.allowed:
            raise self._undeclared(key)
        if key in self._touched:
            cell = self._touched[key]
        else:
            entry = self._cells.get(key, MISSING)
            if entry is MISSING:
                return None
            rest, written = entry if self._ttl_s is not None else (entry, 0.0)
            cell = [self._spec.wake(rest), written]
            if not self._spec.value.scalar:
                self._touched[self._spec.own_key(key, self._cells)] = cell
        if cell is not None and self._ttl_s is not None and self._moment.now - cell[1] >= self._ttl_s:
            return None
        return cell

    def _undeclared(self, key: Any) -> TaskFault:
        return TaskFault(
            f"{self._spec.owner}.{self._spec.name}: key {key!r} is not among those that keys() declared for "
            f"this event; let keys() return it too, or ALL"
        )

    def __getitem__(self, key: K) -> V:
        cell = self._find(key)
        if cell is None:
            if not self._spec.has_default:
                raise KeyError(key)
            self[key] = self._spec.new_default()
            cell = cast("list[Any]", self._find(key))
        return cell[0]

    def __setitem__(self, key: K, value: V) -> None:
        if self.allowed is not None and key not in self.allowed:
            raise self._undeclared(key)
        if not self._spec.key.exact(key) and self._find(key) is not None:
            key = self._own_key(key)  # as in a dict, an equal key finds the cell that is there
        self._spec.check_key(key)
        rest = self._spec.rest(key, value)
        self._touched[key] = [rest if self._spec.value.scalar else self._spec.wake(rest), self._moment.now]

    def __delitem__(self, key: K) -> None:
        if self._find(key) is None:
            raise KeyError(key)
        self._touched[self._own_key(key)] = None

    def _own_key(self, key: Any) -> Any:
        return self._spec.own_key(key, (*self._touched, *self._cells))

    def __iter__(self) -> Iterator[K]:
        if self.allowed is not None:
            raise TaskFault(
                f"{self._spec.owner}.{self._spec.name}: to iterate, measure or clear a table, keys() must return "
                f"ALL for this event"
            )
        known = dict.fromkeys(self._cells)
        known.update(dict.fromkeys(self._touched))
        # Only the living are put in order: what has expired must not decide how keys compare.
        return iter(ordered([k for k in known if self._find(k) is not None]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    # What MutableMapping would do through a default.

    @overload
    def get(self, key: K, default: None = None, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V, /) -> V: ...
    @overload
    def get(self, key: K, default: T, /) -> V | T: ...
    def get(self, key: K, default: Any = None, /) -> Any:
        cell = self._find(key)
        return default if cell is None else cell[0]

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not None

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, default: V, /) -> V: ...
    @overload
    def pop(self, key: K, default: T, /) -> V | T: ...
    def pop(self, key: K, /, *default: Any) -> Any:
        cell = self._find(key)
        if cell is None:
            if default:
                return default[0]
            raise KeyError(key)
        self._touched[self._own_key(key)] = None
        return cell[0]

    def setdefault(self, key: K, default: Any = None) -> V:
        if self._find(key) is None:
            self[key] = default
        return self[key]

    def clear(self) -> None:
        for key in list(self):
            self._touched[key] = None

    def copy(self) -> dict[K, V]:
        """The live cells as a plain dict."""
        return dict(self.items())

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return dict(self.items()) | dict(other.items())

    def __ror__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return dict(other.items()) | dict(self.items())

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    # The end of a call.

    def check(self) -> None:
        """Look at what the call touched; raises, before anything is kept, where it cannot be kept."""
        if not self._spec.value.scalar:  # a scalar was looked at when it was assigned
            rest, ttl_s = self._spec.rest, self._ttl_s
            self._kept = {
                key: MISSING
                if cell is None
                else rest(key, cell[0])
                if ttl_s is None
                else (rest(key, cell[0]), cell[1])
                for key, cell in self._touched.items()
            }

    def keep(self) -> None:
        """Keep what was checked."""
        if not self._touched:
            return
        cells = self._cells
        if self._spec.value.scalar:
            for key, cell in self._touched.items():
                if cell is not None:
                    cells[key] = cell[0] if self._ttl_s is None else (cell[0], cell[1])
                elif cells.get(key, MISSING) is not MISSING:
                    del cells[key]
        else:
            for key, entry in self._kept.items():
                before = cells.get(key, MISSING)
                if entry is not MISSING:
                    if before is MISSING or before != entry:
                        cells[key] = entry
                elif before is not MISSING:
                    del cells[key]
            self._kept.clear()
        self._touched.clear()

    def undo(self) -> None:
        """Forget what the call touched."""
        self._touched.clear()
        self._kept.clear()

    def snapshot(self) -> dict[K, V]:
        """The live cells as a plain dict, in key order."""
        return {k: self._spec.wake(self._spec.rest(k, v)) for k, v in self.items()}


def live_cells(spec: TableSpec, resting: Any, ttl_s: float | None, now: float) -> dict[Any, Any]:
    """A table's content as a plain dict in key order, without what has expired."""
    moment = Moment()
    moment.now = now
    return Table[Any, Any](spec, resting, moment, ttl_s).snapshot()


class CallValues(dict[str, Any]):
    """A task's values during one call: woken on first touch, kept or dropped at its end."""

    def __init__(self, specs: dict[str, ValueSpec[Any]], rests: dict[str, bytes]) -> None:
        super().__init__()
        self._specs = specs
        self._kept: dict[str, bytes] = {}
        self.rests = rests
        self.barred = False
        """Whether this call may touch keys of tables only."""

    def __missing__(self, name: str) -> Any:
        spec = self._specs[name]
        self[name] = live = spec.codec.decode(self.rests.get(name, spec.initial))
        return live

    def check(self) -> None:
        """Look at what the call touched; raises, before anything is kept, where it cannot be kept."""
        if self and self.barred:
            name = next(iter(self))
            raise TaskFault(
                f"{self._specs[name].owner}.{name}: to touch a value, keys() must return ALL for this event"
            )
        self._kept = {name: self._specs[name].rest(live) for name, live in self.items()} if self else {}

    def keep(self) -> None:
        """Keep what was checked."""
        for name, rest in self._kept.items():
            if rest != self.rests.get(name, self._specs[name].initial):
                self.rests[name] = rest
        self._kept = {}
        self.clear()

    def undo(self) -> None:
        """Forget what the call touched."""
        self._kept = {}
        self.clear()


class Output(Generic[E]):
    """A named output of a task: `self.pages.emit(event)`."""

    __slots__ = ("_emit", "_spec", "events")

    def __init__(self, spec: OutputSpec, emit: Callable[[str, Any], None]) -> None:
        self._spec = spec
        self._emit = emit

    def emit(self, event: E) -> None:
        """Put an event out; it is delivered when the epoch is committed."""
        known = self._spec.types
        if (
            known
            and not isinstance(event, known)
            and not (isinstance(event, Mapping) and UntypedEvent in known)
        ):
            raise TaskFault(
                f"{self._spec.owner}.{self._spec.name}.emit: {event!r} is not of the declared type "
                f"{getattr(self._spec.type, '__name__', self._spec.type)}"
            )
        self._emit(self._spec.name, own(event, f"{self._spec.owner}.{self._spec.name}.emit"))


def own(event: Any, where: str) -> Any:
    """`event.owned`, with what cannot be as a fault of the task."""
    try:
        return owned(event)
    except UnicodeEncodeError:
        raise  # a lone surrogate is the event's fault, as an integer beyond 64 bits is
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise TaskFault(f"{where}: {event!r} cannot take its declared types: {error}") from None


# ---------------------------------------------------------------- what a user writes


@overload
def table(key: TypeForm[K], value: TypeForm[V], *, ttl_s: float | str | None = None) -> Table[K, V]: ...
@overload
def table(
    key: TypeForm[K], value: TypeForm[V], *, default: V, ttl_s: float | str | None = None
) -> Table[K, V]: ...
@overload
def table(
    key: TypeForm[K], value: TypeForm[V], *, factory: Callable[[], V], ttl_s: float | str | None = None
) -> Table[K, V]: ...
def table(
    key: Any,
    value: Any,
    *,
    default: Any = MISSING,
    factory: Callable[[], Any] | None = None,
    ttl_s: float | str | None = None,
) -> Any:
    """Declare a table of a task: a dict that survives crashes.

    >>> from secondpass import Task, table
    >>> class Count(Task):
    ...     seen = table(int, int, default=0)
    ...     def handle(self, event):
    ...         self.seen[event["cid"]] += 1

    With a `default` or a `factory` it behaves like a defaultdict. `ttl_s` is a number of seconds, or the
    name of a setting that holds one: a cell is gone when `now - written >= ttl_s`. Values are any msgspec
    type, dataclass, deque, Counter or numpy array. Raises `DefinitionError` for a type that cannot be stored.
    """
    return TableSpec(key, value, default, factory, ttl_s)


def value(tp: TypeForm[V], default: V) -> ValueSpec[V]:
    """Declare a single value of a task: an attribute that survives crashes.

    >>> from secondpass import Task, value
    >>> class Count(Task):
    ...     total = value(int, 0)
    ...     def handle(self, event):
    ...         self.total += 1
    ...         return event
    """
    return ValueSpec(tp, default)


@overload
def output() -> Output[Any]: ...
@overload
def output(tp: TypeForm[E]) -> Output[E]: ...
def output(tp: Any = None) -> Any:
    """Declare a named output of a task, delivered to `App(sinks={name: ...})`.

    >>> from secondpass import Task, output
    >>> class Page(Task):
    ...     pages = output()
    ...     def handle(self, event):
    ...         self.pages.emit(event)
    """
    return OutputSpec(tp)


__all__ = ["Output", "Table", "output", "table", "value"]
