"""Epochs that SQLite would drop in silence: does the WAL go on where SQLite stopped reading it?

SQLite reads a WAL (https://www.sqlite.org/walformat.html) up to the first frame whose checksum fails, and
takes the rest for a transaction that a loss of power cut short. So a bit that flips in an old frame undoes
every later commit, without an error. But each transaction of ours puts its number, the turn, into the row of
`progress`, which lives on page 2; and each was durable before the next one wrote its first byte. So

    a frame of page 2 whose turn is more than one after the turn that SQLite reads

proves that a durable transaction cannot be read. Frames that a loss of power tore, lost or left behind from
older transactions never show that: their turns are at most one ahead. What cannot be noticed is damage to
the last transaction of all; it looks like one that was never acknowledged.

    WAL         a header of 32 bytes, then frames
    frame       page number (4 bytes), 20 bytes of no interest here, the page
    page        kind (1 byte), 2 bytes, number of rows (2), 3 bytes, where the row begins (2), ...
    row         its size, its key (the turn), the size of the header, ..., the first column (the stamp), ...

A turn counts when its stamp fits, whatever else of the frame is torn.
"""

from __future__ import annotations

from pathlib import Path

from secondpass.store.format import PAGE_SIZE, PROGRESS_PAGE, STAMP_SIZE, stamp

_HEADER = 32
_FRAME_HEADER = 24
_FRAME = _FRAME_HEADER + PAGE_SIZE
_FRAMES_AT_ONCE = 64
_PAGE = PROGRESS_PAGE.to_bytes(4, "big")
_LEAF = b"\x0d"
_ONE_ROW = b"\0\1"


def turn_beyond(path: Path, turn: int) -> int:
    """The highest turn in the WAL that is more than one after `turn`; 0 when there is none."""
    found = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return found
    with file:
        file.seek(_HEADER)
        while chunk := file.read(_FRAME * _FRAMES_AT_ONCE):
            for start in range(0, len(chunk), _FRAME):
                if chunk.startswith(_PAGE, start):
                    found = max(found, _turn_on(chunk[start + _FRAME_HEADER : start + _FRAME]))
    return found if found > turn + 1 else 0


def _turn_on(page: bytes) -> int:
    """The key of the one row on a page of the table `progress`; 0 when there is none with its stamp."""
    if page[:1] != _LEAF or page[3:5] != _ONE_ROW:
        return 0
    _, at = _varint(page, int.from_bytes(page[8:10], "big"))
    turn, at = _varint(page, at)
    header_size, _ = _varint(page, at)
    at += header_size
    return turn if page[at : at + STAMP_SIZE] == stamp(turn) else 0


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """A number of SQLite's record format, and where it ends."""
    found = 0
    for byte in page[at : at + 8]:
        found = found << 7 | byte & 0x7F
        at += 1
        if byte < 0x80:
            break
    return found, at
