"""From decoded data to events: what JSON lines and CSV rows have in common.

A maker refuses what the rest could not keep (integers beyond 64 bits, values nested too deeply), converts
`time` to seconds, makes untyped data immutable, and warns once of fields that the declared type ignores.
It works on whole lists where that gives the same result, event by event otherwise.
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from secondpass import codec
from secondpass.errors import DefinitionError, SettingsError
from secondpass.event import Event, UntypedEvent, check_event_type, column, event_types, untyped

TimeUnit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[str, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}

NESTED_MAX = 100
"""How deeply an untyped event may be nested: far below what Python's own stack would bear, so that an
event that is taken here can be handled everywhere."""
LOOKED_AT = 1000
"""Of so many records of a run the fields are compared with the declared ones."""

_log = logging.getLogger("secondpass.input")

# Every digit becomes "0": a number beyond 64 bits has at least 19 digits, and a search for 19 zeros costs
# 10 ns a line where a regular expression costs 400. What stands between numbers but never in one is dropped
# on the way, since less is then searched; that can only join digits, which costs a closer look.
_DIGITS_TO_ZERO = bytes(0x30 if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_DROPPED = b' "_' + bytes(range(ord("a"), ord("z") + 1))
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_TOO_MANY_DIGITS = b"0" * 19


class Unfit(Exception):
    """Decoded data that cannot be an event; says why."""


def reason_of(error: Exception) -> str:
    """Why a line was refused, as a dead letter says it."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.object[error.start]:#04x} where text was expected"
    if isinstance(error, (Unfit, msgspec.MsgspecError)):
        return str(error)
    return f"{type(error).__name__}: {error}"  # from the event type's own __post_init__


class Maker:
    """Makes events of one declared type (or untyped ones) from what a decoder gives."""

    def __init__(self, declared: Any, time_unit: TimeUnit, name: str) -> None:
        check_declared(declared, time_unit)
        self.types = event_types(declared)
        self.untyped = declared is None or self.types == (UntypedEvent,)
        for tp in self.types:
            check_event_type(tp)
        self.decoded_type: Any = Any if self.untyped else declared
        self.objects_only = self.untyped or not any(map(_is_array, self.types))
        """Whether every event of the declared type is a JSON object; of untyped ones the decoder does not know."""
        self._per_second = PER_SECOND[time_unit]
        self._integers = (
            "digits" if self.untyped else max((_integers_in(t) for t in self.types), key=_RANK.index)
        )
        self._integer_fields = _plain_integers(self.types) if self._integers == "digits" else []
        named = self.objects_only and not self.untyped
        self._unknown = UnknownFields(name, self.types) if named else None

    @property
    def looks(self) -> bool:
        """Whether `look` still wants to see records."""
        return self._unknown is not None and self._unknown.left > 0

    def look(self, event: Any, fields: Iterable[str]) -> None:
        """Compare the fields of a record with those that its type declares."""
        if self._unknown is not None:
            self._unknown.look(event.__class__, fields)

    def all(self, found: list[Any], data: bytes, *, flat: bool) -> list[Any] | None:
        """Events from all that was decoded from `data`; None when they have to be made one by one.

        `flat` says that no value holds another one.
        """
        if self._suspects_integers(found, data):
            try:
                codec.pack(found)
            except (OverflowError, RecursionError):
                return None
        try:
            if not self.untyped:
                return found if self._per_second == 1.0 else [self._in_seconds(e) for e in found]
            if not flat or self._per_second != 1.0:
                return [self._untyped(d) for d in found]
            return list(map(UntypedEvent, found))
        except Exception:  # noqa: BLE001 - a type's own checks may raise anything; one by one it is pinned to its line
            return None

    def _suspects_integers(self, found: list[Any], data: bytes) -> bool:
        """Whether some integer may be beyond 64 bits."""
        if self._integers == "never" or not found:
            return False
        for read in self._integer_fields:
            numbers = read(found)
            if max(numbers) > _INT_MAX or min(numbers) < _INT_MIN:
                return True
        if self._integer_fields:
            return False
        return self._integers == "always" or _TOO_MANY_DIGITS in data.translate(_DIGITS_TO_ZERO, _DROPPED)

    def one(self, found: Any) -> Any:
        """The event that one decoded value makes; raises when it makes none."""
        if self._integers != "never":
            try:
                codec.pack(found)
            except OverflowError:
                raise Unfit("an integer does not fit into 64 bits; give it as a string or a float") from None
        if self.untyped:
            return self._untyped(found)
        return found if self._per_second == 1.0 else self._in_seconds(found)

    def _untyped(self, found: Any) -> UntypedEvent:
        if not isinstance(found, dict):
            raise Unfit(f"an event is a JSON object, this is {_JSON_NAMES[found.__class__]}")
        fields = typing.cast("dict[str, Any]", found)
        _refuse_deep(fields)
        if self._per_second != 1.0:
            time = fields.get("time")
            if isinstance(time, (int, float)) and not isinstance(time, bool):
                fields = {**fields, "time": time / self._per_second}
        return untyped(fields)

    def _in_seconds(self, event: Any) -> Any:
        time = getattr(event, "time", None)
        return event if time is None else event.replace(time=time / self._per_second)


def _is_array(tp: Any) -> bool:
    """Whether events of this type are JSON arrays."""
    return bool(tp.__struct_config__.array_like)


_JSON_NAMES: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def check_declared(declared: Any, time_unit: str) -> None:
    """Raises `DefinitionError` or `SettingsError` for a type or a time unit that cannot work."""
    types = event_types(declared)
    if Event in types:
        raise DefinitionError("Event itself has no fields; subclass it and name them, or leave the type out")
    if time_unit not in PER_SECOND:
        raise SettingsError(f"time_unit={time_unit!r}: choose one of {', '.join(map(repr, PER_SECOND))}")
    if time_unit == "s" or not types or types == (UntypedEvent,):
        return
    kinds = {t: typing.get_type_hints(t)["time"] for t in types if "time" in typing.get_type_hints(t)}
    if not kinds:
        names = ", ".join(t.__name__ for t in types)
        raise SettingsError(
            f"time_unit={time_unit!r}: {names} has no field `time` to convert; leave time_unit out"
        )
    for tp, kind in kinds.items():
        if kind is not float and set(typing.get_args(kind)) != {float, type(None)}:
            raise SettingsError(
                f"time_unit={time_unit!r}: {tp.__name__}.time is {codec.describe(kind)}, and only float seconds can "
                f"be converted to; declare `time: float`, or leave time_unit out"
            )


# ---------------------------------------------------------------- integers beyond 64 bits

_RANK = ("never", "digits", "always")


def _integers_in(tp: Any, seen: frozenset[Any] = frozenset()) -> str:
    """Whether values of a type can hold an integer beyond 64 bits.

    "never"; "digits": only where the line has a long run of digits; "always": the keys of a mapping are
    strings, whose digits may be spelled as escapes.
    """
    if tp in seen:
        return "never"
    if codec.is_struct(tp):
        inner = [_integers_in(f.type, seen | {tp}) for f in msgspec.structs.fields(tp)]
    elif typing.get_origin(tp) is Mapping:
        key, value = typing.get_args(tp)
        inner = [_integers_in(value, seen), "never" if key is str else "always"]
    elif typing.get_args(tp) and typing.get_origin(tp) is not Literal:
        inner = [_integers_in(a, seen) for a in typing.get_args(tp)]
    else:
        inner = ["never" if tp in (float, str, bytes, bool, None, type(None)) else "digits"]
    return max(inner, key=_RANK.index, default="never")


def _plain_integers(types: tuple[type, ...]) -> list[Callable[[list[Any]], list[int]]]:
    """Readers of the integer fields, where looking at their values costs less than at the line's digits.

    That is where all events are of one type and it holds integers in one or two plain `int` fields only.
    """
    if len(types) != 1:
        return []
    fields = msgspec.structs.fields(types[0])
    holding = [f for f in fields if _integers_in(f.type) != "never"]
    plain = all(f.type is int for f in holding)
    return [column(f.name) for f in holding] if plain and len(holding) <= 2 else []


# ---------------------------------------------------------------- depth


def _refuse_deep(value: Any, depth: int = 0) -> None:
    if depth > NESTED_MAX:
        raise Unfit(f"nested too deeply: more than {NESTED_MAX} levels")
    inner: Iterable[Any] = typing.cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
    for part in inner:
        if isinstance(part, (dict, list)):
            _refuse_deep(part, depth + 1)


# ---------------------------------------------------------------- unknown fields


class UnknownFields:
    """Warns once of fields in the input that the declared type does not have: a typo looks the same."""

    def __init__(self, name: str, types: tuple[type, ...]) -> None:
        self._name = name
        self._known = {t: _field_names(t) for t in types}
        self.left = LOOKED_AT

    def look(self, tp: type, fields: Iterable[str]) -> None:
        """Compare the fields of one record."""
        self.left -= 1
        unknown = [f for f in fields if f not in self._known[tp]]
        if unknown:
            self.left = 0
            _log.warning(
                "%s: the input has fields that %s does not declare, and they are ignored: %s",
                self._name,
                tp.__name__,
                ", ".join(unknown),
            )


def _field_names(tp: Any) -> frozenset[str]:
    names = {f.encode_name for f in msgspec.structs.fields(tp)}
    tag_field = tp.__struct_config__.tag_field
    return frozenset(names | ({tag_field} if tag_field else set()))
