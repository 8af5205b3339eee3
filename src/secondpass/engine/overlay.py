"""The fast form of a task's tables: an epoch's writes laid over the committed cells.

    overlay     this epoch's cells, live; the dict that the task sees
    gone        keys deleted in this epoch
    base        the committed cells, at rest

Reads and writes of the overlay are plain dict operations where that is possible; only a miss is Python.
Dropping overlay and `gone` is the rollback; settling them gives the delta to commit. The meaning is that
of `state.Table`, which takes over wherever one call may have to be undone.

A small table of scalars (`Mirror`) holds all its cells instead, so that every operation is the dict's own;
what changed is found by comparing at the end of the epoch.

                    overlay holds           base holds
    scalar          value                   value
    object          live object             bytes
    scalar, ttl     (value, written)        (value, written)
    object, ttl     [live object, written]  (bytes, written)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, cast

from secondpass.codec import ordered
from secondpass.state import MISSING, TableSpec, has_odd_float

# The dict's own operations, past what the classes below put before them.
_Dict = dict[Any, Any]
_fetch = _Dict.get
_put = _Dict.__setitem__
_drop = _Dict.pop


class Suspect(Exception):
    """Something in an overlay is not what its table declares; running again carefully finds the event."""


class Delta:
    """What an epoch changed in one table: entries by key, and the keys that are gone."""

    __slots__ = ("changed", "gone")

    def __init__(self, changed: dict[Any, Any], gone: set[Any]) -> None:
        self.changed = changed
        self.gone = gone

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


class Layered:
    """Committed cells with a delta over them, written through to the delta: the cells of a careful `Table`."""

    __slots__ = ("base", "delta")

    def __init__(self, base: dict[Any, Any], delta: Delta) -> None:
        self.base = base
        self.delta = delta

    def get(self, key: Any, default: Any = None) -> Any:
        found = self.delta.changed.get(key, MISSING)
        if found is not MISSING:
            return found
        return default if key in self.delta.gone else self.base.get(key, default)

    def __setitem__(self, key: Any, entry: Any) -> None:
        self.delta.changed[key] = entry
        self.delta.gone.discard(key)

    def __delitem__(self, key: Any) -> None:
        self.delta.changed.pop(key, None)
        if key in self.base:
            self.delta.gone.add(key)

    def __iter__(self) -> Iterator[Any]:
        gone, changed = self.delta.gone, self.delta.changed
        yield from (k for k in self.base if k not in gone and k not in changed)
        yield from changed


class Cells(dict[Any, Any]):
    """What all fast forms have in common: ordered iteration, and the checks at the end of an epoch."""

    __slots__ = ("base", "clock", "gone", "spec", "ttl_s")

    def __init__(self, spec: TableSpec, base: dict[Any, Any], clock: Any, ttl_s: float | None) -> None:
        super().__init__()
        self.spec = spec
        self.base = base
        self.clock = clock
        self.ttl_s: Any = ttl_s
        self.gone: set[Any] = set()

    def _new(self, key: Any) -> Any:
        """A cell that a read makes, where the table has a default."""
        if not self.spec.has_default:
            raise KeyError(key)
        self[key] = self.spec.new_default()
        return self[key]

    def keys(self) -> Any:
        return KeysView(self)

    def values(self) -> Any:
        return ValuesView(self)

    def items(self) -> Any:
        return ItemsView(self)

    def popitem(self) -> Any:
        for key in self:
            return key, self.pop(key)
        raise KeyError("the table is empty")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __or__(self, other: Any) -> dict[Any, Any]:
        return dict(self.items()) | dict(other.items())

    def __ror__(self, other: Any) -> dict[Any, Any]:
        return dict(other.items()) | dict(self.items())

    def __ior__(self, _: Any) -> Any:
        return NotImplemented

    __reversed__ = None  # type: ignore[assignment]  # a Table has none either

    # The end of an epoch.

    @abstractmethod
    def rollback(self) -> None:
        """Forget the epoch's writes."""

    @abstractmethod
    def settle(self) -> Delta:
        """The epoch's writes as the delta to commit; raises `Suspect` where something is not exact."""

    def _check_keys(self) -> bool:
        key = self.spec.key
        if key.quick is None:
            odd = self.spec.float_keys and any(map(has_odd_float, _Dict.keys(self)))
            return not odd and all(map(key.exact, _Dict.keys(self)))
        if not set(map(type, _Dict.keys(self))) <= key.quick:
            return False
        # NaN and -0.0 would not be found again under themselves.
        return float not in key.quick or all(k == k and str(k) != "-0.0" for k in _Dict.keys(self))

    def _check_all(self) -> bool:
        """Whether every value may be committed as it stands."""
        quick = self.spec.value.quick
        return quick is not None and set(map(type, _Dict.values(self))) <= quick


class Mirror(Cells):
    """All cells of a small table of scalars: get, set, delete and `in` are those of a plain dict.

    Even a `__delitem__` in Python would slow down every assignment: they share a slot.
    """

    __slots__ = ()

    def __init__(self, spec: TableSpec, base: dict[Any, Any], clock: Any, ttl_s: float | None) -> None:
        super().__init__(spec, base, clock, ttl_s)
        _Dict.update(self, base)

    def __missing__(self, key: Any) -> Any:
        return self._new(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(ordered(_Dict.__iter__(self)))

    def rollback(self) -> None:
        _Dict.clear(self)
        _Dict.update(self, self.base)

    def settle(self) -> Delta:
        if not self._check_keys() or not self._check_all():
            raise Suspect
        base = self.base
        before = base.get
        changed = {
            k: v
            for k, v in zip(_Dict.keys(self), _Dict.values(self), strict=True)
            if before(k, MISSING) is not v
        }
        came = sum(k not in base for k in changed)
        # Only where cells were deleted are there fewer than there were and came.
        gone = base.keys() - set(_Dict.keys(self)) if _Dict.__len__(self) != len(base) + came else set[Any]()
        return Delta(changed, gone)


class Overlay(Cells):
    """The epoch's writes over the base; by itself the form of a large table of scalars."""

    __slots__ = ()

    # What differs between the four.

    def _live(self, key: Any) -> Any:
        """The live value of a key, or MISSING."""
        found = _fetch(self, key, MISSING)
        if found is MISSING and key not in self.gone:
            found = self.base.get(key, MISSING)
        return found

    # The dict's face.

    def get(self, key: Any, default: Any = None) -> Any:
        found = _fetch(self, key, MISSING)
        if found is MISSING:
            found = self.base.get(key, MISSING)
            if found is MISSING or key in self.gone:
                return default
        return found

    def __missing__(self, key: Any) -> Any:
        found = self._live(key)
        return self._new(key) if found is MISSING else found

    def __delitem__(self, key: Any) -> None:
        if self._live(key) is MISSING:
            raise KeyError(key)
        self._delete(key)

    def _delete(self, key: Any) -> None:
        _drop(self, key, None)
        self.gone.add(self.spec.own_key(key, self.base))

    def __contains__(self, key: object) -> bool:
        return self._live(key) is not MISSING

    def __iter__(self) -> Iterator[Any]:
        known = {k for k in self.base if k not in self.gone}
        known.update(_Dict.__iter__(self))
        # Only the living are put in order: what has expired must not decide how keys compare.
        return iter(ordered([k for k in known if self._live(k) is not MISSING]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def pop(self, key: Any, *default: Any) -> Any:
        found = self._live(key)
        if found is MISSING:
            if default:
                return default[0]
            raise KeyError(key)
        self._delete(key)
        return found

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if self._live(key) is MISSING:
            self[key] = default
        return self[key]

    def update(self, other: Any = (), /, **more: Any) -> None:
        pairs: Any = cast("Mapping[Any, Any]", other).items() if isinstance(other, Mapping) else other
        for key, value in (*pairs, *more.items()):
            self[key] = value

    def clear(self) -> None:
        for key in self:
            self._delete(key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.items()) == dict(
            cast("Mapping[Any, Any]", other).items()
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    # The end of an epoch.

    def rollback(self) -> None:
        """Forget the epoch's writes."""
        _Dict.clear(self)
        self.gone.clear()

    def settle(self) -> Delta:
        """The epoch's writes as the delta to commit; raises `Suspect` where something is not exact."""
        if not _Dict.__len__(self) and not self.gone:
            return Delta({}, set())
        if not self._check_keys() or not self._check_all():
            raise Suspect
        changed = self._changed()
        gone = {
            k for k in self.gone if k in self.base and k not in changed and not _Dict.__contains__(self, k)
        }
        self.rollback()
        return Delta(changed, gone)

    def _changed(self) -> dict[Any, Any]:
        return dict(zip(_Dict.keys(self), _Dict.values(self), strict=True))


class ObjectOverlay(Overlay):
    """Objects: woken on first touch, copied on assignment, changed when their bytes changed."""

    __slots__ = ()

    def _live(self, key: Any) -> Any:
        found = _fetch(self, key, MISSING)
        if found is MISSING and key not in self.gone:
            found = self.base.get(key, MISSING)
            if found is not MISSING:
                found = self.spec.value.decode(found)
                _put(self, self.spec.own_key(key, self.base), found)
        return found

    def get(self, key: Any, default: Any = None) -> Any:
        found = self._live(key)
        return default if found is MISSING else found

    def __setitem__(self, key: Any, value: Any) -> None:
        self.spec.check_key(key)
        _put(self, key, self.spec.wake(self.spec.rest(key, value)))

    def _check_all(self) -> bool:
        return True  # `_changed` looks at every cell anyway

    def _changed(self) -> dict[Any, Any]:
        encode, exact, base = self.spec.value.encode, self.spec.value.exact, self.base
        changed: dict[Any, Any] = {}
        for key, live in zip(_Dict.keys(self), _Dict.values(self), strict=True):
            rest = self._encode(encode, live)
            if base.get(key) != rest:
                if not exact(live):
                    raise Suspect
                changed[key] = rest
        return changed

    @staticmethod
    def _encode(encode: Any, live: Any) -> Any:
        try:
            return encode(live)
        except (TypeError, ValueError, OverflowError) as error:
            raise Suspect from error


class TtlOverlay(Overlay):
    """Scalars with a time to live: a write takes the time of the event that is handled."""

    __slots__ = ()

    def _live(self, key: Any) -> Any:
        return self.get(key, MISSING)

    def get(self, key: Any, default: Any = None, fetch: Any = _fetch) -> Any:
        entry = fetch(self, key)
        if entry is None:
            entry = self.base.get(key)
            if entry is None or key in self.gone:
                return default
        return default if self.clock.now - entry[1] >= self.ttl_s else entry[0]

    def __getitem__(self, key: Any) -> Any:
        found = self.get(key, MISSING)
        return self._new(key) if found is MISSING else found

    def __setitem__(self, key: Any, value: Any, put: Any = _put) -> None:
        put(self, key, (value, self.clock.now))

    def _check_all(self) -> bool:
        quick = self.spec.value.quick
        return quick is not None and {type(entry[0]) for entry in _Dict.values(self)} <= quick


class ObjectTtlOverlay(ObjectOverlay):
    """Objects with a time to live: only assignment renews it, a change in place does not."""

    __slots__ = ()

    def _live(self, key: Any) -> Any:
        entry = _fetch(self, key)
        if entry is None:
            resting = None if key in self.gone else self.base.get(key)
            if resting is None:
                return MISSING
            entry = [self.spec.value.decode(resting[0]), resting[1]]
            _put(self, self.spec.own_key(key, self.base), entry)
        return MISSING if self.clock.now - entry[1] >= self.ttl_s else entry[0]

    def __getitem__(self, key: Any) -> Any:
        found = self._live(key)
        return self._new(key) if found is MISSING else found

    def __setitem__(self, key: Any, value: Any) -> None:
        self.spec.check_key(key)
        _put(self, key, [self.spec.wake(self.spec.rest(key, value)), self.clock.now])

    def _changed(self) -> dict[Any, Any]:
        encode, exact, base = self.spec.value.encode, self.spec.value.exact, self.base
        changed: dict[Any, Any] = {}
        for key, (live, written) in zip(_Dict.keys(self), _Dict.values(self), strict=True):
            rest = (self._encode(encode, live), written)
            if base.get(key) != rest:
                if not exact(live):
                    raise Suspect
                changed[key] = rest
        return changed


MIRRORED = 4
"""A table is mirrored when an epoch has this many times as many events as the table has cells."""


def overlay_for(spec: TableSpec, base: dict[Any, Any], clock: Any, ttl_s: float | None) -> Cells:
    """The fast form of a declared table, for a table of any size."""
    if spec.value.scalar:
        cls = Overlay if ttl_s is None else TtlOverlay
    else:
        cls = ObjectOverlay if ttl_s is None else ObjectTtlOverlay
    return cls(spec, base, clock, ttl_s)


def mirrors(spec: TableSpec, base: dict[Any, Any], ttl_s: float | None, events: int) -> bool:
    """Whether an epoch of so many events is better run over a mirror of the whole table."""
    return spec.value.scalar and ttl_s is None and len(base) * MIRRORED <= events
