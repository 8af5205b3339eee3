"""The pushed log: what append acknowledges is kept, once and in order, whoever appends and whatever dies."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from log_kit import appender, compare, frames_of, told

from secondpass.errors import SettingsError, StoreDamaged, StoreError, StoreFull, StoreLocked
from secondpass.store import log as store_log
from secondpass.store.ends import FILE as ENDS
from secondpass.store.log import StoredLog
from secondpass.store.logreader import LeftTheLog, LogReader
from secondpass.store.segments import heads, read_header, scan, segment_path, segments


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Callable[[], StoredLog]]:
    """Opens the log of the test's store; all are closed in the end."""
    found: list[StoredLog] = []

    def open_() -> StoredLog:
        found.append(StoredLog(tmp_path))
        return found[-1]

    yield open_
    for log in found:
        log.close()


def bodies(store: Path) -> list[bytes]:
    return [body for _, body in frames_of(store)]


def last_segment(store: Path) -> Path:
    directory = store / store_log.DIRECTORY
    return segment_path(directory, segments(directory)[-1])


def as_after_a_power_loss(store: Path) -> None:
    """Nobody remembers where the log ended."""
    (store / store_log.DIRECTORY / ENDS).unlink()


# ---------------------------------------------------------------- appending


def test_records_are_numbered_without_gaps_whoever_appends(
    logs: Callable[[], StoredLog], tmp_path: Path
) -> None:
    one, other = logs(), logs()
    found = [log.append(b"x" * n, n) for n, log in ((3, one), (1, other), (2, one), (5, other))]
    assert found == [range(3), range(3, 4), range(4, 6), range(6, 11)]
    assert [body for _, body in frames_of(tmp_path)] == [b"xxx", b"x", b"xx", b"xxxxx"]


def test_append_returns_only_after_a_sync_that_began_after_the_write(
    logs: Callable[[], StoredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs()
    synced: list[int] = []
    real = store_log.datasync

    def noting(fd: int) -> None:
        real(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(store_log, "datasync", noting)
    for n in range(5):
        log.append(b"x" * 10, 1)
        assert synced[-1] == log.ends.offset
        assert len(synced) == n + 1
        assert log.ends.durable == n + 1


def test_threads_share_their_syncs(logs: Callable[[], StoredLog], monkeypatch: pytest.MonkeyPatch) -> None:
    log = logs()
    log.append(b"", 0)
    syncs: list[int] = []
    real = store_log.datasync
    monkeypatch.setattr(store_log, "datasync", lambda fd: (real(fd), syncs.append(fd)))
    threads = [
        threading.Thread(target=lambda: [log.append(b"x" * 50, 1) for _ in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.ends.durable == log.ends.next == 800
    assert len(syncs) < 700


def test_a_resend_is_given_the_numbers_it_has_and_appends_nothing(
    logs: Callable[[], StoredLog], tmp_path: Path
) -> None:
    log = logs()
    first = log.append(b"aa", 2, "p", 7)
    second = log.append(b"bbb", 3, "p", 9)
    other = log.append(b"c", 1, "q", 7)
    assert logs().append(b"bbb", 3, "p", 9) == second
    assert logs().append(b"aa", 2, "p", 7) == first
    assert log.append(b"c", 1, "q", 7) == other
    assert bodies(tmp_path) == [b"aa", b"bbb", b"c"]


def test_a_sequence_out_of_order_is_refused_and_not_taken_for_a_resend(logs: Callable[[], StoredLog]) -> None:
    log = logs()
    log.append(b"aa", 2, "p", 7)
    log.append(b"bbb", 3, "p", 9)
    with pytest.raises(SettingsError, match="never that one"):
        log.append(b"x", 1, "p", 8)
    with pytest.raises(SettingsError, match="has appended 3 records with the sequence 9, and now sends 1"):
        log.append(b"x", 1, "p", 9)


def test_a_producer_without_a_sequence_goes_on_from_its_last(logs: Callable[[], StoredLog]) -> None:
    log = logs()
    log.append(b"a", 1, "p")
    log.append(b"b", 1, "p", 10)
    log.append(b"c", 1, "p")
    found = logs().last("p")
    assert found is not None
    assert (found.sequence, found.records, found.body) == (11, range(2, 3), b"c")
    assert log.last("nobody") is None


def test_the_last_append_of_a_producer_outlives_the_segment_it_is_in(
    logs: Callable[[], StoredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_log, "SEGMENT_BYTES", 500)
    log = logs()
    log.append(b"mine", 4, "p", 3)
    for _ in range(50):
        log.append(b"x" * 40, 1)
    assert len(segments(log.directory)) > 3
    assert log.retain(54, size=0) == 54
    assert len(segments(log.directory)) == 1
    found = logs().last("p")
    assert found == (3, range(4), b"mine")
    assert log.append(b"mine", 4, "p", 3) == range(4)
    assert logs().append(b"yours", 5, "p", 2) == range(0)  # gone, so nobody knows its numbers
    assert bodies(tmp_path) == []


def test_processes_and_threads_append_at_once(tmp_path: Path) -> None:
    running = [appender(tmp_path, f"p{i}", threads=3, appends=40) for i in range(4)]
    acknowledged = [t for process in running for t in told(process)]
    assert len(acknowledged) == 4 * 3 * 40
    compare(tmp_path, acknowledged)
    assert len(segments(tmp_path / "log")) > 1


def test_a_resend_after_a_restart_is_appended_once(tmp_path: Path) -> None:
    acknowledged = [t for _ in range(3) for t in told(appender(tmp_path, "p", appends=10))]
    assert len(set(acknowledged)) == 28  # each start sends the last append of the one before again
    compare(tmp_path, acknowledged)


def test_a_forked_child_has_a_log_of_its_own(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from secondpass.store.log import StoredLog\n"
        "log = StoredLog(Path(sys.argv[1]))\n"
        "log.append(b'parent', 1)\n"
        "pid = os.fork()\n"
        "for n in range(50):\n"
        "    log.append(b'x', 1, 'child' if pid == 0 else 'parent', n)\n"
        "if pid == 0:\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    frames = frames_of(tmp_path)
    assert len(frames) == 101
    for name in ("child", "parent"):
        assert [f.sequence for f, _ in frames if f.producer == name] == list(range(50))


# ---------------------------------------------------------------- what does not work


def test_a_full_disk_leaves_the_log_as_it_was(
    logs: Callable[[], StoredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs()
    log.append(b"before", 1)
    real = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if len(data) > 1000:
            return real(fd, data[:1000], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(store_log.os, "pwrite", full)
        with pytest.raises(StoreFull, match="nothing was appended"):
            log.append(b"x" * 5000, 1)
    assert log.append(b"after", 1) == range(1, 2)
    assert bodies(tmp_path) == [b"before", b"after"]


def test_a_failed_sync_is_final_and_its_records_are_gone_after_opening_again(
    logs: Callable[[], StoredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = logs(), logs()
    log.append(b"kept", 1)
    other.append(b"kept too", 1)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(store_log, "datasync", failing)
        with pytest.raises(StoreError, match="end this process and append again from a new one"):
            log.append(b"lost", 1)
    for failed in (log, other):  # what the page cache shows need not be what the disk holds
        with pytest.raises(StoreError):
            failed.append(b"refused", 1)
    assert logs().append(b"next", 1) == range(2, 3)
    assert bodies(tmp_path) == [b"kept", b"kept too", b"next"]
    with pytest.raises(StoreError):
        log.append(b"refused", 1)


def test_a_process_killed_while_it_writes_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    first = told(appender(tmp_path, "p", SECONDPASS_KILL_AT="log.write.after:5"), expect=-signal.SIGKILL)
    assert len(first) == 4
    second = told(appender(tmp_path, "q"))
    compare(tmp_path, [*first, *second])


def test_damage_to_what_was_acknowledged_is_told_and_never_cut(
    logs: Callable[[], StoredLog], tmp_path: Path
) -> None:
    log = logs()
    for n in range(4):
        log.append(b"x" * 20 + bytes([n]), 1)
    path = last_segment(tmp_path)
    whole = path.read_bytes()
    log.close()
    ends = tmp_path / "log" / ENDS
    known = ends.read_bytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0x40
        path.write_bytes(broken)
        ends.write_bytes(known)
        with pytest.raises(StoreDamaged):
            frames_of(tmp_path)
        assert path.read_bytes() == broken
        # Without a word of what was durable, the frames behind the damage have it.
        as_after_a_power_loss(tmp_path)
        if at < len(whole) - 2 * (21 + 50):
            with pytest.raises(StoreDamaged):
                StoredLog(tmp_path).append(b"", 1)
            assert path.read_bytes() == broken


def test_a_log_whose_segments_are_gone_is_not_begun_anew(
    logs: Callable[[], StoredLog], tmp_path: Path
) -> None:
    log = logs()
    log.append(b"x", 1)
    last_segment(tmp_path).unlink()
    with pytest.raises(StoreError):
        log.append(b"y", 1)
    with pytest.raises(StoreError):
        logs().append(b"y", 1)


# ---------------------------------------------------------------- a torn tail


def tails(whole: bytes, synced: int) -> Iterator[bytes]:
    """What a loss of power may leave of a file of which so many bytes were synced."""
    for size in range(synced, len(whole)):
        yield whole[:size]
        yield whole[:size] + bytes(len(whole) - size)  # it had grown already
    for at in range(synced, len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        yield bytes(broken)
    for start in range(synced, len(whole), 16):
        yield whole[:start] + bytes(16) + whole[start + 16 :]


def test_what_was_acknowledged_is_there_once_and_what_was_not_is_whole_or_absent(
    logs: Callable[[], StoredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs()
    log.append(b"first", 2, "p", 0)
    log.append(b"second", 1, "p", 1)
    path, kept = last_segment(tmp_path), log.ends.durable
    synced = path.stat().st_size
    monkeypatch.setattr(log, "sync", lambda end: None)  # the next ones are written, and no more
    for n in range(3):
        log.append(f"tail {n}".encode(), 1, "p", 2 + n)
    whole = path.read_bytes()
    log.close()
    sent = [b"first", b"second", b"tail 0", b"tail 1", b"tail 2"]
    for tail in tails(whole, synced):
        path.write_bytes(tail)
        (tmp_path / "log" / ENDS).unlink(missing_ok=True)
        with path.open("rb") as file, path.open("rb") as same:
            header = read_header(file.fileno(), path)
            there = len(scan(same.read(), header).frames)
        assert there >= 2
        again = StoredLog(tmp_path)
        # The producer sends again all that it was not told of.
        for n in range(3):
            assert again.append(f"tail {n}".encode(), 1, "p", 2 + n) == range(kept + n, kept + n + 1)
        again.close()
        assert bodies(tmp_path) == sent


def test_a_torn_tail_with_records_of_others_behind_it_is_cut_from_there(
    logs: Callable[[], StoredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs()
    log.append(b"kept", 1)
    monkeypatch.setattr(log, "sync", lambda end: None)
    for n in range(3):
        log.append(b"unsynced %d" % n, 1)
    path = last_segment(tmp_path)
    with path.open("rb") as file:
        second = list(heads(file.fileno(), read_header(file.fileno(), path).size, path.stat().st_size, path))[
            1
        ]
    whole = bytearray(path.read_bytes())
    whole[second.body] ^= 1
    log.close()
    path.write_bytes(whole)
    as_after_a_power_loss(tmp_path)
    assert logs().append(b"next", 1) == range(1, 2)
    assert bodies(tmp_path) == [b"kept", b"next"]


# ---------------------------------------------------------------- reading


def test_a_reader_takes_only_what_is_durable(
    logs: Callable[[], StoredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs()
    log.append(b"durable", 1)
    reader = LogReader(logs())
    reader.seek(0)
    with monkeypatch.context() as patched:
        patched.setattr(log, "sync", lambda end: None)
        log.append(b"written", 1)
    assert [body for _, body in reader.frames(10)] == [b"durable"]
    assert reader.frames(10) == []
    log.sync(2)
    assert [body for _, body in reader.frames(10)] == [b"written"]
    reader.close()


def test_what_a_dead_process_has_written_is_made_durable_by_the_reader(tmp_path: Path) -> None:
    acknowledged = told(
        appender(tmp_path, "p", SECONDPASS_KILL_AT="log.sync.before:3"), expect=-signal.SIGKILL
    )
    assert len(acknowledged) == 2
    log = StoredLog(tmp_path)
    reader = LogReader(log)
    reader.seek(0)
    found = 0
    while found < 3:
        found += len(reader.frames(10))
        reader.wait(0.01)
    reader.close()
    log.close()


def test_a_reader_does_not_wait_for_a_process_that_was_stopped_while_it_synced(
    logs: Callable[[], StoredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs()
    log.append(b"x", 1)
    with monkeypatch.context() as patched:
        patched.setattr(log, "sync", lambda end: None)
        log.append(b"written", 1)
    reader = LogReader(logs())
    reader.seek(1)
    with log._holding("sync"):
        for _ in range(8):
            assert reader.frames(1) == []
            reader.wait(0.02)
    while not reader.frames(1):
        reader.wait(0.02)
    reader.close()


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_reading_may_begin_at_any_record(
    logs: Callable[[], StoredLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(store_log, "SEGMENT_BYTES", 400)
    monkeypatch.setattr("secondpass.store.logreader.CHUNK_BYTES", chunk)
    log = logs()
    numbers = [n for n in range(40) for _ in range(n % 4 + 1)]
    for n in range(40):
        log.append(b"%d" % n * 9, n % 4 + 1)
    for start in range(len(numbers) + 1):
        found = frames_of(tmp_path, start)
        assert [body for _, body in found] == (
            [] if start == len(numbers) else [b"%d" % n * 9 for n in range(numbers[start], 40)]
        )


def test_a_reader_is_woken_by_an_append(logs: Callable[[], StoredLog]) -> None:
    log = logs()
    reader = LogReader(logs())
    reader.claim()
    reader.seek(0)
    thread = threading.Thread(target=lambda: log.append(b"x", 1))
    thread.start()
    while not reader.frames(1):
        reader.wait(60.0)  # without being woken the test would take too long
    thread.join()
    with pytest.raises(StoreLocked):
        LogReader(logs()).claim()
    reader.close()


def test_records_that_left_the_log_are_told_to_who_asks_for_them(
    logs: Callable[[], StoredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_log, "SEGMENT_BYTES", 300)
    log = logs()
    for _ in range(30):
        log.append(b"x" * 40, 1)
    assert log.retain(20, size=None, age_s=3600.0) == 0
    oldest = log.retain(20, size=0)
    assert 0 < oldest <= 20
    reader = LogReader(logs())
    with pytest.raises(LeftTheLog, match=f"the records 3 to {oldest - 1} have left the log"):
        reader.seek(3)
    reader.seek(oldest)
    assert sum(f.records for f, _ in reader.frames(100)) == 30 - oldest
    reader.close()


def test_old_records_leave_the_log_by_age(
    logs: Callable[[], StoredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs()
    at = [1000.0]
    monkeypatch.setattr("secondpass.store.log.time.time", lambda: at[0])
    log.append(b"old", 1)
    at[0] += 50
    assert log.retain(1, age_s=60.0) == 0
    at[0] += 60
    assert log.retain(0, age_s=60.0) == 0, "it is not committed"
    log.retain(1, age_s=60.0)
    at[0] += 61
    assert log.retain(1, age_s=60.0) == 1


# ---------------------------------------------------------------- back-pressure


def test_append_waits_for_a_hub_that_is_behind(
    logs: Callable[[], StoredLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_log, "AHEAD_BYTES", 500)
    log = logs()
    reader = LogReader(logs())
    reader.claim()
    reader.seek(0)
    for _ in range(6):
        log.append(b"x" * 50, 1)
    with pytest.raises(StoreFull, match="bytes behind the log"):
        log.append(b"x", 1, timeout_s=0.05)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (log.append(b"y", 1), done.set()))
    thread.start()
    assert not done.wait(0.05)
    reader.frames(100)
    reader.committed(4)
    assert done.wait(10)
    thread.join()
    reader.close()


def test_without_a_hub_so_much_may_wait_and_no_more(
    logs: Callable[[], StoredLog], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_log, "AHEAD_BYTES", 100)
    monkeypatch.setattr(store_log, "WAITING_BYTES_MAX", 500)
    log = logs()
    for _ in range(6):
        log.append(b"x" * 50, 1)
    with pytest.raises(StoreFull, match="no hub runs that takes them: run the app"):
        log.append(b"x" * 50, 1)
    assert len(frames_of(tmp_path)) == 6


def test_a_copy_of_a_log_can_be_used(logs: Callable[[], StoredLog], tmp_path: Path) -> None:
    logs().append(b"x", 1)
    shutil.copytree(tmp_path / "log", tmp_path / "copy" / "log", ignore=shutil.ignore_patterns("wake"))
    assert StoredLog(tmp_path / "copy").append(b"y", 1) == range(1, 2)
    assert bodies(tmp_path / "copy") == [b"x", b"y"]
