"""Where a log ends, as all processes of the machine know it: a small file that each of them maps into memory.

It is a shortcut and never the truth: it need not outlive the machine, and is made again from the segments by whoever
finds it made under another boot of the machine, or left busy by a process that died (`store/log.py`). One thing in it
is always true: that the records below `durable` are kept, since it is written after the sync.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from zlib import crc32

from secondpass.store.lock import boot_id

FILE = "ends"
_SIZE = 4096
_MADE = 0x53506C6F67000001
(
    _MAGIC,
    _BOOT,
    _BUSY,
    _SEGMENT,
    _OFFSET,
    _NEXT,
    _BYTES,
    _DURABLE,
    _DURABLE_CHECK,
    _FAILED,
    _COMMITTED,
    _COMMITTED_BYTES,
    _WAITING,
    _REPAIRS,
) = range(14)


def _cell(index: int) -> property:
    """One number; eight bytes in their place are read and written at once."""
    return property(
        lambda self: self._cells[index], lambda self, value: self._cells.__setitem__(index, value)
    )


class Ends:
    """The numbers that the users of a log share."""

    busy: int = _cell(_BUSY)  # type: ignore[assignment]
    """1 while a process changes the files, or the next five numbers; whoever finds it so repairs."""
    segment: int = _cell(_SEGMENT)  # type: ignore[assignment]
    """The first record of the segment that is written to."""
    offset: int = _cell(_OFFSET)  # type: ignore[assignment]
    """Where that one ends."""
    next: int = _cell(_NEXT)  # type: ignore[assignment]
    """The number of the next record."""
    bytes: int = _cell(_BYTES)  # type: ignore[assignment]
    """The bytes of all frames since the log began."""
    failed: int = _cell(_FAILED)  # type: ignore[assignment]
    """1 after a sync that failed: nobody knows what of the records that are not durable the disk holds."""
    committed: int = _cell(_COMMITTED)  # type: ignore[assignment]
    """The records below are committed, says the hub; `committed_bytes` are theirs."""
    committed_bytes: int = _cell(_COMMITTED_BYTES)  # type: ignore[assignment]
    waiting: int = _cell(_WAITING)  # type: ignore[assignment]
    """1 while the hub sleeps until it is woken."""
    repairs: int = _cell(_REPAIRS)  # type: ignore[assignment]
    """How often the numbers were made again: what was known before may have been cut."""

    def __init__(self, path: Path) -> None:
        """To be called under the log's lock: a second one making the file would wipe what the first one wrote."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _SIZE:
                os.pwrite(
                    fd, bytes(_SIZE), 0
                )  # written, not only made so long: a map has no way to say "disk full"
            self._map = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        self._cells = memoryview(self._map).cast("q")

    @property
    def known(self) -> bool:
        """Whether the numbers are those of the files: none of their users has seen the machine start since."""
        return self._cells[_MAGIC] == _MADE and self._cells[_BOOT] == _this_boot() and not self._cells[_BUSY]

    def made(self) -> None:
        """All numbers are right now."""
        self._cells[_MAGIC], self._cells[_BOOT], self._cells[_BUSY] = _MADE, _this_boot(), 0

    @property
    def durable(self) -> int:
        """The records below are kept, whatever happens to the machine."""
        return self._cells[_DURABLE]

    @durable.setter
    def durable(self, end: int) -> None:
        self._cells[_DURABLE_CHECK] = ~end
        self._cells[_DURABLE] = end

    @property
    def vouched(self) -> int:
        """The same as a file of unknown age says it; 0 where it does not know."""
        end = self._cells[_DURABLE]
        return end if self._cells[_DURABLE_CHECK] == ~end and end > 0 else 0

    def close(self) -> None:
        """Let go of the file."""
        self._cells.release()
        self._map.close()


def durable_in(content: bytes) -> int:
    """How many records are durable by the content of the file."""
    if len(content) < _SIZE:
        return 0
    cells = memoryview(content).cast("q")
    return cells[_DURABLE] if cells[_DURABLE_CHECK] == ~cells[_DURABLE] else 0


def _this_boot() -> int:
    global _boot
    if _boot == 0:
        name = boot_id()
        if not name:  # not Linux
            import psutil

            name = str(psutil.boot_time())
        _boot = crc32(name.encode()) << 16 | 1
    return _boot


_boot = 0
