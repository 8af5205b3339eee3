"""Fuzz the reader of JSON lines: `python tests/fuzz/fuzz_jsonlines.py` for SECONDPASS_FUZZ_SECONDS (10).

Whatever the bytes, the reader gives events and refusals or raises `InputError`, and gives the same as
decoding line by line, whatever the limits of reading, and the rest from any of its offsets.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["secondpass.connectors"]):
    from secondpass import Event
    from secondpass.connectors import JsonLines
    from secondpass.connectors.json_records import JsonRecords
    from secondpass.connectors.lines import BOM, RAW_KEPT
    from secondpass.connectors.maker import Maker, reason_of
    from secondpass.errors import InputError
    from secondpass.record import Refused

SEEDS = [
    b'{"a":1,"time":2.5}\n{"a":2,"time":3}\n',
    b'{"a":1} {"a":2}\n{"a":\n3}\n\n',
    b'{"type":"Big","size":1}\r\n{"type":"Small","grams":2}\r\n',
    b'{"a":18446744073709551616}\n{"b":"}\n{"}\n[[1]]\n{"a":[{"b":null}]}',
    BOM + b'{"a":"\xff"}\n{"a":"\xc3\xbc","b":"\\ud800"}\n',
]


class Seen(Event):
    a: int
    time: float = 0.0


class Big(Event, tag=True):
    size: int


class Small(Event, tag=True):
    grams: float


TYPES: list[Any] = [None, Seen, Big | Small]


def line_by_line(data: bytes, declared: Any, name: str) -> list[Any]:
    """What reading means."""
    parser = JsonRecords(Maker(declared, "s", name), name)
    found: list[Any] = []
    at = len(BOM) if data.startswith(BOM) else 0
    for line in data[at:].split(b"\n"):
        if line.strip():
            try:
                found.append(parser.decode(line))
            except Exception as error:  # noqa: BLE001 - every one is a refusal
                found.append(Refused(reason_of(error), line[:RAW_KEPT], at, name))
        at += len(line) + 1
    return found


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


def check(data: bytes) -> None:
    """One input: its first bytes choose type and limits, the rest is the file."""
    if len(data) < 2:
        return
    declared, limit, data = TYPES[data[0] % len(TYPES)], 1 + data[1] % 7, data[2:]
    PATH.write_bytes(data)
    source = JsonLines(PATH, declared)
    expected = line_by_line(data, declared, source.name)
    found, offsets = read(source, limit)
    assert same(found, expected), (found, expected)
    assert same(read(source, 1000)[0], expected)
    count, offset = offsets[len(data) % len(offsets)] if offsets else (0, None)
    assert same(read(source, 3, offset)[0], expected[count:])
    # A line too long is refused, and nothing else changes.
    short = JsonLines(PATH, declared, max_line_bytes=20)
    try:
        cut = read(short, limit)[0]
    except InputError:
        raise AssertionError("a long line is no reason to stop") from None
    assert len(cut) >= len([r for r in expected if not isinstance(r, Refused)]) - data.count(b"\n") - 1


def same(found: list[Any], expected: list[Any]) -> bool:
    return found == expected and [type(f) for f in found] == [type(e) for e in expected]


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
    PATH = Path(tempfile.mkdtemp(prefix="fuzz_jsonlines_")) / "x.jsonl"
    main()
