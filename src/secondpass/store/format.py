"""What the store's bytes look like. Every row carries a checksum; every format is versioned by `FORMAT`.

    progress        turn -> body                        one row: everything that changes with each epoch
    meta            name -> body                        "store", "app", "chain": the tasks that run, "file": those
                                                        that the app's file had at the last start, "aside": what
                                                        tasks that left have put aside, "tables": their numbers
    cells           (table, generation, row) -> body    the cells of a table, some in each row
    deltas          id -> body                          what an epoch changed in a table since then
    outputs         (stream, first) -> body             numbered outputs, as committed
    dead_letters    id -> body
    history         id -> body                          starts, chain changes, retries, what live sources took

A turn is the number of a transaction. The body of cells and of a delta is `[keys, entries, gone]`, three packed
lists. An entry is a cell at rest: a scalar as itself, an object as its bytes, and `[either, written]` in a table
with a time to live.

A checksum of a row shows that it changed. What shows that one is missing, or too many: the rows of a table are
counted, a delta names the one before it, the checksums of `meta` are summed, outputs, dead letters and history
are numbered.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from secondpass.codec import Codec, codec_for, pack
from secondpass.errors import StoreDamaged
from secondpass.state import TableSpec

FORMAT = 1
"""Also the database's `user_version`, which can be read whatever the rest looks like."""
FILE = "store.db"
PAGE_SIZE = 4096
PROGRESS_PAGE = 2
"""The first table made has the second page, and keeps it: `wal.py` relies on that."""

SCHEMA = """
CREATE TABLE progress (turn INTEGER PRIMARY KEY, stamp BLOB NOT NULL, epoch INTEGER NOT NULL,
    body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE cells (tbl INTEGER NOT NULL, generation INTEGER NOT NULL, number INTEGER NOT NULL,
    cells INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (tbl, generation, number)) WITHOUT ROWID;
CREATE TABLE deltas (id INTEGER PRIMARY KEY, tbl INTEGER NOT NULL, epoch INTEGER NOT NULL,
    previous INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE outputs (stream TEXT NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL, format TEXT NOT NULL,
    total INTEGER NOT NULL, positions BLOB NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (stream, first)) WITHOUT ROWID;
CREATE TABLE dead_letters (id INTEGER PRIMARY KEY, status TEXT NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE history (id INTEGER PRIMARY KEY, position INTEGER NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL,
    crc INTEGER NOT NULL);
"""


class TableState(msgspec.Struct, array_like=True):
    """What is stored of a table: the rows of a generation, and the deltas after `folded`."""

    generation: int = 0
    rows: int = 0
    bytes: int = 0
    """Of the rows' bodies."""
    folded: int = 0
    """The last delta that the rows hold."""
    last: int = 0
    """The last delta."""


class Progress(msgspec.Struct):
    """Where the app stands after an epoch; rewritten with each commit."""

    position: int = 0
    """The position of the next record."""
    now: float = float("-inf")
    sources: list[Any] = []
    tallies: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    """By stream: the number of the next output."""
    totals: dict[str, int] = {}
    """By stream: bytes of all outputs ever committed."""
    kept_from: dict[str, int] = {}
    """By stream: the number of the oldest output that is still kept."""
    sinks: dict[str, Any] = {}
    letters: int = 0
    """The id of the next dead letter."""
    history: int = 0
    """How many entries the history has."""
    meta: int = 0
    """The sum of the checksums of `meta`."""
    deltas: int = 0
    """The id of the newest delta."""
    generation: int = 0
    """The newest generation, of whatever table."""
    tables: dict[int, TableState] = {}
    """By number."""
    places: dict[str, Any] = {}
    """By task: where it ran, and what that cost."""
    commands: list[str] = []
    """Commands from the spool that are done, until their files are removed."""
    timetables: dict[str, float] = {}
    """By timetable: when its last switch that was done was due."""
    paused: bool = False
    """Whether the app takes no records until somebody resumes it."""


class StoredLetter(msgspec.Struct, frozen=True):
    """A dead letter as stored."""

    position: int
    task: str
    error: str
    traceback: str
    event: bytes
    """The event as msgpack `[type name or nil, fields]`; empty when there is none."""
    raw: bytes
    offset: int
    source: str


encode_progress = msgspec.msgpack.Encoder().encode
decode_progress = msgspec.msgpack.Decoder(Progress).decode
decode_letter = msgspec.msgpack.Decoder(StoredLetter).decode


class OutputRow:
    """Consecutive outputs of one stream that were committed together."""

    __slots__ = ("body", "count", "first", "format", "positions", "stream")

    def __init__(
        self, stream: str, first: int, count: int, format_: str, positions: list[int], body: bytes
    ) -> None:
        self.stream = stream
        self.first = first
        self.count = count
        self.format = format_
        self.positions = positions
        self.body = body


def squeeze(positions: list[int]) -> list[int] | dict[str, int]:
    """Consecutive positions as their ends; one position may have put out several, another none."""
    if positions and positions == list(range(positions[0], positions[0] + len(positions))):
        return {"from": positions[0], "to": positions[-1]}
    return positions


def stretch(stored: list[int] | dict[str, int]) -> list[int]:
    """The inverse of `squeeze`."""
    return list(range(stored["from"], stored["to"] + 1)) if isinstance(stored, dict) else stored


def crc(body: bytes, *about: int | str | bytes) -> int:
    """The checksum of a row: its body and its other columns."""
    return zlib.crc32(body, zlib.crc32(pack(about)))


def check(where: str, stored: int, body: bytes, *about: int | str | bytes) -> None:
    """Raise `StoreDamaged` unless the checksum of a row fits; this check survives `python -O`."""
    if crc(body, *about) != stored:
        raise damaged(f"{where} does not match its checksum")


STAMP_SIZE = 4


def stamp(turn: int) -> bytes:
    """The checksum of a turn alone; the first column after it, where `wal.py` finds it on a torn page."""
    return zlib.crc32(b"turn %d" % turn).to_bytes(STAMP_SIZE, "big")


def damaged(what: str) -> StoreDamaged:
    """The error for what fails its checksums."""
    return StoreDamaged(
        f"the store is damaged: {what}. Nothing was changed. Restore the directory from a backup, or start over "
        f"from the inputs with --fresh"
    )


class CellCodec:
    """How the cells of one table are stored: keys and entries, one by one and many at once."""

    def __init__(self, key: Codec, value: Codec, ttl: bool) -> None:
        resting: Any = value.type if value.scalar else bytes
        entry: Any = tuple[resting, float] if ttl else resting
        self.ttl = ttl
        self.objects = not value.scalar
        """Whether what rests are the bytes of objects."""
        self.keys = key.decoder_of_list().decode
        self.entries = codec_for(entry).decoder_of_list().decode
        self.entry = codec_for(entry).decode
        self.key = key.decode

    @classmethod
    def of(cls, spec: TableSpec) -> CellCodec:
        return cls(spec.key, spec.value, spec.ttl_s is not None)

    @classmethod
    def of_value(cls) -> CellCodec:
        """A `value(...)` is stored as a table with the one key None."""
        return cls(codec_for(type(None)), codec_for(list[bytes]), ttl=False)


class PackedCells(msgspec.Struct, array_like=True):
    """Cells that changed in a table, and keys that are gone."""

    keys: bytes
    entries: bytes
    gone: bytes


def pack_cells(keys: list[Any], entries: list[Any], gone: Iterable[Any]) -> bytes:
    """The body of a delta, or of a row of cells."""
    return _encode(PackedCells(pack(keys), pack(entries), pack(list(gone))))


_encode = msgspec.msgpack.Encoder().encode
unpack_cells = msgspec.msgpack.Decoder(PackedCells).decode
