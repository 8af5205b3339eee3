"""Large tables in large pages: a processor finds a random cell among millions sooner.

Reading and writing random cells of a large table is mostly waiting: for the cell, and for the page tables that say
where it is. In pages of 2 MiB instead of 4 KiB the second wait goes; a table of ten million cells is read and
written a quarter to a third faster (`benchmarks/many_cells.py`). Linux gives such pages to memory for which a
program asks (`madvise(2)`: MADV_HUGEPAGE, and MADV_COLLAPSE since 6.1). It is advice: where the kernel refuses,
nothing changes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

CELLS_MIN = 1_000_000
"""Fewer cells are found quickly enough, and the advice would take longer than it saves."""
_REGION_MIN = 8 * 1024 * 1024
_AT_ONCE = 16 * 1024 * 1024  # the process's memory map is locked meanwhile: some milliseconds
_HUGEPAGE, _COLLAPSE = 14, 25


def ask(cells: int) -> threading.Thread | None:
    """Ask for large pages in a thread of its own, where there are so many cells that it helps."""
    if cells < CELLS_MIN or sys.platform != "linux":
        return None
    thread = threading.Thread(target=_ask, name="secondpass-hugepages", daemon=True)
    thread.start()
    return thread


def _ask() -> None:
    import ctypes  # 5 ms that only a large table pays

    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in list(_regions()):
        if madvise(start, end - start, _HUGEPAGE):
            return  # a kernel without large pages
        for at in range(start, end, _AT_ONCE):
            # May fail for a region that is gone meanwhile, or for want of memory: the rest may still succeed.
            madvise(at, min(_AT_ONCE, end - at), _COLLAPSE)


def _regions() -> Iterator[tuple[int, int]]:
    """The large pieces of private memory that belong to no file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, mode, _, _, _, *name = line.split(maxsplit=5)
        if mode == "rw-p" and name in ([], ["[heap]"]):
            start, end = (int(part, 16) for part in addresses.split("-"))
            if end - start >= _REGION_MIN:
                yield start, end
