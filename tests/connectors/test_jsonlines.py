"""Lines of JSON: what is an event, what is refused, and that the fast way never differs from line by line."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass import Event, UntypedEvent
from secondpass.connectors import JsonLines, lines
from secondpass.connectors.json_records import PIECE, JsonRecords
from secondpass.connectors.maker import Maker, reason_of
from secondpass.errors import DefinitionError, InputError, SettingsError
from secondpass.record import Refused


class Seen(Event):
    a: int


class Timed(Event):
    time: float
    a: int = 0


class Big(Event, tag=True):
    size: int


class Small(Event, tag=True):
    grams: float


def records(source: JsonLines, limit: int = 1000) -> list[Any]:
    """All records, refused ones as their reasons."""
    reader = source.open(None)
    found: list[Any] = []
    while (batch := reader.read(limit)) is not None:
        by_index = dict(zip(batch.origin, batch.events, strict=True))
        found += [by_index[i] if i in by_index else batch.refused[i] for i in range(batch.count)]
    reader.close()
    return found


def file(tmp_path: Path, data: bytes, name: str = "x.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def shape(found: list[Any]) -> list[Any]:
    return ["refused" if isinstance(r, Refused) else r for r in found]


# ---------------------------------------------------------------- one line, one event


@pytest.mark.parametrize("limit", [1, 2, 1000])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n \n\t\n\r\n", []),
        (b'{"a":1}', [1]),
        (b'{"a":1}\n', [1]),
        (b'{"a":1}\r\n{"a":2}\r\n', [1, 2]),
        (b'{"a":1}\r\n{"a":2}', [1, 2]),
        (b'{"a":1}\n\n  \n{"a":2}\n', [1, 2]),
        (b' {"a":1} \n\t{"a":2}\t\n', [1, 2]),
        (b'{"a":1} {"a":2}\n', ["refused"]),
        (b'{"a":1}{"a":2}\n{"a":3}\n', ["refused", 3]),
        (b'{"a":\n1}\n', ["refused", "refused"]),
        (b'{"a":1} {"a":2}\n{"a":\n3}\n', ["refused", "refused", "refused"]),
        (b'{"a":1} {"a":2}\n\n', ["refused"]),
        (b'\n{"a":1} {"a":2}\n', ["refused"]),
        (b'{"a":1,"b":{}\n}\n{"a":2}{"a":3}\n', ["refused", "refused", "refused"]),
        (b'{"a":1,"b":"}\n{"}{"a":2}\n', ["refused", "refused"]),
        (b'{"a":1}\r{"a":2}\n', ["refused"]),
        (b'{"a":1,"b":"}",\n"{":2}\n{"a":3} ""\n', ["refused"] * 3),
        (b'{"a":1}\n"', [1, "refused"]),
        (b'"{}"\n{"a":2}\n', ["refused", 2]),
        (b'{"a":1}\n\x00\n{"a":2}\n', [1, "refused", 2]),
        (b'{"a":1,"b":"\x00"}\n', ["refused"]),
        (b'{"a":1,"b":"\xff"}\n{"a":2}\n', ["refused", 2]),
        (b'{"a":"1"}\n{"b":1}\n{"a":null}\n[1]\n5\nnull\n"x"\n{"a":1', ["refused"] * 8),
        (b'{"a":1e999}\n{"a":1.5}\n{"a":NaN}\n', ["refused"] * 3),
        (b"\xef\xbb\xbf" + b'{"a":1}\n{"a":2}\n', [1, 2]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n", []),
        (b'{"a":1}\n\xef\xbb\xbf{"a":2}\n', [1, "refused"]),
    ],
)
def test_one_line_is_one_event_or_refused(
    tmp_path: Path, data: bytes, expected: list[Any], limit: int
) -> None:
    found = shape(records(JsonLines(file(tmp_path, data), Seen), limit))
    assert [r.a if isinstance(r, Seen) else r for r in found] == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"5", "an event is a JSON object, this is a number"),
        (b"1.5", "this is a number"),
        (b"[1]", "this is an array"),
        (b'"x"', "this is a string"),
        (b"null", "this is null"),
        (b"true", "this is true or false"),
        (b'{"a":', "truncated"),
        (b"\xff", "not UTF-8: byte 0xff"),
        (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "nested too deeply"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":18446744073709551616}', "does not fit into 64 bits"),
        (b'{"a":[{"b":-9223372036854775809}]}', "does not fit into 64 bits"),
    ],
)
def test_an_untyped_line_that_is_no_object_is_refused_with_the_reason(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = b'{"a": 1}\n'
    found = records(JsonLines(file(tmp_path, good + line + b"\n" + good)))
    assert found[0] == found[2] == {"a": 1}
    assert reason in found[1].reason


def test_a_refused_line_keeps_its_first_64_kib_and_its_place(tmp_path: Path) -> None:
    long = b'{"a": "' + b"x" * 100_000 + b'"}'
    path = file(tmp_path, b'\xef\xbb\xbf{"a":1}\n\n' + long + b"\n" + b'{"a":2}\n')
    refused = records(JsonLines(path, Seen, name="camera"))[1]
    assert refused == Refused(refused.reason, long[:65536], 12, "camera")


def test_untyped_events_are_read_only_all_the_way_down(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"a":1}\n{"a":[1,{"b":[2]}]}\n')
    flat, nested = records(JsonLines(path))
    assert type(flat) is type(nested) is UntypedEvent
    assert nested == {"a": (1, {"b": (2,)})}
    with pytest.raises(TypeError, match="read-only"):
        nested["a"][1]["b"] = 3
    with pytest.raises(TypeError, match="read-only"):
        flat["a"] = 2


def test_one_line_is_one_event_without_a_type_too(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"a":1,"x":"}",\n"{":2}\n{"c":3} ""\n')
    assert shape(records(JsonLines(path))) == ["refused"] * 3
    path = file(tmp_path, b'{"a":1}\n"{}"\n""\n[]\n')
    assert shape(records(JsonLines(path))) == [{"a": 1}, "refused", "refused", "refused"]


def test_an_event_that_is_an_array_is_one_line_too(tmp_path: Path) -> None:
    class Listed(Event, array_like=True):
        a: int
        by: Mapping[str, int]

    path = file(tmp_path, b'[1,{}]\n[2,{"}":1\n}]\n[3,{}] [4,{}]\n[5,{}]')
    assert shape(records(JsonLines(path, Listed))) == [
        Listed(a=1, by={}),
        *["refused"] * 3,
        Listed(a=5, by={}),
    ]


def test_a_union_of_tagged_types_makes_a_stream_of_several_kinds(tmp_path: Path) -> None:
    path = file(
        tmp_path, b'{"type":"Big","size":1}\n{"type":"Small","grams":2}\n{"type":"Other"}\n{"size":1}\n'
    )
    assert shape(records(JsonLines(path, Big | Small))) == [
        Big(size=1),
        Small(grams=2.0),
        "refused",
        "refused",
    ]


def test_a_check_of_the_event_type_refuses_its_line(tmp_path: Path) -> None:
    class Checked(Event):
        a: int

        def __post_init__(self) -> None:
            if self.a == 2:
                raise KeyError("two is not welcome")

    found = records(JsonLines(file(tmp_path, b'{"a":1}\n{"a":2}\n{"a":3}\n'), Checked))
    assert shape(found) == [Checked(a=1), "refused", Checked(a=3)]
    assert "two is not welcome" in found[1].reason


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63)])
def test_integers_of_64_bits_are_taken(tmp_path: Path, number: int) -> None:
    path = file(tmp_path, b'{"a":%d}\n' % number)
    assert records(JsonLines(path, Seen)) == [Seen(a=number)]
    assert records(JsonLines(path)) == [{"a": number}]


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**40])
def test_integers_beyond_64_bits_are_refused_on_their_line_alone(tmp_path: Path, number: int) -> None:
    path = file(tmp_path, b'{"a":1}\n{"a":%d}\n{"a":3}\n' % number)
    assert shape(records(JsonLines(path, Seen))) == [Seen(a=1), "refused", Seen(a=3)]
    assert shape(records(JsonLines(path))) == [{"a": 1}, "refused", {"a": 3}]


def test_long_digits_in_text_and_floats_are_no_integers(tmp_path: Path) -> None:
    class Loose(Event):
        f: float
        s: str
        a: int = 0

    path = file(tmp_path, b'{"f":123456789012345678901234567890,"s":"1234567890123456789012"}\n')
    assert records(JsonLines(path, Loose)) == [Loose(f=1.2345678901234568e29, s="1234567890123456789012")]


def test_a_key_of_a_mapping_is_an_integer_of_64_bits_too(tmp_path: Path) -> None:
    class Counts(Event):
        by: Mapping[int, int]

    escaped = "".join(f"\\u00{ord(c):x}" for c in str(10**25)).encode()
    path = file(tmp_path, b'{"by":{"7":1}}\n{"by":{"%s":1}}\n' % escaped)
    assert shape(records(JsonLines(path, Counts))) == [Counts(by={7: 1}), "refused"]


# ---------------------------------------------------------------- fast equals slow


def line_by_line(data: bytes, declared: Any) -> list[Any]:
    """What reading means: no buffer, no pieces."""
    parser = JsonRecords(Maker(declared, "s", "x"), "x")
    found: list[Any] = []
    at = 0
    for line in data.split(b"\n"):
        if line.strip():
            try:
                found.append(parser.decode(line))
            except Exception as error:  # noqa: BLE001
                found.append(Refused(reason_of(error), line[: lines.RAW_KEPT], at, "x"))
        at += len(line) + 1
    return found


awkward = st.sampled_from(
    [
        b'{"a":1}',
        b'{"a":1}\n',
        b"{",
        b"}",
        b"\n",
        b"\r\n",
        b"}\n{",
        b"}\r\n{",
        b'"',
        b"\\",
        b'{"a":',
        b"1",
        b" ",
        b"[",
        b"]",
        b",",
        b'"a"',
        b":",
        b"9" * 25,
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b'{"a":2,"b":"\xc3\xbc"}\n',
        b'{"a":3,"b":[{}]}\n',
        b'{"a":-5,"b":"}\\n{"}\n',
    ]
)
pieces = st.lists(awkward | st.binary(max_size=6), max_size=60).map(b"".join)


@pytest.mark.parametrize("declared", [Seen, None, Big | Small])
@given(data=pieces, limit=st.integers(1, 20))
def test_no_way_of_reading_differs_from_line_by_line(declared: Any, data: bytes, limit: int) -> None:
    if data.startswith(lines.BOM):
        data = b" " + data
    parser = JsonRecords(Maker(declared, "s", "x"), "x")
    found: list[Any] = []
    at = 0
    while at < len(data):
        parsed = parser.parse(data[at:], at, limit, final=True)
        assert parsed.used > 0
        assert parsed.count <= limit
        origin = range(parsed.count) if parsed.origin is None else parsed.origin
        by_index = dict(zip(origin, parsed.events, strict=True))
        found += [by_index[i] if i in by_index else (parsed.refused or {})[i] for i in range(parsed.count)]
        at += parsed.used
    assert found == line_by_line(data, declared)
    assert [type(f) for f in found] == [type(f) for f in line_by_line(data, declared)]


def test_one_bad_line_does_not_change_the_others_in_a_large_buffer(tmp_path: Path) -> None:
    good = [b'{"a":%d}\n' % i for i in range(10_000)]
    for bad in (0, 4_999, 9_999):
        data = b"".join([*good[:bad], b"oops\n", *good[bad:]])
        assert len(data) > 3 * PIECE
        assert records(JsonLines(file(tmp_path, data), Seen), 100_000) == line_by_line(data, Seen)[:bad] + [
            Refused(
                "JSON is malformed: invalid character (byte 0)",
                b"oops",
                len(b"".join(good[:bad])),
                str(tmp_path / "x.jsonl"),
            )
        ] + [Seen(a=i) for i in range(bad, 10_000)]


# ---------------------------------------------------------------- long lines


@pytest.mark.parametrize("limit", [1, 1000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_beyond_max_line_bytes_is_refused_in_its_place(tmp_path: Path, limit: int, end: bytes) -> None:
    long = b'{"a":"' + b"x" * 5000 + b'"}'
    path = file(tmp_path, b'{"a":1}\n' + long + b"\n" + b'{"a":2}\n' + long + end)
    found = records(JsonLines(path, Seen, max_line_bytes=4000), limit)
    assert shape(found) == [Seen(a=1), "refused", Seen(a=2), "refused"]
    assert found[1].raw == long[:1024]
    assert found[1].offset == 8
    assert found[1].reason == f"the line has {len(long)} bytes, more than max_line_bytes=4000"


@pytest.mark.parametrize("length", [99, 100, 101])
def test_the_limit_of_a_line_is_exact(tmp_path: Path, length: int) -> None:
    line = b'{"a":1' + b" " * (length - 7) + b"}"
    path = file(tmp_path, line + b"\n" + line)
    expected = [Seen(a=1)] * 2 if length <= 100 else ["refused"] * 2
    assert shape(records(JsonLines(path, Seen, max_line_bytes=100))) == expected


@pytest.mark.slow
def test_a_line_of_a_gigabyte_takes_tens_of_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as out:
        for _ in range(1024):
            out.write(b"x" * (1 << 20))
        out.write(b'\n{"a":1}\n')
    script = """
import resource, sys
from secondpass.connectors import JsonLines
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reader = JsonLines(sys.argv[1]).open(None)
count = 0
while (batch := reader.read(1000)) is not None:
    count += batch.count
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    path.unlink()
    count, megabytes = map(int, done.stdout.split())
    assert count == 2
    assert megabytes < 80


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(("unit", "per_second"), [("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_time_unit_converts_the_time_to_seconds(tmp_path: Path, unit: Any, per_second: float) -> None:
    path = file(tmp_path, b'{"time":1632192265170,"a":1}\n{"time":1632192265170.5,"a":2}\n{"a":3}\n')
    typed = records(JsonLines(path, Timed, time_unit=unit))
    assert shape(typed) == [
        Timed(time=1632192265170 / per_second, a=1),
        Timed(time=1632192265170.5 / per_second, a=2),
        "refused",
    ]
    assert records(JsonLines(path, time_unit=unit)) == [
        {"time": 1632192265170 / per_second, "a": 1},
        {"time": 1632192265170.5 / per_second, "a": 2},
        {"a": 3},
    ]


def test_time_unit_goes_by_the_name_in_the_event_not_in_the_file(tmp_path: Path) -> None:
    class Alarm(Event, rename={"time": "start"}):
        time: float | None = None

    path = file(tmp_path, b'{"start":1500}\n{}\n')
    assert records(JsonLines(path, Alarm, time_unit="ms")) == [Alarm(time=1.5), Alarm()]


def test_options_that_do_not_fit_are_refused_at_construction() -> None:
    import datetime

    class Dated(Event):
        time: datetime.datetime

    with pytest.raises(SettingsError, match=r"Dated\.time is datetime, and only float seconds"):
        JsonLines("x", Dated, time_unit="ms")
    with pytest.raises(SettingsError, match="Seen has no field `time`"):
        JsonLines("x", Seen, time_unit="ms")
    with pytest.raises(SettingsError, match="choose one of 's', 'ms'"):
        JsonLines("x", time_unit="minutes")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="cannot be followed"):
        JsonLines("x.gz", follow=True)
    with pytest.raises(SettingsError, match="max_line_bytes"):
        JsonLines("x", max_line_bytes=0)
    with pytest.raises(SettingsError, match="path is empty"):
        JsonLines("")
    with pytest.raises(DefinitionError, match="no event type"):
        JsonLines("x", int)
    with pytest.raises(DefinitionError, match="subclass it"):
        JsonLines("x", Event)
    with pytest.raises(DefinitionError, match="JsonLines"):
        JsonLines("x", Seen | Timed)  # no tags


@pytest.fixture
def warnings_of_input(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "secondpass.input"):
        yield lambda: caplog.messages


def test_unknown_fields_are_warned_of_once(
    tmp_path: Path, warnings_of_input: Callable[[], list[str]]
) -> None:
    path = file(tmp_path, b'{"a":1}\n' + b'{"a":1,"b":2,"c":3}\n' * 50)
    assert len(records(JsonLines(path, Seen), 7)) == 51
    assert warnings_of_input() == [
        f"{path}: the input has fields that Seen does not declare, and they are ignored: b, c"
    ]


def test_unknown_fields_are_found_line_by_line_too(
    tmp_path: Path, warnings_of_input: Callable[[], list[str]]
) -> None:
    path = file(tmp_path, b'oops\n{"a":1,"b":2}\n')
    records(JsonLines(path, Seen))
    assert len(warnings_of_input()) == 1


def test_only_the_first_thousand_records_are_looked_at(
    tmp_path: Path, warnings_of_input: Callable[[], list[str]]
) -> None:
    path = file(tmp_path, b'{"a":1}\n' * 1000 + b'{"a":1,"b":2}\n')
    records(JsonLines(path, Seen), 600)
    assert warnings_of_input() == []


def test_tags_and_renamed_fields_are_known(
    tmp_path: Path, warnings_of_input: Callable[[], list[str]]
) -> None:
    class Renamed(Event, rename={"a": "alpha"}, tag_field="kind", tag="r"):
        a: int

    path = file(tmp_path, b'{"alpha":1,"kind":"r"}\n')
    assert records(JsonLines(path, Renamed)) == [Renamed(a=1)]
    assert warnings_of_input() == []


# ---------------------------------------------------------------- files that cannot be read


def test_a_missing_file_a_directory_and_a_pipe_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file.*follow=True"):
        JsonLines(tmp_path / "none.jsonl").open(None)
    with pytest.raises(InputError, match="is a directory"):
        JsonLines(tmp_path).open(None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"no regular file.*'-'"):
        JsonLines(tmp_path / "pipe").open(None)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_without_permission_is_refused_with_what_to_do(tmp_path: Path, nobody: None) -> None:
    path = tmp_path / "x.jsonl"
    if os.getuid() != 0:
        file(tmp_path, b"").chmod(0)
    with pytest.raises(InputError, match="give this user the right"):
        JsonLines(path).open(None)


def test_a_relative_path_is_resolved_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = JsonLines("x.jsonl")
    file(tmp_path, b'{"a":1}\n')
    monkeypatch.chdir(tmp_path)
    reader = source.open(None)
    monkeypatch.chdir("/")
    batch = reader.read(10)
    reader.verify()
    assert batch is not None
    assert batch.events == [{"a": 1}]
    assert batch.offset["path"] == source.name == "x.jsonl"


@settings(max_examples=30)
@given(
    values=st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**64 - 1)
            | st.text(max_size=5)
            | st.floats(allow_nan=False, allow_infinity=False),
            max_size=4,
        ),
        max_size=30,
    )
)
def test_what_json_can_say_is_read_as_it_was_written(values: list[dict[str, Any]]) -> None:
    parser = JsonRecords(Maker(None, "s", "x"), "x")
    data = "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values).encode()
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    parsed = parser.parse(data, 0, 1000, final=True) if data else None
    assert (parsed.events if parsed else []) == values
    assert not parsed or msgspec.msgpack.decode(msgspec.msgpack.encode(parsed.events)) == values
