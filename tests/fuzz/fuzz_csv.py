"""Fuzz the reader of CSV: `python tests/fuzz/fuzz_csv.py` for SECONDPASS_FUZZ_SECONDS (10).

Whatever the bytes, the reader gives events and refusals or raises `InputError` for the header, gives the
same row by row as in bulk, whatever the limits of reading, and the rest from any of its offsets.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["secondpass.connectors"]):
    from secondpass import Event
    from secondpass.connectors import Csv
    from secondpass.connectors.csv_records import CsvRecords
    from secondpass.errors import InputError

SEEDS = [
    b"a,time\n1,2.5\n2,3\n",
    b'a,time\r\n1,"2"\r\n"x\n""y""",3\r\n',
    b'a,time\n"1,2\n3,4\n\n ,\n',
    b"\xef\xbb\xbfa,time\n99999999999999999999,1\n\xff,1\n1\n1,2,3\n",
    b'"a","time"\n"a\rb",1\na"b,1\n"a"b,1\n\x00,1',
]


class Seen(Event):
    a: int | None
    time: float = 0.0


TYPES: list[Any] = [None, Seen]


def read(source: Any, limit: int, offset: Any = None) -> tuple[list[Any], list[tuple[int, Any]]]:
    """All records, and after how many of them which offset was given."""
    reader = source.open(offset)
    found: list[Any] = []
    offsets: list[tuple[int, Any]] = []
    try:
        while (batch := reader.read(limit)) is not None:
            by_index = dict(zip(batch.origin, batch.events, strict=True))
            found += [by_index[i] if i in by_index else batch.refused[i] for i in range(batch.count)]
            offsets.append((len(found), batch.offset))
            reader.verify()
    finally:
        reader.close()
    return found, offsets


def row_by_row(source: Any) -> list[Any]:
    """Without the ways that take many rows at once."""
    whole, events = CsvRecords._whole, CsvRecords._events
    CsvRecords._whole = CsvRecords._events = lambda *_: None  # type: ignore[assignment]
    try:
        return read(source, 1000)[0]
    finally:
        CsvRecords._whole, CsvRecords._events = whole, events


def check(data: bytes) -> None:
    """One input: its first bytes choose type and limits, the rest is the file."""
    if len(data) < 2:
        return
    declared, limit, data = TYPES[data[0] % len(TYPES)], 1 + data[1] % 7, data[2:]
    PATH.write_bytes(data)
    source = Csv(PATH, declared)
    try:
        expected = row_by_row(source)
    except InputError:
        try:
            read(source, limit)
        except InputError:
            return
        raise AssertionError("a header is refused row by row only") from None
    found, offsets = read(source, limit)
    assert repr(found) == repr(expected), (found, expected)  # repr: NaN equals nothing
    count, offset = offsets[len(data) % len(offsets)] if offsets else (0, None)
    assert repr(read(source, 3, offset)[0]) == repr(expected[count:])
    try:
        narrow = [read(Csv(PATH, declared, max_line_bytes=20), n)[0] for n in (limit, 1000)]
    except InputError:
        return  # the header is too long
    assert repr(narrow[0]) == repr(narrow[1]), narrow


def main() -> None:
    """Run for the time that the environment gives."""
    folder = PATH.parent / "corpus"
    folder.mkdir()
    for n, seed in enumerate(SEEDS):
        for choice in range(len(TYPES)):
            (folder / f"{n}-{choice}").write_bytes(bytes([choice, 2]) + seed)
    seconds = int(os.environ.get("SECONDPASS_FUZZ_SECONDS", "10"))
    seed = os.environ.get("SECONDPASS_SEED")
    options = [
        f"-max_total_time={seconds}",
        "-max_len=400",
        "-verbosity=0",
        f"-artifact_prefix={PATH.parent}/",
    ]
    if seed:
        options.append(f"-seed={seed}")
    sys.stderr.write(f"fuzzing for {seconds} seconds; what fails is kept in {PATH.parent}\n")
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(folder)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    PATH = Path(tempfile.mkdtemp(prefix="fuzz_csv_")) / "x.csv"
    main()
