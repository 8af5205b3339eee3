"""Folding: deltas become cells, a slice with each commit.

A delta is written once per epoch; a cell that many of them changed is written once per fold. While a fold
is under way the deltas it covers stay, so a crash in its middle leaves nothing half done: cells that are
already newer are overwritten with the same content when the deltas are applied on top at the next start.

    pending     cells of all deltas up to `upto`, newest content last
    slice       some of them, written in the transaction of the next commit
    end         deltas up to `upto` are deleted, `folded` moves
"""

from __future__ import annotations

from typing import Any

import msgspec

from secondpass.failpoints import failpoint
from secondpass.store.format import Progress, check, decode_delta, sum_of_cells

_pieces = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode

CELLS_MIN = 20_000
"""A fold begins when the deltas hold this many cells, or half of all cells if that is more, or ..."""
DELTAS_MAX = 2_000
"""... when there are this many deltas."""
SLICE = 400
"""Cells written with one commit, and more when many wait."""


class Fold:
    """The deltas of a store on their way into its cells; it moves bytes and knows no types."""

    def __init__(self, connection: Any) -> None:
        self._db = connection
        self._pending: list[tuple[int, bytes, bytes | None]] = []
        self._upto = 0
        self._slice = SLICE
        self.cells_waiting = 0
        self.deltas_waiting = 0
        self.cells_total = 0

    def added(self, cells: int) -> None:
        """A delta of so many cells has been written."""
        self.cells_waiting += cells
        self.deltas_waiting += 1

    def step(self, progress: Progress, epoch: int, *, whole: bool = False) -> None:
        """Do a slice of the work inside the transaction of `epoch`, if there is any to do."""
        if not self._pending and self._upto <= progress.folded:
            due = (
                self.cells_waiting >= max(CELLS_MIN, self.cells_total // 2)
                or self.deltas_waiting >= DELTAS_MAX
            )
            if not due and not (whole and self.deltas_waiting):
                return
            self._begin(progress, epoch)
        self._write(progress, len(self._pending) if whole else self._slice)
        failpoint("fold.slice.after")
        if not self._pending:
            self._db.execute("DELETE FROM deltas WHERE epoch <= ?", (self._upto,))
            progress.folded = self._upto
            failpoint("fold.end.after")

    def _begin(self, progress: Progress, epoch: int) -> None:
        newest: dict[tuple[int, bytes], bytes | None] = {}
        rows = self._db.execute(
            "SELECT epoch, previous, body, crc FROM deltas WHERE epoch > ? AND epoch < ? ORDER BY epoch",
            (progress.folded, epoch),
        )
        for number, previous, body, stored in rows:
            check(f"the delta of epoch {number}", stored, b"%d" % previous, body)
            for delta in decode_delta(body):
                for key, entry in zip(_pieces(delta.keys), _pieces(delta.entries), strict=True):
                    newest[delta.table, bytes(key)] = bytes(entry)
                for key in _pieces(delta.gone):
                    newest[delta.table, bytes(key)] = None
        self._pending = [(table, key, entry) for (table, key), entry in newest.items()]
        # In key order neighbouring rows share a page; taken from the end.
        self._pending.sort(reverse=True)
        self._upto = epoch - 1
        self._slice = max(SLICE, len(self._pending) // 40)
        self.cells_waiting = self.deltas_waiting = 0

    def _write(self, progress: Progress, limit: int) -> None:
        part = [self._pending.pop() for _ in range(min(limit, len(self._pending)))]
        if not part:
            return
        old: dict[int, list[tuple[bytes, bytes]]] = {}
        new: dict[int, list[tuple[bytes, bytes]]] = {}
        find = "SELECT entry FROM cells WHERE tbl = ? AND key = ?"
        for table, key, entry in part:
            for (before,) in self._db.execute(find, (table, key)):
                old.setdefault(table, []).append((key, before))
            if entry is not None:
                new.setdefault(table, []).append((key, entry))
        self._db.executemany(
            "DELETE FROM cells WHERE tbl = ? AND key = ?", [p[:2] for p in part if p[2] is None]
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", [p for p in part if p[2] is not None]
        )
        for table in {*old, *new}:
            before, after = old.get(table, []), new.get(table, [])
            progress.sums[table] = progress.sums.get(table, 0) - sum_of_cells(before) + sum_of_cells(after)
            self.cells_total += len(after) - len(before)
