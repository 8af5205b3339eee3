"""Reading a store beside its writer, without the app's code: cells, outputs and letters as plain data."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from secondpass.codec import unpack
from secondpass.store.database import Store

if TYPE_CHECKING:
    from secondpass.store.format import CellCodec

Name = tuple[str, str]

_pieces = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_entries = msgspec.msgpack.Decoder(list[Any]).decode


@contextlib.contextmanager
def reading(directory: Path) -> Generator[Store]:
    """A store to read, as it is at this moment."""
    store = Store.open_to_read(directory)
    try:
        with snapshot(store):
            yield store
    finally:
        store.close()


@contextlib.contextmanager
def snapshot(store: Store) -> Generator[None]:
    """One moment of a store that may be written meanwhile: all reads inside see it, and so does `progress`."""
    with store.snapshot():
        yield


class PlainCells:
    """Stands in for a `CellCodec` where the types are not known: a key is its bytes, an entry plain data."""

    def keys(self, data: bytes) -> list[bytes]:
        return [bytes(piece) for piece in _pieces(data)]

    def entries(self, data: bytes) -> list[Any]:
        return _entries(data)


class Stated(NamedTuple):
    """A table or value as the store describes it."""

    task: str
    name: str
    kind: str
    key: str | None
    value: str
    ttl_s: float | None
    expires: bool

    @property
    def is_value(self) -> bool:
        return self.kind == "value"


class StoredCell(NamedTuple):
    """One cell as plain data; `written` is None in a table without a time to live."""

    key: Any
    value: Any
    written: float | None


def chain_of(store: Store) -> list[dict[str, Any]]:
    """The descriptions of the tasks that ran last, in their order."""
    return store.meta("chain") or []


def stated(store: Store) -> list[Stated]:
    """All declared state of the chain that ran last, in its order."""
    return _stated(chain_of(store))


def put_aside(store: Store) -> list[Stated]:
    """The state that tasks which left the chain have put aside."""
    aside: dict[str, dict[str, Any]] = store.meta("aside") or {}
    return _stated([{"name": task, **left} for task, left in aside.items()])


def _stated(described: list[dict[str, Any]]) -> list[Stated]:
    found: list[Stated] = []
    for task in described:
        ttls = task.get("ttl_s", {})
        for name, state in task["state"].items():
            found.append(
                Stated(
                    task["name"],
                    name,
                    state["kind"],
                    state.get("key"),
                    state["value"],
                    ttls.get(name),
                    bool(state.get("ttl")),
                )
            )
    return found


_SCALARS = frozenset({"int", "float", "str", "bool", "bytes", "None"})


def load_cells(store: Store, tables: list[Stated]) -> dict[Name, list[StoredCell]]:
    """The cells of tables and values, without what has expired, in key order."""
    plain: Any = PlainCells()
    codecs: dict[Name, CellCodec] = {(t.task, t.name): plain for t in tables}
    loaded = store.load(codecs)
    now = store.progress.now
    found: dict[Name, list[StoredCell]] = {}
    for table in tables:
        scalar = not table.is_value and set(table.value.split(" | ")) <= _SCALARS
        cells: list[StoredCell] = []
        for key, entry in loaded[table.task, table.name].items():
            rest, written = entry if table.expires else (entry, None)
            if written is not None and table.ttl_s is not None and now - written >= table.ttl_s:
                continue
            value = rest if scalar else unpack(rest)
            cells.append(StoredCell(unpack(key), as_items(value, table.value), written))
        found[table.task, table.name] = _in_key_order(cells)
    return found


_KIND = re.compile(r"(?P<name>\w+)(?:\[(?P<args>.*)\]|\((?P<fields>.*)\))?", re.DOTALL)


def as_items(value: Any, declared: str) -> Any:
    """A stored value with each deque of it as its items: a store holds [maxlen, [items]].

    `declared` is the type as the store describes it.
    """
    if "deque" not in declared:
        return value
    kinds = [kind for kind in _parts(declared, " | ") if kind != "None"]
    found = _KIND.fullmatch(kinds[0]) if len(kinds) == 1 else None
    if value is None or found is None:
        return value
    args = _parts(found["args"] or "", ", ")
    if found["name"] == "deque":
        _, items = value
        return [as_items(item, args[0]) for item in items] if args else items
    if found["fields"] is not None:
        fields: dict[str, str] = dict(part.split(": ", 1) for part in _parts(found["fields"], ", "))  # type: ignore[misc]
        if isinstance(value, dict):
            return {k: as_items(v, fields.get(k, "")) for k, v in value.items()}  # type: ignore[misc]
        args = list(fields.values())
    if not args:
        return value  # a class that is described by its name alone
    if isinstance(value, dict):
        return {k: as_items(v, args[-1]) for k, v in value.items()}  # type: ignore[misc]
    if isinstance(value, list):
        each = args if len(args) == len(value) and "..." not in args else [args[0]] * len(value)  # type: ignore[arg-type]
        return [as_items(item, kind) for item, kind in zip(value, each, strict=True)]  # type: ignore[misc]
    return value


def _parts(text: str, separator: str) -> list[str]:
    """What stands between separators that are in no brackets."""
    found, depth, start = list[str](), 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "[(") - (sign in "])")
        if depth == 0 and text.startswith(separator, at):
            found.append(text[start:at])
            start = at + len(separator)
    return [*found, text[start:]] if text else []


def _in_key_order(cells: list[StoredCell]) -> list[StoredCell]:
    try:
        return sorted(cells, key=lambda cell: cell.key)
    except TypeError:
        return cells  # keys that do not compare stay in the order of their bytes


def plain(value: Any) -> Any:
    """A value that JSON can hold: keys of maps become text where they are none."""
    if isinstance(value, dict):
        return {k if isinstance(k, (str, int, float)) else repr(k): plain(v) for k, v in value.items()}  # type: ignore[misc]
    if isinstance(value, list):
        return [plain(v) for v in value]  # type: ignore[misc]
    return value
