"""Folding: a table is written anew, a slice with each commit, and its old deltas go.

At the next start a table is read from the rows of its generation, and then its deltas since. When the deltas
have grown half as large again as the table, a new generation begins:

    begin       the table's keys are noted, and its last delta
    slice       some cells, as they are committed now, in one row; in proportion to what the epoch itself adds
    end         the generation counts; the rows of the old one and the deltas up to the noted one go

A slice may be newer than the noted delta. That changes nothing: the deltas after the noted one are applied on
top of all slices, in order, and the last of them is the newest. So a crash in the middle leaves nothing half
done either: the rows of a generation that never counted are garbage.

All costs are in bytes: folding writes two thirds of what the deltas themselves take, and a start reads at most
three times what the cells take (the rows, the deltas when a fold begins, and half as much that comes during it).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from secondpass.failpoints import failpoint
from secondpass.store.connection import Database
from secondpass.store.format import Progress, TableState, crc, pack_cells

BYTES_MIN = 256 * 1024
"""A fold begins when a table's deltas hold this many bytes, or half as many again as the table if that is more."""
SLICE_BYTES = 4096
"""Written with one commit at least; twice what the commit adds where that is more."""
DELTA_BYTES = 400
"""What a delta counts beside its body: to apply it takes as long as to load that much of a table."""
ROW_BYTES_MAX = 1024 * 1024
_CELLS_FIRST = 8  # the first slice, before it is known how large a cell is
_GONE_AT_ONCE = 4  # rows of garbage that go with a commit, and twice as many as it adds


class Waiting:
    """A table's committed cells, and its deltas that are not folded: their ids and sizes, oldest first."""

    def __init__(self, cells: dict[Any, Any]) -> None:
        self.cells = cells
        self.deltas: deque[tuple[int, int]] = deque()
        self.bytes = 0

    def add(self, delta: int, size: int) -> None:
        self.deltas.append((delta, size))
        self.bytes += size


class Fold:
    """The tables of a store, and how far what is stored of them is behind their deltas."""

    def __init__(self, connection: Database) -> None:
        self._db = connection
        self._waiting: dict[int, Waiting] = {}
        self._garbage: deque[tuple[int, ...]] = deque()  # (delta,) or (table, generation, row)
        # The fold under way, of the table `_table`:
        self._table: int | None = None
        self._state = TableState()
        self._keys: list[Any] = []
        self._cells_done = 0

    def take_up(self, progress: Progress, cells: dict[int, dict[Any, Any]]) -> None:
        """Begin with an opened store and the committed cells of its tables, which `commit` keeps current."""
        self._table = None
        self._waiting = {table: Waiting(found) for table, found in cells.items()}
        self._garbage.clear()
        for delta, table, size in self._db.execute("SELECT id, tbl, length(body) FROM deltas ORDER BY id"):
            if table not in progress.tables or delta <= progress.tables[table].folded:
                self._garbage.append((delta,))
            elif table in self._waiting:
                self._waiting[table].add(delta, size + DELTA_BYTES)
        for table, generation, row in self._db.execute("SELECT tbl, generation, number FROM cells"):
            if table not in progress.tables or generation != progress.tables[table].generation:
                self._garbage.append((table, generation, row))

    def take(self, table: int, cells: dict[Any, Any], folded: int) -> None:
        """A table comes in: a new one, or one that nobody had taken up."""
        self._waiting[table] = waiting = Waiting(cells)
        for delta, size in self._db.execute(
            "SELECT id, length(body) FROM deltas WHERE tbl = ? AND id > ? ORDER BY id", (table, folded)
        ):
            waiting.add(delta, size + DELTA_BYTES)

    def give_up(self, table: int, state: TableState) -> None:
        """A table's number is never used again: what is stored under it goes, a little with each commit."""
        waiting = self._waiting.pop(table, None)
        if self._table == table:
            self._garbage.extend((table, self._state.generation, row) for row in range(self._state.rows))
            self._table = None
        self._garbage.extend((table, state.generation, row) for row in range(state.rows))
        if waiting is not None:
            self._garbage.extend((delta,) for delta, _ in waiting.deltas)

    def added(self, table: int, delta: int, size: int) -> None:
        """A delta with a body of this size was written."""
        if table in self._waiting:
            self._waiting[table].add(delta, size + DELTA_BYTES)

    def step(self, progress: Progress, added: int, tables: int, *, begin: bool = True) -> None:
        """Some work inside a transaction, before its deltas: so many bytes, in so many tables.

        To `begin` a fold takes longer the larger the table is.
        """
        self._delete(_GONE_AT_ONCE + 2 * tables)
        if self._table is None and not (begin and self._begin(progress)):
            return
        limit = max(SLICE_BYTES, 2 * (added + DELTA_BYTES * tables))
        while limit > 0 and self._table is not None:
            limit -= self._slice(progress, self._table, min(limit, ROW_BYTES_MAX))
        failpoint("fold.slice.after")

    def _begin(self, progress: Progress) -> bool:
        """Choose the table that is furthest behind, if it is far enough."""
        if not self._waiting:
            return False
        table, waiting = max(self._waiting.items(), key=lambda item: item[1].bytes)
        before = progress.tables.get(table, TableState())
        if waiting.bytes < max(BYTES_MIN, 3 * before.bytes // 2):
            return False
        progress.generation += 1
        self._table = table
        self._state = TableState(generation=progress.generation, folded=before.last)
        self._keys = list(waiting.cells)
        self._cells_done = 0
        return True

    def _slice(self, progress: Progress, table: int, limit: int) -> int:
        """Write a row of about so many bytes; gives how many it took."""
        state, cells = self._state, self._waiting[table].cells
        count = max(1, limit * self._cells_done // state.bytes) if state.bytes else _CELLS_FIRST
        keys = self._keys[-count:]
        del self._keys[-count:]
        self._cells_done += len(keys)
        try:
            entries = list(map(cells.__getitem__, keys))
        except KeyError:  # some are gone meanwhile
            keys = [key for key in keys if key in cells]
            entries = list(map(cells.__getitem__, keys))
        body = pack_cells(keys, entries, ())
        about = (table, state.generation, state.rows, len(keys))
        self._db.execute("INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?)", (*about, body, crc(body, *about)))
        state.rows += 1
        state.bytes += len(body)
        if not self._keys:
            self._end(progress, table)
        return len(body)

    def _end(self, progress: Progress, table: int) -> None:
        before = progress.tables.get(table, TableState())
        self._garbage.extend((table, before.generation, row) for row in range(before.rows))
        waiting = self._waiting[table]
        while waiting.deltas and waiting.deltas[0][0] <= self._state.folded:
            delta, size = waiting.deltas.popleft()
            waiting.bytes -= size
            self._garbage.append((delta,))
        self._state.last = before.last
        progress.tables[table] = self._state
        self._table = None
        failpoint("fold.end.after")

    def _delete(self, count: int) -> None:
        for _ in range(min(count, len(self._garbage))):
            what = self._garbage.popleft()
            if len(what) == 1:
                self._db.execute("DELETE FROM deltas WHERE id = ?", what)
            else:
                self._db.execute("DELETE FROM cells WHERE tbl = ? AND generation = ? AND number = ?", what)
