"""A log that grows and is rotated is read to its end, file after file, and nothing twice."""

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass.connectors import Csv, JsonLines
from secondpass.connectors.contract import Reader
from secondpass.errors import InputError, SettingsError

PAD = b"x" * 40


class Log:
    """A writer that numbers its lines and rotates as logrotate does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self.clock_s = 1_700_000_000
        self.half = False

    def write(self, count: int = 1, *, unterminated: bool = False) -> None:
        with self.path.open("ab") as out:
            if self.half:
                out.write(b"\n")
            for _ in range(count):
                out.write(b'{"n":%d,"pad":"%s"}\n' % (self.number, PAD))
                self.number += 1
            if unterminated:
                out.write(b'{"n":%d}' % self.number)
                self.number += 1
        self.half = unterminated
        # The clock of a file system ticks slowly; a test writes fast.
        self.clock_s += 10
        os.utime(self.path, (self.clock_s, self.clock_s))

    def rotate(self, *, keep: int = 9, compress: bool = False, suffix: str = "") -> None:
        self.half = False
        if suffix:
            self.path.rename(f"{self.path}{suffix}")
            return
        for n in range(keep, 0, -1):
            for end in ("", ".gz"):
                old = Path(f"{self.path}.{n}{end}")
                if old.exists() and n == keep:
                    old.unlink()
                elif old.exists():
                    old.rename(f"{self.path}.{n + 1}{end}")
        self.path.rename(f"{self.path}.1")
        if compress:
            self.compress(Path(f"{self.path}.1"))

    @staticmethod
    def compress(plain: Path) -> None:
        packed = Path(f"{plain}.gz")
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        os.utime(packed, ns=(plain.stat().st_mtime_ns, plain.stat().st_mtime_ns))
        plain.unlink()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "x.log")


class Follower:
    """Reads what is there, and forgets everything but the offset when it is restarted."""

    def __init__(self, path: Path) -> None:
        self.source = JsonLines(path, follow=True)
        self.offset: dict[str, Any] | None = None
        self.reader: Reader = self.source.open(None)
        self.found: list[int] = []

    def read(self, limit: int = 1000) -> list[int]:
        new: list[int] = []
        while True:
            batch = self.reader.read(limit)
            assert batch is not None
            if not batch.count:
                break
            assert not batch.refused
            new += [e["n"] for e in batch.events]
            self.reader.verify()
            self.offset = batch.offset
        self.found += new
        return new

    def restart(self, **how: Any) -> None:
        self.reader.close()
        self.reader = self.source.open(self.offset, **how)


@pytest.fixture
def follow(log: Log) -> Iterator[Callable[[], Follower]]:
    made: list[Follower] = []

    def make() -> Follower:
        made.append(Follower(log.path))
        return made[-1]

    yield make
    for follower in made:
        follower.reader.close()


def test_a_followed_file_gives_what_is_there_and_then_empty_batches(
    log: Log, follow: Callable[[], Follower]
) -> None:
    log.write(3)
    reader = follow()
    assert reader.read() == [0, 1, 2]
    assert reader.read() == []
    log.write(2)
    assert reader.read() == [3, 4]


def test_an_unterminated_line_waits_for_its_end(log: Log, follow: Callable[[], Follower]) -> None:
    log.write(1, unterminated=True)
    reader = follow()
    assert reader.read() == [0]
    assert reader.read() == []
    log.write(0)
    assert reader.read() == [1]


def test_a_file_that_is_not_there_yet_is_waited_for(log: Log, follow: Callable[[], Follower]) -> None:
    reader = follow()
    assert reader.read() == []
    batch = reader.reader.read(1)
    assert batch is not None
    reader.offset = batch.offset
    reader.restart()
    log.write(2)
    assert reader.read() == [0, 1]
    reader.restart()
    log.write(1)
    assert reader.read() == [2]


def test_a_rotated_file_is_read_to_its_end_before_the_new_one(
    log: Log, follow: Callable[[], Follower]
) -> None:
    log.write(2)
    reader = follow()
    assert reader.read() == [0, 1]
    log.write(2, unterminated=True)
    log.rotate()
    assert reader.read() == [2, 3]  # nothing new yet: the line may still get its end
    log.path.touch()
    assert reader.read() == []  # nor has the writer moved on while the new file is empty
    log.write(2)
    assert reader.read() == [4, 5, 6]


def test_a_deleted_file_that_is_not_made_again_is_waited_for(
    log: Log, follow: Callable[[], Follower]
) -> None:
    log.write(2)
    reader = follow()
    reader.read(1)
    log.path.unlink()
    assert reader.read() == []
    log.write(2)
    assert reader.read() == [2, 3]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("rotations", [1, 2, 4])
def test_several_rotations_between_two_looks_lose_nothing(
    log: Log, follow: Callable[[], Follower], rotations: int, restart: bool, compress: bool
) -> None:
    log.write(5)
    reader = follow()
    batch = reader.reader.read(2)
    assert batch is not None
    reader.offset = batch.offset
    for _ in range(rotations):
        log.write(3)
        log.rotate(compress=compress)
        log.write(4, unterminated=True)
    if restart:
        reader.restart()
    reader.read()
    log.write(0)
    reader.read()
    assert reader.found == list(range(2, log.number))


@pytest.mark.parametrize("suffix", ["-20260131", ".2026-01-31_12", ".old"])
def test_dated_names_are_found(log: Log, follow: Callable[[], Follower], suffix: str) -> None:
    log.write(4)
    reader = follow()
    reader.reader.read(0)
    batch = reader.reader.read(2)
    assert batch is not None
    reader.offset = batch.offset
    log.rotate(suffix=suffix)
    log.write(2)
    reader.restart()
    assert reader.read() == [2, 3, 4, 5]


def test_files_beside_the_log_that_are_no_rotated_ones_are_left_alone(
    log: Log, follow: Callable[[], Follower]
) -> None:
    log.write(2)
    reader = follow()
    reader.read()
    log.rotate()
    for name in (".bak", ".idx", ".lock", ".1.tmp"):
        Path(f"{log.path}{name}").write_bytes(b"not a log\n")
    log.write(1)
    assert reader.read() == [2]


def test_a_file_that_is_compressed_while_it_is_read_is_not_read_again(
    log: Log, follow: Callable[[], Follower]
) -> None:
    log.write(3)
    reader = follow()
    reader.read()
    log.rotate(compress=True)
    reader.read()
    log.write(2)
    assert reader.read() == [3, 4]


def test_the_same_inode_given_to_another_file_is_not_mistaken_for_the_file(
    log: Log, follow: Callable[[], Follower]
) -> None:
    log.write(5)
    reader = follow()
    batch = reader.reader.read(2)
    assert batch is not None
    log.rotate(compress=True)
    log.write(2)
    stat = log.path.stat()
    reader.offset = {**batch.offset, "file": (stat.st_dev, stat.st_ino)}
    reader.restart()
    assert reader.read() == [2, 3, 4, 5, 6]


def test_a_rotated_file_that_is_gone_stops_the_reader(log: Log, follow: Callable[[], Follower]) -> None:
    log.write(5)
    reader = follow()
    batch = reader.reader.read(2)
    assert batch is not None
    reader.offset = batch.offset
    log.rotate()
    Path(f"{log.path}.1").unlink()
    log.write(3)
    with pytest.raises(InputError, match="lines after that byte would be skipped"):
        reader.restart()
    with pytest.raises(InputError, match="lines after that byte would be skipped"):
        reader.restart(accept=True)


def test_a_copied_log_is_found_by_its_content(log: Log, follow: Callable[[], Follower]) -> None:
    log.write(5)
    reader = follow()
    batch = reader.reader.read(2)
    assert batch is not None
    reader.offset = batch.offset
    copy = log.path.with_name("copy")
    copy.write_bytes(log.path.read_bytes())
    copy.rename(log.path)
    reader.restart()
    assert reader.read() == [2, 3, 4]


def test_a_log_that_an_editor_replaced_by_a_copy_is_not_read_twice(
    log: Log, follow: Callable[[], Follower]
) -> None:
    log.write(5)
    reader = follow()
    reader.read()
    copy = log.path.with_name("copy")
    copy.write_bytes(log.path.read_bytes())
    copy.rename(log.path)
    log.write(1)
    with pytest.raises(InputError, match="replaced by a copy"):
        reader.read()
    reader.restart()
    assert reader.read() == [5]


def test_truncating_in_place_stops_the_reader(log: Log, follow: Callable[[], Follower]) -> None:
    log.write(5)
    reader = follow()
    reader.read()
    os.truncate(log.path, 0)
    with pytest.raises(InputError, match="rotate by renaming"):
        reader.read()
    with pytest.raises(InputError, match="rotate by renaming"):
        reader.restart()


def test_lines_that_come_late_to_a_rotated_file_are_noticed(log: Log, follow: Callable[[], Follower]) -> None:
    log.write(1)
    reader = follow()
    reader.read()
    log.rotate()
    log.write(1)
    reader.read()
    with Path(f"{log.path}.1").open("ab") as out:
        out.write(b'{"n":99}\n')
    with pytest.raises(InputError, match="9 bytes were appended to the rotated file"):
        reader.reader.verify()


def test_a_compression_that_is_not_read_here_is_refused(log: Log, follow: Callable[[], Follower]) -> None:
    log.write(2)
    reader = follow()
    reader.read()
    log.rotate()
    log.write(2)
    log.rotate()
    plain = Path(f"{log.path}.1")
    seen = plain.stat().st_mtime_ns
    packed = plain.rename(f"{plain}.zst")
    os.utime(packed, ns=(seen, seen))
    log.write(1)
    with pytest.raises(InputError, match=r"x\.log\.1\.zst comes next"):
        reader.read()


def test_a_finite_run_goes_on_where_a_following_one_stopped(log: Log, follow: Callable[[], Follower]) -> None:
    log.write(5)
    reader = follow()
    batch = reader.reader.read(2)
    assert batch is not None
    again = JsonLines(log.path).open(batch.offset).read(10)
    assert again is not None
    assert [e["n"] for e in again.events] == [2, 3, 4]


def test_every_file_of_csv_has_its_own_header(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    reader = Csv(path, follow=True).open(None)
    found: list[Any] = []
    for rotated, text in [("1", "b,a\n3,4\n5,6\n"), ("2", "a,b\n7,8\n")]:
        while (batch := reader.read(1)) is not None and batch.count:
            found += batch.events
        path.rename(f"{path}.{rotated}")
        path.write_text(text)
    while (batch := reader.read(1)) is not None and batch.count:
        found += batch.events
    assert found == [{"a": "1", "b": "2"}, {"b": "3", "a": "4"}, {"b": "5", "a": "6"}, {"a": "7", "b": "8"}]


def test_a_header_without_an_end_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b")
    reader = Csv(path, follow=True).open(None)
    batch = reader.read(1)
    assert batch is not None
    assert not batch.count
    path.write_text('a,b\n"1\n')
    batch = reader.read(1)
    assert batch is not None
    assert not batch.count
    path.write_text('a,b\n"1\n",2\n')
    batch = reader.read(1)
    assert batch is not None
    assert batch.events == [{"a": "1\n", "b": "2"}]


def test_a_compressed_file_cannot_be_followed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be followed"):
        JsonLines(tmp_path / "x.gz").open(None, follow=True)


steps = st.lists(
    st.sampled_from(["write", "write", "half", "rotate", "compress", "read", "read one", "restart"]),
    max_size=25,
)


@settings(max_examples=100)
@given(steps=steps)
def test_no_order_of_writing_rotating_reading_and_restarting_loses_or_repeats_a_line(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = Log(tmp_path_factory.mktemp("log") / "x.log")
    log.write(1)
    reader = Follower(log.path)
    for step in steps:
        if step == "write":
            log.write(2)
        elif step == "half":
            log.write(1, unterminated=True)
        elif step in ("rotate", "compress") and log.path.exists():
            log.rotate(keep=len(steps), compress=step == "compress")  # none goes before it is read
            log.write(1)
        elif step == "read":
            reader.read(3)
        elif step == "read one":
            batch = reader.reader.read(1)
            assert batch is not None
            reader.offset = batch.offset
            reader.found += [e["n"] for e in batch.events]
        elif step == "restart" and reader.offset is not None:
            reader.restart()
    log.write(0)
    reader.read()
    reader.reader.close()
    assert reader.found == list(range(log.number))


def test_a_log_that_may_not_be_read_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        JsonLines(tmp_path / "file" / "x.log", follow=True).open(None)
    with pytest.raises(InputError, match="is a directory"):
        JsonLines(tmp_path, follow=True).open(None)


def test_a_row_of_many_lines_that_grows_slowly_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('a,b\n1,"')
    reader = Csv(path, follow=True).open(None)
    for _ in range(300):
        with path.open("a") as out:
            out.write("x" * 99 + "\n")
        batch = reader.read(1)
        assert batch is not None
        assert not batch.count
    with path.open("a") as out:
        out.write('"\n2,3\n')
    found = [b.events for b in (reader.read(1), reader.read(1)) if b is not None]
    assert found == [[{"a": "1", "b": ("x" * 99 + "\n") * 300}], [{"a": "2", "b": "3"}]]
