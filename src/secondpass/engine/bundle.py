"""Bundles and their answers, as bytes: events and the cells they need on their way to a worker and back.

    bundle      number, task, mode, events with their places in the stream, cells, values
    answer      number, what became of each event, changed cells, changed values

Both are msgpack arrays. Events and cells equal their decoded encoding (rule 2), so nothing is lost on the way.
An event that is passed on as it came, or dropped, takes one byte of the answer. Large arrays of events, and large cells,
lie beside (`Parcel`), and are decoded where they lie.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from secondpass.codec import BESIDE_FROM, Large, codec_for, found_beside, is_numpy, pack, pack_beside, unpack
from secondpass.engine.executor import Parcel
from secondpass.engine.names import find_type, type_name
from secondpass.event import untyped
from secondpass.store.format import CellCodec

LOOKUPS = -1
"""Stands for a task's index: the bundle brings what lookups hold, for all tasks."""

KEYED, WHOLE, KEPT = 0, 1, 2
"""What cells a bundle brings: those of its keys; all of the task's; none, the worker has all from the one before."""

DROPPED, PASSED, MORE = 0, 1, 2
"""What became of an event: nothing came of it, it passes as it is, or the next of the answer's `more` tells."""

OUT_OF_MEMORY = 99
"""The exit code of a worker in which `handle` ran out of memory: another process may have enough."""

Raw = msgspec.Raw
Beside = Sequence[bytes | memoryview]
Encoded = tuple[list[str | None], list[int] | None, Raw]
"""Events: the names of their types (None for untyped), which has which if they are several, and their bodies."""


class Bundle(msgspec.Struct, array_like=True):
    """Events for one task, in an order in which they may run, with what they need."""

    number: int
    task: int
    """Its index in the chain."""
    mode: int
    inherits: bool
    """Whether cells of its keys come from the bundle before it on the same worker, where that one touched them."""
    singly: bool
    """Whether a task with `handle_batch` handles the events one by one: one of them has killed a worker."""
    events: Encoded
    positions: list[int]
    nows: list[float]
    paths: list[list[int]] | None
    """Each event's index in the lists it was emitted in; None when all are empty."""
    keys: Raw
    """The keys that each event may touch, in a keyed bundle of a task with state; see `encode_keys`."""
    cells: dict[str, tuple[Raw, Raw]]
    """By table: keys, and entries at rest. By lookup, of one that brings those: its cells, or those that changed."""
    values: dict[str, Any]
    """By value: its bytes. By lookup that brings what changed: the keys that are gone."""


class More(msgspec.Struct, array_like=True):
    """What became of an event, where it is more than being passed or dropped."""

    itself: bool = False
    results: Encoded | None = None
    branched: bool = False
    emitted: list[tuple[str, Encoded]] = []
    counts: dict[str, int] = {}
    logged: list[tuple[str, int, str]] = []
    error: tuple[bool, str, str] | None = None
    """Whether it is a fault of the task, its text, its traceback."""


class Answer(msgspec.Struct, array_like=True):
    """What a worker gives back for a bundle."""

    number: int
    seconds: float
    became: bytes
    """One byte for each event: DROPPED, PASSED or MORE."""
    more: list[More]
    cells: dict[str, tuple[Raw, Raw, Raw]]
    """By table: keys that changed with their entries, and keys that are gone."""
    values: dict[str, Any]
    setup_error: tuple[str, str] | None = None
    """The task's `setup()` raised: text and traceback."""


decode_bundle = msgspec.msgpack.Decoder(Bundle).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def parcel(content: Any) -> Parcel:
    """A bundle or an answer, ready to be sent."""
    return Parcel(*pack_beside(content))


def without_events(number: int, task: int) -> Parcel:
    """A bundle that only lets a worker set a task up."""
    events, keys = encode_events([]), encode_keys([])
    return parcel((number, task, KEYED, False, False, events, [], [], None, keys, {}, {}))


def encode_events(events: Sequence[Any]) -> Any:
    """Events in a form that `parcel` makes bytes of, and `decode_events` events again."""
    kinds = dict.fromkeys(map(type, events))
    if len(kinds) == 1:
        (kind,) = kinds
        return [type_name(kind)], None, events
    index = {kind: i for i, kind in enumerate(kinds)}
    return list(map(type_name, kinds)), [index[e.__class__] for e in events], events


def decode_events(encoded: Encoded, beside: Beside = ()) -> list[Any]:
    """The inverse of `encode_events`; `beside` is the parcel's."""
    names, which, body = encoded
    if which is None:
        name = names[0] if names else None
        return (_list_decoder(name, beside) if beside else _kept_list_decoder(name))(body)
    decoders = [_one_decoder(name, beside) if beside else _kept_one_decoder(name) for name in names]
    raws: list[Raw] = _raws(body)
    return [decoders[kind](raw) for kind, raw in zip(which, raws, strict=True)]


_raws = msgspec.msgpack.Decoder(list[Raw]).decode


def _list_decoder(name: str | None, beside: Beside = ()) -> Callable[[Raw], list[Any]]:
    if name is not None:
        return codec_for(find_type(name)).decoder_of_list(beside).decode
    decode = msgspec.msgpack.Decoder(list[Any], ext_hook=found_beside(beside)).decode
    return lambda raw: list(map(untyped, decode(raw)))


def _one_decoder(name: str | None, beside: Beside = ()) -> Callable[[Raw], Any]:
    if name is not None:
        return codec_for(find_type(name)).decoder(beside).decode
    decode = msgspec.msgpack.Decoder(ext_hook=found_beside(beside)).decode
    return lambda raw: untyped(decode(raw))


_kept_list_decoder = functools.lru_cache(maxsize=1024)(_list_decoder)
_kept_one_decoder = functools.lru_cache(maxsize=1024)(_one_decoder)


def lay_beside(entries: list[Any], codec: CellCodec) -> list[Any]:
    """Entries at rest in a form of which `parcel` leaves the large ones beside."""
    if not codec.objects:
        return entries
    if codec.ttl:
        return [entry if len(entry[0]) < BESIDE_FROM else (Large(entry[0]), entry[1]) for entry in entries]
    return [entry if len(entry) < BESIDE_FROM else Large(entry) for entry in entries]


def entries_of(raw: Raw, codec: CellCodec, beside: Beside) -> list[Any]:
    """The inverse: what lay beside is a view of it."""
    if not beside or not codec.objects:
        return codec.entries(raw)
    found: list[Any] = msgspec.msgpack.Decoder(list[Any], ext_hook=found_beside(beside)).decode(raw)
    return [(rest, written) for rest, written in found] if codec.ttl else found


def values_beside(values: dict[str, bytes]) -> dict[str, Any]:
    """As `lay_beside`, of values by name."""
    return {name: rest if len(rest) < BESIDE_FROM else Large(rest) for name, rest in values.items()}


def values_of(values: dict[str, Any], beside: Beside) -> dict[str, Any]:
    """The inverse."""
    find = found_beside(beside)
    return {
        name: find(rest.code, memoryview(rest.data)) if isinstance(rest, msgspec.msgpack.Ext) else rest
        for name, rest in values.items()
    }


_PLAIN = {int, str, float, bool, type(None)}


def encode_keys(keys: list[frozenset[Any]]) -> Any:
    """The keys of events in a form that `parcel` makes bytes of.

    The worker takes the hub's word for them: computed again, they might differ where they depend on `hash()`. What has
    no form in another process is no key of a cell; no call there can touch it, and it is left out.
    """
    found: list[list[Any]] = list(map(list, keys))
    if not _are_plain(found):
        found = [list(map(_exact, some)) for some in found]
    if _are_plain(found):
        with contextlib.suppress(OverflowError, UnicodeEncodeError):
            return Raw(pack(found))
    sets = list(map(frozenset[Any], found))
    try:
        return pickle.dumps(sets)
    except Exception:  # noqa: BLE001 - whatever the user's objects raise
        return pickle.dumps([frozenset(filter(_travels, some)) for some in sets])


def _are_plain(keys: list[list[Any]]) -> bool:
    return set(map(type, itertools.chain.from_iterable(keys))) <= _PLAIN


def _exact(key: Any) -> Any:
    """The plain string or number that a key of a class of its own is, numpy's among them."""
    if isinstance(key, bool):
        return key
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, float):
        return float.__float__(key)
    if isinstance(key, int):
        return int.__int__(key)
    return int(key) if not isinstance(key, type) and is_numpy(key, "integer") else key


def _travels(key: Any) -> bool:
    try:
        pickle.dumps(key)
    except Exception:  # noqa: BLE001 - whatever the user's objects raise
        return False
    return True


def decode_keys(raw: Raw) -> list[frozenset[Any]]:
    """The inverse of `encode_keys`."""
    found: Any = unpack(raw)
    return pickle.loads(found) if isinstance(found, bytes) else list(map(frozenset[Any], found))  # noqa: S301 - from our own hub
