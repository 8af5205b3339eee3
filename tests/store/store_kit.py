"""A store with one table and one value, and short words to fill it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from secondpass.codec import codec_for, pack
from secondpass.store.database import OutputRow, Store
from secondpass.store.format import CellCodec, StoredLetter

SEEN = ("task", "seen")
LAST = ("task", "last")
CODECS = {SEEN: CellCodec(codec_for(int), codec_for(float), ttl=False), LAST: CellCodec.of_value()}


class Delta:
    def __init__(self, changed: dict[Any, Any], gone: Iterable[Any] = ()) -> None:
        self.changed = changed
        self.gone = set(gone)


def letter(position: int) -> StoredLetter:
    return StoredLetter(position, "task", "ValueError: no", "Traceback", b"", b"{", 7, "lines")


@dataclass
class Kept:
    """An open store."""

    store: Store
    directory: Path | None = None

    @classmethod
    def open(cls, directory: Path | None, **options: Any) -> Kept:
        store = Store.in_memory() if directory is None else Store.open(directory, **options)
        kept = cls(store, directory)
        kept.start()
        return kept

    def start(self, moves: dict[Any, Any] | None = None, names: Any = tuple(CODECS), **more: Any) -> None:
        codecs = {name: CODECS.get(name, CODECS[SEEN]) for name in names}
        self.store.load(codecs, moves)
        self.store.start([], names, moves or {}, {"pid": 1}, {"name": "app"}, **more)

    def commit(
        self,
        changed: dict[int, float] | None = None,
        gone: Iterable[int] = (),
        *,
        last: bytes | None = None,
        outputs: dict[str, list[bytes]] | None = None,
        letters: int = 0,
        status: dict[int, str] | None = None,
        history: list[tuple[str, Any]] | None = None,
        sinks: dict[str, Any] | None = None,
    ) -> None:
        """An epoch of ten records."""
        before = self.store.progress
        deltas = {SEEN: Delta(changed or {}, gone)}
        if last is not None:
            deltas[LAST] = Delta({None: last})
        rows = [
            OutputRow(
                stream,
                before.numbers.get(stream, 0),
                len(lines),
                "json",
                list(range(len(lines))),
                b"".join(lines),
            )
            for stream, lines in (outputs or {}).items()
        ]
        progress = msgspec.structs.replace(
            before,
            position=before.position + 10,
            numbers=dict(before.numbers),
            totals=dict(before.totals),
            kept_from=dict(before.kept_from),
            sinks=before.sinks if sinks is None else sinks,
        )
        found = [letter(before.position + i) for i in range(letters)]
        self.store.commit(progress, deltas, rows, found, history or [], status)

    def close(self) -> None:
        self.store.close()

    @property
    def seen(self) -> dict[int, float]:
        """The cells as they are stored."""
        return self.store.load(CODECS)[SEEN]

    @property
    def last(self) -> dict[None, bytes]:
        return self.store.load(CODECS)[LAST]

    def execute(self, sql: str, *bindings: Any) -> list[Any]:
        """What a bug or a broken disk may do to a database."""
        return list(self.store._db.execute(sql, bindings))


def bodies(store: Store, stream: str, after: int = 0) -> list[bytes]:
    return [row.body for row in store.outputs(stream, after)]


def value(number: float) -> bytes:
    return pack([number])
