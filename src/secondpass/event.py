"""Events: what a stream consists of and a task handles.

Invariants: an event is immutable all the way down, so it can be shared between tasks, epochs and
processes; it equals its decoded encoding. Typed events are frozen msgspec Structs. Untyped ones, for a
quick start, are read-only mappings.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, dataclass_transform

import msgspec

from secondpass import codec
from secondpass.errors import DefinitionError

if TYPE_CHECKING:

    @dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
    class EventMeta(msgspec.StructMeta):
        """Tells type checkers that an event class is a frozen dataclass."""
else:
    # A real subclass would cost 30 ns an event.
    EventMeta = msgspec.StructMeta

T = TypeVar("T", bound="Event")

LATEST_TIME_S = 1e11
"""Event times above this are refused: they are milliseconds taken for seconds (1e11 s is the year 5138)."""


class Event(msgspec.Struct, frozen=True, gc=False, metaclass=EventMeta):
    """A typed, immutable event: subclass it and name the fields.

    >>> class Detection(Event):
    ...     cid: int            # camera position
    ...     time: float         # event time, seconds
    >>> seen = Detection(cid=7, time=12.5)
    >>> seen.replace(cid=8)
    Detection(cid=8, time=12.5)

    Fields are immutable types: scalars, str, bytes, aware datetimes, enums, tuple, frozenset, frozen
    Structs, `Mapping`, numpy arrays. A field called `time` (seconds, or an aware datetime) is the
    event's time; a foreign name is given with `class Alarm(Event, rename={"time": "start_timestamp"})`.
    Raises `DefinitionError` at class definition for a mutable field, naming the type to use instead.
    """

    def __init_subclass__(cls, **config: Any) -> None:
        super().__init_subclass__(**config)
        try:
            # The bases' own fields were checked when they were defined.
            hints = typing.get_type_hints(cls, include_extras=True)
        except NameError:
            hints = {}  # a forward reference: `check_event_type` looks again when an app uses the class
        if hints:
            _refuse_mutable_fields(cls, hints)
            own = getattr(cls, "__post_init__", None)  # its own, or that of a base
            seal = _sealer(hints, own)
            if seal is not None:
                cls.__post_init__ = seal  # type: ignore[attr-defined]  # msgspec looks it up by this name

    def replace(self, **changes: Any) -> Self:
        """This event with some fields changed.

        >>> class Probe(Event):
        ...     value: float
        >>> Probe(value=1.0).replace(value=2.0)
        Probe(value=2.0)
        """
        return msgspec.structs.replace(self, **changes)

    def to(self, other: type[T], /, **fields: Any) -> T:
        """An event of another type, taking the fields of the same name from this one.

        >>> class Probe(Event):
        ...     value: float
        >>> class Alert(Event):
        ...     value: float
        ...     level: str
        >>> Probe(value=1.0).to(Alert, level="high")
        Alert(value=1.0, level='high')
        """
        mine = self.__struct_fields__
        for name in other.__struct_fields__:
            if name not in fields and name in mine:
                fields[name] = getattr(self, name)
        return other(**fields)


def _refuse_mutable_fields(cls: type, hints: Mapping[str, Any]) -> None:
    for name, tp in hints.items():
        found = codec.mutable_part(tp)
        if found is not None and not name.startswith("__"):
            part, instead = found
            raise DefinitionError(
                f"{cls.__name__}.{name}: an event is immutable, and {codec.describe(part)} is not; use {instead}"
            )


def _sealer(hints: Mapping[str, Any], own: Callable[[Any], None] | None) -> Callable[[Any], None] | None:
    """What makes mappings, arrays and datetimes of a new event immutable; None when it has none."""
    seals = [(name, seal) for name, tp in hints.items() if (seal := _seal_for(tp)) is not None]
    if not seals:
        return None

    def __post_init__(self: Any) -> None:  # noqa: N807  # msgspec calls it by this name
        for name, seal in seals:
            value = getattr(self, name)
            sealed = seal(value)
            if sealed is not value:
                msgspec.structs.force_setattr(self, name, sealed)
        if own is not None:
            own(self)

    __post_init__.only_seals = own is None  # type: ignore[attr-defined]  # the codec asks
    return __post_init__


def _seal_for(tp: Any) -> Callable[[Any], Any] | None:
    if tp is datetime.datetime or set(typing.get_args(tp)) == {datetime.datetime, type(None)}:
        return _seal_datetime
    return _seal if _may_be_open(tp) else None


_OPEN_BARE: tuple[Any, ...] = (tuple, frozenset)


def _may_be_open(tp: Any, _seen: frozenset[Any] = frozenset()) -> bool:
    """Whether a decoded value of this type can hold something mutable, or a datetime, at any depth."""
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    base: Any = tp if origin is None else origin
    if origin is typing.Literal or base in _seen:
        return False
    if base in (Any, object, datetime.datetime, Mapping) or isinstance(base, TypeVar):
        return True
    if base in _OPEN_BARE and not args:
        return True
    if codec.is_struct(base):  # other events seal themselves
        hints = () if issubclass(base, Event) else typing.get_type_hints(base).values()
        return any(_may_be_open(t, _seen | {base}) for t in hints)
    if base is not tuple and codec.is_class(base) and issubclass(base, tuple):
        hints = typing.get_type_hints(typing.cast("Any", base)).values()
        return any(_may_be_open(t, _seen | {base}) for t in hints)
    if codec.is_array(tp):
        return True
    return any(_may_be_open(a, _seen) for a in args)


def _seal(value: Any) -> Any:
    _refuse_naive(value)
    return freeze(value)


def _refuse_naive(value: Any) -> None:
    if isinstance(value, datetime.datetime):
        _seal_datetime(value)
    elif isinstance(value, Mapping):
        for part in typing.cast("Mapping[Any, Any]", value).values():
            _refuse_naive(part)
    elif isinstance(value, (tuple, list, frozenset)):
        for part in typing.cast("Collection[Any]", value):
            _refuse_naive(part)


def _seal_datetime(value: Any) -> Any:
    if not isinstance(value, datetime.datetime):
        return value
    if value.tzinfo is None:
        raise ValueError(f"the datetime {value.isoformat()} has no time zone; events hold aware datetimes")
    return value if value.tzinfo is datetime.UTC else value.astimezone(datetime.UTC)


_SEALED = (bytes, codec.SealedMap)
"""What an array may lie on that nobody can change: what it was decoded from."""


def freeze(value: Any) -> Any:
    """The immutable twin of what a JSON decoder gives; the value itself where it already is.

    >>> freeze({"tags": ["a"]})
    {'tags': ('a',)}
    """
    kind = value.__class__
    if kind in codec.SCALARS or kind is ReadOnlyDict or kind is UntypedEvent:
        return value
    if kind is dict:
        return ReadOnlyDict({k: freeze(v) for k, v in value.items()})
    if kind is list or kind is tuple:
        return tuple(map(freeze, value))
    if kind is set or kind is frozenset:
        return frozenset(map(freeze, value))
    if kind is bytearray or kind is memoryview:
        return bytes(value)
    if kind is datetime.datetime:
        return value if value.tzinfo is None else _seal_datetime(value)
    if hasattr(kind, "__struct_fields__"):
        return _freeze_struct(value)
    if hasattr(kind, "_make"):  # a named tuple
        return kind._make(map(freeze, value))
    if codec.is_numpy(value, "ndarray"):
        # A read-only view (`broadcast_to`, a slice) changes with the array that it looks at, unless that is sealed.
        flags = value.flags
        if flags.writeable or not flags.c_contiguous or not (flags.owndata or type(value.base) in _SEALED):
            value = value.copy()
            value.setflags(write=False)
        return value
    if codec.is_numpy(value, "generic"):
        return value.item()
    if isinstance(value, Mapping):
        found = typing.cast("Mapping[Any, Any]", value)
        return ReadOnlyDict({k: freeze(v) for k, v in found.items()})
    return value


def _freeze_struct(value: Any) -> Any:
    """A frozen Struct inside an event, with what it holds made immutable."""
    if isinstance(value, Event) or not value.__struct_config__.frozen:
        return value
    changes: dict[str, Any] = {}
    for name in value.__struct_fields__:
        part = getattr(value, name)
        frozen = freeze(part)
        if frozen is not part:
            changes[name] = frozen
    return msgspec.structs.replace(value, **changes) if changes else value


class ReadOnlyDict(dict[Any, Any]):
    """A mapping that refuses to be changed; what a `Mapping` field of an event arrives as."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("events and settings are read-only; event.replace(field=value) gives a changed one")

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self),))


class UntypedEvent(ReadOnlyDict):
    """An event without a declared type: a read-only mapping, for a quick start.

    >>> seen = UntypedEvent(cid=7, time=12.5)
    >>> seen["cid"], seen.replace(cid=8)["cid"]
    (7, 8)
    """

    __slots__ = ()

    def replace(self, **changes: Any) -> UntypedEvent:
        """This event with some fields changed or added."""
        return UntypedEvent({**self, **{k: freeze(v) for k, v in changes.items()}})


def untyped(fields: Mapping[str, Any]) -> UntypedEvent:
    """An untyped event from plain decoded data, immutable all the way down.

    >>> untyped({"cid": 7, "tags": ["a"]})["tags"]
    ('a',)
    """
    return UntypedEvent({k: freeze(v) for k, v in fields.items()})


def owned(value: Any) -> Any:
    """A new event as it leaves a task: of its declared types, sharing nothing that can change.

    Raises what msgspec raises where a field cannot become its declared type.
    """
    if isinstance(value, Event):
        found = codec.codec_for(type(value))
        return value if found.exact(value) else found.round_trip(value)
    # Frozen first: a table among the fields is read as the mapping that it is.
    return untyped(codec.unpack(codec.pack(untyped(value))))


def check_event_type(tp: Any) -> None:
    """Look again at event types whose annotations could not be resolved when they were defined."""
    if isinstance(tp, type) and issubclass(tp, Event):
        try:
            hints = typing.get_type_hints(tp, include_extras=True)
        except NameError as error:
            raise DefinitionError(f"{tp.__name__}: an annotation names something unknown: {error}") from None
        _refuse_mutable_fields(tp, hints)


def event_types(tp: Any) -> tuple[type, ...]:
    """The event classes that a declared type admits; empty for "any".

    >>> event_types(None)
    ()
    """
    if tp is None or tp is Any or isinstance(tp, TypeVar):
        return ()
    args = typing.get_args(tp)
    if args:
        return tuple(t for a in args for t in event_types(a))
    if tp is Event:
        return (Event,)
    if isinstance(tp, type) and issubclass(tp, (Event, dict)):
        return (UntypedEvent,) if issubclass(tp, dict) else (tp,)
    if tp is Mapping:
        return (UntypedEvent,)
    raise DefinitionError(f"{tp!r} is no event type; subclass secondpass.Event, or leave the type out")


@functools.lru_cache(maxsize=4096)
def time_reader(tp: type[Any]) -> Callable[[Any], float | None]:
    """How the time of events of this class is read, in seconds; gives None where there is none."""
    if issubclass(tp, UntypedEvent):
        return _untyped_time
    if "time" not in tp.__struct_fields__:
        return lambda _: None
    hints = typing.get_type_hints(tp)
    if not _parts(hints["time"]) <= _TIMES:
        raise DefinitionError(
            f"{tp.__name__}.time is a {codec.describe(hints['time'])}: an event's time is seconds (a float) or an aware "
            f"datetime; call the field otherwise, or rename it"
        )
    if hints.get("time") is float:
        return operator.attrgetter("time")
    return _any_time


def column(name: str) -> Callable[[list[Any]], list[Any]]:
    """Reads one field of many events: a comprehension over a fixed name is four times as fast as a getter.

    >>> class Probe(Event):
    ...     value: float
    >>> column("value")([Probe(value=1.0), Probe(value=2.0)])
    [1.0, 2.0]
    """
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no field's name")
    return typing.cast("Callable[[list[Any]], list[Any]]", eval(f"lambda events: [e.{name} for e in events]"))  # noqa: S307 - an identifier


@functools.lru_cache(maxsize=4096)
def times_reader(tp: type[Any]) -> Callable[[list[Any]], list[float | None]]:
    """`time_reader` over many events of one class at once."""
    one = time_reader(tp)
    if isinstance(one, operator.attrgetter):
        return column("time")
    if one is not _untyped_time:
        return lambda events: list(map(one, events))

    def untyped_times(events: list[Any]) -> list[float | None]:
        try:
            times = [e["time"] for e in events]
        except KeyError:
            return list(map(one, events))
        kinds = set(map(type, times))
        if kinds == {float}:
            return times
        return list(map(float, times)) if kinds <= {float, int} else list(map(one, events))

    return untyped_times


_TIMES: frozenset[Any] = frozenset({float, int, decimal.Decimal, datetime.datetime, type(None), Any})


def _parts(tp: Any) -> set[Any]:
    tp = codec.plain(tp)
    if typing.get_origin(tp) in (typing.Union, types.UnionType):
        return {part for arg in typing.get_args(tp) for part in _parts(arg)}
    return {tp}


def _untyped_time(event: UntypedEvent) -> float | None:
    time = event.get("time")
    if type(time) is float:
        return time
    if type(time) is int:
        return float(time)
    if time is None or isinstance(time, bool):
        return None
    if isinstance(time, str):
        try:
            time = datetime.datetime.fromisoformat(time)
        except ValueError:
            return float("nan")  # is refused like any other time that is none
    if isinstance(time, datetime.datetime):
        return float("nan") if time.tzinfo is None else time.timestamp()
    return None


def _any_time(event: Any) -> float | None:
    time = event.time
    if isinstance(time, datetime.datetime):
        return time.timestamp()
    return None if time is None else float(time)
