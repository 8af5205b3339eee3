"""What every source promises, asked of all of them with real files."""

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass import Event
from secondpass.connectors import Csv, JsonLines
from secondpass.connectors.contract import Source
from secondpass.connectors.memory import as_source
from secondpass.errors import InputError


class Seen(Event):
    cid: int
    time: float
    note: str


# A row is (cid, time, note), or None for a record that is no event.
Row = tuple[int, float, str] | None

notes = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
rows_of = st.lists(
    st.none()
    | st.tuples(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), notes),
    max_size=40,
)
limits_of = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def json_lines(rows: list[Row]) -> bytes:
    lines = ["[]" if r is None else json.dumps({"cid": r[0], "time": r[1], "note": r[2]}) for r in rows]
    return "".join(line + "\n" for line in lines).encode()


def csv_rows(rows: list[Row]) -> bytes:
    def cell(value: object) -> str:
        return '"' + str(value).replace('"', '""') + '"' if isinstance(value, str) else repr(value)

    lines = ["too,few" if r is None else ",".join(map(cell, r)) for r in rows]
    return "".join(line + "\n" for line in ["cid,time,note", *lines]).encode()


def memory_items(rows: list[Row]) -> list[Any]:
    return [7 if r is None else Seen(*r) for r in rows]


def generated(rows: list[Row]) -> Callable[[], Iterator[Any]]:
    def events() -> Iterator[Any]:
        yield from memory_items(rows)

    return events


KINDS: dict[str, Callable[[Path, list[Row]], Source]] = {
    "jsonl": lambda d, rows: JsonLines(write(d / "x.jsonl", json_lines(rows)), Seen),
    "jsonl untyped": lambda d, rows: JsonLines(write(d / "x.jsonl", json_lines(rows))),
    "jsonl.gz": lambda d, rows: JsonLines(write(d / "x.jsonl.gz", json_lines(rows)), Seen),
    "csv": lambda d, rows: Csv(write(d / "x.csv", csv_rows(rows)), Seen),
    "csv untyped": lambda d, rows: Csv(write(d / "x.csv", csv_rows(rows))),
    "csv.gz": lambda d, rows: Csv(write(d / "x.csv.gz", csv_rows(rows)), Seen),
    "list": lambda d, rows: as_source(memory_items(rows), 0),
    "function": lambda d, rows: as_source(lambda: memory_items(rows), 0),
    "generator function": lambda d, rows: as_source(generated(rows), 0),
}

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def folder() -> Iterator[Callable[[], Path]]:
    """Fresh folders: Hypothesis runs one test many times."""
    with tempfile.TemporaryDirectory() as name:
        yield lambda: Path(tempfile.mkdtemp(dir=name))


def row_of(event: Any) -> Row:
    found = event if isinstance(event, dict) else msgspec.structs.asdict(event)
    return (int(found["cid"]), float(found["time"]), found["note"])


def read(
    source: Source, limits: list[int], offset: dict[str, Any] | None = None
) -> tuple[list[Row], list[tuple[int, dict[str, Any]]]]:
    """All records from an offset on, and after how many of them which offset was given."""
    reader = source.open(offset)
    rows: list[Row] = []
    offsets: list[tuple[int, dict[str, Any]]] = []
    turn = 0
    while (batch := reader.read(limits[turn % len(limits)])) is not None:
        assert batch.count <= limits[turn % len(limits)]
        assert sorted([*batch.origin, *batch.refused]) == list(range(batch.count))
        by_index = dict(zip(batch.origin, batch.events, strict=True))
        rows += [row_of(by_index[i]) if i in by_index else None for i in range(batch.count)]
        # An offset is stored: it must survive that.
        offsets.append((len(rows), msgspec.msgpack.decode(msgspec.msgpack.encode(batch.offset))))
        reader.verify()
        turn += 1
    assert reader.read(5) is None
    progress = reader.progress()
    assert progress is None or progress[0] == progress[1]
    reader.close()
    return rows, offsets


@every_kind
@settings(max_examples=40)
@given(rows=rows_of, limits=limits_of)
def test_the_records_are_the_same_whatever_the_limits_of_reading(
    kind: str, rows: list[Row], limits: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = KINDS[kind](Path(name), rows)
        assert read(source, limits)[0] == read(source, [1000])[0] == rows


@every_kind
@settings(max_examples=40)
@given(rows=rows_of, limits=limits_of)
def test_reading_from_any_offset_gives_the_rest(kind: str, rows: list[Row], limits: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = KINDS[kind](Path(name), rows)
        for count, offset in read(source, limits)[1]:
            assert read(source, [7], offset)[0] == rows[count:]


@every_kind
def test_an_offset_into_other_content_is_refused(kind: str, folder: Callable[[], Path]) -> None:
    rows: list[Row] = [(i, float(i), "a") for i in range(5)]
    _, offsets = read(KINDS[kind](folder(), rows), [2])
    offset = {**offsets[1][1]}
    rows[3] = (99, 3.0, "a")
    where = folder()
    source = KINDS[kind](where, rows)
    if "path" in offset:
        offset["path"] = source.name
    with pytest.raises(InputError, match="--fresh"):
        source.open(offset)


@every_kind
def test_an_offset_beyond_the_end_is_refused(kind: str, folder: Callable[[], Path]) -> None:
    rows: list[Row] = [(i, float(i), "a") for i in range(5)]
    _, offsets = read(KINDS[kind](folder(), rows), [4])
    offset = {**offsets[0][1]}
    source = KINDS[kind](folder(), rows[:2])
    if "path" in offset:
        offset["path"] = source.name
    with pytest.raises(InputError, match="--fresh"):
        source.open(offset)


@every_kind
def test_an_offset_of_another_kind_of_source_is_refused(kind: str, folder: Callable[[], Path]) -> None:
    source = KINDS[kind](folder(), [(1, 1.0, "a")])
    with pytest.raises(InputError, match="another kind"):
        source.open({"topic": "detections", "partition": 3})


@every_kind
def test_a_source_can_be_opened_again_from_the_start(kind: str, folder: Callable[[], Path]) -> None:
    source = KINDS[kind](folder(), [(1, 1.0, "a"), None, (2, 2.0, "b")])
    assert read(source, [10]) == read(source, [10])


@every_kind
def test_a_refused_record_says_why_and_where(kind: str, folder: Callable[[], Path]) -> None:
    source = KINDS[kind](folder(), [(1, 1.0, "a"), None])
    reader = source.open(None)
    batch = reader.read(10)
    assert batch is not None
    refused = batch.refused[1]
    assert refused.reason
    assert refused.raw
    assert refused.offset > 0
    assert refused.source == source.name
    reader.close()
