"""A file is read on only where it is the file that was read before."""

import os
from pathlib import Path
from typing import Any

import pytest

from secondpass.connectors import Csv, JsonLines
from secondpass.connectors.contract import Batch, Reader
from secondpass.errors import InputError

LINES = [b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * 90) for n in range(200)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(LINES))
    return path


def numbers(batch: Batch | None) -> list[int]:
    return [] if batch is None else [e["n"] for e in batch.events]


def first(reader: Reader, count: int) -> Batch:
    batch = reader.read(count)
    assert batch is not None
    return batch


def offset_after(path: Path, count: int) -> dict[str, Any]:
    reader = JsonLines(path).open(None)
    found = first(reader, count).offset
    reader.close()
    return found


def rest(path: Path, offset: dict[str, Any], **how: Any) -> list[int]:
    reader = JsonLines(path).open(offset, **how)
    found = numbers(reader.read(1000))
    reader.close()
    return found


def test_a_missing_file_is_named_with_where_it_was_looked_for(path: Path) -> None:
    offset = offset_after(path, 10)
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: no such file"):
        rest(path, offset)


def test_a_truncated_file_is_refused_with_the_sizes(path: Path) -> None:
    offset = offset_after(path, 100)
    os.truncate(path, 50)
    with pytest.raises(
        InputError,
        match=rf"{offset['bytes']} bytes of it had been read, and it has 50.*restore the file.*--fresh",
    ):
        rest(path, offset)


def test_an_edited_head_is_refused(path: Path) -> None:
    offset = offset_after(path, 100)
    path.write_bytes(b'{"n":7' + path.read_bytes()[6:])
    with pytest.raises(InputError, match="first 4096 bytes are not those"):
        rest(path, offset, accept=True)


def test_edited_last_lines_are_refused(path: Path) -> None:
    offset = offset_after(path, 100)
    data = bytearray(path.read_bytes())
    data[offset["bytes"] - 4] = ord("y")
    path.write_bytes(data)
    with pytest.raises(InputError, match="4096 bytes before byte"):
        rest(path, offset, accept=True)


def test_another_path_is_refused_until_it_is_accepted_and_the_content_is_the_same(path: Path) -> None:
    offset = offset_after(path, 100)
    moved = path.rename(path.with_name("y.jsonl"))
    with pytest.raises(InputError, match=rf"{path} was read until.*--accept-input"):
        rest(moved, offset)
    assert rest(moved, offset, accept=True) == list(range(100, 200))


def test_a_rewritten_file_of_the_same_content_is_read_on(path: Path) -> None:
    offset = offset_after(path, 100)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() + b'{"n":200}\n')
    other.rename(path)
    assert rest(path, offset) == list(range(100, 201))


def test_an_offset_of_csv_is_not_one_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n1\n2\n")
    offset = first(Csv(path).open(None), 1).offset
    with pytest.raises(InputError, match="was read as CSV"):
        JsonLines(path).open(offset)
    path.write_bytes(b'{"a":1}\n{"a":2}\n')
    offset = first(JsonLines(path).open(None), 1).offset
    with pytest.raises(InputError, match="was read as JSON lines"):
        Csv(path).open(offset)


# ---------------------------------------------------------------- the last line


def test_an_unterminated_last_line_is_an_event_and_the_file_may_go_on_with_a_newline(path: Path) -> None:
    path.write_bytes(b'{"n":1}\n{"n":2}')
    reader = JsonLines(path).open(None)
    batch = first(reader, 10)
    assert numbers(batch) == [1, 2]
    for more, expected in [(b"", []), (b"\n", []), (b'{"n":3}\n', [3])]:
        with path.open("ab") as out:
            out.write(more)
        assert rest(path, batch.offset) == expected
        reader.verify()


@pytest.mark.parametrize("more", [b"5}\n", b"5", b" 5}"])
def test_a_last_line_that_went_on_was_incomplete_when_it_was_read(path: Path, more: bytes) -> None:
    path.write_bytes(b'{"n":1}\n12')
    reader = JsonLines(path).open(None)
    batch = first(reader, 10)
    assert batch.count == 2
    reader.verify()
    with path.open("ab") as out:
        out.write(more)
    with pytest.raises(InputError, match="last line was incomplete when it was read"):
        reader.verify()
    with pytest.raises(InputError, match="last line was incomplete when it was read"):
        reader.read(10)
    with pytest.raises(InputError, match="last line was incomplete when it was read"):
        JsonLines(path).open(batch.offset).read(10)


def test_blanks_at_the_end_may_become_a_line(path: Path) -> None:
    path.write_bytes(b'{"n":1}\n   ')
    batch = first(JsonLines(path).open(None), 10)
    path.write_bytes(b'{"n":1}\n   {"n":2}\n')
    assert rest(path, batch.offset) == [2]


# ---------------------------------------------------------------- while it is read


def test_growth_is_read_by_a_reader_that_has_not_ended(path: Path) -> None:
    reader = JsonLines(path).open(None)
    assert len(numbers(reader.read(200))) == 200
    with path.open("ab") as out:
        out.write(b'{"n":200}\n')
    reader.verify()
    assert numbers(reader.read(10)) == [200]
    assert reader.read(10) is None
    assert reader.progress() == (path.stat().st_size, path.stat().st_size)


def test_truncation_is_noticed_before_the_commit_and_at_the_end(path: Path) -> None:
    reader = JsonLines(path).open(None)
    first(reader, 100)
    os.truncate(path, 100)
    with pytest.raises(InputError, match="was truncated while it was read"):
        reader.verify()
    with pytest.raises(InputError, match="was truncated while it was read"):
        reader.read(10)


@pytest.mark.parametrize("at", [3, -300])
def test_a_change_of_what_was_read_is_noticed_before_the_commit(path: Path, at: int) -> None:
    reader = JsonLines(path).open(None)
    batch = first(reader, 100)
    reader.verify()
    with path.open("r+b") as out:
        out.seek(at if at > 0 else batch.offset["bytes"] + at)
        out.write(b"!")
    with pytest.raises(InputError, match="changed while it was read"):
        reader.verify()


def test_replacement_is_noticed_before_the_commit(path: Path) -> None:
    reader = JsonLines(path).open(None)
    first(reader, 100)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)
    with pytest.raises(InputError, match="was replaced by another file while it was read"):
        reader.verify()


def test_a_deleted_file_is_read_to_its_end(path: Path) -> None:
    reader = JsonLines(path).open(None)
    first(reader, 100)
    path.unlink()
    reader.verify()
    assert len(numbers(reader.read(1000))) == 100
