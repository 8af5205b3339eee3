"""Epochs that SQLite would drop in silence: is the WAL readable beyond the place where SQLite stopped?

SQLite reads a WAL (https://www.sqlite.org/walformat.html) up to the first frame whose checksum fails and
takes the rest for a transaction that a loss of power cut short. So a bit that flips in an old frame undoes
every later commit, without an error. But each transaction of ours puts its number, the turn, into the row of
`progress`, which lives on page 2; and each was durable before the next one wrote its first frame. So

    a whole frame of page 2 whose turn is more than one after the turn that SQLite reads

proves that a durable transaction cannot be read. Frames that a loss of power tore, lost or left behind from
older transactions never show that: their turns are at most one ahead. What cannot be noticed is damage
to the last transaction of all; it looks like one that was never acknowledged.

    header      magic, version, page size, checkpoint, salt 1, salt 2, checksum 1, checksum 2
    frame       page, pages after a commit or 0, salt 1, salt 2, checksum 1, checksum 2, the page's bytes

A frame's checksum goes on from that of the frame before it, over its first eight bytes and the page.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import BinaryIO

from secondpass.store.format import PAGE_SIZE, PROGRESS_PAGE

_HEADER = 32
_FRAME = 24 + PAGE_SIZE
_FRAMES_AT_ONCE = 64
_PAGE = PROGRESS_PAGE.to_bytes(4, "big")
_LEAF = 13

Sums = tuple[int, int]


def turn_beyond(path: Path, turn: int) -> int:
    """The highest turn in the WAL's whole frames that is more than one after `turn`; 0 when there is none."""
    found = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return found
    with file:
        number = 0
        file.seek(_HEADER)
        while len(chunk := file.read(_FRAME * _FRAMES_AT_ONCE)) >= _FRAME:
            for start in range(0, len(chunk) - _FRAME + 1, _FRAME):
                if chunk.startswith(_PAGE, start):
                    seen = _turn_on(chunk[start + 24 : start + _FRAME])
                    if seen > turn + 1 and seen > found and _is_whole(file, number):
                        found = seen
                number += 1
            file.seek(_HEADER + number * _FRAME)
    return found


def _turn_on(page: bytes) -> int:
    """The key of the one row on a leaf page of the table `progress`; 0 when it is not such a page."""
    if page[0] != _LEAF or page[3:5] != b"\0\1":
        return 0
    _, after_size = _varint(page, int.from_bytes(page[8:10], "big"))
    return _varint(page, after_size)[0]


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """A number of SQLite's record format, and where it ends."""
    found = 0
    for byte in page[at : at + 8]:
        found = found << 7 | byte & 0x7F
        at += 1
        if byte < 0x80:
            break
    return found, at


def _is_whole(file: BinaryIO, number: int) -> bool:
    """Whether a frame's checksum fits, whatever happened to the frames before it.

    It goes on from the checksum that is stored before it or, as that may be what was damaged, from the one
    that is computed there.
    """
    order = _byte_order(file)
    frame = _read(file, number)
    if len(frame) != _FRAME:
        return False
    stored = _stored(frame)
    before = _read(file, number - 1)
    return stored == _checksum(order, frame, _stored(before)) or stored == _checksum(
        order, frame, _checksum(order, before, _stored(_read(file, number - 2)))
    )


def _byte_order(file: BinaryIO) -> str:
    file.seek(0)
    return {0x377F0682: "<", 0x377F0683: ">"}.get(
        int.from_bytes(file.read(4), "big"), "<" if sys.byteorder == "little" else ">"
    )


def _read(file: BinaryIO, number: int) -> bytes:
    """A frame; the header as the one before the first; what precedes it is nothing."""
    if number < -1:
        return b""
    file.seek(0 if number < 0 else _HEADER + number * _FRAME)
    return file.read(_HEADER if number < 0 else _FRAME)


def _stored(frame: bytes) -> Sums:
    if not frame:
        return 0, 0
    at = 24 if len(frame) == _HEADER else 16
    first, second = struct.unpack_from(">II", frame, at)
    return first, second


def _checksum(order: str, frame: bytes, before: Sums) -> Sums:
    covered = frame[:24] if len(frame) == _HEADER else frame[:8] + frame[24:]
    one, two = before
    words = struct.unpack(f"{order}{len(covered) // 4}I", covered)
    for i in range(0, len(words), 2):
        one = one + words[i] + two & 0xFFFFFFFF
        two = two + words[i + 1] + one & 0xFFFFFFFF
    return one, two
