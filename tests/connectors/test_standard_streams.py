"""Standard input is read as it comes and once; standard output is written in whole deliveries."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from secondpass import Event
from secondpass.connectors import Csv, JsonLines
from secondpass.connectors.contract import Delivery
from secondpass.connectors.memory import as_sink
from secondpass.errors import InputError


@pytest.fixture
def pipe() -> Iterator[int]:
    """The writing end of a pipe that is standard input."""
    kept = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    ends = [writing]
    yield writing
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass  # the test closed it
    os.dup2(kept, 0)
    os.close(kept)


def test_reading_does_not_wait_for_the_other_end(pipe: int) -> None:
    reader = JsonLines("-").open(None)
    steps: list[tuple[bytes, list[int]]] = [
        (b"", []),
        (b'{"n":1}\n{"n"', [1]),
        (b":2}", []),
        (b"\n", [2]),
        (b'{"n":3}', []),
    ]
    for data, expected in steps:
        os.write(pipe, data)
        batch = reader.read(10)
        assert batch is not None
        assert [e["n"] for e in batch.events] == expected
    os.close(pipe)
    batch = reader.read(10)
    assert batch is not None
    assert [e["n"] for e in batch.events] == [3]
    assert reader.read(10) is None
    reader.verify()
    assert reader.progress() is None


def test_standard_input_is_not_read_again(pipe: int) -> None:
    os.write(pipe, b'{"n":1}\n')
    batch = JsonLines("-").open(None).read(10)
    assert batch is not None
    with pytest.raises(InputError, match=r"standard input cannot be read again: 1 records.*--fresh"):
        JsonLines("-").open(batch.offset)


def test_csv_is_read_from_standard_input_too(pipe: int) -> None:
    os.write(pipe, b"a,b\n1,2\n")
    batch = Csv("-").open(None).read(10)
    assert batch is not None
    assert batch.events == [{"a": "1", "b": "2"}]


class Kept(Event):
    n: int


def test_outputs_go_to_standard_output_after_what_was_printed(capfd: pytest.CaptureFixture[str]) -> None:
    sink = as_sink(JsonLines("-"))
    assert sink.at_least_once
    sink.open({"number": 4})
    sink.recovered()
    sys.stdout.write("printed\n")
    sink.deliver(Delivery(3, 2, b'{"n":3}\n{"n":4}\n'), None)
    assert sink.sync() == {"number": 5}
    sink.close()
    assert capfd.readouterr().out == 'printed\n{"n":4}\n'


def test_csv_on_standard_output_begins_with_its_header(capfd: pytest.CaptureFixture[str]) -> None:
    sink = as_sink(Csv("-", delimiter=";"))
    sink.open(None)
    sink.deliver(Delivery(0, 1, b""), [Kept(n=1)])
    sink.deliver(Delivery(1, 1, b""), [Kept(n=2)])
    assert capfd.readouterr().out == "n\n1\n2\n"


def test_a_reader_that_goes_away_is_an_output_error() -> None:
    script = """
        from secondpass.connectors import JsonLines
        from secondpass.connectors.contract import Delivery
        from secondpass.errors import OutputError
        sink = JsonLines("-").sink()
        sink.open(None)
        try:
            for n in range(100_000):
                sink.deliver(Delivery(n, 1, b"x" * 1000), None)
        except OutputError as error:
            assert "closed by its reader" in str(error), error
            raise SystemExit(7)
    """
    running = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.read(10)
    running.stdout.close()
    assert running.wait() == 7
