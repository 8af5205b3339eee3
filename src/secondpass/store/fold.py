"""Folding: deltas become cells, some with each commit, in proportion to what the commit itself adds.

A delta is written once per epoch; a cell that many of them changed is written once per fold. While a fold
is under way the deltas it covers stay, so a crash in its middle leaves nothing half done: cells that are
already newer are overwritten with the same content when the deltas are applied on top at the next start.

    read        the oldest deltas: the newest content by cell, and runs of sorted keys
    write       the cells in key order, so that neighbouring rows share a page
    end         `folded` moves; the deltas go, some with each commit
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from secondpass.failpoints import failpoint
from secondpass.store.connection import Database
from secondpass.store.format import Progress, TableDelta, check, damaged, decode_delta, sum_of_cells

_pieces = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode

CELLS_MIN = 20_000
"""A fold begins when the deltas hold this many cells, or half of all cells if that is more, or ..."""
CELLS_MAX = 500_000
"""... this many, which bounds the memory of a fold, or ..."""
DELTAS_MAX = 2_000
"""... when there are this many deltas, which bounds the time of the next start."""
SLICE = 50
"""Cells written with one commit at least; twice as many as the commit adds where that is more."""
_READ_FACTOR = 4  # reading a cell costs a quarter of writing it
_DELETED_AT_ONCE = 4  # deltas; a commit adds one

Key = tuple[int, bytes]


class Fold:
    """The deltas of a store on their way into its cells; it moves bytes and knows no types."""

    def __init__(self, connection: Database) -> None:
        self._db = connection
        self._waiting: deque[tuple[int, int]] = deque()  # deltas that no fold covers: epoch and cells
        self._cells_waiting = 0
        self._unread: deque[int] = deque()  # deltas of the fold under way
        self._newest: dict[Key, bytes | None] = {}
        self._runs: list[list[Key]] = []
        self._order: Iterator[Key] = iter(())
        self._covered: list[int] = []
        self._done: list[int] = []  # folded deltas that are still there, newest first
        self._cells_total = 0

    def loaded(self, progress: Progress, cells_total: int) -> None:
        """Take up the work of an opened store, which has so many cells."""
        deltas = list(self._db.execute("SELECT epoch, cells FROM deltas ORDER BY epoch DESC"))
        self._done = [epoch for epoch, _ in deltas if epoch <= progress.folded]
        self._waiting = deque((epoch, cells) for epoch, cells in deltas[::-1] if epoch > progress.folded)
        self._cells_waiting = sum(cells for _, cells in self._waiting)
        self._cells_total = cells_total

    def step(self, progress: Progress, epoch: int, added: int) -> None:
        """Inside the transaction of `epoch`, which adds so many cells: some of the work, if there is any."""
        if added:
            self._waiting.append((epoch, added))
            self._cells_waiting += added
        self._delete(_DELETED_AT_ONCE)
        if not self._covered and not self._due():
            return
        limit = max(SLICE, 2 * added)
        if not self._covered:
            self._begin()
        if self._unread:
            self._read(_READ_FACTOR * limit)
        else:
            self._write(progress, limit)
        failpoint("fold.slice.after")

    def everything(self, progress: Progress) -> None:
        """All the work at once."""
        while self._covered or self._waiting:
            if not self._covered:
                self._begin()
            while self._unread:
                self._read(CELLS_MAX)
            while self._covered:
                self._write(progress, CELLS_MAX)
        self._delete(len(self._done))

    def remove(self, progress: Progress, table: int, keys: Iterable[bytes]) -> None:
        """Take cells out of a store in which everything is folded."""
        wanted = [(table, key) for key in keys]
        found = self._db.executemany("SELECT key, entry FROM cells WHERE tbl = ? AND key = ?", wanted)
        rows = [(key, entry) for key, entry in found]
        self._db.executemany("DELETE FROM cells WHERE tbl = ? AND key = ?", wanted)
        progress.sums[table] = progress.sums.get(table, 0) - sum_of_cells(rows)
        self._cells_total -= len(rows)

    def _due(self) -> bool:
        enough = max(CELLS_MIN, min(self._cells_total // 2, CELLS_MAX))
        return self._cells_waiting >= enough or len(self._waiting) >= DELTAS_MAX

    def _begin(self) -> None:
        cells = 0
        while self._waiting and (not cells or cells + self._waiting[0][1] <= CELLS_MAX):
            epoch, more = self._waiting.popleft()
            self._covered.append(epoch)
            cells += more
        self._cells_waiting -= cells
        self._unread.extend(self._covered)

    def _read(self, limit: int) -> None:
        """Some deltas, oldest first; so many cells or one delta."""
        run: list[Key] = []
        while self._unread and len(run) < limit:
            epoch = self._unread.popleft()
            for delta in self._delta(epoch):
                keys = [(delta.table, bytes(key)) for key in _pieces(delta.keys)]
                self._newest.update(zip(keys, map(bytes, _pieces(delta.entries)), strict=True))
                gone = [(delta.table, bytes(key)) for key in _pieces(delta.gone)]
                self._newest.update(dict.fromkeys(gone))
                run += keys
                run += gone
        run.sort()
        self._runs.append(run)
        if not self._unread:
            self._order = heapq.merge(*self._runs)
            self._runs = []

    def _delta(self, epoch: int) -> list[TableDelta]:
        find = "SELECT previous, cells, body, crc FROM deltas WHERE epoch = ?"
        for previous, cells, body, stored in self._db.execute(find, (epoch,)):
            check(f"the delta of epoch {epoch}", stored, body, epoch, previous, cells)
            return decode_delta(body)
        raise damaged(f"the delta of epoch {epoch} is missing")

    def _write(self, progress: Progress, limit: int) -> None:
        """Some cells, in key order; after the last one the fold is done."""
        newest = self._newest
        # A key that several runs hold comes several times; the first time takes it.
        part = {key: newest.pop(key) for key in islice(self._order, limit) if key in newest}
        found = self._db.executemany("SELECT tbl, key, entry FROM cells WHERE tbl = ? AND key = ?", part)
        before: dict[Key, bytes] = {(table, key): entry for table, key, entry in found}
        gone = [key for key, entry in part.items() if entry is None and key in before]
        put = [(*key, entry) for key, entry in part.items() if entry is not None and entry != before.get(key)]
        self._db.executemany("DELETE FROM cells WHERE tbl = ? AND key = ?", gone)
        self._db.executemany("INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", put)
        minus: dict[int, list[tuple[bytes, bytes]]] = {}
        plus: dict[int, list[tuple[bytes, bytes]]] = {}
        for table, key in gone:
            minus.setdefault(table, []).append((key, before[table, key]))
        for table, key, entry in put:
            plus.setdefault(table, []).append((key, entry))
            if (table, key) in before:
                minus.setdefault(table, []).append((key, before[table, key]))
        for table, rows in minus.items():
            progress.sums[table] = progress.sums.get(table, 0) - sum_of_cells(rows)
            self._cells_total -= len(rows)
        for table, rows in plus.items():
            progress.sums[table] = progress.sums.get(table, 0) + sum_of_cells(rows)
            self._cells_total += len(rows)
        if not newest:
            self._done = self._covered[::-1] + self._done
            progress.folded = self._covered[-1]
            self._covered = []
            failpoint("fold.end.after")

    def _delete(self, count: int) -> None:
        part = [(self._done.pop(),) for _ in range(min(count, len(self._done)))]
        if part:
            self._db.executemany("DELETE FROM deltas WHERE epoch = ?", part)
