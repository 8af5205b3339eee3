"""What the files of a log look like: segments, named by the number of their first record, each a row of frames.

    segment     magic "SPlogseg", length, checksum; then a map: `Header`
                frames, one after the other
    frame       4  "SPfr"
                4  its length in all
                4  checksum of everything behind it, seeded with the log's id
                8  number of its first record
                8  how many records of the log were durable when it was written
                8  when that was, in seconds
                8  the producer's sequence, -1 where there is none
                4  how many records it holds
                2  length of the producer's name
                   the producer's name, then the records: bytes of whoever appends

A frame is there as a whole or not at all. Its mark of what was durable tells a tail that was torn (nobody had been
told that it is kept) from damage to what was acknowledged: frames behind the damage vouch for it.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from secondpass.errors import StoreDamaged, StoreVersion

SUFFIX = ".log"
FRAME_BYTES_MAX = 1 << 30

_FORMAT = 1
_SEGMENT = b"SPlogseg"
_FRAME = b"SPfr"
_PREFIX = struct.Struct("<4sII")
_REST = struct.Struct("<QQdqIH")
_BEHIND = _PREFIX.size + _REST.size
_HEADER = struct.Struct("<8sII")
_LOOK = 1 << 16


class Producer(msgspec.Struct, array_like=True):
    """What is known of the last append of a producer."""

    sequence: int
    first: int
    count: int
    body: bytes | None = None
    """Its records, where they are in an older segment than the one whose header says so."""
    offset: int = -1
    """Where its frame begins in the segment at hand."""


class Header(msgspec.Struct):
    """What a segment begins with."""

    log: int
    """Tells this log from every other."""
    first: int
    base: int
    """The bytes of all frames before it."""
    created: float
    producers: dict[str, Producer] = {}
    """As they stood when the segment began: they outlive the segments before it."""
    size: int = 0
    """The bytes of the header itself."""
    format: int = _FORMAT


class Frame(NamedTuple):
    """A frame without its records."""

    first: int
    records: int
    producer: str
    sequence: int
    time: float
    durable: int
    start: int
    body: int
    """Where its records begin in the file, and `end` where they end."""
    end: int


def segment_path(directory: Path, first: int) -> Path:
    """The file of the segment that begins with that record."""
    return directory / f"{first:020d}{SUFFIX}"


def segments(directory: Path) -> list[int]:
    """The first records of all segments, in order."""
    return sorted(int(path.stem) for path in directory.glob(f"[0-9]*{SUFFIX}") if path.stem.isdigit())


def pack_header(header: Header) -> bytes:
    """A header as bytes."""
    body = msgspec.msgpack.encode(header)
    return _HEADER.pack(_SEGMENT, len(body), zlib.crc32(body)) + body


def read_header(fd: int, path: Path) -> Header:
    """The header of an open segment; raises `StoreDamaged`, since no segment has its name before its header is kept."""
    magic, length, checksum = _HEADER.unpack(os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
    body = os.pread(fd, length, _HEADER.size) if magic == _SEGMENT else b""
    if len(body) != length or zlib.crc32(body) != checksum or magic != _SEGMENT:
        raise damaged(path, 0)
    header = msgspec.msgpack.decode(body, type=Header)
    if header.format > _FORMAT:
        raise StoreVersion(f"{path} was written by a newer secondpass; read it with that one")
    header.size = _HEADER.size + length
    return header


def damaged(path: Path, at: int) -> StoreDamaged:
    """What to raise where a segment is not what was written."""
    return StoreDamaged(
        f"{path} is damaged at byte {at}: records that were acknowledged are not what was written. Restore the file "
        f"from a backup, or move it and all later ones away and run again: what they held is lost then",
        path=str(path),
        offset=at,
    )


def pack_frame(
    log: int, first: int, count: int, producer: bytes, sequence: int, time: float, durable: int, body: bytes
) -> bytes:
    """A frame as bytes."""
    rest = _REST.pack(first, durable, time, sequence, count, len(producer)) + producer
    checksum = zlib.crc32(body, zlib.crc32(rest, log & 0xFFFFFFFF))
    return b"".join((_PREFIX.pack(_FRAME, _PREFIX.size + len(rest) + len(body), checksum), rest, body))


def frame_at(data: bytes | memoryview, at: int, log: int, offset: int = 0) -> Frame | None:
    """The frame at an index of the data, which begins at that offset of its file; None where there is no whole one."""
    found = head_at(data, at, offset)
    if found is None or found.end - offset > len(data):
        return None
    view = memoryview(data)[at + _PREFIX.size : found.end - offset]
    return found if zlib.crc32(view, log & 0xFFFFFFFF) == _PREFIX.unpack_from(data, at)[2] else None


def head_at(data: bytes | memoryview, at: int, offset: int) -> Frame | None:
    """A frame taken on trust: nothing is checked but the mark it begins with; its end may be behind the data."""
    if len(data) - at < _BEHIND:
        return None
    magic, length, _ = _PREFIX.unpack_from(data, at)
    first, durable, time, sequence, count, named = _REST.unpack_from(data, at + _PREFIX.size)
    body = at + _BEHIND + named
    if magic != _FRAME or length < _BEHIND + named or len(data) < body:
        return None
    try:
        producer = bytes(data[at + _BEHIND : body]).decode()
    except UnicodeDecodeError:
        return None
    start = at + offset
    return Frame(first, count, producer, sequence, time, durable, start, body + offset, start + length)


def heads(fd: int, start: int, end: int, path: Path) -> Iterator[Frame]:
    """The frames between two offsets that are known to be frames' ends, without a look at their records."""
    at, data, offset = start, b"", start
    while at < end:
        found = head_at(data, at - offset, offset) if at >= offset else None
        if found is None:
            data, offset = os.pread(fd, _LOOK + _BEHIND, at), at
            found = head_at(data, 0, offset)
            if found is None:
                raise damaged(path, at)
        yield found
        at = found.end


class Scan(NamedTuple):
    """What a look at every byte of a segment found."""

    frames: list[Frame]
    end: int
    """Where the last whole frame ends; what is behind it is torn."""
    vouched: int
    """So many records frames behind the torn one say were durable."""


def scan(data: bytes | mmap.mmap, header: Header) -> Scan:
    """The whole frames of a segment up to the first that is none."""
    frames: list[Frame] = []
    at, following, vouched = header.size, header.first, 0
    with memoryview(data) as view:
        while (found := frame_at(view, at, header.log)) is not None and found.first == following:
            frames.append(found)
            at, following = found.end, found.first + found.records
        behind = at + 1
        while (behind := data.find(_FRAME, behind)) >= 0:
            later = frame_at(view, behind, header.log)
            if later is not None and later.first >= following:
                vouched = max(vouched, later.durable)
            behind = behind + 1 if later is None else later.end
    return Scan(frames, at, vouched)
