"""A full or failing disk: a clear message and exit code, nothing acknowledged that is not there, and on it goes."""

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import STREAMS, Case, lines, real_command

from secondpass.store.database import Store

OUTPUT, STORE = 5, 6


@pytest.fixture
def case(new_case: Callable[[list[bytes]], Case], rng: random.Random) -> Case:
    return new_case(lines(rng, 700))


def goes_on(case: Case) -> None:
    """The disk is well again: the run continues and all is there once."""
    case.run()
    case.check()


FAILING = [
    *((f"sys.wal.write:{n}", STORE) for n in (1, 2, 30, 150)),
    *((f"sys.wal.sync:{n}", STORE) for n in (1, 2, 9)),
    *((f"sys.db.write:{n}", STORE) for n in (1, 3)),
    *((f"sys.db.sync:{n}", STORE) for n in (1, 2)),
    *((f"sys.lock.write:{n}", STORE) for n in (1,)),
    *((f"sys.lock.sync:{n}", STORE) for n in (1,)),
    *((f"sys.sink.write:{n}", OUTPUT) for n in (1, 2, 9)),
    *((f"sys.sink.sync:{n}", OUTPUT) for n in (1, 2, 3, 4)),
]


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EIO+", "ENOSPC+"])
@pytest.mark.parametrize(("call", "expected"), FAILING)
def test_a_failing_call_stops_the_run_with_a_message_and_it_goes_on_later(
    case: Case, call: str, expected: int, error: str
) -> None:
    code = case.run(expect=None, SECONDPASS_TEST_FAIL=f"{call}:{error}")
    said = case.log()
    if code == 0 and call.startswith("sys.db."):
        # A checkpoint failed: all is durable in the WAL, and a later one will do its work.
        case.check()
        return
    assert code == expected, f"exit code {code}\n{said}"
    assert "Traceback" not in said
    assert "error:" in said
    if error.startswith("ENOSPC"):
        assert "space" in said, said
    case.check_after_kill()
    goes_on(case)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_outputs_whose_sync_failed_are_written_again_before_they_are_vouched_for(
    case: Case, number: int
) -> None:
    # After a failed sync the pages count as written, and the next sync proves nothing about them.
    assert case.run(expect=None, SECONDPASS_TEST_FAIL=f"sys.sink.sync:{number}:EIO") == OUTPUT
    store = Store.open_to_read(case.store)
    states = store.progress.sinks
    vouched = {name: states[stream]["size"] if stream in states else 0 for stream, name in STREAMS.items()}
    store.close()
    unsure = {
        name: set(range(vouched[name], (case.directory / name).stat().st_size)) for name in STREAMS.values()
    }
    assert any(unsure.values())
    trace = case.directory / "trace.txt"
    case.run(SECONDPASS_TEST_TRACE=str(trace))
    for line in trace.read_text().splitlines():
        name, offset, length = line.split()
        unsure[name] -= set(range(int(offset), int(offset) + int(length)))
    assert not any(unsure.values()), "some bytes may exist in memory only, and the store vouches for them"
    case.check()


def test_a_disk_that_fails_again_and_again_is_survived_each_time(case: Case, rng: random.Random) -> None:
    calls = (
        "sys.wal.write",
        "sys.wal.sync",
        "sys.db.write",
        "sys.db.sync",
        "sys.sink.write",
        "sys.sink.sync",
    )
    for _ in range(25):
        fails = f"{rng.choice(calls)}:{rng.randint(1, 25)}:{rng.choice(('EIO', 'ENOSPC'))}"
        code = case.run(expect=None, SECONDPASS_TEST_FAIL=fails)
        assert code in (0, OUTPUT, STORE), f"{fails}: exit code {code}\n{case.log()}"
        case.check_after_kill()
    goes_on(case)


@pytest.mark.parametrize("kib", [1, 5, 20, 40, 64, 90, 128])
def test_a_limit_on_file_size_stops_the_run_and_it_goes_on_without_the_limit(case: Case, kib: int) -> None:
    code = case.run(expect=None, SECONDPASS_TEST_LIMIT=str(kib * 1024))
    assert code in (OUTPUT, STORE), f"exit code {code}\n{case.log()}"
    assert "Traceback" not in case.log()
    assert "run again" in case.log()
    case.check_after_kill()
    goes_on(case)


def test_the_real_command_says_what_to_do_when_a_file_may_not_grow(case: Case) -> None:
    limited = subprocess.run(
        [str(Path(sys.executable).with_name("secondpass")), "run", "crash_app.py"],
        cwd=case.directory,
        env={**os.environ, "SECONDPASS_EPOCH_RECORDS": "50"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024,) * 2),
    )
    assert limited.returncode in (OUTPUT, STORE), limited.stderr
    assert "error:" in limited.stderr
    assert "run again" in limited.stderr
    case.check_after_kill()
    with real_command(case.directory, "run", "crash_app.py") as again:
        _, err = again.communicate(timeout=30)
    assert again.returncode == 0, err
    case.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small tmpfs")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("free_kib", [0, 8, 60, 120, 200, 300])
def test_a_full_disk_stops_the_run_and_it_goes_on_once_there_is_space(
    case: Case, small_disk: Path, free_kib: int
) -> None:
    full = case.copy(small_disk / "case")
    full.log_file = case.directory / "log.txt"  # the full disk would swallow what is said
    filler = small_disk / "filler"
    room = os.statvfs(small_disk)
    filler.write_bytes(b"\0" * max(0, room.f_bavail * room.f_frsize - free_kib * 1024))
    code = full.run(expect=None)
    assert code in (OUTPUT, STORE), f"exit code {code}\n{full.log()}"
    assert full.run(expect=None) in (OUTPUT, STORE), "a disk that is still full is as full the second time"
    filler.unlink()
    full.check_after_kill()
    goes_on(full)
