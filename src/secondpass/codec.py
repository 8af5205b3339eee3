"""How a declared type is checked, encoded and decoded: what makes a value the same before and after a crash.

A cell or an event is a value: it equals its decoded encoding, in value and in type. The encoding is
msgpack; what msgpack does not know is spelled in what it does:

    deque            [maxlen or nil, [items]]
    Counter          map
    numpy array      [dtype, [shape], bytes]      (contiguous, little details of memory layout are lost)
    numpy scalar     the Python number

On the way to another process the bytes of a large array, and of a large cell, go beside the encoding (`pack_beside`),
not into it.

A `Codec` answers three questions about its type: is this value exactly of it (`exact`), what are its
bytes (`encode`), and what do bytes mean (`decode`).
"""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import functools
import mmap
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec
import msgspec.inspect

from secondpass.errors import DefinitionError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

SCALARS: frozenset[Any] = frozenset({int, float, str, bool, bytes, type(None)})
_OTHER_IMMUTABLES = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
)
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1

# What to write instead of a mutable type where only immutable ones are allowed.
_ADVICE: dict[Any, str] = {
    list: "tuple[..., ...] (for example tuple[float, ...])",
    dict: "Mapping[K, V] (from collections.abc; it arrives read-only)",
    set: "frozenset[T]",
    bytearray: "bytes",
    collections.deque: "tuple[T, ...]",
    collections.Counter: "Mapping[K, int]",
    collections.defaultdict: "Mapping[K, V]",
}


# ---------------------------------------------------------------- encoding


def is_numpy(value_or_type: Any, name: str) -> bool:
    """Whether this is (an instance of) numpy's `name`, without importing numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    cls = value_or_type if isinstance(value_or_type, type) else type(value_or_type)
    return issubclass(cls, getattr(numpy, name))


def is_array(tp: Any) -> bool:
    """Whether a declared type is a numpy array's."""
    return getattr(typing.get_origin(tp) or tp, "__name__", "") == "ndarray"


def _bytes_of(array: Any) -> memoryview | bytes:
    """The content of a numpy array: a view where there can be one, since to copy a large array takes long."""
    if not array.flags.c_contiguous or not array.nbytes:
        return array.tobytes()
    return memoryview(array.reshape(-1).view("u1")).cast(
        "B"
    )  # not all kinds, as dates, have a view of their own


def encode_hook(obj: Any) -> Any:
    """Spell what msgpack and JSON do not know in what they do."""
    if isinstance(obj, collections.deque):
        items = typing.cast("collections.deque[Any]", obj)
        return [items.maxlen, list(items)]
    if is_numpy(obj, "ndarray"):
        if obj.dtype.hasobject:
            raise TypeError(f"a numpy array of dtype {obj.dtype} holds Python objects and cannot be encoded")
        return [obj.dtype.str, list(obj.shape), _bytes_of(obj)]
    if is_numpy(obj, "generic"):
        return obj.item()
    raise TypeError(f"a {type(obj).__name__} cannot be encoded")


def _items_hook(obj: Any) -> Any:
    if isinstance(obj, collections.deque):
        return list(typing.cast("collections.deque[Any]", obj))
    return encode_hook(obj)


def decode_hook(tp: Any, obj: Any) -> Any:
    """The inverse of `encode_hook`, given the declared type."""
    if is_array(tp):
        return _array(obj).copy()  # a cell's array may be changed in place
    origin = typing.get_origin(tp) or tp
    if origin is collections.deque:
        maxlen, items = obj
        args = typing.get_args(tp)
        if args:
            items = msgspec.convert(items, list[args[0]], dec_hook=decode_hook)
        return collections.deque(items, maxlen)
    if origin is collections.Counter:
        (key,) = typing.get_args(tp) or (Any,)
        return collections.Counter(msgspec.convert(obj, dict[key, int], dec_hook=decode_hook))
    raise TypeError(f"a {tp!r} cannot be decoded")


def _decode_sealed(tp: Any, obj: Any) -> Any:
    """`decode_hook` inside of events: an array stays on the bytes it came as, and can never be changed."""
    return _array(obj) if is_array(tp) else decode_hook(tp, obj)


def _array(spelled: tuple[str, list[int], bytes | memoryview]) -> Any:
    import numpy  # only a type that mentions numpy comes here

    dtype, shape, data = spelled
    return numpy.ndarray(shape, dtype, buffer=data)  # read-only, as `bytes` and what lies beside are


_spelled_array = msgspec.msgpack.Decoder(tuple[str, list[int], memoryview]).decode


def _decode_array(data: bytes | bytearray | memoryview | msgspec.Raw) -> Any:
    """What `decode_hook` makes of an array that is a whole cell, with one copy less: of a view, not of bytes."""
    return _array(_spelled_array(data)).copy()


pack = msgspec.msgpack.Encoder(enc_hook=encode_hook).encode
pack_items = msgspec.msgpack.Encoder(enc_hook=_items_hook).encode
"""For people: a deque is its items."""
unpack = msgspec.msgpack.Decoder().decode


# ---------------------------------------------------------------- large arrays beside the bytes

BESIDE_FROM = 1 << 18
"""Arrays of so many bytes go beside: below, a copy costs less, and an array would keep too large a message alive."""

_BESIDE = -2  # msgpack keeps the codes below 0 from applications
_Ext = msgspec.msgpack.Ext


class SealedMap(mmap.mmap):
    """Memory mapped read-only that nobody writes any more: what lies on it is immutable, unlike a user's own map."""


class Large:
    """Bytes that `pack_beside` leaves where they are."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data


def pack_beside(value: Any) -> tuple[bytes, list[memoryview]]:
    """The bytes of a value, and the content of its large arrays, which is not copied; `found_beside` puts it back."""
    beside: list[memoryview] = []

    def hook(obj: Any) -> Any:
        if obj.__class__ is Large:
            beside.append(memoryview(obj.data))
            return _Ext(_BESIDE, (len(beside) - 1).to_bytes(4, "big"))
        spelled = encode_hook(obj)
        if is_numpy(obj, "ndarray") and obj.nbytes >= BESIDE_FROM:
            beside.append(memoryview(spelled[2]))
            spelled[2] = _Ext(_BESIDE, (len(beside) - 1).to_bytes(4, "big"))
        return spelled

    return msgspec.msgpack.Encoder(enc_hook=hook).encode(value), beside


def found_beside(beside: Sequence[bytes | memoryview]) -> Callable[[int, memoryview], Any]:
    """A decoder's `ext_hook` that finds beside the bytes what `pack_beside` has left there."""

    def hook(code: int, data: memoryview) -> Any:
        return beside[int.from_bytes(data, "big")] if code == _BESIDE else _Ext(code, bytes(data))

    return hook


# ---------------------------------------------------------------- what a type is


def describe(tp: Any, _inside: frozenset[Any] = frozenset()) -> str:
    """A name for a type that stays the same from run to run: what the store keeps to compare."""
    if tp is None or tp is type(None):
        return "None"
    if tp is Any:
        return "Any"
    origin = typing.get_origin(tp)
    args = typing.get_args(tp)
    if origin is typing.Annotated:
        return describe(args[0], _inside)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(describe(a, _inside) for a in args)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is not None:
        inner = ", ".join("..." if a is Ellipsis else describe(a, _inside) for a in args)
        return f"{origin.__name__}[{inner}]"
    if is_struct(tp) and tp not in _inside:
        inside = _inside | {tp}
        fields = ", ".join(f"{f.encode_name}: {describe(f.type, inside)}" for f in msgspec.structs.fields(tp))
        return f"{tp.__name__}({fields})"
    if is_class(tp) and tp not in _inside and (hasattr(tp, "__dataclass_fields__") or hasattr(tp, "_fields")):
        inside, hints = _inside | {tp}, typing.get_type_hints(tp)
        return f"{tp.__name__}({', '.join(f'{n}: {describe(t, inside)}' for n, t in hints.items())})"
    return tp.__name__ if is_class(tp) else repr(tp)


def is_class(found: Any) -> TypeGuard[type[Any]]:
    """Whether this is a class, said so that nothing unknown is left of its type."""
    return isinstance(found, type)


def plain(tp: Any) -> Any:
    """The type that a `NewType` stands for; any other as it is."""
    while hasattr(tp, "__supertype__"):
        tp = tp.__supertype__
    return tp


def is_struct(tp: Any) -> TypeIs[type[msgspec.Struct]]:
    """Whether this is a msgspec Struct class: an event, or a part of one."""
    return isinstance(tp, type) and issubclass(tp, msgspec.Struct)


def mutable_part(tp: Any, _seen: frozenset[Any] = frozenset()) -> tuple[Any, str] | None:
    """The first mutable type inside `tp` with the advice what to write instead; None when there is none."""
    tp = plain(tp)
    if tp is Any or tp in SCALARS or tp in _OTHER_IMMUTABLES or tp is None or tp in _seen:
        return None
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    if origin is typing.Literal or isinstance(tp, typing.TypeVar):
        return None
    if tp in _ADVICE or origin in _ADVICE:
        return tp, _ADVICE[origin or tp]
    if origin is typing.Annotated:
        return mutable_part(args[0], _seen)
    if origin in (tuple, frozenset, typing.Union, types.UnionType, Mapping):
        parts = (mutable_part(a, _seen) for a in args if a is not Ellipsis)
        return next((p for p in parts if p is not None), None)
    if tp in (tuple, frozenset, Mapping):
        return None
    if is_struct(tp):
        if not tp.__struct_config__.frozen:
            return tp, f"a frozen one: class {tp.__name__}(msgspec.Struct, frozen=True), or an Event"
        parts = (mutable_part(f.type, _seen | {tp}) for f in msgspec.structs.fields(tp))
        return next((p for p in parts if p is not None), None)
    if is_class(tp) and issubclass(tp, (enum.Enum, tuple)):
        return None
    if is_array(tp):
        return None
    return tp, "a frozen msgspec.Struct, a tuple or a scalar"


# ---------------------------------------------------------------- exactness


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type, all the way down."""
    kind = a.__class__
    if kind is not b.__class__:
        return False
    if issubclass(kind, float):
        return a == b or (a != a and b != b)
    if issubclass(kind, (str, bytes, int, enum.Enum)) or a is None:
        return bool(a == b)
    if issubclass(kind, (datetime.datetime, datetime.time)):
        # Equal instants of two time zones are not the same: their hours differ.
        return bool(a == b) and a.utcoffset() == b.utcoffset()
    if issubclass(kind, collections.deque):
        return a.maxlen == b.maxlen and len(a) == len(b) and all(map(same, a, b))
    if issubclass(kind, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if issubclass(kind, Mapping):
        return len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    if issubclass(kind, (set, frozenset)):
        # Equal sets may hold 1 and 1.0: compare the types too.
        return a == b and collections.Counter(map(type, a)) == collections.Counter(map(type, b))
    if is_struct(type(a)):
        return all(same(getattr(a, f), getattr(b, f)) for f in a.__struct_fields__)
    if is_numpy(a, "ndarray"):
        order = a.flags.c_contiguous == b.flags.c_contiguous  # sums depend on it
        return order and a.dtype == b.dtype and a.shape == b.shape and _bytes_of(a) == _bytes_of(b)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    return bool(a == b)


def _refuse_strangers(tp: Any) -> None:
    """Raises `DefinitionError` for a class that could be written but not read back as itself."""
    seen: set[int] = set()
    waiting: list[Any] = [msgspec.inspect.type_info(tp), *map(msgspec.inspect.type_info, _inside_deques(tp))]
    while waiting:
        found = waiting.pop()
        if isinstance(found, tuple):
            waiting += typing.cast("tuple[Any, ...]", found)
        elif isinstance(found, msgspec.inspect.CustomType):
            cls = found.cls
            if cls not in (collections.deque, collections.Counter) and cls.__name__ != "ndarray":
                known = "dict" if issubclass(cls, dict) else "a dataclass, a msgspec.Struct or a plain type"
                raise DefinitionError(
                    f"{describe(tp)} cannot be stored: nobody knows what a {cls.__name__} holds; use {known}"
                )
        elif isinstance(found, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(found) not in seen:
            seen.add(id(found))
            waiting += [getattr(found, name) for name in found.__struct_fields__]


def _inside_deques(tp: Any) -> list[Any]:
    """The arguments of deques and Counters, which msgspec does not look into."""
    args = typing.get_args(tp)
    inner = [part for arg in args for part in _inside_deques(arg)]
    return [*args, *inner] if typing.get_origin(tp) in (collections.deque, collections.Counter) else inner


def _exact_scalar(tp: Any) -> Callable[[Any], bool]:
    if tp is int:
        return lambda v: type(v) is int and _INT_MIN <= v <= _INT_MAX
    if tp is str:
        return lambda v: type(v) is str and (v.isascii() or _encodes(v))
    return lambda v: type(v) is tp


def _exact_datetime(value: Any) -> bool:
    """An instant is read back in UTC; one without a zone as it is."""
    if type(value) is not datetime.datetime:
        return False
    if value.tzinfo is None or value.tzinfo is datetime.UTC:
        return True
    return same(msgspec.msgpack.decode(pack(value), type=datetime.datetime), value)


def _exact_array(value: Any) -> bool:
    """An array is read back in C order, of numpy's own class, its dtype from its short spelling."""
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and type(value) is numpy.ndarray
        and value.flags.c_contiguous
        and not value.dtype.hasobject
        and numpy.dtype(value.dtype.str) == value.dtype
    )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quick_types(tp: Any) -> frozenset[type] | None:
    """The Python types a scalar (or a union of scalars) may have; None for everything else."""
    tp = plain(tp)
    if tp in SCALARS or tp is None:
        return frozenset({type(None) if tp is None else tp})
    if typing.get_origin(tp) in (typing.Union, types.UnionType):
        found: frozenset[type] = frozenset()
        for arg in typing.get_args(tp):
            part = _quick_types(arg)
            if part is None:
                return None
            found |= part
        return found
    return None


class Codec:
    """One declared type: how its values are checked, encoded and decoded.

    >>> codec = codec_for(list[float])
    >>> codec.exact([1.0, 2.0]), codec.exact([1, 2.0])
    (True, False)
    >>> codec.decode(codec.encode([1.0, 2.0]))
    [1.0, 2.0]
    """

    def __init__(self, tp: Any) -> None:
        self.type = tp
        self.name = describe(tp)
        try:
            self._hook = _decode_sealed if _sealed(tp) else decode_hook
            self._decoder = msgspec.msgpack.Decoder(tp, dec_hook=self._hook)
        except TypeError as error:
            raise DefinitionError(f"the type {tp!r} cannot be stored: {error}") from None
        self._decode = _decode_array if is_array(plain(tp)) else self._decoder.decode
        self.quick = _quick_types(tp)
        self.scalar = self.quick is not None
        if not self.scalar:
            _refuse_strangers(tp)
        self.encode: Callable[[Any], bytes] = pack
        self.exact: Callable[[Any], bool] = self._compile()

    def decode(self, data: bytes | bytearray | memoryview | msgspec.Raw) -> Any:
        """The value that these bytes mean."""
        return self._decode(data)

    def round_trip(self, value: Any) -> Any:
        """What a value becomes when it is written and read: its declared types, sharing nothing."""
        return self._decode(pack(value))

    def decoder(self, beside: Sequence[bytes | memoryview] = ()) -> msgspec.msgpack.Decoder[Any]:
        """Decodes values of this type of which large arrays came beside."""
        return msgspec.msgpack.Decoder(self.type, dec_hook=self._hook, ext_hook=found_beside(beside))

    def decoder_of_list(
        self, beside: Sequence[bytes | memoryview] = ()
    ) -> msgspec.msgpack.Decoder[list[Any]]:
        """Decodes a list of values of this type in one go."""
        return msgspec.msgpack.Decoder(list[self.type], dec_hook=self._hook, ext_hook=found_beside(beside))

    def explain(self, value: Any) -> str:
        """Why a value is not exactly of this type, with what to write where that is known."""
        got = value.__class__
        if got is int and self.quick and float in self.quick and int not in self.quick:
            return f"{value!r} is an int, the declared type is {self.name}; write {float(value)!r}"
        if is_numpy(value, "generic"):
            return (
                f"{value!r} is a numpy {got.__name__}, the declared type is {self.name}; "
                f"write {type(value.item()).__name__}(...)"
            )
        if is_numpy(value, "ndarray") and not value.flags.c_contiguous:
            return "the array is not in C order, as it would be read back; write numpy.ascontiguousarray(...)"
        if got is bool:
            return f"{value!r} is a bool, the declared type is {self.name}"
        if got is int and not _INT_MIN <= value <= _INT_MAX:
            return f"{value!r} does not fit into 64 bits"
        return f"{_short(value)} ({got.__name__}) is not exactly what it would be read back as: {self.name}"

    def _exact_by_round_trip(self, value: Any) -> bool:
        try:
            return same(self.round_trip(value), value)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
            return False

    def _compile(self) -> Callable[[Any], bool]:
        """The cheapest check that never differs from a round trip."""
        tp = self.type
        if is_struct(tp):
            if getattr(getattr(tp, "__post_init__", None), "only_seals", not hasattr(tp, "__post_init__")):
                checks = [(f.name, _check_of(f.type)) for f in msgspec.structs.fields(tp)]
                known = [(name, check) for name, check in checks if check is not None]
                if len(known) == len(checks):
                    return _compile_struct(tp, known)
            return self._exact_by_round_trip
        check = _check_of(tp)
        if isinstance(check, type):
            return _exact_scalar(check)
        return check or self._exact_by_round_trip


def _sealed(tp: Any) -> bool:
    """Whether values of this type make themselves immutable when they are made: events that hold more than scalars."""
    return is_struct(tp) and hasattr(getattr(tp, "__post_init__", None), "only_seals")


def _check_of(tp: Any) -> Callable[[Any], bool] | type | None:
    """A check without a round trip, a bare type where `type(v) is T` is enough; None where there is none."""
    tp = plain(tp)
    quick = _quick_types(tp)
    if quick is not None:
        return _exact_scalar_or_union(quick)
    if tp is datetime.datetime:
        return _exact_datetime
    if is_array(tp):
        return _exact_array
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    if origin is list or (origin is tuple and len(args) == 2 and args[1] is Ellipsis):
        inner = _quick_types(args[0])
        if inner is not None and not inner & {int, str}:
            return _exact_sequence(origin, inner)
    if origin in (typing.Union, types.UnionType) and len(args) == 2 and type(None) in args:
        check = _check_of(next(a for a in args if a is not type(None)))
        if check is not None and not isinstance(check, type):
            return _exact_or_none(check)
    return None


def _exact_or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v is None or check(v)


def _exact_union(quick: frozenset[type]) -> Callable[[Any], bool]:
    checks = {tp: _exact_scalar(tp) for tp in quick}
    return lambda v: type(v) in checks and checks[type(v)](v)


def _exact_sequence(tp: Any, inner: frozenset[type]) -> Callable[[Any], bool]:
    return lambda v: type(v) is tp and set(map(type, v)) <= inner


def _exact_scalar_or_union(quick: frozenset[type]) -> Callable[[Any], bool] | type:
    """A bare type where `type(v) is T` is enough, else a function."""
    if len(quick) == 1:
        only = next(iter(quick))
        return only if only not in (int, str) else _exact_scalar(only)
    return _exact_union(quick)


def _compile_struct(tp: Any, fields: list[tuple[str, Any]]) -> Callable[[Any], bool]:
    """One generated expression over the fields: a loop over them would cost three times as much."""
    scope: dict[str, Any] = {"_type": type, "_tp": tp}
    terms = ["_type(v) is _tp"]
    for i, (name, check) in enumerate(fields):
        scope[f"_c{i}"] = check
        terms.append(f"_type(v.{name}) is _c{i}" if isinstance(check, type) else f"_c{i}(v.{name})")
    # Our own text: field names are identifiers, and nothing of a value gets into it.
    text = f"lambda v: {' and '.join(terms)}"
    return typing.cast("Callable[[Any], bool]", eval(text, scope))  # noqa: S307


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@functools.lru_cache(maxsize=4096)
def _cached(tp: Any) -> Codec:
    return Codec(tp)


def codec_for(tp: Any) -> Codec:
    """The codec of a type, made once."""
    tp = plain(tp)
    try:
        return _cached(tp)
    except TypeError as error:
        if isinstance(error, DefinitionError):
            raise
        return Codec(tp)


def ordered(keys: Iterable[Any]) -> list[Any]:
    """Keys in key order: their own where they compare, that of their encoding otherwise."""
    found = list(keys)
    try:
        return sorted(found)
    except TypeError:
        return sorted(found, key=pack)
