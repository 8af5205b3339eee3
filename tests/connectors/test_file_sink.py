"""A file sink notices whoever else touches its file, and says what can be done."""

import errno
import gzip
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secondpass import UntypedEvent
from secondpass.connectors import Csv, JsonLines
from secondpass.connectors.contract import Delivery, Sink
from secondpass.connectors.filesink import gzip_member, unwritable
from secondpass.connectors.memory import as_sink
from secondpass.errors import OutputError


def body(first: int, count: int) -> bytes:
    return b"".join(b'{"n":%d}\n' % n for n in range(first, first + count))


def opened(path: Path, state: dict[str, Any] | None = None, **how: Any) -> Sink:
    sink = as_sink(JsonLines(path))
    sink.open(state, **how)
    return sink


def run(path: Path, state: dict[str, Any] | None, first: int, count: int, **how: Any) -> dict[str, Any]:
    """One run of an app that delivers outputs, without a crash."""
    sink = opened(path, state, **how)
    try:
        sink.recovered()
        sink.deliver(Delivery(first, count, body(first, count)), None)
        return sink.sync()
    finally:
        sink.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_a_first_run_does_not_append_to_what_another_run_left(path: Path) -> None:
    run(path, None, 0, 3)
    with pytest.raises(OutputError, match=r"holds 24 bytes that this run did not write.*--accept-output"):
        run(path, None, 0, 3)
    assert path.read_bytes() == body(0, 3)
    run(path, None, 0, 3, accept=True)
    assert path.read_bytes() == body(0, 3) * 2


def test_an_empty_file_is_a_beginning(path: Path) -> None:
    path.touch()
    run(path, None, 0, 1)
    assert path.read_bytes() == body(0, 1)


def test_a_first_run_that_crashed_before_its_state_was_stored_is_recovered(path: Path) -> None:
    path.write_bytes(body(0, 3)[:-5])
    sink = opened(path)
    sink.deliver(Delivery(0, 3, body(0, 3)), None)
    sink.recovered()
    sink.close()
    assert path.read_bytes() == body(0, 3)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: p.unlink(), "is gone: the 24 bytes of 3 outputs were there"),
        (lambda p: os.truncate(p, 10), "it has 10 bytes, 24 are expected"),
        (lambda p: p.write_bytes(b"x" * 24), "are not those that were written"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "25 bytes where 24 are expected"),
    ],
)
def test_harm_between_two_runs_stops_the_app_until_it_is_accepted(
    path: Path, harm: Callable[[Path], object], message: str
) -> None:
    state = run(path, None, 0, 3)
    harm(path)
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(OutputError, match=rf"(?s){message}.*--accept-output"):
        run(path, state, 3, 1)
    assert (path.read_bytes() if path.exists() else b"") == before
    state = run(path, state, 3, 1, accept=True)
    mended = b"\n" if before and not before.endswith(b"\n") else b""
    assert path.read_bytes() == before + mended + body(3, 1)
    run(path, state, 4, 1)
    assert path.read_bytes() == before + mended + body(3, 2)


def test_accepting_a_file_that_is_in_order_changes_nothing(path: Path) -> None:
    state = run(path, None, 0, 3)
    path.write_bytes(body(0, 5)[:-3])
    sink = opened(path, state, accept=True)
    sink.deliver(Delivery(3, 2, body(3, 2)), None)
    sink.recovered()
    sink.close()
    assert path.read_bytes() == body(0, 5)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: p.unlink(), "was deleted or moved while the app ran"),
        (lambda p: p.rename(f"{p}.1"), "was deleted or moved while the app ran"),
        (lambda p: os.truncate(p, 0), "0 bytes where 24 are expected"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "25 bytes where 24 are expected"),
        (lambda p: (p.rename(f"{p}.1"), p.write_bytes(body(0, 3))), "was replaced by another file"),
    ],
)
def test_harm_while_the_app_runs_is_noticed_before_the_next_write(
    path: Path, harm: Callable[[Path], object], message: str
) -> None:
    sink = opened(path)
    sink.recovered()
    sink.deliver(Delivery(0, 3, body(0, 3)), None)
    harm(path)
    with pytest.raises(OutputError, match=message):
        sink.deliver(Delivery(3, 1, body(3, 1)), None)
    sink.close()


def test_another_path_is_refused_until_it_is_accepted(path: Path) -> None:
    state = run(path, None, 0, 3)
    other = path.with_name("other.jsonl")
    with pytest.raises(OutputError, match=rf"3 outputs went to {path}"):
        run(other, state, 3, 1)
    run(other, state, 3, 1, accept=True)
    assert other.read_bytes() == body(3, 1)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"cannot be written: Is a directory; give the path of a file in it$"
    ):
        opened(tmp_path)
    with pytest.raises(OutputError, match="create the directory"):
        opened(tmp_path / "none" / "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="no regular file"):
        opened(tmp_path / "pipe")


def test_a_state_of_another_sink_is_refused(path: Path) -> None:
    with pytest.raises(OutputError, match="another kind of sink"):
        opened(path, {"number": "x"})


def test_a_file_that_may_not_grow_gives_what_to_do_and_goes_on_in_the_middle_of_the_line(path: Path) -> None:
    script = """
        import resource, signal, sys
        from secondpass.connectors import JsonLines
        from secondpass.connectors.contract import Delivery
        from secondpass.errors import OutputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        sink = JsonLines(sys.argv[1]).sink()
        sink.open(None)
        sink.recovered()
        body = b'{"n":0}\\n{"n":1}\\n{"n":2}\\n'
        try:
            sink.deliver(Delivery(0, 3, body), None)
        except OutputError as error:
            assert "largest size allowed" in str(error), error
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sink.deliver(Delivery(0, 3, body), None)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), path], check=True)
    assert path.read_bytes() == body(0, 3)


def test_a_full_disk_gives_what_to_do_and_nothing_is_lost() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full on this system")
    with pytest.raises(OSError, match="No space left") as found, full.open("wb", buffering=0) as out:
        out.write(b"x")
    assert found.value.errno == errno.ENOSPC
    assert "free space and run again: nothing is lost" in str(unwritable("x", found.value))


def test_the_state_is_of_what_is_durable(path: Path) -> None:
    assert run(path, None, 0, 3)["size"] == 24
    sink = opened(path, run(path, None, 0, 1, accept=True))
    assert sink.sync()["number"] == 1
    sink.close()


# ---------------------------------------------------------------- compressed


def test_a_delivery_is_one_member_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    state = run(path, None, 0, 3)
    run(path, state, 3, 1)
    assert path.read_bytes() == gzip_member(body(0, 3)) + gzip_member(body(3, 1))
    assert gzip.decompress(path.read_bytes()) == body(0, 4)


def test_a_damaged_compressed_file_cannot_be_accepted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    state = run(path, None, 0, 3)
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(OutputError, match="nothing can follow it; move it away"):
        run(path, state, 3, 1, accept=True)
    path.unlink()
    run(path, state, 3, 1, accept=True)
    assert gzip.decompress(path.read_bytes()) == body(3, 1)


# ---------------------------------------------------------------- CSV


def deliver_rows(
    path: Path, state: dict[str, Any] | None, first: int, rows: list[Any], **how: Any
) -> dict[str, Any]:
    sink = as_sink(Csv(path))
    sink.open(state, **how)
    try:
        sink.recovered()
        sink.deliver(Delivery(first, len(rows), b""), rows)
        return sink.sync()
    finally:
        sink.close()


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_an_accepted_csv_file_keeps_its_own_header(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def text() -> str:
        data = path.read_bytes()
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode()

    given = b"b,a\n1,2"
    path.write_bytes(gzip.compress(given + b"\n") if name.endswith(".gz") else given)
    state = deliver_rows(path, None, 0, [UntypedEvent(a=3, b=4)], accept=True)
    assert text() == "b,a\n1,2\n4,3\n"
    path.unlink()
    deliver_rows(path, state, 1, [UntypedEvent(a=5, b=6)], accept=True)
    assert text() == "b,a\n6,5\n"


def test_a_csv_file_without_a_header_cannot_be_accepted(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\n\xff")
    with pytest.raises(OutputError, match="no header that rows could follow"):
        deliver_rows(path, None, 0, [UntypedEvent(a=1)], accept=True)
