"""Rows of CSV: what is a record, how cells become fields, and what a sink writes."""

import csv
import datetime
import enum
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass import Event, UntypedEvent
from secondpass.connectors import Csv
from secondpass.connectors.contract import Delivery
from secondpass.connectors.csv_records import CsvRecords
from secondpass.connectors.maker import Maker
from secondpass.connectors.memory import as_sink
from secondpass.errors import InputError, OutputError, SettingsError
from secondpass.record import Refused


class Alarm(Event, rename={"time": "start"}):
    device: int
    time: float
    note: str | None = None
    level: float | None = None
    count: int = 1
    tags: tuple[int, ...] = ()


def records(source: Csv, limit: int = 1000) -> list[Any]:
    reader = source.open(None)
    found: list[Any] = []
    while (batch := reader.read(limit)) is not None:
        by_index = dict(zip(batch.origin, batch.events, strict=True))
        found += [by_index[i] if i in by_index else batch.refused[i] for i in range(batch.count)]
    reader.close()
    return found


def file(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "x.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_cells_become_fields_of_the_declared_types(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        "device,start,note,level,count,tags\n"
        "7,12.5,hello,0.5,3,\n"
        "8,13,,,,\n"
        '9,14,"a, ""b""\nc",-1e3,2,"[1,2]"\n',
    )
    assert records(Csv(path, Alarm)) == [
        Alarm(device=7, time=12.5, note="hello", level=0.5, count=3),
        Alarm(device=8, time=13.0),
        Alarm(device=9, time=14.0, note='a, "b"\nc', level=-1000.0, count=2, tags=(1, 2)),
    ]


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_what_is_no_row_is_refused_with_its_place(tmp_path: Path, limit: int) -> None:
    lines = ["device,start", "1,2", "x,2", "", "1", "1,2,3", ",2", '"5"x,6', "7\x00,8", '"1,2', "3,4", ""]
    path = file(tmp_path, "\n".join(lines))
    found = records(Csv(path, Alarm), limit)
    assert [r.device if isinstance(r, Alarm) else r.reason for r in found] == [
        1,
        "Expected `int`, got `str` - at `$.device`",
        "1 fields where the header has 2",
        "3 fields where the header has 2",
        "Expected `int`, got `str` - at `$.device`",
        "Expected `int`, got `str` - at `$.device`",
        "Expected `int`, got `str` - at `$.device`",
        "a quoted field is not closed",
        3,
    ]
    text = path.read_bytes()
    assert all(text[r.offset :].startswith(r.raw) for r in found if isinstance(r, Refused))


def test_bytes_that_are_no_utf8_cost_their_line_alone(tmp_path: Path) -> None:
    found = records(Csv(file(tmp_path, b"a,b\n1,2\n\xff,3\n4,5\n")))
    assert [type(r) for r in found] == [UntypedEvent, Refused, UntypedEvent]


def test_untyped_cells_stay_text_except_a_numeric_time(tmp_path: Path) -> None:
    path = file(tmp_path, "time,a\n12,1\n1.5,\nsoon,x\n1_0,y\n")
    assert records(Csv(path)) == [
        {"time": 12.0, "a": "1"},
        {"time": 1.5, "a": ""},
        {"time": "soon", "a": "x"},
        {"time": "1_0", "a": "y"},
    ]


def test_time_unit_converts_typed_and_untyped_times(tmp_path: Path) -> None:
    path = file(tmp_path, "device,start\n1,1500\n")
    assert records(Csv(path, Alarm, time_unit="ms")) == [Alarm(device=1, time=1.5)]
    path = file(tmp_path, "time\n1500\nsoon\n")
    assert records(Csv(path, time_unit="ms")) == [{"time": 1.5}, {"time": "soon"}]


def test_line_ends_blanks_a_bom_and_other_delimiters_are_read(tmp_path: Path) -> None:
    expected = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert records(Csv(file(tmp_path, b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n  \r\n3,4"))) == expected
    assert records(Csv(file(tmp_path, "\n\na\tb\n1\t2\n3\t4\n"), delimiter="\t")) == expected
    assert records(Csv(file(tmp_path, "a,b\n\t,\t\n"))) == [{"a": "\t", "b": "\t"}]
    assert records(Csv(file(tmp_path, "a\tb\n\t\n"), delimiter="\t")) == [{"a": "", "b": ""}]
    assert records(Csv(file(tmp_path, 'a\n" "\n \n""\nx\n'))) == [{"a": " "}, {"a": ""}, {"a": "x"}]


def test_a_file_without_rows_is_empty(tmp_path: Path) -> None:
    assert records(Csv(file(tmp_path, ""))) == records(Csv(file(tmp_path, "a,b\n"))) == []


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,a\n", "names 'a' twice"),
        ("a,,b\n", "column 2 of the header has no name"),
        ('"a,b\n', "header cannot be read"),
        (b"\xff\n", "header cannot be read"),
        ("x" * 2000 + "\n", "header is longer than max_line_bytes"),
    ],
)
def test_a_header_that_names_no_fields_stops_the_source(
    tmp_path: Path, header: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        records(Csv(file(tmp_path, header), max_line_bytes=1000))


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no column 'start', which Alarm requires; its columns are 'device', 'begin'"
    ):
        records(Csv(file(tmp_path, "device,begin\n1,2\n"), Alarm))


def test_columns_that_the_type_ignores_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "secondpass.input"):
        records(Csv(file(tmp_path, "device,start,x\nbad,2,3\n1,2,3\n1,2,3\n"), Alarm), 1)
    assert [r.getMessage().partition("ignored: ")[2] for r in caplog.records] == ["x"]


def test_integers_beyond_64_bits_are_refused(tmp_path: Path) -> None:
    found = records(
        Csv(file(tmp_path, "device,start\n18446744073709551615,1\n18446744073709551616,1\n"), Alarm)
    )
    assert isinstance(found[0], Alarm)
    assert "64 bits" in found[1].reason


def test_a_row_beyond_the_limit_costs_its_first_line(tmp_path: Path) -> None:
    path = file(tmp_path, 'a,b\n1,2\n"' + "x\n" * 100 + '",3\n4,5\n' + "y" * 300 + ",6\n7,8\n")
    found = records(Csv(path, max_line_bytes=100))
    assert [r for r in found if not isinstance(r, Refused)] == [
        {"a": "1", "b": "2"},
        {"a": "4", "b": "5"},
        {"a": "7", "b": "8"},
    ]
    assert found[1].reason == "a quoted field is not closed"
    assert found[1].raw == b'"x'
    assert "300" in found[-2].reason or "302" in found[-2].reason


def test_a_field_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    path = file(tmp_path, "a,b\n" + "x" * 200_000 + ",1\n")
    assert len(records(Csv(path))[0]["a"]) == 200_000


def test_a_delimiter_is_one_character() -> None:
    for delimiter in ("", ",,", '"', "\n"):
        with pytest.raises(SettingsError, match="give one character"):
            Csv("x", delimiter=delimiter)


# ---------------------------------------------------------------- fast equals slow

chunks = st.lists(
    st.sampled_from(
        [
            "1",
            ",",
            "\n",
            "\r\n",
            '"',
            '""',
            " ",
            "x",
            "2.5",
            "\t",
            "ü",
            "a\rb",
            "99999999999999999999",
            '"a\n"',
        ]
    )
    | st.text(max_size=3),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("typed", [True, False])
@given(text=chunks, limit=st.integers(1, 9))
def test_no_way_of_reading_rows_differs_from_row_by_row(typed: bool, text: str, limit: int) -> None:
    data = text.encode(errors="replace")
    fields = ("device", "start") if typed else ("a", "b")

    def parse(limit: int, *, bulk: bool) -> list[Any]:
        parser = CsvRecords(
            Maker(Alarm if typed else None, "s", "x"), "x", delimiter=",", max_bytes=1 << 20, fields=fields
        )
        if not bulk:
            parser._whole = parser._events = lambda *_: None  # type: ignore[method-assign]
        found: list[Any] = []
        at = 0
        while at < len(data):
            parsed = parser.parse(data[at:], at, limit, final=True)
            assert parsed.used > 0
            origin = range(parsed.count) if parsed.origin is None else parsed.origin
            by_index = dict(zip(origin, parsed.events, strict=True))
            found += [
                by_index[i] if i in by_index else (parsed.refused or {})[i] for i in range(parsed.count)
            ]
            at += parsed.used
        return found

    assert parse(limit, bulk=True) == parse(1000, bulk=False)


@given(rows=st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=12))
def test_rows_are_those_of_the_csv_module(rows: list[tuple[str, str]]) -> None:
    # The csv module does not quote a lone \r before Python 3.13, and then cannot read it itself.
    rows = [(a.replace("\r", ""), b.replace("\r", "")) for a, b in rows]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    data = text.getvalue().encode(errors="replace")
    parser = CsvRecords(Maker(None, "s", "x"), "x", delimiter=",", max_bytes=1 << 20, fields=("a", "b"))
    parsed = parser.parse(data, 0, 1000, final=True) if data else None
    expected = [(a.encode(errors="replace").decode(), b.encode(errors="replace").decode()) for a, b in rows]
    assert [(e["a"], e["b"]) for e in (parsed.events if parsed else [])] == expected


# ---------------------------------------------------------------- as a sink


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct, frozen=True):
    x: float


class Everything(Event):
    i: int
    f: float
    b: bool
    s: str
    o: str | None
    when: datetime.datetime
    colour: Colour
    point: Point
    by: Mapping[str, int]
    time: float = 0.0


def written(path: Path, events: list[Any]) -> str:
    sink = as_sink(Csv(path))
    sink.open(None)
    sink.recovered()
    sink.deliver(Delivery(0, len(events), b""), events)
    sink.sync()
    sink.close()
    return path.read_text()


def test_every_kind_of_value_is_written_and_read_back(tmp_path: Path) -> None:
    event = Everything(
        i=-7,
        f=0.1,
        b=True,
        s='a "b", c\r\nd',
        o=None,
        when=datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC),
        colour=Colour.RED,
        point=Point(x=1.5),
        by={"k": 1},
    )
    path = tmp_path / "x.csv"
    assert written(path, [event]) == (
        "i,f,b,s,o,when,colour,point,by,time\n"
        '-7,0.1,true,"a ""b"", c\r\nd",,2026-01-31T12:00:00Z,red,"{""x"":1.5}","{""k"":1}",0.0\n'.replace(
            "\r\n", "\n"
        )
    )
    assert records(Csv(path, Everything)) == [event]


def test_untyped_outputs_take_the_keys_of_the_first(tmp_path: Path) -> None:
    events = [UntypedEvent(a=1, b="x"), UntypedEvent(b="y"), UntypedEvent(b=None, a=(1, 2))]
    assert written(tmp_path / "x.csv", events) == 'a,b\n1,x\n,y\n"[1,2]",\n'


def test_a_field_that_the_header_lacks_stops_the_sink_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    sink = as_sink(Csv(path))
    sink.open(None)
    sink.deliver(Delivery(0, 1, b""), [UntypedEvent(a=1)])
    with pytest.raises(OutputError, match=r"output number 2 has fields that the header lacks: b"):
        sink.deliver(Delivery(1, 2, b""), [UntypedEvent(a=2), UntypedEvent(a=3, b=1)])
    sink.close()
    assert path.read_text() == "a\n1\n"


@settings(max_examples=50)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8))
def test_any_text_is_written_and_read_back(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    if texts:
        written(path, [UntypedEvent(a=t) for t in texts])
        assert [e["a"] for e in records(Csv(path))] == texts
