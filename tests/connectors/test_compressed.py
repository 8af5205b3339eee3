"""Compressed files: places count decompressed bytes, and a broken file gives what it holds, then says so."""

import gzip
import random
from pathlib import Path
from typing import Any

import pytest

from secondpass.connectors import JsonLines
from secondpass.connectors.compressed import GzipFeed
from secondpass.connectors.contract import Reader
from secondpass.errors import InputError

LINES = [b'{"n":%d,"pad":"%d"}\n' % (n, random.Random(n).getrandbits(200)) for n in range(20_000)]
DATA = b"".join(LINES)


def numbers(reader: Reader, limit: int = 1000) -> list[int]:
    found: list[int] = []
    while (batch := reader.read(limit)) is not None and batch.count:
        found += [e["n"] for e in batch.events]
    return found


def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(data)
    return path


def test_members_padding_and_empty_files_are_read_as_gzip_reads_them(tmp_path: Path) -> None:
    middle = len(DATA) // 2
    for packed in (
        gzip.compress(DATA),
        gzip.compress(DATA[:middle]) + gzip.compress(b"") + gzip.compress(DATA[middle:]),
        gzip.compress(DATA) + b"\0" * 600_000,
    ):
        assert numbers(JsonLines(file(tmp_path, packed)).open(None)) == list(range(20_000))
    assert JsonLines(file(tmp_path, b"")).open(None).read(10) is None
    assert JsonLines(file(tmp_path, gzip.compress(b""))).open(None).read(10) is None


def test_what_decompresses_to_much_takes_little_memory_at_once(tmp_path: Path) -> None:
    path = file(tmp_path, gzip.compress((b" " * 1023 + b"\n") * (64 << 10) + b'{"n":1}\n'))
    feed = GzipFeed(str(path), "x")
    assert len(feed.peek(1000)) == 1000
    assert len(feed._buffer) < (1 << 20)
    feed.close()
    assert numbers(JsonLines(path).open(None)) == [1]


@pytest.mark.parametrize("cut", [1, 9, 5_000])
def test_a_truncated_file_gives_its_whole_lines_and_then_says_that_it_is_incomplete(
    tmp_path: Path, cut: int
) -> None:
    path = file(tmp_path, gzip.compress(DATA)[:-cut])
    reader = JsonLines(path).open(None)
    found: list[int] = []
    offsets: list[dict[str, Any]] = []

    def read_all() -> None:
        while (batch := reader.read(1000)) is not None:
            found.extend(e["n"] for e in batch.events)
            offsets.append(batch.offset)
            assert not batch.refused

    with pytest.raises(InputError, match="it ends in the middle"):
        read_all()
    assert found == list(range(len(found)))
    assert len(found) > 15_000
    file(tmp_path, gzip.compress(DATA))
    assert numbers(JsonLines(path).open(offsets[-1])) == list(range(len(found), 20_000))


def test_what_is_no_gzip_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is no gzip file"):
        JsonLines(file(tmp_path, DATA)).open(None).read(10)


def test_damage_in_the_middle_is_refused_after_what_precedes_it(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(DATA[: 1 << 19]) + gzip.compress(DATA[1 << 19 :]))
    data[-4000] ^= 0xFF
    reader = JsonLines(file(tmp_path, bytes(data))).open(None)
    with pytest.raises(InputError, match="cannot be decompressed beyond byte"):
        numbers(reader)


def test_rubbish_after_the_last_member_is_refused(tmp_path: Path) -> None:
    reader = JsonLines(file(tmp_path, gzip.compress(DATA) + b"rubbish")).open(None)
    with pytest.raises(InputError, match="cannot be decompressed"):
        numbers(reader)


def test_a_changed_file_is_noticed_before_the_commit(tmp_path: Path) -> None:
    path = file(tmp_path, gzip.compress(DATA))
    reader = JsonLines(path).open(None)
    reader.read(10)
    reader.verify()
    packed = bytearray(path.read_bytes())
    packed[100] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(InputError, match="changed while it was read"):
        reader.verify()


def test_output_held_back_by_zlib_is_not_forgotten(tmp_path: Path) -> None:
    path = file(tmp_path, gzip.compress(b"x" * 3_000_000, 9))
    for size in (1, 100, 65_536, 1_000_000):
        feed = GzipFeed(str(path), "x")
        total = 0
        for _ in range(3_000_001):
            data = feed.peek(size if size > 1 else 10_007)
            if not data:
                break
            feed.advance(data, len(data))
            total += len(data)
        assert total == 3_000_000
        assert feed.last
        feed.close()
